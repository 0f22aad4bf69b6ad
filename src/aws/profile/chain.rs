//! Which source of credentials a profile names, through all roles that are assumed on the way: by botocore's order
//! (`credentials.py`, `AssumeRoleProvider` and `ProfileProviderBuilder`), where the SDK's is another.

use std::{fmt::Write, path::Path, sync::Arc, time::SystemTime};

use aws_credential_types::Credentials;

use super::{Entry, Files, Profiles, fault::ProfileFault, process, roles::Role};
use crate::{
    aws::sso::{self, Portal},
    clock,
    settings::{
        SdkVariables,
        inputs::{Wrong, shown},
    },
    util::{read::read_text, written::rfc3339},
};

/// The profile of the SDK's file.
pub(super) const OUTERMOST: &str = "profile-0";

/// The SDK's name of the metadata of an instance.
const EC2: &str = "Ec2InstanceMetadata";

/// What the AWS CLI asks for where a session names no `sso_registration_scopes`.
const USUAL_SCOPE: &str = "sso:account:access";

/// Longest file of a token, in bytes: STS takes tokens of at most 20,000 characters.
const MAX_TOKEN_LEN: u64 = 64 << 10;

/// Most roles of a chain; nobody has seen three.
const MAX_ROLES: usize = 50;

/// Keys and values of a section that the SDK reads.
type Keys = Vec<(&'static str, String)>;

/// The source, and the roles that are assumed with it.
#[derive(Debug)]
pub(super) struct Chain {
    /// The one first that is assumed last.
    pub(super) roles: Vec<Role>,
    base: Base,
}

/// Credentials that need no others.
enum Base {
    Keys(Keys),
    Process(String),
    Sso {
        profile: String,
        keys: Keys,
        session: Option<(String, Keys)>,
    },
    /// The SDK's own name of the source.
    Named(&'static str),
}

impl std::fmt::Debug for Base {
    /// Shows no values: some of them are keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").finish_non_exhaustive()
    }
}

impl Chain {
    /// Finds the source of a profile's credentials; `None` if it has none.
    pub(super) fn resolve(files: &Files, name: &str, profiles: &Profiles) -> Result<Option<Self>, ProfileFault> {
        let mut roles = Vec::new();
        let mut visited: Vec<String> = Vec::new();
        let mut name = name.to_owned();
        let base = loop {
            let Some(profile) = files.profiles.get(&name) else {
                return Err(ProfileFault::NoSuchSection { key: "source_profile", name });
            };
            profile.assert_sound()?;
            let is_first = visited.is_empty();
            let has_keys = ["aws_access_key_id", "aws_secret_access_key"].iter().any(|key| profile.has(key));
            if !profile.assumes_role() || (has_keys && !is_first) {
                break base(files, profile, &name, profiles)?;
            }
            visited.push(name.clone());
            roles.push(Role {
                arn: profile.value("role_arn")?.unwrap_or_default(),
                session_name: profile.value("role_session_name")?,
                external_id: profile.value("external_id")?,
                // What is more than anything that STS takes is refused by it.
                duration: profile.value("duration_seconds")?.map(|text| text.parse().unwrap_or(i32::MAX)),
                mfa_serial: profile.value("mfa_serial")?,
            });
            match (profile.value("source_profile")?, profile.value("credential_source")?) {
                (Some(_), Some(_)) => {
                    let (one, other) = ("source_profile", "credential_source");
                    return Err(ProfileFault::Contradiction { profile: shown(&name), one, other });
                }
                (None, None) => {
                    let lacks = vec!["source_profile", "credential_source"];
                    return Err(ProfileFault::Lacks { profile: shown(&name), has: "role_arn", lacks });
                }
                (None, Some(source)) => break Some(named(&source, profiles)?),
                (Some(source), None) if source == name && has_keys => break base(files, profile, &name, profiles)?,
                (Some(source), None) if visited.contains(&source) || visited.len() > MAX_ROLES => {
                    let names = visited.iter().chain([&source]).map(|name| format!("`{}`", shown(name))).collect();
                    return Err(ProfileFault::Circle { names });
                }
                (Some(source), None) => name = source,
            }
        };
        match base {
            Some(base) => Ok(Some(Self { roles, base })),
            None if roles.is_empty() => Ok(None),
            None => Err(ProfileFault::EmptySource { source_profile: shown(&name) }),
        }
    }

    /// Returns the profile that is signed in to IAM Identity Center, if the credentials come from there.
    pub(super) fn signed_in(&self) -> Option<&str> {
        match &self.base {
            Base::Sso { profile, .. } => Some(profile),
            Base::Named(_) | Base::Keys(_) | Base::Process(_) => None,
        }
    }

    /// Returns where that profile is signed in.
    pub(super) fn portal(&self, variables: &SdkVariables) -> Option<Portal> {
        let Base::Sso { profile, keys, session } = &self.base else { return None };
        let of_session = session.as_ref().map(|(_, keys)| keys);
        let value = |wanted: &str| {
            let mut all = of_session.into_iter().chain([keys]).flatten();
            all.find(|(key, _)| *key == wanted).map(|(_, value)| value.clone())
        };
        let start_url = value("sso_start_url")?;
        let name = session.as_ref().map_or(start_url.as_str(), |(name, _)| name);
        let file = variables.get("HOME").map(|home| sso::token_file(Path::new(home), name));
        let scopes = value("sso_registration_scopes");
        let scopes = match (session, &scopes) {
            // Tokens of the old kind cannot be renewed anywhere.
            (None, _) => Vec::new(),
            (Some(_), None) => vec![USUAL_SCOPE.to_owned()],
            (Some(_), Some(scopes)) => {
                scopes.split(',').map(str::trim).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
            }
        };
        Some(Portal { profile: shown(profile), region: value("sso_region")?, scopes, file, start_url })
    }

    /// Says where the credentials come from.
    pub(super) fn source(&self) -> &'static str {
        match (&self.base, self.roles.is_empty()) {
            (Base::Keys(keys), _) if keys.iter().any(|(key, _)| *key == "web_identity_token_file") => {
                "it has a web identity token"
            }
            (Base::Keys(_), true) => "it has keys of its own",
            (Base::Keys(_), false) => "it assumes a role with keys",
            (Base::Process(_), true) => "it has a `credential_process`",
            (Base::Process(_), false) => "it assumes a role with what a `credential_process` gives",
            (Base::Named(_), _) => "it assumes a role with the credentials of this machine",
            (Base::Sso { .. }, _) => "it is one of IAM Identity Center",
        }
    }

    /// Runs the program that gives the credentials, if there is one. Returns them if no role is to be assumed with them; else
    /// the SDK is given them.
    pub(super) async fn run_process(&mut self) -> Result<Option<Credentials>, ProfileFault> {
        let Base::Process(command) = &self.base else { return Ok(None) };
        let credentials = process::run(command).await?;
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        if let Some(end) = credentials.expiry().filter(|end| *end <= now) {
            return Err(ProfileFault::Process { what: format!("gave credentials that expired at {}", rfc3339(end)) });
        }
        if self.roles.is_empty() {
            return Ok(Some(credentials));
        }
        let mut keys = vec![
            ("aws_access_key_id", credentials.access_key_id().to_owned()),
            ("aws_secret_access_key", credentials.secret_access_key().to_owned()),
        ];
        keys.extend(credentials.session_token().map(|token| ("aws_session_token", token.to_owned())));
        if keys.iter().any(|(_, value)| value.contains(char::is_whitespace)) {
            return Err(ProfileFault::Process { what: "gave keys with spaces in them".to_owned() });
        }
        self.base = Base::Keys(keys);
        Ok(None)
    }

    pub(super) fn needs(&self, variable: &str) -> bool {
        match self.base {
            Base::Named(EC2) => variable == "AWS_EC2_METADATA_DISABLED",
            Base::Named(_) => variable.starts_with("AWS_CONTAINER_"),
            Base::Keys(_) | Base::Process(_) | Base::Sso { .. } => false,
        }
    }

    /// Whether it is a source that the profile names by a word.
    pub(super) fn names_a_source(&self) -> bool {
        matches!(self.base, Base::Named(_))
    }

    /// Writes a file for the SDK, for the credentials that need no others.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        match &self.base {
            // The SDK runs no program: it is given what this one has said. Other sources are in its environment.
            Base::Named(_) | Base::Process(_) => {}
            Base::Keys(keys) => write_section(&mut text, &format!("profile {OUTERMOST}"), keys),
            Base::Sso { keys, session, .. } => {
                write_section(&mut text, &format!("profile {OUTERMOST}"), keys);
                if let Some((session, keys)) = session {
                    write_section(&mut text, &format!("sso-session {session}"), keys);
                }
            }
        }
        text
    }
}

/// Finds the source of a profile that assumes no role with another: web identity, IAM Identity Center, keys of the
/// credentials file, `aws login`, a process, keys of the configuration file.
fn base(files: &Files, profile: &Entry, name: &str, profiles: &Profiles) -> Result<Option<Base>, ProfileFault> {
    let lacks = |has, lacks: Vec<&'static str>| ProfileFault::Lacks { profile: shown(name), has, lacks };
    if let Some(file) = profile.value("web_identity_token_file")? {
        let mut keys = keys(profile, &["role_arn", "role_session_name"])?;
        if !profile.has("role_arn") {
            return Err(lacks("web_identity_token_file", vec!["role_arn"]));
        }
        let path = profiles.path(&file);
        if let Err(error) = read_text(&path, MAX_TOKEN_LEN) {
            return Err(ProfileFault::TokenFile { path, source: Arc::new(error) });
        }
        check_for_sdk(profile, "web_identity_token_file", &file)?;
        keys.push(("web_identity_token_file", path.to_string_lossy().into_owned()));
        return Ok(Some(Base::Keys(keys)));
    }
    let sso = ["sso_account_id", "sso_role_name"];
    if sso.iter().any(|key| profile.has(key)) {
        return self::sso(files, profile, name).map(Some);
    }
    // Keys of one file belong together.
    let keys_of = |wanted: bool| -> Result<Option<Base>, ProfileFault> {
        let parts = profile.parts.iter().filter(|part| part.is_config == wanted).cloned().collect();
        let part = Entry { parts };
        match (part.has("aws_access_key_id"), part.has("aws_secret_access_key")) {
            (false, _) => return Ok(None),
            (true, false) => return Err(lacks("aws_access_key_id", vec!["aws_secret_access_key"])),
            (true, true) => {}
        }
        let mut keys = keys(&part, &["aws_access_key_id", "aws_secret_access_key"])?;
        let token = part.value("aws_security_token")?.or(part.value("aws_session_token")?);
        keys.extend(token.map(|token| ("aws_session_token", token)));
        Ok(Some(Base::Keys(keys)))
    };
    if let Some(keys) = keys_of(false)? {
        return Ok(Some(keys));
    }
    if profile.has("login_session") {
        return Err(ProfileFault::Login { profile: shown(name) });
    }
    if let Some(command) = profile.value("credential_process")? {
        return Ok(Some(Base::Process(command)));
    }
    if let Some(keys) = keys_of(true)? {
        return Ok(Some(keys));
    }
    // What was begun and is of no use is a mistake, which is said before something else is tried.
    for (has, other) in
        [("sso_session", &sso[..]), ("sso_start_url", &sso), ("aws_secret_access_key", &["aws_access_key_id"])]
    {
        if profile.has(has) {
            return Err(lacks(has, other.to_vec()));
        }
    }
    Ok(None)
}

fn sso(files: &Files, profile: &Entry, name: &str) -> Result<Base, ProfileFault> {
    const OF_SESSION: [&str; 2] = ["sso_start_url", "sso_region"];
    let lacks = |has, lacks| ProfileFault::Lacks { profile: shown(name), has, lacks };
    let missing = |of: &[&Entry], keys: &[&'static str]| -> Vec<&'static str> {
        keys.iter().copied().filter(|key| !of.iter().any(|entry| entry.has(key))).collect()
    };
    let session = match profile.value("sso_session")? {
        None => None,
        Some(session) => match files.sessions.get(&session) {
            Some(section) => Some((session, section)),
            None => return Err(ProfileFault::NoSuchSection { key: "sso_session", name: session }),
        },
    };
    let has = if profile.has("sso_account_id") { "sso_account_id" } else { "sso_role_name" };
    let mut of = vec![profile];
    of.extend(session.as_ref().map(|(_, section)| *section));
    let missing = [missing(&[profile], &["sso_account_id", "sso_role_name"]), missing(&of, &OF_SESSION)].concat();
    if !missing.is_empty() {
        return Err(lacks(has, missing));
    }
    let mut own = keys(profile, &["sso_account_id", "sso_role_name"])?;
    let Some((session, section)) = session else {
        own.extend(keys(profile, &OF_SESSION)?);
        return Ok(Base::Sso { profile: name.to_owned(), keys: own, session: None });
    };
    section.assert_sound()?;
    // Tools write the keys of the session into the profile as well, for old SDKs.
    for key in OF_SESSION {
        if let (Some(one), Some(other)) = (profile.value(key)?, section.value(key)?)
            && one != other
        {
            return Err(ProfileFault::SessionDiffers { key, session: shown(&session) });
        }
    }
    if !session.chars().all(|c| c.is_ascii_alphanumeric() || "_-/.%@:+".contains(c)) {
        let place = profile.find("sso_session").map(|(place, _)| place);
        let expected = Wrong::Not("a name of letters, digits and `_-/.%@:+`");
        return Err(place.map_or(ProfileFault::NoSuchSection { key: "sso_session", name: session.clone() }, |place| {
            ProfileFault::value("sso_session", place, &session, expected)
        }));
    }
    let both = Entry { parts: [&section.parts[..], &profile.parts].concat() };
    let of_session = keys(&both, &["sso_start_url", "sso_region", "sso_registration_scopes"])?;
    own.push(("sso_session", session.clone()));
    Ok(Base::Sso { profile: name.to_owned(), keys: own, session: Some((session, of_session)) })
}

/// Reads a source that is named by a word.
fn named(source: &str, profiles: &Profiles) -> Result<Base, ProfileFault> {
    match source {
        EC2 => Ok(Base::Named(EC2)),
        "EcsContainer" => Ok(Base::Named("EcsContainer")),
        "Environment" => {
            let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
            let [Some(id), Some(secret), token] = keys.map(|name| profiles.variables.get(name)) else {
                return Err(ProfileFault::NoKeysInEnvironment);
            };
            let mut keys = vec![("aws_access_key_id", id.to_owned()), ("aws_secret_access_key", secret.to_owned())];
            keys.extend(token.map(|token| ("aws_session_token", token.to_owned())));
            Ok(Base::Keys(keys))
        }
        other => Err(ProfileFault::UnknownSource { source_name: shown(other) }),
    }
}

/// Reads keys that are there.
fn keys(profile: &Entry, wanted: &[&'static str]) -> Result<Keys, ProfileFault> {
    let mut keys = Keys::new();
    for key in wanted {
        let Some(value) = profile.value(key)? else { continue };
        check_for_sdk(profile, key, &value)?;
        keys.push((key, value));
    }
    Ok(keys)
}

/// Refuses what botocore takes as it is, and of which the SDK would take a part for a comment.
fn check_for_sdk(profile: &Entry, key: &'static str, value: &str) -> Result<(), ProfileFault> {
    match profile.find(key) {
        Some((place, _)) if [" #", " ;", "\t#", "\t;"].iter().any(|comment| value.contains(comment)) => {
            Err(ProfileFault::value(key, place, value, Wrong::Is("has a space before `#` or `;`")))
        }
        _ => Ok(()),
    }
}

fn write_section(text: &mut String, header: &str, keys: &Keys) {
    let _infallible = writeln!(text, "[{header}]");
    keys.iter().for_each(|(key, value)| write_key(text, key, value));
}

fn write_key(text: &mut String, key: &str, value: &str) {
    let _infallible = writeln!(text, "{key} = {value}");
}

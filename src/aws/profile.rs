//! Profiles of the AWS configuration files: read by this program, as the AWS CLI reads them, and handed to the SDK in a form
//! that it cannot mistake.
//!
//! Invariants:
//!
//! * The SDK reads no profile file. It would refuse names with blanks or umlauts and files with a fault anywhere, take what
//!   is not UTF-8 for empty, and panic on values that it does not take. It is given the profiles that lead to credentials,
//!   under names of ours and with the keys that it needs, and settings as checked variables.
//! * A fault matters to whoever uses the section that it is in; elsewhere it is a warning.
//! * Files are read at each load of credentials, since they are rewritten.
//!
//! Modules: `ini` (the form of the files), `chain` (which source of credentials a profile names), `roles` (that it assumes with
//! them), [`fault`].

mod chain;
pub(super) mod fault;
mod ini;
mod process;
mod roles;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;

use self::{
    chain::Chain,
    fault::{FileFault, Place, ProfileFault},
    ini::{Fault, Section, Value},
    roles::Failed,
};
use super::{
    Sdk,
    error::AwsError,
    identity::session_name,
    sso::{Portal, SignIn},
};
use crate::{
    settings::{
        AwsSettings, SdkVariables, Takes,
        inputs::{self, shown},
    },
    util::{
        peer_text::sentence,
        read::{ReadError, read as read_regular},
    },
};

/// The profile that is meant where none is named.
const DEFAULT: &str = "default";

/// Largest file that is read, in bytes: some hundred times what large companies generate.
const MAX_LEN: u64 = 64 << 20;

/// Services whose endpoints a profile may name, as a `services` section calls them, and the variables for the same.
const SERVICES: [(&str, &str); 8] = [
    ("sts", "AWS_ENDPOINT_URL_STS"),
    ("ec2", "AWS_ENDPOINT_URL_EC2"),
    ("ec2_instance_connect", "AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT"),
    ("ecs", "AWS_ENDPOINT_URL_ECS"),
    ("eks", "AWS_ENDPOINT_URL_EKS"),
    ("ssm", "AWS_ENDPOINT_URL_SSM"),
    ("sso", "AWS_ENDPOINT_URL_SSO"),
    ("sso_oidc", "AWS_ENDPOINT_URL_SSO_OIDC"),
];

/// Keys that stand in for a variable which is not set.
const FOR_VARIABLES: [(&str, &str); 7] = [
    ("ignore_configured_endpoint_urls", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"),
    ("use_fips_endpoint", "AWS_USE_FIPS_ENDPOINT"),
    ("use_dualstack_endpoint", "AWS_USE_DUALSTACK_ENDPOINT"),
    ("retry_mode", "AWS_RETRY_MODE"),
    ("max_attempts", "AWS_MAX_ATTEMPTS"),
    ("ec2_metadata_service_endpoint", "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
    ("ec2_metadata_service_endpoint_mode", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"),
];

/// Where the profile is that is to be used.
#[derive(Debug, Clone)]
pub(super) struct Profiles {
    paths: [Option<PathBuf>; 2],
    name: Option<String>,
    variables: SdkVariables,
    /// The name of sessions of roles that profiles do not name.
    session_name: String,
}

/// What a profile says besides its credentials.
#[derive(Debug, Clone, Default)]
pub(super) struct ProfileSettings {
    pub(super) region: Option<String>,
    pub(super) ca_bundle: Option<PathBuf>,
    /// The endpoint of Systems Manager, and that for stream URLs, unless the environment names one.
    pub(super) ssm: Option<String>,
    pub(super) ssmmessages: Option<String>,
    /// The profile assumes a role with the credentials of another, or of another source.
    pub(super) assumes_role: bool,
    /// What the process has in its environment, and what the profile says of the same.
    pub(super) variables: SdkVariables,
}

/// How a profile's credentials are had.
#[derive(Debug, Default)]
pub(super) struct ProfileCredentials {
    /// Its name, if it was asked for.
    name: Option<String>,
    session_name: String,
    chain: Option<Chain>,
    /// What it has instead of credentials.
    keys: Vec<String>,
}

impl Profiles {
    pub(super) fn new(settings: &AwsSettings) -> Self {
        Self {
            paths: settings.profile_files.clone(),
            name: settings.profile.clone().filter(|name| !name.is_empty()),
            variables: settings.sdk_variables.clone(),
            session_name: session_name(settings),
        }
    }

    /// Reads what the profile says besides its credentials.
    ///
    /// # Errors
    /// [`AwsError::UnknownProfile`], [`AwsError::ProfileFiles`], [`AwsError::Profile`].
    pub(super) async fn settings(&self) -> Result<ProfileSettings, AwsError> {
        let files = Files::read(&self.paths).await;
        let mut settings = ProfileSettings { variables: self.variables.clone(), ..ProfileSettings::default() };
        let Some(profile) = self.select(&files)? else {
            files.warn(&[]);
            return Ok(settings);
        };
        self.collect(&files, profile, &mut settings).map_err(|fault| self.error(fault))?;
        Ok(settings)
    }

    fn collect(&self, files: &Files, profile: &Entry, settings: &mut ProfileSettings) -> Result<(), ProfileFault> {
        // One that nobody asked for may be of no use, as long as nothing needs it.
        if self.name.is_some() {
            profile.assert_sound()?;
        }
        settings.assumes_role = profile.assumes_role();
        settings.region = profile.value("region")?;
        settings.ca_bundle = profile.value("ca_bundle")?.map(|path| self.path(&path));
        for (key, variable) in FOR_VARIABLES {
            if let Some(value) = profile.value(key)? {
                settings.variables.add(variable, &value);
            }
        }
        let services = match profile.value("services")? {
            None => None,
            Some(name) => Some(files.services.get(&name).ok_or(ProfileFault::NoSuchSection { key: "services", name })?),
        };
        match self.name {
            Some(_) => {
                services.map_or(Ok(()), Entry::assert_sound)?;
                files.warn(&[Some(profile), services].into_iter().flatten().collect::<Vec<_>>());
            }
            None => files.warn(&[]),
        }
        let ignored = settings.variables.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") == Some("true");
        if ignored {
            return Ok(());
        }
        let of_all = profile.value("endpoint_url")?;
        let of_service = |service: &str| -> Result<Option<String>, ProfileFault> {
            match services.and_then(|services| services.nested(service, "endpoint_url")) {
                Some((place, value)) => read(Takes::Url, "endpoint_url", place, value),
                None => Ok(None),
            }
        };
        // The environment wins, also that for all services over the profile for one.
        let in_environment = settings.variables.get("AWS_ENDPOINT_URL").is_some();
        for (service, variable) in SERVICES {
            if let Some(url) = of_service(service)?.or_else(|| of_all.clone())
                && !in_environment
            {
                settings.variables.add(variable, &url);
            }
        }
        settings.ssm = settings.variables.get("AWS_ENDPOINT_URL_SSM").map(str::to_owned);
        settings.ssmmessages = of_service("ssmmessages")?;
        Ok(())
    }

    /// Reads how the profile's credentials are had.
    ///
    /// # Errors
    /// [`AwsError::UnknownProfile`], [`AwsError::ProfileFiles`], [`AwsError::Profile`].
    pub(super) async fn credentials(&self) -> Result<ProfileCredentials, AwsError> {
        let files = Files::read(&self.paths).await;
        let profile = self.select(&files)?;
        let chain = match profile {
            Some(_) => {
                let name = self.name.as_deref().unwrap_or(DEFAULT);
                Chain::resolve(&files, name, self).map_err(|fault| self.error(fault))?
            }
            None => None,
        };
        let keys = profile.map(Entry::keys).unwrap_or_default();
        let (name, session_name) = (self.name.clone(), self.session_name.clone());
        Ok(ProfileCredentials { name, session_name, chain, keys })
    }

    /// Finds the profile. There need not be a default one.
    fn select<'a>(&self, files: &'a Files) -> Result<Option<&'a Entry>, AwsError> {
        let name = self.name.as_deref().unwrap_or(DEFAULT);
        match (files.profiles.get(name), files.faults.first()) {
            (Some(profile), _) => Ok(Some(profile)),
            (None, _) if self.name.is_none() || name == DEFAULT => Ok(None),
            (None, Some(fault)) => Err(AwsError::ProfileFiles { source: Arc::new(fault.clone()) }),
            (None, None) => {
                let files = self.paths.iter().flatten().cloned().collect();
                Err(AwsError::UnknownProfile { name: shown(name), files })
            }
        }
    }

    fn error(&self, fault: ProfileFault) -> AwsError {
        AwsError::Profile { name: shown(self.name.as_deref().unwrap_or(DEFAULT)), fault: Arc::new(fault) }
    }

    /// Reads a path as the user means it.
    fn path(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), self.variables.get("HOME")) {
            (Some(rest), Some(home)) => Path::new(home).join(rest),
            _ => PathBuf::from(path),
        }
    }
}

impl ProfileCredentials {
    /// Returns the file that the SDK is to read, as text, and the profile in it.
    pub(super) fn for_sdk(&self) -> (String, &'static str) {
        (self.chain.as_ref().map(Chain::text).unwrap_or_default(), chain::OUTERMOST)
    }

    /// Runs the program that gives the credentials, if there is one. Returns them if they are those of the profile; else the
    /// SDK assumes roles with them.
    ///
    /// # Errors
    /// [`AwsError::Profile`].
    pub(super) async fn run_process(&mut self) -> Result<Option<Credentials>, AwsError> {
        let Some(chain) = &mut self.chain else { return Ok(None) };
        let run = chain.run_process().await;
        run.map_err(|fault| AwsError::Profile { name: self.shown_name(), fault: Arc::new(fault) })
    }

    /// Returns the sign-in that the credentials rest on, if they do on one.
    pub(super) async fn sign_in(&self, sdk: &Sdk, variables: &SdkVariables) -> Option<SignIn> {
        let portal = self.chain.as_ref()?.portal(variables)?;
        Some(SignIn::new(self.shown_name(), portal, sdk, variables).await)
    }

    /// Returns where the profile is signed in.
    ///
    /// # Errors
    /// [`AwsError::Profile`] for one that is not, with what it is instead.
    pub(super) fn portal(&self, variables: &SdkVariables) -> Result<Portal, AwsError> {
        let portal = self.chain.as_ref().and_then(|chain| chain.portal(variables));
        portal.ok_or_else(|| {
            let has = match (&self.chain, &self.keys[..]) {
                (Some(chain), _) => chain.source().to_owned(),
                (None, []) => "it is not there, or empty".to_owned(),
                (None, keys) => format!("it has no credentials, only {}", fault::list(keys)),
            };
            AwsError::Profile { name: self.shown_name(), fault: Arc::new(ProfileFault::NoSignIn { has }) }
        })
    }

    /// Returns the name that the profile is called by.
    pub(super) fn shown_name(&self) -> String {
        shown(self.name.as_deref().unwrap_or(DEFAULT))
    }

    /// Whether the credentials are those of a container or a machine because the profile says so.
    pub(super) fn names_a_source(&self) -> bool {
        self.chain.as_ref().is_some_and(Chain::names_a_source)
    }

    /// Assumes the roles of the profile, one after the other.
    ///
    /// # Errors
    /// [`AwsError::Profile`], [`AwsError::RoleDenied`], and why STS cannot be asked.
    pub(super) async fn assume_roles(
        &self,
        mut credentials: Credentials,
        sdk: &SdkConfig,
        region: &str,
    ) -> Result<Credentials, AwsError> {
        for role in self.chain.iter().flat_map(|chain| chain.roles.iter().rev()) {
            let assumed = role.assume(credentials, sdk, region, &self.session_name).await;
            credentials = assumed.map_err(|failed| match failed {
                Failed::Profile(fault) => AwsError::Profile { name: self.shown_name(), fault: Arc::new(fault) },
                Failed::Other(error) => error,
            })?;
        }
        Ok(credentials)
    }

    /// Returns what the SDK finds in its environment where this profile is to be used and nothing else.
    pub(super) fn variables_alone(&self, variables: SdkVariables) -> SdkVariables {
        let keeps = |name: &str| self.chain.as_ref().is_some_and(|chain| chain.needs(name));
        let source = |name: &str| {
            let starts = ["AWS_ACCESS_", "AWS_SECRET_", "AWS_SESSION_", "AWS_ROLE_", "AWS_WEB_", "AWS_CONTAINER_"];
            starts.iter().any(|start| name.starts_with(start))
        };
        let mut variables = variables.without(|name| source(name) && !keeps(name));
        if !keeps("AWS_EC2_METADATA_DISABLED") {
            variables = variables.without(|name| name == "AWS_EC2_METADATA_DISABLED");
            variables.add("AWS_EC2_METADATA_DISABLED", "true");
        }
        variables
    }

    /// Gives failures the meaning that they have for this profile.
    pub(super) fn refine(&self, error: AwsError) -> AwsError {
        let name = || self.shown_name();
        match (error, &self.chain) {
            (AwsError::CredentialSource { source }, Some(chain)) => match (chain.signed_in(), signed_out(&*source)) {
                (Some(profile), Some(expired)) => {
                    let fault = ProfileFault::SignedOut { profile: shown(profile), expired, source };
                    AwsError::Profile { name: name(), fault: Arc::new(fault) }
                }
                _ => AwsError::CredentialSource { source },
            },
            (AwsError::NoCredentials { .. }, None) if self.name.is_some() => {
                let fault = ProfileFault::NoCredentials { keys: self.keys.clone() };
                AwsError::Profile { name: name(), fault: Arc::new(fault) }
            }
            (error, _) => error,
        }
    }
}

/// Reads from an error of IAM Identity Center that somebody has to sign in: the sign-in has expired (`true`), or there has
/// never been one. By words, as the SDK's types are private.
fn signed_out(error: &(dyn std::error::Error + 'static)) -> Option<bool> {
    let text = sentence(error);
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["SSO token has expired", "UnauthorizedException", "InvalidGrantException", "ExpiredTokenException"]) {
        return Some(true);
    }
    has(&["cached SSO token", "failed to read `"]).then_some(false)
}

/// The files, by what their sections are for.
#[derive(Debug, Default)]
struct Files {
    profiles: BTreeMap<String, Entry>,
    sessions: BTreeMap<String, Entry>,
    services: BTreeMap<String, Entry>,
    /// Faults outside of all sections.
    faults: Vec<FileFault>,
}

/// A profile, or another section of a name. Keys of the credentials file win.
#[derive(Debug, Clone, Default)]
struct Entry {
    /// That of the credentials file first.
    parts: Vec<Part>,
}

/// What one file says.
#[derive(Debug, Clone)]
struct Part {
    path: Arc<Path>,
    /// It is the configuration file, not that of credentials.
    is_config: bool,
    section: Section,
}

impl Files {
    async fn read([config, credentials]: &[Option<PathBuf>; 2]) -> Self {
        let mut files = Self::default();
        for (path, is_config) in [(credentials, false), (config, true)] {
            let Some(path) = path else { continue };
            let path: Arc<Path> = Arc::from(path.as_path());
            let bytes = match read_file(&path).await {
                Ok(bytes) => bytes,
                Err(source) => {
                    files.faults.push(FileFault::Unreadable { path: path.to_path_buf(), source: Arc::new(source) });
                    continue;
                }
            };
            let (sections, stray) = ini::parse(&bytes);
            files.faults.extend(stray.into_iter().map(|fault| FileFault::line(&path, &fault)));
            let mut profiles = BTreeMap::new();
            for section in sections {
                files.sort(&mut profiles, &path, section, is_config);
            }
            for (name, part) in profiles {
                files.profiles.entry(name).or_default().parts.push(part);
            }
        }
        files
    }

    /// Finds what a section is for. Of several for the same, the last one counts.
    fn sort(&mut self, profiles: &mut BTreeMap<String, Part>, path: &Arc<Path>, section: Section, is_config: bool) {
        let header = section.header.clone();
        if header.is_empty() {
            return self.faults.extend(section.faults.iter().map(|fault| FileFault::line(path, fault)));
        }
        let part = Part { path: Arc::clone(path), is_config, section };
        if !is_config || header == DEFAULT {
            profiles.insert(header, part);
            return;
        }
        let words = ini::words(&header).unwrap_or_default();
        let [_, name] = &words[..] else { return };
        let entry = |part| Entry { parts: vec![part] };
        // By their start, as botocore does.
        if header.starts_with("profile") {
            profiles.insert(name.clone(), part);
        } else if header.starts_with("sso-session") {
            self.sessions.insert(name.clone(), entry(part));
        } else if header.starts_with("services") {
            self.services.insert(name.clone(), entry(part));
        }
    }

    /// Warns of faults in all but what is used, once for each file: it may be no profile file at all.
    fn warn(&self, used: &[&Entry]) {
        for fault in self.passed_over(used) {
            tracing::warn!("{fault}");
        }
    }

    fn passed_over(&self, used: &[&Entry]) -> Vec<String> {
        let entries = [&self.profiles, &self.sessions, &self.services].into_iter().flat_map(BTreeMap::values);
        let unused = entries.filter(|entry| !used.iter().any(|used| std::ptr::eq(*used, *entry)));
        let parts = unused.flat_map(|entry| &entry.parts);
        let in_sections =
            parts.flat_map(|part| part.section.faults.iter().map(|fault| FileFault::line(&part.path, fault)));
        let mut by_file: BTreeMap<PathBuf, BTreeMap<usize, String>> = BTreeMap::new();
        for fault in self.faults.iter().cloned().chain(in_sections) {
            let (path, line) = fault.place();
            by_file.entry(path.to_owned()).or_default().insert(line, sentence(&fault));
        }
        let sentence = |faults: BTreeMap<usize, String>| {
            let more = match faults.len() - 1 {
                0 => String::new(),
                1 => ", and one more line".to_owned(),
                more => format!(", and {more} more lines"),
            };
            Some(format!("{}: ignored{more}", faults.into_values().next()?))
        };
        by_file.into_values().filter_map(sentence).collect()
    }
}

impl Entry {
    /// Finds a key that has a value.
    fn find(&self, key: &str) -> Option<(Place, &Value)> {
        self.parts.iter().find_map(|Part { path, section, .. }| {
            let value = section.keys.get(key).filter(|value| !value.text().trim().is_empty())?;
            Some((Place { path: Arc::clone(path), line: value.line }, value))
        })
    }

    fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn value(&self, key: &'static str) -> Result<Option<String>, ProfileFault> {
        let Some((place, value)) = self.find(key) else { return Ok(None) };
        let takes = inputs::of_key(key).map_or(Takes::Text, |input| input.takes);
        read(takes, key, place, value.text())
    }

    /// Finds a key in a block of its own.
    fn nested(&self, block: &str, key: &str) -> Option<(Place, &str)> {
        let (place, value) = self.find(block)?;
        Some((place, value.nested().remove(key).filter(|value| !value.is_empty())?))
    }

    /// Says whether it assumes a role with the credentials of another; one with a token file is a web identity of its own.
    fn assumes_role(&self) -> bool {
        self.has("role_arn") && !self.has("web_identity_token_file")
    }

    /// Refuses lines that mean nothing.
    fn assert_sound(&self) -> Result<(), ProfileFault> {
        let faults = |part: &'_ Part| part.section.faults.first().map(|fault| (Arc::clone(&part.path), fault.clone()));
        match self.parts.iter().find_map(faults) {
            Some((path, Fault { line, what })) => Err(ProfileFault::Line { place: Place { path, line }, what }),
            None => Ok(()),
        }
    }

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> =
            self.parts.iter().flat_map(|part| part.section.keys.keys().map(|key| shown(key))).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

fn read(takes: Takes, key: &'static str, place: Place, text: &str) -> Result<Option<String>, ProfileFault> {
    let text = text.trim();
    // Other tools take this for a comment. In a value that has no blanks it cannot be anything else.
    let text = match takes {
        Takes::Text | Takes::Path | Takes::TokenFile => text,
        Takes::Word
        | Takes::Region
        | Takes::Secret
        | Takes::Url
        | Takes::UrlPath
        | Takes::Number
        | Takes::Switch
        | Takes::RetryMode
        | Takes::AddressFamily => {
            text.split([' ', '\t']).next().filter(|word| is_comment(&text[word.len()..])).unwrap_or(text)
        }
    };
    match takes.read(text) {
        Ok(value) => Ok(Some(value.into_owned()).filter(|value| !value.is_empty())),
        Err(wrong) => Err(ProfileFault::value(key, place, text, wrong)),
    }
}

fn is_comment(rest: &str) -> bool {
    rest.trim_start().starts_with(['#', ';']) && !rest.contains('\n')
}

/// Reads a file that may not be there. What is no regular file, such as `/dev/null`, counts as not there: the AWS CLI does
/// the same, and a pipe might never end.
async fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || read_regular(&path, MAX_LEN)).await? {
        Ok(bytes) => Ok(bytes),
        Err(ReadError::NotRegular) => Ok(Vec::new()),
        Err(ReadError::Io(error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(ReadError::Io(error)) => Err(error),
        Err(error @ (ReadError::TooLong(_) | ReadError::NotText)) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests;

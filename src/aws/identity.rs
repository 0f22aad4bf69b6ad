//! Who we are: which source of credentials is used, and the role that is assumed with it.
//!
//! The choice is made once, from the settings, never by trying what works. The SDK's default chain has no part
//! in it where a role is named together with a web identity token: there a profile file would win over the
//! token. Every load asks the source afresh, so that a rewritten token or profile file is seen.
//!
//! SAML assertions are left out: they cannot be renewed without the user, who has `credential_process`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    credential_feature::AwsCredentialFeature,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use aws_sdk_sts::types::{AssumedRoleUser, Tag};
use aws_smithy_runtime_api::client::http::HttpConnector;
use futures_util::future::BoxFuture;

use super::{
    Api, Sdk,
    error::{AwsError, Call, Refusal, ServiceAnswer, TokenOrigin, classify, classify_credentials},
    files,
    offset::ClockOffset,
    profile::{ProfileCredentials, Profiles},
    sso::SignIn,
    token::TokenSource,
};
use crate::{
    settings::{AwsSettings, Chosen, PassedOver, SdkVariables, Source},
    util::arn::Arn,
};

/// Longest name of a role session, in characters.
const MAX_SESSION_NAME_LEN: usize = 64;

/// What a role session lasts when nothing else is asked for, in seconds.
const DEFAULT_SESSION_SECONDS: u64 = 3600;

/// What the settings choose, with what it takes.
#[derive(Debug)]
pub(super) enum Choice {
    WebIdentity {
        role: String,
        tokens: TokenSource,
    },
    /// A role, assumed with what the default chain gives, which is this source.
    Role {
        role: String,
        from: Source,
    },
    /// What the default chain gives.
    Ambient,
}

impl Choice {
    /// Takes what the settings have chosen; `audience` is that of the partition.
    pub(super) fn new(
        chosen: &Chosen,
        settings: &AwsSettings,
        audience: &str,
        http: impl FnOnce() -> Arc<dyn HttpConnector>,
    ) -> Self {
        let Chosen { role: Some(role), source, passed_over: _ } = chosen.clone() else { return Self::Ambient };
        match (source, &settings.ci_oidc) {
            (Source::TokenFile(path), _) => Self::WebIdentity { role, tokens: TokenSource::File(path) },
            (Source::CiJob, Some(oidc)) => {
                let audience = settings.oidc_audience.clone().unwrap_or_else(|| audience.to_owned());
                let tokens = TokenSource::CiJob { oidc: oidc.clone(), audience, http: http() };
                Self::WebIdentity { role, tokens }
            }
            (from, _) => Self::Role { role, from },
        }
    }
}

/// The SDK's default chain, made anew for each load: its providers keep what they have read.
#[derive(Clone)]
pub(super) struct Ambient {
    load: Load<Credentials>,
    sign_in: Load<Option<SignIn>>,
}

type Load<T> = Arc<dyn Fn() -> BoxFuture<'static, Result<T, AwsError>> + Send + Sync>;

impl Ambient {
    /// Takes what the chain is made of. With `alone` credentials come from the profile and from nowhere else, as with
    /// `--profile` of the AWS CLI; else keys in the environment come first.
    pub(super) fn new(region: &str, sdk: Sdk, profiles: Profiles, variables: SdkVariables, alone: bool) -> Self {
        let parts = Arc::new((sdk, profiles, variables, region.to_owned()));
        let for_sign_in = Arc::clone(&parts);
        let sign_in = move || -> BoxFuture<'static, _> {
            let parts = Arc::clone(&for_sign_in);
            Box::pin(async move {
                let (sdk, profiles, variables, _) = &*parts;
                if !alone && variables.get("AWS_ACCESS_KEY_ID").is_some() {
                    return Ok(None);
                }
                let profile = profiles.credentials().await?;
                Ok(profile.sign_in(sdk, variables).await)
            })
        };
        let load = move || -> BoxFuture<'static, _> {
            let parts = Arc::clone(&parts);
            Box::pin(async move {
                let (sdk, profiles, variables, region) = &*parts;
                let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|key| variables.get(key));
                if !alone && id.is_some() && secret.is_none() {
                    return Err(AwsError::HalfKeys);
                }
                let has_keys = !alone && id.is_some();
                // With keys nothing is wanted of it, so nothing that is wrong with it matters.
                let mut profile = match has_keys {
                    true => ProfileCredentials::default(),
                    false => profiles.credentials().await?,
                };
                if let Some(credentials) = profile.run_process().await? {
                    return Ok(credentials);
                }
                if let Some(sign_in) = profile.sign_in(sdk, variables).await {
                    sign_in.renew().await?;
                }
                let variables = variables.clone();
                let variables =
                    if alone || profile.names_a_source() { profile.variables_alone(variables) } else { variables };
                let (text, name) = profile.for_sdk();
                let sdk = sdk.loader(&variables, &text).profile_name(name).load().await;
                let loaded = match sdk.credentials_provider() {
                    Some(provider) => provider.provide_credentials().await,
                    None => Err(CredentialsError::not_loaded("the default chain is empty")),
                };
                let refine = |error| files::named(profile.refine(classify_credentials(region, error)), &variables);
                let loaded = loaded.map_err(refine)?;
                profile.assume_roles(loaded, &sdk, region).await
            })
        };
        Self { load: Arc::new(load), sign_in: Arc::new(sign_in) }
    }

    /// Takes a provider instead of the default chain.
    #[cfg(test)]
    pub(super) fn of(region: &str, provider: impl ProvideCredentials + Clone + 'static) -> Self {
        let region = region.to_owned();
        let load = move || -> BoxFuture<'static, _> {
            let (provider, region) = (provider.clone(), region.clone());
            Box::pin(async move {
                provider.provide_credentials().await.map_err(|error| classify_credentials(&region, error))
            })
        };
        Self { load: Arc::new(load), sign_in: Arc::new(|| Box::pin(async { Ok(None) })) }
    }

    /// Returns the sign-in that the credentials rest on, if they do on one.
    ///
    /// # Errors
    /// Whatever is wrong with profiles.
    pub(super) async fn sign_in(&self) -> Result<Option<SignIn>, AwsError> {
        (self.sign_in)().await
    }

    async fn get(&self) -> Result<Credentials, AwsError> {
        (self.load)().await
    }
}

impl std::fmt::Debug for Ambient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ambient").finish_non_exhaustive()
    }
}

impl ProvideCredentials for Ambient {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move { self.get().await.map_err(CredentialsError::provider_error) })
    }
}

/// The source of credentials, with all it needs.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) choice: Choice,
    pub(super) ambient: Ambient,
    /// Signs with ambient credentials, or not at all for a web identity.
    pub(super) sts: Api<aws_sdk_sts::Client>,
    pub(super) region: String,
    pub(super) session_name: String,
    pub(super) duration: Option<Duration>,
    /// What the role's trust policy asks for of whoever is not trusted for their identity alone.
    pub(super) external_id: Option<String>,
    /// Tags of the session, and the keys of those that stay with sessions of further roles.
    pub(super) tags: (Vec<Tag>, Vec<String>),
    pub(super) profile: Option<String>,
    /// When the keys in the environment expire, as far as it says so.
    pub(super) keys_expire: Option<SystemTime>,
    /// By which tokens are judged.
    pub(super) offset: ClockOffset,
    /// What else there was.
    pub(super) passed_over: Vec<PassedOver>,
}

impl Identity {
    /// Asks the source for credentials.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub(super) async fn load(&self) -> Result<Credentials, AwsError> {
        match &self.choice {
            Choice::WebIdentity { role, tokens } => self.assume_with_token(role, tokens).await,
            Choice::Role { role, .. } => self.assume(role).await,
            Choice::Ambient => {
                let mut credentials = self.ambient.get().await?;
                if self.is_fixed(&credentials) && credentials.expiry().is_none() {
                    *credentials.expiry_mut() = self.keys_expire;
                }
                Ok(credentials)
            }
        }
    }

    /// Tells whether these credentials can never be renewed: the environment of a process does not change.
    pub(super) fn is_fixed(&self, credentials: &Credentials) -> bool {
        matches!(self.choice, Choice::Ambient)
            && credentials.session_token().is_some()
            && has_feature(credentials, &[AwsCredentialFeature::CredentialsEnvVars])
    }

    /// Says in words where credentials come from.
    pub(super) fn describe(&self, credentials: &Credentials) -> String {
        match &self.choice {
            Choice::WebIdentity { role, tokens } => match tokens.origin() {
                TokenOrigin::File(path) => format!("web identity token `{}` for role `{role}`", path.display()),
                TokenOrigin::CiJob { name, .. } => format!("{name} for role `{role}`"),
            },
            Choice::Role { role, from: Source::Chain } => {
                format!("role `{role}` assumed from the {}", Source::Chain)
            }
            Choice::Role { role, from } => format!("role `{role}` assumed from {from}"),
            Choice::Ambient => ambient_source(credentials, self.profile.as_deref()),
        }
    }

    async fn assume_with_token(&self, role: &str, tokens: &TokenSource) -> Result<Credentials, AwsError> {
        let token = tokens.token(self.offset.now(), self.offset.is_known()).await?;
        let call = self.call("sts:AssumeRoleWithWebIdentity", role);
        let answer = self
            .sts
            .client
            .assume_role_with_web_identity()
            .role_arn(role)
            .role_session_name(&self.session_name)
            .set_duration_seconds(self.duration_seconds())
            .web_identity_token(token.expose())
            .send()
            .await
            .map_err(|error| self.refine(role, Some(tokens.origin()), classify(call, error)))?;
        assumed(call, answer.credentials, answer.assumed_role_user)
    }

    async fn assume(&self, role: &str) -> Result<Credentials, AwsError> {
        let call = self.call("sts:AssumeRole", role);
        let (tags, transitive) = &self.tags;
        let answer = self
            .sts
            .client
            .assume_role()
            .role_arn(role)
            .role_session_name(&self.session_name)
            .set_duration_seconds(self.duration_seconds())
            .set_external_id(self.external_id.clone())
            .set_tags((!tags.is_empty()).then(|| tags.clone()))
            .set_transitive_tag_keys((!transitive.is_empty()).then(|| transitive.clone()))
            .send()
            .await
            .map_err(|error| self.refine(role, None, classify(call, error)))?;
        assumed(call, answer.credentials, answer.assumed_role_user)
    }

    fn call<'a>(&'a self, action: &'static str, role: &'a str) -> Call<'a> {
        Call { action, resource: role, region: &self.region, host: &self.sts.host }
    }

    fn duration_seconds(&self) -> Option<i32> {
        self.duration.map(|duration| i32::try_from(duration.as_secs()).unwrap_or(i32::MAX))
    }

    /// Gives answers of STS the meaning that they have where a role is assumed.
    fn refine(&self, role: &str, origin: Option<TokenOrigin>, error: AwsError) -> AwsError {
        let role = role.to_owned();
        match (error, origin) {
            (AwsError::AccessDenied { source, .. }, _) => {
                AwsError::RoleDenied { role, passed_over: self.passed_over.clone(), source }
            }
            (AwsError::ExpiredCredentials { source }, Some(origin)) => AwsError::TokenExpired { origin, source },
            (AwsError::Refused { refusal: Refusal::Token, source, .. }, Some(origin)) => {
                AwsError::InvalidIdentityToken { origin, role, source }
            }
            (AwsError::Refused { refusal: Refusal::Request, source, .. }, _)
                if source.to_string().contains("DurationSeconds") =>
            {
                let seconds = self.duration.map_or(DEFAULT_SESSION_SECONDS, |duration| duration.as_secs());
                AwsError::DurationTooLong { role, seconds, source }
            }
            (error, _) => error,
        }
    }
}

/// Takes the credentials out of an answer of STS.
pub(super) fn assumed(
    call: Call<'_>,
    credentials: Option<aws_sdk_sts::types::Credentials>,
    user: Option<AssumedRoleUser>,
) -> Result<Credentials, AwsError> {
    let lacking = |what: &str| {
        let answer = ServiceAnswer {
            code: None,
            message: Some(format!("the answer has no {what}").into()),
            status: None,
            request_id: None,
        };
        AwsError::Service { action: call.action, source: Arc::new(answer) }
    };
    let credentials = credentials.ok_or_else(|| lacking("credentials"))?;
    let expiry = (*credentials.expiration()).try_into().map_err(|_| lacking("usable expiry"))?;
    let mut builder = Credentials::builder()
        .access_key_id(credentials.access_key_id)
        .secret_access_key(credentials.secret_access_key)
        .session_token(credentials.session_token)
        .expiry(expiry)
        .provider_name("AssumedRole");
    builder.set_account_id(user.and_then(|user| Arn::parse(&user.arn).map(|arn| arn.account.into())));
    Ok(builder.build())
}

/// Tells whether credentials come from one of these sources.
fn has_feature(credentials: &Credentials, wanted: &[AwsCredentialFeature]) -> bool {
    let features = credentials.get_property::<Vec<AwsCredentialFeature>>().map(Vec::as_slice).unwrap_or_default();
    features.iter().any(|feature| wanted.contains(feature))
}

/// Says which link of the default chain credentials come from.
fn ambient_source(credentials: &Credentials, profile: Option<&str>) -> String {
    let has = |wanted: &[AwsCredentialFeature]| has_feature(credentials, wanted);
    let profile = || format!("profile `{}`", profile.unwrap_or("default"));
    use AwsCredentialFeature as Feature;
    // A chain of sources has a feature for each; the one that the user set up comes first here.
    if has(&[Feature::CredentialsEnvVarsStsWebIdToken]) {
        "web identity token of the environment".to_owned()
    } else if has(&[Feature::CredentialsEnvVars]) {
        "keys in the environment".to_owned()
    } else if has(&[Feature::CredentialsProfileSso, Feature::CredentialsSso]) {
        format!("IAM Identity Center, {}", profile())
    } else if has(&[Feature::CredentialsProfileProcess, Feature::CredentialsProcess]) {
        format!("credential process, {}", profile())
    } else if has(&[
        Feature::CredentialsProfile,
        Feature::CredentialsProfileSourceProfile,
        Feature::CredentialsProfileNamedProvider,
        Feature::CredentialsProfileStsWebIdToken,
    ]) {
        profile()
    } else if has(&[Feature::CredentialsHttp]) {
        "container credentials endpoint".to_owned()
    } else if has(&[Feature::CredentialsImds]) {
        "instance metadata".to_owned()
    } else {
        "default credential chain".to_owned()
    }
}

/// Returns the tags of role sessions, and the keys of those that stay with sessions of further roles.
///
/// # Errors
/// [`AwsError::TagsOfToken`]: with a web identity they are a part of the token.
pub(super) fn tags(settings: &AwsSettings, choice: &Choice) -> Result<(Vec<Tag>, Vec<String>), AwsError> {
    if let Choice::WebIdentity { tokens, .. } = choice
        && !settings.tags.is_empty()
    {
        return Err(AwsError::TagsOfToken { origin: tokens.origin() });
    }
    let pairs = settings.tags.iter().filter_map(|tag| tag.split_once('='));
    let tags = pairs.filter_map(|(key, value)| Tag::builder().key(key).value(value).build().ok());
    Ok((tags.collect(), settings.transitive_tags.clone()))
}

/// Returns the name of role sessions: what was asked for, or what identifies user and host, as CloudTrail
/// shows it and session ids start with it. Characters that STS does not take become `-`.
pub(super) fn session_name(settings: &AwsSettings) -> String {
    let clean = |name: &str| -> String {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        name.trim().chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_SESSION_NAME_LEN).collect()
    };
    if let Some(name) = settings.role_session_name.as_deref().map(clean)
        && name.len() >= 2
    {
        return name;
    }
    let host = settings.host_name.as_deref().and_then(|name| name.split('.').next());
    let parts = ["autoheal-pa"].into_iter().chain(settings.user_name.as_deref()).chain(host);
    let parts: Vec<_> = parts.filter(|part| !part.trim().is_empty()).collect();
    clean(&parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        aws::testing,
        secret::Secret,
        settings::{CiOidc, CiSystem, TokenFrom},
    };

    #[test]
    fn takes_what_the_settings_choose() {
        let role = "arn:aws:iam::123456789012:role/r";
        let mut settings = AwsSettings {
            ci_oidc: Some(CiOidc {
                system: CiSystem::GitHub,
                from: TokenFrom::Endpoint { url: "http://x".into(), token: Secret::new("t".into()) },
            }),
            ..AwsSettings::default()
        };
        let choice = |settings: &AwsSettings| Choice::new(&settings.choose(false), settings, "usual", testing::http);
        assert!(matches!(choice(&settings), Choice::Ambient));
        settings.role_arn = Some(role.into());
        let audience = |settings: &AwsSettings| match choice(settings) {
            Choice::WebIdentity { tokens: TokenSource::CiJob { audience, .. }, .. } => audience,
            other @ (Choice::WebIdentity { .. } | Choice::Role { .. } | Choice::Ambient) => panic!("{other:?}"),
        };
        assert_eq!(audience(&settings), "usual");
        settings.oidc_audience = Some("mine".into());
        assert_eq!(audience(&settings), "mine");
        settings.profile = Some("dev".into());
        assert!(matches!(choice(&settings), Choice::Role { from: Source::Profile(name), .. } if name == "dev"));
        settings.web_identity_token_file = Some("/token".into());
        settings.role_is_chosen = true;
        assert!(matches!(choice(&settings), Choice::WebIdentity { tokens: TokenSource::File(_), .. }));
    }

    #[test]
    fn names_sessions_as_sts_takes_them() {
        let name = |given: Option<&str>, user: Option<&str>, host: Option<&str>| {
            session_name(&AwsSettings {
                role_session_name: given.map(Into::into),
                user_name: user.map(Into::into),
                host_name: host.map(Into::into),
                ..AwsSettings::default()
            })
        };
        assert_eq!(name(None, Some("ann"), Some("build-7.example.com")), "autoheal-pa-ann-build-7");
        assert_eq!(name(None, None, Some("")), "autoheal-pa");
        assert_eq!(name(None, Some("Ann Ö"), None), "autoheal-pa-Ann--");
        assert_eq!(name(Some("ann.b+ci@example.com"), Some("x"), None), "ann.b+ci@example.com");
        assert_eq!(name(Some("run #12/é"), None, None), "run--12--");
        assert_eq!(name(Some(" "), Some("ann"), None), "autoheal-pa-ann");
        assert_eq!(name(Some("x"), None, None), "autoheal-pa");
        assert_eq!(name(Some(&"a".repeat(80)), None, None).len(), 64);
    }

    #[test]
    fn says_where_ambient_credentials_come_from() {
        let source = |features: &[AwsCredentialFeature], profile| {
            let mut credentials = Credentials::new("a", "s", None, None, "test");
            credentials.set_property(features.to_vec());
            ambient_source(&credentials, profile)
        };
        assert_eq!(source(&[AwsCredentialFeature::CredentialsEnvVars], Some("dev")), "keys in the environment");
        assert_eq!(
            source(
                &[
                    AwsCredentialFeature::CredentialsProfileSourceProfile,
                    AwsCredentialFeature::CredentialsStsAssumeRole
                ],
                Some("dev")
            ),
            "profile `dev`"
        );
        assert_eq!(
            source(&[AwsCredentialFeature::CredentialsProfileSso], None),
            "IAM Identity Center, profile `default`"
        );
        assert_eq!(source(&[AwsCredentialFeature::CredentialsImds], None), "instance metadata");
        assert_eq!(source(&[], None), "default credential chain");
    }
}

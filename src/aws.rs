//! AWS: who we are, which clusters there are, sessions, and the tokens that API servers take.
//!
//! Invariants:
//!
//! * There is one cache of credentials (`cache`); the SDK's clients and whatever signs by itself share it.
//! * Errors are classified once, in `error`.
//! * No call is without a limit, and everything honours the same proxies and certificate authorities (`tls`).
//! * A stream URL is dialled only if `endpoint` takes its host for the region's message gateway.
//!
//! Modules: `identity` (source of credentials, roles), `token` (web identity tokens), `cache`, `clusters`
//! (EKS discovery), `ecs`, `ec2`, `inventory` (what `setup` looks at), `query` (services without a client), `instance_connect`,
//! `nodes` (of Systems Manager), `connect` (TCP, proxy, TLS), `sso` (signing in), `mfa`, `files` (that the SDK reads),
//! `endpoint`, `sign`, `tls`, [`error`].
//! Retries beyond the SDK's own are left to the tunnels; what to do about an error is left to the command line.

pub mod advice;
mod bundle;
mod cache;
mod clusters;
pub(crate) mod connect;
pub mod ec2;
pub mod ecs;
pub(crate) mod endpoint;
pub mod error;
mod files;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod identity;
mod instance_connect;
pub mod inventory;
pub mod mfa;
pub mod nodes;
pub(crate) mod offset;
mod outbound;
mod profile;
mod program;
mod query;
mod routes;

pub(crate) mod sign;
mod sso;

#[cfg(test)]
pub(crate) mod testing;
mod tls;
mod token;
pub mod tunnel;
pub(crate) mod values;
mod xml;

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig, identity::IdentityCache, timeout::TimeoutConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::os_shim_internal::Env;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

pub use cache::{CredentialStatus, RenewalFailure, SignInEnd};
pub use clusters::{ClusterDescription, Discovery, SkipReason};
pub use error::AwsError;
pub use offset::Off;
pub use profile::fault::{Place, ProfileFault};
pub use routes::ProxyError;
pub use sso::{Approval, SignIn};

use bundle::Bundle;
use cache::{CredentialCache, Origin};
use connect::Connector;
use endpoint::GatewayPolicy;
use error::{Blame, Call, HostSeen, ServiceAnswer, classify};
use identity::{Ambient, Choice, Identity};
use offset::ClockOffset;
use profile::Profiles;
use query::Query;
use routes::Routes;
use tls::Tls;

use crate::{
    clock, iam,
    secret::Secret,
    settings::{AwsSettings, PassedOver, SdkVariables},
    util::time::Now,
};

/// Limit of a TCP connection to a service; the SDK's own default.
const CONNECT_LIMIT: Duration = Duration::from_millis(3100);

/// Limit of one attempt at a call. The calls made here are answered within a second.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Limit of a call with all its attempts.
const OPERATION_LIMIT: Duration = Duration::from_secs(30);

/// The variables that say where this machine gets metadata and credentials.
const METADATA: [&str; 2] = ["AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];

/// How long a bearer token is good for: API servers take a signature for 15 minutes.
const BEARER_TOKEN_LIFE: Duration = Duration::from_secs(14 * 60);

/// One identity in one region. Cheap to clone; all clones share clients and credentials.
#[derive(Clone)]
pub struct Aws {
    inner: Arc<Inner>,
}

struct Inner {
    region: String,
    identity: Arc<Identity>,
    credentials: CredentialCache,
    sts: Api<aws_sdk_sts::Client>,
    eks: Api<aws_sdk_eks::Client>,
    ssm: Api<aws_sdk_ssm::Client>,
    ecs: Api<aws_sdk_ecs::Client>,
    instance_connect: Api<aws_sdk_ec2instanceconnect::Client>,
    ec2: Query,
    iam: Query,
    auto_scaling: Query,
    /// The host that bearer tokens name.
    sts_host: String,
    gateways: GatewayPolicy,
    connector: Connector,
    offset: ClockOffset,
    tokens: Mutex<BTreeMap<String, Signed>>,
    tasks: TaskTracker,
}

/// A bearer token that has been made, and the access key that signed it.
struct Signed {
    key: String,
    token: BearerToken,
    at: Now,
}

/// A client, and the host that it calls.
#[derive(Debug)]
pub(crate) struct Api<C> {
    pub(crate) client: C,
    pub(crate) host: HostSeen,
}

/// Whose credentials are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub account: String,
    /// The ARN of the user or the assumed role.
    pub arn: String,
    /// The unique id, `${aws:userid}` in policies.
    pub user_id: String,
    /// Where the credentials come from, in words.
    pub source: String,
    /// When they expire, if they do.
    pub expires: Option<SystemTime>,
}

/// What authenticates to the API server of a cluster.
#[derive(Debug, Clone)]
pub struct BearerToken {
    pub token: Secret<String>,
    /// When to ask for another; in whole seconds, and never after the credentials behind it.
    pub expires: SystemTime,
}

/// What is taken from the process's surroundings; tests put something else in its place.
#[derive(Default)]
struct Surroundings {
    ambient: Option<Ambient>,
    endpoint: Option<String>,
    /// No repeated attempts.
    plain: bool,
    offset: ClockOffset,
}

impl std::fmt::Debug for Aws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aws").field("region", &self.inner.region).finish_non_exhaustive()
    }
}

impl Aws {
    /// Makes the clients. Calls no service; credentials are loaded when they are first needed.
    ///
    /// # Errors
    /// [`AwsError::NoRegion`], [`AwsError::InvalidRegion`], [`AwsError::UnknownProfile`], [`AwsError::ProfileFiles`],
    /// [`AwsError::CaBundle`], [`AwsError::TagsOfToken`].
    pub async fn new(settings: &AwsSettings) -> Result<Self, AwsError> {
        Box::pin(Self::build(settings, Surroundings::default())).await
    }

    async fn build(settings: &AwsSettings, surroundings: Surroundings) -> Result<Self, AwsError> {
        let profiles = Profiles::new(settings);
        let of_profile = profiles.settings().await?;
        files::check_all(settings.root_certificates.as_deref(), &of_profile.variables).await?;
        let bundle = Bundle::of(settings, &of_profile).await?;
        let profile = settings.profile.clone().filter(|profile| !profile.is_empty());
        let given = settings.region.clone().filter(|region| !region.is_empty());
        let region = given.or(of_profile.region).ok_or(AwsError::NoRegion)?;
        let sts_host = endpoint::sts_host(&region).await?;
        let moved = settings.ssm_endpoint.as_deref().or(of_profile.ssm.as_deref());
        let policy = GatewayPolicy::new(&region, settings.ssm_endpoint_override || moved.is_some(), moved).await?;
        let policy = match settings.endpoint_ssmmessages.as_ref().or(of_profile.ssmmessages.as_ref()) {
            Some(gateway) => policy.through(gateway)?,
            None => policy,
        };

        let routes = Routes::new(settings.proxies.clone()).direct(METADATA.map(|name| of_profile.variables.get(name)));
        let (routes, offset) = (Arc::new(routes), surroundings.offset);
        let http = tls::http_client(bundle.as_ref(), Arc::clone(&routes), offset.clone());
        let sdk = Sdk { region: region.clone(), http, endpoint: surroundings.endpoint, plain: surroundings.plain };
        let variables = of_profile.variables;
        let base = sdk.loader(&variables, "").no_credentials().load().await;
        let ambient = surroundings
            .ambient
            .unwrap_or_else(|| Ambient::new(&region, sdk, profiles, variables, settings.profile_is_chosen));

        let chosen = settings.choose(of_profile.assumes_role);
        let audience = token::usual_audience(iam::partition(&region));
        let choice =
            Choice::new(&chosen, settings, audience, || tls::http_connector(bundle.as_ref(), Arc::clone(&routes)));
        let provider = match choice {
            // These calls authenticate with the token alone.
            Choice::WebIdentity { .. } => None,
            Choice::Role { .. } | Choice::Ambient => Some(SharedCredentialsProvider::new(ambient.clone())),
        };
        let tags = identity::tags(settings, &choice)?;
        let identity = Arc::new(Identity {
            choice,
            ambient,
            sts: sts(&with_credentials(&base, provider)),
            region: region.clone(),
            session_name: identity::session_name(settings),
            duration: settings.duration,
            external_id: settings.external_id.clone(),
            tags,
            profile,
            keys_expire: settings.keys_expire,
            offset: offset.clone(),
            passed_over: chosen.passed_over,
        });
        let credentials = {
            let (identity, offset) = (Arc::clone(&identity), offset.clone());
            CredentialCache::new(move || load(Arc::clone(&identity)), offset)
        };
        let sdk = with_credentials(&base, Some(SharedCredentialsProvider::new(credentials.clone())));
        let inner = Inner {
            identity,
            credentials,
            sts: sts(&sdk),
            eks: eks(&sdk),
            ssm: ssm(&sdk),
            ecs: ecs(&sdk),
            instance_connect: instance_connect(&sdk),
            iam: Query::new(&query::IAM, sdk.clone()),
            auto_scaling: Query::new(&query::AUTO_SCALING, sdk.clone()),
            ec2: Query::new(&query::EC2, sdk),
            region,
            sts_host,
            gateways: policy,
            connector: Connector::new(routes, Tls::new(bundle.as_ref())),
            offset,
            tokens: Mutex::default(),
            tasks: TaskTracker::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    #[must_use]
    pub fn region(&self) -> &str {
        &self.inner.region
    }

    /// Returns the role that the settings name to be assumed, with its path, which the ARN of its sessions lacks.
    #[must_use]
    pub fn role_arn(&self) -> Option<&str> {
        match &self.inner.identity.choice {
            Choice::WebIdentity { role, .. } | Choice::Role { role, .. } => Some(role),
            Choice::Ambient => None,
        }
    }

    /// Returns the sources of credentials that were there and were not taken.
    #[must_use]
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.inner.identity.passed_over
    }

    /// Says in words where the credentials come from, once there are any. Calls no service but those that give them.
    ///
    /// # Errors
    /// See [`AwsError`]: every cause that credentials cannot be had.
    pub async fn credential_source(&self) -> Result<String, AwsError> {
        let credentials = self.credentials().await?;
        Ok(self.inner.identity.describe(&credentials))
    }

    /// Asks STS who the caller is, which needs no permission.
    ///
    /// # Errors
    /// See [`AwsError`]: every cause that credentials cannot be had or used.
    pub async fn caller(&self) -> Result<Caller, AwsError> {
        let credentials = self.credentials().await?;
        let sts = &self.inner.sts;
        let call = Call { action: "sts:GetCallerIdentity", resource: "*", region: self.region(), host: &sts.host };
        let answer = sts.client.get_caller_identity().send().await.map_err(|error| self.failed(call, error))?;
        let [account, arn, user_id] = [answer.account, answer.arn, answer.user_id].map(Option::unwrap_or_default);
        let are_plain = [&account, &user_id].into_iter().all(|value| value.is_empty() || values::is_plain(value));
        if !are_plain || !(arn.is_empty() || values::is_caller_arn(&arn)) {
            return Err(AwsError::malformed(call.action, "valid description of the caller"));
        }
        Ok(Caller {
            account,
            arn,
            user_id,
            source: self.inner.identity.describe(&credentials),
            expires: credentials.expiry().map(|end| self.inner.offset.here(end)),
        })
    }

    /// Says how far the clock of this machine is off, if that is known and more than AWS tolerates well.
    #[must_use]
    pub fn clock_off(&self) -> Option<Off> {
        self.inner.offset.off()
    }

    /// Returns a bearer token for a cluster, without any call but for credentials. One that was made before is given
    /// again for half its life, as long as the credentials behind it are in use.
    ///
    /// # Errors
    /// [`AwsError::BearerTokenTooLong`], [`AwsError::Signing`], and every cause that credentials cannot be had.
    pub async fn bearer_token(&self, token_name: &str) -> Result<BearerToken, AwsError> {
        let credentials = self.credentials().await?;
        let offset = &self.inner.offset;
        let whole = |time: Duration| SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
        let clocks = offset.clocks();
        let now = whole(clocks.wall);
        let mut tokens = self.inner.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Signed { key, token, at }) = tokens.get(token_name)
            && key == credentials.access_key_id()
            // What it says of its end was by the clock that there was.
            && !clock::was_set(*at, clocks)
            && token.expires.duration_since(now).is_ok_and(|left| left >= BEARER_TOKEN_LIFE / 2)
        {
            return Ok(token.clone());
        }
        let token =
            sign::bearer_token(&self.inner.sts_host, self.region(), token_name, &credentials, whole(offset.now()))
                .map_err(|source| AwsError::Signing { source: source.into() })?;
        let len = token.expose().len();
        if len > error::MAX_BEARER_TOKEN_LEN {
            return Err(AwsError::BearerTokenTooLong { len });
        }
        let expires = now + BEARER_TOKEN_LIFE;
        let expires = credentials.expiry().map_or(expires, |end| expires.min(whole_seconds(offset.here(end))));
        let token = BearerToken { token, expires };
        let signed = Signed { key: credentials.access_key_id().to_owned(), token: token.clone(), at: clocks };
        tokens.insert(token_name.to_owned(), signed);
        Ok(token)
    }

    /// Renews the credentials ahead of time, whether anybody needs them or not, and retries what fails. Never ends.
    ///
    /// # Cancel safety
    /// Can be dropped at any time and called again.
    pub async fn keep_credentials(&self) {
        let Inner { credentials, identity, .. } = &*self.inner;
        match identity.choice {
            Choice::WebIdentity { .. } => credentials.keep().await,
            Choice::Role { .. } | Choice::Ambient => {
                tokio::join!(credentials.keep(), sso::watch(&identity.ambient, credentials));
            }
        }
    }

    /// Tells how long the credentials last and what keeps them from being renewed, now and later.
    #[must_use]
    pub fn credential_status(&self) -> watch::Receiver<CredentialStatus> {
        self.inner.credentials.status()
    }

    /// Waits for what goes on in the background: sessions that are ended because nobody took them. To be
    /// called before the program ends, under a limit.
    ///
    /// # Cancel safety
    /// Can be dropped at any time and called again.
    pub async fn settle(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    pub(crate) async fn credentials(&self) -> Result<Credentials, AwsError> {
        self.inner.credentials.get().await
    }

    /// Finds the cause of a failed call.
    pub(crate) fn failed<E>(&self, call: Call<'_>, error: SdkError<E, HttpResponse>) -> AwsError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let mut error = classify(call, error);
        // EC2 says the same of credentials that have expired, and no clock is to blame that is known to be right.
        let code = error.answer().and_then(|answer| answer.code.as_deref());
        if code == Some("RequestExpired")
            && self.offset().is_known()
            && self.offset().off().is_none()
            && let AwsError::ClockSkew { source } = &error
        {
            error = AwsError::ExpiredCredentials { source: Arc::clone(source) };
        }
        // What the cache still takes for valid is not: the next call asks the source again.
        if let AwsError::ExpiredCredentials { .. } = error {
            self.inner.credentials.discard(&error);
        }
        if let AwsError::BadKeys { .. } = error {
            self.inner.credentials.doubt();
        }
        error
    }

    /// Finds the cause of a failed call that was made with other credentials than those of this identity, of which it says
    /// nothing.
    pub(crate) fn failed_as_another<E>(call: Call<'_>, error: SdkError<E, HttpResponse>) -> AwsError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        classify(call, error)
    }

    fn eks(&self) -> &Api<aws_sdk_eks::Client> {
        &self.inner.eks
    }

    pub(crate) fn ssm(&self) -> &Api<aws_sdk_ssm::Client> {
        &self.inner.ssm
    }

    fn ecs(&self) -> &Api<aws_sdk_ecs::Client> {
        &self.inner.ecs
    }

    pub(crate) fn gateway_policy(&self) -> &GatewayPolicy {
        &self.inner.gateways
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.inner.connector
    }

    pub(crate) fn offset(&self) -> &ClockOffset {
        &self.inner.offset
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// Takes note that a signature was refused, and with what words: the credentials may be spent, or wrong.
    pub(crate) fn note_refused_signature(&self, words: &str) {
        match error::blame(words) {
            Some(Blame::Expired) => {
                let answer =
                    ServiceAnswer { code: None, message: Some(words.into()), status: Some(403), request_id: None };
                self.inner.credentials.discard(&AwsError::ExpiredCredentials { source: Arc::new(answer) });
            }
            Some(Blame::Keys) => self.inner.credentials.doubt(),
            Some(Blame::Clock | Blame::Permission) | None => {}
        }
    }
}

/// Makes configurations of the SDK, which reads nothing by itself.
struct Sdk {
    region: String,
    http: SharedHttpClient,
    endpoint: Option<String>,
    plain: bool,
}

impl Sdk {
    /// Makes a loader that sees these variables, and this text of a profile file.
    fn loader(&self, variables: &SdkVariables, profiles: &str) -> ConfigLoader {
        let limits = TimeoutConfig::builder()
            .connect_timeout(CONNECT_LIMIT)
            .operation_attempt_timeout(READ_LIMIT)
            .operation_timeout(OPERATION_LIMIT)
            .build();
        let variables: Vec<_> = variables.iter().collect();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(self.region.clone()))
            .http_client(self.http.clone())
            .timeout_config(limits)
            .env(Env::from_slice(&variables))
            .profile_files(EnvConfigFiles::builder().with_contents(EnvConfigFileKind::Config, profiles).build());
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if self.plain {
            loader = loader.retry_config(aws_config::retry::RetryConfig::disabled());
        }
        loader
    }
}

/// Lets clients ask our cache each time, instead of keeping credentials in one of their own.
fn with_credentials(base: &SdkConfig, provider: Option<SharedCredentialsProvider>) -> SdkConfig {
    let mut builder = base.to_builder().identity_cache(IdentityCache::no_cache());
    builder.set_credentials_provider(provider);
    builder.build()
}

fn sts(sdk: &SdkConfig) -> Api<aws_sdk_sts::Client> {
    let host = HostSeen::new("STS");
    let config = aws_sdk_sts::config::Builder::from(sdk).interceptor(host.clone()).build();
    Api { client: aws_sdk_sts::Client::from_conf(config), host }
}

fn eks(sdk: &SdkConfig) -> Api<aws_sdk_eks::Client> {
    let host = HostSeen::new("EKS");
    let config = aws_sdk_eks::config::Builder::from(sdk).interceptor(host.clone()).build();
    Api { client: aws_sdk_eks::Client::from_conf(config), host }
}

fn ssm(sdk: &SdkConfig) -> Api<aws_sdk_ssm::Client> {
    let host = HostSeen::new("Systems Manager");
    let config = aws_sdk_ssm::config::Builder::from(sdk).interceptor(host.clone()).build();
    Api { client: aws_sdk_ssm::Client::from_conf(config), host }
}

fn ecs(sdk: &SdkConfig) -> Api<aws_sdk_ecs::Client> {
    let host = HostSeen::new("ECS");
    let config = aws_sdk_ecs::config::Builder::from(sdk).interceptor(host.clone()).build();
    Api { client: aws_sdk_ecs::Client::from_conf(config), host }
}

fn instance_connect(sdk: &SdkConfig) -> Api<aws_sdk_ec2instanceconnect::Client> {
    let host = HostSeen::new("EC2 Instance Connect");
    let config = aws_sdk_ec2instanceconnect::config::Builder::from(sdk).interceptor(host.clone()).build();
    Api { client: aws_sdk_ec2instanceconnect::Client::from_conf(config), host }
}

async fn load(identity: Arc<Identity>) -> Result<Credentials, AwsError> {
    let mut credentials = identity.load().await?;
    let (text, fixed) = (identity.describe(&credentials), identity.is_fixed(&credentials));
    credentials.set_property(Origin { text, fixed });
    let left = credentials.expiry().and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
    let left = left.map(|end| end.saturating_sub(identity.offset.now()).as_secs());
    tracing::info!(source = identity.describe(&credentials), seconds_left = left, "loaded AWS credentials");
    for PassedOver { source, why } in &identity.passed_over {
        tracing::info!(source, why, "passed over other AWS credentials");
    }
    Ok(credentials)
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests;

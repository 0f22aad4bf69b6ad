//! Signing in to IAM Identity Center: the device code flow, and tokens that are renewed without asking.
//!
//! Invariants:
//!
//! * The token is where the AWS CLI and the SDKs look for it, in their form ([`token`]), so that one sign-in is good for all.
//! * A token that can be renewed is renewed [`EARLY`], here and not by the SDK, which would write the file in place.
//! * What somebody else has written meanwhile is read before anything is given up.
//!
//! Getting a role's credentials with the token is left to the SDK.

mod token;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_config::Region;
use aws_sdk_ssooidc::operation::create_token::{CreateTokenError, CreateTokenOutput};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use http::Uri;

pub(super) use token::file as token_file;
pub(super) use watch::watch;

use self::token::Token;
use super::{
    Api, Sdk,
    bundle::Bundle,
    error::{AwsError, Call, Cause, HostSeen, classify},
    files,
    offset::ClockOffset,
    profile::{Profiles, fault::ProfileFault},
    routes::Routes,
    tls,
};
use crate::{
    clock,
    secret::Secret,
    settings::{AwsSettings, SdkVariables, Source},
    util::{
        peer_text::{PeerText, sentence},
        written::rfc3339,
    },
};

/// How long before its end a token is renewed: longer than the SDK's 5 minutes, so that it never does it itself.
const EARLY: Duration = Duration::from_secs(600);

/// What the page of approval calls this program.
const CLIENT_NAME: &str = "autoheal-pa";

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// What RFC 8628 says of clients that are not told how often they may ask.
const USUAL_INTERVAL: Duration = Duration::from_secs(5);

/// How much longer to wait after each `slow_down`, by the same.
const SLOWER: Duration = Duration::from_secs(5);

/// Longest code that a person is shown, in characters; they are of 8 and a dash.
const MAX_CODE_LEN: usize = 32;

/// Where a profile is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Portal {
    /// The profile that says so, which may be the source of the one that is used.
    pub(super) profile: String,
    pub(super) start_url: String,
    pub(super) region: String,
    /// With none there is nothing to renew a token by.
    pub(super) scopes: Vec<String>,
    /// Where the token is kept; `None`: there is no home.
    pub(super) file: Option<PathBuf>,
}

/// The sign-in of a profile to IAM Identity Center.
#[derive(Debug)]
pub struct SignIn {
    /// The profile that was asked for.
    asked: String,
    portal: Portal,
    oidc: Api<aws_sdk_ssooidc::Client>,
}

/// How long a sign-in is good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    /// When the token expires.
    pub(super) expires: SystemTime,
    /// Another can be had without asking, until IAM Identity Center ends the session.
    pub(super) renewable: bool,
}

impl Validity {
    /// When somebody has to sign in again, as far as that is known.
    pub(super) fn ends(self) -> Option<SystemTime> {
        (!self.renewable).then_some(self.expires)
    }
}

/// A sign-in that a person has to approve.
#[derive(Debug)]
pub struct Approval {
    /// What the page is to show.
    pub code: String,
    /// The page, with the code in it where it can have that.
    pub page: String,
    /// How long it can be approved.
    pub lasts: Duration,
    interval: Duration,
    device: Secret<String>,
    client: Client,
}

/// This program, as SSO OIDC knows it.
#[derive(Debug)]
struct Client {
    id: String,
    secret: Secret<String>,
    expires: SystemTime,
}

/// What keeps a token from being used.
#[derive(Debug, thiserror::Error)]
enum TokenFault {
    #[error("there is no token in `{}`", .0.display())]
    Missing(PathBuf),
    #[error("there is no home directory to keep a token in")]
    NoHome,
    #[error("the token in `{}` cannot be read: {what}", path.display())]
    Unreadable { path: PathBuf, what: &'static str },
    #[error("the token in `{}` was good until {}", path.display(), rfc3339(*end))]
    Over { path: PathBuf, end: SystemTime },
}

impl SignIn {
    /// Finds out where a profile is signed in. Calls no service.
    ///
    /// # Errors
    /// [`AwsError::Profile`] for one that is not signed in to IAM Identity Center, and whatever is wrong with profiles.
    pub async fn of(settings: &AwsSettings) -> Result<Self, AwsError> {
        let profiles = Profiles::new(settings);
        let of_profile = profiles.settings().await?;
        files::check_all(settings.root_certificates.as_deref(), &of_profile.variables).await?;
        let bundle = Bundle::of(settings, &of_profile).await?;
        let credentials = profiles.credentials().await?;
        let portal = credentials.portal(&of_profile.variables)?;
        let routes = Arc::new(Routes::new(settings.proxies.clone()));
        let http = tls::http_client(bundle.as_ref(), routes, ClockOffset::default());
        let sdk = Sdk { region: portal.region.clone(), http, endpoint: None, plain: false };
        Ok(Self::new(credentials.shown_name(), portal, &sdk, &of_profile.variables).await)
    }

    /// Finds out where the profile is signed in that the settings take credentials from; `None`: they take them from
    /// elsewhere.
    ///
    /// # Errors
    /// Whatever is wrong with profiles.
    pub async fn used_by(settings: &AwsSettings) -> Result<Option<Self>, AwsError> {
        match settings.choose(false).source {
            Source::TokenFile(_) | Source::CiJob | Source::Keys => Ok(None),
            Source::Profile(_) | Source::Chain => match Self::of(settings).await {
                Err(AwsError::Profile { fault, .. }) if matches!(*fault, ProfileFault::NoSignIn { .. }) => Ok(None),
                found => found.map(Some),
            },
        }
    }

    /// Whether one sign-in is good for both.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.portal.file == other.portal.file
    }

    pub(super) async fn new(asked: String, portal: Portal, sdk: &Sdk, variables: &SdkVariables) -> Self {
        let region = Region::new(portal.region.clone());
        let config = sdk.loader(variables, "").no_credentials().region(region).load().await;
        let host = HostSeen::new("IAM Identity Center");
        let config = aws_sdk_ssooidc::config::Builder::from(&config).interceptor(host.clone()).build();
        Self { asked, portal, oidc: Api { client: aws_sdk_ssooidc::Client::from_conf(config), host } }
    }

    /// The profile that is to be signed in.
    #[must_use]
    pub fn profile(&self) -> &str {
        &self.portal.profile
    }

    #[must_use]
    pub fn start_url(&self) -> &str {
        &self.portal.start_url
    }

    /// Asks for a sign-in that a person has to approve.
    ///
    /// # Errors
    /// [`AwsError::Profile`] if IAM Identity Center refuses it, and whatever keeps it from being reached.
    pub async fn start(&self) -> Result<Approval, AwsError> {
        let Portal { start_url, scopes, .. } = &self.portal;
        let scopes = (!scopes.is_empty()).then(|| scopes.clone());
        let register = self.oidc.client.register_client().client_name(CLIENT_NAME).client_type("public");
        let registered = register.set_scopes(scopes).send().await.map_err(|error| {
            let error = classify(self.call("sso-oidc:RegisterClient"), error);
            self.refused(error)
        })?;
        let lacking = || AwsError::malformed("sso-oidc:RegisterClient", "client");
        let client = Client {
            id: registered.client_id.ok_or_else(lacking)?,
            secret: Secret::new(registered.client_secret.ok_or_else(lacking)?),
            expires: u64::try_from(registered.client_secret_expires_at)
                .ok()
                .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
                .ok_or_else(lacking)?,
        };
        let start = self.oidc.client.start_device_authorization().client_id(&client.id);
        let started = start.client_secret(client.secret.expose()).start_url(start_url).send().await;
        let started = started.map_err(|error| {
            let error = classify(self.call("sso-oidc:StartDeviceAuthorization"), error);
            self.refused(error)
        })?;
        let lacking = |wanted| AwsError::malformed("sso-oidc:StartDeviceAuthorization", wanted);
        let code = started.user_code.filter(|code| is_code(code)).ok_or_else(|| lacking("code that can be shown"))?;
        let page = started.verification_uri_complete.filter(|page| is_page(page));
        let page = page.or(started.verification_uri.filter(|page| is_page(page)));
        Ok(Approval {
            code,
            page: page.ok_or_else(|| lacking("page that can be opened"))?,
            lasts: seconds(started.expires_in).ok_or_else(|| lacking("duration"))?,
            interval: seconds(started.interval).unwrap_or(USUAL_INTERVAL),
            device: Secret::new(started.device_code.ok_or_else(|| lacking("device code"))?),
            client,
        })
    }

    /// Waits until a person has approved, and keeps the token. Returns when the sign-in ends; `None`: it is renewed without
    /// asking, until IAM Identity Center ends it.
    ///
    /// # Errors
    /// [`AwsError::Profile`] if it was denied, came too late, or cannot be kept.
    ///
    /// # Cancel safety
    /// Can be dropped at any time: nobody is signed in then.
    pub async fn finish(&self, approval: Approval) -> Result<Option<SystemTime>, AwsError> {
        let file = self.portal.file.as_deref().ok_or_else(|| self.signed_out(false, TokenFault::NoHome))?;
        let Approval { interval, device, client, lasts, .. } = approval;
        let granted = tokio::time::timeout(lasts, async {
            let mut interval = interval;
            loop {
                tokio::time::sleep(interval).await;
                let ask = self.oidc.client.create_token().grant_type(DEVICE_GRANT).client_id(&client.id);
                let asked = ask.client_secret(client.secret.expose()).device_code(device.expose()).send().await;
                match asked {
                    Ok(granted) => return Ok(granted),
                    Err(error) => interval += self.pause(error)?,
                }
            }
        });
        let granted = granted.await.map_err(|_| self.fault(ProfileFault::SignInLate))??;
        let token = self.token(granted, &client)?;
        let ends = token.validity().ends();
        self.keep(file, token).await?;
        Ok(ends)
    }

    /// Reads what is to be done about a token that was not given: how much more to wait.
    fn pause(&self, error: SdkError<CreateTokenError, HttpResponse>) -> Result<Duration, AwsError> {
        match error.as_service_error() {
            Some(CreateTokenError::AuthorizationPendingException(_)) => return Ok(Duration::ZERO),
            Some(CreateTokenError::SlowDownException(_)) => return Ok(SLOWER),
            Some(CreateTokenError::AccessDeniedException(_)) => return Err(self.fault(ProfileFault::SignInDenied)),
            Some(CreateTokenError::ExpiredTokenException(_)) => return Err(self.fault(ProfileFault::SignInLate)),
            _ => {}
        }
        let error = classify(self.call("sso-oidc:CreateToken"), error);
        if is_passing(&error) { Ok(SLOWER) } else { Err(self.refused(error)) }
    }

    /// Tells whether somebody has to sign in, after having renewed the token if it is time for that.
    pub async fn is_needed(&self) -> bool {
        self.renew().await.is_err_and(|error| error.wants_sign_in())
    }

    /// Renews the token if it is time for that.
    ///
    /// # Errors
    /// [`AwsError::Profile`] if somebody has to sign in, and what keeps a token that is over from being renewed.
    pub(super) async fn renew(&self) -> Result<Validity, AwsError> {
        let Some(file) = &self.portal.file else { return Err(self.signed_out(false, TokenFault::NoHome)) };
        let token = self.read(file).await?;
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        let left = token.expires.duration_since(now).unwrap_or_default();
        let over = |end| self.signed_out(true, TokenFault::Over { path: file.clone(), end });
        if left > EARLY {
            return Ok(token.validity());
        }
        let Some((id, secret, refresh)) = token.renewal(now) else {
            return if left.is_zero() { Err(over(token.expires)) } else { Ok(token.validity()) };
        };
        let ask =
            self.oidc.client.create_token().grant_type("refresh_token").client_id(id).client_secret(secret.expose());
        let asked = ask.refresh_token(refresh.expose()).send().await;
        let error = match asked {
            Ok(granted) => {
                let token = token.renewed(self.granted(granted)?);
                tracing::info!(profile = self.portal.profile, "renewed the sign-in to IAM Identity Center");
                let validity = token.validity();
                self.keep(file, token).await?;
                return Ok(validity);
            }
            Err(error) => classify(self.call("sso-oidc:CreateToken"), error),
        };
        tracing::info!(
            error = %sentence(&error),
            "cannot renew the sign-in to IAM Identity Center"
        );
        // Somebody else may have renewed it at the same time, or signed in again.
        let again = self.read(file).await?;
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        if again.expires > token.expires && again.expires > now {
            return Ok(again.validity());
        }
        match again.expires.duration_since(now) {
            Ok(left) if !left.is_zero() => {
                Ok(Validity { expires: again.expires, renewable: again.validity().renewable && is_passing(&error) })
            }
            _ if is_passing(&error) => Err(error),
            _ => Err(over(again.expires)),
        }
    }

    /// A digest of the file with the token, by which it is seen that somebody has written another.
    pub(super) fn digest(&self) -> Option<[u8; 32]> {
        token::digest(self.portal.file.as_deref()?)
    }

    async fn read(&self, file: &Path) -> Result<Token, AwsError> {
        let path = file.to_owned();
        let read = tokio::task::spawn_blocking(move || Token::read(&path)).await;
        match read.unwrap_or(Ok(None)) {
            Ok(Some(token)) => Ok(token),
            Ok(None) => Err(self.signed_out(false, TokenFault::Missing(file.to_owned()))),
            Err(what) => Err(self.signed_out(false, TokenFault::Unreadable { path: file.to_owned(), what })),
        }
    }

    async fn keep(&self, file: &Path, token: Token) -> Result<(), AwsError> {
        let path = file.to_owned();
        let kept = tokio::task::spawn_blocking(move || token.write(&path)).await;
        kept.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|source| {
            self.fault(ProfileFault::TokenNotKept { path: file.to_owned(), source: Arc::new(source) })
        })
    }

    fn token(&self, granted: CreateTokenOutput, client: &Client) -> Result<Token, AwsError> {
        let Granted { access, refresh, expires } = self.granted(granted)?;
        Ok(Token {
            access,
            expires,
            refresh,
            client: Some((client.id.clone(), client.secret.clone())),
            registration_expires: Some(client.expires),
            start_url: self.portal.start_url.clone(),
            region: self.portal.region.clone(),
            others: serde_json::Map::new(),
        })
    }

    fn granted(&self, granted: CreateTokenOutput) -> Result<Granted, AwsError> {
        let lacking = |wanted| AwsError::malformed("sso-oidc:CreateToken", wanted);
        let lasts = seconds(granted.expires_in).ok_or_else(|| lacking("duration"))?;
        Ok(Granted {
            access: Secret::new(granted.access_token.ok_or_else(|| lacking("token"))?),
            refresh: granted.refresh_token.map(Secret::new),
            expires: SystemTime::UNIX_EPOCH + clock::wall() + lasts,
        })
    }

    fn call(&self, action: &'static str) -> Call<'_> {
        Call { action, resource: &self.portal.start_url, region: &self.portal.region, host: &self.oidc.host }
    }

    fn fault(&self, fault: ProfileFault) -> AwsError {
        AwsError::Profile { name: self.asked.clone(), fault: Arc::new(fault) }
    }

    fn signed_out(&self, expired: bool, fault: TokenFault) -> AwsError {
        let source: Cause = Arc::new(fault);
        self.fault(ProfileFault::SignedOut { profile: self.portal.profile.clone(), expired, source })
    }

    /// Says what is refused where the answer does not.
    fn refused(&self, error: AwsError) -> AwsError {
        let (AwsError::Refused { source, .. } | AwsError::AccessDenied { source, .. }) = error else { return error };
        let Portal { start_url, region, .. } = &self.portal;
        self.fault(ProfileFault::SignInRefused { start_url: start_url.clone(), region: region.clone(), source })
    }
}

/// A token that was given.
struct Granted {
    access: Secret<String>,
    refresh: Option<Secret<String>>,
    expires: SystemTime,
}

/// Whether another attempt may go well.
fn is_passing(error: &AwsError) -> bool {
    matches!(error, AwsError::Unreachable { .. } | AwsError::Throttled { .. } | AwsError::Service { .. })
}

fn seconds(number: i32) -> Option<Duration> {
    u64::try_from(number).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// Whether it is nothing but a code: it goes to a terminal.
fn is_code(code: &str) -> bool {
    (1..=MAX_CODE_LEN).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether it is a page that a browser may be sent to, and a terminal may show: of the web, and not in the clear.
fn is_page(page: &str) -> bool {
    let Ok(uri) = page.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    let is_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let is_plain = &*PeerText::new(page) == page && page.is_ascii() && !page.contains(['"', '\'', '`', '\\']);
    let has_scheme = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => is_here,
        _ => false,
    };
    has_scheme && !host.is_empty() && is_plain
}

#[cfg(test)]
mod tests;

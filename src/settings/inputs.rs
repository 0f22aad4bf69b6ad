//! Every environment variable that is read, by this program or by a library below it, and every key of an AWS profile:
//! in one table, with what each takes. Variables that are this program's own have the rows of their settings instead.
//!
//! Invariants:
//!
//! * The SDK sees none of them by itself: it panics on values that it does not take, and shows them. It is given what
//!   has passed [`Takes::read`] here, and nothing else ([`SdkVariables`]).
//! * What is empty or blank is not set, and blanks around a value, such as the carriage return of a file with Windows
//!   line ends, do not belong to it.
//! * A value that may be a secret is in no error ([`shown`]).
//!
//! Leaves out what values mean to each other, and whether they work.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use http::Uri;

use super::{Environment, OWN_PROXY, Problem, rows, source::Origin, values::is_region};

/// Longest value that anything takes, in bytes: several times the longest session token, and less than an environment holds.
const MAX_LEN: usize = 32 << 10;

/// Most characters of a value that a sentence repeats.
const MAX_SHOWN: usize = 120;

/// What is said of a token where the path of its file belongs.
pub(crate) const TOKEN_ITSELF: &str = "is a token, not the path of a file with one";

/// A variable, a profile key, or one that has both.
#[derive(Debug)]
pub struct Input {
    /// In the environment.
    pub variable: Option<&'static str>,
    /// In a profile.
    pub key: Option<&'static str>,
    pub takes: Takes,
    /// The SDK is given it by its variable.
    to_sdk: bool,
}

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Anything on one line. What is set to be read by others too is judged where it is read.
    Text,
    /// A word without blanks.
    Word,
    Region,
    /// A secret without blanks.
    Secret,
    Path,
    /// The path of a file with a token: often the token itself is given.
    TokenFile,
    /// An `http` or `https` URL.
    Url,
    UrlPath,
    /// A whole number from 1 on.
    Number,
    /// `true` or `false`.
    Switch,
    /// How the AWS CLI repeats calls.
    RetryMode,
    /// `IPv4` or `IPv6`.
    AddressFamily,
}

/// What is wrong with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Not(&'static str),
    /// This is the matter, whatever the rest of it is.
    Is(&'static str),
}

const fn variable(variable: &'static str, takes: Takes) -> Input {
    Input { variable: Some(variable), key: None, takes, to_sdk: false }
}

const fn key(key: &'static str, takes: Takes) -> Input {
    Input { variable: None, key: Some(key), takes, to_sdk: false }
}

const fn both(variable: &'static str, key: &'static str, takes: Takes) -> Input {
    Input { variable: Some(variable), key: Some(key), takes, to_sdk: false }
}

#[cfg(test)]
impl Input {
    pub(crate) fn is_for_sdk(&self) -> bool {
        self.to_sdk
    }
}

const fn to_sdk(input: Input) -> Input {
    Input { to_sdk: true, ..input }
}

/// All but the variables that only a setting has, see [`variables`].
pub static INPUTS: [Input; 101] = [
    // Not a secret, and often a secret stands there by mistake.
    to_sdk(both("AWS_ACCESS_KEY_ID", "aws_access_key_id", Takes::Secret)),
    to_sdk(both("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key", Takes::Secret)),
    to_sdk(both("AWS_SESSION_TOKEN", "aws_session_token", Takes::Secret)),
    both("AWS_SECURITY_TOKEN", "aws_security_token", Takes::Secret),
    variable("AWS_CREDENTIAL_EXPIRATION", Takes::Text),
    variable("AWS_PROFILE", Takes::Text),
    variable("AWS_DEFAULT_PROFILE", Takes::Text),
    variable("AWS_CONFIG_FILE", Takes::Path),
    variable("AWS_SHARED_CREDENTIALS_FILE", Takes::Path),
    both("AWS_REGION", "region", Takes::Region),
    variable("AWS_DEFAULT_REGION", Takes::Region),
    to_sdk(both("AWS_ROLE_ARN", "role_arn", Takes::Word)),
    to_sdk(both("AWS_ROLE_SESSION_NAME", "role_session_name", Takes::Text)),
    to_sdk(both("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file", Takes::TokenFile)),
    key("source_profile", Takes::Text),
    key("credential_source", Takes::Word),
    key("external_id", Takes::Word),
    key("mfa_serial", Takes::Word),
    key("duration_seconds", Takes::Number),
    key("sso_session", Takes::Text),
    key("sso_start_url", Takes::Url),
    key("sso_region", Takes::Region),
    key("sso_registration_scopes", Takes::Text),
    key("sso_account_id", Takes::Word),
    key("sso_role_name", Takes::Word),
    key("credential_process", Takes::Text),
    key("login_session", Takes::Text),
    key("services", Takes::Text),
    both("AWS_CA_BUNDLE", "ca_bundle", Takes::Path),
    to_sdk(both("AWS_ENDPOINT_URL", "endpoint_url", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_STS", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_AUTO_SCALING", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_EC2", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_ECS", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_EKS", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_IAM", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_SSM", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_SSO", Takes::Url)),
    to_sdk(variable("AWS_ENDPOINT_URL_SSO_OIDC", Takes::Url)),
    variable("AWS_ENDPOINT_URL_SSMMESSAGES", Takes::Text),
    to_sdk(both("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls", Takes::Switch)),
    to_sdk(both("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint", Takes::Switch)),
    to_sdk(both("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint", Takes::Switch)),
    to_sdk(both("AWS_RETRY_MODE", "retry_mode", Takes::RetryMode)),
    to_sdk(both("AWS_MAX_ATTEMPTS", "max_attempts", Takes::Number)),
    to_sdk(variable("AWS_EC2_METADATA_DISABLED", Takes::Switch)),
    to_sdk(both("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ec2_metadata_service_endpoint", Takes::Url)),
    to_sdk(both("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ec2_metadata_service_endpoint_mode", Takes::AddressFamily)),
    to_sdk(variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", Takes::Url)),
    to_sdk(variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Takes::UrlPath)),
    to_sdk(variable("AWS_CONTAINER_AUTHORIZATION_TOKEN", Takes::Secret)),
    to_sdk(variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Takes::TokenFile)),
    // Read by the SDK itself for its user agent, and by nobody else.
    variable("AWS_EXECUTION_ENV", Takes::Text),
    variable("AWS_LAMBDA_FUNCTION_NAME", Takes::Text),
    variable("_X_AMZN_TRACE_ID", Takes::Text),
    variable("ACTIONS_ID_TOKEN_REQUEST_URL", Takes::Url),
    variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN", Takes::Secret),
    variable("SYSTEM_OIDCREQUESTURI", Takes::Url),
    variable("SYSTEM_ACCESSTOKEN", Takes::Secret),
    variable("GITLAB_OIDC_TOKEN", Takes::Secret),
    variable("BITBUCKET_STEP_OIDC_TOKEN", Takes::Secret),
    variable("CIRCLE_OIDC_TOKEN_V2", Takes::Secret),
    variable("CIRCLE_OIDC_TOKEN", Takes::Secret),
    variable("CIRCLECI", Takes::Text),
    variable("BUILDKITE_JOB_ID", Takes::Text),
    variable("HTTPS_PROXY", Takes::Text),
    variable("https_proxy", Takes::Text),
    variable("HTTP_PROXY", Takes::Text),
    variable("http_proxy", Takes::Text),
    variable("ALL_PROXY", Takes::Text),
    variable("all_proxy", Takes::Text),
    variable(OWN_PROXY, Takes::Text),
    variable("NO_PROXY", Takes::Text),
    variable("no_proxy", Takes::Text),
    variable("REQUEST_METHOD", Takes::Text),
    variable("SSL_CERT_FILE", Takes::Path),
    variable("SSL_CERT_DIR", Takes::Path),
    variable("HOME", Takes::Path),
    variable("TMPDIR", Takes::Path),
    variable("USER", Takes::Text),
    variable("LOGNAME", Takes::Text),
    variable("XDG_CONFIG_HOME", Takes::Path),
    variable("XDG_STATE_HOME", Takes::Path),
    variable("XDG_RUNTIME_DIR", Takes::Path),
    variable("GITHUB_ENV", Takes::Path),
    variable("KUBERNETES_EXEC_INFO", Takes::Text),
    variable("NOTIFY_SOCKET", Takes::Path),
    variable("PATH", Takes::Text),
    variable("SHELL", Takes::Path),
    variable("SSH_AUTH_SOCK", Takes::Path),
    variable("SSH_CONNECTION", Takes::Text),
    variable("DISPLAY", Takes::Text),
    variable("WAYLAND_DISPLAY", Takes::Text),
    variable("CI", Takes::Text),
    variable("TERM", Takes::Text),
    variable("NO_COLOR", Takes::Text),
    variable("COLUMNS", Takes::Text),
    variable("LINES", Takes::Text),
    variable("LANG", Takes::Text),
    variable("LC_ALL", Takes::Text),
];

pub fn variables() -> impl Iterator<Item = (&'static str, Takes)> {
    let inputs = || INPUTS.iter().filter_map(|input| Some((input.variable?, input.takes)));
    let of_rows = rows::all().into_iter().flat_map(|row| row.variables);
    let own = of_rows.filter(move |name| !inputs().any(|(other, _)| other == **name));
    inputs().chain(own.map(|name| (*name, Takes::Text)))
}

/// Finds the row of a profile key.
pub(crate) fn of_key(key: &str) -> Option<&'static Input> {
    INPUTS.iter().find(|input| input.key == Some(key))
}

impl Takes {
    /// Reads a value without blanks around it, which is not empty: what stands for it where the SDK reads it.
    pub(crate) fn read(self, text: &str) -> Result<Cow<'_, str>, Wrong> {
        use Wrong::{Is, Not};
        let same = || Ok(Cow::Borrowed(text));
        if text.len() > MAX_LEN {
            return Err(Is("is longer than 32768 bytes"));
        }
        if text.contains(char::is_control) {
            return Err(Is("has line breaks or other control characters"));
        }
        let is_quoted =
            ['"', '\''].iter().any(|quote| text.len() > 1 && text.starts_with(*quote) && text.ends_with(*quote));
        if is_quoted && self != Self::Text {
            return Err(Is("is in quotes: remove them"));
        }
        let has_blank = text.contains(char::is_whitespace);
        match self {
            Self::Text | Self::Path => same(),
            Self::Word if has_blank => Err(Not("a word without spaces")),
            Self::Secret if has_blank || !text.is_ascii() => Err(Is("has spaces, or characters that no key has")),
            Self::Word | Self::Secret => same(),
            Self::Region if is_region(text) => same(),
            Self::Region => Err(Not("a region, such as `us-east-1`")),
            Self::TokenFile if is_token(text) => Err(Is(TOKEN_ITSELF)),
            Self::TokenFile => same(),
            Self::Url if text.contains('@') => {
                Err(Is("has a user name or password in it, which AWS calls do not accept"))
            }
            Self::Url if is_url(text) => same(),
            Self::Url => Err(Not("a URL, such as `https://localhost:4566`")),
            Self::UrlPath if text.starts_with('/') && text.parse::<Uri>().is_ok() => same(),
            Self::UrlPath => Err(Not("the path of a URL, such as `/v2/credentials`")),
            Self::Number => match text.parse::<u32>() {
                Ok(number @ 1..) => Ok(number.to_string().into()),
                Ok(0) | Err(_) => Err(Not("a whole number of at least 1")),
            },
            Self::Switch => match () {
                () if text.eq_ignore_ascii_case("true") || text == "1" => Ok("true".into()),
                () if text.eq_ignore_ascii_case("false") || text == "0" => Ok("false".into()),
                () => Err(Not("`true` or `false`")),
            },
            // The oldest mode is one of Python alone.
            Self::RetryMode => match text.to_ascii_lowercase().as_str() {
                "legacy" | "standard" => Ok("standard".into()),
                "adaptive" => Ok("adaptive".into()),
                _ => Err(Not("`legacy`, `standard` or `adaptive`")),
            },
            Self::AddressFamily => match text.to_ascii_lowercase().as_str() {
                "ipv4" => Ok("IPv4".into()),
                "ipv6" => Ok("IPv6".into()),
                _ => Err(Not("`IPv4` or `IPv6`")),
            },
        }
    }
}

/// What the SDK finds in its environment: checked, and nothing but what it needs.
#[derive(Clone, Default)]
pub struct SdkVariables(BTreeMap<&'static str, String>);

impl fmt::Debug for SdkVariables {
    /// Shows the names only: some of the values are keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl SdkVariables {
    /// Checks what is set of [`INPUTS`], and takes what is for the SDK.
    pub(super) fn load(environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let is_for_sdk = |name| INPUTS.iter().any(|input| input.to_sdk && input.variable == Some(name));
        let mut taken = BTreeMap::new();
        for (name, takes) in variables() {
            let Some(text) = environment.get(name) else { continue };
            match takes.read(text) {
                Ok(value) if is_for_sdk(name) => drop(taken.insert(name, value.into_owned())),
                Ok(_) => {}
                // The rest is read by others as well, who take what they take.
                Err(_) if !is_aws(name) => {}
                // A setting, which says so where it counts.
                Err(_) if takes == Takes::Region => {}
                Err(wrong) => problems.push(Problem::wrong(&Origin::Variable(name), text, wrong)),
            }
        }
        Self(taken)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Adds a variable, unless it is there.
    pub(crate) fn add(&mut self, name: &'static str, value: &str) {
        self.0.entry(name).or_insert_with(|| value.to_owned());
    }

    /// Takes variables away.
    pub(crate) fn without(mut self, wanted: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|name, _| !wanted(name));
        self
    }

    /// Names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

fn is_url(text: &str) -> bool {
    let Ok(url) = text.parse::<Uri>() else { return false };
    let Some(authority) = url.authority() else { return false };
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or(":");
    let has_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    matches!(url.scheme_str(), Some("http" | "https")) && !authority.host().is_empty() && has_port
}

/// Tells whether a variable is about AWS or this program, so that a value that nobody takes is a mistake.
pub(super) fn is_aws(name: &str) -> bool {
    ["AWS_", "ACTIONS_ID_TOKEN_", "AUTOHEAL_PA_"].iter().any(|start| name.starts_with(start))
}

/// Tells whether a value is a token, such as a JSON Web Token, rather than where one is.
pub(crate) fn is_token(text: &str) -> bool {
    let parts: Vec<_> = text.trim_start_matches("Bearer ").split('.').collect();
    let base64url =
        |part: &&str| part.len() >= 8 && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b));
    parts.len() >= 3 && parts[0].starts_with("eyJ") && parts.iter().take(2).all(base64url)
}

/// Tells whether a value may be a secret, whatever it was given for: a token, an access key, or forty or more characters
/// without a word in them, as secret keys and session tokens are.
fn may_be_secret(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "+/".contains(c);
    let words = || text.split(|c| !is_word(c)).filter(|word| !word.is_empty());
    let is_key_id = |word: &str| {
        word.len() >= 16 && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) && word.starts_with('A')
    };
    let is_random = |word: &str| {
        word.len() >= 40
            && word.bytes().any(|b| b.is_ascii_digit())
            && word.bytes().any(|b| b.is_ascii_uppercase())
            && word.bytes().any(|b| b.is_ascii_lowercase())
    };
    let has_password = text.contains("://") && text.contains('@');
    // Paths have long words, too.
    let is_path = text.starts_with('/') && text.matches('/').count() > 2;
    is_token(text) || has_password || words().any(|word| is_key_id(word) || (is_random(word) && !is_path))
}

/// Makes a value fit a line, or says that it is kept back.
pub(crate) fn shown(value: &str) -> String {
    if may_be_secret(value) {
        return "(not shown, as it may be a secret)".to_owned();
    }
    let mut text: String = value.chars().take(MAX_SHOWN).collect();
    if text.len() < value.len() {
        text.push('…');
    }
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_there_once() {
        let mut names: Vec<_> = INPUTS.iter().flat_map(|input| [input.variable, input.key]).flatten().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn reads_what_the_aws_cli_takes_into_what_the_sdk_takes() {
        for (takes, text, value) in [
            (Takes::RetryMode, "legacy", "standard"),
            (Takes::RetryMode, "Adaptive", "adaptive"),
            (Takes::Number, "007", "7"),
            (Takes::Switch, "TRUE", "true"),
            (Takes::Switch, "0", "false"),
            (Takes::AddressFamily, "ipv6", "IPv6"),
            (Takes::Url, "http://127.0.0.1:4566/", "http://127.0.0.1:4566/"),
            (Takes::UrlPath, "/v2/credentials", "/v2/credentials"),
            (Takes::TokenFile, "/run/tokens/eyJ.a.b", "/run/tokens/eyJ.a.b"),
            (Takes::Path, "/Users/Ann Smith/ca bundle.pem", "/Users/Ann Smith/ca bundle.pem"),
        ] {
            assert_eq!(takes.read(text).as_deref(), Ok(value), "{takes:?} {text}");
        }
        for (takes, text) in [
            (Takes::RetryMode, "no"),
            (Takes::Number, "-1"),
            (Takes::Number, "0"),
            (Takes::Number, "4294967296"),
            (Takes::Switch, "yes"),
            (Takes::Url, "localhost:4566"),
            (Takes::Url, "https://"),
            (Takes::Url, "ftp://localhost"),
            (Takes::Url, "http://user:secret@localhost"),
            (Takes::Url, "http://a b"),
            (Takes::Url, "http://localhost:x"),
            (Takes::Url, "http://localhost:65536"),
            (Takes::Url, "http://ann:a/b@localhost"),
            (Takes::UrlPath, "v2"),
            (Takes::UrlPath, "/a b"),
            (Takes::Word, "a b"),
            (Takes::Region, "us east 1"),
            (Takes::Region, "US-EAST-1"),
            (Takes::Region, "useast1"),
            (Takes::Secret, "a b"),
            (Takes::Secret, "ä"),
            (Takes::Secret, "\"secret\""),
            (Takes::Path, "'/a'"),
            (Takes::Text, "a\nb"),
            (Takes::TokenFile, "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"),
        ] {
            assert!(takes.read(text).is_err(), "{takes:?} {text}");
        }
        assert!(Takes::Text.read(&"a".repeat(MAX_LEN + 1)).is_err());
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for secret in [
            "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
            "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY0",
            "https://ann:hunter2@proxy:8080",
            "key=ASIAIOSFODNN7EXAMPLE",
        ] {
            assert!(!shown(secret).contains(&secret[..6]), "{secret}");
        }
        for plain in [
            "us east",
            "i-0dc03fbcae2a87472",
            "arn:aws:iam::123456789012:user/x",
            "/home/ann/.aws/config",
            "99999",
            "ABC",
        ] {
            assert_eq!(shown(plain), plain);
        }
        assert_eq!(shown("a\r"), "a\\r");
        assert!(shown(&"x ".repeat(200)).ends_with('…'));
    }
}

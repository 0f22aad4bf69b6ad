//! Proxies, from the variables that all programs share: read once, for the SDK's calls and for WebSockets alike.
//!
//! Invariant: a value is used, or it is an error that names the variable. None is passed over in silence, since then the
//! calls would go where nobody wanted them; and none is shown, as most of them hold a password.

use super::{Environment, Problem};
use crate::secret::Secret;

/// The proxies, by what is called through them.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http` URLs, and `ws`.
    pub http: Option<Proxy>,
    /// For `https` URLs, and `wss`.
    pub https: Option<Proxy>,
    /// Hosts that are called without one, as `NO_PROXY` lists them.
    pub except: String,
}

#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its URL, with user name and password in it, of such characters as may stand in a URL.
    pub url: Secret<String>,
    /// The URL holds a user name.
    pub has_user: bool,
    pub variable: &'static str,
}

/// Variables for a kind of URL, the first of which wins.
const HTTPS: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const HTTP: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

const IS_SOCKS: &str = "it names a SOCKS proxy, and only HTTP proxies are supported: `http://HOST:PORT`";

impl Proxies {
    /// Reads the variables; adds what is wrong with them to `problems`.
    pub(super) fn load(environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let found = |variables: [&'static str; 4]| {
            let (variable, text) =
                variables.into_iter().find_map(|name| Some((name, bare(environment.get(name)?)?)))?;
            let proxy = parse(text).map(|(url, has_user)| Proxy { url: Secret::new(url), has_user, variable });
            Some(proxy.map_err(|reason| Problem::Proxy { variable, reason }))
        };
        let (https, mut http) = (found(HTTPS), found(HTTP));
        // A SOCKS proxy for all else beside one for `https`, which is all that AWS is called with, is what many have.
        let is_other = |variable: &&str, reason: &str| HTTPS[2..].contains(variable) || reason == IS_SOCKS;
        let is_for_the_rest = matches!(&http, Some(Err(Problem::Proxy { variable, reason })) if is_other(variable, reason))
            && matches!(https, Some(Ok(_)));
        if is_for_the_rest {
            http = None;
        }
        let mut usable = |proxy: Option<Result<Proxy, Problem>>| match proxy? {
            Ok(proxy) => Some(proxy),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let (https, http) = (usable(https), usable(http));
        let except = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| environment.get(name));
        Self { http, https, except: except.unwrap_or_default().to_owned() }
    }
}

/// Takes away what only came along: blanks, line ends, quotes around it all. `None` if nothing is left.
fn bare(text: &str) -> Option<&str> {
    let text = text.trim();
    let unquoted = ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    Some(unquoted.unwrap_or(text).trim()).filter(|text| !text.is_empty())
}

/// Reads `[SCHEME://][USER[:PASSWORD]@]HOST[:PORT][/…]` as people write it, with any character in user name and password,
/// and writes it as a URL. Tells whether there is a user name as well.
fn parse(text: &str) -> Result<(String, bool), &'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        scheme @ ("http" | "https") => scheme.to_owned(),
        scheme if scheme.starts_with("socks") => {
            return Err(IS_SOCKS);
        }
        _ => return Err("it does not begin with `http://` or `https://`"),
    };
    // Nothing but a password holds an `@`: the last one is before the host.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    let place = place.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (place, None),
    };
    let is_address =
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(|host| host.parse::<std::net::Ipv6Addr>());
    let is_host = match is_address {
        Some(address) => address.is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    };
    if !is_host {
        return Err("it has no host: write `http://HOST:PORT`, or `http://USER:PASSWORD@HOST:PORT`");
    }
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse().is_ok_and(|port: u16| port > 0);
    if port.is_some_and(|port| !is_port(port)) {
        return Err("what follows the host is not a port between 1 and 65535");
    }
    let mut url = format!("{scheme}://");
    if let Some(user) = user {
        let (name, password) = user.split_once(':').map_or((user, None), |(name, password)| (name, Some(password)));
        escape(name, &mut url);
        if let Some(password) = password {
            url.push(':');
            escape(password, &mut url);
        }
        url.push('@');
    }
    url.push_str(place);
    Ok((url, user.is_some()))
}

/// Writes a user name or a password so that it can stand in a URL; what is escaped already stays so.
fn escape(text: &str, url: &mut String) {
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let is_escape =
            || matches!(bytes.get(index + 1..index + 3), Some(digits) if digits.iter().all(u8::is_ascii_hexdigit));
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || (*byte == b'%' && is_escape()) {
            url.push(char::from(*byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Proxies, Vec<String>) {
        let mut problems = Vec::new();
        let environment = Environment::default().with(variables.iter().copied());
        let proxies = Proxies::load(&environment, &mut problems);
        (proxies, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn proxies_are_understood_as_people_write_them() {
        for (given, url) in [
            ("http://proxy:3128", "http://proxy:3128"),
            ("proxy.example.com:3128", "http://proxy.example.com:3128"),
            ("proxy", "http://proxy"),
            ("HTTPS://proxy:443/", "https://proxy:443"),
            ("http://ann:pw@10.0.0.1:8080/path", "http://ann:pw@10.0.0.1:8080"),
            (r"http://corp\ann:pw@proxy:1", "http://corp%5Cann:pw@proxy:1"),
            ("http://ann:p#w/x?y@z@proxy:1", "http://ann:p%23w%2Fx%3Fy%40z@proxy:1"),
            ("http://ann:p%40w%@proxy:1", "http://ann:p%40w%25@proxy:1"),
            ("http://ann:pä ß@proxy:1", "http://ann:p%C3%A4%20%C3%9F@proxy:1"),
            ("http://ann@proxy:1", "http://ann@proxy:1"),
            ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
            (" http://proxy:1 \r\n", "http://proxy:1"),
            ("\"http://proxy:1\"", "http://proxy:1"),
            ("'http://proxy:1' ", "http://proxy:1"),
        ] {
            let (proxies, problems) = read(&[("HTTPS_PROXY", given)]);
            assert_eq!(problems, Vec::<String>::new(), "{given}");
            let proxy = proxies.https.unwrap();
            assert_eq!(proxy.url.expose(), url, "{given}");
            assert!(url.parse::<http::Uri>().is_ok(), "{url}");
            assert_eq!(proxy.has_user, url.contains('@'));
            assert!(proxies.http.is_none());
        }
    }

    #[test]
    fn proxies_that_cannot_be_used_are_named_and_no_password_is_shown() {
        for (given, reason) in [
            ("socks5://ann:hunter2@proxy:1080", "SOCKS"),
            ("ftp://ann:hunter2@proxy", "does not begin with"),
            ("http://ann:hunter2@", "no host"),
            ("http://ann:hunter2@pro xy:1", "no host"),
            ("http://ann:hunter2@[::1", "no host"),
            ("http://ann:hunter2@proxy:99999", "not a port"),
            ("http://ann:hunter2@proxy:", "not a port"),
            ("http://", "no host"),
        ] {
            let (proxies, problems) = read(&[("https_proxy", given)]);
            assert!(proxies.https.is_none(), "{given}");
            let [problem] = &problems[..] else { panic!("{given}: {problems:?}") };
            assert!(problem.starts_with("`https_proxy` cannot be used: ") && problem.contains(reason), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        let (proxies, _) = read(&[("HTTPS_PROXY", "http://ann:hunter2@proxy")]);
        assert!(!format!("{proxies:?}").contains("hunter2"));
    }

    #[test]
    fn each_kind_has_its_variables_and_blank_ones_are_not_set() {
        let (proxies, _) = read(&[("ALL_PROXY", "http://all"), ("https_proxy", "http://one"), ("HTTPS_PROXY", " ")]);
        let url = |proxy: Option<Proxy>| proxy.map(|proxy| (proxy.variable, proxy.url.expose().clone()));
        assert_eq!(url(proxies.https), Some(("https_proxy", "http://one".to_owned())));
        assert_eq!(url(proxies.http), Some(("ALL_PROXY", "http://all".to_owned())));
        for other in ["all_proxy", "HTTP_PROXY", "http_proxy"] {
            let (proxies, problems) = read(&[(other, "socks5://x"), ("https_proxy", "http://one")]);
            assert!(proxies.https.is_some() && proxies.http.is_none() && problems.is_empty(), "{other}");
        }
        assert_eq!(read(&[("HTTP_PROXY", "http://a b"), ("https_proxy", "http://one")]).1.len(), 1);
        let (proxies, problems) = read(&[("HTTPS_PROXY", "\"\""), ("no_proxy", "a,b")]);
        assert!(proxies.https.is_none() && problems.is_empty());
        assert_eq!(proxies.except, "a,b");
    }
}

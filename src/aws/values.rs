//! What values of AWS's look like.
//!
//! They are checked when an answer is read: from there they go into commands that are printed, into kubeconfigs, into names of
//! hosts that are dialled, and onto terminals. The sets of characters are wider than those of today's values, and hold
//! nothing that means anything to a shell or a terminal.

/// Longest value, in bytes; ARNs have up to 2048.
const MAX_LEN: usize = 2048;

/// Longest id of a session, in bytes.
const MAX_SESSION_ID_LEN: usize = 96;

/// Longest certificate authority, in bytes.
const MAX_BASE64_LEN: usize = 256 << 10;

/// Says whether a text can be an ARN, an id, a version or a word.
pub(crate) fn is_plain(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:+=,@".contains(&byte);
    (1..=MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['-', '=', '@', '+'])
}

/// Says whether a text can be the id of a session, which starts with the name of the role's session, and so with anything
/// that such a name may have.
pub(crate) fn is_session_id(text: &str) -> bool {
    text.len() <= MAX_SESSION_ID_LEN && is_plain(&format!("s{text}")) && !text.is_empty()
}

/// Says whether a text can be the id of a request for access to a node: `oi-` and twelve hexadecimal digits today.
pub(crate) fn is_access_request_id(text: &str) -> bool {
    text.starts_with("oi-") && text.len() <= MAX_SESSION_ID_LEN && is_plain(text)
}

/// Says whether a text can be the ARN of an identity: paths of IAM may have every printable character of ASCII. Nobody else's
/// ARNs may.
pub(super) fn is_caller_arn(text: &str) -> bool {
    text.len() <= MAX_LEN && text.starts_with("arn:") && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Says whether a text can be the name or the address of a host, without brackets.
pub(crate) fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    (text.len() <= 253 && name.split('.').all(is_label)) || text.parse::<std::net::Ipv6Addr>().is_ok()
}

/// Says whether a text can be base64.
pub(crate) fn is_base64(text: &str) -> bool {
    text.len() <= MAX_BASE64_LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=\r\n".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_a_shell_or_a_terminal_is_no_value() {
        for good in [
            "arn:aws:sts::123456789012:assumed-role/AWSReservedSSO_View_0123/ann+ci=x,y@example.com",
            "arn:aws-us-gov:eks:us-gov-west-1:123456789012:cluster/c_1",
            "AROAEXAMPLE:ann@example.com",
            "ann.b-0123456789abcdef0",
            "1.33",
            "3.3.1142.0",
            "API_AND_CONFIG_MAP",
        ] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a'b",
            "$(id)",
            "a;b",
            "a`b",
            "a\u{1b}[2J",
            "a\nb",
            "ä",
            "-x",
            "@x",
            "a\"b",
            "a|b",
            "a&b",
            "~x",
            "a*",
        ] {
            assert!(!is_plain(bad), "{bad:?}");
        }
        assert!(!is_plain(&"a".repeat(MAX_LEN + 1)));
        for good in ["@ann-0123", "-x-0123", "=x", "+x", "ann@corp.example-0f1e"] {
            assert!(is_session_id(good), "{good}");
        }
        for bad in ["", "a b", "a;b", "$(id)", "a\nb", &"a".repeat(97)] {
            assert!(!is_session_id(bad), "{bad}");
        }
        for good in ["arn:aws:iam::123456789012:user/it's/$x/`y`/ann+1=2", "arn:aws:iam::123456789012:user/;/a"] {
            assert!(is_caller_arn(good), "{good}");
        }
        for bad in ["", "arn:aws:iam::1:user/a b", "arn:aws:iam::1:user/\u{1b}[2J", "arn:aws:iam::1:user/\u{fc}", "x"] {
            assert!(!is_caller_arn(bad), "{bad}");
        }
        for good in ["ABC.gr7.us-east-1.eks.amazonaws.com", "a_b.example.", "10.0.0.1", "2001:db8::1"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", ".", "a..b", "x';touch$IFS$9P;'$(id).eks.amazonaws.com", "-a.b", "a b", "[::1", "a:b"] {
            assert!(!is_host(bad), "{bad}");
        }
        assert!(is_base64("Q0E=") && !is_base64("Q0E=\u{1b}") && !is_base64("a b"));
    }
}

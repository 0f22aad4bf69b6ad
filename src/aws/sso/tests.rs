use super::*;

#[test]
fn a_browser_and_a_terminal_get_nothing_but_a_page_of_the_web() {
    for page in [
        "https://device.sso.us-east-1.amazonaws.com/?user_code=ABCD-EFGH",
        "https://corp.awsapps.com/start/#/device?user_code=ABCD-EFGH",
        "http://127.0.0.1:4566/device",
        "http://localhost/device",
    ] {
        assert!(is_page(page), "{page}");
    }
    for page in [
        "",
        "device.sso.us-east-1.amazonaws.com",
        "http://device.sso.us-east-1.amazonaws.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "--help",
        "https://",
        "https://x/\u{1b}[2J",
        "https://x/a b",
        "https://x/`id`",
        "https://x/\u{202e}",
    ] {
        assert!(!is_page(page), "{page:?}");
    }
}

#[test]
fn a_code_is_letters_and_digits() {
    assert!(is_code("ABCD-EFGH") && is_code("12345678"));
    for code in ["", "ABCD EFGH", "\u{1b}[31m", "ABCD\n", &"A".repeat(33)] {
        assert!(!is_code(code), "{code:?}");
    }
}

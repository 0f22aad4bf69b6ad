//! Tables of what lines mean, beside what OpenSSH's own program makes of them.

use std::{fmt::Write, process::Command};

use proptest::prelude::*;

use super::*;

const FILE: &str = "known_hosts";

/// A key that does not exist, as far as anybody looks.
fn key(number: u8) -> HostKey {
    of_kind("ssh-ed25519", number)
}

fn of_kind(kind: &str, number: u8) -> HostKey {
    let mut blob = u32::try_from(kind.len()).unwrap().to_be_bytes().to_vec();
    blob.extend(kind.as_bytes());
    blob.extend([0, 0, 0, 32]);
    blob.extend([number; 32]);
    HostKey { kind: kind.to_owned(), blob }
}

fn shown(number: u8) -> Shown {
    Shown { key: key(number), certificate: None }
}

fn known(text: &str, host: &str, port: u16) -> Known {
    let name = name_of(host, port);
    let file = KnownHosts { path: FILE.to_owned(), text: text.to_owned(), name };
    Known { pin: None, files: vec![file], host: host.to_owned() }
}

fn line(hosts: &str, number: u8) -> String {
    key(number).line(hosts)
}

fn changed(line: u32, numbers: &[u8]) -> Verdict {
    let known = numbers.iter().map(|number| (key(*number).fingerprint(), "ssh-ed25519".to_owned())).collect();
    Verdict::Changed { place: format!("line {line} of `{FILE}`"), known }
}

fn revoked(line: u32) -> Verdict {
    Verdict::Revoked { place: format!("line {line} of `{FILE}`") }
}

#[test]
fn what_is_known_decides() {
    let text = [
        "# a comment\n\n",
        &line("bastion.example.com,10.0.0.5", 1),
        &line("[bastion.example.com]:2222", 2),
        &line("*.example.org,!bad.example.org", 3),
        &line("host?.example.net", 4),
        &format!("@revoked {}", line("*", 9)),
        &format!("@cert-authority {}", line("*.ca.example", 8)),
        &format!("@unknown {}", line("odd.example", 7)),
        &line("two.example", 5),
        &line("two.example", 6),
        "broken.example ssh-ed25519 AAAA\nbroken.example ssh-ed25519\nbroken.example\n",
        &format!("\t {}", line("Space.Example", 1).replace(' ', " \t ")),
    ]
    .concat();
    for (host, port, number, expected) in [
        ("bastion.example.com", 22, 1, Verdict::Known),
        ("BASTION.example.com", 22, 1, Verdict::Known),
        ("10.0.0.5", 22, 1, Verdict::Known),
        ("bastion.example.com", 22, 2, changed(3, &[1])),
        ("bastion.example.com", 2222, 2, Verdict::Known),
        ("bastion.example.com", 2222, 1, changed(4, &[2])),
        ("bastion.example.com", 2223, 1, Verdict::New),
        ("a.example.org", 22, 3, Verdict::Known),
        ("a.b.example.org", 22, 1, changed(5, &[3])),
        ("bad.example.org", 22, 3, Verdict::New),
        ("host1.example.net", 22, 4, Verdict::Known),
        ("host12.example.net", 22, 4, Verdict::New),
        ("bastion.example.com", 22, 9, revoked(7)),
        ("nobody.example", 22, 9, revoked(7)),
        ("x.ca.example", 22, 8, Verdict::New),
        ("odd.example", 22, 7, Verdict::New),
        ("two.example", 22, 6, Verdict::Known),
        ("two.example", 22, 1, changed(10, &[5, 6])),
        ("broken.example", 22, 1, Verdict::New),
        ("space.example", 22, 1, Verdict::Known),
    ] {
        assert_eq!(known(&text, host, port).verdict(&shown(number)), expected, "{host} {port} {number}");
    }
}

#[test]
fn a_pin_decides_alone_but_for_what_is_revoked() {
    let text = format!("{}@revoked {}", line("h", 1), line("*", 9));
    let pinned = |number| Known { pin: Some(key(number).fingerprint()), ..known(&text, "h", 22) };
    assert_eq!(pinned(2).verdict(&shown(2)), Verdict::Known);
    let Verdict::Changed { place, known } = pinned(2).verdict(&shown(1)) else { panic!("taken") };
    assert_eq!((place.as_str(), known[0].0.as_str()), ("the pin", key(2).fingerprint().as_str()));
    assert_eq!(pinned(9).verdict(&shown(9)), revoked(2));
}

#[test]
fn certificates_of_known_authorities_are_good_for_their_hosts() {
    let text = format!("@cert-authority {}@revoked {}", line("*.example.com", 8), line("*", 7));
    let certified = |authority, hosts: &[&str], is_valid| {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Shown { key: key(1), certificate: Some(HostCertificate { authority: key(authority), hosts, is_valid }) }
    };
    let verdict = |shown: &Shown| known(&text, "a.example.com", 22).verdict(shown);
    assert!(known(&text, "a.example.com", 22).has_authority() && !known(&text, "a.example.org", 22).has_authority());
    assert_eq!(verdict(&certified(8, &[], true)), Verdict::Known);
    assert_eq!(verdict(&certified(8, &["b.example.com", "A.example.com"], true)), Verdict::Known);
    assert_eq!(verdict(&certified(8, &["*.example.com"], true)), Verdict::Known);
    assert_eq!(verdict(&certified(8, &["b.example.com"], true)), Verdict::New);
    assert_eq!(verdict(&certified(8, &[], false)), Verdict::New);
    assert_eq!(verdict(&certified(6, &[], true)), Verdict::New);
    assert_eq!(verdict(&certified(7, &[], true)), revoked(2));
    assert_eq!(known(&text, "a.example.org", 22).verdict(&certified(8, &[], true)), Verdict::New);
}

#[test]
fn asks_for_the_kind_that_is_known() {
    let text = of_kind("ecdsa-sha2-nistp384", 1).line("h") + &of_kind("ssh-rsa", 1).line("h");
    let kinds = known(&text, "h", 22).kinds();
    assert_eq!(kinds, ["ecdsa-sha2-nistp384", "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521"]);
    assert_eq!(known("", "h", 22).kinds(), KEY_KINDS);
}

#[test]
fn remembers_one_key_of_each() {
    let text = remember("", "i-0abc", &key(1));
    assert_eq!(text, line("i-0abc", 1));
    let text = remember(&(text + "# kept\n@revoked i-0abc x y\n"), "i-0def", &key(2));
    let text = remember(&text, "i-0abc", &key(3));
    assert_eq!(text, ["# kept\n@revoked i-0abc x y\n", &line("i-0def", 2), &line("i-0abc", 3)].concat());
    assert_eq!(known(&text, "i-0abc", 22).verdict(&shown(3)), Verdict::Known);
}

#[test]
fn reads_what_cloud_init_writes() {
    let key_line = |number| {
        let line = line("", number);
        format!("<14>Nov 28 10:00:00 ec2:{} root@ip-10-0-0-5\r\n", line.trim_end())
    };
    let rsa = format!("<14>Nov 28 10:00:00 ec2: {} root@x\n", of_kind("ssh-rsa", 1).line("").trim());
    let boot = |number| {
        let begin = "[   12.3] cloud-init[1]: ci-info: no authorized keys\n<14>Nov 28 10:00:00 ec2: -----BEGIN SSH HOST KEY KEYS-----\n";
        [begin, &rsa, &key_line(number), "<14>Nov 28 10:00:00 ec2: -----END SSH HOST KEY KEYS-----\nlogin: \n"].concat()
    };
    assert_eq!(of_console(&boot(1)), [key(1)]);
    assert_eq!(of_console(&(boot(1) + &boot(2))), [key(2)]);
    assert_eq!(of_console(&key_line(1)), []);
    let whole = boot(1);
    let cut = whole.split("-----END").next().unwrap();
    assert_eq!(of_console(cut), []);
    assert_eq!(of_console(""), []);
}

/// What `ssh-keygen -F` finds: the kinds and keys of all lines about a host.
fn found_by_openssh(file: &std::path::Path, name: &str) -> Vec<String> {
    let output = Command::new("ssh-keygen").args(["-F", name, "-f"]).arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let keys = text.lines().filter(|line| !line.starts_with('#'));
    let key = |line: &str| line.split(' ').rev().take(1).next().unwrap().to_owned();
    let mut keys: Vec<String> = keys.map(key).collect();
    keys.sort();
    keys
}

fn found_here(text: &str, name: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| Entry::read(line, name));
    let mut keys: Vec<String> = lines.map(|entry| STANDARD.encode(entry.key.blob)).collect();
    keys.sort();
    keys
}

/// It reads keys that are keys only, which these are as far as their length.
#[test]
fn finds_what_openssh_finds() {
    if Command::new("ssh-keygen").arg("-?").output().is_err() {
        return;
    }
    let names = [
        "a.example.com",
        "10.0.0.5",
        "[a.example.com]:2222",
        "b.example.com",
        "i-0abc",
        "[2001:db8::1]:22",
        "2001:db8::1",
    ];
    let mut text = String::new();
    for (number, hosts) in (1..).zip([
        "a.example.com",
        "*.example.com",
        "*.example.com,!b.example.com",
        "!a.example.com,*",
        "[a.example.com]:2222,10.0.0.5",
        "[*.example.com]:2222",
        "10.0.0.?",
        "10.0.*.5",
        "A.EXAMPLE.com",
        "a.example.com:2222",
        "2001:db8::1",
        "i-0abc,",
        "*a*m",
    ]) {
        text.push_str(&line(hosts, number));
        writeln!(text, "@cert-authority {}", line(hosts, number + 50).trim_end()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("known");
    std::fs::write(&file, &text).unwrap();
    let mut found = 0;
    for name in names {
        let theirs = found_by_openssh(&file, name);
        assert_eq!(found_here(&text, name), theirs, "{name}");
        found += theirs.len();
    }
    assert!(found > 20, "{found}");
    // The same in hashes, of which wildcards are none.
    let plain: String = (1..).zip(names).map(|(number, name)| line(name, number)).collect();
    std::fs::write(&file, &plain).unwrap();
    let hashed = Command::new("ssh-keygen").args(["-H", "-f"]).arg(&file).output().unwrap();
    assert!(hashed.status.success(), "{hashed:?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("|1|"), "{text}");
    for name in names {
        let theirs = found_by_openssh(&file, name);
        assert_eq!((found_here(&text, name).len(), found_here(&text, name)), (1, theirs), "{name}");
    }
}

proptest! {
    #[test]
    fn no_line_is_too_odd(line in "\\PC{0,80}", name in "[a-z.*?]{0,10}") {
        let _read = Entry::read(&line, &name);
        let _console = of_console(&line);
        prop_assert!(matches("*", &name) && (name.contains(['*', '?']) || matches(&name, &name)));
    }
}

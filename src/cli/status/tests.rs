//! A status for people and for programs.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::manager::control::{AccessStatus, ProxyStatus};

fn tunnel(cluster: &str, port: u16, state: &str) -> TunnelReport {
    TunnelReport {
        context: format!("pa-{cluster}"),
        cluster: cluster.to_owned(),
        endpoint: format!("{cluster}.example:443"),
        forward: None,
        imported: false,
        region: "us-east-1".to_owned(),
        account: "123456789012".to_owned(),
        port,
        state: state.to_owned(),
        since: stamp("2026-11-22T03:00:00Z"),
        session_id: Some("ann-0123456789abcdef0".to_owned()),
        bastion: Some("i-0dc03fbcae2a87472".to_owned()),
        target: Some("i-0dc03fbcae2a87472".to_owned()),
        progress: None,
        agent_version: Some("3.3.1142.0".to_owned()),
        open_connections: 3,
        connections_total: 1234,
        bytes_sent: 999,
        bytes_received: 12_345_678,
        resumes: 2,
        restarts: 1,
        probe_rtt_ms: Some(28),
        probed_at: Some(stamp("2026-11-22T03:04:00Z")),
        last_error: None,
        last_error_at: None,
        hint: None,
        sessions: vec![session("ann-0123456789abcdef0", 2)],
    }
}

fn session(id: &str, open: usize) -> SessionReport {
    SessionReport {
        session_id: Some(id.to_owned()),
        bastion: Some("i-0dc03fbcae2a87472".to_owned()),
        target: "i-0dc03fbcae2a87472".to_owned(),
        agent_version: Some("3.3.1142.0".to_owned()),
        state: "active".to_owned(),
        since: stamp("2026-11-22T03:00:00Z"),
        open_connections: open,
        bytes_sent: 900,
        bytes_received: 12_000_000,
        probe_rtt_ms: Some(28),
        messages_behind: 0,
        held_back: false,
    }
}

pub(in crate::cli) fn status() -> ManagerStatus {
    let mut active = tunnel("payments", 10100, "active");
    active.last_error = Some("the WebSocket was closed with code 1000: `Bye`".to_owned());
    active.last_error_at = Some(stamp("2026-11-22T02:04:05Z"));
    let mut starting = session("", 0);
    (starting.session_id, starting.agent_version, starting.probe_rtt_ms) = (None, None, None);
    (starting.bytes_sent, starting.bytes_received) = (0, 0);
    (starting.state, starting.since) = ("starting".to_owned(), stamp("2026-11-22T03:04:04Z"));
    active.sessions[0].messages_behind = 1234;
    active.sessions.extend([session("ann-0fedcba9876543210", 1), starting]);
    active.sessions[1].held_back = true;
    let mut failed = tunnel("search", 10101, "failed");
    failed.sessions.clear();
    failed.session_id = None;
    failed.agent_version = None;
    failed.probe_rtt_ms = None;
    failed.probed_at = None;
    failed.last_error = Some("target `i-0dc03fbcae2a87472` is not connected to Systems Manager".to_owned());
    failed.last_error_at = Some(stamp("2026-11-22T03:00:00Z"));
    failed.hint = Some("`i-0dc03fbcae2a87472` has to run".to_owned());
    ManagerStatus {
        version: 1,
        program: Some(version::short()),
        name: "default".to_owned(),
        state: "degraded".to_owned(),
        pid: 4711,
        since: stamp("2026-11-22T03:00:00Z"),
        started_at: stamp("2026-11-22T02:00:00Z"),
        identity: Some("arn:aws:sts::123456789012:assumed-role/ReadOnly/ann".to_owned()),
        credentials_expire: Some(stamp("2026-11-22T03:30:00Z")),
        opened: true,
        kubeconfig: Some("/home/ann/.kube/autoheal-pa.yaml".to_owned()),
        imported_from: Vec::new(),
        proxy: Some(ProxyStatus {
            address: "127.0.0.1:10099".to_owned(),
            others: "refuse".to_owned(),
            open_connections: 2,
            connections_total: 17,
            refused_total: 1,
        }),
        metrics: Some("http://127.0.0.1:9464/metrics".to_owned()),
        audit: Some("/var/log/autoheal-pa/audit.jsonl".into()),
        log: Some("/home/ann/.local/state/autoheal-pa/default.log".to_owned()),
        access: vec![AccessStatus {
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            identity: "arn:aws:sts::123456789012:assumed-role/ReadOnly/ann".to_owned(),
            source: "role `ReadOnly`".to_owned(),
            passed_over: vec!["keys in the environment: a profile was named".to_owned()],
            clock: Some("2 h 1 min ahead of AWS's".to_owned()),
            credentials_expire: Some(stamp("2026-11-22T03:30:00Z")),
            credentials_error: None,
            credentials_hint: None,
            sign_in_ends: None,
            sign_in_profile: None,
            bastions: vec!["i-0dc03fbcae2a87472".to_owned()],
            approvals: vec![ApprovalStatus {
                target: "i-0dc03fbcae2a87472".to_owned(),
                request: Some("oi-0123456789ab".to_owned()),
                state: "approved".to_owned(),
                until: Some(stamp("2026-11-22T04:00:00Z")),
            }],
        }],
        tunnels: vec![active, failed],
    }
}

fn stamp(text: &str) -> Timestamp {
    serde_json::from_value(text.into()).unwrap()
}

fn at(text: &str) -> SystemTime {
    stamp(text).time()
}

#[test]
fn is_a_table_for_people() {
    insta::assert_snapshot!(text(&status(), at("2026-11-22T03:04:05Z"), Paint::plain()));
}

#[test]
fn is_coloured_by_state() {
    let text = text(&status(), at("2026-11-22T03:04:05Z"), Paint::coloured());
    assert!(text.contains("\x1b[32mactive  \x1b[0m  4 min"), "{text}");
    assert!(text.contains("\x1b[31mfailed  \x1b[0m  4 min"), "{text}");
    assert!(text.contains("\x1b[33mdegraded\x1b[0m since"), "{text}");
}

#[test]
fn the_end_of_a_sign_in_is_told_and_what_mends_it() {
    let mut status = status();
    status.access[0].sign_in_ends = Some(stamp("2026-11-22T09:00:00Z"));
    status.access[0].sign_in_profile = Some("dev".to_owned());
    let line = |now: &str| {
        let text = text(&status, at(now), Paint::plain());
        text.lines().find(|line| line.starts_with("sign-in")).unwrap().to_owned()
    };
    assert_eq!(line("2026-11-22T03:00:00Z"), "sign-in     until 2026-11-22T09:00:00Z, profile `dev`");
    assert_eq!(
        line("2026-11-22T08:50:00Z"),
        "sign-in     ends in 10 min: sign in again with `autoheal-pa login --profile dev`"
    );
    assert_eq!(
        line("2026-11-22T09:50:00Z"),
        "sign-in     has ended: sign in again with `autoheal-pa login --profile dev`"
    );
}

#[test]
fn credentials_that_cannot_be_renewed_are_told() {
    let mut status = status();
    status.access[0].credentials_error = Some("got no newer AWS credentials from x".to_owned());
    let line = |now| text(&status, at(now), Paint::plain()).lines().nth(1).unwrap().to_owned();
    assert!(
        line("2026-11-22T03:04:00Z")
            .ends_with("credentials expire in 26 min: cannot be renewed: got no newer AWS credentials from x")
    );
    assert!(line("2026-11-22T03:31:00Z").contains("credentials have expired at 2026-11-22T03:30:00Z"));
}

#[test]
fn a_manager_of_another_version_is_told() {
    let note = |program: Option<&str>| other_version(program, "0.2.0 (534c2ea1f00d)");
    assert_eq!(note(Some("0.2.0 (534c2ea1f00d)")), None);
    assert_eq!(
        note(Some("0.1.0")).unwrap(),
        "the manager is version 0.1.0, this program 0.2.0 (534c2ea1f00d): `autoheal-pa down`, then start it again to have \
         this one"
    );
    assert!(note(None).unwrap().starts_with("the manager is an older version, this program"));

    let mut status = status();
    let has_line = |status: &ManagerStatus| {
        let text = text(status, at("2026-11-22T03:04:05Z"), Paint::plain());
        text.lines().any(|line| line.starts_with("version "))
    };
    assert!(!has_line(&status));
    status.program = None;
    assert!(has_line(&status));
}

#[test]
fn only_all_tunnels_are_ready() {
    let mut status = status();
    let error = ready(&status).unwrap_err();
    assert_eq!(error.kind, Kind::Tunnel);
    assert_eq!(error.sentence(), "the manager is degraded: 1 of 2 tunnels do not work");
    status.state = "active".to_owned();
    assert!(ready(&status).is_ok());
}

#[test]
fn numbers_of_bytes() {
    for (count, text) in
        [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (u64::MAX, "18446744.0 TB")]
    {
        assert_eq!(bytes(count), text);
    }
}

/// What `status --json` promises: every field and what it may be. A field that is added is added here.
const MANAGER: &[(&str, &str)] = &[
    ("version", "number"),
    ("program", "string or null"),
    ("name", "string"),
    ("state", "string"),
    ("pid", "number"),
    ("since", "string"),
    ("started_at", "string"),
    ("identity", "string or null"),
    ("credentials_expire", "string or null"),
    ("opened", "boolean"),
    ("kubeconfig", "string or null"),
    ("imported_from", "array"),
    ("proxy", "object or null"),
    ("metrics", "string or null"),
    ("audit", "string or null"),
    ("log", "string or null"),
    ("access", "array"),
    ("tunnels", "array"),
];
const PROXY: &[(&str, &str)] = &[
    ("address", "string"),
    ("others", "string"),
    ("open_connections", "number"),
    ("connections_total", "number"),
    ("refused_total", "number"),
];
const ACCESS: &[(&str, &str)] = &[
    ("region", "string"),
    ("approvals", "array"),
    ("account", "string"),
    ("identity", "string"),
    ("source", "string"),
    ("passed_over", "array"),
    ("clock", "string or null"),
    ("credentials_expire", "string or null"),
    ("credentials_error", "string or null"),
    ("credentials_hint", "string or null"),
    ("sign_in_ends", "string or null"),
    ("sign_in_profile", "string or null"),
    ("bastions", "array"),
];
const TUNNEL: &[(&str, &str)] = &[
    ("context", "string"),
    ("endpoint", "string"),
    ("forward", "string or null"),
    ("cluster", "string"),
    ("imported", "boolean"),
    ("region", "string"),
    ("account", "string"),
    ("port", "number"),
    ("state", "string"),
    ("since", "string"),
    ("session_id", "string or null"),
    ("bastion", "string or null"),
    ("target", "string or null"),
    ("progress", "string or null"),
    ("agent_version", "string or null"),
    ("open_connections", "number"),
    ("connections_total", "number"),
    ("bytes_sent", "number"),
    ("bytes_received", "number"),
    ("resumes", "number"),
    ("restarts", "number"),
    ("probe_rtt_ms", "number or null"),
    ("probed_at", "string or null"),
    ("last_error", "string or null"),
    ("last_error_at", "string or null"),
    ("hint", "string or null"),
    ("sessions", "array"),
];
const SESSION: &[(&str, &str)] = &[
    ("session_id", "string or null"),
    ("bastion", "string or null"),
    ("target", "string"),
    ("agent_version", "string or null"),
    ("state", "string"),
    ("since", "string"),
    ("open_connections", "number"),
    ("bytes_sent", "number"),
    ("bytes_received", "number"),
    ("probe_rtt_ms", "number or null"),
    ("messages_behind", "number"),
    ("held_back", "boolean"),
];

#[track_caller]
fn assert_schema(value: &Value, schema: &[(&str, &str)]) {
    let object = value.as_object().unwrap();
    let keys: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(keys, schema.iter().map(|(key, _)| *key).collect());
    for (key, kinds) in schema {
        let kind = match &object[*key] {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        assert!(kinds.split(" or ").any(|allowed| allowed == kind), "{key} is {kind}, not {kinds}");
    }
}

#[test]
fn json_keeps_its_promises() {
    let value: Value = serde_json::from_str(&pretty(&status()).unwrap()).unwrap();
    assert_schema(&value, MANAGER);
    assert_schema(&value["proxy"], PROXY);
    assert_schema(&value["access"][0], ACCESS);
    assert_schema(&value["tunnels"][0], TUNNEL);
    assert_schema(&value["tunnels"][1], TUNNEL);
    for session in value["tunnels"][0]["sessions"].as_array().unwrap() {
        assert_schema(session, SESSION);
    }
    assert_eq!(value["version"], 1);
    assert!(!line(&status()).unwrap().contains('\n'));
}

#[test]
fn an_approval_says_what_follows_before_it_ends() {
    let now = at("2026-11-22T03:50:00Z");
    let said = |state: &str, until: Option<&str>| {
        let request = (state != "over").then(|| "oi-1".to_owned());
        let (target, state) = ("i-1".to_owned(), state.to_owned());
        approved(&ApprovalStatus { target, request, state, until: until.map(stamp) }, now)
    };
    let then = "open connections go on, and a session that is lost waits for another approval";
    assert_eq!(
        said("approved", Some("2026-11-22T05:00:00Z")),
        "`i-1`, request `oi-1`: approved until 2026-11-22T05:00:00Z at least"
    );
    let soon = format!("`i-1`, request `oi-1`: approved for another 10 min; after that {then}");
    assert_eq!(said("approved", Some("2026-11-22T04:00:00Z")), soon);
    assert_eq!(said("over", None), format!("`i-1`: the approval is over: {then}"));
    assert_eq!(said("waiting", None), "`i-1`, request `oi-1`: waiting for approval");
    assert_eq!(said("rejected", None), "`i-1`, request `oi-1`: rejected");
}

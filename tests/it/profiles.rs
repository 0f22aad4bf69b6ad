//! Whose credentials odd profiles and environments lead to: of the AWS CLI, and of this program.
//!
//! The cases are `tests/fixtures/aws-profiles.txt`. Where there is no AWS CLI, what it gave is taken from there.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::Path, process::Stdio, sync::Arc};

use autoheal_pa::emulator::{ClusterConfig, Config, Identity, Place, StreamScheme};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, Command},
    task::JoinSet,
};

use super::support::{Lab, PROGRAM, Running, aws_cli, path_variable, within};

/// What the cases are of.
const AWS_CLI: &str = "1.45.11";

/// Cases at a time: each is a Python for most of a second.
const AT_A_TIME: usize = 4;

/// Lines of a comment that make a file longer than 1 MiB.
const PADDING_LINES: usize = 150_000;

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";

/// A case.
#[derive(Debug, Default)]
struct Case {
    name: String,
    variables: Vec<(String, Vec<u8>)>,
    without: Vec<String>,
    args: Vec<String>,
    /// What is typed, if that is on a terminal.
    types: Option<String>,
    /// The two files, and the names of files for sessions that are signed in.
    files: Vec<(String, Vec<u8>)>,
    signed_in: Vec<String>,
    ours: String,
    cli: String,
    /// What this program says.
    says: String,
}

impl Case {
    fn read(text: &str) -> Self {
        let mut lines = text.lines();
        let mut case = Self { name: lines.next().unwrap().to_owned(), ..Self::default() };
        for line in lines.filter(|line| !line.is_empty()) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (line.strip_prefix('|'), word) {
                (Some(content), _) => case.files.last_mut().unwrap().1.extend(content_line(content)),
                (_, "config" | "credentials") => case.files.push((line.to_owned(), Vec::new())),
                (_, "file") => case.files.push((rest.to_owned(), Vec::new())),
                (_, "without") => case.without.push(rest.to_owned()),
                (_, "says") => case.says = rest.to_owned(),
                (_, "types") => case.types = Some(rest.to_owned()),
                (_, "env") => {
                    let (name, value) = rest.split_once('=').unwrap();
                    case.variables.push((name.to_owned(), bytes(value)));
                }
                (_, "args") => case.args = rest.split(' ').map(ToOwned::to_owned).collect(),
                (_, "sso") => case.signed_in.push(rest.split(' ').next().unwrap().to_owned()),
                (_, "same") => (case.ours, case.cli) = (rest.to_owned(), rest.to_owned()),
                (_, "differs") => {
                    let (both, why) = rest.split_once(": ").expect("a reason");
                    assert!(!why.is_empty(), "{}", case.name);
                    let (ours, cli) = both.split_once(' ').unwrap();
                    (case.ours, case.cli) = (ours.to_owned(), cli.to_owned());
                }
                _ => panic!("{}: {line}", case.name),
            }
        }
        assert!(!case.ours.is_empty(), "{}", case.name);
        case
    }

    /// Writes the files into a home, and returns a command that finds them there and nothing else.
    fn command(&self, program: &Path, args: &[&str], home: &Path, endpoint: &str) -> Command {
        let args: Vec<_> = args.iter().copied().chain(self.args.iter().map(String::as_str)).collect();
        let mut command = match self.types {
            None => Command::new(program),
            // Which makes a terminal, whose output is kept apart from what the program writes.
            Some(_) => {
                let mut command = Command::new("script");
                let line = format!("exec '{}' {} >'{}'", program.display(), args.join(" "), home.join("out").display());
                command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("SHELL", "/bin/sh");
                command
            }
        };
        if self.types.is_none() {
            command.args(&args);
        }
        command
            .env_clear()
            .current_dir(home)
            .env("PATH", path_variable())
            .env("HOME", home)
            .env("XDG_RUNTIME_DIR", home)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL_STS", endpoint)
            .env("AWS_ENDPOINT_URL_SSO", endpoint)
            .stdin(if self.types.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for (name, value) in &self.variables {
            command.env(name, OsString::from_vec(with_places(value, home, endpoint)));
        }
        for name in &self.without {
            command.env_remove(name);
        }
        command
    }

    fn write(&self, home: &Path, endpoint: &str) {
        let cache = home.join(".aws/sso/cache");
        std::fs::create_dir_all(&cache).unwrap();
        std::fs::write(home.join("token"), TOKEN).unwrap();
        for (name, content) in &self.files {
            std::fs::write(home.join(".aws").join(name), with_places(content, home, endpoint)).unwrap();
        }
        for session in &self.signed_in {
            let token = serde_json::json!({
                "startUrl": "https://corp.example/start", "region": "us-east-1",
                "accessToken": "token", "expiresAt": "2100-01-01T00:00:00Z",
            });
            std::fs::write(cache.join(format!("{session}.json")), token.to_string()).unwrap();
        }
    }
}

fn with_places(text: &[u8], home: &Path, endpoint: &str) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(text) else { return text.to_owned() };
    let text = text.replace("TOKENFILE", home.join("token").to_str().unwrap());
    text.replace("FOLDER", home.join(".aws").to_str().unwrap()).replace("ENDPOINT", endpoint).into_bytes()
}

fn content_line(line: &str) -> Vec<u8> {
    match line {
        "PADDING" => "# padding\n".repeat(PADDING_LINES).into_bytes(),
        line => [bytes(line), b"\n".to_vec()].concat(),
    }
}

/// Reads `\r` and `\xNN`.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.as_bytes());
        rest = match after.as_bytes() {
            [b'r', ..] => {
                bytes.push(b'\r');
                &after[1..]
            }
            [b'x', _, _, ..] => {
                bytes.push(u8::from_str_radix(&after[1..3], 16).unwrap());
                &after[3..]
            }
            _ => {
                bytes.push(b'\\');
                after
            }
        };
    }
    bytes.extend(rest.as_bytes());
    bytes
}

/// Runs a command, and returns the access key id that its token for a cluster is signed with, and what it says.
async fn identity(mut command: Command, case: &Case, home: &Path) -> (String, String) {
    let what = &case.name;
    let mut child = command.spawn().unwrap();
    let mut asked = None;
    if let Some(typed) = &case.types {
        // Closed, the terminal would end before what is in it is read.
        asked = Some(type_when_asked(&mut child, typed).await);
    }
    let mut output = within(what, child.wait_with_output()).await.unwrap();
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if let Some((_keyboard, shown)) = asked {
        said = shown + &String::from_utf8_lossy(&output.stdout);
        output.stdout = std::fs::read(home.join("out")).unwrap();
    }
    assert!(!said.contains("panicked") && output.status.code().is_some(), "{what}: {said}");
    if !output.status.success() {
        return ("refused".to_owned(), said);
    }
    let credential: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let token = credential["status"]["token"].as_str().unwrap().strip_prefix("k8s-aws-v1.").unwrap();
    let url = String::from_utf8(URL_SAFE_NO_PAD.decode(token).unwrap()).unwrap();
    let (_, key) = url.split_once("X-Amz-Credential=").unwrap();
    let key = key.split_once("%2F").unwrap().0;
    (key.replace("%0D", "\\r").replace("%20", " ").replace("%23", "#"), said)
}

/// Types something into a terminal once it is asked for: what is typed before does not count. Returns what was shown.
async fn type_when_asked(child: &mut Child, typed: &str) -> (ChildStdin, String) {
    let (mut keyboard, screen) = (child.stdin.take().unwrap(), child.stdout.as_mut().unwrap());
    let mut shown = Vec::new();
    let asked = async {
        // `Enter MFA code for arn:…: ` of the AWS CLI, `code: ` of this program.
        while !(shown.ends_with(b": ") && String::from_utf8_lossy(&shown).contains("code")) {
            let mut byte = [0];
            if screen.read(&mut byte).await.unwrap_or_default() == 0 {
                return;
            }
            shown.extend(byte);
        }
    };
    within("the question", asked).await;
    // It has ended if nobody asks.
    let _typed = keyboard.write_all(format!("{typed}\n").as_bytes()).await;
    (keyboard, String::from_utf8_lossy(&shown).into_owned())
}

/// Answers for STS, for IAM Identity Center, for the host of a container, and for an instance's metadata.
async fn serve(stream: TcpStream) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut start = String::new();
        stream.read_line(&mut start).await.ok().filter(|len| *len > 0)?;
        let (mut len, mut caller) = (0, String::new());
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => len = value.parse().ok()?,
                "authorization" => caller = value.split_once("Credential=")?.1.split('/').next()?.to_owned(),
                _ => {}
            }
        }
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await.ok()?;
        let body = String::from_utf8(body).ok()?;
        let (status, answer) = match start.as_str() {
            start if start.starts_with("POST ") => sts(&body, &caller)?,
            start if start.contains("role_name=") => (200, sso(start)?),
            start if start.contains("/latest/") => metadata(start),
            _ => (200, container()),
        };
        let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 21600";
        let head = format!("HTTP/1.1 {status} OK\r\n{ttl}\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all([head, answer].concat().as_bytes()).await.ok()?;
    }
}

fn sso(start: &str) -> Option<String> {
    let role = start.split_once("role_name=")?.1.split(['&', ' ']).next()?;
    let credentials = serde_json::json!({
        "accessKeyId": format!("ASIA{role}SSO"), "secretAccessKey": "s", "sessionToken": "t", "expiration": 4_102_444_800_000_u64,
    });
    Some(serde_json::json!({ "roleCredentials": credentials }).to_string())
}

fn container() -> String {
    let credentials = serde_json::json!({
        "AccessKeyId": "ASIACONTAINER", "SecretAccessKey": "s", "Token": "t", "Expiration": "2100-01-01T00:00:00Z",
    });
    credentials.to_string()
}

/// What an instance says of itself: a token for its questions, the name of its role, and the role's credentials.
fn metadata(start: &str) -> (u16, String) {
    let path = start.split(' ').nth(1).unwrap_or_default();
    match path.trim_end_matches('/') {
        "/latest/api/token" => (200, "token".to_owned()),
        "/latest/meta-data/iam/security-credentials" => (200, "machine".to_owned()),
        "/latest/meta-data/iam/security-credentials/machine" => {
            let credentials = serde_json::json!({
                "Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIAMACHINE",
                "SecretAccessKey": "s", "Token": "t", "Expiration": "2100-01-01T00:00:00Z",
            });
            (200, credentials.to_string())
        }
        _ => (404, String::new()),
    }
}

/// Some roles want something: see the head of the cases.
fn sts(body: &str, caller: &str) -> Option<(u16, String)> {
    let parameter = |name: &str| body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let (action, role) = (parameter("Action")?, parameter("RoleArn")?.rsplit("%2F").next()?);
    let caller = if action == "AssumeRoleWithWebIdentity" { "WEB" } else { caller };
    let is = |name, value| parameter(name) == Some(value);
    let seconds = parameter("DurationSeconds").and_then(|text| text.parse::<u32>().ok());
    let refused = match role {
        "EXTERNAL" if !is("ExternalId", "xy") => Some("AccessDenied"),
        "NAMED" if !is("RoleSessionName", "ann%40example.com") => Some("AccessDenied"),
        "CODE"
            if !(is("SerialNumber", "arn%3Aaws%3Aiam%3A%3A123456789012%3Amfa%2Fann") && is("TokenCode", "123456")) =>
        {
            Some("AccessDenied")
        }
        "LONG" if seconds != Some(7200) => Some("AccessDenied"),
        "SHORT" if seconds.is_some_and(|seconds| seconds > 3600) => Some("ValidationError"),
        _ => None,
    };
    if let Some(code) = refused {
        let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        let message = if code == "AccessDenied" { "not authorized" } else { message };
        return Some((
            if code == "AccessDenied" { 403 } else { 400 },
            format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                 <Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
            ),
        ));
    }
    let answer = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>ASIA{role}{caller}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
         <Expiration>2100-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser>\
         <Arn>arn:aws:sts::123456789012:assumed-role/{role}/x</Arn><AssumedRoleId>A:x</AssumedRoleId></AssumedRoleUser>\
         </{action}Result></{action}Response>"
    );
    Some((200, answer))
}

/// The lab's keys, endpoint and certificate authority in a profile of this name, and nothing of them in the environment.
async fn lab_with_profile(name: &str, stream_scheme: StreamScheme) -> Lab {
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, identity: Identity::StaticKeys, stream_scheme, ..Config::default() }).await;
    let variables = lab.emulator.environment();
    let value = |name: &str| variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
    let keys = keys.map(|name| format!("{} = {}\n", name.to_ascii_lowercase(), value(name).unwrap())).concat();
    let authority = value("AWS_CA_BUNDLE").map(|path| format!("ca_bundle = {path}\n")).unwrap_or_default();
    let endpoint = lab.emulator.endpoint();
    let config = format!(
        "[profile '{name}']\nregion = us-east-1\nendpoint_url = http://127.0.0.1:1\nservices = lab\n{keys}{authority}\
         [services lab]\nsts =\n  endpoint_url = {endpoint}\neks =\n  endpoint_url = {endpoint}\nssm =\n  endpoint_url = {endpoint}\n"
    );
    std::fs::create_dir(lab.path(".aws")).unwrap();
    std::fs::write(lab.path(".aws/config"), config).unwrap();
    lab
}

async fn up_with_profile(lab: &Lab, name: &str, args: &[&str]) {
    let mut command = lab.bare_command(PROGRAM);
    command.args(["up", "--base-port", "0", "--bastion", "i-0dc03fbcae2a87472", "--profile", name]).args(args);
    let mut up = Running::start(&mut command);
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_and_authorities_of_a_profile_count_as_those_of_the_environment() {
    let lab = lab_with_profile("The Lab", StreamScheme::Wss).await;
    up_with_profile(&lab, "The Lab", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_to_the_gateway_that_was_named() {
    let lab = lab_with_profile("lab", StreamScheme::Ws).await;
    // What the service names cannot be reached from here.
    lab.emulator.update(|settings| {
        settings.foreign_stream_host = Some("ssmmessages.us-east-1.amazonaws.com".to_owned());
    });
    let Place::Socket(gateway) = lab.emulator.gateway() else { panic!("it is on loopback") };
    up_with_profile(&lab, "lab", &["--endpoint-ssmmessages", &format!("http://{gateway}")]).await;
    let mut command = lab.bare_command(PROGRAM);
    command.args(["clusters", "--profile", "lab", "--endpoint-ssmmessages", "https://gateway.example"]);
    let ended = Running::start(&mut command).ended().await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("`https://gateway.example` is not the message gateway of us-east-1"), "{ended:#?}");
    assert!(ended.stderr.contains("vpce-"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_and_environments_lead_to_whom_the_aws_cli_takes() {
    let text = include_str!("../fixtures/aws-profiles.txt");
    let cases: Vec<_> = text.split("\n=== ").skip(1).map(Case::read).collect();
    assert!(cases.len() > 50);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            connections.spawn(serve(listener.accept().await.unwrap().0));
        }
    });
    let cli = aws_cli(AWS_CLI).await.map(Arc::new);
    if cli.is_none() {
        #[expect(clippy::print_stderr, reason = "whoever looks is to know")]
        {
            eprintln!(
                "SKIPPED: no awscli {AWS_CLI}: only this program is asked, and compared with what is written down"
            );
        }
    }
    let wrong: Vec<String> = futures_util::stream::iter(&cases)
        .map(|case| {
            let (cli, endpoint) = (cli.clone(), &endpoint);
            async move {
                let home = tempfile::tempdir().unwrap();
                case.write(home.path(), endpoint);
                let command =
                    case.command(Path::new(PROGRAM), &["token", "--cluster-name", "c"], home.path(), endpoint);
                let (ours, said) = identity(command, case, home.path()).await;
                let mut wrong = Vec::new();
                if !said.contains(&case.says) {
                    wrong.push(format!("{}: it does not say {}:\n{said}", case.name, case.says));
                }
                if ours != case.ours {
                    wrong.push(format!("{}: {ours}, not {}\n{said}", case.name, case.ours));
                }
                if let Some(cli) = cli {
                    let args = ["eks", "get-token", "--cluster-name", "c"];
                    let command = case.command(&cli, &args, home.path(), endpoint);
                    let (theirs, said) = identity(command, case, home.path()).await;
                    if theirs != case.cli {
                        wrong.push(format!("{}: the AWS CLI: {theirs}, not {}\n{said}", case.name, case.cli));
                    }
                }
                wrong
            }
        })
        .buffer_unordered(AT_A_TIME)
        .flat_map(futures_util::stream::iter)
        .collect()
        .await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

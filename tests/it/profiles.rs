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
    process::Command,
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
    args: Vec<String>,
    /// The two files, and the names of files for sessions that are signed in.
    files: Vec<(String, Vec<u8>)>,
    signed_in: Vec<String>,
    ours: String,
    cli: String,
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
    fn command(&self, program: &Path, home: &Path, endpoint: &str) -> Command {
        let mut command = Command::new(program);
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
            .stdin(Stdio::null())
            .kill_on_drop(true);
        for (name, value) in &self.variables {
            let value = with_home(value, home);
            let value = match std::str::from_utf8(&value) {
                Ok(text) => text.replace("ENDPOINT", endpoint).into_bytes(),
                Err(_) => value,
            };
            command.env(name, OsString::from_vec(value));
        }
        command
    }

    fn write(&self, home: &Path) {
        let cache = home.join(".aws/sso/cache");
        std::fs::create_dir_all(&cache).unwrap();
        std::fs::write(home.join("token"), TOKEN).unwrap();
        for (name, content) in &self.files {
            std::fs::write(home.join(".aws").join(name), with_home(content, home)).unwrap();
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

fn with_home(text: &[u8], home: &Path) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(text) => text.replace("TOKENFILE", home.join("token").to_str().unwrap()).into_bytes(),
        Err(_) => text.to_owned(),
    }
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
async fn identity(mut command: Command, what: &str) -> (String, String) {
    let output = within(what, command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
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

/// Answers for STS, for IAM Identity Center, and for the host of a container.
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
        let answer = match start.as_str() {
            start if start.starts_with("POST ") => sts(&body, &caller)?,
            start if start.contains("role_name=") => sso(start)?,
            _ => container(),
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
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

fn sts(body: &str, caller: &str) -> Option<String> {
    let parameter = |name: &str| body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let (action, role) = (parameter("Action")?, parameter("RoleArn")?.rsplit("%2F").next()?);
    let caller = if action == "AssumeRoleWithWebIdentity" { "WEB" } else { caller };
    Some(format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>ASIA{role}{caller}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
         <Expiration>2100-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser>\
         <Arn>arn:aws:sts::123456789012:assumed-role/{role}/x</Arn><AssumedRoleId>A:x</AssumedRoleId></AssumedRoleUser>\
         </{action}Result></{action}Response>"
    ))
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
                case.write(home.path());
                let mut command = case.command(Path::new(PROGRAM), home.path(), endpoint);
                command.args(["token", "--cluster-name", "c"]).args(&case.args);
                let (ours, said) = identity(command, &case.name).await;
                let mut wrong = Vec::new();
                if ours != case.ours {
                    wrong.push(format!("{}: {ours}, not {}\n{said}", case.name, case.ours));
                }
                if let Some(cli) = cli {
                    let mut command = case.command(&cli, home.path(), endpoint);
                    command.args(["eks", "get-token", "--cluster-name", "c"]).args(&case.args);
                    let (theirs, said) = identity(command, &case.name).await;
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

//! `status`: what the running manager is doing, as text or as JSON, once or for as long as somebody watches.

use std::{
    fmt::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use tokio::time::timeout;

use super::table::Columns;
use super::{
    GlobalArgs,
    error::{CommandError, Kind},
    login,
    output::{Paint, Printer},
    screen,
    signals::Signals,
};
use crate::{
    clock,
    manager::{
        control::{
            self, ANSWER_LIMIT, Answer, ApprovalStatus, Client, ManagerStatus, Request, SessionReport, TunnelReport,
        },
        metrics,
    },
    settings::{Environment, Settings},
    util::written::{Timestamp, in_words},
    version,
};

/// Longest time between two pictures: ages move on when nothing else does.
const PICTURE_INTERVAL: Duration = Duration::from_secs(1);

/// Columns of the table.
const COLUMNS: usize = 13;

/// The column that has the colour of the state.
const STATE: usize = 1;

/// Options of `status`.
#[derive(Debug, Clone, Default, Args)]
pub struct StatusArgs {
    /// Shows it again whenever it changes, until Ctrl-C or the manager's end; on a terminal as a view with keys
    #[arg(long, short)]
    pub watch: bool,
    /// Writes JSON; with `--watch` one object per line
    #[arg(long)]
    pub json: bool,
    /// Writes metrics, in the text format of Prometheus
    #[arg(long, conflicts_with_all = ["watch", "json"])]
    pub metrics: bool,
    /// Fails unless every tunnel works, for probes
    #[arg(long, conflicts_with = "watch")]
    pub ready: bool,
}

/// Shows the status.
///
/// # Errors
/// No manager of this name is running, or it does not answer; with `--ready` also if a tunnel does not work.
pub async fn run(args: StatusArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let settings = Settings::without_file(&global, &Environment::read())?;
    let dir = &settings.control_dir;
    let late = || control::late(dir, ANSWER_LIMIT);
    let mut client = timeout(ANSWER_LIMIT, Client::connect(dir)).await.map_err(|_| late())??;
    client.send(&Request::Status { follow: args.watch }).await?;
    let first = timeout(ANSWER_LIMIT, next(&mut client)).await.map_err(|_| late())??;
    let Some(status) = first else {
        return Err(CommandError::new(Kind::NotFound, format!("the manager `{}` is stopping", settings.name)));
    };
    if !args.watch {
        if args.json {
            printer.result(&pretty(&status)?)?;
        } else if args.metrics {
            printer.result(&metrics::text(&status, metrics::Format::Prometheus))?;
        } else {
            printer.result(&text(&status, now(), printer.paint()))?;
        }
        return if args.ready { ready(&status) } else { Ok(ExitCode::SUCCESS) };
    }
    if !args.json && printer.has_person() {
        return Box::pin(screen::run(client, status, dir, printer)).await;
    }
    watch(client, status, args.json, printer).await
}

/// Fails unless every tunnel works.
fn ready(status: &ManagerStatus) -> Result<ExitCode, CommandError> {
    if status.state == "active" {
        return Ok(ExitCode::SUCCESS);
    }
    let broken = status.tunnels.iter().filter(|tunnel| !tunnel.is_ready()).count();
    let message = format!("the manager is {}: {broken} of {} tunnels do not work", status.state, status.tunnels.len());
    Err(CommandError::new(Kind::Tunnel, message).hint("`autoheal-pa doctor` says why"))
}

async fn watch(
    mut client: Client,
    mut status: ManagerStatus,
    json: bool,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let mut signals = Signals::listen()?;
    let mut fresh = true;
    loop {
        if json && fresh {
            printer.result(&line(&status)?)?;
        } else if !json && (fresh || printer.redraws()) {
            printer.picture(&text(&status, now(), printer.paint()))?;
        }
        tokio::select! {
            biased;
            _signal = signals.next() => return Ok(ExitCode::SUCCESS),
            told = timeout(PICTURE_INTERVAL, next(&mut client)) => match told {
                Ok(told) => match told? {
                    Some(told) => (status, fresh) = (told, true),
                    None => {
                        printer.progress(&format!("the manager `{}` has stopped", status.name));
                        return Ok(ExitCode::SUCCESS);
                    }
                },
                Err(_) => fresh = false,
            },
        }
    }
}

/// Waits for the next status; `None`: the manager has ended.
///
/// # Cancel safety
/// Nothing is lost.
pub(super) async fn next(client: &mut Client) -> Result<Option<ManagerStatus>, CommandError> {
    match client.next().await? {
        Some(Answer::Status(status)) => Ok(Some(*status)),
        None => Ok(None),
        Some(Answer::Token(_) | Answer::Reloaded(_) | Answer::Stopping | Answer::Finding(_) | Answer::Done) => {
            Err(CommandError::new(Kind::Unexpected, "the manager gave an unexpected answer"))
        }
    }
}

fn pretty(status: &ManagerStatus) -> Result<String, CommandError> {
    serde_json::to_string_pretty(status).map_err(not_json)
}

fn line(status: &ManagerStatus) -> Result<String, CommandError> {
    serde_json::to_string(status).map_err(not_json)
}

fn not_json(error: serde_json::Error) -> CommandError {
    CommandError::new(Kind::Unexpected, "cannot write the status as JSON").with_source(error)
}

/// How long before the end of a sign-in it is said what to do.
const SIGN_IN_NOTICE: Duration = Duration::from_secs(3600);

/// How long before the end of an approval it is said what follows.
const APPROVAL_NOTICE: Duration = Duration::from_secs(900);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + clock::wall()
}

/// How a manager becomes the program that asks it.
const RESTART: &str = "`autoheal-pa down`, then start it again to have this one";

/// Says of a manager of another version than this program that it is, and what to do.
fn other_version(manager: Option<&str>, own: &str) -> Option<String> {
    let manager = match manager {
        Some(manager) if manager == own => return None,
        Some(manager) => format!("the manager is version {manager}"),
        None => "the manager is an older version".to_owned(),
    };
    Some(format!("{manager}, this program {own}: {RESTART}"))
}

/// Writes a status for people.
fn text(status: &ManagerStatus, now: SystemTime, paint: Paint) -> String {
    let mut text = String::new();
    let mut head = |label: &str, value: &str| {
        // Writing to a string does not fail.
        let _infallible = writeln!(text, "{label:<11} {value}");
    };
    let state = paint.state(&status.state, &status.state);
    head("manager", &format!("{}, process {}, {state} since {}", status.name, status.pid, ago(status.since, now)));
    if let Some(note) = other_version(status.program.as_deref(), &version::short()) {
        head("version", &note);
    }
    for access in &status.access {
        let expire = match (access.credentials_expire, &access.credentials_error) {
            (None, _) => String::new(),
            (Some(at), None) => format!(", credentials renewed before {at}"),
            (Some(at), Some(error)) => format!(", credentials {}: cannot be renewed: {error}", left(at, now)),
        };
        head("identity", &format!("{} in {}{expire}", access.identity, access.region));
        if let Some(hint) = access.credentials_hint.as_ref().filter(|hint| !hint.is_empty()) {
            head("hint", hint);
        }
        if let (Some(at), Some(profile)) = (access.sign_in_ends, &access.sign_in_profile) {
            head("sign-in", &sign_in(at, profile, now));
        }
        for approval in &access.approvals {
            head("approval", &approved(approval, now));
        }
        if !access.source.is_empty() {
            head("source", &access.source);
        }
        for other in &access.passed_over {
            head("passed over", other);
        }
        if let Some(off) = &access.clock {
            head("clock", &format!("this machine's is {off}"));
        }
    }
    if let Some(path) = &status.kubeconfig {
        head("kubeconfig", &[std::slice::from_ref(path), &status.imported_from[..]].concat().join(":"));
    }
    if let Some(proxy) = &status.proxy {
        let others = if proxy.others == "refuse" { "refused" } else { "connected to from here" };
        let clients = proxy.open_connections;
        head("proxy", &format!("{}, {clients} connected; names that no tunnel leads to are {others}", proxy.address));
    }
    if let Some(url) = &status.metrics {
        head("metrics", url);
    }
    if let Some(path) = &status.audit {
        head("audit", path);
    }
    if let Some(path) = &status.log {
        head("log", path);
    }
    if !status.tunnels.is_empty() {
        text.push('\n');
        text.push_str(&table(status, now, paint));
    }
    text
}

/// Writes the tunnels as a table: below each the sessions that it has besides its own, and its trouble.
fn table(ManagerStatus { tunnels, proxy, .. }: &ManagerStatus, now: SystemTime, paint: Paint) -> String {
    const HEAD: [&str; COLUMNS] = [
        "CONTEXT", "STATE", "SINCE", "PORT", "RTT", "OPEN", "SENT", "RECEIVED", "RESUMES", "RESTARTS", "TARGET",
        "AGENT", "SESSION",
    ];
    let rows_of = |tunnel: &TunnelReport| {
        let others = tunnel.sessions.iter().enumerate().skip(1);
        let others = others.map(|(at, session)| session_row(at + 1, session, now));
        std::iter::once(row(tunnel, now)).chain(others).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<[String; COLUMNS]>> = tunnels.iter().map(rows_of).collect();
    let head = HEAD.map(str::to_owned);
    let columns = Columns::of(std::iter::once(&head).chain(rows.iter().flatten()).map(|row| row.as_slice()));
    let mut text = columns.plain(&head);
    for (tunnel, rows) in tunnels.iter().zip(&rows) {
        for row in rows {
            text.push_str(&columns.line(
                row,
                |column, cell, padded| {
                    if column == STATE { paint.state(cell, &padded) } else { padded }
                },
            ));
        }
        for (at, session) in tunnel.sessions.iter().enumerate() {
            let name = if at == 0 { String::new() } else { format!("session {}: ", at + 1) };
            for note in notes(session) {
                text.push_str(&format!("  {name}{note}\n"));
            }
        }
        if let Some(waits) = tunnel.progress.as_ref().filter(|_| tunnel.session_id.is_none()) {
            text.push_str(&format!("  {waits}\n"));
        }
        if let Some(endpoint) = tunnel.forward.as_ref().filter(|endpoint| **endpoint != tunnel.context) {
            text.push_str(&format!("  to `{endpoint}`\n"));
        }
        if proxy.is_some() && tunnel.forward.is_none() {
            text.push_str(&format!("  by the proxy as `{}`\n", tunnel.endpoint));
        }
        if let (Some(asked), Some(target)) = (&tunnel.bastion, &tunnel.target)
            && asked != target
        {
            text.push_str(&format!("  `{asked}` is `{target}` at present\n"));
        }
        if let (true, Some(target)) = (awaits_agent(tunnel), &tunnel.target) {
            text.push_str(&format!("  waiting for the agent on `{target}`\n"));
        }
        let Some(error) = &tunnel.last_error else { continue };
        let at = tunnel.last_error_at.map(|at| ago(at, now)).unwrap_or_default();
        text.push_str(&format!("  {at} ago: {error}\n"));
        if let Some(hint) = tunnel.hint.as_ref().filter(|_| !tunnel.is_ready()) {
            text.push_str(&format!("  hint: {hint}\n"));
        }
    }
    text
}

/// Whether its session has been started and the agent has not spoken yet.
fn awaits_agent(tunnel: &TunnelReport) -> bool {
    tunnel.session_id.is_some() && tunnel.agent_version.is_none() && !tunnel.is_ready()
}

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

fn round_trip(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"))
}

fn row(tunnel: &TunnelReport, now: SystemTime) -> [String; COLUMNS] {
    [
        tunnel.context.clone(),
        tunnel.state.clone(),
        ago(tunnel.since, now),
        tunnel.port.to_string(),
        round_trip(tunnel.probe_rtt_ms),
        tunnel.open_connections.to_string(),
        bytes(tunnel.bytes_sent),
        bytes(tunnel.bytes_received),
        tunnel.resumes.to_string(),
        tunnel.restarts.to_string(),
        or_dash(tunnel.bastion.as_ref().or(tunnel.target.as_ref())),
        or_dash(tunnel.agent_version.as_ref()),
        or_dash(tunnel.session_id.as_ref()),
    ]
}

/// The row of a session besides the tunnel's own, in the columns of the tunnel, whose figures are those of all.
fn session_row(number: usize, session: &SessionReport, now: SystemTime) -> [String; COLUMNS] {
    [
        format!("  session {number}"),
        session.state.clone(),
        ago(session.since, now),
        String::new(),
        round_trip(session.probe_rtt_ms),
        session.open_connections.to_string(),
        bytes(session.bytes_sent),
        bytes(session.bytes_received),
        String::new(),
        String::new(),
        session.bastion.clone().unwrap_or_else(|| session.target.clone()),
        or_dash(session.agent_version.as_ref()),
        or_dash(session.session_id.as_ref()),
    ]
}

/// What holds up the connections of a session.
fn notes(session: &SessionReport) -> impl Iterator<Item = String> {
    let behind = session.messages_behind;
    let catching_up = (behind > 0).then(|| format!("catching up, {behind} messages behind"));
    let held_back = "held back: a local program reads more slowly than its data arrives";
    catching_up.into_iter().chain(session.held_back.then(|| held_back.to_owned()))
}

/// How long ago something was.
fn ago(at: Timestamp, now: SystemTime) -> String {
    let time = now.duration_since(at.time()).unwrap_or_default();
    in_words(Duration::from_secs(time.as_secs()))
}

/// When a sign-in ends, and from when on it is time what to do.
fn sign_in(at: Timestamp, profile: &str, now: SystemTime) -> String {
    let left = at.time().duration_since(now).unwrap_or_default();
    if left > SIGN_IN_NOTICE {
        return format!("until {at}, profile `{profile}`");
    }
    let ends = if left.is_zero() { "has ended".to_owned() } else { format!("ends in {}", in_words(left)) };
    format!("{ends}: sign in again with `{}`", login::command_for(profile))
}

/// Whether sessions with the bastion of a request can be started for a good while.
pub(super) fn is_approved(approval: &ApprovalStatus, now: SystemTime) -> bool {
    let left = approval.until.map(|at| at.time().duration_since(now).unwrap_or_default());
    approval.state == "approved" && left.is_some_and(|left| left > APPROVAL_NOTICE)
}

/// How far a request for access to a bastion is, and what follows when it ends.
pub(super) fn approved(ApprovalStatus { target, request, state, until }: &ApprovalStatus, now: SystemTime) -> String {
    const CONSEQUENCES: &str = "open connections go on, and a session that is lost waits for another approval";
    let request = request.as_ref().map(|request| format!(", request `{request}`")).unwrap_or_default();
    let left = until.map(|at| (at, at.time().duration_since(now).unwrap_or_default()));
    match (state.as_str(), left) {
        ("approved", Some((_, left))) if left <= APPROVAL_NOTICE => {
            format!("`{target}`{request}: approved for another {}; after that {CONSEQUENCES}", in_words(left))
        }
        ("approved", Some((at, _))) => format!("`{target}`{request}: approved until {at} at least"),
        ("waiting", _) => format!("`{target}`{request}: waiting for approval"),
        ("over", _) => format!("`{target}`: the approval is over: {CONSEQUENCES}"),
        (state, _) => format!("`{target}`{request}: {state}"),
    }
}

/// How long something lasts, or that it is over.
fn left(at: Timestamp, now: SystemTime) -> String {
    match at.time().duration_since(now) {
        Ok(time) => format!("expire in {}", in_words(time)),
        Err(_) => format!("have expired at {at}"),
    }
}

/// Writes a number of bytes in the largest decimal unit that leaves something before the point.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    match UNITS.iter().find(|(_, unit)| count >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", count / unit, count % unit * 10 / unit),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
pub(super) mod tests;

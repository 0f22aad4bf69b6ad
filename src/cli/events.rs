//! What happens in a manager, as a user is told of it.

use super::{
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    aws::Caller,
    journal::Entry,
    manager::{Event, Listener, orphans::NotEnded},
    route::ssm::Approval,
    util::{
        quote::{Word, command},
        written::{in_words, rfc3339},
    },
};

/// What expired credentials mean to whoever uses the tunnels.
const CONSEQUENCES: &str = "open connections go on, but until there are new credentials lost sessions cannot be resumed, \
                            new ones cannot be started, and kubectl gets no tokens";

/// What `--kubeconfig-mode local-tls` costs.
const LOCAL_TLS: &str = "TLS ends in this process: it sees what clients send, client certificates do not get through, and \
                         clients have to read the kubeconfig again after each start, as its certificate authority is a new one";

/// Returns what says all that happens.
pub(super) fn shown(printer: &Printer) -> Listener {
    let printer = printer.clone();
    Listener::new(move |event| show(event, &printer))
}

fn show(event: Event, printer: &Printer) {
    match event {
        Event::Identified(caller) => printer.progress(&format!("identity {}", identity(&caller))),
        Event::ClusterSkipped { name, reason } => printer.progress(&format!("skipped `{name}`: {reason}")),
        Event::NothingOfEks(error) => {
            printer.progress(&format!("no clusters of EKS: {}", CommandError::from(error).sentence()));
        }
        Event::ProxyLeftOut { context } => {
            printer
                .progress(&format!("the `proxy-url` of `{context}` is not used: its tunnel goes through the bastion"));
        }
        Event::SeveralKubeconfigs(files) => printer.progress(&command!(
            "imported contexts have their users elsewhere: `export KUBECONFIG={}`, as `autoheal-pa env` says",
            files.variable().to_string_lossy().as_ref()
        )),
        Event::PortSkipped(taken) => printer.progress(&format!("{taken}: skipped")),
        Event::PortLost { cluster, taken } => {
            printer.progress(&format!("{taken}, which the context of `{cluster}` had: it gets another"));
        }
        Event::ProxyServes { address } => printer.progress(&format!("proxy {address} for HTTP and SOCKS5")),
        Event::MetricsServed { address } => printer.progress(&format!("metrics at http://{address}/metrics")),
        Event::TlsEndsHere => printer.progress(LOCAL_TLS),
        Event::TlsGoesOn { context, why } => {
            printer.progress(&format!("`{context}` is as with `--kubeconfig-mode direct`: {why}"));
        }
        Event::KubeconfigElsewhere(error) => printer.progress(&CommandError::from(error).sentence()),
        Event::KubeconfigWritten { path, current } => {
            let current = current.map(|name| format!(", current context `{name}`")).unwrap_or_default();
            printer.progress(&format!("wrote `{}`{current}", path.display()));
        }
        Event::ContextsLeft(error) => printer.caution(&error.into()),
        Event::EnvFileWritten(path) => printer.progress(&format!("wrote `{}`", path.display())),
        Event::JobTold => printer.progress("set `KUBECONFIG` for later steps of the job"),
        Event::NoJournal { folder, source } => {
            let message = format!("cannot keep a journal of sessions in `{}`", folder.display());
            let hint = "if this process is killed, its sessions end only when they time out";
            printer.caution(&CommandError::new(Kind::Unexpected, message).with_source(source).hint(hint));
        }
        Event::SessionLeft { session, error } => printer.caution(&session_left(session, error)),
        Event::SessionsEnded(1) => printer.progress("ended a session left behind by an earlier run"),
        Event::SessionsEnded(number) => {
            printer.progress(&format!("ended {number} sessions left behind by an earlier run"));
        }
        Event::CredentialsExpire { left, error } => {
            let message = format!("the AWS credentials expire in {} and cannot be renewed", in_words(left));
            printer.caution(&CommandError::credentials(message, &error));
        }
        Event::CredentialsExpired { error } => {
            printer.caution(&CommandError::credentials("the AWS credentials have expired", &error));
            printer.progress(CONSEQUENCES);
        }
        Event::CredentialsRenewed { until } => {
            let until = until.map(|end| format!(", until {}", rfc3339(end))).unwrap_or_default();
            printer.progress(&format!("the AWS credentials are valid again{until}"));
        }
        Event::SignInEnds { left, profile } => {
            let message =
                format!("the sign-in of profile `{profile}` to IAM Identity Center ends in {}", in_words(left));
            let hint = command!("sign in again, in any shell: `autoheal-pa login --profile {}`", profile);
            printer.caution(&CommandError::new(Kind::Credentials, message).hint(hint));
        }
        Event::ApprovalEnds(approval) => printer.progress(&approval_ends(&approval)),
        Event::Caution(caution) => printer.caution(&caution.into()),
        Event::Notice(notice) => printer.progress(&notice),
    }
}

/// Says whose credentials are used, where they come from, and until when they last.
fn identity(caller: &Caller) -> String {
    let until = caller.expires.map(|at| format!(", credentials until {}", rfc3339(at))).unwrap_or_default();
    format!("{}, from {}{until}", caller.arn, caller.source)
}

/// Says that sessions with a bastion cannot be started much longer.
fn approval_ends(Approval { target, request, until, .. }: &Approval) -> String {
    let until = until.map(|end| format!(" at {}", rfc3339(end))).unwrap_or_default();
    let request = request.as_ref().map(|request| format!(" (request `{request}`)")).unwrap_or_default();
    format!(
        "the approval of access to `{target}`{request} ends{until}: open connections go on, and a session that is lost after that waits \
         for another approval"
    )
}

fn session_left(session: Entry, error: NotEnded) -> CommandError {
    let Entry { session, region, target, .. } = session;
    let message = format!("cannot end the session `{session}` on `{target}`, left behind by an earlier run");
    let then = Word::raw(if error.is_final() {
        " as the identity that started it, or wait for its idle timeout"
    } else {
        ", or let the next `up` try again"
    });
    CommandError::new(Kind::Unexpected, message).with_source(error).hint(command!(
        "run `aws ssm terminate-session --session-id={} --region {}`{}",
        session,
        region,
        then
    ))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{aws::AwsError, cli::output::Captured};

    fn said(events: impl IntoIterator<Item = Event>) -> String {
        let (printer, out, err) = Captured::printer();
        events.into_iter().for_each(|event| shown(&printer).tell(event));
        assert_eq!(out.text(), "");
        err.text()
    }

    fn not_renewed() -> AwsError {
        AwsError::NotRenewed { origin: "x".to_owned() }
    }

    #[test]
    fn a_warning_of_credentials_has_its_hint_and_the_end_its_consequences() {
        let said = said([
            Event::CredentialsExpire { left: Duration::from_secs(270), error: not_renewed() },
            Event::CredentialsExpired { error: not_renewed() },
            Event::CredentialsRenewed { until: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(30_000)) },
            Event::CredentialsRenewed { until: None },
        ]);
        let because = "got no newer AWS credentials from x\nhint: start again with new credentials";
        let expire = format!("warning: the AWS credentials expire in 4 min 30 s and cannot be renewed: {because}");
        assert!(said.starts_with(&expire), "{said}");
        assert!(said.contains(&format!("\nwarning: the AWS credentials have expired: {because}")), "{said}");
        let end = format!(
            "\n{CONSEQUENCES}\nthe AWS credentials are valid again, until 1970-01-01T08:20:00Z\nthe AWS credentials are \
             valid again\n"
        );
        assert!(said.ends_with(&end), "{said}");
    }

    #[test]
    fn sessions_that_cannot_be_ended_are_named_with_what_ends_them() {
        let left = |session: &str, error| Event::SessionLeft {
            session: Entry {
                session: session.into(),
                account: Some("123456789012".into()),
                region: "us-east-1".into(),
                target: "i-0abcdef1".into(),
                started: 0,
            },
            error: NotEnded::Call(error),
        };
        let source = || Arc::new(std::io::Error::other("because"));
        let (action, resource) = ("ssm:TerminateSession".into(), "denied-1".into());
        let said = said([
            left("denied-1", AwsError::AccessDenied { action, resource, source: source() }),
            left("never-1", AwsError::Unreachable { host: "ssm".into(), source: source() }),
            Event::SessionsEnded(1),
            Event::SessionsEnded(6),
        ]);
        assert!(
            said.contains(
                "warning: cannot end the session `denied-1` on `i-0abcdef1`, left behind by an earlier run: not \
                 authorized to perform `ssm:TerminateSession` on `denied-1`: because\nhint: run `aws ssm terminate-session \
                 --session-id=denied-1 --region us-east-1` as the identity that started it, or wait for its idle \
                 timeout\n"
            ),
            "{said}"
        );
        assert!(said.contains("--session-id=never-1 --region us-east-1`, or let the next `up` try again\n"), "{said}");
        let ended = "ended a session left behind by an earlier run\nended 6 sessions left behind by an earlier run\n";
        assert!(said.ends_with(ended), "{said}");
    }
}

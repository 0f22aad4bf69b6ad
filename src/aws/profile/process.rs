//! Credentials that a program of the user's gives: `credential_process`.
//!
//! The SDK would leave a program that hangs behind at each renewal.

use aws_credential_types::{Credentials, credential_feature::AwsCredentialFeature};
use aws_smithy_types::date_time::{DateTime, Format};
use serde::Deserialize;
use tokio::process::Command;

use super::fault::ProfileFault;
use crate::aws::program;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

/// Runs the program.
///
/// # Cancel safety
/// As of [`program::output`].
pub(super) async fn run(command: &str) -> Result<Credentials, ProfileFault> {
    let failed = |what: String| ProfileFault::Process { what };
    let mut process = Command::new("sh");
    process.args(["-c", command]);
    let output = program::output(process).await.map_err(failed)?;
    credentials(output.expose()).map_err(|what| failed(what.to_owned()))
}

fn credentials(output: &[u8]) -> Result<Credentials, &'static str> {
    // An error of the parser would show what it has read.
    let output: Output = serde_json::from_slice(output)
        .map_err(|_| "gave no JSON with `Version`, `AccessKeyId` and `SecretAccessKey`")?;
    if output.version != 1 {
        return Err("gave credentials whose `Version` is not 1");
    }
    let expiry = match output.expiration.as_deref() {
        None => None,
        Some(text) => {
            let time = DateTime::from_str(text, Format::DateTimeWithOffset).ok().and_then(|time| time.try_into().ok());
            Some(time.ok_or("gave an `Expiration` that is not a time")?)
        }
    };
    let mut credentials = Credentials::new(
        output.access_key_id,
        output.secret_access_key,
        output.session_token,
        expiry,
        "CredentialProcess",
    );
    credentials.set_property(vec![AwsCredentialFeature::CredentialsProfileProcess]);
    Ok(credentials)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _},
        time::Duration,
    };

    use super::*;

    async fn failure(command: &str) -> String {
        run(command).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_process_gives_credentials_or_says_why_not() {
        let good = r#"echo '{"Version":1,"AccessKeyId":"a","SecretAccessKey":"s","SessionToken":"t","Expiration":"2100-01-01T00:00:00+00:00"}'"#;
        let credentials = run(good).await.unwrap();
        assert_eq!((credentials.access_key_id(), credentials.session_token()), ("a", Some("t")));
        assert!(credentials.expiry().is_some());
        assert_eq!(
            failure("echo sign in >&2; exit 3").await,
            "its `credential_process` ended with exit status: 3: sign in"
        );
        for (output, said) in [
            (r#"{"AccessKeyId":"hunter2""#, "gave no JSON"),
            (r#"{"Version":2,"AccessKeyId":"hunter2","SecretAccessKey":"s"}"#, "`Version` is not 1"),
            (r#"{"Version":1,"AccessKeyId":"hunter2","SecretAccessKey":"s","Expiration":"soon"}"#, "not a time"),
        ] {
            let failure = failure(&format!("echo '{output}'")).await;
            assert!(failure.contains(said) && !failure.contains("hunter2"), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_process_that_hangs_ends_with_its_group_when_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        // Both the shell and what it has started hold the pipe open, whose end is seen when the last of them is gone.
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let command = format!("exec 3>'{}'; echo x >&3; sleep 1000 & sleep 1000; true", pipe.display());
        let (started, has_started) = tokio::sync::oneshot::channel();
        let reader = tokio::task::spawn_blocking(move || {
            let mut pipe = BufReader::new(std::fs::File::open(pipe).unwrap());
            pipe.read_line(&mut String::new()).unwrap();
            started.send(()).unwrap();
            pipe.read_to_end(&mut Vec::new()).unwrap()
        });
        let mut hung = Box::pin(run(&command));
        tokio::select! {
            outcome = &mut hung => panic!("it has ended: {outcome:?}"),
            started = has_started => started.unwrap(),
        }
        drop(hung);
        if std::io::stdin().is_terminal() {
            let mut stderr = std::io::stderr();
            let _written = writeln!(stderr, "SKIPPED: on a terminal the program has no group of its own");
            return;
        }
        let read = tokio::time::timeout(Duration::from_secs(60), reader).await.expect("all of the group are gone");
        assert_eq!(read.unwrap(), 0);
    }
}

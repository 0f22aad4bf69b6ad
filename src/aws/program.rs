//! Programs that give credentials or tokens.
//!
//! One that hangs ends, with its process group, when nobody waits for it any more, which is after the limit of a load at the
//! latest. On a terminal it stays in the group of this program, as it would be stopped else when it asks for a password.

use std::{io::IsTerminal, process::Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

use crate::{
    secret::Secret,
    util::{peer_text::PeerText, read::read_pipe},
};

/// Most that is read of what a program writes, in bytes.
const MAX_OUTPUT_LEN: u64 = 256 << 10;

/// Ends a process group, unless it is told not to.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs a program and returns what it has written.
///
/// # Errors
/// What it did instead, as the rest of a sentence about it, with what it said.
///
/// # Cancel safety
/// When it is dropped the program ends, with all that it has started and that has not left its group.
pub(super) async fn output(mut process: Command) -> Result<Secret<Vec<u8>>, String> {
    let on_terminal = std::io::stdin().is_terminal();
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if !on_terminal {
        process.process_group(0);
    }
    let mut child = process.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut group = Group(pid.filter(|_| !on_terminal));
    let (out, err) = (read_pipe(child.stdout.take(), MAX_OUTPUT_LEN), read_pipe(child.stderr.take(), MAX_OUTPUT_LEN));
    let (out, err, status) = tokio::join!(out, err, child.wait());
    // What it has left running on purpose, such as an agent that keeps keys, may stay.
    group.0 = None;
    let status = status.map_err(|error| format!("cannot be waited for: {error}"))?;
    if !status.success() {
        let said = PeerText::from_bytes(err.expose());
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        return Err(format!("ended with {status}{said}"));
    }
    Ok(out)
}

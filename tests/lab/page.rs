//! The page that shows what the matrix came to.

use std::{fmt::Write as _, time::Duration};

use super::{
    line,
    matrix::{Expected, From, Row, Run},
    process::{PROCESS_ROWS, ProcessRow, ProcessRun},
    ssh_rows::{SSH_ROWS, SshRow},
    workload::Load,
};

/// Where the page is.
pub(crate) const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults.md");

/// Where the names of the tests are, one for each row.
pub(crate) const TESTS_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/matrix/rows.rs");

/// Runs of one fault.
pub(crate) struct Runs {
    pub(crate) row: Row,
    pub(crate) runs: Vec<Run>,
}

/// Median and worst.
fn summary(mut values: Vec<Duration>) -> String {
    values.sort();
    let (Some(worst), Some(median)) = (values.last(), values.get(values.len() / 2)) else { return "–".to_owned() };
    format!("{:.1} s, {:.1} s", median.as_secs_f64(), worst.as_secs_f64())
}

/// Writes the states of a run, a cycle that repeats only once.
fn states(run: &Run) -> String {
    let names: Vec<&str> = run.states.iter().map(|(state, _)| state.as_str()).collect();
    match names.as_slice() {
        [first, second, rest @ ..] if rest.len() > 2 && rest.iter().all(|state| state == first || state == second) => {
            format!("{first} → {second} → {first}, {} times", names.len() / 2)
        }
        names => names.join(" → "),
    }
}

/// Writes the row of a fault.
pub(crate) fn row(Runs { row, runs }: &Runs) -> String {
    fault_row((row.name, row.what), (row.from, row.expected), runs)
}

/// Writes the row of a fault on the way through an SSH server.
pub(crate) fn ssh_row(row: &SshRow, runs: &[Run]) -> String {
    fault_row((row.name, row.what), (row.from, row.expected), runs)
}

fn fault_row((name, what): (&str, &str), (from, expected): (From, Expected), runs: &[Run]) -> String {
    let waits = |read: fn(&Run) -> Option<Duration>| summary(runs.iter().filter_map(read).collect());
    let from = match from {
        From::Injection => "injection",
        From::End => "its end",
    };
    let open = match expected {
        Expected::Kept => waits(|run| run.outcome.open_wait),
        Expected::Reset(_) => format!("cut: {}", waits(|run| run.outcome.told_after)),
    };
    let new = waits(|run| run.outcome.new_wait);
    let kept = runs.iter().map(|run| run.outcome.kept).min().unwrap_or_default();
    let lost: u64 = runs.iter().map(|run| run.outcome.wrong_bytes).sum();
    let (states, error) = runs.first().map_or((String::new(), None), |run| (states(run), run.last_error.clone()));
    let error = error.map_or(String::new(), |error| format!("; {}", error.replace('|', "\\|")));
    format!(
        "| `{name}` | {what} | {from} | {open} | {new} | {kept} of {} | {lost} | {states}{error} |",
        Load::FULL.connections()
    )
}

/// Writes the tests of the rows.
pub(crate) fn tests(rows: &[Row]) -> String {
    let list =
        |names: &[&str]| names.iter().map(|name| format!("    {}\n", name.replace('-', "_"))).collect::<String>();
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    let ssh: Vec<&str> = SSH_ROWS.iter().map(|row| row.name).collect();
    format!(
        "// Written by `cargo run --example faults -- --write`, not by hand.\nrows! {{\n{}}}\n\nssh_rows! {{\n{}}}\n",
        list(&names),
        list(&ssh)
    )
}

/// Puts rows into a page that has been written, in the place of those of their names. What is not in the matrix any more
/// goes, and all are in its order.
pub(crate) fn with_rows(page: &str, order: &[Row], new: &[String]) -> String {
    let name = |line: &str| line.strip_prefix("| `").and_then(|rest| Some(rest.split_once('`')?.0.to_owned()));
    // Rows of both tables begin with the name, and those of the second one are shorter.
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let mut lines: Vec<&str> = page.lines().collect();
    let faults: Vec<&str> = order.iter().map(|row| row.name).collect();
    let of_ssh: Vec<&str> = SSH_ROWS.iter().map(|row| row.name).collect();
    let of_process: Vec<&str> = PROCESS_ROWS.iter().map(|row| row.name).collect();
    for (count, order) in [(9, &faults), (6, &faults), (9, &of_ssh), (6, &of_process)] {
        // What is not in the matrix any more goes with the table that it is in.
        let is_row = |line: &str| name(line).is_some();
        let is_of_table = |line: &str| name(line).is_some_and(|name| order.contains(&name.as_str()));
        let Some(start) = lines.iter().position(|line| is_of_table(line) && columns(line) == count) else { continue };
        let len = lines[start..].iter().take_while(|line| is_row(line)).count();
        let old: Vec<&str> = lines.splice(start..start + len, []).collect();
        let all = new.iter().map(String::as_str).filter(|line| is_of_table(line) && columns(line) == count).chain(old);
        let all: Vec<&str> = all.collect();
        let sorted = order.iter().filter_map(|row| all.iter().find(|line| name(line).as_deref() == Some(row)));
        let sorted: Vec<&str> = sorted.copied().collect();
        lines.splice(start..start, sorted);
    }
    lines.join("\n") + "\n"
}

/// Writes how soon a fault was found in the middle of a transfer, if that was measured.
pub(crate) fn busy_row(Runs { row, runs }: &Runs) -> Option<String> {
    let times = |read: fn(&Run) -> Option<Duration>| summary(runs.iter().filter_map(read).collect());
    let behind = runs.iter().map(|run| run.behind).max().unwrap_or_default();
    let is_measured = row.is_silence;
    is_measured.then(|| {
        let (found, back) = (times(|run| run.found), times(|run| run.rate_back));
        format!("| `{}` | {} | {found} | {back} | {behind} |", row.name, row.what)
    })
}

/// Writes the row of a fault of the process.
pub(crate) fn process_row(row: &ProcessRow, runs: &[ProcessRun]) -> String {
    let waits = summary(runs.iter().map(|run| run.wait).collect());
    let seen = runs.iter().map(|run| run.seen.as_str()).find(|seen| !seen.is_empty()).unwrap_or_default();
    let seen = seen.replace('|', "\\|");
    format!("| `{}` | {} | {} | {waits} | {seen} |", row.name, row.what, row.wait_for)
}

/// Writes the page.
pub(crate) fn page(
    seeds: u64,
    rows: &[String],
    busy_rows: &[String],
    lines: &[Vec<String>],
    ssh_rows: &[String],
    process_rows: &[String],
    checked: u64,
) -> String {
    let mut page = String::new();
    let all = Load::FULL.connections();
    let questions = Load::FULL.questions;
    write!(
        page,
        "# What faults do\n\n\
         Written by `cargo build --release && cargo run --release --example faults -- --write`, not by hand: each row was run with {seeds} seeds, on virtual\n\
         time, with the supervisor, the tunnels and the WebSockets of `up` between a local program and an emulated AWS, 20 ms away\n\
         each way, whose agent keeps the pace of a real one (about 1.4 ms for each KiB). `tests/it/matrix.rs` runs every row again as a test.\n\n\
         During each fault {all} connections are open: a download, an upload, {questions} loops of small questions and a Kubernetes watch;\n\
         another program makes new connections all the time. Every byte is compared ({} MB in all), and every change that the watch\n\
         shows has to come once and in order.\n\n\
         **Waits** are median and worst over the seeds. An open connection waits from asking for something, or from getting a part\n\
         of it, until the next part is there, and what counts is the longest wait on any connection that was kept. New\n\
         connections are made every 0.5 s, and what counts is when one that was made after the fault is first answered. Both count\n\
         from the moment in the column \"from\": what was waiting then is waiting since then. The base line is what the agent's queue costs while the download runs. Where connections are cut, the column says how\n\
         long after the injection the last of them was told.\n\n\
         **What the user sees** is what `status` shows: the tunnel's states, and its last error afterwards, both from the first run.\n\n\
         | fault | what happens | from | open connections wait | a new connection is answered | kept | bytes lost | what the user sees |\n\
         |---|---|---|---|---|---:|---:|---|\n",
        checked / 1_000_000
    )
    .expect("a string takes everything");
    for row in rows {
        page.push_str(row);
        page.push('\n');
    }
    page.push_str(BUSY);
    for row in busy_rows {
        page.push_str(row);
        page.push('\n');
    }
    let head = line::HEADER.join(" | ");
    let rule = "---|".repeat(line::HEADER.len());
    write!(page, "\n## Slow lines\n\n{}\n\n| {head} |\n|{rule}\n", line::CAPTION).expect("a string takes everything");
    for row in lines {
        writeln!(page, "| {} |", row.join(" | ")).expect("a string takes everything");
    }
    page.push_str(SSH);
    for row in ssh_rows {
        page.push_str(row);
        page.push('\n');
    }
    page.push_str(PROCESSES);
    for row in process_rows {
        page.push_str(row);
        page.push('\n');
    }
    page.push_str(TESTS);
    page
}

/// What leads up to the table of silences.
const BUSY: &str = "\n\
## Silence in the middle of a transfer\n\
\n\
The same runs. **Found** is how long after the injection the transport was given up, **old rate** when the download had nine\n\
tenths of the rate again that it had before, over three seconds: until then the agent repeats what was lost, ten messages a\n\
second, and `status` says `catching up`, and how many messages are missing. Median and worst over the seeds, and the most messages.\n\
\n\
| fault | what happens | found | old rate | messages behind |\n\
|---|---|---|---|---:|\n";

/// What leads up to the table of SSH servers.
pub(crate) const SSH: &str = "\n\
## SSH\n\
\n\
The bastion is an SSH server: OpenSSH's own, beside an emulated EC2 Instance Connect and its endpoint. So these run in real time,\n\
with three seeds at most, and waits are those of a machine that others use as well. The supervisor, the tunnel and the SSH\n\
connection are those of `up`, the connections those of the first table, with a pause of 20 ms between two transfers of 512 KiB,\n\
and new connections are made every 0.2 s. SSH resumes nothing: when its connection is lost, all that it carries is cut.\n\
In the rows where a server or the network is given up, that is after 0.5 s without a word and three questions that nobody answers;\n\
`up` asks after 15 s, so that it takes a minute there.\n\
\n\
| fault | what happens | from | open connections wait | a new connection is answered | kept | bytes lost | what the user sees |\n\
|---|---|---|---|---|---:|---:|---|\n";

/// What leads up to the last table.
const PROCESSES: &str = "\n\
## Files and processes\n\
\n\
These concern the program as a process, so the real one was run, as often, in real time and against the emulated AWS on\n\
sockets. Waits are median and worst, on a machine that others use as well. While a bastion is replaced, the connections of the\n\
first table are open too; such rows take a minute each, and were run with three seeds at most.\n\
\n\
| fault | what happens | the wait is for | wait | what the user sees |\n\
|---|---|---|---|---|\n";

/// Tests that go further than the second table.
const TESTS: &str = "\n\
Tests of the program that go further:\n\
\n\
| fault | test |\n\
|---|---|\n\
| the disk is full when the kubeconfig is written | `a_full_disk_changes_nothing` |\n\
| the manager is killed with SIGKILL, at any moment | `a_manager_that_is_killed_at_any_moment_leaves_nothing_that_stops_the_next` |\n\
| sessions that a killed manager leaves | `the_next_manager_ends_the_sessions_of_a_killed_one` |\n\
| the lock on the kubeconfig that a killed manager leaves | `a_lock_that_a_killed_manager_held_is_taken_over_and_that_of_another_program_is_not` |\n\
| credentials expire and cannot be renewed for a while | `open_connections_outlive_credentials_and_everything_works_when_there_are_new_ones` |\n\
| the WebSocket is lost while the real `kubectl get -w` runs | `kubectl_watches_through_lost_websockets_and_lost_messages` |\n";

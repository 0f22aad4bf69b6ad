//! The audit file: a line of JSON for each connection that is opened or closed, with who opened it and what carried it.
//!
//! The session that a line names is the one that CloudTrail has as `sessionId`, which joins what a program of this machine did
//! with what AWS has seen.
//!
//! Invariants: evidence holds up no connection, and nothing that is wrong with its file does; what could not be written is
//! counted, and the count is the first line that can be. No line has an argument or a byte of what was carried.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::{task::JoinHandle, time::timeout};
use tracing::warn;

use super::{Event, Listener, ManagerError};
use crate::{
    clock,
    route::PipeEnd,
    tunnel::{Audit, Client, Closed, Opened, Programs, Record, Records},
    util::{
        folder::{Missing, Place},
        rotated::Rotated,
        written::rfc3339_millis,
    },
};

/// Size at which a new file is begun, in bytes: some 30,000 connections.
const MAX_LEN: u64 = 16 << 20;

/// How many older files are kept.
const KEPT: u32 = 4;

/// Records that may wait before programs are no longer looked for, which may take some milliseconds for each.
const HASTE: usize = 256;

/// How long the last lines may take.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The audit file of a manager.
pub(super) struct AuditFile {
    audit: Audit,
    path: PathBuf,
    writing: JoinHandle<()>,
}

impl AuditFile {
    /// Opens the file and writes its first line, so that what is wrong with it is known at once.
    ///
    /// # Errors
    /// [`ManagerError::Audit`].
    pub(super) fn begin(path: &Path, manager: &str, run: &str, listener: &Listener) -> Result<Self, ManagerError> {
        let failed = |source| ManagerError::Audit { path: path.to_owned(), source };
        let place = Place::behind(path, Missing::Make).map_err(failed)?;
        let path = place.path();
        let file = Rotated::open(place, MAX_LEN, KEPT).map_err(failed)?;
        let (audit, records) = Audit::new();
        let mut writer = Writer {
            file,
            path: path.clone(),
            manager: manager.to_owned(),
            run: run.to_owned(),
            listener: listener.clone(),
            missing: 0,
            fails: false,
        };
        writer.add(now(), &What::Started { pid: std::process::id() }).map_err(failed)?;
        let writing = tokio::task::spawn_blocking(move || writer.run(records));
        Ok(Self { audit, path, writing })
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what is left.
    pub(super) async fn end(self) {
        let ended = async {
            self.audit.end().await;
            self.writing.await
        };
        if !matches!(timeout(END_LIMIT, ended).await, Ok(Ok(()))) {
            warn!("the last lines of the audit file were not written in time");
        }
    }
}

/// Writes the file, in a thread of its own.
struct Writer {
    file: Rotated,
    path: PathBuf,
    manager: String,
    run: String,
    listener: Listener,
    /// Records of which there is no line, since the last one.
    missing: u64,
    /// Lines cannot be written.
    fails: bool,
}

/// A line. Every line has all that is common, and all that its event has: what is not known is `null`.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    manager: &'a str,
    /// Tells this run of the manager from others: connections are numbered for each.
    run: &'a str,
    #[serde(flatten)]
    what: &'a What<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum What<'a> {
    Started {
        pid: u32,
    },
    Opened {
        connection: u64,
        tunnel: &'a str,
        endpoint: String,
        region: &'a str,
        account: &'a str,
        port: u16,
        /// Where the program has connected from.
        from: Option<String>,
        by_proxy: bool,
        user: Option<u32>,
        pid: Option<u32>,
        program: Option<&'a str>,
        executable: Option<String>,
    },
    Closed {
        connection: u64,
        tunnel: &'a str,
        /// What carried it: a target of Systems Manager, or the label of another route.
        bastion: Option<&'a str>,
        session: Option<&'a str>,
        bytes_sent: u64,
        bytes_received: u64,
        seconds: f64,
        end: &'static str,
    },
    /// Records of which there is no line.
    Missing {
        records: u64,
    },
    Stopped,
}

impl Writer {
    fn run(mut self, mut records: Records) {
        let programs = Programs::default();
        while let Some(record) = records.wait() {
            let lost = records.lost();
            self.missing += lost;
            let in_haste = records.waiting() > HASTE;
            self.take(&record, |ends| if in_haste { Client::default() } else { programs.client(ends) });
        }
        self.missing += records.lost();
        self.write(now(), &What::Stopped);
    }

    fn take(&mut self, record: &Record, client: impl FnOnce(crate::route::Ends) -> Client) {
        match record {
            Record::Opened(Opened { number, at, to, port, ends, by_proxy }) => {
                let Client { user, process } = ends.map(client).unwrap_or_default();
                self.write(
                    *at,
                    &What::Opened {
                        connection: *number,
                        tunnel: to.name(),
                        endpoint: to.endpoint().to_string(),
                        region: to.region(),
                        account: to.account(),
                        port: *port,
                        from: ends.map(|ends| ends.peer.to_string()),
                        by_proxy: *by_proxy,
                        user,
                        pid: process.as_ref().map(|process| process.pid),
                        program: process.as_ref().map(|process| &*process.command),
                        executable: process
                            .as_ref()
                            .and_then(|process| Some(process.executable.as_ref()?.to_string_lossy().into_owned())),
                    },
                );
            }
            Record::Closed(Closed { number, at, to, lasted, carried }) => self.write(
                *at,
                &What::Closed {
                    connection: *number,
                    tunnel: to.name(),
                    bastion: carried.link.as_ref().map(|link| &*link.route),
                    session: carried.link.as_ref().and_then(|link| link.id.as_deref()),
                    bytes_sent: carried.bytes_sent,
                    bytes_received: carried.bytes_received,
                    seconds: (lasted.as_secs_f64() * 1e3).round() / 1e3,
                    end: match carried.reset {
                        None => "closed",
                        Some(PipeEnd::Refused) => "refused",
                        Some(PipeEnd::Lost) => "reset",
                    },
                },
            ),
        }
    }

    /// Writes a line, and one before it if others are missing there.
    fn write(&mut self, at: SystemTime, what: &What<'_>) {
        let missing = self.missing;
        let outcome = match missing {
            0 => Ok(()),
            records => self.add(at, &What::Missing { records }),
        };
        match outcome.and_then(|()| {
            self.missing = 0;
            self.add(at, what)
        }) {
            Ok(()) => self.fails = false,
            Err(error) => {
                self.missing += 1;
                if !std::mem::replace(&mut self.fails, true) {
                    let path = self.path.display();
                    warn!(%error, path = %path, "the audit file cannot be written: connections go on, and lines of theirs are missing");
                    self.listener.tell(Event::Notice(format!(
                        "the audit file `{path}` cannot be written ({error}): connections go on, and lines of theirs are missing"
                    )));
                }
            }
        }
    }

    fn add(&mut self, at: SystemTime, what: &What<'_>) -> std::io::Result<()> {
        let line = Line { at: rfc3339_millis(at), manager: &self.manager, run: &self.run, what };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.file.add(&text)
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + clock::wall()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;

    fn lines(path: &Path) -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn begins_and_ends_with_a_line_of_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/audit.jsonl");
        let file = AuditFile::begin(&path, "default", "abc", &Listener::kept().0).unwrap();
        assert_eq!(file.path(), path);
        file.end().await;
        let lines = lines(&path);
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["started", "stopped"]);
        assert_eq!((&lines[0]["manager"], &lines[0]["run"]), (&"default".into(), &"abc".into()));
        assert_eq!(lines[0]["at"].as_str().unwrap().len(), "2026-11-29T14:20:13.123Z".len());
    }

    #[test]
    fn a_file_that_is_none_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = AuditFile::begin(dir.path(), "default", "abc", &Listener::kept().0) else {
            panic!("a folder")
        };
        let said = error.sentence();
        assert!(said.contains(&format!("{}", dir.path().display())), "{said}");
    }

    #[test]
    fn a_full_disk_is_told_once_and_what_is_missing_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let place = Place::behind(&path, Missing::Make).unwrap();
        let (listener, kept) = Listener::kept();
        let file = Rotated::open(place, MAX_LEN, KEPT).unwrap();
        let mut writer = Writer {
            file,
            path: path.clone(),
            manager: "default".to_owned(),
            run: "abc".to_owned(),
            listener,
            missing: 2,
            fails: false,
        };
        // The device that is always full is written in its place.
        writer.file.stand_in(fs::OpenOptions::new().append(true).open("/dev/full").unwrap());
        for _ in 0..3 {
            writer.write(now(), &What::Stopped);
        }
        assert_eq!(kept.lock().unwrap().len(), 1);
        assert_eq!(writer.missing, 5);
        writer.file.stand_in(fs::OpenOptions::new().append(true).open(&path).unwrap());
        writer.write(now(), &What::Stopped);
        let lines = lines(&path);
        assert_eq!((&lines[0]["event"], &lines[0]["records"]), (&"missing".into(), &5.into()));
        assert_eq!((lines.len(), &lines[1]["event"]), (2, &"stopped".into()));
    }
}

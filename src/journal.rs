//! The journal of live sessions: what the next manager has to end if this one is killed.
//!
//! It is the file `sessions` in the manager's directory, for its owner only, with one JSON object per line: a line
//! for each session that was started, and one for each that is known to be over.
//!
//! ```text
//! {"version":1,"event":"started","session":"ann-0123","account":"123456789012","region":"us-east-1","target":"i-0dc03fbcae2a87472","at":1795317508}
//! {"version":1,"event":"ended","session":"ann-0123"}
//! ```
//!
//! `at` counts seconds since the Unix epoch. Fields that are not known are ignored; `account` may be missing.
//!
//! Invariants:
//!
//! * A session that somebody may be connected to is in the file, at whatever moment the process is killed.
//! * A line that cannot be read, torn or of another version, takes no other with it.
//! * The file does not grow for ever: it is written anew when most of it is about sessions that are over.
//! * It holds no secret. Session ids are in CloudTrail, and whoever knows one can do nothing with it.
//!
//! The caller holds the manager's lock, so there is one writer. Nothing is synced to the disk: this is for processes
//! that are killed. When the whole machine goes down, the service ends the sessions after their idle timeout.
//!
//! Leaves out how sessions are ended, and a session whose StartSession was answered to a process that was gone by then:
//! nobody can name it, and nobody has ever connected to it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::{task::spawn_blocking, time::timeout};

use crate::util::{
    folder::{Folder, Place},
    replace::{Temporary, sweep},
};

/// The version of the format. Another one means that old fields have changed their meaning.
const VERSION: u32 = 1;

/// Lines about sessions that are over which are kept at least, so that few changes write the file anew.
const SPARE_LINES: usize = 256;

/// How long a session waits for its line: a disk that hangs is no reason not to have one.
const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// Most that is read of a file, in bytes: tens of thousands of sessions.
const MAX_LEN: u64 = 8 << 20;

/// A session that has been started and is not known to be over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The session's id.
    pub session: String,
    /// The account that it is of, twelve digits, if that is known.
    pub account: Option<String>,
    /// Its region.
    pub region: String,
    /// The target that it was started on.
    pub target: String,
    /// When it was started, in seconds since the Unix epoch.
    pub started: u64,
}

/// Writes the journal. Cheap to clone; all clones write one file.
#[derive(Debug, Clone)]
pub struct Journal {
    writer: Arc<Mutex<Writer>>,
}

impl Journal {
    /// Opens the journal in a manager's directory, and returns the sessions that the last manager has left in it.
    /// They stay there until they are struck off.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(folder: &Folder) -> io::Result<(Self, Vec<Entry>)> {
        let place = folder.place("sessions");
        let live = live(&read(&place)?);
        let orphans = live.values().cloned().collect();
        let writer =
            Writer { file: replace(&place, &live)?, place, lines: live.len(), live, torn: false, fails: false };
        Ok((Self { writer: Arc::new(Mutex::new(writer)) }, orphans))
    }

    /// Writes down a session. A failure is a warning in the log.
    ///
    /// # Cancel safety
    /// The line is written even if nobody waits for it.
    pub async fn started(&self, entry: Entry) {
        self.change(move |writer| writer.started(entry)).await;
    }

    /// Strikes off a session that is over. A failure is a warning in the log.
    ///
    /// # Cancel safety
    /// The line is written even if nobody waits for it.
    pub async fn ended(&self, session: &str) {
        let session = session.to_owned();
        self.change(move |writer| writer.ended(&session)).await;
    }

    async fn change(&self, change: impl FnOnce(&mut Writer) -> io::Result<()> + Send + 'static) {
        let writer = Arc::clone(&self.writer);
        let changed = spawn_blocking(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let outcome = change(&mut writer);
            let failed_before = std::mem::replace(&mut writer.fails, outcome.is_err());
            if let Err(error) = outcome
                && !failed_before
            {
                tracing::warn!(
                    path = %writer.place.path().display(), %error,
                    "cannot write down which sessions are live: if this process is killed, they end when they have been idle"
                );
            }
        });
        if timeout(WRITE_LIMIT, changed).await.is_err() {
            tracing::warn!("writing down which sessions are live takes long: not waiting for it");
        }
    }
}

#[derive(Debug)]
struct Writer {
    place: Place,
    /// Appends.
    file: File,
    live: BTreeMap<String, Entry>,
    /// How many lines the file has.
    lines: usize,
    /// The last line may be incomplete.
    torn: bool,
    /// The last change failed.
    fails: bool,
}

impl Writer {
    fn started(&mut self, entry: Entry) -> io::Result<()> {
        let line = Line::started(&entry).encode();
        self.live.insert(entry.session.clone(), entry);
        self.append(&line)
    }

    fn ended(&mut self, session: &str) -> io::Result<()> {
        if self.live.remove(session).is_none() {
            return Ok(());
        }
        if self.live.is_empty() {
            self.file.set_len(0)?;
            (self.lines, self.torn) = (0, false);
            return Ok(());
        }
        if self.lines >= SPARE_LINES + 2 * self.live.len() {
            self.file = replace(&self.place, &self.live)?;
            (self.lines, self.torn) = (self.live.len(), false);
            return Ok(());
        }
        self.append(&Line::Ended { session }.encode())
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        let text = if self.torn { format!("\n{line}") } else { line.to_owned() };
        self.torn = true;
        self.file.write_all(text.as_bytes())?;
        self.torn = false;
        self.lines += 1;
        Ok(())
    }
}

/// What a line says, beside its version.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Line<'a> {
    Started {
        session: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        account: Option<&'a str>,
        region: &'a str,
        target: &'a str,
        at: u64,
    },
    Ended {
        session: &'a str,
    },
}

impl<'a> Line<'a> {
    fn started(entry: &'a Entry) -> Self {
        let Entry { session, account, region, target, started } = entry;
        Self::Started { session, account: account.as_deref(), region, target, at: *started }
    }

    fn encode(&self) -> String {
        #[derive(Serialize)]
        struct Versioned<'a> {
            version: u32,
            #[serde(flatten)]
            line: &'a Line<'a>,
        }
        let line = Versioned { version: VERSION, line: self };
        let mut text = serde_json::to_string(&line).expect("strings and numbers are always JSON");
        text.push('\n');
        text
    }
}

/// Returns the sessions that a journal says are live.
fn live(text: &str) -> BTreeMap<String, Entry> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        event: String,
        session: String,
    }
    #[derive(Deserialize)]
    struct Rest {
        account: Option<String>,
        region: String,
        target: String,
        at: u64,
    }
    let mut live = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let head = serde_json::from_str(line).ok().filter(|head: &Head| head.version == VERSION);
        match head.as_ref().map(|head| head.event.as_str()) {
            Some("started") => {
                if let (Some(Head { session, .. }), Ok(Rest { account, region, target, at })) =
                    (head, serde_json::from_str(line))
                {
                    live.insert(session.clone(), Entry { session, account, region, target, started: at });
                }
            }
            Some("ended") => drop(head.and_then(|head| live.remove(&head.session))),
            _ => tracing::debug!(line, "a line of the journal of sessions cannot be read"),
        }
    }
    live
}

/// Reads a journal; one that is missing is empty.
fn read(place: &Place) -> io::Result<String> {
    let file = match place.open(OFlags::RDONLY) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_LEN).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a journal anew, so that there is either the old or the new one at every moment, and opens it for appending.
fn replace(place: &Place, live: &BTreeMap<String, Entry>) -> io::Result<File> {
    sweep(place.folder());
    let mut new = Temporary::make(place.folder())?;
    for entry in live.values() {
        new.file.write_all(Line::started(entry).encode().as_bytes())?;
    }
    new.rename_to(place)?;
    place.append()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    fn open(dir: &Path) -> io::Result<(Journal, Vec<Entry>)> {
        Journal::open(&Folder::open(dir)?)
    }

    fn entry(session: &str) -> Entry {
        Entry {
            session: session.to_owned(),
            account: Some("123456789012".to_owned()),
            region: "us-east-1".to_owned(),
            target: "i-0dc03fbcae2a87472".to_owned(),
            started: 1_795_317_508,
        }
    }

    fn text(dir: &Path) -> String {
        fs::read_to_string(dir.join("sessions")).unwrap()
    }

    fn left(dir: &Path) -> Vec<String> {
        let (_, orphans) = open(dir).unwrap();
        orphans.into_iter().map(|entry| entry.session).collect()
    }

    #[tokio::test]
    async fn the_format_is_what_the_documentation_says() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, orphans) = open(dir.path()).unwrap();
        assert_eq!((orphans.len(), text(dir.path()).as_str()), (0, ""));
        journal.started(entry("ann-0123")).await;
        journal.started(entry("ann-4567")).await;
        journal.ended("ann-0123").await;
        journal.ended("never-heard-of").await;
        assert_eq!(
            text(dir.path()),
            r#"{"version":1,"event":"started","session":"ann-0123","account":"123456789012","region":"us-east-1","target":"i-0dc03fbcae2a87472","at":1795317508}
{"version":1,"event":"started","session":"ann-4567","account":"123456789012","region":"us-east-1","target":"i-0dc03fbcae2a87472","at":1795317508}
{"version":1,"event":"ended","session":"ann-0123"}
"#
        );
        assert_eq!(fs::metadata(dir.path().join("sessions")).unwrap().permissions().mode() & 0o777, 0o600);
        let (_, orphans) = open(dir.path()).unwrap();
        assert_eq!(orphans, [entry("ann-4567")]);
        assert_eq!(text(dir.path()).lines().count(), 1, "what is over is not written again");
    }

    #[tokio::test]
    async fn an_account_that_is_not_known_is_left_out_and_one_that_is_missing_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = Entry { account: None, ..entry("a") };
        open(dir.path()).unwrap().0.started(unknown.clone()).await;
        assert!(!text(dir.path()).contains("account"), "{}", text(dir.path()));
        assert_eq!(open(dir.path()).unwrap().1, [unknown]);
    }

    #[tokio::test]
    async fn when_no_session_is_live_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path()).unwrap();
        for session in ["a", "b"] {
            journal.started(entry(session)).await;
        }
        journal.ended("a").await;
        journal.ended("b").await;
        assert_eq!(text(dir.path()), "");
        journal.started(entry("c")).await;
        assert_eq!(left(dir.path()), ["c"]);
    }

    #[tokio::test]
    async fn orphans_stay_until_they_are_struck_off() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap().0.started(entry("old")).await;
        let (journal, _) = open(dir.path()).unwrap();
        journal.started(entry("new")).await;
        assert_eq!(left(dir.path()), ["new", "old"]);
        open(dir.path()).unwrap().0.ended("old").await;
        assert_eq!(left(dir.path()), ["new"]);
    }

    #[tokio::test]
    async fn torn_and_unknown_lines_take_no_other_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let started = |session: &str| Line::started(&entry(session)).encode();
        let whole = [started("a"), started("b"), started("c")].concat();
        let b = whole.find("\"b\"").unwrap();
        // However much of the last line there is, the lines before count.
        for len in 0..=whole.len() {
            fs::write(dir.path().join("sessions"), &whole[..len]).unwrap();
            let sessions = left(dir.path());
            assert_eq!(sessions, ["a", "b", "c"][..sessions.len()]);
            assert_eq!(sessions.len(), whole[..len].lines().filter(|line| line.ends_with('}')).count());
        }
        let junk = [
            &whole[..b],
            "\n\0\u{fffd}garbage\n[]\n{}\n{\"version\":2,\"event\":\"ended\",\"session\":\"a\"}\n",
            "{\"version\":1,\"event\":\"moved\",\"session\":\"a\"}\n",
            "{\"version\":1,\"event\":\"started\",\"session\":\"d\"}\n",
            &started("c"),
        ];
        fs::write(dir.path().join("sessions"), junk.concat()).unwrap();
        assert_eq!(left(dir.path()), ["a", "c"]);
        fs::write(dir.path().join("sessions"), b"\xff\xfe\n").unwrap();
        assert_eq!(left(dir.path()), [""; 0]);
    }

    #[tokio::test]
    async fn a_line_behind_a_torn_one_is_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path()).unwrap();
        journal.started(entry("a")).await;
        {
            let mut writer = journal.writer.lock().unwrap();
            writer.file.write_all(b"{\"version\":1,\"eve").unwrap();
            writer.torn = true;
        }
        journal.started(entry("b")).await;
        assert_eq!(left(dir.path()), ["a", "b"]);
    }

    #[tokio::test]
    async fn does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path()).unwrap();
        journal.started(entry("for-long")).await;
        for number in 0..1000 {
            journal.started(entry(&number.to_string())).await;
            journal.ended(&number.to_string()).await;
            assert!(text(dir.path()).lines().count() <= SPARE_LINES + 4);
        }
        assert_eq!(left(dir.path()), ["for-long"]);
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".autoheal-pa.0.tmp"), "half a li").unwrap();
        open(dir.path()).unwrap().0.started(entry("a")).await;
        assert_eq!(left(dir.path()), ["a"]);
        assert!(!dir.path().join(".autoheal-pa.0.tmp").exists());
        fs::remove_file(dir.path().join("sessions")).unwrap();
        fs::create_dir(dir.path().join("sessions")).unwrap();
        assert!(open(dir.path()).is_err());
    }
}

//! `status --watch` on a terminal, looked at through tmux.

use std::{io::Write as _, path::PathBuf, time::Duration};

use autoheal_pa::emulator::{ClusterConfig, Config};
use tokio::process::Command;

use super::support::{DEADLINE, Lab, PROGRAM, on_path, within};

/// tmux, if there is one. In the gate there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
fn tmux() -> Option<PathBuf> {
    let found = on_path("tmux");
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_TMUX").is_some();
    assert!(found.is_some() || !required, "tmux is not on the PATH");
    if found.is_none() {
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(std::io::stderr(), "SKIPPED: there is no tmux to look at a terminal through");
    }
    found
}

/// A terminal of 80 columns with a shell, which ends with the test.
struct Terminal<'a> {
    lab: &'a Lab,
    tmux: PathBuf,
}

impl<'a> Terminal<'a> {
    /// Starts one whose shell has these variables besides those that lead to the manager.
    async fn start(lab: &'a Lab, tmux: PathBuf, variables: &[(&str, &str)]) -> Self {
        let terminal = Self { lab, tmux };
        let mut start = terminal.command();
        start.env("LC_ALL", "C.UTF-8").envs(variables.iter().copied());
        start.args(["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        let started = within("a terminal", start.output()).await.unwrap();
        assert!(started.status.success(), "{started:?}");
        terminal.tmux(&["set-option", "-s", "set-clipboard", "on"]).await;
        terminal
    }

    fn command(&self) -> Command {
        let mut command = self.lab.bare_command(&self.tmux);
        command.arg("-u").arg("-S").arg(self.lab.path("tmux"));
        command
    }

    async fn tmux(&self, args: &[&str]) -> String {
        let output = within("tmux", self.command().args(args).output()).await.unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat()).await;
    }

    async fn run(&self, line: &str) {
        self.press(&[line, "Enter"]).await;
    }

    async fn picture(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).await
    }

    /// Waits for a picture with this text, and returns it.
    #[track_caller]
    fn shows<'b>(&'b self, text: &'b str) -> impl Future<Output = String> + 'b {
        let place = std::panic::Location::caller();
        async move {
            let mut last = String::new();
            let awaited = async {
                loop {
                    last = self.picture().await;
                    if last.contains(text) {
                        break;
                    }
                    // tmux says nothing when a picture changes.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let shown = tokio::time::timeout(DEADLINE, awaited).await;
            assert!(shown.is_ok(), "{place}: waited in vain for {text}:\n{last}");
            last
        }
    }

    /// What the terminal is set to. What is typed may be shown before the prompt, so the file is what is waited for.
    async fn settings(&self, name: &str) -> String {
        let file = self.lab.path(name);
        self.run(&format!("stty -g > {0}.part; mv {0}.part {0}", file.display())).await;
        let read = async {
            loop {
                if let Ok(settings) = std::fs::read_to_string(&file) {
                    return settings;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        within("the terminal's settings", read).await
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let socket = self.lab.path("tmux");
        let mut command = std::process::Command::new(&self.tmux);
        let _ended = command.arg("-S").arg(socket).arg("kill-server").output();
    }
}

async fn lab() -> Lab {
    let clusters = ["payments", "search"].map(ClusterConfig::new).to_vec();
    Lab::start(Config { clusters, ..Config::default() }).await
}

/// Replaces what differs from run to run.
fn steady(picture: &str) -> String {
    let mut lines = String::new();
    for line in picture.lines() {
        let mut last = ' ';
        let mut steady = String::new();
        let line = match line {
            line if line.starts_with("session ") => "session [ID]",
            line if line.starts_with("arn:") => "[IDENTITY]",
            line => line,
        };
        for letter in line.chars() {
            let letter = if letter.is_ascii_digit() { '#' } else { letter };
            if !(matches!(letter, '#' | ' ') && letter == last || ('▁'..='█').contains(&letter)) {
                steady.push(letter);
                last = letter;
            }
        }
        // It may be a slow machine.
        lines.push_str(&steady.trim_end().replace("# min", "# s"));
        lines.push('\n');
    }
    lines.trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_the_tunnels_and_what_happens() {
    let Some(tmux) = tmux() else { return };
    let lab = lab().await;
    let up = lab.up(&[]).await;
    let terminal = Terminal::start(&lab, tmux, &[]).await;
    let before = terminal.settings("before").await;
    terminal.run(&format!("{PROGRAM} status --watch; echo ended $?")).await;
    let picture = terminal.shows("B/s").await;
    insta::assert_snapshot!("tunnels", steady(&picture));

    terminal.press(&["Down"]).await;
    terminal.shows("> pa-search").await;
    terminal.press(&["c"]).await;
    terminal.shows("`pa-search` is in the clipboard").await;
    assert_eq!(terminal.tmux(&["show-buffer"]).await, "pa-search");
    terminal.press(&["d"]).await;
    let examined = terminal.shows("DOCTOR pa-search: no check has failed").await;
    assert!(examined.contains("API answers") || examined.contains("PgDn"), "{examined}");
    terminal.press(&["Escape"]).await;
    terminal.shows("EVENTS").await;

    lab.emulator.command(&autoheal_pa::emulator::Command::CutTransport);
    terminal.shows("resumed, open connections go on").await;

    // Smaller and larger.
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]).await;
    within("the new size", async { while terminal.picture().await.lines().count() < 30 {} }).await;
    terminal.shows("q quit").await;
    terminal.press(&["q"]).await;
    terminal.shows("ended 0").await;
    let after = terminal.settings("after").await;
    assert_eq!(after, before, "the terminal is as it was");
    assert!(!terminal.picture().await.contains("EVENTS"), "and so is what it shows");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_given_back_however_it_ends() {
    let Some(tmux) = tmux() else { return };
    let lab = lab().await;
    let up = lab.up(&[]).await;
    let terminal = Terminal::start(&lab, tmux, &[]).await;
    // Job control is on in shells that are talked to.
    let before = terminal.settings("before").await;
    let program = PathBuf::from(PROGRAM);
    let watch = format!("{} status --watch", program.display());

    terminal.run(&format!("{watch}; echo ended $?")).await;
    terminal.shows("EVENTS").await;
    terminal.press(&["C-c"]).await;
    terminal.shows("ended 0").await;
    assert_eq!(terminal.settings("interrupted").await, before);

    // Stopped, and on again.
    let pid = lab.path("pid");
    terminal.run(&format!("sh -c 'echo $$ > {}; exec {watch}'", pid.display())).await;
    terminal.shows("EVENTS").await;
    terminal.press(&["C-z"]).await;
    terminal.shows("Stopped").await;
    assert_eq!(terminal.settings("stopped").await, before);
    terminal.run("fg").await;
    terminal.shows("EVENTS").await;
    terminal.press(&["j"]).await;
    terminal.shows("> pa-search").await;

    // Killed in good order from elsewhere.
    let pid = std::fs::read_to_string(pid).unwrap();
    let screen = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(screen, rustix::process::Signal::TERM).unwrap();
    // Until then keys may be its own.
    let process = PathBuf::from(format!("/proc/{}", pid.trim()));
    within("the end of the process", async {
        while process.exists() {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert_eq!(terminal.settings("terminated").await, before);

    // And with the manager's end.
    terminal.run(&watch).await;
    terminal.shows("EVENTS").await;
    up.stop().await.assert_success();
    terminal.shows("the manager `default` has stopped").await;
    assert_eq!(terminal.settings("ended").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_colours_and_on_terminals_that_can_do_nothing() {
    let Some(tmux) = tmux() else { return };
    let lab = lab().await;
    let up = lab.up(&[]).await;
    let terminal = Terminal::start(&lab, tmux.clone(), &[("NO_COLOR", "1")]).await;
    terminal.run(&format!("{PROGRAM} status --watch; echo ended $?")).await;
    terminal.shows("EVENTS").await;
    let picture = terminal.tmux(&["capture-pane", "-p", "-e"]).await;
    assert!(!picture.contains("\x1b[3") && picture.contains("> pa-payments"), "{picture:?}");
    terminal.press(&["q"]).await;
    terminal.shows("ended 0").await;
    // The plain form, one below the other.
    terminal.run(&format!("clear; TERM=dumb {PROGRAM} status --watch")).await;
    let plain = terminal.shows("RECEIVED").await;
    assert!(plain.contains("kubeconfig") && !plain.contains("EVENTS"), "{plain}");
    terminal.press(&["C-c"]).await;
    // And where nobody can press a key.
    terminal.run(&format!("clear; {PROGRAM} status --watch < /dev/null")).await;
    let plain = terminal.shows("RECEIVED").await;
    assert!(!plain.contains("EVENTS"), "{plain}");
    terminal.press(&["C-c"]).await;
    up.stop().await.assert_success();
}

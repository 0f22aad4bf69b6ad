//! A runner of GitHub Actions as far as steps see it: their variables, the files by which they tell it things, and the commands
//! that they print.
//!
//! Follows actions/runner 2.336: `NodeScriptActionHandler.cs`, `ActionCommandManager.cs`, `FileCommandManager.cs`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{
    super::support::{Background, Ended, Lab, Running, path_variable},
    tool,
};

/// Where the action is.
pub(super) fn action() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/actions/autoheal-pa")
}

type Variables = BTreeMap<String, String>;

/// One job of a workflow.
pub(super) struct Job<'a> {
    lab: &'a Lab,
    node: PathBuf,
    pub(super) folder: PathBuf,
    /// What every step gets, with what steps have set for later ones.
    pub(super) variables: Variables,
    /// What steps have put on the PATH, the latest first.
    path: Vec<PathBuf>,
    /// What the uses of the action have handed to their post steps.
    uses: Vec<Variables>,
    /// Their managers, which are killed if a test ends before them.
    managers: Vec<Background>,
}

/// What a step has done.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) ended: Ended,
    pub(super) outputs: Variables,
    /// `error` and the like, with their texts.
    pub(super) annotations: Vec<(String, String)>,
    /// What the runner keeps out of the log.
    pub(super) masks: Vec<String>,
}

impl Step {
    #[track_caller]
    pub(super) fn assert_success(&self) {
        assert!(self.ended.status.success() && self.annotations.is_empty(), "{self:#?}");
    }

    /// The only annotation of a step that has failed.
    #[track_caller]
    pub(super) fn error(&self) -> &str {
        assert!(!self.ended.status.success(), "{self:#?}");
        let [(kind, text)] = &self.annotations[..] else { panic!("{self:#?}") };
        assert_eq!(kind, "error", "{self:#?}");
        text
    }
}

impl<'a> Job<'a> {
    /// A job in a lab, if there is the Node.js of the runners.
    pub(super) fn start(lab: &'a Lab) -> Option<Self> {
        let node = tool("node24")?;
        let folder = lab.path("runner");
        let mut variables: Variables = lab.emulator.environment().into_iter().collect();
        // As in a job with `id-token: write`, which has no file with a token.
        variables.retain(|name, _| {
            !["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AUTOHEAL_PA_BASTION"].contains(&&**name)
        });
        variables.extend(lab.emulator.ci_environment());
        for (name, value) in [
            ("CI", "true"),
            ("GITHUB_ACTIONS", "true"),
            ("GITHUB_API_URL", "http://127.0.0.1:9/api"),
            ("GITHUB_REPOSITORY", "example/shop"),
            ("GITHUB_RUN_ID", "6120349"),
            ("GITHUB_SERVER_URL", "http://127.0.0.1:9"),
        ] {
            variables.insert(name.to_owned(), value.to_owned());
        }
        for (name, place) in
            [("GITHUB_WORKSPACE", "workspace"), ("RUNNER_TEMP", "temp"), ("RUNNER_TOOL_CACHE", "tools")]
        {
            fs::create_dir_all(folder.join(place)).unwrap();
            variables.insert(name.to_owned(), folder.join(place).display().to_string());
        }
        Some(Self { lab, node, folder, variables, path: Vec::new(), uses: Vec::new(), managers: Vec::new() })
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.lab.bare_command(program);
        let system = path_variable();
        let path = std::env::join_paths(self.path.iter().cloned().chain(std::env::split_paths(&system))).unwrap();
        command.env("PATH", path).envs(&self.variables).current_dir(self.folder.join("workspace"));
        command
    }

    /// A step with `run`, in the shell that GitHub takes for it.
    pub(super) async fn run(&mut self, script: &str) -> Step {
        let mut command = self.command("bash");
        command.args(["--noprofile", "--norc", "-eo", "pipefail", "-c", script]);
        self.see_through(command).await.0
    }

    /// The step with the action, that nobody has waited for yet.
    pub(super) fn start_action(&self, inputs: &[(&str, &str)]) -> Command {
        let mut command = self.command(&self.node);
        command.arg(action().join("main.mjs"));
        // All of them are set, those that are not given as empty texts.
        let manifest = fs::read_to_string(action().join("action.yml")).unwrap();
        let manifest: serde_yaml::Value = serde_yaml::from_str(&manifest).unwrap();
        let known: Vec<_> =
            manifest["inputs"].as_mapping().unwrap().keys().map(|name| name.as_str().unwrap()).collect();
        for (name, _) in inputs {
            assert!(known.contains(name), "the action has no input `{name}`");
        }
        for name in known {
            let given = inputs.iter().find(|(other, _)| *other == name);
            command.env(format!("INPUT_{}", name.to_uppercase()), given.map_or("", |(_, value)| value));
        }
        // What only actions get.
        command.env("ACTIONS_RUNTIME_TOKEN", "of-the-runtime").env("ACTIONS_RUNTIME_URL", "http://127.0.0.1:9/");
        command
    }

    /// A step with `uses` and this action.
    pub(super) async fn uses(&mut self, inputs: &[(&str, &str)]) -> Step {
        let command = self.start_action(inputs);
        let (step, state) = self.see_through(command).await;
        self.uses.push(state);
        if let Some(name) = step.outputs.get("name") {
            self.managers.push(self.lab.background(name));
        }
        step
    }

    /// The post steps, the last first, however the other steps have ended.
    pub(super) async fn end(mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(state) = self.uses.pop() {
            let mut command = self.command(&self.node);
            command.arg(action().join("post.mjs"));
            command.envs(state.into_iter().map(|(name, value)| (format!("STATE_{name}"), value)));
            steps.push(self.see_through(command).await.0);
        }
        steps
    }

    /// Runs a step to its end, and does what it asks for.
    async fn see_through(&mut self, mut command: Command) -> (Step, Variables) {
        for (name, file) in FILES {
            fs::write(self.folder.join(file), "").unwrap();
            command.env(name, self.folder.join(file));
        }
        let ended = Running::start(&mut command).ended().await;
        let read = |file| fs::read_to_string(self.folder.join(file)).unwrap();
        let (set, outputs, state) =
            (assignments(&read("env")), assignments(&read("output")), assignments(&read("state")));
        let folders = read("path");
        self.variables.extend(set);
        for folder in folders.lines() {
            self.path.insert(0, folder.into());
        }
        let (annotations, masks) = obeyed(&ended.stdout);
        (Step { ended, outputs, annotations, masks }, state)
    }
}

/// The files by which a step tells the runner things.
const FILES: [(&str, &str); 4] =
    [("GITHUB_ENV", "env"), ("GITHUB_OUTPUT", "output"), ("GITHUB_PATH", "path"), ("GITHUB_STATE", "state")];

/// Reads `NAME=VALUE` and `NAME<<END`.
fn assignments(text: &str) -> Variables {
    let mut found = Variables::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let heredoc = line.split_once("<<").filter(|(name, _)| !name.contains('='));
        if let Some((name, end)) = heredoc {
            let value: Vec<_> = lines.by_ref().take_while(|line| *line != end).collect();
            found.insert(name.to_owned(), value.join("\n"));
        } else {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    found
}

/// The commands that the runner takes out of what is printed: annotations, and what is to be kept out of the log.
fn obeyed(stdout: &str) -> (Vec<(String, String)>, Vec<String>) {
    let (mut annotations, mut masks) = (Vec::new(), Vec::new());
    let mut stopped: Option<String> = None;
    for line in stdout.lines() {
        let Some((words, data)) = line.trim_start().strip_prefix("::").and_then(|rest| rest.split_once("::")) else {
            assert!(stopped.is_some() || !line.contains("##["), "{line}");
            continue;
        };
        if let Some(token) = &stopped {
            if words == token {
                stopped = None;
            }
            continue;
        }
        let data = data.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%");
        match words.split(' ').next().unwrap_or_default() {
            "stop-commands" => stopped = Some(data),
            "add-mask" => masks.push(data),
            "group" | "endgroup" => {}
            kind @ ("error" | "warning" | "notice") => annotations.push((kind.to_owned(), data)),
            other => panic!("the runner knows no command `{other}`: {line}"),
        }
    }
    assert_eq!(stopped, None, "nothing that follows would be obeyed");
    (annotations, masks)
}

#[test]
fn commands_are_obeyed_as_by_the_runner() {
    let printed =
        "::error title=x::a%0Ab%25\n::stop-commands::t\n::warning::not this\n::t::\n::add-mask::s\n::group::x\n";
    let (annotations, masks) = obeyed(printed);
    assert_eq!(annotations, [("error".to_owned(), "a\nb%".to_owned())]);
    assert_eq!(masks, ["s"]);
    let set = assignments("A=b<<c\nD<<end\ne\n=f\nend\n");
    assert_eq!(
        set.into_iter().collect::<Vec<_>>(),
        [("A".to_owned(), "b<<c".to_owned()), ("D".to_owned(), "e\n=f".to_owned())]
    );
}

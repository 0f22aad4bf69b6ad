//! What other users of the same machine can do to this one: the program as one user, attacks by another, in a folder
//! for temporary files that both may write.
//!
//! Two users are two user ids: no accounts are needed, but root is, to become them. Elsewhere these tests say that they
//! were skipped; with `AUTOHEAL_PA_TEST_REQUIRES_ROOT` set, as in the gate, they fail.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use autoheal_pa::{
    emulator::{ClusterConfig, Config},
    kubeconfig::{self, KubeconfigError},
    util::folder::{Missing, Place},
};
use tempfile::TempDir;
use tokio::process::Command;

use super::support::{Ended, Lab, PROGRAM, Running, is_root, path_variable, within};

/// The user id of whom the program works for. Nobody has such ids.
const VICTIM: u32 = 64_001;

/// That of somebody else.
const ATTACKER: u32 = 64_002;

/// A folder for everybody's temporary files, and an emulated AWS.
struct Street {
    lab: Lab,
    /// As `/tmp`: whoever may write it, root owns it, and it is sticky.
    tmp: TempDir,
    /// The victim's own.
    home: PathBuf,
}

/// The program where every user may run it, which folders for builds need not allow.
fn program() -> &'static Path {
    static COPY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COPY.get_or_init(|| {
        let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let path = dir.path().join("autoheal-pa");
        fs::copy(PROGRAM, &path).unwrap();
        (dir, path)
    });
    path
}

impl Street {
    /// `None` where there cannot be two users.
    async fn start() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
        // The token of the emulated AWS is the victim's.
        for (_, value) in lab.emulator.environment().iter().filter(|(_, value)| value.starts_with('/')) {
            for path in [Path::new(value), Path::new(value).parent().unwrap()] {
                chown(path, Some(VICTIM), Some(VICTIM)).unwrap();
            }
        }
        let tmp = tempfile::tempdir().unwrap();
        fs::set_permissions(tmp.path(), Permissions::from_mode(0o1777)).unwrap();
        let home = tmp.path().join("home");
        fs::create_dir(&home).unwrap();
        chown(&home, Some(VICTIM), Some(VICTIM)).unwrap();
        fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
        let bashrc = home.join(".bashrc");
        fs::write(&bashrc, "# mine\n").unwrap();
        chown(&bashrc, Some(VICTIM), Some(VICTIM)).unwrap();
        Some(Self { lab, tmp, home })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// The folder of the victim's managers when there is no other place for it.
    fn managers(&self) -> PathBuf {
        self.path(&format!("autoheal-pa-{VICTIM}"))
    }

    /// The program as a user whose only place is the shared one.
    fn command_as(&self, uid: u32, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .env_clear()
            .envs(self.lab.emulator.environment())
            .env("PATH", path_variable())
            .env("TMPDIR", self.tmp.path())
            .current_dir(self.tmp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        command
    }

    async fn run_as(&self, uid: u32, args: &[&str]) -> Ended {
        Running::start(&mut self.command_as(uid, args)).ended().await
    }

    async fn run(&self, args: &[&str]) -> Ended {
        self.run_as(VICTIM, args).await
    }

    /// Has the attacker run a script in the shared folder.
    async fn attack(&self, script: &str) -> Output {
        let mut shell = Command::new("sh");
        let shell = shell.args(["-euc", script]).uid(ATTACKER).gid(ATTACKER).current_dir(self.tmp.path());
        let output = within("the attacker", shell.env("V", VICTIM.to_string()).output()).await.unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        output
    }

    /// Has the attacker try commands in the shared folder, each of which has to fail.
    async fn attack_in_vain(&self, commands: &[&str]) {
        for command in commands {
            self.attack(&format!("if {command}; then exit 1; fi")).await;
        }
    }

    fn bashrc(&self) -> String {
        fs::read_to_string(self.home.join(".bashrc")).unwrap()
    }
}

/// Everything that has to do with a manager.
const COMMANDS: [&[&str]; 10] = [
    &["up", "--base-port", "0"],
    &["up", "--detach", "--base-port", "0"],
    &["exec", "--", "true"],
    &["env"],
    &["status"],
    &["logs"],
    &["down"],
    &["reload"],
    &["doctor"],
    &["doctor", "--bastion", "i-0123456789abcdef0"],
];

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_user_has_made_first_is_not_used() {
    let Some(street) = Street::start().await else { return };
    let bashrc = street.home.join(".bashrc");
    let bashrc = bashrc.display();
    for (what, attack) in [
        ("the folder of all managers", "mkdir -p -m 777 autoheal-pa-$V/default".to_owned()),
        ("a link to a folder of the victim", "mkdir x; ln -s home autoheal-pa-$V".to_owned()),
        ("a link to a folder of the attacker", "mkdir -p x/default; ln -s x autoheal-pa-$V".to_owned()),
        (
            "links to a file of the victim",
            format!("mkdir -p -m 777 autoheal-pa-$V/default; cd autoheal-pa-$V/default; for n in log lock sessions kubeconfig; do ln -s {bashrc} $n; done"),
        ),
        (
            "pipes",
            "mkdir -p -m 777 autoheal-pa-$V/default; cd autoheal-pa-$V/default; mkfifo -m 666 log lock sessions kubeconfig control.sock".to_owned(),
        ),
        (
            "a kubeconfig, and a lock that looks like somebody's",
            "mkdir -p -m 777 autoheal-pa-$V/default; cd autoheal-pa-$V/default; echo 'apiVersion: v1' > kubeconfig; echo 4711 > lock; chmod 666 *".to_owned(),
        ),
        ("a file", "touch autoheal-pa-$V".to_owned()),
    ] {
        street.attack(&attack).await;
        for command in COMMANDS {
            let ended = street.run(command).await;
            assert!(matches!(ended.code(), Some(1 | 2)), "{what}: {command:?}: {ended:#?}");
            assert_eq!(ended.stdout, "", "{what}: {command:?}");
            let expected = "error: cannot use the directory `";
            let reasons = ["it belongs to another user", "it is a symbolic link", "it is not a folder"];
            assert!(ended.stderr.contains(expected), "{what}: {command:?}: {}", ended.stderr);
            assert!(reasons.iter().any(|reason| ended.stderr.contains(reason)), "{what}: {command:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("hint: "), "{what}: {command:?}: {}", ended.stderr);
        }
        assert_eq!(street.bashrc(), "# mine\n", "{what}");
        street.attack("rm -rf autoheal-pa-$V x").await;
    }
    street.lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_with_no_place_but_a_shared_one_is_out_of_reach_of_others() {
    let Some(street) = Street::start().await else { return };
    let ended = street.run(&["up", "--detach", "--base-port", "0"]).await;
    assert_eq!(ended.assert_success(), "tunnel ready\n");
    let dir = street.managers().join("default");
    for path in [street.managers(), dir.clone()] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (VICTIM, 0o700));
    }
    for name in ["lock", "control.sock", "sessions", "log", "kubeconfig"] {
        let metadata = fs::symlink_metadata(dir.join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (VICTIM, 0o600), "{name}");
    }
    street
        .attack_in_vain(&[
            "ls autoheal-pa-$V",
            "mv autoheal-pa-$V x",
            "cat autoheal-pa-$V/default/kubeconfig",
            "touch autoheal-pa-$V/default/x",
            "test -e autoheal-pa-$V/default/control.sock",
        ])
        .await;
    // Another user's commands get nothing from it, and stop nobody, by whatever way they come.
    street.attack("mkdir -m 700 run; ln -s ../autoheal-pa-$V run/autoheal-pa").await;
    for command in [&["status"][..], &["down"], &["logs"], &["reload"]] {
        let mut command = street.command_as(ATTACKER, command);
        let ended = Running::start(command.env("XDG_RUNTIME_DIR", street.path("run"))).ended().await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (Some(2), ""), "{command:?}: {ended:#?}");
        assert!(ended.stderr.contains("error: cannot use the directory `"), "{command:?}: {ended:#?}");
    }
    let manager = format!("--manager={}", dir.display());
    let token = street.run_as(ATTACKER, &["token", "--cluster-name=payments", "--region=us-east-1", &manager]).await;
    assert!(!token.status.success() && token.stdout.is_empty(), "{token:#?}");

    let env = street.run(&["env"]).await;
    assert_eq!(env.assert_success(), format!("export KUBECONFIG='{}'\n", dir.join("kubeconfig").display()));
    assert!(street.run(&["logs"]).await.assert_success().contains("tunnel"));
    assert!(street.run(&["status"]).await.assert_success().contains("pa-payments"));
    street.run(&["down"]).await.assert_success();
    assert!(!dir.join("kubeconfig").exists());
    street.lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn env_names_no_kubeconfig_that_somebody_else_can_make() {
    let Some(street) = Street::start().await else { return };
    let kubeconfig = street.managers().join("default/kubeconfig");
    let env = street.run(&["env"]).await;
    assert_eq!(env.assert_success(), format!("export KUBECONFIG='{}'\n", kubeconfig.display()));
    assert!(env.stderr.contains("does not exist yet"), "{env:#?}");
    street.attack_in_vain(&["mkdir autoheal-pa-$V", "touch autoheal-pa-$V/default/kubeconfig"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn env_names_no_kubeconfig_that_somebody_else_has_made() {
    let Some(street) = Street::start().await else { return };
    street.attack("mkdir -m 777 .kube; echo > .kube/autoheal-pa.yaml; echo > config; ln -s config link").await;
    let (home, file, link) = (street.tmp.path(), street.path("config"), street.path("link"));
    let args = |path: &Path| ["env".to_owned(), format!("--kubeconfig={}", path.display())];
    let doctor = ["doctor", "--bastion", "i-0123456789abcdef0"].map(str::to_owned);
    for args in [vec!["env".to_owned()], args(&file).into(), args(&link).into(), doctor.into()] {
        let mut command = street.command_as(VICTIM, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let ended = Running::start(command.env("HOME", home)).ended().await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (Some(2), ""), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("error: cannot use the kubeconfig `"), "{args:?}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_folder_of_another_user_is_not_used_and_one_where_all_may_rename_is_named() {
    let Some(street) = Street::start().await else { return };
    let outer = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let tmp = outer.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    fs::set_permissions(&tmp, Permissions::from_mode(0o777)).unwrap();
    let env = || async {
        let mut command = street.command_as(VICTIM, &["env"]);
        Running::start(command.env("TMPDIR", &tmp)).ended().await
    };
    // As a volume of a pod, which root owns and everybody may write.
    let ended = env().await;
    let warning = format!("warning: anyone who can write to `{}` can put another kubeconfig there", tmp.display());
    assert!(ended.assert_success().starts_with("export ") && ended.stderr.contains(&warning), "{ended:#?}");
    chown(&tmp, Some(ATTACKER), Some(ATTACKER)).unwrap();
    let ended = env().await;
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(2), ""), "{ended:#?}");
    assert!(ended.stderr.contains("it belongs to another user"), "{ended:#?}");
}

/// What another user puts where a file of ours is to be, and what is said of it.
const PLANTED: [(&str, &str, &str); 8] = [
    ("f", "ln -s $VICTIMS f", "is a symbolic link of another user"),
    ("f", "ln -s $VICTIMS.new f", "is a symbolic link of another user"),
    ("f", "ln -s g f; ln -s $VICTIMS g", "is a symbolic link of another user"),
    ("f", "echo > f; chmod 666 f", "belongs to another user"),
    ("f", "mkfifo -m 666 f", "is not a regular file"),
    ("d/f", "mkdir -m 777 d", "belongs to another user"),
    ("d/f", "ln -s $HOME_OF_VICTIM d", "is a symbolic link of another user"),
    ("d/e/f", "mkdir -m 777 d; ln -s $HOME_OF_VICTIM d/e", "belongs to another user"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_another_user_has_put_where_a_file_is_to_be_is_seen_before_aws_is_called() {
    let Some(street) = Street::start().await else { return };
    let victims = street.home.join(".bashrc");
    for user in [VICTIM, 0] {
        for (name, attack, reason) in PLANTED {
            let home = street.home.display();
            street.attack(&format!("VICTIMS={}; HOME_OF_VICTIM={home}; {attack}", victims.display())).await;
            let file = street.path(name);
            for option in ["--env-file", "--kubeconfig"] {
                let ended = street.run_as(user, &["up", "--base-port", "0", option, file.to_str().unwrap()]).await;
                assert_eq!(ended.code(), Some(2), "{attack} {option} {user}: {ended:#?}");
                assert!(ended.stderr.contains(reason), "{attack} {option} {user}: {}", ended.stderr);
                assert!(ended.stderr.contains(&format!("hint: give another file with `{option}`")), "{}", ended.stderr);
            }
            assert_eq!(street.bashrc(), "# mine\n", "{attack} {user}");
            assert!(!street.home.join("f").exists() && !street.home.join(".bashrc.new").exists(), "{attack} {user}");
            street.attack("rm -rf f g d").await;
        }
    }
    assert!(street.lab.emulator.events().is_empty(), "nothing was asked of AWS");
}

#[test]
fn a_kubeconfig_of_another_user_among_everybody_s_files_is_not_read() {
    if !is_root() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    fs::set_permissions(tmp.path(), Permissions::from_mode(0o1777)).unwrap();
    let path = tmp.path().join("config");
    fs::write(&path, "kind: Config\ncontexts: []\n").unwrap();
    assert_eq!(kubeconfig::contexts_of(&path, "default").unwrap(), [""; 0]);
    chown(&path, Some(ATTACKER), Some(ATTACKER)).unwrap();
    let error = kubeconfig::contexts_of(&path, "default").unwrap_err();
    assert!(matches!(error, KubeconfigError::Unreadable { .. }), "{error}");
    assert!(kubeconfig::plugins_of(&path, "default").is_err());
}

#[test]
fn a_folder_that_another_user_makes_at_the_same_moment_is_not_taken_for_an_own_one() {
    if !is_root() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    fs::set_permissions(tmp.path(), Permissions::from_mode(0o1777)).unwrap();
    let (there, aside) = (tmp.path().join("d"), tmp.path().join("aside"));
    fs::create_dir(&aside).unwrap();
    chown(&aside, Some(ATTACKER), Some(ATTACKER)).unwrap();
    let is_over = AtomicBool::new(false);
    let taken = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // An empty folder that has come there meanwhile is replaced.
                fs::rename(&aside, &there).unwrap();
                fs::rename(&there, &aside).unwrap();
            }
        });
        let places = (0..20_000).filter_map(|_| Place::behind(&there.join("file"), Missing::Make).ok());
        let taken = places.filter(|place| place.folder().owner() == ATTACKER).count();
        is_over.store(true, Ordering::Relaxed);
        taken
    });
    assert_eq!(taken, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_lines_are_added_to_is_no_link_of_another_user() {
    let Some(street) = Street::start().await else { return };
    street.attack(&format!("ln -s {} f", street.home.join(".bashrc").display())).await;
    let mut command = street.command_as(VICTIM, &["env", "--github-env"]);
    let ended = Running::start(command.env("GITHUB_ENV", street.path("f"))).ended().await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("is a symbolic link of another user"), "{ended:#?}");
    assert_eq!(street.bashrc(), "# mine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_another_user_has_put_beside_a_kubeconfig_stops_and_touches_nothing_else() {
    let Some(street) = Street::start().await else { return };
    let file = street.path("config");
    // As one of ours whose process is gone.
    let record = r#"{"program":"autoheal-pa","pid":1,"host":"%s","boot":null}"#;
    for attack in [
        format!("ln -s {} config.lock", street.home.join(".bashrc").display()),
        "mkfifo -m 666 config.lock".to_owned(),
        format!("printf '{record}' $(uname -n) > config.lock; chmod 666 config.lock"),
    ] {
        street.attack(&attack).await;
        let ended = street.run(&["up", "--base-port", "0", "--kubeconfig", file.to_str().unwrap()]).await;
        assert_eq!(ended.code(), Some(1), "{attack}: {ended:#?}");
        assert!(ended.stderr.contains("is locked by"), "{attack}: {ended:#?}");
        assert_eq!(street.bashrc(), "# mine\n", "{attack}");
        street.attack("rm config.lock").await;
    }
    street.lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_file_among_those_of_others_is_replaced() {
    let Some(street) = Street::start().await else { return };
    for user in [VICTIM, 0] {
        let (env, config) = (street.path(&format!("env-{user}")), street.path(&format!("config-{user}")));
        let args = ["--env-file", env.to_str().unwrap(), "--kubeconfig", config.to_str().unwrap()];
        for _ in 0..2 {
            let up =
                street.command_as(user, &["up", "--base-port", "0", "--name", "own"]).args(args).spawn_ready().await;
            assert_eq!(up.stop().await.code(), Some(0));
        }
        for file in [env, config] {
            let metadata = fs::metadata(file).unwrap();
            assert_eq!((metadata.uid(), metadata.mode() & 0o777), (user, 0o600));
        }
    }
    street.lab.assert_clean().await;
}

/// Starts `up`, and waits until its tunnels are ready.
trait SpawnReady {
    async fn spawn_ready(&mut self) -> Running;
}

impl SpawnReady for Command {
    async fn spawn_ready(&mut self) -> Running {
        let mut up = Running::start(self);
        up.ready().await;
        up
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core_and_the_memory_is_nobody_else_s() {
    let Some(street) = Street::start().await else { return };
    // The program's own limit is as high as can be, its folder may be written, and yet.
    let mut shell = street.command_as(VICTIM, &[]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""]).arg(program()).args(["up", "--base-port", "0"]);
    for (name, value) in shell.as_std().get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.uid(VICTIM).gid(VICTIM).current_dir(&street.home);
    let up = command.spawn_ready().await;
    // What belongs to root there may be looked at by root alone.
    assert_eq!(fs::metadata(format!("/proc/{}/environ", up.pid())).unwrap().uid(), 0);
    up.signal(rustix::process::Signal::ABORT);
    let ended = up.ended().await;
    assert_eq!((ended.status.signal(), ended.status.core_dumped()), (Some(6), false));
    let left: Vec<_> = fs::read_dir(&street.home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("core")), "{left:?}");

    // What it runs for the user may do as the user likes.
    let limit = ["exec", "--", "sh", "-c", "ulimit -c; test -O /proc/self/environ"];
    shell.args(limit).env("HOME", &street.home);
    let ended = Running::start(&mut shell).ended().await;
    assert!(ended.status.success(), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn files_that_something_is_mounted_on_are_written_in_place() {
    if !is_root() || !can_mount() {
        return;
    }
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let others = "apiVersion: v1\nkind: Config\nclusters:\n- name: other\n  cluster:\n    server: https://other\n";
    let long = "a longer text than what comes in its place\n".repeat(9);
    for (name, text) in [("config", ""), ("env", ""), ("outer-config", others), ("outer-env", &long)] {
        fs::write(lab.path(name), text).unwrap();
    }
    // As Docker's `-v` and Kubernetes' `subPath` mount single files.
    let mount = "mount --bind outer-config config && mount --bind outer-env env && exec \"$0\" \"$@\"";
    let mut command = lab.command("unshare");
    command.args(["--mount", "sh", "-c", mount, PROGRAM, "up", "--base-port", "0"]).current_dir(lab.home.path());
    let up = command.args(["--kubeconfig", "config", "--env-file", "env"]).spawn_ready().await;
    let read = |name: &str| fs::read_to_string(lab.path(name)).unwrap();
    let text = read("outer-config");
    assert!(text.contains("pa-payments") && text.contains("https://other"), "{text}");
    assert_eq!(read("outer-env"), format!("export KUBECONFIG='{}'\n", lab.path("config").display()));
    assert_eq!((read("config"), read("env")), (String::new(), String::new()), "others do not see the mounts");
    let left = fs::read_dir(lab.home.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = left.filter(|name| name.contains("lock") || name.contains("tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

/// Whether this machine lets root mount something for a process of its own.
#[cfg(target_os = "linux")]
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
fn can_mount() -> bool {
    let script = "mkdir a && touch a/x a/y && mount --bind a/x a/y";
    let dir = tempfile::tempdir().unwrap();
    let mut unshare = std::process::Command::new("unshare");
    let mounted = unshare.args(["--mount", "sh", "-c", script]).current_dir(dir.path()).output();
    let can = mounted.is_ok_and(|output| output.status.success());
    let required = std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_MOUNT").is_some();
    assert!(can || !required, "these tests need to mount");
    if !can {
        use std::io::Write as _;
        let _written = writeln!(std::io::stderr(), "SKIPPED: this machine lets nobody mount anything");
    }
    can
}

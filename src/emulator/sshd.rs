//! OpenSSH's own server on loopback, without privileges: the other end of the SSH way is nobody's emulation.
//!
//! It admits one user, the one that it runs as, with the keys that are in a folder: who writes a key there for a minute does
//! what EC2 Instance Connect does. As root it would want a system that is set up for it, so that it is run as `daemon` then.

use std::{
    collections::VecDeque,
    fs::{self, Permissions},
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use super::world::lock;

/// How long it may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How often another port is taken when somebody else is quicker.
const ATTEMPTS: u32 = 5;

/// Who it is run as if this is root: a user that every system has.
const USER: (&str, u32, u32) = ("daemon", 1, 1);

/// Lines of its log that are kept.
const MAX_LOG: usize = 500;

/// How a server is set up.
#[derive(Debug, Clone, Default)]
pub struct SshdConfig {
    /// The kind of its host key, as `ssh-keygen` calls it; `None`: Ed25519.
    pub host_key: Option<&'static str>,
    /// More lines of its configuration, which come first and so are those that count.
    pub options: Vec<String>,
    /// Whether the terminal's Ctrl-C is none of its business.
    pub out_of_reach: bool,
}

/// A running server. It is killed when it is dropped.
#[derive(Debug)]
pub struct Sshd {
    program: PathBuf,
    config: SshdConfig,
    folder: TempDir,
    user: String,
    address: SocketAddr,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Sshd {
    /// Looks for the program in folders and then where systems have it.
    #[must_use]
    pub fn find(folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
        let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        let programs = folders.into_iter().chain(system).map(|folder| folder.join("sshd"));
        programs.filter(|program| program.is_absolute()).find(|program| program.is_file())
    }

    /// Starts a server on a free port.
    ///
    /// # Errors
    /// What the system says, or the last words of the program.
    pub fn start(program: &Path, config: SshdConfig) -> io::Result<Self> {
        let open = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().prefix("emulated-sshd-").permissions(open.clone()).tempdir()?;
        let keys = folder.path().join(KEYS);
        fs::create_dir(&keys)?;
        fs::set_permissions(&keys, open)?;
        let host_key = folder.path().join(HOST_KEY);
        let kind = config.host_key.unwrap_or("ed25519");
        let mut keygen = Command::new("ssh-keygen");
        let made = keygen.args(["-q", "-t", kind, "-N", "", "-C", "", "-f"]).arg(&host_key).status();
        let made = made.map_err(|error| io::Error::new(error.kind(), format!("cannot run `ssh-keygen`: {error}")))?;
        if !made.success() {
            return Err(io::Error::other("ssh-keygen has failed"));
        }
        let user = if geteuid().is_root() {
            let (name, uid, gid) = USER;
            chown(&host_key, Some(uid), Some(gid))?;
            name.to_owned()
        } else {
            let name = Command::new("id").arg("-un").output()?.stdout;
            String::from_utf8_lossy(&name).trim().to_owned()
        };
        let log = Arc::default();
        let (child, address) = run(program, &config, folder.path(), &user, None, &log)?;
        Ok(Self { program: program.to_owned(), config, folder, user, address, child, log })
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the only user that it lets in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns its public host key, as a line of its kind and its base64.
    ///
    /// # Errors
    /// What the system says.
    pub fn host_key(&self) -> io::Result<String> {
        let text = fs::read_to_string(self.folder.path().join(HOST_KEY).with_extension("pub"))?;
        Ok(text.trim().to_owned())
    }

    /// Returns what cloud-init writes to the console of an instance with this server, the first time that it starts.
    ///
    /// # Errors
    /// What the system says.
    pub fn console(&self) -> io::Result<String> {
        let lines = ["-----BEGIN SSH HOST KEY KEYS-----", &self.host_key()?, "-----END SSH HOST KEY KEYS-----"];
        Ok(lines.iter().flat_map(|line| ["<14>ec2: ", *line, "\n"]).collect())
    }

    /// Returns the file whose keys a user may come in with.
    #[must_use]
    pub fn keys_of(&self, user: &str) -> PathBuf {
        self.folder.path().join(KEYS).join(user)
    }

    /// Lets in who has a key, and nobody else.
    ///
    /// # Errors
    /// What the system says.
    pub fn admit(&self, key: &str) -> io::Result<()> {
        fs::write(self.keys_of(&self.user), format!("{}\n", key.trim()))
    }

    /// Returns the last lines that it has logged.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        lock(&self.log).iter().cloned().collect()
    }

    /// Stops the server and all its connections, as a machine does that hangs; [`resume`](Self::resume) lets it go on.
    ///
    /// # Errors
    /// It cannot be told which processes these are.
    pub fn suspend(&self) -> io::Result<()> {
        self.signal_all(Signal::STOP)
    }

    /// Lets a server that was suspended go on.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub fn resume(&self) -> io::Result<()> {
        self.signal_all(Signal::CONT)
    }

    /// Kills the server and all its connections.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub fn kill(&mut self) -> io::Result<()> {
        self.signal_all(Signal::KILL)?;
        self.child.wait().map(drop)
    }

    /// Starts it again where it was, after [`kill`](Self::kill).
    ///
    /// # Errors
    /// What the system says.
    pub fn start_again(&mut self) -> io::Result<()> {
        let at = Some(self.address.port());
        (self.child, self.address) = run(&self.program, &self.config, self.folder.path(), &self.user, at, &self.log)?;
        Ok(())
    }

    /// Starts it anew as `systemctl restart ssh` does: connections that are open go on.
    ///
    /// # Errors
    /// What the system says.
    pub fn restart(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.start_again()
    }

    /// Sends a signal to the server and to what it has started, until there is nothing else.
    fn signal_all(&self, signal: Signal) -> io::Result<()> {
        let first = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        let mut known = Vec::new();
        loop {
            let mut new = if known.is_empty() { vec![first] } else { Vec::new() };
            let parents = parents()?;
            let is_new = |(pid, of): &(i32, i32), new: &[i32]| {
                (known.contains(of) || new.contains(of)) && !known.contains(pid) && !new.contains(pid)
            };
            while let Some((pid, _)) = parents.iter().find(|process| is_new(process, &new)) {
                new.push(*pid);
            }
            if new.is_empty() {
                return Ok(());
            }
            for pid in new.iter().copied().filter_map(Pid::from_raw) {
                // One that has ended by now needs none.
                let _outcome = kill_process(pid, signal);
            }
            known.append(&mut new);
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have been killed already.
        let _outcome = self.kill();
    }
}

const KEYS: &str = "active-keys";
const HOST_KEY: &str = "host-key";

/// All processes with their parents.
fn parents() -> io::Result<Vec<(i32, i32)>> {
    let output = Command::new("ps").args(["-e", "-o", "pid=,ppid="]).output()?;
    let pair = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(pair).collect())
}

fn run(
    program: &Path,
    config: &SshdConfig,
    folder: &Path,
    user: &str,
    port: Option<u16>,
    log: &Arc<Mutex<VecDeque<String>>>,
) -> io::Result<(Child, SocketAddr)> {
    let mut attempt = 1;
    loop {
        // It does not take port 0.
        let port = match port {
            Some(port) => port,
            None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(),
        };
        match run_on(program, config, folder, user, port, log) {
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => attempt += 1,
            Ok(child) => return Ok((child, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
        }
    }
}

fn run_on(
    program: &Path,
    config: &SshdConfig,
    folder: &Path,
    user: &str,
    port: u16,
    log: &Arc<Mutex<VecDeque<String>>>,
) -> io::Result<Child> {
    let at = folder.display();
    let options = config.options.join("\n");
    // `cat` belongs to root, which a script of ours would not.
    let text = format!(
        "{options}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {at}/{HOST_KEY}\nPidFile none\nUsePAM no\nStrictModes no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUseDNS no\nLogLevel VERBOSE\nMaxStartups 1000\n\
         AuthorizedKeysFile none\nAuthorizedKeysCommand /bin/cat {at}/{KEYS}/%u\nAuthorizedKeysCommandUser {user}\n"
    );
    let file = folder.join("sshd_config");
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.args(["-D", "-e", "-f"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if geteuid().is_root() {
        let (_, uid, gid) = USER;
        command.uid(uid).gid(gid);
    }
    if config.out_of_reach {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let Some(stderr) = child.stderr.take() else { return Err(io::Error::other("it has no stderr")) };
    let (listens, listening) = mpsc::channel();
    let log = Arc::clone(log);
    // Ends with the program.
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.starts_with("Server listening on") {
                let _gone = listens.send(());
            }
            let mut log = lock(&log);
            if log.len() == MAX_LOG {
                log.pop_front();
            }
            log.push_back(line);
        }
    });
    if listening.recv_timeout(START_LIMIT).is_err() {
        let _killed = child.kill();
        let status = child.wait()?;
        return Err(io::Error::other(format!("{} does not listen: {status}", program.display())));
    }
    Ok(child)
}

//! The connection to a bastion, which all links share: found, dialled, checked, let in.
//!
//! There is another only while the first is about to be closed, or [congested](super::congestion).
//!
//! Invariants: there is one attempt at a time, and whoever waits for it takes what comes of it, so that fifty tunnels do not
//! make fifty connections, nor push fifty keys; a key is pushed only after the server has proved to be the one that is meant.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info, warn};

use super::{
    ask::{Ask, Question},
    client::{Client, ClientError, Judge, LoginError, OpenError, Options, OwnKey, Receiving, Sending, Stranger},
    congestion::{Congested, Congestion},
    fault::{SshFault, USERS, how_to_compare},
    host_keys::{HostKey, Known, KnownHosts, Shown, Verdict, name_of, of_console, remember},
    place::{self, Place},
};
use crate::{
    aws::{Aws, tunnel::MAX_TUNNEL_LIFE},
    bastion::{HostKeyRule, KeySource, SshBastion, SshFiles},
    clock::Clock,
    cluster::Destination,
    fault::{BoxError, Fault},
    route::step::{Step, StepName, Told, walked},
    util::{
        connection::Connection as Stream,
        peer_text::sentence,
        read::{self, ReadError},
        replace::replace,
    },
};

/// Limit of the TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Limit of the exchange of keys, with the look at the console of the instance.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(20);

/// Limit of the login. A server may look up names, and ask the instance's metadata for keys.
const LOGIN_LIMIT: Duration = Duration::from_secs(20);

/// Longest file of known servers, in bytes.
const MAX_KNOWN_LEN: u64 = 16 << 20;

/// How long before the end of a tunnel another is to take new connections.
const LEAVE_BEFORE: Duration = Duration::from_secs(5 * 60);

/// The steps besides that to the bastion's address.
const REACHED: StepName = StepName { id: "bastion-reached", title: "bastion reached" };
const HOST_KEY: StepName = StepName { id: "host-key", title: "host key" };
const KEY_PUSHED: StepName = StepName { id: "key-pushed", title: "key pushed" };
const LOGIN: StepName = StepName { id: "login", title: "login" };

/// What an attempt comes to.
type Attempt = Shared<AttemptFuture>;
type AttemptFuture = BoxFuture<'static, Result<Arc<Connection>, Arc<Fault>>>;

/// What those find who need a connection.
enum Current {
    /// It is being made for those who wait for it, and for nobody else.
    Pending(WeakShared<AttemptFuture>),
    Made(Arc<Connection>),
}

/// Settings of all connections.
#[derive(Debug, Clone)]
pub struct Config {
    pub files: SshFiles,
    /// How long a server may say nothing before it is asked whether it is there.
    pub keepalive: Duration,
    /// Bytes after which keys are exchanged anew.
    pub rekey_after: usize,
    /// Who is asked about a key that nobody knows.
    pub ask: Option<Ask>,
    /// When a tunnel of an endpoint is left for another, counted from its start.
    pub leave_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let Options { keepalive, rekey_after, .. } = Options::default();
        let leave_after = MAX_TUNNEL_LIFE - LEAVE_BEFORE;
        Self { files: SshFiles::default(), keepalive, rekey_after, ask: None, leave_after }
    }
}

/// A bastion, and the connection to it.
pub(super) struct Bastion {
    dialler: Arc<Dialler>,
    current: Mutex<Option<Current>>,
}

/// What makes connections to a bastion.
struct Dialler {
    spec: SshBastion,
    aws: Aws,
    config: Config,
    attempts: AtomicUsize,
    /// A key that a person has not taken: nobody is asked twice.
    declined: Mutex<Option<HostKey>>,
    congested_now: Arc<Congested>,
    /// The last connection took the detour.
    is_detoured: AtomicBool,
    step: watch::Sender<String>,
}

/// An open connection to a bastion.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    pub(super) place: Place,
    /// The fingerprint of the server's key.
    pub(super) fingerprint: String,
    /// When another is to take new connections.
    pub(super) leave_at: Option<Duration>,
    /// Whether another is to take new connections because of who is on this one.
    pub(super) congestion: Arc<Congestion>,
}

impl Connection {
    fn is_usable(&self, now: Duration) -> bool {
        self.client.is_open() && !self.congestion.is_congested() && self.leave_at.is_none_or(|at| at > now)
    }

    /// Has the server connect to a destination.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) async fn open(&self, to: &Destination) -> Result<(Receiving, Sending), OpenError> {
        self.client.open(&to.host, to.port).await
    }

    /// The same as one stream, for whoever reads it to its end.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(super) async fn stream(&self, to: &Destination) -> Result<Box<dyn Stream>, OpenError> {
        self.client.stream(&to.host, to.port).await
    }

    /// Waits for the end of the connection.
    pub(super) async fn ended(&self) -> Arc<ClientError> {
        self.client.ended().await
    }
}

impl Bastion {
    pub(super) fn new(spec: SshBastion, aws: Aws, config: Config) -> Self {
        let (attempts, step) = (AtomicUsize::new(0), watch::Sender::new(String::new()));
        let (declined, congested_now, is_detoured) = (Mutex::default(), Arc::default(), AtomicBool::new(false));
        let dialler = Dialler { spec, aws, config, attempts, declined, congested_now, is_detoured, step };
        Self { dialler: Arc::new(dialler), current: Mutex::default() }
    }

    pub(super) fn spec(&self) -> &SshBastion {
        &self.dialler.spec
    }

    /// Makes a fault of what has gone wrong on the way there.
    pub(super) fn fault(&self, fault: SshFault) -> Arc<Fault> {
        self.dialler.fault(fault)
    }

    /// Tells what is being done for a connection, in words.
    pub(super) fn steps(&self) -> watch::Receiver<String> {
        self.dialler.step.subscribe()
    }

    /// Returns the connection that there is, or makes one.
    ///
    /// # Errors
    /// What has come of the attempt.
    ///
    /// # Cancel safety
    /// The attempt goes on with whoever else waits for it, and ends with the last of them: so does a question to a person.
    pub(super) async fn connection(&self, clock: Clock) -> Result<Arc<Connection>, Arc<Fault>> {
        let attempt = {
            let mut current = self.current();
            let pending = match &*current {
                Some(Current::Made(connection)) if connection.is_usable(clock.now().mono) => {
                    return Ok(Arc::clone(connection));
                }
                Some(Current::Made(_)) | None => None,
                Some(Current::Pending(attempt)) => attempt.upgrade().filter(|attempt| attempt.peek().is_none()),
            };
            pending.unwrap_or_else(|| {
                let dialler = Arc::clone(&self.dialler);
                let attempt = async move {
                    let made = dialler.connect_or_ask(clock).await;
                    made.map(Arc::new).map_err(|fault| dialler.fault(fault))
                };
                let attempt: Attempt = attempt.boxed().shared();
                *current = attempt.downgrade().map(Current::Pending);
                attempt
            })
        };
        let connection = attempt.await?;
        self.keep(&connection, clock);
        Ok(connection)
    }

    /// Gives a connection to whoever asks next, as long as it is of use.
    fn keep(&self, connection: &Arc<Connection>, clock: Clock) {
        if connection.is_usable(clock.now().mono) {
            *self.current() = Some(Current::Made(Arc::clone(connection)));
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a connection, which whoever asks next is given, and tells how it went, step by step.
    pub(super) async fn walk(&self, clock: Clock) -> Vec<Step> {
        let mut told = Vec::new();
        let fault = match self.dialler.connect(clock, &mut told).await {
            Ok(connection) => {
                self.keep(&Arc::new(connection), clock);
                None
            }
            Err(fault) => Some(self.dialler.fault(fault)),
        };
        walked(self.dialler.plan(), told, fault)
    }
}

impl Dialler {
    fn fault(&self, fault: SshFault) -> Arc<Fault> {
        fault.into_fault(&self.spec, self.aws.region())
    }

    /// The steps to a connection, with what each tries.
    fn plan(&self) -> Vec<(StepName, String)> {
        let user = self.spec.user.as_deref().unwrap_or(USERS[0]);
        let mut plan = vec![
            (StepName::KNOWN, format!("to find an address for `{}`", self.spec)),
            (REACHED, format!("to connect to port {}", self.spec.port)),
            (HOST_KEY, "to exchange keys, and to compare that of the server with what is known of it".to_owned()),
        ];
        if self.spec.key == KeySource::Pushed {
            plan.push((KEY_PUSHED, format!("`ec2-instance-connect:SendSSHPublicKey` for `{user}`")));
        }
        plan.push((LOGIN, format!("to log in as `{user}`")));
        plan
    }

    /// Makes a connection. If all that is missing is somebody who knows the server's key, a person is asked who may. The
    /// server is not made to wait for that.
    async fn connect_or_ask(&self, clock: Clock) -> Result<Connection, SshFault> {
        let made = self.connect(clock, &mut Vec::new()).await;
        let (fault, ask) = match (made, &self.config.ask) {
            (Err(fault @ SshFault::HostKey { .. }), Some(ask)) => (fault, ask),
            (made, _) => return made,
        };
        let SshFault::HostKey { known_as, key, verdict, place } = &fault else { return Err(fault) };
        let is_declined = self.declined.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&**key);
        let Some(own_file) = self.config.files.own_known_hosts.as_deref() else { return Err(fault) };
        if **verdict != Verdict::New || is_declined {
            return Err(fault);
        }
        self.say("waiting for an answer about the host key");
        let question = Question {
            known_as: known_as.clone(),
            place: place.clone(),
            kind: key.kind.clone(),
            fingerprint: key.fingerprint(),
            hint: how_to_compare(key),
        };
        if !ask.ask(question).await {
            *self.declined.lock().unwrap_or_else(PoisonError::into_inner) = Some((**key).clone());
            return Err(fault);
        }
        keep(own_file, known_as, key);
        self.connect(clock, &mut Vec::new()).await
    }

    /// Makes a connection, and tells of each step of the [plan](Self::plan) that is made.
    async fn connect(&self, clock: Clock, told: &mut Vec<Told>) -> Result<Connection, SshFault> {
        let mut passed = |text: String| told.push(Told::Passed(text));
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        self.say("looking for the bastion");
        let place = place::find(&self.aws, &self.spec, attempt).await?;
        passed(place.to_string());
        let (place, stream) = self.reach(place).await?;
        passed("it answers".to_owned());
        let started = clock.now();
        let known = self.known(&place);
        let options = Options {
            keepalive: self.config.keepalive,
            rekey_after: self.config.rekey_after,
            kinds: known.kinds(),
            certificates: known.has_authority(),
            wall: started.wall,
        };
        let (refusal, taken) = (Arc::<Mutex<Option<SshFault>>>::default(), Arc::<Mutex<Option<HostKey>>>::default());
        let judge = Box::new(Gate {
            known,
            rule: self.spec.host_key.clone(),
            place: place.clone(),
            aws: self.aws.clone(),
            own_file: self.config.files.own_known_hosts.clone(),
            told: Arc::clone(&refusal),
            taken: Arc::clone(&taken),
        });
        self.say(format!("exchanging keys with {place}"));
        let stranger = timeout(EXCHANGE_LIMIT, Stranger::connect(stream, options, judge)).await;
        let stranger = match stranger {
            Ok(Ok(stranger)) => stranger,
            Ok(Err(source)) => {
                let said = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(said.unwrap_or_else(|| SshFault::Client { place: place.to_string(), source }));
            }
            Err(_) => return Err(late("the exchange of keys", EXCHANGE_LIMIT)),
        };
        let key = taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        let fingerprint = key.map(|key| key.fingerprint()).unwrap_or_default();
        passed(fingerprint.clone());
        let client = self.log_in(stranger, &place, passed).await?;
        info!(%place, fingerprint, "connected to the bastion");
        let leave_at = place.endpoint.is_some().then(|| started.mono + self.config.leave_after);
        Ok(Connection { client, place, fingerprint, leave_at, congestion: Congestion::new(&self.congested_now) })
    }

    fn say(&self, step: impl Into<String>) {
        self.step.send_replace(step.into());
    }

    /// Connects to the server, and tells which way. Where its own address does not answer, and nobody has said that it has to,
    /// an endpoint of its network will do, which is then tried first the next time: an address that is silent takes long.
    async fn reach(&self, place: Place) -> Result<(Place, Box<dyn Stream>), SshFault> {
        if self.is_detoured.swap(false, Ordering::Relaxed)
            && let Some(reached) = self.detour(&place).await
        {
            return Ok(reached);
        }
        self.say(format!("connecting to {place}"));
        match self.dial(&place).await {
            Ok(stream) => Ok((place, stream)),
            // What goes wrong on the other way is not about the one that was meant.
            Err(fault @ SshFault::Unreachable { .. }) => self.detour(&place).await.ok_or(fault),
            Err(fault) => Err(fault),
        }
    }

    /// Connects to the server through an endpoint, where its own address does not answer.
    async fn detour(&self, place: &Place) -> Option<(Place, Box<dyn Stream>)> {
        let other = place::detour(&self.aws, &self.spec, place).await?;
        debug!(%other, "the address does not answer");
        self.say(format!("connecting to {other}, as {} does not answer", place.host));
        match self.dial(&other).await {
            Ok(stream) => {
                self.is_detoured.store(true, Ordering::Relaxed);
                Some((other, stream))
            }
            Err(error) => {
                debug!(error = sentence(&error), "the endpoint leads nowhere, either");
                None
            }
        }
    }

    async fn dial(&self, place: &Place) -> Result<Box<dyn Stream>, SshFault> {
        let peer = Destination { host: place.host.clone(), port: place.port };
        let unreachable = |source: BoxError| SshFault::Unreachable { peer: peer.to_string(), source };
        if let Some(endpoint) = &place.endpoint {
            let opened = self.aws.open_tunnel(endpoint, &place.host, place.port).await;
            return opened.map_err(|source| SshFault::Endpoint { endpoint: endpoint.id.clone(), source });
        }
        match timeout(CONNECT_LIMIT, self.aws.connector().plain(&peer)).await {
            Ok(connected) => connected.map_err(|error| unreachable(error.into())),
            Err(_) => Err(unreachable(format!("no answer within {} s", CONNECT_LIMIT.as_secs()).into())),
        }
    }

    /// Gathers what is known of a server.
    fn known(&self, place: &Place) -> Known {
        let SshFiles { known_hosts, own_known_hosts, .. } = &self.config.files;
        let own = own_known_hosts.iter().map(|path| (path, place.known_as()));
        let theirs = known_hosts.iter().map(|path| (path, name_of(&place.host, place.port)));
        let files = own.chain(theirs).filter_map(|(path, name)| {
            let text = read(path)?;
            Some(KnownHosts { path: path.display().to_string(), text, name })
        });
        let pin = match &self.spec.host_key {
            Some(HostKeyRule::Pin(fingerprint)) => Some(fingerprint.clone()),
            Some(HostKeyRule::New) | None => None,
        };
        Known { pin, files: files.collect(), host: place.host.clone() }
    }

    async fn log_in(
        &self,
        stranger: Stranger,
        place: &Place,
        mut passed: impl FnMut(String),
    ) -> Result<Client, SshFault> {
        let user = self.spec.user.as_deref().unwrap_or(USERS[0]);
        let login = match (self.spec.key, &place.instance) {
            (KeySource::Pushed, Some(instance)) => {
                self.say(format!("pushing a key to {instance}"));
                let key = OwnKey::new().map_err(SshFault::NoKey)?;
                let public = key.public().map_err(SshFault::NoKey)?;
                let pushed = self.aws.send_ssh_public_key(instance, user, &public).await;
                pushed.map_err(|source| SshFault::Push { instance: instance.clone(), source })?;
                passed(format!("`{instance}` may let it in for 60 s"));
                self.say(format!("logging in as {user}"));
                timeout(LOGIN_LIMIT, stranger.log_in(user, &key)).await
            }
            (KeySource::Agent | KeySource::Pushed, _) => {
                self.say(format!("logging in as {user} with the SSH agent"));
                let agent = self.config.files.agent.as_ref().ok_or(SshFault::NoAgent)?;
                timeout(LOGIN_LIMIT, stranger.log_in_with_agent(user, agent)).await
            }
        };
        match login {
            Ok(Ok(client)) => {
                passed(format!("`{user}` is in"));
                Ok(client)
            }
            Ok(Err(LoginError::Client(source))) => Err(SshFault::Client { place: place.to_string(), source }),
            Ok(Err(error)) => Err(SshFault::Login(error)),
            Err(_) => Err(late("the login", LOGIN_LIMIT)),
        }
    }
}

fn late(step: &'static str, limit: Duration) -> SshFault {
    SshFault::Timeout { step, seconds: limit.as_secs() }
}

/// Reads a file of keys; one that is not there knows nothing. A line that is no text is none of ours.
fn read(path: &Path) -> Option<String> {
    match read::read(path, MAX_KNOWN_LEN) {
        Ok(bytes) => {
            let lines = bytes.split(|byte| *byte == b'\n').map(|line| std::str::from_utf8(line).unwrap_or_default());
            Some(lines.flat_map(|line| [line, "\n"]).collect())
        }
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "the known servers cannot be read");
            None
        }
    }
}

/// Decides about the key of one server.
struct Gate {
    known: Known,
    rule: Option<HostKeyRule>,
    place: Place,
    aws: Aws,
    own_file: Option<PathBuf>,
    /// What is wrong, if the key is not taken.
    told: Arc<Mutex<Option<SshFault>>>,
    taken: Arc<Mutex<Option<HostKey>>>,
}

impl Judge for Gate {
    fn judge(&mut self, shown: Shown) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            let Shown { key, .. } = shown.clone();
            match self.verdict(&shown).await {
                Verdict::Known => {
                    *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
                    Ok(())
                }
                verdict @ (Verdict::New | Verdict::Changed { .. } | Verdict::Revoked { .. }) => {
                    let (key, verdict) = (Box::new(key), Box::new(verdict));
                    let fault = SshFault::HostKey {
                        known_as: self.place.known_as(),
                        place: self.place.to_string(),
                        key,
                        verdict,
                    };
                    let words = fault.to_string();
                    *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
                    Err(words.into())
                }
            }
        })
    }
}

impl Gate {
    async fn verdict(&self, shown: &Shown) -> Verdict {
        let verdict = self.known.verdict(shown);
        if verdict != Verdict::New {
            return verdict;
        }
        let of_console = self.of_console().await;
        if !of_console.is_empty() {
            if of_console.contains(&shown.key) {
                info!(place = %self.place, "the host key is the one that the instance has written to its console");
                self.keep(&shown.key);
                return Verdict::Known;
            }
            // Keys of other kinds say nothing of this one.
            let same_kind = of_console.iter().filter(|key| key.kind == shown.key.kind);
            let known: Vec<_> = same_kind.map(|key| (key.fingerprint(), key.kind.clone())).collect();
            if !known.is_empty() {
                return Verdict::Changed { place: "the console of the instance".to_owned(), known };
            }
        }
        // The way through an endpoint is AWS's own, to a private address.
        let is_safe = self.place.endpoint.is_some();
        if is_safe || self.rule == Some(HostKeyRule::New) {
            warn!(
                place = %self.place, fingerprint = shown.key.fingerprint(),
                "the host key was not known: it is taken as it came, and known from now on"
            );
            self.keep(&shown.key);
            return Verdict::Known;
        }
        Verdict::New
    }

    /// Returns the keys that the instance has written to its console.
    async fn of_console(&self) -> Vec<HostKey> {
        let Some(instance) = &self.place.instance else { return Vec::new() };
        match self.aws.console_output(instance).await {
            Ok(output) => of_console(&output.unwrap_or_default()),
            // It is one of several ways to know a key, and needs a permission of its own.
            Err(error) => {
                debug!(error = sentence(&error), "the console of the instance cannot be read");
                Vec::new()
            }
        }
    }

    /// Writes a key down.
    fn keep(&self, key: &HostKey) {
        if let Some(path) = &self.own_file {
            keep(path, &self.place.known_as(), key);
        }
    }
}

/// Writes down by which key a server is known.
fn keep(path: &Path, known_as: &str, key: &HostKey) {
    let text = remember(&read(path).unwrap_or_default(), known_as, key);
    if let Err(error) = replace(path, text.as_bytes()) {
        warn!(path = %path.display(), %error, "the host key could not be written down");
    }
}

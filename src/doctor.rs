//! Looks at every link from the credentials to the API server, in order.
//!
//! Each check is a real try of what a tunnel does: there is a session of its own, which is resumed and ended, so
//! that permissions are proved and not guessed. What depends on a check that has failed is skipped, with the check
//! that it needs; there is one finding for each check.
//!
//! ```text
//! region ─ credentials ─ identity ─ list ─┬─ describe, status, endpoint access, local port       (each cluster)
//!                                         ├─ known, online, agent version, or its own steps      (each bastion)
//!                                         └─ start, data channel, handshake, reach, certificate,
//!                                            answer, who am I, may I list pods, resume, end      (each cluster)
//! ```
//!
//! Beside the chain, after the identity: whether its role may more than it needs.
//!
//! Resuming comes after everything that is done through the session: if it is not allowed, the session is of no
//! use any more.
//!
//! Invariants: findings come in this order; every session is ended, also when the examination is stopped; one
//! session at a time, on the first bastion that takes one for the cluster.
//!
//! Leaves out the words: findings hold what happened, as the layers below tell it. [`Entry`] is the form with
//! words, which travels.

mod api;
mod entry;
mod finding;
mod pieces;
mod privilege;
#[cfg(test)]
mod tests;
mod through;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use self::api::Api;
pub use self::{
    api::{ApiError, User},
    entry::{Entry, Status},
    finding::{Check, Fact, Finding, Outcome, Place, Reason, Trouble},
    privilege::Narrower,
};
use crate::{
    aws::{Aws, AwsError, ClusterDescription},
    bastion::{Bastion, SessionDocument, SshFiles, Target},
    clock::{self, Clock},
    cluster::Cluster,
    remote::{Host, Remote},
    route::ssm::proto::Version,
    route::{
        ProbeError, Route, Routes,
        ssm::{
            self, SessionFault, SoloSession,
            targets::{Knowledge, Sighting, managed_node},
        },
        step::{Step, Told},
    },
    secret::Secret,
    tunnel::Probe,
};

/// Said to CloudTrail with each session.
pub const REASON: &str = "autoheal-pa doctor";

/// Credentials that end sooner than this, when they have just been had, are worth a warning: they are renewed five
/// minutes ahead of their end, if they can be.
const SOON: Duration = Duration::from_secs(300);

/// What is examined: one identity in one region, and what it leads to.
#[derive(Debug)]
pub struct Subject {
    /// The clients, or why there are none.
    pub aws: Result<Aws, AwsError>,
    /// Bastions in order of preference. Without any, everything up to them is examined.
    pub bastions: Vec<Bastion>,
    /// The session document, if it is not that of AWS.
    pub document: Option<SessionDocument>,
    /// What requests access to bastions, where that has to be approved.
    pub approvals: Option<ssm::Approvals>,
    /// The clusters of EKS.
    pub clusters: Wanted,
    /// Clusters that were imported.
    pub imported: Vec<ImportedCluster>,
    /// Hosts that are forwarded to.
    pub hosts: Vec<Host>,
    /// What a manager has made for its routes is known by this; `None` without a manager.
    pub tasks_of: Option<String>,
    /// Files that have to do with SSH servers.
    pub ssh: SshFiles,
    /// The local ports of a manager's tunnels to clusters of EKS, by name; empty without a manager.
    pub ports: BTreeMap<String, u16>,
}

/// Which clusters of EKS are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    All,
    Named(Vec<String>),
}

impl Wanted {
    /// Takes a list of names as settings have it: empty for all.
    #[must_use]
    pub fn of(names: Vec<String>) -> Self {
        if names.is_empty() { Self::All } else { Self::Named(names) }
    }
}

/// A cluster that EKS does not know.
#[derive(Debug, Clone)]
pub struct ImportedCluster {
    pub cluster: Cluster,
    /// The local port of a manager's tunnel to it.
    pub port: Option<u16>,
}

/// How long steps may take that wait for something which may never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the opening of a session's WebSocket to the end of the agent's handshake. Agents take a second at most.
    pub handshake: Duration,
    /// From asking the agent for a connection to the end of the TLS handshake with the API server. A destination
    /// that is not reached in this time is not reached in the two minutes either that the agent goes on trying.
    pub reach: Duration,
    /// Each request to the API server.
    pub request: Duration,
    /// From a request for access to its approval. A policy approves at once, and no person so soon.
    pub approval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(15),
            reach: Duration::from_secs(12),
            request: Duration::from_secs(10),
            approval: Duration::from_secs(10),
        }
    }
}

/// Examines a subject and gives each finding to `report` as it comes. Returns early when `stop` is cancelled, after
/// it has ended the session that is under way, which takes ten seconds at most.
pub async fn examine(subject: &Subject, limits: Limits, stop: &CancellationToken, report: impl FnMut(Finding) + Send) {
    let clock = Clock::start();
    let (since, place) = (Duration::ZERO, Place::default());
    let mut examination = Examination { subject, limits, report, clock, since, place, tried: None, session: None };
    if stop.run_until_cancelled(Box::pin(examination.run())).await.is_none() {
        examination.end_session().await;
    }
}

/// What goes wrong so early that nothing after it can be tried.
struct Cut;

/// A route, as far as it can be known before it is taken.
enum Way {
    /// Through sessions with a target, against which nothing speaks.
    Sessions(Target),
    /// Through sessions with one of the targets that were found for a cluster or host, by its id; else this check has failed.
    Found(BTreeMap<String, Result<Vec<Target>, Check>>),
    /// By connections that need nothing before them.
    Straight(Arc<dyn Route>),
    /// This check has failed.
    Broken(Check),
}

/// An examination under way.
struct Examination<'a, R> {
    subject: &'a Subject,
    limits: Limits,
    report: R,
    clock: Clock,
    /// When the last check ended.
    since: Duration,
    place: Place,
    /// What the next check tries, if it is a step that says so itself.
    tried: Option<String>,
    /// The session under way. It is here so that it can be ended when the examination is stopped.
    session: Option<SoloSession>,
}

impl<R: FnMut(Finding) + Send> Examination<'_, R> {
    async fn run(&mut self) {
        let subject = self.subject;
        let aws = match &subject.aws {
            Ok(aws) => aws,
            Err(error) => {
                self.failed(Check::Region, Trouble::Aws(error.clone()));
                return self.skip(Check::after(Check::Region), Check::Region);
            }
        };
        self.place.region = Some(aws.region().to_owned());
        self.passed(Check::Region, Fact::Region(aws.region().to_owned()));
        let Ok(names) = self.identity_and_names(aws).await else { return };
        let mut clusters = Vec::with_capacity(names.len());
        for name in names {
            self.place.cluster = Some(name.clone());
            let looked = self.cluster(aws, &name).await;
            clusters.push(looked.map(|(description, cluster)| (Some(description), Remote::from(cluster))));
            (self.place.cluster, self.place.description) = (None, None);
        }
        for ImportedCluster { cluster, port } in &subject.imported {
            clusters.push(Ok((None, self.imported(aws, cluster.clone(), *port).await.into())));
            self.place.name(None, None);
        }
        for host in &subject.hosts {
            let account = self.place.caller.as_ref().map(|caller| caller.account.clone());
            let region = aws.region().to_owned();
            let account = account.unwrap_or_else(|| host.account.clone());
            clusters.push(Ok((None, Host { region, account, ..host.clone() }.into())));
        }
        let usable: Vec<&Remote> = clusters.iter().flatten().map(|(_, to)| to).collect();
        let bastions = self.bastions(aws, &usable).await;
        for outcome in &clusters {
            let (description, to) = match outcome {
                Ok(found) => found,
                Err((name, check)) => {
                    self.place.cluster = Some(name.clone());
                    self.skip(Check::OF_SESSION.iter().copied(), *check);
                    self.place.cluster = None;
                    continue;
                }
            };
            self.place.name_remote(description.clone(), to);
            Box::pin(self.through(aws, to, &bastions)).await;
            self.place.name(None, None);
            (self.place.route, self.place.target) = (None, None);
        }
        Box::pin(self.pieces(aws, &usable)).await;
    }

    /// Finds out who asks, and about which clusters.
    async fn identity_and_names(&mut self, aws: &Aws) -> Result<Vec<String>, Cut> {
        match aws.credential_source().await {
            Ok(source) => {
                let passed_over = aws.passed_over().to_vec();
                self.passed(Check::Credentials, Fact::Credentials { source, passed_over });
            }
            Err(error) => return Err(self.cut(Check::Credentials, error)),
        }
        match aws.caller().await {
            Ok(caller) => {
                let now = SystemTime::UNIX_EPOCH + clock::wall();
                let left = caller.expires.map(|end| end.duration_since(now).unwrap_or_default());
                let expires = caller.expires;
                self.place.role_arn = aws.role_arn().map(str::to_owned);
                self.place.caller = Some(Arc::new(caller));
                match (left.filter(|left| *left < SOON), aws.clock_off()) {
                    (Some(left), _) => self.doubtful(Check::Identity, Trouble::Expiring { left }),
                    (None, Some(off)) => self.doubtful(Check::Identity, Trouble::Clock(off)),
                    (None, None) => self.passed(Check::Identity, Fact::Identity { expires }),
                }
            }
            Err(error) => return Err(self.cut(Check::Identity, error)),
        }
        self.privilege(aws).await;
        let (wanted, imports) = (&self.subject.clusters, !self.subject.imported.is_empty());
        let is_enough = imports || !self.subject.hosts.is_empty();
        if let Wanted::Named(names) = wanted
            && names.is_empty()
        {
            let reason = || if imports { Reason::Imported } else { Reason::NotAnApiServer };
            self.skip_for([Check::ListClusters], reason);
            return Ok(Vec::new());
        }
        match aws.list_clusters().await {
            Ok(names) if names.is_empty() && !is_enough && *wanted == Wanted::All => {
                self.failed(Check::ListClusters, Trouble::NoClusters);
                self.skip(Check::after(Check::ListClusters), Check::ListClusters);
                Err(Cut)
            }
            Ok(names) => {
                self.passed(Check::ListClusters, Fact::Clusters(names.clone()));
                Ok(match wanted {
                    Wanted::All => names,
                    Wanted::Named(wanted) => wanted.clone(),
                })
            }
            Err(error @ AwsError::AccessDenied { .. }) => match wanted {
                // Whoever names the clusters need not list them, and imported ones are reached without EKS.
                Wanted::Named(wanted) => {
                    self.doubtful(Check::ListClusters, Trouble::Aws(error));
                    Ok(wanted.clone())
                }
                Wanted::All if is_enough => {
                    self.doubtful(Check::ListClusters, Trouble::Aws(error));
                    Ok(Vec::new())
                }
                Wanted::All => Err(self.cut(Check::ListClusters, error)),
            },
            Err(error) => Err(self.cut(Check::ListClusters, error)),
        }
    }

    fn cut(&mut self, check: Check, error: AwsError) -> Cut {
        self.failed(check, Trouble::Aws(error));
        self.skip(Check::after(check), check);
        Cut
    }

    /// Looks at what EKS says of a cluster, and at its tunnel if there is a manager. The error is the name, with the
    /// check that has failed.
    async fn cluster(&mut self, aws: &Aws, name: &str) -> Result<(Arc<ClusterDescription>, Cluster), (String, Check)> {
        let rest = Check::OF_CLUSTER.iter().copied();
        let trouble = match aws.describe_cluster(name).await {
            Ok(Some(description)) => Ok(description),
            Ok(None) => Err(Trouble::NoSuchCluster),
            Err(error) => Err(Trouble::Aws(error)),
        };
        let description = match trouble {
            Ok(description) => Arc::new(description),
            Err(trouble) => {
                self.failed(Check::DescribeCluster, trouble);
                self.skip(rest.skip(1), Check::DescribeCluster);
                return Err((name.to_owned(), Check::DescribeCluster));
            }
        };
        self.place.description = Some(Arc::clone(&description));
        self.passed(Check::DescribeCluster, Fact::Described);
        let cluster = match &description.access {
            Ok(cluster) => cluster.clone(),
            Err(reason) => {
                self.failed(Check::ClusterStatus, Trouble::Unusable(reason.clone()));
                self.skip(rest.skip(2), Check::ClusterStatus);
                return Err((name.to_owned(), Check::ClusterStatus));
            }
        };
        self.passed(Check::ClusterStatus, Fact::Usable);
        let goes_straight = |bastion: &Bastion| matches!(bastion, Bastion::Direct);
        if description.endpoint_private {
            self.passed(Check::EndpointAccess, Fact::PrivateEndpoint);
        } else if self.subject.bastions.iter().any(goes_straight) {
            self.passed(Check::EndpointAccess, Fact::PublicEndpoint);
        } else {
            self.doubtful(Check::EndpointAccess, Trouble::PublicOnly);
        }
        if let Some(port) = self.subject.ports.get(name) {
            self.local_port(aws, &cluster, *port).await;
        }
        Ok((description, cluster))
    }

    /// Looks at the tunnel to a cluster that was imported, if there is a manager: EKS has nothing to say of it.
    async fn imported(&mut self, aws: &Aws, mut cluster: Cluster, port: Option<u16>) -> Cluster {
        if let (true, Some(caller)) = (cluster.account.is_empty(), &self.place.caller) {
            cluster.account.clone_from(&caller.account);
        }
        self.place.name(None, Some(&cluster));
        self.skip_for(Check::OF_CLUSTER, || Reason::Imported);
        if let Some(port) = port {
            self.local_port(aws, &cluster, port).await;
        }
        cluster
    }

    async fn local_port(&mut self, aws: &Aws, cluster: &Cluster, port: u16) {
        match Box::pin(local_port(aws, cluster, port, self.limits)).await {
            Ok(status) => self.passed(Check::LocalPort, Fact::LocalPort { port, status }),
            Err(trouble) => self.failed(Check::LocalPort, trouble),
        }
    }

    /// Looks at what is known of the bastions.
    async fn bastions(&mut self, aws: &Aws, remotes: &[&Remote]) -> Vec<Way> {
        let subject = self.subject;
        if subject.bastions.is_empty() {
            self.doubtful(Check::BastionKnown, Trouble::NoBastion);
            self.skip(Check::OF_BASTION.iter().copied().skip(1), Check::BastionKnown);
        }
        let routes = Routes::new(aws, Some(REASON), None, None)
            .looking_at(subject.tasks_of.clone())
            .with_ssh(&subject.ssh, None);
        let mut ways = Vec::with_capacity(subject.bastions.len());
        for bastion in &subject.bastions {
            self.place.route = Some(bastion.to_string());
            self.place.target = bastion.target().cloned();
            ways.push(match bastion {
                Bastion::Target(target) => match self.bastion(aws, target).await {
                    Ok(()) => Way::Sessions(target.clone()),
                    Err(check) => Way::Broken(check),
                },
                Bastion::Found(_) | Bastion::Fargate(_) => self.search(&routes, bastion, remotes).await,
                Bastion::Ssh(server) => {
                    let steps = routes.walk_to_server(server).await;
                    self.steps(steps).map_or_else(|| Way::Straight(routes.route(bastion)), Way::Broken)
                }
                Bastion::Direct => {
                    self.skip_for(Check::OF_BASTION.iter().copied(), || Reason::NotNeeded);
                    Way::Straight(routes.route(bastion))
                }
            });
            (self.place.route, self.place.target) = (None, None);
        }
        ways
    }

    /// Looks for the targets of a bastion, which may be others for each that it is to lead to, step by step.
    async fn search(&mut self, routes: &Routes, bastion: &Bastion, remotes: &[&Remote]) -> Way {
        let mut by_remote = BTreeMap::new();
        let mut by_place = BTreeMap::new();
        for to in remotes {
            let place = routes.place(bastion, to);
            if !by_place.contains_key(&place) {
                let walk = routes.walk(bastion, to).await;
                self.place.target = walk.targets.first().cloned();
                let failed = self.steps(walk.steps);
                by_place.insert(place.clone(), failed.map_or(Ok(walk.targets), Err));
            }
            by_remote.extend(by_place.get(&place).map(|targets| (to.id(), targets.clone())));
        }
        if remotes.is_empty() {
            self.skip(Check::OF_BASTION.iter().copied(), Check::DescribeCluster);
        }
        Way::Found(by_remote)
    }

    /// Reports steps, and returns the one that has failed.
    fn steps(&mut self, steps: Vec<Step>) -> Option<Check> {
        let mut failed = None;
        for Step { name, tried, told } in steps {
            let check = Check::from(name);
            self.tried = Some(tried);
            match told {
                Told::Passed(text) => self.passed(check, Fact::Told(text)),
                Told::Doubtful { said, means, hints } => self.doubtful(check, Trouble::Doubt { said, means, hints }),
                Told::Failed(fault) => {
                    failed = Some(check);
                    self.failed(check, Trouble::NotFound(fault));
                }
                Told::Needs(needed) => self.skip([check], needed.into()),
                Told::Unknown => self.skip_for([check], || Reason::NotListed),
                Told::Untold { why, hints } => {
                    self.skip_for([check], || Reason::Untold { why: why.clone(), hints: hints.clone() });
                }
            }
        }
        failed
    }

    /// The error is the check that has failed.
    async fn bastion(&mut self, aws: &Aws, target: &Target) -> Result<(), Check> {
        let sighting = match managed_node(aws, target).await {
            Ok(Knowledge::Seen(sighting)) => sighting,
            Ok(Knowledge::Absent) => {
                self.failed(Check::BastionKnown, Trouble::NotManaged);
                self.skip([Check::BastionOnline, Check::AgentVersion], Check::BastionKnown);
                return Err(Check::BastionKnown);
            }
            Ok(Knowledge::Unknown) => {
                self.skip_for(Check::OF_BASTION.iter().copied(), || Reason::NotListed);
                return Ok(());
            }
            Err(error) => {
                self.skip_for(Check::OF_BASTION.iter().copied(), || Reason::Unasked(error.clone()));
                return Ok(());
            }
        };
        self.passed(Check::BastionKnown, Fact::Managed);
        self.agent(sighting)
    }

    fn agent(&mut self, sighting: Sighting) -> Result<(), Check> {
        if !sighting.in_contact {
            self.failed(Check::BastionOnline, Trouble::Offline(sighting));
            self.skip([Check::AgentVersion], Check::BastionOnline);
            return Err(Check::BastionOnline);
        }
        self.passed(Check::BastionOnline, Fact::Online);
        let Some(text) = sighting.agent_version else {
            self.skip_for([Check::AgentVersion], || Reason::NotListed);
            return Ok(());
        };
        match Version::parse(&text) {
            Some(version) if version < Version::FIRST_AGENT_WITH_REMOTE_HOST => {
                self.failed(Check::AgentVersion, Trouble::AgentTooOld { version: text });
                Err(Check::AgentVersion)
            }
            _ => {
                self.passed(Check::AgentVersion, Fact::AgentVersion(text));
                Ok(())
            }
        }
    }

    // Findings.

    fn passed(&mut self, check: Check, fact: Fact) {
        self.found(check, Outcome::Passed(fact));
    }

    fn doubtful(&mut self, check: Check, trouble: Trouble) {
        self.found(check, Outcome::Doubtful(trouble));
    }

    fn failed(&mut self, check: Check, trouble: Trouble) {
        self.found(check, Outcome::Failed(trouble));
    }

    fn skip(&mut self, checks: impl IntoIterator<Item = Check>, needed: Check) {
        self.skip_for(checks, || Reason::Needs(needed));
    }

    fn skip_for(&mut self, checks: impl IntoIterator<Item = Check>, reason: impl Fn() -> Reason) {
        for check in checks {
            self.found(check, Outcome::Skipped(reason()));
        }
    }

    fn found(&mut self, check: Check, outcome: Outcome) {
        let now = self.clock.now().mono;
        let took = now.saturating_sub(std::mem::replace(&mut self.since, now));
        let (place, tried) = (self.place.clone(), self.tried.take());
        (self.report)(Finding { check, place, tried, outcome, took });
    }
}

/// Makes a token for a cluster; `None` for one that takes none of AWS.
async fn token(aws: &Aws, cluster: &Cluster) -> Result<Option<Secret<String>>, Trouble> {
    let Some(name) = cluster.token_name() else { return Ok(None) };
    aws.bearer_token(name).await.map(|token| Some(token.token)).map_err(Trouble::Aws)
}

/// Asks the API server through the manager's own tunnel, and returns the HTTP status.
async fn local_port(aws: &Aws, cluster: &Cluster, port: u16, limits: Limits) -> Result<u16, Trouble> {
    let token = token(aws, cluster).await?;
    let probed = |error| Trouble::Fault(SessionFault::Probe(error));
    let probe = Probe::new(cluster).map_err(probed)?;
    let connected = async {
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(Trouble::Port)?;
        probe.connect(tcp).await.map_err(probed)
    };
    let tls = match timeout(limits.reach, connected).await {
        Ok(outcome) => outcome?,
        Err(_) => return Err(probed(ProbeError::NoAnswer { seconds: limits.reach.as_secs() })),
    };
    let mut api = Api::over(tls, cluster, token.as_ref(), limits.request).await.map_err(Trouble::Api)?;
    api.livez().await.map_err(Trouble::Api)
}

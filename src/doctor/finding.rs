//! What was found: the checks, and what may come of them.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{ApiError, User, privilege::Narrower};
use crate::{
    aws::{AwsError, Caller, ClusterDescription, Off, SkipReason},
    bastion::Target,
    cluster::{Cluster, Destination},
    fault::Fault,
    iam::Excess,
    remote::Remote,
    route::{
        ssm::{DialError, SessionFault, SessionId, targets::Sighting},
        step::StepName,
    },
    settings::PassedOver,
    setup::Made,
    util::peer_text::PeerText,
};

/// One link of the chain. The order is that of the examination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// A region is known.
    Region,
    /// There are credentials.
    Credentials,
    /// They are good, for somebody, and for how long.
    Identity,
    /// The caller's role may no more than is needed.
    Privilege,
    /// EKS lists its clusters.
    ListClusters,
    /// EKS describes the cluster.
    DescribeCluster,
    /// The cluster is in a state in which there can be a tunnel.
    ClusterStatus,
    /// The API server has an endpoint in the VPC.
    EndpointAccess,
    /// The manager's tunnel answers.
    LocalPort,
    /// The bastion is a managed node.
    BastionKnown,
    /// Its agent is in contact with Systems Manager.
    BastionOnline,
    /// Its agent forwards to remote hosts.
    AgentVersion,
    /// A step of its own kind, for one that is looked for. These come in the order in which they are told, among the three
    /// above.
    Step(StepName),
    /// A session can be started.
    StartSession,
    /// Its WebSocket can be opened.
    DataChannel,
    /// The agent answers on it.
    Handshake,
    /// The bastion reaches the API server.
    Endpoint,
    /// It is the right one.
    Certificate,
    /// It takes the token.
    Api,
    /// Who the caller is to it.
    WhoAmI,
    /// What every smoke test does is allowed.
    ListPods,
    /// A lost WebSocket can be replaced.
    ResumeSession,
    /// The session can be ended.
    TerminateSession,
    /// What `setup` has made for the bastion is all there.
    Setup,
}

impl Check {
    /// All, in their order, but for those that only some kinds of bastions have.
    pub const ALL: [Self; 22] = [
        Self::Region,
        Self::Credentials,
        Self::Identity,
        Self::Privilege,
        Self::ListClusters,
        Self::DescribeCluster,
        Self::ClusterStatus,
        Self::EndpointAccess,
        Self::LocalPort,
        Self::BastionKnown,
        Self::BastionOnline,
        Self::AgentVersion,
        Self::StartSession,
        Self::DataChannel,
        Self::Handshake,
        Self::Endpoint,
        Self::Certificate,
        Self::Api,
        Self::WhoAmI,
        Self::ListPods,
        Self::ResumeSession,
        Self::TerminateSession,
    ];

    /// Those of each cluster that EKS answers.
    pub const OF_CLUSTER: [Self; 3] = [Self::DescribeCluster, Self::ClusterStatus, Self::EndpointAccess];

    /// Those of each bastion.
    pub const OF_BASTION: [Self; 3] = [Self::BastionKnown, Self::BastionOnline, Self::AgentVersion];

    /// Those of each cluster that are made through a session.
    pub const OF_SESSION: [Self; 10] = [
        Self::StartSession,
        Self::DataChannel,
        Self::Handshake,
        Self::Endpoint,
        Self::Certificate,
        Self::Api,
        Self::WhoAmI,
        Self::ListPods,
        Self::ResumeSession,
        Self::TerminateSession,
    ];

    /// Those of what only an API server answers.
    pub const OF_API_SERVER: [Self; 4] = [Self::Certificate, Self::Api, Self::WhoAmI, Self::ListPods];

    /// Those that come after one, but for that of a tunnel, which there may not be.
    pub fn after(check: Self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |other| *other > check && *other != Self::LocalPort)
    }

    /// Returns the name for programs.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Credentials => "credentials",
            Self::Identity => "identity",
            Self::Privilege => "least-privilege",
            Self::ListClusters => "list-clusters",
            Self::DescribeCluster => "describe-cluster",
            Self::ClusterStatus => "cluster-status",
            Self::EndpointAccess => "endpoint-access",
            Self::LocalPort => "local-port",
            Self::BastionKnown => StepName::KNOWN.id,
            Self::BastionOnline => StepName::ONLINE.id,
            Self::AgentVersion => StepName::AGENT_VERSION.id,
            Self::Step(name) => name.id,
            Self::StartSession => "start-session",
            Self::DataChannel => "data-channel",
            Self::Handshake => "handshake",
            Self::Endpoint => "endpoint",
            Self::Certificate => "certificate",
            Self::Api => "api",
            Self::WhoAmI => "who-am-i",
            Self::ListPods => "list-pods",
            Self::ResumeSession => "resume-session",
            Self::TerminateSession => "terminate-session",
            Self::Setup => "setup",
        }
    }
}

impl From<StepName> for Check {
    fn from(name: StepName) -> Self {
        match name {
            StepName::KNOWN => Self::BastionKnown,
            StepName::ONLINE => Self::BastionOnline,
            StepName::AGENT_VERSION => Self::AgentVersion,
            other => Self::Step(other),
        }
    }
}

/// What came of one check.
#[derive(Debug)]
pub struct Finding {
    /// The check.
    pub check: Check,
    /// What it was about.
    pub place: Place,
    /// What was tried, if that is not known from the check.
    pub tried: Option<String>,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// What a check is about, as far as it was known by then.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The region.
    pub region: Option<String>,
    /// Whose credentials are used.
    pub caller: Option<Arc<Caller>>,
    /// The role that was assumed, with its path.
    pub role_arn: Option<String>,
    /// The name of the cluster, for checks of one.
    pub cluster: Option<String>,
    /// What EKS says of it.
    pub description: Option<Arc<ClusterDescription>>,
    /// Where it answers, if EKS does not say it: it was imported, or is another host.
    pub imported: Option<Destination>,
    /// What the route is called, for checks of one.
    pub route: Option<String>,
    /// The bastion, if it is one of Systems Manager.
    pub target: Option<Target>,
    /// The session document, if it is one of the user's.
    pub document: Option<String>,
}

impl Place {
    /// Changes which cluster it is about.
    pub(super) fn name(&mut self, description: Option<Arc<ClusterDescription>>, cluster: Option<&Cluster>) {
        self.cluster = cluster.map(|cluster| cluster.name.clone());
        self.description = description;
        self.imported = cluster.filter(|cluster| cluster.imported().is_some()).map(|cluster| cluster.endpoint.clone());
    }
}

impl Place {
    /// Changes which cluster or host it is about.
    pub(super) fn name_remote(&mut self, description: Option<Arc<ClusterDescription>>, to: &Remote) {
        self.name(description, to.cluster());
        if let Remote::Host(host) = to {
            (self.cluster, self.imported) = (Some(host.name.clone()), Some(host.endpoint.clone()));
        }
    }
}

/// What comes of a check.
#[derive(Debug)]
pub enum Outcome {
    /// It is as it should be.
    Passed(Fact),
    /// It works, or is not needed, and yet somebody may want to change it.
    Doubtful(Trouble),
    /// It does not work.
    Failed(Trouble),
    /// It was not tried.
    Skipped(Reason),
}

/// What is as it should be.
#[derive(Debug)]
pub enum Fact {
    /// The region.
    Region(String),
    /// There are credentials.
    Credentials {
        /// From where, in words.
        source: String,
        /// What else there was.
        passed_over: Vec<PassedOver>,
    },
    /// They are those of the place's caller.
    Identity {
        /// Until when.
        expires: Option<SystemTime>,
    },
    /// The caller's role is allowed no more than is needed.
    NoMore {
        /// Its name.
        role: String,
    },
    /// The names of all clusters.
    Clusters(Vec<String>),
    /// A step has come to this.
    Told(String),
    /// The place has the description.
    Described,
    /// There can be a tunnel to the cluster.
    Usable,
    /// There is an endpoint in the VPC.
    PrivateEndpoint,
    /// The endpoint is public, which is all that this route takes.
    PublicEndpoint,
    /// The manager's tunnel leads to the API server.
    LocalPort {
        /// The local port.
        port: u16,
        /// What the API server answered.
        status: u16,
    },
    /// The bastion is a managed node.
    Managed,
    /// Its agent is in contact.
    Online,
    /// Its agent is new enough.
    AgentVersion(PeerText),
    /// A session was started and has its WebSocket.
    Session(SessionId),
    /// A session was started.
    Started,
    /// The gateway has taken the signature.
    DataChannel,
    /// The agent's handshake is complete.
    Handshake(String),
    /// Something answers at the endpoint.
    Reached,
    /// It is the API server of the cluster.
    Verified,
    /// It has answered with this HTTP status, and knows the caller if it was told one.
    Answered(u16),
    /// The caller, as it knows him.
    User(User),
    /// The caller may list pods.
    MayListPods,
    /// The session has been resumed.
    Resumed,
    /// The session has been ended.
    Terminated,
    /// All that `setup` has made for the bastion is there, as far as it may be looked at.
    Whole {
        /// How many pieces.
        pieces: usize,
        /// How many of them may not be looked at.
        unseen: usize,
    },
}

/// What is not as it should be.
#[derive(Debug)]
pub enum Trouble {
    /// A call failed, or could not be made.
    Aws(AwsError),
    /// The credentials are about to end.
    Expiring {
        /// How long they last.
        left: Duration,
    },
    /// The caller's role is allowed more than is needed.
    TooMuch {
        /// Its name.
        role: String,
        /// By which statements; never empty.
        excess: Vec<Excess>,
        /// What prints the policy that allows no more.
        narrower: Narrower,
    },
    /// There are no clusters.
    NoClusters,
    /// There is no cluster of this name.
    NoSuchCluster,
    /// There can be no tunnel to the cluster.
    Unusable(SkipReason),
    /// The API server has no endpoint in the VPC.
    PublicOnly,
    /// Nothing listens on the local port, or it cannot be connected to.
    Port(io::Error),
    /// No bastion was given.
    NoBastion,
    /// Systems Manager does not know the bastion.
    NotManaged,
    /// The bastion's agent has lost contact.
    Offline(Sighting),
    /// The bastion's agent does not forward to remote hosts.
    AgentTooOld {
        /// Its version.
        version: PeerText,
    },
    /// A session could not be started, opened or ended.
    Dial(DialError),
    /// The gateway has refused the signature, and has taken the WebSocket without one.
    Unsigned {
        /// What it said.
        said: PeerText,
    },
    /// The clock of this machine is wrong.
    Clock(Off),
    /// The session, or what was tried through it, has failed.
    Fault(SessionFault),
    /// The agent cannot resolve the endpoint's name.
    Unresolvable {
        /// What it said.
        said: PeerText,
    },
    /// The agent does not forward to the endpoint.
    Refused {
        /// What it said.
        said: PeerText,
    },
    /// The API server is not reached, or not proved, on a route that knows why.
    NotReached(Arc<Fault>),
    /// No target was found that takes sessions.
    NotFound(Arc<Fault>),
    /// A step has come to something that somebody may want to change.
    Doubt {
        /// What was found.
        said: String,
        /// What that means.
        means: String,
        /// What to do about it.
        hints: Vec<String>,
    },
    /// A request to the API server has failed.
    Api(ApiError),
    /// The API server does not know the caller.
    Unauthorized,
    /// The API server is not well, by this HTTP status.
    Status(u16),
    /// The caller may not list pods.
    MayNotListPods {
        /// His name, if the API server tells.
        user: Option<PeerText>,
    },
    /// Some of what `setup` has made for the bastion is missing, or not as it has to be.
    Incomplete(Made),
}

/// Why a check was not made.
#[derive(Debug)]
pub enum Reason {
    /// Another has failed.
    Needs(Check),
    /// The list of managed nodes does not have such targets, or does not say.
    NotListed,
    /// The list of managed nodes, which is optional, cannot be had.
    Unasked(AwsError),
    /// The policies of the caller's role, which few may read, cannot be had.
    Unread(AwsError),
    /// What `setup` has made, which few may look at, cannot be seen.
    Unseen(AwsError),
    /// What a step would have told cannot be found out.
    Untold { why: String, hints: Vec<String> },
    /// The API server is too old to be asked.
    NotServed,
    /// The agent has ended the session.
    SessionOver,
    /// This route has nothing of the kind.
    NotNeeded,
    /// EKS has nothing to do with a cluster that was imported.
    Imported,
    /// Another host is not asked what it speaks.
    NotAnApiServer,
    /// The user of an imported context is the user's own, whose credentials are not used here.
    TheirUser,
}

//! Everything that can go wrong on the way to an SSH server, what it means for the link, and what to do about it.

use std::sync::Arc;

use super::{
    client::{ClientError, LoginError, OpenError},
    host_keys::{HostKey, Verdict},
    place::ENDPOINT_PORT,
};
use crate::{
    aws::{AwsError, advice, error::Refusal, tunnel::TunnelError},
    bastion::{KeySource, SshBastion},
    fault::{BoxError, Class, Fault},
    util::{peer_text::PeerText, quote::command},
};

/// The users that images have, the usual one first (EC2 user guide, "Default user names").
pub(super) const USERS: [&str; 6] = ["ec2-user", "ubuntu", "admin", "centos", "fedora", "rocky"];

/// Something that went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum SshFault {
    #[error(transparent)]
    Aws(AwsError),
    #[error("there is no instance `{what}` in {region} of this account")]
    NoInstance { what: String, region: String, is_group: bool },
    #[error("instance `{id}` does not run: it is {state}")]
    NotRunning { id: String, state: PeerText },
    /// The name leads to no instance that EC2 knows.
    #[error("no instance in {region} of this account has the name or address `{host}`")]
    UnknownHost { host: String, region: String },
    #[error("instance `{id}` has no address")]
    NoAddress { id: String },
    #[error("the network `{vpc}` of `{id}` has no EC2 Instance Connect Endpoint")]
    NoEndpoint { id: String, vpc: String },
    /// No connection to the server, or none to the endpoint.
    #[error("no connection to `{peer}`")]
    Unreachable {
        peer: String,
        #[source]
        source: BoxError,
    },
    /// A step took too long.
    #[error("{step} took longer than {seconds} s")]
    Timeout { step: &'static str, seconds: u64 },
    /// The EC2 Instance Connect Endpoint opens no tunnel.
    #[error("`{endpoint}` opens no tunnel to the bastion")]
    Endpoint {
        endpoint: String,
        #[source]
        source: TunnelError,
    },
    #[error("there is no SSH session with {place}")]
    Client {
        place: String,
        #[source]
        source: ClientError,
    },
    /// The server's key is not what it should be, or not known.
    #[error("{}", said(known_as, key, verdict))]
    HostKey { known_as: String, place: String, key: Box<HostKey>, verdict: Box<Verdict> },
    /// The key could not be pushed.
    #[error("no key could be pushed to `{instance}`")]
    Push {
        instance: String,
        #[source]
        source: AwsError,
    },
    #[error(transparent)]
    Login(LoginError),
    #[error("there is no SSH agent: `SSH_AUTH_SOCK` is not set")]
    NoAgent,
    /// The server does not forward, or not there.
    #[error("the bastion opens no connection to `{destination}`")]
    NotForwarded {
        destination: String,
        #[source]
        source: OpenError,
    },
    #[error("the connection to the SSH server is lost")]
    Lost(#[source] Arc<ClientError>),
    /// This is a bug, or the system has no random numbers.
    #[error("no key could be made")]
    NoKey(#[source] BoxError),
}

/// Says what is wrong with a key.
fn said(known_as: &str, key: &HostKey, verdict: &Verdict) -> String {
    let shown = format!("{} ({})", key.fingerprint(), key.kind);
    match verdict {
        Verdict::Changed { place, known } => {
            let known: Vec<String> = known
                .iter()
                .map(
                    |(fingerprint, kind)| {
                        if kind.is_empty() { fingerprint.clone() } else { format!("{fingerprint} ({kind})") }
                    },
                )
                .collect();
            format!(
                "the host key of `{known_as}` is another than the known one: it is {shown}, and {place} says {}",
                known.join(" or ")
            )
        }
        Verdict::Revoked { place } => format!("the host key of `{known_as}` is revoked: {shown}, by {place}"),
        Verdict::New | Verdict::Known => format!("the host key of `{known_as}` is not known: it is {shown}"),
    }
}

impl SshFault {
    fn class(&self) -> Class {
        match self {
            Self::NoInstance { is_group: true, .. }
            | Self::NotRunning { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. } => Class::Away,
            Self::NoInstance { .. } | Self::UnknownHost { .. } | Self::NoAddress { .. } | Self::NoEndpoint { .. } => {
                Class::Gone
            }
            Self::Endpoint { source: TunnelError::Refused { status: 401 | 403, .. }, .. }
            | Self::NoAgent
            | Self::Login(LoginError::Refused { .. } | LoginError::NoAgent { .. } | LoginError::NoKey { .. }) => {
                Class::Denied
            }
            Self::Endpoint { source: TunnelError::Refused { status: 429, .. }, .. } => Class::Throttled,
            Self::Endpoint { source: TunnelError::Refused { status: 400..=499, .. }, .. }
            | Self::NotForwarded { source: OpenError::Prohibited, .. } => Class::Refused,
            Self::NotForwarded { .. } => Class::Useless,
            Self::HostKey { .. }
            | Self::Endpoint { source: TunnelError::Foreign { .. }, .. }
            | Self::Client {
                source:
                    ClientError::HostKey(_)
                    | ClientError::NoHostKey { .. }
                    | ClientError::NoCommon { .. }
                    | ClientError::NotSsh,
                ..
            } => Class::Unfit,
            Self::Push { source: AwsError::Refused { refusal: Refusal::Absent, .. }, .. } => Class::Gone,
            Self::Push { source, .. } | Self::Aws(source) | Self::Endpoint { source: TunnelError::Aws(source), .. } => {
                advice::fault(source.clone()).class
            }
            Self::Endpoint { .. } | Self::Client { .. } | Self::Login(LoginError::Client(_)) => Class::Transient,
            Self::Lost(_) => Class::Over,
            Self::NoKey(_) => Class::Bug,
        }
    }

    /// Makes a fault of it, with what to do about it.
    pub(super) fn into_fault(self, bastion: &SshBastion, region: &str) -> Arc<Fault> {
        let (class, hints) = (self.class(), self.hints(bastion, region));
        // An error of AWS says itself what it is.
        let fault = if let Self::Aws(error) = self { Fault::new(class, error) } else { Fault::new(class, self) };
        Arc::new(fault.with_hints(hints))
    }

    fn hints(&self, bastion: &SshBastion, region: &str) -> Vec<String> {
        match self {
            Self::Aws(error) | Self::Push { source: error, .. } => advice::assess(error).1,
            Self::NoInstance { what, .. } => vec![command!(
                "`aws ec2 describe-instances --region {}` lists the instances: check `{}`, the region and the account",
                region,
                what
            )],
            Self::NotRunning { id, .. } => {
                vec![command!("start it: `aws ec2 start-instances --instance-ids {} --region {}`", id, region)]
            }
            Self::UnknownHost { .. } => vec![
                "name the instance: `?instance=i-…`, or `?instance=tag:KEY=VALUE`, or `name:` or `asg:` in place of `tag:`".to_owned(),
                "or use a key of your SSH agent, which needs no instance: `?key=agent`".to_owned(),
            ],
            Self::NoAddress { .. } | Self::NoKey(_) => Vec::new(),
            Self::NoEndpoint { vpc, .. } => vec![command!(
                "`aws ec2 create-instance-connect-endpoint --subnet-id SUBNET --region {}` makes one in a subnet of `{}`; without \
                 one the instance needs an address that this machine reaches: `via=direct`",
                region,
                vpc
            )],
            Self::Unreachable { .. } | Self::Timeout { .. } => vec![
                format!(
                    "the security group of the bastion must admit this machine on port {}, and there must be a way to its \
                     address, by the internet or a VPN",
                    bastion.port
                ),
                "without one, an EC2 Instance Connect Endpoint leads to it: `via=eice`".to_owned(),
            ],
            Self::Endpoint { source: TunnelError::Refused { status: 401 | 403, .. }, endpoint } => vec![
                advice::allow("ec2-instance-connect:OpenTunnel", endpoint),
                "`autoheal-pa policy` prints all that it takes".to_owned(),
            ],
            Self::Endpoint { source: TunnelError::Aws(error), .. } => advice::assess(error).1,
            Self::Endpoint { source: TunnelError::Refused { status: 400, .. }, .. } if bastion.port != ENDPOINT_PORT => {
                vec![format!(
                    "an endpoint leads to port {ENDPOINT_PORT} only: the SSH server must have that, or be reached by its address: \
                     `via=direct`"
                )]
            }
            Self::Endpoint { .. } => Vec::new(),
            Self::Client { source: ClientError::NoHostKey { .. }, .. } => vec![
                "RSA keys of servers are not taken: on the bastion `sudo ssh-keygen -A` makes the others, and `HostKey` in \
                 `sshd_config` must not leave them out"
                    .to_owned(),
            ],
            Self::Client { source: ClientError::NotSsh, .. } => {
                vec![format!("port {} must be that of an SSH server", bastion.port)]
            }
            Self::Client { .. } | Self::Login(LoginError::Client(_)) | Self::Lost(_) => Vec::new(),
            Self::HostKey { known_as, key, verdict, .. } => host_key(known_as, key, verdict),
            Self::Login(LoginError::Refused { user, .. }) => refused(bastion, user),
            Self::Login(LoginError::NoAgent { .. }) | Self::NoAgent => {
                vec!["start one, and add a key: `eval $(ssh-agent)` and `ssh-add`".to_owned()]
            }
            Self::Login(LoginError::NoKey { .. }) => {
                vec!["RSA keys are not supported: add another kind with `ssh-keygen -t ed25519` and `ssh-add`".to_owned()]
            }
            Self::NotForwarded { source: OpenError::Refused, destination } => {
                vec![format!("the bastion must resolve and reach `{destination}`: the cluster's security group must admit it")]
            }
            Self::NotForwarded { source: OpenError::Short | OpenError::Lost, .. } => Vec::new(),
            Self::NotForwarded { source: OpenError::Prohibited, .. } => vec![
                "`sshd_config` on the bastion must say `AllowTcpForwarding yes` or `local`, and neither `DisableForwarding` nor a \
                 `PermitOpen` without this destination"
                    .to_owned(),
            ],
        }
    }
}

/// What to do about a server whose key is not taken.
fn host_key(known_as: &str, key: &HostKey, verdict: &Verdict) -> Vec<String> {
    match verdict {
        Verdict::Changed { .. } => vec![
            "somebody may be in between: ask whoever runs the bastion for its fingerprint".to_owned(),
            command!("if it was made anew, forget the old key: `ssh-keygen -R {} -f FILE`", known_as),
        ],
        Verdict::Revoked { .. } => {
            vec!["ask whoever runs the bastion: a key that is revoked is never taken".to_owned()]
        }
        Verdict::New | Verdict::Known => vec![
            format!("{}, and add `host_key={}` to the address of the bastion", how_to_compare(key), key.fingerprint()),
            "`host_key=new` takes the key of a server that is not known as it comes, and keeps it".to_owned(),
        ],
    }
}

/// Says what a key is to be compared with.
pub(super) fn how_to_compare(key: &HostKey) -> String {
    let kind = if key.kind.contains("ed25519") { "ed25519" } else { "ecdsa" };
    format!("compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` says on the bastion")
}

/// What to do when nobody is let in.
fn refused(bastion: &SshBastion, user: &str) -> Vec<String> {
    let others: Vec<String> = USERS.iter().filter(|other| **other != user).map(|other| format!("`{other}`")).collect();
    let mut hints = vec![format!("the user may be another: {}, as `ssh://USER@…`", others.join(", "))];
    match bastion.key {
        KeySource::Pushed => hints.extend([
            "the bastion needs the package `ec2-instance-connect`, no other `AuthorizedKeysCommand`, its instance metadata \
             switched on, and a clock that is right"
                .to_owned(),
            "the address must be that of the instance itself, not of a load balancer before several; without the package use \
             a key of your SSH agent: `key=agent`"
                .to_owned(),
        ]),
        KeySource::Agent => {
            hints.push("the public key must be in `~/.ssh/authorized_keys` of that user on the bastion".to_owned());
        }
    }
    hints
}

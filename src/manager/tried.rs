//! Which tunnels start a session at once although sessions are started on demand.

use super::OpenAccess;
use crate::{
    bastion::Bastion,
    remote::Remote,
    settings::{Access, ExecIdentity, UpSettings},
    tunnel::Presence,
};

/// The ways on which a tunnel has been started to see whether there can be one.
#[derive(Default)]
pub(super) struct Tried(Vec<Way>);

/// An identity and bastions, by which tunnels lead to many places: if one of them works, the others can be had.
#[derive(PartialEq, Eq)]
struct Way {
    region: Option<String>,
    identity: ExecIdentity,
    bastions: Vec<Bastion>,
    /// The network in which the bastions are looked for or made.
    vpc: Option<String>,
}

impl Tried {
    /// Says when a new tunnel has a link: with sessions on demand, the first one of its way begins with one.
    pub(super) fn presence(&mut self, settings: &UpSettings, access: &OpenAccess, to: &Remote) -> Presence {
        if !settings.on_demand {
            return Presence::Always;
        }
        // Who has kubectl start the tunnels has one at once; who only writes contexts needs none.
        if settings.contexts_only || settings.ends_unused {
            return Presence::OnDemand { idle: settings.idle, proved: false };
        }
        let Access { aws, identity, bastion, .. } = &access.settings;
        let by_vpc = bastion.iter().any(Bastion::needs_vpc);
        let way = Way {
            region: aws.region.clone(),
            identity: identity.clone(),
            bastions: bastion.clone(),
            vpc: to.vpc().filter(|_| by_vpc).map(|vpc| vpc.id.clone()),
        };
        let proved = !self.0.contains(&way);
        if proved {
            self.0.push(way);
        }
        Presence::OnDemand { idle: settings.idle, proved }
    }
}

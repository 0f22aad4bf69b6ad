//! What a measurement needs around it.

use std::net::SocketAddr;

use super::super::{
    BoxError, bare,
    emulator::{self, World},
    processes::{Role, Up, Workshop},
};

/// An emulated AWS, the program with a tunnel to its first cluster, and a bare WebSocket beside that.
pub(crate) struct Stage {
    pub(crate) up: Up,
    pub(crate) bare_client: Role<bare::ClientHello>,
    _bare_server: Role<bare::ServerHello>,
    pub(crate) aws: Role<emulator::Hello>,
}

impl Stage {
    /// Starts all of them; `args` are for `up`.
    pub(crate) async fn start(workshop: &Workshop, world: &World, args: &[&str]) -> Result<Self, BoxError> {
        let aws = workshop.emulator(world).await?;
        let (bare_server, bare_client) = workshop.bare(&aws.hello, world.delay()).await?;
        let up = workshop.up(&aws.hello, args).await?;
        Ok(Self { up, bare_client, _bare_server: bare_server, aws })
    }

    /// The near end of the bare WebSocket.
    pub(crate) fn bare(&self) -> SocketAddr {
        self.bare_client.hello.one_by_one
    }

    /// The near end of the bare WebSocket whose messages travel in batches.
    pub(crate) fn bare_in_batches(&self) -> SocketAddr {
        self.bare_client.hello.in_batches
    }

    /// The near end of the relay to the destination.
    pub(crate) fn relay(&self) -> SocketAddr {
        self.aws.hello.relay
    }

    /// The near end of two relays, one where the program is and one where the agent is.
    pub(crate) fn two_relays(&self) -> SocketAddr {
        self.bare_client.hello.relay
    }
}

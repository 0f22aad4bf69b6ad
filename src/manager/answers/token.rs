//! Tokens for kubectl, and the tunnels that it will use them in.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{sleep, timeout};

use super::{Answers, View};
use crate::{
    clock,
    manager::{
        OpenAccess,
        control::{Answer, Refusal, TokenAnswer, TokenRequest},
        life::Over,
    },
    tunnel::{State, TunnelStatus},
    util::peer_text::sentence,
};

/// How long a tunnel that has failed may take for another try.
const RETRY_LIMIT: Duration = Duration::from_secs(15);

/// How often a tunnel is told that somebody waits for it: it is kept for longer than that.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

impl Answers {
    /// Returns a token. For a context by which kubectl starts tunnels that is when the tunnel takes connections, or when it
    /// is known why it does not.
    pub(super) async fn token(self, request: &TokenRequest) -> Result<Answer, Refusal> {
        // Whoever waits uses it, too.
        let _using = self.life.using().map_err(|Over| stopping())?;
        if let Some(kubeconfig) = &request.starts {
            let mut state = self.view.state.clone();
            let state = state.wait_for(|state| state.opened).await.map_err(|_gone| stopping())?;
            let own = state.kubeconfig.as_ref().map(|path| path.display().to_string());
            if own.as_ref() != Some(kubeconfig) {
                return Err(other_kubeconfig(&self.view.name, own.as_deref()));
            }
        }
        let (access, port) = self.view.tunnel_of(request)?;
        if request.starts.is_some() {
            self.usable(&access, port).await?;
        }
        let token = access.aws.bearer_token(&request.cluster).await;
        let token = token.map_err(|error| Refusal::new("credentials", sentence(&error)))?;
        // What asks next finds the ports bound for as long as the token is good.
        let lasts = self.life.used().map_err(|Over| stopping())?;
        let until = lasts.map(|lasts| SystemTime::UNIX_EPOCH + clock::wall() + lasts);
        let expires = until.map_or(token.expires, |until| until.min(token.expires));
        let port = self.view.state.borrow().proxy_port.or(Some(port));
        Ok(Answer::Token(TokenAnswer { token: token.token, expires, port }))
    }

    /// Waits until a tunnel can be used, starting what it needs.
    async fn usable(&self, access: &OpenAccess, port: u16) -> Result<(), Refusal> {
        let mut board = self.view.board.clone();
        let of = |tunnels: &[TunnelStatus]| tunnels.iter().find(|tunnel| tunnel.port == port).cloned();
        let first = of(&board.borrow().tunnels).ok_or_else(stopping)?;
        let mut limit = self.view.timeout;
        if first.state == State::Failed {
            access.common.retry_now();
            limit = RETRY_LIMIT;
        }
        let error_before = first.last_error.as_ref().map(|error| error.at);
        let settled = board.wait_for(|board| {
            of(&board.tunnels).is_none_or(|tunnel| match tunnel.state {
                // One that was there is coming back: connections wait for that.
                State::Active | State::Degraded | State::Reconnecting | State::Stopped => true,
                State::Failed => tunnel.last_error.as_ref().map(|error| error.at) != error_before,
                State::Starting | State::Idle => false,
            })
        });
        // It is wanted for as long as somebody waits, however long it takes to start.
        let keep_wanted = async {
            loop {
                self.wanted.tell(port);
                sleep(TELL_INTERVAL).await;
            }
        };
        tokio::select! {
            biased;
            _settled = timeout(limit, settled) => {}
            () = keep_wanted => {}
        }
        let last = of(&self.view.board.borrow().tunnels).ok_or_else(stopping)?;
        match last.state {
            State::Active | State::Degraded | State::Reconnecting => Ok(()),
            State::Stopped => Err(stopping()),
            State::Failed | State::Starting | State::Idle => Err(unusable(&last, limit)),
        }
    }
}

impl View {
    /// Finds the tunnel that a token is asked for.
    fn tunnel_of(&self, request: &TokenRequest) -> Result<(Arc<OpenAccess>, u16), Refusal> {
        let TokenRequest { cluster, region, account, .. } = request;
        let state = self.state.borrow();
        let tunnel = state.tunnels.iter().find(|tunnel| {
            let Some(known) = tunnel.to.cluster() else { return false };
            known.token_name() == Some(cluster.as_str())
                && known.region == *region
                && account.as_ref().is_none_or(|account| *account == known.account)
        });
        tunnel.map(|tunnel| (Arc::clone(&tunnel.access), tunnel.port)).ok_or_else(|| {
            let message = format!("the manager has no tunnel to `{cluster}` in {region}");
            Refusal::new("unknown-cluster", message)
        })
    }
}

/// Says that the manager has other contexts than the one that asks.
fn other_kubeconfig(name: &str, own: Option<&str>) -> Refusal {
    let contexts = own.map_or_else(|| "no contexts".to_owned(), |own| format!("its contexts in `{own}`"));
    Refusal::new("other-kubeconfig", format!("the manager `{name}` is running, and has {contexts}"))
}

fn stopping() -> Refusal {
    Refusal::new("stopping", "the manager is stopping")
}

/// Says why a tunnel does not take connections, and what to do.
fn unusable(tunnel: &TunnelStatus, limit: Duration) -> Refusal {
    let name = tunnel.to.name();
    let message = match &tunnel.last_error {
        None => format!("the tunnel to `{name}` is not ready after {} s", limit.as_secs()),
        Some(error) => {
            let hints = error.fault.hints.iter().map(|hint| format!("\nhint: {hint}"));
            format!("the tunnel to `{name}` cannot be used: {error}{}", hints.collect::<String>())
        }
    };
    Refusal::new("tunnel", message)
}

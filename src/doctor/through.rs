//! The checks that are made through a session: from its start to its end, and all that is behind the bastion.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::{ApiError, Check, Examination, Fact, Finding, REASON, Reason, Trouble, Way, api::Api, token};
use crate::{
    aws::Aws,
    bastion::Target,
    cluster::Cluster,
    remote::Remote,
    route::ssm::proto::{self, CloseReason},
    route::{
        ProbeError, Route,
        proof::{after_end, knock},
        ssm::{self, DialError, SessionFault, SoloSession},
    },
    tunnel::Probe,
};

/// Most targets that are tried, of those that were found.
const MAX_TARGETS: usize = 3;

/// What may lead to a cluster.
enum Step<'a> {
    Session(&'a Target),
    Straight(&'a dyn Route),
}

impl<R: FnMut(Finding) + Send> Examination<'_, R> {
    /// Goes to the API server of a cluster, or to another host, on the first route that leads there.
    pub(super) async fn through(&mut self, aws: &Aws, to: &Remote, ways: &[Way]) {
        let mut broken = Check::BastionKnown;
        let mut usable = Vec::new();
        for way in ways {
            match way {
                Way::Sessions(target) => usable.push(Step::Session(target)),
                Way::Found(found) => match found.get(&to.id()) {
                    Some(Ok(targets)) => usable.extend(targets.iter().take(MAX_TARGETS).map(Step::Session)),
                    Some(Err(check)) => broken = *check,
                    None => {}
                },
                Way::Straight(route) => usable.push(Step::Straight(&**route)),
                Way::Broken(check) => broken = *check,
            }
        }
        if usable.is_empty() {
            return self.skip(Check::OF_SESSION.iter().copied(), broken);
        }
        let last = usable.len() - 1;
        for (number, step) in usable.into_iter().enumerate() {
            let leads_there = match step {
                Step::Session(target) => Box::pin(self.by_session(aws, to, target, number == last)).await,
                Step::Straight(route) => Box::pin(self.straight(aws, to, route, number == last)).await,
            };
            if leads_there {
                return;
            }
        }
    }

    /// Goes there through a session. Returns whether the bastion took it.
    async fn by_session(&mut self, aws: &Aws, to: &Remote, target: &Target, is_last: bool) -> bool {
        (self.place.route, self.place.target) = (Some(target.to_string()), Some(target.clone()));
        if let Err(check) = self.start(aws, to, target).await {
            if is_last {
                self.skip(Check::after(check), check);
            }
            return false;
        }
        let established = self.handshake().await;
        if established {
            Box::pin(self.reach(aws, to)).await;
            self.resume().await;
        } else if is_last {
            let rest = Check::after(Check::Handshake).filter(|check| *check < Check::TerminateSession);
            self.skip(rest, Check::Handshake);
        }
        self.end().await;
        established
    }

    /// Goes there by a connection of its own. Returns whether something answered.
    async fn straight(&mut self, aws: &Aws, to: &Remote, route: &dyn Route, is_last: bool) -> bool {
        (self.place.route, self.place.target) = (Some(route.label()), None);
        self.skip_for([Check::StartSession, Check::DataChannel, Check::Handshake], || Reason::NotNeeded);
        let limit = self.limits.reach;
        let Some(connecting) = route.connect(&Arc::new(to.clone()), limit) else { return false };
        let unproved = |error: ProbeError| Trouble::NotReached(Arc::new(error.into_fault(route, to)));
        let opened = match (connecting.await, to.cluster()) {
            (Ok(stream), Some(cluster)) => match Probe::new(cluster) {
                Ok(probe) => match timeout(limit, probe.connect(stream)).await {
                    Ok(outcome) => {
                        outcome.map(|tls| Some((cluster, tls))).map_err(|error| (Check::Certificate, unproved(error)))
                    }
                    Err(_) => Err((Check::Endpoint, unproved(ProbeError::NoAnswer { seconds: limit.as_secs() }))),
                },
                Err(error) => Err((Check::Certificate, unproved(error))),
            },
            (Ok(_stream), None) => Ok(None),
            (Err(fault), _) => Err((Check::Endpoint, Trouble::NotReached(fault))),
        };
        let answers = match opened {
            Ok(opened) => {
                self.passed(Check::Endpoint, Fact::Reached);
                match opened {
                    Some((cluster, tls)) => {
                        self.passed(Check::Certificate, Fact::Verified);
                        Box::pin(self.api(aws, cluster, tls)).await;
                    }
                    None => self.skip_for(Check::OF_API_SERVER, || Reason::NotAnApiServer),
                }
                true
            }
            Err((check, trouble)) => {
                if check == Check::Certificate {
                    self.passed(Check::Endpoint, Fact::Reached);
                }
                self.failed(check, trouble);
                if is_last {
                    let rest = Check::after(check).filter(|check| *check < Check::ResumeSession);
                    self.skip(rest, check);
                }
                check == Check::Certificate
            }
        };
        if answers || is_last {
            self.skip_for([Check::ResumeSession, Check::TerminateSession], || Reason::NotNeeded);
        }
        answers
    }

    /// Starts a session. The error is the check that has failed.
    async fn start(&mut self, aws: &Aws, to: &Remote, target: &Target) -> Result<(), Check> {
        let config = proto::Config { handshake_timeout: self.limits.handshake, ..proto::Config::default() };
        let approvals = self.subject.approvals.as_ref();
        if let Some(approvals) = approvals {
            let step = approvals.walk(target, to, self.limits.approval).await;
            if let Some(failed) = self.steps(vec![step]) {
                return Err(failed);
            }
        }
        let service = ssm::Service::new(aws.clone(), Some(REASON)).approved_by(approvals.cloned());
        let dial = Arc::new(service.clone());
        self.place.document = self.subject.document.as_ref().map(|document| document.of(to.name()));
        match SoloSession::start(dial, target, to.endpoint(), self.place.document.clone(), config, self.clock).await {
            Ok(session) => {
                self.passed(Check::StartSession, Fact::Session(session.id().clone()));
                self.session = Some(session);
                match service.take_signature_refusal() {
                    Some(said) => self.doubtful(Check::DataChannel, Trouble::Unsigned { said: said.into() }),
                    None => self.passed(Check::DataChannel, Fact::DataChannel),
                }
                Ok(())
            }
            Err(error) => {
                let check = if is_of_data_channel(&error) { Check::DataChannel } else { Check::StartSession };
                if check == Check::DataChannel {
                    self.passed(Check::StartSession, Fact::Started);
                }
                self.failed(check, Trouble::Dial(error));
                Err(check)
            }
        }
    }

    /// Waits for the agent. Returns whether it has come.
    async fn handshake(&mut self) -> bool {
        let Some(session) = &mut self.session else { return false };
        match session.established().await {
            Ok(version) => {
                self.passed(Check::Handshake, Fact::Handshake(version));
                true
            }
            Err(fault) => {
                self.failed(Check::Handshake, Trouble::Fault(fault));
                false
            }
        }
    }

    /// Looks at what is behind the bastion.
    async fn reach(&mut self, aws: &Aws, to: &Remote) {
        let Some(session) = &mut self.session else { return };
        let Some(cluster) = to.cluster() else {
            match accepts(session, self.limits.reach).await {
                Ok(()) => {
                    self.passed(Check::Endpoint, Fact::Reached);
                    self.skip_for(Check::OF_API_SERVER, || Reason::NotAnApiServer);
                }
                Err(fault) => {
                    self.failed(Check::Endpoint, of_endpoint(fault));
                    self.skip(Check::OF_API_SERVER, Check::Endpoint);
                }
            }
            return;
        };
        let opened = match Probe::new(cluster) {
            Ok(probe) => open(session, &probe, self.limits.reach).await,
            Err(error) => Err(SessionFault::Probe(error)),
        };
        let api = [Check::Api, Check::WhoAmI, Check::ListPods];
        match opened {
            Ok(tls) => {
                self.passed(Check::Endpoint, Fact::Reached);
                self.passed(Check::Certificate, Fact::Verified);
                Box::pin(self.api(aws, cluster, tls)).await;
            }
            Err(fault) if is_of_certificate(&fault) => {
                self.passed(Check::Endpoint, Fact::Reached);
                self.failed(Check::Certificate, Trouble::Fault(fault));
                self.skip(api, Check::Certificate);
            }
            Err(fault) => {
                self.failed(Check::Endpoint, of_endpoint(fault));
                self.skip([Check::Certificate].into_iter().chain(api), Check::Endpoint);
            }
        }
    }

    async fn api<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &mut self,
        aws: &Aws,
        cluster: &Cluster,
        tls: TlsStream<S>,
    ) {
        let limit = self.limits.request;
        let mut api = match token(aws, cluster).await {
            Err(trouble) => Err(trouble),
            Ok(token) => self.ask(Api::over(tls, cluster, token.as_ref(), limit)).await,
        };
        let status = match &mut api {
            Ok(api) => self.ask(api.livez()).await,
            Err(_) => Ok(0),
        };
        let is_known = cluster.token_name().is_some();
        let api = match (api, status) {
            // Whatever it answers to nobody, it is there.
            (Ok(_), Ok(status)) if !is_known => {
                self.passed(Check::Api, Fact::Answered(status));
                return self.skip_for([Check::WhoAmI, Check::ListPods], || Reason::TheirUser);
            }
            (Ok(api), Ok(status @ (200 | 403))) => {
                self.passed(Check::Api, Fact::Answered(status));
                Some(api)
            }
            (Ok(_), Ok(401)) => {
                self.failed(Check::Api, Trouble::Unauthorized);
                None
            }
            (Ok(_), Ok(status)) => {
                self.failed(Check::Api, Trouble::Status(status));
                None
            }
            (Ok(_), Err(trouble)) | (Err(trouble), _) => {
                self.failed(Check::Api, trouble);
                None
            }
        };
        let Some(mut api) = api else { return self.skip([Check::WhoAmI, Check::ListPods], Check::Api) };
        let mut name = None;
        match self.ask(api.who_am_i()).await {
            Ok(Some(user)) => {
                name = Some(user.name.clone());
                self.passed(Check::WhoAmI, Fact::User(user));
            }
            Ok(None) => self.skip_for([Check::WhoAmI], || Reason::NotServed),
            Err(trouble) => self.doubtful(Check::WhoAmI, trouble),
        }
        match self.ask(api.may_list_pods()).await {
            Ok(true) => self.passed(Check::ListPods, Fact::MayListPods),
            Ok(false) => self.failed(Check::ListPods, Trouble::MayNotListPods { user: name }),
            Err(trouble) => self.doubtful(Check::ListPods, trouble),
        }
    }

    /// Asks the API server something, through the session if there is one.
    async fn ask<T>(&mut self, question: impl Future<Output = Result<T, ApiError>>) -> Result<T, Trouble> {
        // Without a session nothing has to be kept going beside it.
        let Some(session) = &mut self.session else { return question.await.map_err(Trouble::Api) };
        match session.run(question).await {
            Ok(answer) => answer.map_err(Trouble::Api),
            Err(fault) => Err(Trouble::Fault(fault)),
        }
    }

    async fn resume(&mut self) {
        let Some(session) = &mut self.session else { return };
        if session.is_over() {
            return self.skip_for([Check::ResumeSession], || Reason::SessionOver);
        }
        match session.resume().await {
            Ok(()) => self.passed(Check::ResumeSession, Fact::Resumed),
            Err(fault) => self.failed(Check::ResumeSession, Trouble::Fault(fault)),
        }
    }

    async fn end(&mut self) {
        match self.end_session().await {
            Some(Ok(())) => self.passed(Check::TerminateSession, Fact::Terminated),
            Some(Err(error)) => self.failed(Check::TerminateSession, Trouble::Dial(error)),
            None => {}
        }
    }

    /// Ends the session under way, if there is one.
    pub(super) async fn end_session(&mut self) -> Option<Result<(), DialError>> {
        let session = self.session.take()?;
        Some(session.end().await)
    }
}

/// Makes a TLS connection with the API server through a session.
async fn open(
    session: &mut SoloSession,
    probe: &Probe,
    limit: Duration,
) -> Result<TlsStream<DuplexStream>, SessionFault> {
    let (near, ended) = session.connect(limit);
    match session.run(timeout(limit, probe.connect(near))).await? {
        Ok(Ok(tls)) => Ok(tls),
        Ok(Err(error)) => Err(SessionFault::Probe(after_end(error, ended))),
        Err(_) => Err(SessionFault::Probe(ProbeError::NoAnswer { seconds: limit.as_secs() })),
    }
}

/// Finds out whether a host accepts a connection through a session.
async fn accepts(session: &mut SoloSession, limit: Duration) -> Result<(), SessionFault> {
    let (near, ended) = session.connect(limit);
    let outcome = session.run(timeout(limit, knock(near, ended))).await?;
    outcome.unwrap_or(Err(ProbeError::NoAnswer { seconds: limit.as_secs() })).map_err(SessionFault::Probe)
}

/// Whether a session was started, and only its WebSocket could not be had.
fn is_of_data_channel(error: &DialError) -> bool {
    match error {
        DialError::UpgradeRefused { .. } | DialError::ForeignStreamUrl { .. } => true,
        DialError::Unreachable { host, .. } => host.contains("ssmmessages"),
        DialError::Timeout { step, .. } => *step != "start a session",
        DialError::TargetNotConnected { .. }
        | DialError::TargetNotFound { .. }
        | DialError::AccessDenied { .. }
        | DialError::Unapproved(_)
        | DialError::DocumentRefused { .. }
        | DialError::Refused { .. }
        | DialError::SessionEnded { .. }
        | DialError::Throttled { .. }
        | DialError::Credentials { .. }
        | DialError::Service { .. } => false,
    }
}

/// Whether something has answered that is not the API server.
fn is_of_certificate(fault: &SessionFault) -> bool {
    matches!(
        fault,
        SessionFault::Probe(ProbeError::Certificate { .. } | ProbeError::Tls { .. } | ProbeError::Authority { .. })
    )
}

/// Tells a name that the agent cannot resolve, and a destination that it refuses, from everything else. It ends the session
/// with a text, right after the handshake; all texts about names have the words of Go's resolver in them, `lookup HOST`.
fn of_endpoint(fault: SessionFault) -> Trouble {
    if let SessionFault::Closed(reason @ CloseReason::ChannelClosed { output }) = &fault {
        if reason.is_refused_destination() {
            return Trouble::Refused { said: output.clone() };
        }
        if output.contains("lookup ") {
            return Trouble::Unresolvable { said: output.clone() };
        }
    }
    Trouble::Fault(fault)
}

//! Leave to start sessions with nodes, in accounts that take `ssm:StartSession` away: AWS Systems Manager, "Just-in-time node
//! access".
//!
//! A request is made with `StartAccessRequest`, a person or a policy approves it, and `GetAccessToken` then gives credentials
//! that are for sessions with the one node. What is next is decided by [`wait`].
//!
//! Invariants:
//!
//! * There is one request for a node, however many tunnels want sessions with it: whoever comes meanwhile waits for the same.
//! * A request that has been made is not lost with whoever wanted it: its id is noted before anything else happens.
//! * The credentials stay in this process, and are used for sessions with that node alone.
//! * Nobody waits here for longer than the service is asked about, or a person takes; whoever waits is told what for.
//!
//! Leaves out taking a request back, which takes another permission: one that nobody waits for any more expires by itself.

mod calls;
mod wait;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use tokio::{
    sync::{OwnedMutexGuard, watch},
    time::timeout,
};
use tracing::{Instrument, debug, info};
use uuid::Uuid;

use self::wait::{Answer, EARLY, Next, Verdict, Wait};
use super::{
    DialError, SessionFault,
    service::{START_SESSION, dial_error},
};
use crate::{
    aws::{Aws, AwsError},
    bastion::Target,
    clock::Clock,
    fault::{BoxError, Class, Fault},
    remote::Remote,
    route::{
        Report,
        step::{Step, StepName, Told},
    },
    util::{backoff::Jitter, peer_text::sentence, quote::command, time::Now, written::rfc3339},
};

pub(super) const START_ACCESS_REQUEST: &str = "ssm:StartAccessRequest";
pub(super) const GET_ACCESS_TOKEN: &str = "ssm:GetAccessToken";

/// How long whoever comes after one who could not ask is told the same.
const FAILURE_HOLDS: Duration = Duration::from_secs(10);

/// Time between two looks at how long approvals last.
const KEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Why an approval does not lead to a session.
#[derive(Debug, thiserror::Error)]
pub enum Unapproved {
    #[error("access request `{request}` for `{target}` was rejected")]
    Rejected { request: String, target: Target },
    #[error("access request `{request}` for `{target}` has been revoked")]
    Revoked { request: String, target: Target },
    #[error("access request `{request}` for `{target}` has expired before it was approved")]
    Unanswered { request: String, target: Target },
    #[error("access request `{request}` for `{target}` has been withdrawn: Systems Manager does not know it any more")]
    Withdrawn { request: String, target: Target },
    /// It was approved, and that is over.
    #[error("the approval of access to `{target}` is over")]
    Over { target: Target },
    /// Nobody has decided yet, and there is no time to wait.
    #[error("access request `{request}` for `{target}` is not approved yet")]
    Pending { request: String, target: Target },
    /// The approval does not allow what it is needed for.
    #[error("the approval of access request `{request}` does not allow `ssm:StartSession` on `{resource}`")]
    Beyond {
        request: String,
        /// What the service named.
        resource: String,
        /// What it answered.
        #[source]
        source: BoxError,
    },
    /// There is no such thing for containers.
    #[error("access can be requested to instances and managed nodes, and `{target}` is neither")]
    NoNode { target: Target },
}

/// How far the request for one node is, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The node.
    pub target: String,
    /// The request; `None`: there is none at present.
    pub request: Option<String>,
    pub stage: Stage,
    /// Until when sessions can be started for certain.
    pub until: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It has not been requested yet.
    New,
    Waiting,
    Approved,
    /// It was approved, and that is over.
    Over,
    Rejected,
    Revoked,
    /// Nobody has approved it in time.
    Expired,
    Withdrawn,
}

impl Stage {
    /// Returns its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Over => "over",
            Self::Rejected => "rejected",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// Requests of one identity in one region. Cheap to clone.
#[derive(Clone)]
pub struct Approvals {
    inner: Arc<Inner>,
}

struct Inner {
    aws: Aws,
    /// Told to whoever decides.
    reason: String,
    clock: Clock,
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
}

/// A node that access is requested to.
struct Node {
    target: Target,
    /// Held by whoever requests access, or waits for its approval.
    held: Arc<tokio::sync::Mutex<Held>>,
    shown: watch::Sender<Shown>,
}

struct Held {
    wait: Wait,
    jitter: Jitter,
    /// When it could not be asked, by which call, and why. Monotonic.
    failure: Option<(Duration, &'static str, AwsError)>,
    /// It has been approved at some time.
    was_approved: bool,
}

/// What anybody may know without waiting.
struct Shown {
    /// What is waited for, in words.
    progress: Option<String>,
    approval: Approval,
    /// With their end, in time since the Unix epoch by the clock of AWS.
    keys: Option<(Credentials, Duration)>,
}

impl std::fmt::Debug for Approvals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Approvals").finish_non_exhaustive()
    }
}

impl Approvals {
    /// Makes what requests access for this reason.
    #[must_use]
    pub fn new(aws: Aws, reason: &str) -> Self {
        let (clock, nodes) = (Clock::start(), Mutex::default());
        Self { inner: Arc::new(Inner { aws, reason: reason.to_owned(), clock, nodes }) }
    }

    /// Waits until sessions can be started with a node, and requests that if need be. `tell` gets what is waited for.
    ///
    /// # Errors
    /// [`DialError::Unapproved`], and whatever keeps it from being asked for.
    ///
    /// # Cancel safety
    /// Safe: a request that has been made is waited for the next time.
    pub(super) async fn ask(&self, target: &Target, tell: &(dyn Fn(Report) + Send + Sync)) -> Result<(), DialError> {
        if let Target::EcsTask(_) = target {
            return Err(DialError::Unapproved(Unapproved::NoNode { target: target.clone() }));
        }
        let node = self.node(target);
        let mut held = turn(&node, tell).await;
        if let Some((at, action, error)) = &held.failure
            && self.now().mono < *at + FAILURE_HOLDS
        {
            return Err(dial_error(action, Some(target), error.clone()));
        }
        loop {
            match held.wait.next(self.now()) {
                Next::Use => return Ok(()),
                Next::Refuse { id, verdict } => return Err(DialError::Unapproved(refused(id, verdict, target))),
                Next::Request { after } => {
                    if !after.is_zero() {
                        let text = format!("access to `{target}` is requested again in {} s", after.as_secs());
                        self.show(&node, &held, Some(text), tell);
                        tokio::time::sleep(after).await;
                    }
                    let outcome;
                    (held, outcome) = self.request(&node, held).await?;
                    outcome.map_err(|error| dial_error(START_ACCESS_REQUEST, Some(target), error))?;
                    self.show(&node, &held, None, tell);
                }
                Next::Look { id, after } => {
                    if !after.is_zero() {
                        self.show(&node, &held, Some(self.awaits(&id, target)), tell);
                        tokio::time::sleep(after).await;
                    }
                    self.look(&node, &mut held, &id, tell).await?;
                }
            }
        }
    }

    /// Returns credentials for sessions with a node, if there are any that are good now.
    pub(super) fn keys(&self, target: &Target) -> Option<Credentials> {
        let node = self.node(target);
        let shown = node.shown.borrow();
        let (keys, end) = shown.keys.as_ref()?;
        (self.now().wall < *end).then(|| keys.clone())
    }

    /// As [`keys`](Self::keys); those that have ended, or are about to, are renewed first if the approval lasts longer. Nothing is
    /// requested, and nobody is waited for.
    pub(super) async fn renewed_keys(&self, target: &Target) -> Option<Credentials> {
        let node = self.node(target);
        if let Ok(mut held) = Arc::clone(&node.held).try_lock_owned() {
            self.renew(&node, &mut held).await;
        }
        self.keys(target)
    }

    /// Renews the credentials of an approval if they are due.
    async fn renew(&self, node: &Node, held: &mut Held) {
        if let Next::Look { id, after } = held.wait.next(self.now())
            && after.is_zero()
            && held.wait.was_approved()
            && let Err(error) = self.look(node, held, &id, &|_| ()).await
        {
            debug!(error = sentence(&error), "cannot renew the credentials of an approval");
        }
    }

    /// Finds out what it says that an action on a session was denied with the credentials of an approval.
    pub(super) async fn judge(&self, action: &'static str, target: &Target, error: AwsError) -> DialError {
        if !matches!(
            error,
            AwsError::AccessDenied { .. } | AwsError::ExpiredCredentials { .. } | AwsError::BadKeys { .. }
        ) {
            return dial_error(action, Some(target), error);
        }
        let node = self.node(target);
        let over = || DialError::Unapproved(Unapproved::Over { target: target.clone() });
        // Somebody is about to find it out, or requests access again.
        let Ok(mut held) = Arc::clone(&node.held).try_lock_owned() else { return over() };
        let Some(id) = held.wait.id().map(str::to_owned) else { return over() };
        let looked = self.look(&node, &mut held, &id, &|_| ()).await;
        match (held.wait.next(self.now()), error) {
            (Next::Refuse { id, verdict }, _) => DialError::Unapproved(refused(id, verdict, target)),
            (Next::Request { .. }, _) => over(),
            (Next::Use | Next::Look { .. }, AwsError::AccessDenied { resource, source, .. })
                if looked.is_ok() && action == START_SESSION =>
            {
                DialError::Unapproved(Unapproved::Beyond { request: id, resource, source: source.into() })
            }
            (Next::Use | Next::Look { .. }, AwsError::ExpiredCredentials { .. } | AwsError::BadKeys { .. }) => over(),
            (Next::Use | Next::Look { .. }, error) => dial_error(action, Some(target), error),
        }
    }

    /// Returns how far the requests are, by node.
    #[must_use]
    pub fn approvals(&self) -> Vec<Approval> {
        let now = self.now().wall;
        let approval = |node: &Arc<Node>| {
            let shown = node.shown.borrow();
            let mut approval = shown.approval.clone();
            if approval.stage == Stage::Approved && shown.keys.as_ref().is_none_or(|(_, end)| *end <= now) {
                approval.stage = Stage::Over;
            }
            approval
        };
        self.nodes().values().map(approval).filter(|approval| approval.stage != Stage::New).collect()
    }

    /// Renews the credentials of approvals that last longer, and tells of those that are about to end. Never ends.
    ///
    /// # Cancel safety
    /// Can be dropped at any time and called again.
    pub async fn keep(&self, tell: impl Fn(Approval) + Send + Sync) {
        let mut told: BTreeMap<String, Option<SystemTime>> = BTreeMap::new();
        loop {
            tokio::time::sleep(KEEP_INTERVAL).await;
            let nodes: Vec<Arc<Node>> = self.nodes().values().cloned().collect();
            for node in nodes {
                if let Ok(mut held) = Arc::clone(&node.held).try_lock_owned() {
                    self.renew(&node, &mut held).await;
                }
                let (approval, end) = {
                    let shown = node.shown.borrow();
                    (shown.approval.clone(), shown.keys.as_ref().map(|(_, end)| *end))
                };
                let now = self.now().wall;
                let is_near = end.is_some_and(|end| now < end && end <= now + EARLY);
                if is_near && told.insert(approval.target.clone(), approval.until) != Some(approval.until) {
                    tell(approval);
                }
            }
        }
    }

    /// Tells how far access to a node is, after it has been requested and waited for at most this long, for whoever goes to it
    /// step by step.
    pub async fn walk(&self, target: &Target, to: &Remote, limit: Duration) -> Step {
        let told = match timeout(limit, self.ask(target, &|_| ())).await {
            Ok(Ok(())) => {
                let node = self.node(target);
                let shown = node.shown.borrow();
                let until = shown.approval.until.map(|end| format!(" until {}", rfc3339(end))).unwrap_or_default();
                let request = shown.approval.request.as_deref().unwrap_or_default();
                Told::Passed(format!("request `{request}` is approved, sessions can be started{until}"))
            }
            Ok(Err(error)) => Told::Failed(SessionFault::Start(error).into_fault(to)),
            Err(_) => {
                let node = self.node(target);
                let request = node.shown.borrow().approval.request.clone().unwrap_or_default();
                let hints = vec![self.awaits(&request, target)];
                let pending = Unapproved::Pending { request, target: target.clone() };
                Told::Failed(Arc::new(Fault::new(Class::Denied, pending).with_hints(hints)))
            }
        };
        let tried = format!("`{START_ACCESS_REQUEST}` and `{GET_ACCESS_TOKEN}` for `{target}`");
        Step { name: StepName::APPROVED, tried, told }
    }

    /// Makes a request. That goes on when nobody waits for it any more, so that its id is not lost.
    async fn request(
        &self,
        node: &Arc<Node>,
        mut held: OwnedMutexGuard<Held>,
    ) -> Result<(OwnedMutexGuard<Held>, Result<(), AwsError>), DialError> {
        let (approvals, target) = (self.clone(), node.target.clone());
        let making = async move {
            let outcome = calls::start(&approvals.inner.aws, &target, &approvals.inner.reason).await;
            let now = approvals.now();
            let outcome = match outcome {
                Ok(id) => {
                    info!(request = id, %target, "access requested");
                    held.failure = None;
                    held.wait.requested(id, now);
                    Ok(())
                }
                Err(error) => {
                    held.failure = Some((now.mono, START_ACCESS_REQUEST, error.clone()));
                    Err(error)
                }
            };
            (held, outcome)
        };
        let made = self.inner.aws.tasks().spawn(making.in_current_span()).await;
        made.map_err(|error| DialError::Service { action: START_ACCESS_REQUEST, source: error.into() })
    }

    /// Asks what has become of a request, and takes note of it.
    async fn look(
        &self,
        node: &Node,
        held: &mut Held,
        id: &str,
        tell: &(dyn Fn(Report) + Send + Sync),
    ) -> Result<(), DialError> {
        let answer = calls::look(&self.inner.aws, id).await;
        let now = self.now();
        let Held { wait, jitter, failure, was_approved } = held;
        match answer {
            Ok(answer) => {
                let is_news = matches!(answer, Answer::Approved(_)) && !wait.was_approved();
                *was_approved |= is_news;
                *failure = None;
                wait.looked(answer, now, jitter);
                self.show(node, held, None, tell);
                if is_news {
                    let until = node.shown.borrow().approval.until.map(rfc3339).unwrap_or_default();
                    info!(request = id, target = %node.target, until, "access approved");
                    let target = &node.target;
                    tell(Report::Notice(format!("access request `{id}` for `{target}` is approved, until {until}")));
                }
                Ok(())
            }
            Err(error) if is_passing(&error) => {
                debug!(error = sentence(&error), request = id, "cannot ask about an access request");
                wait.failed(now, jitter);
                Ok(())
            }
            Err(error) => {
                *failure = Some((now.mono, GET_ACCESS_TOKEN, error.clone()));
                Err(dial_error(GET_ACCESS_TOKEN, Some(&node.target), error))
            }
        }
    }

    /// Lets everybody know how far a request is.
    fn show(&self, node: &Node, held: &Held, progress: Option<String>, tell: &(dyn Fn(Report) + Send + Sync)) {
        if let Some(progress) = &progress {
            tell(Report::Asked(progress.clone()));
        }
        let now = self.now();
        let keys = held.wait.keys(now.wall).map(|(keys, end)| (keys.clone(), end));
        let stage = match (held.wait.next(now), &keys) {
            (Next::Refuse { verdict, .. }, _) => match verdict {
                Verdict::Rejected => Stage::Rejected,
                Verdict::Revoked => Stage::Revoked,
                Verdict::Unanswered => Stage::Expired,
                Verdict::Withdrawn => Stage::Withdrawn,
            },
            (_, Some(_)) => Stage::Approved,
            (Next::Request { .. }, None) if held.was_approved => Stage::Over,
            (Next::Request { .. }, None) => Stage::New,
            (Next::Use | Next::Look { .. }, None) => Stage::Waiting,
        };
        let until = keys.as_ref().map(|(_, end)| self.inner.aws.offset().here(SystemTime::UNIX_EPOCH + *end));
        let request = held.wait.id().map(str::to_owned);
        let approval = Approval { target: node.target.to_string(), request, stage, until };
        node.shown.send_replace(Shown { progress, approval, keys });
    }

    /// Says what is waited for, and where it is decided.
    fn awaits(&self, id: &str, target: &Target) -> String {
        command!(
            "access request `{}` for `{}` waits for approval: approvers find it in the console of Systems Manager under \
             \"Manage node access\", and with `aws ssm get-ops-item --ops-item-id {} --region {}`",
            id,
            target.as_str(),
            id,
            self.inner.aws.region()
        )
    }

    /// Both clocks, the wall clock as AWS has it.
    fn now(&self) -> Now {
        Now { mono: self.inner.clock.now().mono, wall: self.inner.aws.offset().now() }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Node>>> {
        self.inner.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, target: &Target) -> Arc<Node> {
        let mut nodes = self.nodes();
        let node = nodes.entry(target.to_string()).or_insert_with(|| {
            let approval = Approval { target: target.to_string(), request: None, stage: Stage::New, until: None };
            let jitter = Jitter::new(Uuid::new_v4().as_u64_pair().0);
            let held = Held { wait: Wait::default(), jitter, failure: None, was_approved: false };
            let shown = watch::Sender::new(Shown { progress: None, approval, keys: None });
            Arc::new(Node { target: target.clone(), held: Arc::new(tokio::sync::Mutex::new(held)), shown })
        });
        Arc::clone(node)
    }
}

/// Waits until nobody else waits for the approval of access to a node, and tells meanwhile what he waits for.
async fn turn(node: &Node, tell: &(dyn Fn(Report) + Send + Sync)) -> OwnedMutexGuard<Held> {
    let mut shown = node.shown.subscribe();
    shown.mark_changed();
    let mut turn = pin!(Arc::clone(&node.held).lock_owned());
    loop {
        tokio::select! {
            biased;
            held = turn.as_mut() => return held,
            // The sender lasts as long as the node.
            _ = shown.changed() => {
                let progress = shown.borrow_and_update().progress.clone();
                progress.map(Report::Asked).into_iter().for_each(tell);
            }
        }
    }
}

fn refused(request: String, verdict: Verdict, target: &Target) -> Unapproved {
    let target = target.clone();
    match verdict {
        Verdict::Rejected => Unapproved::Rejected { request, target },
        Verdict::Revoked => Unapproved::Revoked { request, target },
        Verdict::Unanswered => Unapproved::Unanswered { request, target },
        Verdict::Withdrawn => Unapproved::Withdrawn { request, target },
    }
}

/// Whether whoever waits goes on waiting.
fn is_passing(error: &AwsError) -> bool {
    matches!(error, AwsError::Throttled { .. } | AwsError::Unreachable { .. } | AwsError::Service { .. })
}

#[cfg(test)]
mod tests;

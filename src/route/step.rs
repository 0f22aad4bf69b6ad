//! What is told of a bastion that is looked for, step by step, for whoever checks it.
//!
//! Each kind knows the steps that lead from its name to what takes sessions. Whoever shows them knows none of them.

use std::sync::Arc;

use crate::fault::Fault;

/// What a step is called. The names for programs are an interface: scripts read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepName {
    /// For programs.
    pub id: &'static str,
    /// For people; as short as those of other checks.
    pub title: &'static str,
}

impl StepName {
    /// There is what was asked for.
    pub const KNOWN: Self = Self { id: "bastion-known", title: "bastion known" };
    /// An agent in it is in contact.
    pub const ONLINE: Self = Self { id: "bastion-online", title: "bastion online" };
    /// The agent forwards to remote hosts.
    pub const AGENT_VERSION: Self = Self { id: "agent-version", title: "agent version" };
    /// Which of all comes first.
    pub const CHOSEN: Self = Self { id: "bastion-chosen", title: "bastion chosen" };
    /// Somebody has approved access to it.
    pub const APPROVED: Self = Self { id: "access-approved", title: "access approved" };
    /// How many sessions that one has.
    pub const SESSIONS: Self = Self { id: "bastion-sessions", title: "sessions on bastion" };
}

/// A step that was made, or would have been.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: StepName,
    /// What is tried, as a fragment.
    pub tried: String,
    pub told: Told,
}

/// What came of a step.
#[derive(Debug, Clone)]
pub enum Told {
    /// It is as it should be: what was found.
    Passed(String),
    /// It may do, and somebody may want to change it.
    Doubtful {
        /// What was found.
        said: String,
        /// What that means.
        means: String,
        /// What to do about it.
        hints: Vec<String>,
    },
    Failed(Arc<Fault>),
    /// It was not tried, as this one has failed.
    Needs(StepName),
    /// Nobody tells.
    Unknown,
    /// It would be good to know, and cannot be found out.
    Untold {
        why: String,
        hints: Vec<String>,
    },
}

/// Puts together which steps there are, with what is tried, what was told of the first of them, and the fault of the one after
/// those. Without a fault, steps of which nothing was told are left out.
#[must_use]
pub fn walked(plan: Vec<(StepName, String)>, told: Vec<Told>, fault: Option<Arc<Fault>>) -> Vec<Step> {
    let mut told = told.into_iter();
    let mut fault = fault;
    let mut failed = None;
    let steps = plan.into_iter().filter_map(|(name, tried)| {
        let told = match (told.next(), failed) {
            (Some(told), _) => told,
            (None, Some(needed)) => Told::Needs(needed),
            (None, None) => {
                let fault = fault.take()?;
                failed = Some(name);
                Told::Failed(fault)
            }
        };
        Some(Step { name, tried, told })
    });
    steps.collect()
}

#[cfg(test)]
pub(in crate::route) mod tests {
    use super::*;
    use crate::{fault::Class, util::peer_text::sentence};

    /// Each step on a line.
    pub(in crate::route) fn lines(steps: &[Step]) -> Vec<String> {
        let told = |told: &Told| match told {
            Told::Passed(text) => text.clone(),
            Told::Doubtful { said, .. } => format!("doubtful: {said}"),
            Told::Failed(fault) => format!("failed: {}", sentence(&**fault)),
            Told::Needs(name) => format!("needs {}", name.id),
            Told::Unknown => "unknown".to_owned(),
            Told::Untold { why, .. } => format!("untold: {why}"),
        };
        steps.iter().map(|step| format!("{}: {}", step.name.id, told(&step.told))).collect()
    }

    #[test]
    fn what_comes_after_a_fault_needs_the_step_that_has_it() {
        let walked = |told: &[&str], fails: bool| {
            let plan = [StepName::KNOWN, StepName::ONLINE, StepName::AGENT_VERSION].map(|name| (name, String::new()));
            let fault = fails.then(|| Arc::new(Fault::new(Class::Away, std::io::Error::other("gone"))));
            lines(&walked(plan.into(), told.iter().map(|text| Told::Passed((*text).to_owned())).collect(), fault))
        };
        let [known, online] = ["bastion-known: a", "bastion-online: failed: gone"];
        assert_eq!(walked(&["a"], true), [known, online, "agent-version: needs bastion-online"]);
        assert_eq!(walked(&["a", "b", "c"], false), [known, "bastion-online: b", "agent-version: c"]);
        assert_eq!(walked(&["a"], false), [known]);
    }
}

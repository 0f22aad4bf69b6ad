//! What policies that somebody has allow beyond what a document asks for, as far as it has to do with tunnels.
//!
//! Invariants:
//!
//! * Nothing that the document itself allows is too much, however it is split into statements and policies.
//! * What an unconditional statement denies is not too much: nobody has it. Denials under conditions are taken for none.
//!
//! Leaves out boundaries and policies of organisations, which only take away; actions that neither the document nor
//! [`POWERS`] names, as what else somebody does in the account is not this program's business; and what is limited to another
//! region, where another access may need it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Document, Statement,
    held::{matches, several, texts},
};

/// A policy that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldPolicy {
    pub name: String,
    pub document: Value,
}

/// What one statement allows too much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    /// The name of the policy that it is in.
    pub policy: String,
    /// Its name, or its number in the policy, from one.
    pub statement: Result<String, usize>,
    /// In the order in which it is written there; never empty.
    pub over: Vec<Over>,
}

/// In which way a statement is too wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Over {
    /// The pattern of actions has others among it, of which these [powers](POWERS) are the ones that matter.
    Actions { pattern: String, powers: Vec<Power> },
    /// An action that is needed is allowed on this as well.
    Resource { action: &'static str, resource: String },
    /// An action that is needed is allowed without what these keys have to say, or whatever more of them.
    Condition { action: &'static str, resource: String, keys: Vec<String> },
}

/// An action that lets somebody do more than a tunnel, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Power(pub &'static str);

/// Actions by which one gets further than to a cluster's endpoint: the worst first.
pub const POWERS: [&str; 17] = [
    "iam:PutRolePolicy",
    "iam:AttachRolePolicy",
    "iam:PassRole",
    "ssm:StartSession",
    "ssm:SendCommand",
    "ssm:StartAutomationExecution",
    "ssm:CreateAssociation",
    "ssm:CreateDocument",
    "ssm:UpdateDocument",
    "ssm:ResumeSession",
    "ssm:TerminateSession",
    "eks:CreateAccessEntry",
    "eks:AssociateAccessPolicy",
    "eks:UpdateClusterConfig",
    "ecs:ExecuteCommand",
    "ec2-instance-connect:SendSSHPublicKey",
    "ec2-instance-connect:OpenTunnel",
];

/// Kinds of resources that StartSession is called on, whichever of them a document names.
const OF_SESSIONS: [&str; 4] = [
    "arn:*:ec2:*:*:instance/*",
    "arn:*:ssm:*:*:managed-instance/*",
    "arn:*:ecs:*:*:task/*",
    "arn:*:ssm:*:*:document/*",
];

/// How the ids of one's own sessions begin, for a user and for a role.
const OWN_SESSIONS: [&str; 2] = ["arn:*:ssm:*:*:session/${aws:username}-*", "arn:*:ssm:*:*:session/${aws:userid}-*"];

/// Returns what these policies allow beyond a document, in a region: each statement that is too wide, in their order.
#[must_use]
pub fn too_much(document: &Document, region: &str, policies: &[HeldPolicy]) -> Vec<Excess> {
    let judge = Judge { needed: &document.statement, region, denials: denials(policies) };
    let statements = policies.iter().flat_map(|policy| {
        let statements = several(&policy.document["Statement"]).into_iter().enumerate();
        statements.map(|(at, statement)| (policy.name.as_str(), at, statement))
    });
    let excess = statements.filter(|(.., statement)| statement["Effect"] == "Allow").map(|(policy, at, statement)| {
        let name = statement["Sid"].as_str().filter(|sid| !sid.is_empty());
        let statement_name = name.map(str::to_owned).ok_or(at + 1);
        Excess { policy: policy.to_owned(), statement: statement_name, over: judge.over(statement) }
    });
    excess.filter(|excess| !excess.over.is_empty()).collect()
}

/// What a statement names, or all but what it names.
#[derive(Debug)]
struct Named<'a> {
    patterns: Vec<&'a str>,
    is_rest: bool,
}

impl<'a> Named<'a> {
    fn of(statement: &'a Value, key: &str, but: &str) -> Self {
        let patterns = texts(&statement[key]);
        if statement[but].is_null() {
            Self { patterns, is_rest: false }
        } else {
            Self { patterns: texts(&statement[but]), is_rest: true }
        }
    }

    fn actions(statement: &'a Value) -> Self {
        Self::of(statement, "Action", "NotAction")
    }

    fn resources(statement: &'a Value) -> Self {
        Self::of(statement, "Resource", "NotResource")
    }

    /// The patterns that stand for what it is about, of which one that it excludes may be a part.
    fn stand_for(&self) -> Vec<&'a str> {
        if self.is_rest { vec!["*"] } else { self.patterns.clone() }
    }

    /// Whether it excludes something as a whole.
    fn excludes(&self, covers: Covers, text: &str) -> bool {
        self.is_rest && self.patterns.iter().any(|pattern| covers(pattern, text))
    }

    /// Whether it is about something as a whole.
    fn covers(&self, covers: Covers, text: &str) -> bool {
        if self.is_rest {
            !self.patterns.iter().any(|pattern| overlap(&pattern.to_lowercase(), &text.to_lowercase()))
        } else {
            self.patterns.iter().any(|pattern| covers(pattern, text))
        }
    }

    /// What is left of something where this is denied.
    fn left(&self, covers: Covers, text: &str) -> Vec<String> {
        if self.covers(covers, text) {
            Vec::new()
        } else if self.is_rest {
            // Nothing but what the denial spares.
            let spared = self.patterns.iter();
            let spared = spared.filter(|pattern| overlap(&pattern.to_lowercase(), &text.to_lowercase()));
            spared.map(|pattern| if covers(pattern, text) { text } else { pattern }.to_owned()).collect()
        } else {
            vec![text.to_owned()]
        }
    }
}

type Covers = fn(&str, &str) -> bool;

/// IAM does not tell capital letters from small ones in actions.
fn covers_action(pattern: &str, action: &str) -> bool {
    matches(&pattern.to_lowercase(), &action.to_lowercase())
}

fn denials(policies: &[HeldPolicy]) -> Vec<(Named<'_>, Named<'_>)> {
    let statements = policies.iter().flat_map(|policy| several(&policy.document["Statement"]));
    let denials = statements.filter(|statement| statement["Effect"] == "Deny" && statement["Condition"].is_null());
    denials.map(|statement| (Named::actions(statement), Named::resources(statement))).collect()
}

struct Judge<'a> {
    needed: &'a [Statement],
    region: &'a str,
    denials: Vec<(Named<'a>, Named<'a>)>,
}

impl Judge<'_> {
    /// In which ways a statement that allows is too wide.
    fn over(&self, statement: &Value) -> Vec<Over> {
        let (actions, resources) = (Named::actions(statement), Named::resources(statement));
        let condition = &statement["Condition"];
        let mut over = Vec::new();
        for pattern in actions.stand_for() {
            let mut powers: Vec<Power> = Vec::new();
            let mut is_wide = false;
            for resource in resources.stand_for().into_iter().filter(|resource| !self.is_elsewhere(resource)) {
                for (action, resource) in self.left(pattern, resource) {
                    let is_excluded = |known: &str| actions.excludes(covers_action, known);
                    let of_needed = self.actions().filter(|known| covers_action(&action, known) && !is_excluded(known));
                    let mut found = Vec::new();
                    let mut has_needed = false;
                    for known in of_needed {
                        has_needed = true;
                        if !resources.excludes(matches, &resource) {
                            found.extend(self.beyond(known, &resource, condition).map(|over| (known, over)));
                        }
                    }
                    let others = POWERS.iter().filter(|power| {
                        covers_action(&action, power)
                            && !is_excluded(power)
                            && !self.actions().any(|known| known == **power)
                            && !self.is_denied(power, &resource)
                    });
                    let others: Vec<Power> = others.map(|power| Power(power)).collect();
                    if action.contains(['*', '?']) {
                        // Whatever it has among it besides is not needed.
                        is_wide |= has_needed || !others.is_empty();
                        powers.extend(
                            found
                                .into_iter()
                                .filter(|(known, _)| POWERS.contains(known))
                                .map(|(known, _)| Power(known)),
                        );
                    } else {
                        over.extend(found.into_iter().map(|(_, over)| over));
                        is_wide |= !others.is_empty();
                    }
                    powers.extend(others);
                }
            }
            if is_wide {
                powers.sort_by_key(|Power(power)| POWERS.iter().position(|known| known == power));
                powers.dedup();
                over.push(Over::Actions { pattern: pattern.to_owned(), powers });
            }
        }
        let mut unique: Vec<Over> = Vec::new();
        over.into_iter().for_each(|item| {
            if !unique.contains(&item) {
                unique.push(item);
            }
        });
        unique
    }

    /// The actions that are needed.
    fn actions(&self) -> impl Iterator<Item = &'static str> {
        let mut actions: Vec<_> = self.needed.iter().flat_map(|statement| statement.action.iter().copied()).collect();
        actions.sort_unstable();
        actions.dedup();
        actions.into_iter()
    }

    /// What an action that is needed may do on a resource beyond that.
    fn beyond(&self, action: &'static str, resource: &str, condition: &Value) -> Option<Over> {
        let needed: Vec<&Statement> =
            self.needed.iter().filter(|statement| statement.action.contains(&action)).collect();
        if self.is_denied(action, resource) || !is_of(action, resource, &needed) {
            return None;
        }
        if matches!(action, "ssm:ResumeSession" | "ssm:TerminateSession")
            && OWN_SESSIONS.iter().any(|own| matches(own, resource))
        {
            return None;
        }
        let covering = needed.iter().filter(|one| one.resource.iter().any(|pattern| matches(pattern, resource)));
        let missing: Vec<Vec<String>> = covering.map(|statement| missing(statement, condition)).collect();
        let fewest = missing.into_iter().min_by_key(Vec::len);
        match fewest {
            Some(keys) if keys.is_empty() => None,
            Some(keys) => Some(Over::Condition { action, resource: resource.to_owned(), keys }),
            None => Some(Over::Resource { action, resource: resource.to_owned() }),
        }
    }

    /// Whether it is limited to another region.
    fn is_elsewhere(&self, resource: &str) -> bool {
        let region = resource.split(':').nth(3).unwrap_or_default();
        !region.is_empty() && !overlap(region, self.region)
    }

    fn is_denied(&self, action: &str, resource: &str) -> bool {
        self.left(action, resource).is_empty()
    }

    /// What denials leave of actions on resources.
    fn left(&self, action: &str, resource: &str) -> Vec<(String, String)> {
        let mut left = vec![(action.to_owned(), resource.to_owned())];
        for (actions, resources) in &self.denials {
            left = left
                .into_iter()
                .flat_map(|(action, resource)| {
                    if actions.covers(covers_action, &action) {
                        let left = resources.left(matches, &resource);
                        left.into_iter().map(|resource| (action.clone(), resource)).collect()
                    } else if resources.covers(matches, &resource) {
                        let left = actions.left(covers_action, &action);
                        left.into_iter().map(|action| (action, resource.clone())).collect()
                    } else {
                        vec![(action, resource)]
                    }
                })
                .collect();
        }
        left
    }
}

/// Whether a resource is one of those that an action is called on at all: a statement may have actions and resources of several
/// services.
fn is_of(action: &str, resource: &str, needed: &[&Statement]) -> bool {
    let of_needed = needed.iter().flat_map(|statement| &statement.resource).map(|pattern| kind(pattern));
    let of_sessions = OF_SESSIONS.iter().filter(|_| action == "ssm:StartSession").map(|kind| (*kind).to_owned());
    of_needed.chain(of_sessions).any(|kind| is_of_kind(&kind, resource))
}

/// Whether a resource may be of a kind. Part by part: what a star stands for in a name is no other service.
fn is_of_kind(kind: &str, resource: &str) -> bool {
    let parts = |arn: &'_ str| arn.splitn(6, ':').map(str::to_owned).collect::<Vec<_>>();
    let (of_kind, of_resource) = (parts(kind), parts(resource));
    if of_kind.len() == 6 && of_resource.len() == 6 {
        of_kind.iter().zip(&of_resource).all(|(kind, part)| overlap(kind, part))
    } else {
        overlap(kind, resource)
    }
}

/// Returns the pattern of all resources of one's kind.
fn kind(resource: &str) -> String {
    match resource.split(':').collect::<Vec<_>>()[..] {
        [_, _, service, _, _, name, ..] => {
            let name = name.split('/').next().unwrap_or_default();
            format!("arn:*:{service}:*:*:{name}*")
        }
        _ => "*".to_owned(),
    }
}

/// Returns the keys of the conditions of a statement that these conditions do not imply.
fn missing(needed: &Statement, held: &Value) -> Vec<String> {
    let needed = needed.condition.iter().flat_map(|(operator, keys)| keys.iter().map(move |key| (*operator, key)));
    let missing = needed.filter(|(operator, (key, values))| !is_implied(operator, key, &values.0, held));
    missing.map(|(_, (key, _))| key.clone()).collect()
}

/// Whether conditions hold only where a key has one of these values.
fn is_implied(operator: &str, key: &str, values: &[String], held: &Value) -> bool {
    let operators = held.as_object().into_iter().flatten();
    let mut with_key = operators.flat_map(|(operator, keys)| {
        let keys = keys.as_object().into_iter().flatten();
        keys.filter(|(known, _)| known.eq_ignore_ascii_case(key)).map(move |(_, values)| (operator.as_str(), values))
    });
    with_key.any(|(held, given)| {
        let given: Vec<String> = several(given).into_iter().map(text).collect();
        let is_like = operator.starts_with("StringLike") || operator.starts_with("Arn");
        let is_stronger = held.eq_ignore_ascii_case(operator)
            || matches!((operator, held), ("StringLike", "StringEquals") | ("BoolIfExists", "Bool"))
            || matches!((operator, held), ("ArnEquals", "ArnLike" | "StringEquals"));
        let is_one =
            |given: &String| values.iter().any(|value| if is_like { matches(value, given) } else { value == given });
        is_stronger && !given.is_empty() && given.iter().all(is_one)
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Whether there is a text that two patterns match.
fn overlap(one: &str, other: &str) -> bool {
    fn from(one: &[u8], other: &[u8], known: &mut BTreeMap<(usize, usize), bool>) -> bool {
        let at = (one.len(), other.len());
        if let Some(known) = known.get(&at) {
            return *known;
        }
        let found = match (one, other) {
            ([], []) => true,
            ([b'*', rest @ ..], _) if from(rest, other, known) => true,
            (_, [b'*', rest @ ..]) if from(one, rest, known) => true,
            ([b'*', ..], [_, rest @ ..]) => from(one, rest, known),
            ([_, rest @ ..], [b'*', ..]) => from(rest, other, known),
            ([a, one @ ..], [b, other @ ..]) => (a == b || *a == b'?' || *b == b'?') && from(one, other, known),
            _ => false,
        };
        known.insert(at, found);
        found
    }
    from(one.as_bytes(), other.as_bytes(), &mut BTreeMap::new())
}

#[cfg(test)]
mod tests;

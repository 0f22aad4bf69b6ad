//! The accesses: one from flags and environment, or one for each entry of the configuration file's `access`.
//!
//! An entry is about one access alone, so it wins over the environment, which would make one of several regions. A
//! flag is nearer still; but where there are several entries, a flag that contradicts one of them is an error.

use super::{
    ACCESS, Access, AwsSettings, Environment, ExecIdentity, GlobalArgs, Problem, SettingsError, Sources, UpArgs,
    file::Entry,
    identity::need_role,
    rows,
    source::{Given, Layer, Stack},
};
use crate::{
    bastion::{Bastion, FargateOptions},
    forward::Forward,
};

/// Most security groups and subnets of a task, the limits of ECS.
const MAX_SECURITY_GROUPS: usize = 5;
const MAX_SUBNETS: usize = 16;

impl Access {
    /// Reads the accesses for a command that opens no tunnels, and so needs no bastions. Of `args` only what is about
    /// accesses counts.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &GlobalArgs, args: &UpArgs, environment: &Environment) -> Result<Vec<Self>, SettingsError> {
        let mut problems = Vec::new();
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        args.add_to(&mut sources.flags);
        let access = all(&sources, environment, &mut problems);
        SettingsError::unless_empty(problems)?;
        Ok(access)
    }

    fn of(stack: &Stack<'_>, environment: &Environment, problems: &mut Vec<Problem>) -> Self {
        let aws = AwsSettings::load(stack, environment, problems);
        let identity = ExecIdentity::of(&aws, environment);
        let ssh = environment.ssh_files();
        let mut access = Self { aws, identity, ssh, ..Self::read(|row| stack.all(row), environment, problems) };
        let options = access.fargate_options();
        for bastion in &mut access.bastion {
            if let Bastion::Fargate(fargate) = bastion {
                fargate.options = options.clone();
            }
        }
        access.refuse_useless(stack, problems);
        access.refuse_forwards(stack, problems);
        access.refuse_document(stack, problems);
        access.leave_clusters(stack, problems);
        access
    }

    fn fargate_options(&self) -> FargateOptions {
        FargateOptions {
            task_definition: self.fargate_task_definition.clone(),
            task_role: self.fargate_task_role.clone(),
            image: self.fargate_image.clone(),
            public_ip: self.fargate_public_ip,
            security_groups: self.fargate_security_groups.clone(),
            subnets: self.fargate_subnets.clone(),
            ttl: self.fargate_ttl,
        }
    }

    /// Refuses what a task definition of the user's says itself, and more than a task can have.
    fn refuse_useless(&self, stack: &Stack<'_>, problems: &mut Vec<Problem>) {
        if self.fargate_task_definition.is_some() {
            let said = stack.one(&ACCESS.fargate_image);
            problems.extend(said.map(|given| given.malformed("of use with a task definition, which says it itself")));
        }
        for (row, values, most) in [
            (&ACCESS.fargate_security_groups, &self.fargate_security_groups, MAX_SECURITY_GROUPS),
            (&ACCESS.fargate_subnets, &self.fargate_subnets, MAX_SUBNETS),
        ] {
            let given = (values.len() > most).then(|| stack.all(row).last()).flatten();
            problems.extend(
                given.map(|given| {
                    given.malformed(format!("one of the first {most}, which are all that a task can have"))
                }),
            );
        }
    }

    /// Refuses one document for what may be several hosts.
    fn refuse_document(&self, stack: &Stack<'_>, problems: &mut Vec<Problem>) {
        let Some(document) = &self.document else { return };
        if !self.bastion.is_empty() && !self.bastion.iter().any(Bastion::is_by_session) {
            let given = stack.one(&ACCESS.document);
            let expected = "of use without a bastion of Systems Manager, on which alone there are session documents";
            problems.extend(given.map(|given| given.malformed(expected)));
        }
        let leads_to = self.clusters.len() + self.forwards.len() + self.import_contexts.len();
        if !document.is_for_each() && leads_to > 1 {
            let given = stack.one(&ACCESS.document);
            let expected = "of use to several hosts, as it leads to one: put `{cluster}` into its name";
            problems.extend(given.map(|given| given.malformed(expected)));
        }
    }

    /// Refuses what access cannot be requested to, and that it is requested without a reason where it `needs` one.
    fn refuse_request(&self, stack: &Stack<'_>, needs_reason: bool, problems: &mut Vec<Problem>) {
        if !self.request_access {
            return;
        }
        if needs_reason && self.reason.is_none() {
            let given = stack.one(&ACCESS.request_access);
            problems.extend(given.map(|given| given.malformed("of use without `--reason`, which approvers read")));
        }
        let is_no_node = |given: &&Given| given.text().parse::<Bastion>().is_ok_and(|bastion| !bastion.is_node());
        let expected = "a bastion that access can be requested to: that is for instances and managed nodes alone, by id, `tag:`, \
                        `name:`, `asg:` or `auto`";
        problems.extend(stack.all(&ACCESS.bastion).iter().filter(is_no_node).map(|given| given.malformed(expected)));
    }

    /// Refuses forwards of which it is known that they can lead nowhere.
    fn refuse_forwards(&self, stack: &Stack<'_>, problems: &mut Vec<Problem>) {
        let given = stack.all(&ACCESS.forwards).first();
        let of = |value: &dyn ToString, expected: String| {
            given.map(|given| Problem::malformed(&given.origin, &value.to_string(), expected))
        };
        let by_session = !self.bastion.is_empty() && self.bastion.iter().all(Bastion::is_by_session);
        let needs_vpc = !self.bastion.is_empty() && self.bastion.iter().all(Bastion::needs_vpc);
        for (at, forward) in self.forwards.iter().enumerate() {
            if let Some(what) = forward.refused_by_agents().filter(|_| by_session) {
                let expected = format!("an address that SSM agents connect to: they refuse that of {what}");
                problems.extend(of(forward, expected));
            }
            let before = self.forwards.get(..at).unwrap_or_default();
            if before.iter().any(|other| other.name == forward.name) {
                problems.extend(of(forward, format!("the only forward that is called `{}`", forward.name)));
            }
            if let Some(port) = forward.local_port
                && before.iter().any(|other| other.local_port == Some(port))
            {
                problems.extend(of(forward, format!("the only forward with the local port {port}")));
            }
        }
        if self.no_clusters && needs_vpc && !self.forwards.is_empty() {
            let expected = "of use to forwards alone: it is looked for in the network of a cluster, and there are to be none; \
                            name a bastion by its id, its tag or its group";
            let bastion = stack.all(&ACCESS.bastion).first();
            problems.extend(bastion.map(|given| given.malformed(expected)));
        }
    }

    /// Leaves out all clusters where none are wanted.
    fn leave_clusters(&mut self, stack: &Stack<'_>, problems: &mut Vec<Problem>) {
        if !self.no_clusters {
            return;
        }
        let Some(none) = stack.one(&ACCESS.no_clusters) else { return };
        let is_beside = |given: &&Given| std::mem::discriminant(&given.origin) == std::mem::discriminant(&none.origin);
        let useless = [stack.one(&ACCESS.clusters), stack.one(&ACCESS.import_contexts)].into_iter().flatten();
        problems.extend(useless.filter(is_beside).map(|given| given.malformed("of use where no clusters are wanted")));
        self.clusters.clear();
        self.import_contexts.clear();
    }

    /// Tells whether two lead to the same account and region as the same identity, as far as the settings tell.
    fn has_same_place(&self, other: &Self) -> bool {
        fn place(access: &Access) -> [Option<&str>; 3] {
            let aws = &access.aws;
            [aws.region.as_deref(), aws.profile.as_deref(), aws.role_arn.as_deref()]
        }
        place(self) == place(other)
    }

    /// Says which clusters both lead to.
    fn common_clusters(&self, other: &Self) -> Option<String> {
        if self.no_clusters || other.no_clusters {
            return None;
        }
        match (&self.clusters[..], &other.clusters[..]) {
            ([], []) => Some("all clusters".to_owned()),
            ([], some) | (some, []) => some.first().map(|name| format!("`{name}`")),
            (some, others) => some.iter().find(|name| others.contains(name)).map(|name| format!("`{name}`")),
        }
    }
}

/// Reads all accesses; at least one.
pub(super) fn all(sources: &Sources, environment: &Environment, problems: &mut Vec<Problem>) -> Vec<Access> {
    let entries = &sources.file.entries;
    refuse_flags_for_one(sources, problems);
    let stacks = sources.stacks();
    let access: Vec<_> = stacks.iter().map(|stack| Access::of(stack, environment, problems)).collect();
    // What is wrong at the top level is to be said even if every entry has something else.
    let nothing = Layer::default();
    let defaults = Stack { flags: &nothing, entry: None, environment: &nothing, top: &sources.file.top };
    drop(Access::of(&defaults, environment, problems));
    if access.iter().all(|access| access.aws.role_arn.is_none()) {
        let useless = need_role().filter_map(|row| sources.file.top.get(row).first());
        problems.extend(useless.map(|given| Problem::NeedsRole { origin: given.origin.clone() }));
    }
    refuse_overlaps(entries, &access, problems);
    refuse_contexts_twice(entries, &access, problems);
    refuse_forwards_twice(sources, &stacks, &access, problems);
    access
}

/// Refuses what access cannot be requested to, and that it is requested without a reason where it `needs` one.
pub(super) fn refuse_requests(sources: &Sources, access: &[Access], needs_reason: bool, problems: &mut Vec<Problem>) {
    for (stack, access) in sources.stacks().iter().zip(access) {
        access.refuse_request(stack, needs_reason, problems);
    }
}

/// Refuses an access that has no bastion.
pub(super) fn need_bastions(sources: &Sources, problems: &mut Vec<Problem>) {
    let missing = |stack: &Stack<'_>| stack.all(&ACCESS.bastion).is_empty();
    let stacks = sources.stacks();
    if sources.file.entries.is_empty() {
        problems.extend(stacks.iter().any(missing).then_some(Problem::NoBastion));
        return;
    }
    let without = sources.file.entries.iter().zip(&stacks).filter(|(_, stack)| missing(stack));
    problems.extend(without.map(|(entry, _)| Problem::NoBastionInEntry { entry: entry.place.clone() }));
}

/// Refuses a flag that would be for one of several entries, as an entry says something else.
fn refuse_flags_for_one(sources: &Sources, problems: &mut Vec<Problem>) {
    let entries = &sources.file.entries;
    if entries.len() < 2 {
        return;
    }
    for row in rows::all() {
        let flag = sources.flags.get(row).first();
        let entry = entries.iter().find_map(|entry| entry.layer.get(row).first());
        if let (Some(flag), Some(entry)) = (flag, entry) {
            problems.push(Problem::ForOneEntry {
                origin: flag.origin.clone(),
                entries: entries.len(),
                entry: entry.origin.clone(),
            });
        }
    }
}

/// Refuses contexts that several entries import: they have one cluster each, wherever it is reached from.
fn refuse_contexts_twice(entries: &[Entry], access: &[Access], problems: &mut Vec<Problem>) {
    for (index, (entry, second)) in entries.iter().zip(access).enumerate() {
        let earlier = entries.iter().zip(access).take(index);
        let common = earlier.flat_map(|(other, first)| first.import_contexts.iter().map(move |name| (name, other)));
        if let Some((name, other)) = common.into_iter().find(|(name, _)| second.import_contexts.contains(name)) {
            let (entry, context) = (entry.place.clone(), name.clone());
            problems.push(Problem::ContextTwice { entry, context, other: other.place.line });
        }
    }
}

/// Refuses forwards that several entries would have: names and local ports are there once.
fn refuse_forwards_twice(sources: &Sources, stacks: &[Stack<'_>], access: &[Access], problems: &mut Vec<Problem>) {
    let entries = sources.file.entries.len();
    if entries > 1
        && let Some(flag) = sources.flags.get(&ACCESS.forwards).first()
    {
        let expected = format!("for one of the {entries} entries of `access`: name it in `forwards` of that entry");
        problems.push(flag.malformed(expected));
        return;
    }
    for (index, (stack, second)) in stacks.iter().zip(access).enumerate() {
        let earlier = || access.iter().take(index).flat_map(|first| &first.forwards);
        let clash = second.forwards.iter().find_map(|forward| {
            let is_same = |other: &&Forward| {
                other.name == forward.name || (other.local_port.is_some() && other.local_port == forward.local_port)
            };
            earlier().find(is_same).map(|other| (forward, other))
        });
        if let (Some((forward, other)), Some(given)) = (clash, stack.all(&ACCESS.forwards).first()) {
            let expected =
                format!("the only one with its name and local port in all entries: there is `{other}` as well");
            problems.push(Problem::malformed(&given.origin, &forward.to_string(), expected));
        }
    }
}

/// Refuses entries that lead to the same clusters: each would have a tunnel and a context twice.
fn refuse_overlaps(entries: &[Entry], access: &[Access], problems: &mut Vec<Problem>) {
    for (index, (entry, second)) in entries.iter().zip(access).enumerate() {
        let earlier = entries.iter().zip(access).take(index);
        let common = earlier
            .filter(|(_, first)| first.has_same_place(second))
            .find_map(|(other, first)| Some((first.common_clusters(second)?, other.place.line)));
        if let Some((what, other)) = common {
            problems.push(Problem::Overlap { entry: entry.place.clone(), what, other });
        }
    }
}

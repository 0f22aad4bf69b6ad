//! Whether the caller's role may more than tunnels need, as far as its policies may be read.

use tokio::time::timeout;

use super::{Check, Examination, Fact, Finding, Reason, Trouble, Wanted};
use crate::{
    aws::Aws,
    bastion::FargateOptions,
    iam::{Clusters, Grant, Principal, too_much},
    route::list,
};

/// What the policy is printed with that allows no more than is needed: the options of `policy`, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrower {
    /// Options, each with its value.
    pub options: Vec<(&'static str, Option<String>)>,
    /// Sessions are started with a document of the user's, which has host and port fixed.
    pub has_document: bool,
}

impl<R: FnMut(Finding) + Send> Examination<'_, R> {
    /// Compares the policies of the caller's role with the one that these settings need.
    pub(super) async fn privilege(&mut self, aws: &Aws) {
        let skipped = |why: &str| Reason::Untold { why: why.to_owned(), hints: Vec::new() };
        let caller = self.place.caller.as_deref();
        let principal = caller.and_then(|caller| Principal::from_arn(&caller.arn));
        let (Some(caller), Some(principal @ Principal::Role { .. })) = (caller, principal) else {
            let reason = || skipped("only the policies of roles are compared with what tunnels need");
            return self.skip_for([Check::Privilege], reason);
        };
        let account = caller.account.clone();
        if self.subject.bastions.is_empty() {
            let reason = || skipped("without a bastion it is not known what tunnels need");
            return self.skip_for([Check::Privilege], reason);
        }
        let role = principal.name().to_owned();
        let limit = self.limits.request;
        let held = match timeout(limit, aws.policies_of_role(&role)).await {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => return self.skip_for([Check::Privilege], || Reason::Unread(error.clone())),
            Err(_) => {
                let why = format!("IAM has not told the policies of `{role}` within {} seconds", limit.as_secs());
                return self.skip_for([Check::Privilege], || skipped(&why));
            }
        };
        let needed = list::policy(&self.grant(aws, account, principal));
        let excess = too_much(&needed, aws.region(), &held);
        if excess.is_empty() {
            self.passed(Check::Privilege, Fact::NoMore { role });
        } else {
            let narrower = self.narrower(aws);
            self.doubtful(Check::Privilege, Trouble::TooMuch { role, excess, narrower });
        }
    }

    /// What these settings need. Any cluster may be looked at: which are examined says little about which are used.
    fn grant(&self, aws: &Aws, account: String, principal: Principal) -> Grant {
        let subject = self.subject;
        Grant {
            region: aws.region().to_owned(),
            account,
            principal: Some(principal),
            bastions: subject.bastions.clone(),
            clusters: Clusters::All,
            documents: subject.document.iter().flat_map(|document| document.patterns(&[])).collect(),
            requests_access: subject.approvals.is_some(),
        }
    }

    fn narrower(&self, aws: &Aws) -> Narrower {
        let subject = self.subject;
        let with = |name, value: String| (name, Some(value));
        let mut options = vec![with("--region", aws.region().to_owned())];
        options.extend(subject.bastions.iter().map(|bastion| with("--bastion", bastion.to_string())));
        let tasks = subject.bastions.iter().find_map(|bastion| bastion.fargate());
        if let Some(task) = tasks {
            let definition = task.options.task_definition.clone();
            options.extend(definition.map(|definition| with("--fargate-task-definition", definition)));
            if task.options.task_role != FargateOptions::TASK_ROLE {
                options.push(with("--fargate-task-role", task.options.task_role.clone()));
            }
        }
        if let Wanted::Named(names) = &subject.clusters {
            options.extend(names.iter().map(|name| with("--cluster", name.clone())));
        }
        let imported = subject.imported.iter().map(|imported| imported.cluster.name.clone());
        options.extend(imported.map(|name| with("--import-context", name)));
        options.extend(subject.hosts.iter().map(|host| {
            let endpoint = host.endpoint.to_string();
            let is_named = host.name != endpoint;
            with("--forward", if is_named { format!("{}={endpoint}", host.name) } else { endpoint })
        }));
        options.extend(subject.document.iter().map(|document| with("--document", document.to_string())));
        options.extend(subject.approvals.is_some().then_some(("--request-access", None)));
        Narrower { options, has_document: subject.document.is_some() }
    }
}

//! What `policy` works with. It is often run by an administrator who has none of the credentials that the policy is for.

use clap::Args;

use super::{
    ACCESS, Access, Environment, GlobalArgs, Origin, Problem, SettingsError, Sources,
    access::{all, need_bastions, refuse_requests},
};

use crate::util::arn::Arn;

#[derive(Debug, Clone, Default, Args)]
pub struct PolicyArgs {
    /// Bastion that sessions may be started on; repeat it for more [env: AUTOHEAL_PA_BASTION, separated by commas]
    #[arg(long, value_name = "TARGET")]
    pub bastion: Vec<String>,
    /// Role of the task that `--bastion fargate` runs, by name or ARN [default: autoheal-pa-bastion]
    #[arg(long, value_name = "ROLE")]
    pub fargate_task_role: Option<String>,
    /// Task definition that `--bastion fargate` runs, so that none may be made
    #[arg(long, value_name = "ARN")]
    pub fargate_task_definition: Option<String>,
    /// Cluster that may be used; repeat it for more [default: all of the account and region]
    #[arg(long, value_name = "NAME")]
    pub cluster: Vec<String>,
    /// Context of a kubeconfig of yours, whose cluster needs no permission of EKS: without `--cluster` none are in the policy
    #[arg(long, value_name = "NAME", conflicts_with = "access_entry")]
    pub import_context: Vec<String>,
    /// Host that is forwarded to, which needs no permission of EKS: without `--cluster` none are in the policy
    #[arg(long, value_name = "[NAME=]HOST:PORT", conflicts_with = "access_entry")]
    pub forward: Vec<String>,
    /// Session document of your own that sessions are started with, with `{cluster}` for the name of the cluster, instead of the one
    /// of AWS: the policy allows that and nothing else, and the commands that make the documents are printed beside it
    #[arg(long, value_name = "NAME", conflicts_with = "access_entry")]
    pub document: Option<String>,
    /// Allows to request access to bastions, instead of starting sessions without an approval: for `up --request-access`
    #[arg(long, conflicts_with_all = ["access_entry", "document"])]
    pub request_access: bool,
    /// Account of bastions and clusters [default: the role's, else that of the credentials]
    #[arg(long, value_name = "ID")]
    pub account_id: Option<String>,
    /// Prints the commands that give the identity access to Kubernetes, instead of the policy
    #[arg(long, conflicts_with = "terraform")]
    pub access_entry: bool,
    /// Prints policy and access entries as Terraform resources
    #[arg(long)]
    pub terraform: bool,
}

#[derive(Debug, Clone)]
pub struct PolicySettings {
    /// The accesses that the policy is for; never empty. Bastions are missing only where just access entries are wanted.
    pub access: Vec<Access>,
    /// The account, twelve digits, if it is given.
    pub account: Option<String>,
    /// No clusters of EKS are to be reached, but others.
    pub without_eks: bool,
}

impl PolicySettings {
    /// Reads the settings of `policy`.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &GlobalArgs, args: &PolicyArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        sources.flags.add_flag(&ACCESS.bastion, &args.bastion);
        sources.flags.add_flag(&ACCESS.clusters, &args.cluster);
        sources.flags.add_flag(&ACCESS.forwards, &args.forward);
        sources.flags.add_flag(&ACCESS.document, &args.document);
        sources.flags.add_flag(&ACCESS.fargate_task_role, &args.fargate_task_role);
        sources.flags.add_flag(&ACCESS.fargate_task_definition, &args.fargate_task_definition);
        sources.flags.add_flag(&ACCESS.request_access, args.request_access.then_some("true"));
        let access = all(&sources, environment, &mut problems);
        refuse_requests(&sources, &access, false, &mut problems);
        if !args.access_entry {
            need_bastions(&sources, &mut problems);
        }
        let role_account =
            access.iter().find_map(|access| Arn::parse(access.aws.role_arn.as_deref()?).map(|arn| arn.account));
        if let Some(account) = &args.account_id {
            let origin = Origin::Flag("--account-id".into());
            if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
                problems.push(Problem::malformed(&origin, account, "an account id: twelve digits"));
            } else if role_account.is_some_and(|other| other != account) {
                problems.push(Problem::malformed(&origin, account, "the account of the role"));
            }
        }
        SettingsError::unless_empty(problems)?;
        let account = args.account_id.clone().or_else(|| role_account.map(ToOwned::to_owned));
        let of_others = !args.import_context.is_empty() || !args.forward.is_empty();
        let without_eks = (args.cluster.is_empty() && of_others) || access.iter().all(|access| access.no_clusters);
        Ok(Self { access, account, without_eks })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::flags::typed, *};

    const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";

    fn load(args: PolicyArgs, role: Option<&str>) -> Result<PolicySettings, String> {
        let flags: GlobalArgs = role.map(|role| typed(&["--role-arn", role])).unwrap_or_default();
        PolicySettings::load(&flags, &args, &Environment::default()).map_err(|error| error.to_string())
    }

    fn args(account: Option<&str>) -> PolicyArgs {
        let account_id = account.map(ToOwned::to_owned);
        PolicyArgs { bastion: vec!["i-0abcdef1".to_owned()], account_id, ..PolicyArgs::default() }
    }

    #[test]
    fn takes_the_account_from_the_flag_or_the_role() {
        assert_eq!(load(args(None), None).unwrap().account, None);
        assert_eq!(load(args(None), Some(ROLE)).unwrap().account.as_deref(), Some("123456789012"));
        let both = load(args(Some("123456789012")), Some(ROLE)).unwrap();
        assert_eq!((both.account.as_deref(), both.access[0].bastion.len()), (Some("123456789012"), 1));
    }

    #[test]
    fn says_what_is_wrong() {
        for account in ["", "12345678901", "1234567890123", "12345678901x"] {
            let error = load(args(Some(account)), None).unwrap_err();
            assert_eq!(error, format!("`--account-id`: `{account}` is not an account id: twelve digits"));
        }
        let error = load(args(Some("999999999999")), Some(ROLE)).unwrap_err();
        assert_eq!(error, "`--account-id`: `999999999999` is not the account of the role");
        assert!(load(PolicyArgs::default(), None).unwrap_err().starts_with("no bastion is given"));
    }

    #[test]
    fn access_entries_need_no_bastion() {
        let args = PolicyArgs { access_entry: true, ..PolicyArgs::default() };
        assert_eq!(load(args, None).unwrap().access[0].bastion, []);
    }
}

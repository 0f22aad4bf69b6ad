//! What `setup` works with. It is run by an administrator, for somebody else.

use clap::{Args, ValueEnum};

use super::{
    ACCESS, Access, AwsSettings, Environment, GlobalArgs, Origin, Problem, SettingsError, Source, Sources, access::all,
};
use crate::bastion::FargateOptions;

/// Longest name of a namespace of Kubernetes, in characters.
const MAX_NAMESPACE_LEN: usize = 63;

#[derive(Debug, Clone, Default, Args)]
pub struct SetupArgs {
    /// Cluster that is to be reached; repeat it for others of the same VPC
    #[arg(long, value_name = "NAME", required = true)]
    pub cluster: Vec<String>,
    /// What is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: SetupFormat,
    /// What the clusters are reached through
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub bastion_kind: BastionKind,
    /// Adds the VPC endpoints by which the bastion reaches Systems Manager without a way to the internet
    #[arg(long)]
    pub private: bool,
    /// Namespace that may be looked at, which may have `*`; repeat it for more [default: all, and what is in none]
    #[arg(long, value_name = "NAME")]
    pub namespace: Vec<String>,
    /// Image of the task of `--bastion-kind fargate` and `ecs`, with `--private` one in a private repository of ECR
    #[arg(long, value_name = "IMAGE")]
    pub fargate_image: Option<String>,
    /// Compares with what is there, and names what is missing, instead of printing
    #[arg(long)]
    pub check: bool,
    /// Prints what was compared as JSON
    #[arg(long, requires = "check")]
    pub json: bool,
}

/// The language of what is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SetupFormat {
    /// A template of CloudFormation, in JSON.
    #[default]
    Cloudformation,
    /// A configuration of Terraform.
    Terraform,
    /// A script of commands of the AWS CLI.
    Cli,
}

/// What clusters are reached through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BastionKind {
    /// An instance with the agent of Systems Manager, which an Auto Scaling group replaces.
    #[default]
    Ec2,
    /// An instance that is reached by SSH, through an EC2 Instance Connect Endpoint.
    Ssh,
    /// A task on Fargate that always runs, which a service of ECS replaces.
    Ecs,
    /// A task on Fargate, which `up` starts when it is needed.
    Fargate,
    /// Nothing, for clusters that can be reached already: the policy and the access entries alone.
    Direct,
}

impl BastionKind {
    /// Returns what it is called on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Ssh => "ssh",
            Self::Ecs => "ecs",
            Self::Fargate => "fargate",
            Self::Direct => "direct",
        }
    }

    /// Tells whether it is a container, which has an image.
    fn runs_tasks(self) -> bool {
        match self {
            Self::Ecs | Self::Fargate => true,
            Self::Ec2 | Self::Ssh | Self::Direct => false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct SetupSettings {
    /// How AWS is asked: with the credentials that are at hand, without the role that all this is for.
    pub aws: AwsSettings,
    /// The role that all this is for; `None`: one is to be made.
    pub role_arn: Option<String>,
    /// In the order in which they were given, each once.
    pub clusters: Vec<String>,
    pub namespaces: Vec<String>,
    /// `None`: the usual one.
    pub fargate_image: Option<String>,
}

impl SetupSettings {
    /// Reads the settings of `setup`.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(flags: &GlobalArgs, args: &SetupArgs, environment: &Environment) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let mut sources = Sources::read(flags, environment, &mut problems)?;
        sources.flags.add_flag(&ACCESS.clusters, &args.cluster);
        sources.flags.add_flag(&ACCESS.fargate_image, &args.fargate_image);
        let access = all(&sources, environment, &mut problems);
        if access.len() > 1 {
            problems.push(Problem::OneAccessOnly { entries: access.len() });
        }
        let namespace = Origin::Flag("--namespace".into());
        let odd = args.namespace.iter().filter(|name| !is_namespace(name));
        problems.extend(odd.map(|name| {
            Problem::malformed(&namespace, name, "a namespace: at most 63 small letters, digits, `-` and `*`")
        }));
        if args.fargate_image.is_some() && !args.bastion_kind.runs_tasks() {
            let image = args.fargate_image.as_deref().unwrap_or_default();
            let origin = Origin::Flag(ACCESS.fargate_image.flag().into());
            problems.push(Problem::malformed(&origin, image, "of use without `--bastion-kind fargate` or `ecs`"));
        }
        SettingsError::unless_empty(problems)?;
        let Access { mut aws, clusters, fargate_image, .. } = access.into_iter().next().unwrap_or_default();
        let role_arn = aws.role_arn.clone();
        // A role that is assumed with a token is who we are; any other is somebody whom this is for.
        match aws.choose(false).source {
            Source::TokenFile(_) | Source::CiJob => {}
            Source::Keys | Source::Profile(_) | Source::Chain => aws.role_arn = None,
        }
        let mut named = clusters;
        let mut seen = std::collections::BTreeSet::new();
        named.retain(|name| seen.insert(name.clone()));
        Ok(Self {
            aws,
            role_arn,
            clusters: named,
            namespaces: args.namespace.clone(),
            fargate_image: Some(fargate_image).filter(|image| image != FargateOptions::IMAGE),
        })
    }
}

/// Tells whether EKS would take this as the namespace of an access scope.
fn is_namespace(text: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'*');
    (1..=MAX_NAMESPACE_LEN).contains(&text.len())
        && text.bytes().all(is_of_names)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::{super::flags::typed, *};

    const ROLE: &str = "arn:aws:iam::123456789012:role/ReadOnly";

    fn load(args: &SetupArgs, words: &[&str], variables: &[(&str, &str)]) -> Result<SetupSettings, String> {
        let environment = Environment::default().with(variables.iter().copied());
        SetupSettings::load(&typed(words), args, &environment).map_err(|error| error.to_string())
    }

    fn args() -> SetupArgs {
        SetupArgs { cluster: vec!["b".to_owned(), "a".to_owned(), "b".to_owned()], ..SetupArgs::default() }
    }

    #[test]
    fn the_role_is_whom_it_is_for_unless_a_token_makes_it_ours() {
        let settings = load(&args(), &["--role-arn", ROLE], &[]).unwrap();
        assert_eq!((settings.aws.role_arn, settings.role_arn.as_deref()), (None, Some(ROLE)));
        assert_eq!(settings.clusters, ["b", "a"]);
        let with_token = [("AWS_ROLE_ARN", ROLE), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token")];
        let settings = load(&args(), &[], &with_token).unwrap();
        assert_eq!((settings.aws.role_arn.as_deref(), settings.role_arn.as_deref()), (Some(ROLE), Some(ROLE)));
        assert_eq!(load(&args(), &[], &[]).unwrap().role_arn, None);
    }

    #[test]
    fn says_what_is_wrong() {
        for (namespace, is_right) in
            [("team-a", true), ("dev-*", true), ("*", true), ("", false), ("-a", false), ("A", false), ("a/b", false)]
        {
            let args = SetupArgs { namespace: vec![namespace.to_owned()], ..args() };
            assert_eq!(load(&args, &[], &[]).is_ok(), is_right, "{namespace}");
        }
        let long = SetupArgs { namespace: vec!["a".repeat(64)], ..args() };
        assert!(load(&long, &[], &[]).unwrap_err().starts_with("`--namespace`: `aaa"));
        let image = SetupArgs { fargate_image: Some("i".to_owned()), ..args() };
        let error = load(&image, &[], &[]).unwrap_err();
        assert_eq!(error, "`--fargate-image`: `i` is not of use without `--bastion-kind fargate` or `ecs`");
        for bastion_kind in [BastionKind::Ecs, BastionKind::Fargate] {
            assert!(load(&SetupArgs { bastion_kind, ..image.clone() }, &[], &[]).is_ok(), "{bastion_kind:?}");
        }
        let odd = SetupArgs { cluster: vec!["a b".to_owned()], ..SetupArgs::default() };
        assert!(load(&odd, &[], &[]).unwrap_err().contains("is not the name of a cluster"));
    }
}

//! `policy`: the IAM policy that an identity needs, and what makes Kubernetes know it.
//!
//! stdout has the policy alone, or the commands, or Terraform's resources; how to apply them is said on stderr. AWS is asked
//! only for what no option gives, so that the policy can be written by someone who has no credentials at hand.

use std::process::ExitCode;

use super::{
    GlobalArgs,
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    aws::Aws,
    bastion::SessionDocument,
    cluster::Destination,
    forward::Forward,
    iam::{Clusters, Grant, POLICY_NAME, Principal, ServiceRole, access_entry_commands, terraform},
    route::list,
    settings::{Access, Environment, PolicyArgs, PolicySettings},
    util::{
        peer_text::sentence,
        quote::{Word, command},
    },
};

/// What to know where the role's session is tagged. Trust policies are no part of what is printed.
const TAGS_NOTE: &str = "for `--tag` and `--transitive-tag` the role's trust policy, and the policy of whoever assumes it, must allow \
                         `sts:TagSession` besides `sts:AssumeRole`";

/// Prints the policy.
///
/// # Errors
/// [`CommandError`] if something is missing that AWS does not tell either.
pub async fn run(args: &PolicyArgs, global: &GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let settings = PolicySettings::load(global, args, &Environment::read())?;
    let mut settings = settings;
    if args.access_entry {
        // It has nothing to do with sessions.
        settings.access.iter_mut().for_each(|access| access.document = None);
    }
    let is_tagged = settings.access.iter().any(|access| !access.aws.tags.is_empty());
    let (grant, mut notes) = Box::pin(grant(settings, args.access_entry || args.terraform)).await?;
    notes.extend((is_tagged && !args.access_entry).then(|| TAGS_NOTE.to_owned()));
    print(args, &grant, notes, printer)
}

/// Completes what the options say with what AWS says. Returns as well what to do about the session documents that it allows.
async fn grant(settings: PolicySettings, needs_principal: bool) -> Result<(Grant, Vec<String>), CommandError> {
    let PolicySettings { access, account, without_eks } = settings;
    let [Access { aws, bastion: bastions, clusters, document, forwards, request_access, .. }] =
        <[Access; 1]>::try_from(access).map_err(|access| {
            let message =
                format!("the configuration file has {} entries of `access`, but a policy is for one", access.len());
            CommandError::new(Kind::Usage, message)
                .hint("choose one with `--config /dev/null` and `--region`, `--bastion`, `--role-arn`")
        })?;
    let named = aws.role_arn.as_deref().and_then(Principal::from_arn);
    // Calls nothing, but finds the region wherever it is said.
    let aws = Box::pin(Aws::new(&aws)).await?;
    let (account, principal) = match account {
        Some(account) if named.is_some() || !needs_principal => (account, named),
        account => {
            let caller =
                aws.caller().await.map_err(|error| CommandError::from(error).hint(without_aws(needs_principal)))?;
            let principal = named.or_else(|| Principal::from_arn(&caller.arn));
            if needs_principal && principal.is_none() {
                let message = format!("`{}` is neither a role nor a user", caller.arn);
                return Err(CommandError::new(Kind::Usage, message).hint("give the role with `--role-arn`"));
            }
            (account.unwrap_or(caller.account), principal)
        }
    };
    let clusters = if without_eks { Clusters::None } else { Clusters::of(clusters) };
    let documents = document.as_ref().map(|document| {
        let names: Vec<String> = match &clusters {
            // Any cluster that there may be.
            Clusters::All => Vec::new(),
            Clusters::Named(names) => {
                names.iter().chain(forwards.iter().map(|forward| &forward.name)).cloned().collect()
            }
            Clusters::None => forwards.iter().map(|forward| forward.name.clone()).collect(),
        };
        document.patterns(&names)
    });
    let documents = documents.unwrap_or_default();
    let grant = Grant {
        region: aws.region().to_owned(),
        account,
        principal,
        bastions,
        clusters,
        documents,
        requests_access: request_access,
    };
    let partition = grant.partition();
    if let Some(principal) = grant.principal.as_ref().filter(|principal| principal.partition() != partition) {
        let message =
            format!("{} is in the partition `{partition}`, but `{}` is in another", grant.region, principal.arn());
        return Err(CommandError::new(Kind::Usage, message).hint("choose the region with `--region`"));
    }
    let documents = match document {
        Some(document) => how_to_make_documents(&document, &grant, &forwards, &aws).await,
        None => Vec::new(),
    };
    Ok((grant, documents))
}

/// Returns the commands that make the documents, as far as EKS tells where its clusters answer.
async fn how_to_make_documents(
    document: &SessionDocument,
    grant: &Grant,
    forwards: &[Forward],
    aws: &Aws,
) -> Vec<String> {
    let named = match &grant.clusters {
        Clusters::All => aws.list_clusters().await,
        Clusters::Named(names) => Ok(names.clone()),
        Clusters::None => Ok(Vec::new()),
    };
    let of_forwards = forwards.iter().map(|forward| (forward.name.clone(), Ok(forward.to.clone())));
    let mut endpoints: Vec<(String, Result<Destination, String>)> = of_forwards.collect();
    match named {
        Err(error) => endpoints.push(("each cluster".to_owned(), Err(sentence(&error)))),
        Ok(names) => {
            for name in names {
                let endpoint = match aws.describe_cluster(&name).await {
                    Ok(Some(cluster)) => {
                        cluster.access.map(|access| access.endpoint).map_err(|reason| sentence(&reason))
                    }
                    Ok(None) => Err(format!("there is no cluster `{name}` in {}", grant.region)),
                    Err(error) => Err(sentence(&error)),
                };
                endpoints.push((name, endpoint));
            }
        }
    }
    let make = |(name, endpoint): (String, Result<Destination, String>)| match endpoint {
        Ok(Destination { host, port }) => command!(
            "the document for `{}` has to be there as well: `aws ssm create-document --region {} --name {} --document-type \
             Session --content {}`",
            Word::raw(name.clone()),
            &*grant.region,
            &*document.of(&name),
            &*SessionDocument::content(&host, port)
        ),
        Err(reason) => format!("the document for {name} cannot be shown, as its endpoint is not known: {reason}"),
    };
    endpoints.into_iter().map(make).collect()
}

/// How to do without the call that failed.
fn without_aws(needs_principal: bool) -> &'static str {
    if needs_principal {
        "give the role with `--role-arn ARN`: then AWS is not called"
    } else {
        "give the account with `--account-id`: then AWS is not called"
    }
}

fn print(
    args: &PolicyArgs,
    grant: &Grant,
    documents: Vec<String>,
    printer: &Printer,
) -> Result<ExitCode, CommandError> {
    let principal = grant.principal.as_ref();
    match principal {
        // `grant` has seen to it that both have one.
        Some(principal) if args.access_entry => printer.result(&access_entry_commands(grant, principal))?,
        Some(principal) if args.terraform => {
            printer.result(&terraform(grant, &list::policy(grant), principal, &list::roles(grant)))?;
        }
        Some(_) | None => printer.result(&list::policy(grant).to_json())?,
    }
    for hint in hints(args, grant).into_iter().chain(documents) {
        printer.hint(&hint);
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how to apply what was printed, and what to look at before.
fn hints(args: &PolicyArgs, grant: &Grant) -> Vec<String> {
    let mut hints = Vec::new();
    let principal = grant.principal.as_ref();
    if !args.access_entry {
        if !args.terraform {
            hints.push(how_to_put(principal));
            hints.extend(list::roles(grant).iter().map(how_to_make));
        }
        hints.extend(list::notes(grant));
    }
    if let Some(Principal::Role { path_unknown: true, .. }) = principal
        && (args.access_entry || args.terraform)
    {
        let name = principal.map(Principal::name).unwrap_or_default();
        hints.push(command!("the path of a role cannot be seen from its session: if `aws iam get-role --role-name {} --query Role.Arn --output text` \
             shows another ARN, give that with `--role-arn`", name));
    }
    hints
}

/// Says how to make a role that a service acts as.
fn how_to_make(role: &ServiceRole) -> String {
    let name = &role.name;
    command!(
        "the role `{}` has to be there as well: `aws iam create-role --role-name {} --assume-role-policy-document {}`, then `aws \
         iam put-role-policy --role-name {} --policy-name {} --policy-document {}`",
        Word::raw(name.clone()),
        name,
        role.trust(),
        name,
        POLICY_NAME,
        role.document.to_line()
    )
}

fn how_to_put(principal: Option<&Principal>) -> String {
    let file = format!("{POLICY_NAME}-policy.json");
    let rest = Word::raw(command!("--policy-name {} --policy-document file://{}", POLICY_NAME, file));
    match principal {
        Some(principal) if principal.is_of_identity_center() => command!(
            "the role is of IAM Identity Center: make this the inline policy of its permission set, with `aws sso-admin \
             put-inline-policy-to-permission-set --inline-policy file://{} --instance-arn … --permission-set-arn …`",
            file
        ),
        Some(Principal::User { .. }) => {
            let name = principal.map(Principal::name).unwrap_or_default();
            command!("save it as `{}`, then `aws iam put-user-policy --user-name {} {}`", file, name, rest)
        }
        Some(Principal::Role { .. }) => {
            let name = principal.map(Principal::name).unwrap_or_default();
            command!("save it as `{}`, then `aws iam put-role-policy --role-name {} {}`", file, name, rest)
        }
        None => command!("save it as `{}`, then `aws iam put-role-policy --role-name ROLE {}`", file, rest),
    }
}

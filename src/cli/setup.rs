//! `setup`: what AWS must have for clusters to be reached, as one document that creates it; or what of it is missing.
//!
//! stdout has the document alone; how to deploy it, and which `up` works then, is said on stderr. AWS is asked, and nothing is
//! created.

use std::process::ExitCode;

use super::{
    GlobalArgs,
    doctor::Sheet,
    error::{CommandError, Kind},
    output::Printer,
};
use crate::{
    aws::Aws,
    doctor::{Entry, Status},
    iam::Principal,
    settings::{Environment, SetupArgs, SetupSettings},
    setup::{Looked, Mend, Order, Piece, Plan, State, SurveyError, look, survey},
    util::{
        peer_text::sentence,
        quote::{Word, command},
    },
};

/// Prints the document, or what is missing.
///
/// # Errors
/// [`CommandError`] if AWS does not tell enough for a plan, or with `--check` if something is missing.
pub async fn run(args: SetupArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let settings = SetupSettings::load(&global, &args, &Environment::read())?;
    let order = Order {
        clusters: settings.clusters,
        kind: args.bastion_kind,
        private: args.private,
        namespaces: settings.namespaces,
        principal: settings.role_arn.as_deref().and_then(Principal::from_arn),
        fargate_image: settings.fargate_image,
    };
    let aws = Box::pin(Aws::new(&settings.aws)).await?;
    let plan = Box::pin(survey(&aws, &order)).await?;
    if args.check {
        return Box::pin(check(&aws, &plan, args.json, printer)).await;
    }
    let document = plan.document(args.format);
    printer.result(&document)?;
    for note in plan.notes.iter().chain(&plan.unseen) {
        printer.warning(note);
    }
    printer.hint(&plan.how_to_deploy(args.format, &document));
    printer.hint(&command!("when it is deployed, `{}` finds nothing missing", Word::raw(plan.check(&order))));
    printer.hint(&command!("then this opens the tunnels: `{}`", Word::raw(plan.up())));
    Ok(ExitCode::SUCCESS)
}

/// Compares with what is there.
async fn check(aws: &Aws, plan: &Plan, json: bool, printer: &Printer) -> Result<ExitCode, CommandError> {
    let mut sheet = Sheet::new(json, printer);
    look(aws, plan, |looked| sheet.add(entry(plan, looked))).await;
    for note in &plan.notes {
        sheet.add(note_entry(plan, note, Status::Failed));
    }
    for note in &plan.unseen {
        sheet.add(note_entry(plan, note, Status::Warning));
    }
    let outcome = sheet.finish();
    if outcome.is_ok() {
        printer.hint(&command!("this opens the tunnels: `{}`", Word::raw(plan.up())));
    }
    outcome
}

/// Says what was found of a piece.
fn entry(plan: &Plan, looked: Looked<'_>) -> Entry {
    let Looked { item, tried, state } = looked;
    let make = || plan.commands(item);
    let (status, answer, fixes) = match state {
        State::There(what) => (Status::Ok, what, Vec::new()),
        State::Missing => (Status::Failed, "there is none".to_owned(), make()),
        State::Differs { how, mend: Mend::Last } => {
            (Status::Failed, how, make().into_iter().next_back().into_iter().collect())
        }
        State::Differs { how, mend: Mend::By(command) } => (Status::Failed, how, vec![command]),
        State::Unknown(error) => (Status::Warning, sentence(&error), Vec::new()),
    };
    Entry {
        id: format!("setup.{}", item.id),
        title: item.piece.kind().to_owned(),
        status,
        region: Some(plan.region.clone()),
        cluster: cluster_of(&item.piece),
        target: item.piece.name().map(str::to_owned),
        tried,
        answer: Some(answer),
        meaning: None,
        fixes,
        duration_ms: 0,
    }
}

/// Says what no document can mend, or what could not be looked at.
fn note_entry(plan: &Plan, note: &str, status: Status) -> Entry {
    Entry {
        id: "setup.note".to_owned(),
        title: "by hand".to_owned(),
        status,
        region: Some(plan.region.clone()),
        cluster: None,
        target: None,
        tried: "what EKS and EC2 say of the clusters".to_owned(),
        answer: Some(note.to_owned()),
        meaning: None,
        fixes: Vec::new(),
        duration_ms: 0,
    }
}

fn cluster_of(piece: &Piece) -> Option<String> {
    match piece {
        Piece::Rule(rule) => rule.cluster.clone(),
        Piece::Entry(entry) => Some(entry.cluster.clone()),
        Piece::ServiceRole(_)
        | Piece::InstanceProfile { .. }
        | Piece::Group(_)
        | Piece::Template(_)
        | Piece::Scaling(_)
        | Piece::Endpoint(_)
        | Piece::ConnectEndpoint { .. }
        | Piece::EcsCluster { .. }
        | Piece::TaskDefinition(_)
        | Piece::Service(_)
        | Piece::UserRole { .. }
        | Piece::Policy { .. } => None,
    }
}

impl From<SurveyError> for CommandError {
    fn from(error: SurveyError) -> Self {
        let (kind, hint) = match &error {
            SurveyError::Aws(error) => return error.clone().into(),
            SurveyError::Unusable { .. } => (Kind::NotFound, "`autoheal-pa clusters` shows those that can be reached".to_owned()),
            SurveyError::NoNetwork { .. } => {
                (Kind::NotFound, "a cluster of EKS has a VPC and a security group once it is active".to_owned())
            }
            SurveyError::SeveralVpcs { .. } => {
                (Kind::Usage, "run it once for each VPC, with its clusters: each has a bastion and a document of its own".to_owned())
            }
            SurveyError::NoWayOut { .. } => (
                Kind::Usage,
                "`--private` adds VPC endpoints to the document, so that none is needed; a NAT gateway would do as well".to_owned(),
            ),
            SurveyError::NoImage => (
                Kind::Usage,
                "give it with `--fargate-image`: any image that has `sh`, `date`, `grep` and `sleep`, such as a copy of busybox".to_owned(),
            ),
            SurveyError::PolicyTooLong { .. } => {
                (Kind::Usage, "name fewer clusters at a time, each time with another `--role-arn`".to_owned())
            }
            SurveyError::OtherAccount { .. } => {
                (Kind::Usage, "give a role of the clusters' account, or leave out `--role-arn`: then one is made".to_owned())
            }
            SurveyError::OtherPartition { .. } => (Kind::Usage, "choose the region with `--region`".to_owned()),
        };
        Self::of(kind, error).hint(hint)
    }
}

//! What `setup` has made for a bastion, seen again without the options that it was given.

use std::fmt;

use super::{
    Group, GroupOf, Item, Looked, Order, Piece, Plan, Rule, State, SurveyError, look,
    survey::{HTTPS, IMAGE_ROLE, survey},
};
use crate::{
    aws::{Aws, AwsError},
    bastion::{Bastion, Search},
    settings::BastionKind,
    util::peer_text::PeerText,
};

/// An image that a plan can be made with when it is not known which one was chosen.
const ANY_IMAGE: &str = "IMAGE";

/// The bastion's pieces of a document that has been deployed.
#[derive(Debug)]
pub struct Made {
    /// How many there are to be.
    pub count: usize,
    /// How many of them may not be looked at, or cannot be.
    pub unseen: usize,
    /// Those that are missing, or not as they have to be.
    pub lacks: Vec<Lack>,
    /// The `setup --check` that looks for all of them.
    pub check: String,
}

/// A piece that is missing, or not as it has to be.
#[derive(Debug)]
pub struct Lack {
    /// The name that it has in documents.
    pub id: String,
    /// Of which kind it is and what it is called, in words.
    pub what: String,
    /// How it differs from what it has to be, in words; `None`: there is none.
    pub how: Option<String>,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, lacks, .. } = self;
        let told: Vec<String> = lacks.iter().map(ToString::to_string).collect();
        write!(f, "{} of {count} pieces {}", lacks.len(), if lacks.len() == 1 { "is" } else { "are" })?;
        write!(f, " not as needed: {}", told.join("; "))
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, what, how } = self;
        write!(f, "`{id}`, {what}: {}", how.as_deref().unwrap_or("there is none"))
    }
}

/// Returns what `setup` makes such a bastion with, if it makes any.
#[must_use]
pub fn kind_of(bastion: &Bastion) -> Option<BastionKind> {
    match bastion {
        Bastion::Found(Search::Auto { .. }) => Some(BastionKind::Ec2),
        Bastion::Found(Search::Ecs(_)) => Some(BastionKind::Ecs),
        Bastion::Fargate(_) => Some(BastionKind::Fargate),
        Bastion::Ssh(_) => Some(BastionKind::Ssh),
        Bastion::Target(_) | Bastion::Found(_) | Bastion::Direct => None,
    }
}

/// Looks for the pieces of a bastion that leads to these clusters, which are in one VPC. `None` if none of them is there, as
/// far as these credentials show: then something else has made the bastion.
///
/// # Errors
/// See [`SurveyError`].
pub async fn made(aws: &Aws, bastion: &Bastion, clusters: &[String]) -> Result<Option<Made>, SurveyError> {
    let Some(kind) = kind_of(bastion) else { return Ok(None) };
    let mut order = Order {
        clusters: clusters.to_vec(),
        kind,
        private: true,
        namespaces: Vec::new(),
        principal: None,
        fargate_image: Some(ANY_IMAGE.to_owned()),
    };
    let mut plan = Box::pin(survey(aws, &order)).await?;
    if plan.bastion.to_string() != bastion.to_string() {
        return Ok(None);
    }
    plan.items.retain(|item| is_of_bastion(&item.piece));
    let mut seen = Vec::with_capacity(plan.items.len());
    Box::pin(look(aws, &plan, |looked| seen.push(looked))).await;
    // Names contain the VPC, so that nobody else has them.
    let is_own = |piece: &Piece| piece.name().is_some_and(|name| name.contains(&plan.vpc));
    if !seen.iter().any(|looked| is_there(&looked.state) && is_own(&looked.item.piece)) {
        return Ok(None);
    }
    order.private = seen.iter().any(|looked| is_there(&looked.state) && leads_to_services(&looked.item.piece));
    // Whoever may not look at it is told so by the piece.
    let image = image(aws, &plan).await.ok().flatten();
    let is_wanted = |Item { id, piece }: &Item| {
        (image.is_some() || id != IMAGE_ROLE)
            && (order.private || !(leads_to_services(piece) || is_way_to_services(piece)))
    };
    seen.retain(|looked| is_wanted(looked.item));
    order.fargate_image = image.map(|image| image.to_string());
    let lacks = seen.iter().filter_map(lack).collect();
    let unseen = seen.iter().filter(|looked| matches!(looked.state, State::Unknown(_))).count();
    let check = Plan { private: order.private, ..plan.clone() }.check(&order);
    Ok(Some(Made { count: seen.len(), unseen, lacks, check }))
}

fn is_there(state: &State) -> bool {
    match state {
        State::There(_) | State::Differs { .. } => true,
        State::Missing | State::Unknown(_) => false,
    }
}

fn lack(looked: &Looked<'_>) -> Option<Lack> {
    let how = match &looked.state {
        State::There(_) | State::Unknown(_) => return None,
        State::Missing => None,
        State::Differs { how, .. } => Some(how.clone()),
    };
    let Item { id, piece } = looked.item;
    let name = piece.name().map(|name| format!(" `{name}`")).unwrap_or_default();
    Some(Lack { id: id.clone(), what: format!("{}{name}", piece.kind()), how })
}

/// Tells whether a piece is for the bastion, and not for whoever uses it.
fn is_of_bastion(piece: &Piece) -> bool {
    match piece {
        Piece::UserRole { .. } | Piece::Policy { .. } | Piece::Entry(_) => false,
        Piece::ServiceRole(_)
        | Piece::InstanceProfile { .. }
        | Piece::Group(_)
        | Piece::Rule(_)
        | Piece::Template(_)
        | Piece::Scaling(_)
        | Piece::Endpoint(_)
        | Piece::ConnectEndpoint { .. }
        | Piece::EcsCluster { .. }
        | Piece::TaskDefinition(_)
        | Piece::Service(_) => true,
    }
}

/// Tells whether a piece is there with `--private` only. An endpoint that is planned is none of somebody else's.
fn leads_to_services(piece: &Piece) -> bool {
    matches!(piece, Piece::Endpoint(_) | Piece::Group(Group { of: GroupOf::Endpoints, .. }))
}

/// Tells whether a piece lets the bastion into endpoints.
fn is_way_to_services(piece: &Piece) -> bool {
    matches!(piece, Piece::Rule(Rule { cluster: None, port: HTTPS, .. }))
}

/// Returns the image of tasks, if it is one that a role is needed for.
async fn image(aws: &Aws, plan: &Plan) -> Result<Option<PeerText>, AwsError> {
    let Some(Piece::TaskDefinition(definition)) = plan.item("TaskDefinition").map(|item| &item.piece) else {
        return Ok(None);
    };
    let found = aws.task_definition(&definition.family).await?;
    Ok(found.and_then(|found| found.execution_role.and(found.image)))
}

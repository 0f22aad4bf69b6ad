//! Whether what `setup` has made for a bastion is all there: what carries sessions now, and what takes its place when it ends.

use std::collections::BTreeMap;

use tokio::time::timeout;

use super::{Check, Examination, Fact, Finding, Reason, Trouble};
use crate::{
    aws::Aws,
    bastion::Bastion,
    remote::Remote,
    setup::{SurveyError, kind_of, made},
    util::peer_text::sentence,
};

/// How many times longer than one request all may take: some twenty calls, one after the other.
const PATIENCE: u32 = 3;

impl<R: FnMut(Finding) + Send> Examination<'_, R> {
    /// Compares what there is with what `setup` makes, for each bastion of a kind that it makes and for each network.
    pub(super) async fn pieces(&mut self, aws: &Aws, remotes: &[&Remote]) {
        let mut by_vpc: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for cluster in remotes.iter().filter_map(|to| to.cluster()).filter(|cluster| cluster.imported().is_none()) {
            if let Some(vpc) = &cluster.vpc {
                by_vpc.entry(&vpc.id).or_default().push(cluster.name.clone());
            }
        }
        let bastions: &[Bastion] = &self.subject.bastions;
        for bastion in bastions.iter().filter(|bastion| kind_of(bastion).is_some()) {
            for clusters in by_vpc.values() {
                self.place.route = Some(bastion.to_string());
                self.pieces_of(aws, bastion, clusters).await;
                self.place.route = None;
            }
        }
    }

    async fn pieces_of(&mut self, aws: &Aws, bastion: &Bastion, clusters: &[String]) {
        let skipped = |why: String| Reason::Untold { why, hints: Vec::new() };
        let limit = self.limits.request * PATIENCE;
        match timeout(limit, Box::pin(made(aws, bastion, clusters))).await {
            Ok(Ok(Some(made))) if made.lacks.is_empty() => {
                self.passed(Check::Setup, Fact::Whole { pieces: made.count, unseen: made.unseen })
            }
            Ok(Ok(Some(made))) => self.doubtful(Check::Setup, Trouble::Incomplete(made)),
            // Something else has made the bastion, which has nothing to do with these pieces.
            Ok(Ok(None)) => {}
            Ok(Err(SurveyError::Aws(error))) => self.skip_for([Check::Setup], || Reason::Unseen(error.clone())),
            Ok(Err(error)) => self.skip_for([Check::Setup], || skipped(sentence(&error))),
            Err(_) => {
                let why = format!("AWS has not told all of it within {} seconds", limit.as_secs());
                self.skip_for([Check::Setup], || skipped(why.clone()));
            }
        }
    }
}

//! What words and fixes call things.

use crate::{cluster::Destination, doctor::Place};

/// The user's own names, as far as they are known.
pub(super) struct Names {
    pub(super) region: String,
    pub(super) cluster: String,
    pub(super) target: String,
    pub(super) endpoint: String,
    pub(super) host: String,
    /// Of the endpoint.
    pub(super) url: String,
}

impl Names {
    pub(super) fn of(place: &Place) -> Self {
        let described = place.description.as_ref().and_then(|description| description.access.as_ref().ok());
        let endpoint = described.map(|cluster| &cluster.endpoint).or(place.imported.as_ref());
        let unknown = || "the API server".to_owned();
        let or = |text: Option<&str>, other: &str| text.unwrap_or(other).to_owned();
        Self {
            region: or(place.region.as_deref(), "the region"),
            cluster: or(place.cluster.as_deref(), "the cluster"),
            target: or(place.route.as_deref(), "the bastion"),
            endpoint: endpoint.map_or_else(unknown, ToString::to_string),
            host: endpoint.map_or_else(unknown, |endpoint| endpoint.host.clone()),
            url: endpoint.map_or_else(unknown, Destination::url),
        }
    }
}

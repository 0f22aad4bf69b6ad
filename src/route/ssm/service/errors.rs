//! Errors of calls and connections as those of sessions.

use std::time::Duration;

use crate::{
    aws::{
        endpoint::{Foreign, Gateway},
        error::{AwsError, Refusal, ServiceAnswer},
    },
    bastion::Target,
    fault::BoxError,
    route::ssm::{DialError, statements::DOCUMENT},
};

/// Says what an error means to a tunnel.
pub(in crate::route::ssm) fn dial_error(action: &'static str, target: Option<&Target>, error: AwsError) -> DialError {
    match error {
        AwsError::Service { source, .. } => DialError::Service { action, source: source.into() },
        AwsError::Malformed { .. } => DialError::Service { action, source: error.into() },
        // Another call was refused: one that was to give credentials.
        AwsError::Refused { action: other, .. } if other != action => {
            DialError::Credentials { action, source: error.into() }
        }
        AwsError::Refused { resource, refusal, source, .. } => match (refusal, target) {
            (Refusal::Target, Some(target)) => {
                DialError::TargetNotConnected { target: target.clone(), source: source.into() }
            }
            (Refusal::Document, _) => {
                DialError::DocumentRefused { document: DOCUMENT.to_owned(), source: source.into() }
            }
            (
                Refusal::Target
                | Refusal::Request
                | Refusal::Absent
                | Refusal::Token
                | Refusal::EcsCluster
                | Refusal::EcsService,
                _,
            ) => DialError::Refused { action, resource, source: source.into() },
        },
        AwsError::AccessDenied { action: ref other, .. } if other.starts_with("sts:") => {
            DialError::Credentials { action, source: error.into() }
        }
        AwsError::AccessDenied { resource, source, .. } => {
            DialError::AccessDenied { action, resource, source: source.into() }
        }
        AwsError::Throttled { source, .. } => DialError::Throttled { action, source: source.into() },
        AwsError::Unreachable { host, source } => DialError::Unreachable { host, source: source.into() },
        AwsError::NoCredentials { .. }
        | AwsError::Profile { .. }
        | AwsError::HalfKeys
        | AwsError::CredentialSource { .. }
        | AwsError::CredentialTimeout { .. }
        | AwsError::TokenFile { .. }
        | AwsError::ContainerToken { .. }
        | AwsError::TokenEndpoint { .. }
        | AwsError::TokenMalformed { .. }
        | AwsError::TokenExpired { .. }
        | AwsError::InvalidIdentityToken { .. }
        | AwsError::RoleDenied { .. }
        | AwsError::DurationTooLong { .. }
        | AwsError::TagsOfToken { .. }
        | AwsError::NotRenewed { .. }
        | AwsError::ExpiredCredentials { .. }
        | AwsError::BadKeys { .. }
        | AwsError::ClockSkew { .. }
        | AwsError::Signing { .. } => DialError::Credentials { action, source: error.into() },
        // None of them passes by itself.
        AwsError::NoRegion
        | AwsError::InvalidRegion { .. }
        | AwsError::UnknownProfile { .. }
        | AwsError::ProfileFiles { .. }
        | AwsError::CaBundle { .. }
        | AwsError::NoGateway { .. }
        | AwsError::RegionDisabled { .. }
        | AwsError::ClusterNotFound { .. }
        | AwsError::BearerTokenTooLong { .. } => {
            let resource = target.map_or_else(|| "*".to_owned(), |target| target.as_str().to_owned());
            DialError::Refused { action, resource, source: error.into() }
        }
    }
}

/// Names the document of the user's that a session was to be started with.
pub(super) fn refused_document(document: Option<&str>, error: DialError) -> DialError {
    match (document, error) {
        (Some(document), DialError::DocumentRefused { source, .. }) => {
            DialError::DocumentRefused { document: document.to_owned(), source }
        }
        (_, error) => error,
    }
}

pub(super) fn foreign(url: Foreign) -> DialError {
    DialError::ForeignStreamUrl { host: url.host.into() }
}

pub(super) fn unreachable(gateway: &Gateway, error: impl Into<BoxError>) -> DialError {
    DialError::Unreachable { host: gateway.host().to_owned(), source: error.into() }
}

pub(super) fn late(step: &'static str, limit: Duration) -> DialError {
    DialError::Timeout { step, seconds: limit.as_secs() }
}

pub(super) fn lacking(action: &'static str, field: &str) -> DialError {
    let message = Some(format!("the answer has no {field}").into());
    DialError::Service { action, source: ServiceAnswer { code: None, message, status: None, request_id: None }.into() }
}

//! What the error codes of AWS mean.
//!
//! Codes and not the SDK's types, as denials, throttling and expired tokens are never modelled.
//!
//! Invariant: every code of the API models for the operations that are called, and every common one, is in the table.
//! What is to be done about a code is decided here, on purpose; only codes that nobody knew are sorted by
//! the status that they come with.

use super::Refusal;

/// What a code means to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The identity may not do this.
    Denied,
    Expired,
    /// The clock of this machine is wrong.
    ClockSkew,
    /// The signature is wrong: the keys are, or the clock is, as the message says.
    BadSignature,
    /// The credentials are not known.
    BadKeys,
    /// The service asks for fewer calls.
    Throttled,
    /// The account does not use the region.
    RegionDisabled,
    /// The request itself is refused, and would be again.
    Refused(Refusal),
    /// The service has trouble of its own, which may pass.
    Transient,
}

/// Every code that is known, sorted by what it means.
const CODES: &[(&str, Class)] = &[
    ("AccessDenied", Class::Denied),
    ("AccessDeniedException", Class::Denied),
    ("AuthException", Class::Denied),
    ("NotAuthorized", Class::Denied),
    ("UnauthorizedOperation", Class::Denied),
    //
    ("ExpiredToken", Class::Expired),
    ("ExpiredTokenException", Class::Expired),
    //
    ("RequestExpired", Class::ClockSkew),
    ("RequestInTheFuture", Class::ClockSkew),
    ("RequestTimeTooSkewed", Class::ClockSkew),
    //
    ("InvalidSignatureException", Class::BadSignature),
    ("SignatureDoesNotMatch", Class::BadSignature),
    //
    ("AuthFailure", Class::BadKeys),
    ("IncompleteSignature", Class::BadKeys),
    ("IncompleteSignatureException", Class::BadKeys),
    ("InvalidAccessKeyId", Class::BadKeys),
    ("InvalidClientTokenId", Class::BadKeys),
    ("MissingAuthenticationToken", Class::BadKeys),
    ("MissingAuthenticationTokenException", Class::BadKeys),
    ("UnrecognizedClientException", Class::BadKeys),
    //
    ("BandwidthLimitExceeded", Class::Throttled),
    ("EC2ThrottledException", Class::Throttled),
    ("LimitExceededException", Class::Throttled),
    ("PriorRequestNotComplete", Class::Throttled),
    ("ProvisionedThroughputExceededException", Class::Throttled),
    ("RequestLimitExceeded", Class::Throttled),
    ("RequestThrottled", Class::Throttled),
    ("RequestThrottledException", Class::Throttled),
    ("SlowDown", Class::Throttled),
    ("ThrottledException", Class::Throttled),
    ("Throttling", Class::Throttled),
    ("ThrottlingException", Class::Throttled),
    ("TooManyRequestsException", Class::Throttled),
    ("TransactionInProgressException", Class::Throttled),
    //
    ("OptInRequired", Class::RegionDisabled),
    ("RegionDisabledException", Class::RegionDisabled),
    // The second is not documented for StartSession, and elsewhere means the same: no agent, or no such node.
    ("TargetNotConnected", Class::Refused(Refusal::Target)),
    ("InvalidInstanceId", Class::Refused(Refusal::Target)),
    //
    ("InvalidDocument", Class::Refused(Refusal::Document)),
    ("InvalidDocumentOperation", Class::Refused(Refusal::Document)),
    ("InvalidDocumentVersion", Class::Refused(Refusal::Document)),
    ("InvalidParameters", Class::Refused(Refusal::Document)),
    //
    ("DoesNotExistException", Class::Refused(Refusal::Absent)),
    ("EC2InstanceNotFoundException", Class::Refused(Refusal::Absent)),
    ("InvalidInstanceConnectEndpointId.NotFound", Class::Refused(Refusal::Absent)),
    ("InvalidInstanceID.NotFound", Class::Refused(Refusal::Absent)),
    ("NoSuchEntity", Class::Refused(Refusal::Absent)),
    ("ResourceNotFoundException", Class::Refused(Refusal::Absent)),
    //
    ("ClusterNotFoundException", Class::Refused(Refusal::EcsCluster)),
    ("ServiceNotFoundException", Class::Refused(Refusal::EcsService)),
    //
    ("IDPRejectedClaim", Class::Refused(Refusal::Token)),
    ("IDPRejectedClaimException", Class::Refused(Refusal::Token)),
    ("InvalidIdentityToken", Class::Refused(Refusal::Token)),
    ("InvalidIdentityTokenException", Class::Refused(Refusal::Token)),
    // The first is in no model: a managed node of the standard tier is refused with it.
    ("BadRequest", Class::Refused(Refusal::Request)),
    ("BadRequestException", Class::Refused(Refusal::Request)),
    ("Blocked", Class::Refused(Refusal::Request)),
    ("BlockedException", Class::Refused(Refusal::Request)),
    ("ClientException", Class::Refused(Refusal::Request)),
    ("ConflictException", Class::Refused(Refusal::Request)),
    ("DryRunOperation", Class::Refused(Refusal::Request)),
    ("EC2InstanceStateInvalidException", Class::Refused(Refusal::Request)),
    ("FeatureNotAvailableException", Class::Refused(Refusal::Request)),
    ("FilterLimitExceeded", Class::Refused(Refusal::Request)),
    ("IdempotentParameterMismatch", Class::Refused(Refusal::Request)),
    ("IncorrectInstanceState", Class::Refused(Refusal::Request)),
    ("InvalidAction", Class::Refused(Refusal::Request)),
    ("InvalidArgsException", Class::Refused(Refusal::Request)),
    ("InvalidCharacter", Class::Refused(Refusal::Request)),
    ("InvalidContextAssertion", Class::Refused(Refusal::Request)),
    ("InvalidContextAssertionException", Class::Refused(Refusal::Request)),
    ("InvalidFilterKey", Class::Refused(Refusal::Request)),
    ("InvalidInstanceConnectEndpointId.Malformed", Class::Refused(Refusal::Request)),
    ("InvalidInstanceID.Malformed", Class::Refused(Refusal::Request)),
    ("InvalidInstanceInformationFilterValue", Class::Refused(Refusal::Request)),
    ("InvalidNextToken", Class::Refused(Refusal::Request)),
    ("InvalidPaginationToken", Class::Refused(Refusal::Request)),
    ("InvalidParameter", Class::Refused(Refusal::Request)),
    ("InvalidParameterCombination", Class::Refused(Refusal::Request)),
    ("InvalidParameterDependency", Class::Refused(Refusal::Request)),
    ("InvalidParameterException", Class::Refused(Refusal::Request)),
    ("InvalidParameterValue", Class::Refused(Refusal::Request)),
    ("InvalidQueryParameter", Class::Refused(Refusal::Request)),
    ("InvalidRequestException", Class::Refused(Refusal::Request)),
    ("MalformedHttpRequestException", Class::Refused(Refusal::Request)),
    ("MalformedPolicyDocument", Class::Refused(Refusal::Request)),
    ("MalformedPolicyDocumentException", Class::Refused(Refusal::Request)),
    ("MalformedQueryString", Class::Refused(Refusal::Request)),
    ("MissingAction", Class::Refused(Refusal::Request)),
    ("MissingParameter", Class::Refused(Refusal::Request)),
    ("NamespaceNotFoundException", Class::Refused(Refusal::Request)),
    ("PackedPolicyTooLarge", Class::Refused(Refusal::Request)),
    ("PackedPolicyTooLargeException", Class::Refused(Refusal::Request)),
    ("PendingVerification", Class::Refused(Refusal::Request)),
    ("PlatformTaskDefinitionIncompatibilityException", Class::Refused(Refusal::Request)),
    ("PlatformUnknownException", Class::Refused(Refusal::Request)),
    ("RequestEntityTooLargeException", Class::Refused(Refusal::Request)),
    ("SerializationException", Class::Refused(Refusal::Request)),
    ("ServiceQuotaExceededException", Class::Refused(Refusal::Request)),
    ("TagPolicyViolation", Class::Refused(Refusal::Request)),
    ("UnknownOperationException", Class::Refused(Refusal::Request)),
    ("UnknownParameter", Class::Refused(Refusal::Request)),
    ("UnsupportedFeatureException", Class::Refused(Refusal::Request)),
    ("UnsupportedFeatureRequiredException", Class::Refused(Refusal::Request)),
    ("UnsupportedInstanceAttribute", Class::Refused(Refusal::Request)),
    ("UnsupportedOperation", Class::Refused(Refusal::Request)),
    ("UnsupportedOperationException", Class::Refused(Refusal::Request)),
    ("UnsupportedPlatformType", Class::Refused(Refusal::Request)),
    ("UnsupportedProtocol", Class::Refused(Refusal::Request)),
    ("ValidationError", Class::Refused(Refusal::Request)),
    ("ValidationException", Class::Refused(Refusal::Request)),
    ("EC2InstanceUnavailableException", Class::Transient),
    // An identity provider that STS does not reach is asked again.
    ("IDPCommunicationError", Class::Transient),
    ("IDPCommunicationErrorException", Class::Transient),
    ("InternalError", Class::Transient),
    ("InternalFailure", Class::Transient),
    ("InternalServerError", Class::Transient),
    ("InternalServerException", Class::Transient),
    ("RequestAbortedException", Class::Transient),
    ("RequestTimeout", Class::Transient),
    ("RequestTimeoutException", Class::Transient),
    ("ServerException", Class::Transient),
    ("ServerInternal", Class::Transient),
    ("ServiceException", Class::Transient),
    ("ServiceUnavailable", Class::Transient),
    ("ServiceUnavailableException", Class::Transient),
    ("Unavailable", Class::Transient),
];

/// Words by which a refusal is known that comes without a code, as the message gateway's do.
const WORDS: &[(&str, Class)] = &[
    ("Signature expired", Class::ClockSkew),
    ("Signature not yet current", Class::ClockSkew),
    ("not authorized to perform", Class::Denied),
    ("explicit deny", Class::Denied),
    ("token included in the request is expired", Class::Expired),
    ("token included in the request is invalid", Class::BadKeys),
    ("Missing Authentication Token", Class::BadKeys),
    ("signature we calculated does not match", Class::BadSignature),
];

/// Says what a refusal means that is only text, perhaps with a code in it; `None` if the text does not tell.
pub(super) fn class_of_text(text: &str) -> Option<Class> {
    let words = WORDS.iter().find(|(words, _)| text.contains(words));
    let code = || {
        let mut parts = text.split(|c: char| !c.is_ascii_alphanumeric());
        parts.find_map(|word| CODES.iter().find(|(code, _)| *code == word))
    };
    words.or_else(code).map(|(_, class)| *class)
}

/// Says what an answer means: by its code, or by its HTTP status if the code is not known or there is none.
///
/// By the status, 429 is throttling; any other 4xx than 408 is a request that is refused, as a client that does
/// not know why had better not insist; all else is the service's trouble.
pub(super) fn class(code: Option<&str>, status: Option<u16>) -> Class {
    let known = code.and_then(|code| CODES.iter().find(|(known, _)| *known == code));
    match (known, status) {
        (Some((_, class)), _) => *class,
        (None, Some(429)) => Class::Throttled,
        (None, Some(408)) => Class::Transient,
        (None, Some(400..=499)) => Class::Refused(Refusal::Request),
        (None, _) => Class::Transient,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[derive(serde::Deserialize)]
    struct Fixture {
        operations: BTreeMap<String, Vec<String>>,
        throttled: Vec<String>,
        transient: Vec<String>,
        common: Vec<String>,
        ec2: Vec<String>,
        undocumented: Vec<String>,
    }

    #[test]
    fn every_code_of_the_api_models_has_a_class_on_purpose() {
        let fixture: Fixture =
            serde_json::from_str(include_str!("../../../tests/fixtures/aws-errors.json")).expect("the fixture is JSON");
        let known: BTreeSet<_> = CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(known.len(), CODES.len(), "no code stands in the table twice");
        let Fixture { operations, throttled, transient, common, ec2, undocumented } = fixture;
        assert!(operations.values().map(Vec::len).sum::<usize>() > 30, "the fixture has the codes");
        let all = operations
            .values()
            .flatten()
            .chain(&throttled)
            .chain(&transient)
            .chain(&common)
            .chain(&ec2)
            .chain(&undocumented);
        let without: Vec<_> = all.filter(|code| !known.contains(code.as_str())).collect();
        assert!(without.is_empty(), "codes without a class: {without:?}");
        // What the official SDKs slow down for, or try again, is no refusal here.
        let of = |code: &String| class(Some(code), Some(400));
        assert!(throttled.iter().all(|code| of(code) == Class::Throttled));
        assert!(transient.iter().all(|code| of(code) == Class::Transient));
    }

    #[test]
    fn codes_that_nobody_knew_are_sorted_by_status() {
        for code in [None, Some("SomethingNewException")] {
            assert_eq!(class(code, Some(400)), Class::Refused(Refusal::Request));
            assert_eq!(class(code, Some(403)), Class::Refused(Refusal::Request));
            assert_eq!(class(code, Some(408)), Class::Transient);
            assert_eq!(class(code, Some(429)), Class::Throttled);
            assert_eq!(class(code, Some(500)), Class::Transient);
            assert_eq!(class(code, Some(503)), Class::Transient);
            assert_eq!(class(code, None), Class::Transient);
        }
        // A code that is known says more than its status.
        assert_eq!(class(Some("AccessDeniedException"), Some(500)), Class::Denied);
    }
}

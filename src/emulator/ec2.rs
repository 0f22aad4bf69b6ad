//! EC2, as far as bastions and their networks are found through it. The query protocol: forms in, XML out.

mod instances;
mod networks;

use std::collections::BTreeMap;

use super::{
    api::{ApiError, Call},
    credentials::Caller,
    http::{FullRequest, Response, response},
    sigv4::{SignatureError, parse_query},
};

/// The version of the API, which tells its calls from those of other services with this protocol.
pub(super) const VERSION: &str = "2016-11-15";

const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

/// Most values of one filter.
const MAX_FILTER_VALUES: usize = 200;

pub(super) fn answer(call: &Call<'_>, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    let body = String::from_utf8_lossy(&request.body);
    let form = Form(parse_query(if body.is_empty() { request.query() } else { &body }).into_iter().collect());
    let content = match operation {
        "DescribeInstances" => instances::describe(call, &form)?,
        "GetConsoleOutput" => instances::console_output(call, &form)?,
        "DescribeInstanceConnectEndpoints" => networks::connect_endpoints(call, &form)?,
        "DescribeSubnets" => networks::subnets(call, &form)?,
        "DescribeVpcEndpoints" => networks::vpc_endpoints(call, &form)?,
        "DescribeSecurityGroups" => networks::security_groups(call, &form)?,
        "DescribeRouteTables" => networks::route_tables(call, &form)?,
        "DescribeLaunchTemplates" => networks::launch_templates(call, &form)?,
        other => {
            let message = format!("The action {other} is not valid for this web service.");
            return Err(ApiError::new(400, "InvalidAction", message));
        }
    };
    let id = uuid::Uuid::new_v4();
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{operation}Response xmlns=\"{NAMESPACE}\"><requestId>{id}</requestId>\
         {content}</{operation}Response>"
    );
    Ok(response(200, "text/xml;charset=UTF-8", document))
}

/// The body of an error answer.
pub(super) fn error_document(error: &ApiError, request_id: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error>\
         </Errors><RequestID>{request_id}</RequestID></Response>",
        escape(&error.code),
        escape(&error.message),
    )
}

pub(super) fn signature_error(error: &SignatureError) -> ApiError {
    let not_validated = "AWS was not able to validate the provided access credentials";
    match error {
        SignatureError::Missing => {
            let message = "The request must contain the parameter AWSAccessKeyId";
            ApiError::new(400, "MissingParameter", message)
        }
        SignatureError::Incomplete(message) => ApiError::new(400, "IncompleteSignature", message),
        SignatureError::Expired { .. } | SignatureError::NotYetCurrent { .. } | SignatureError::ExpiredToken => {
            ApiError::new(400, "RequestExpired", "Request has expired.")
        }
        SignatureError::UnknownKey | SignatureError::Scope { .. } => ApiError::new(401, "AuthFailure", not_validated),
        SignatureError::Mismatch => ApiError::new(403, "SignatureDoesNotMatch", error.to_string()),
    }
}

pub(super) fn access_denied(caller: &Caller, action: &str) -> ApiError {
    let message = format!(
        "You are not authorized to perform this operation. User: {} is not authorized to perform: {action} because no \
         identity-based policy allows the {action} action",
        caller.arn
    );
    ApiError::new(403, "UnauthorizedOperation", message)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// An element with a text.
fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// An element with items.
fn items(name: &str, items: impl IntoIterator<Item = String>) -> String {
    let items: String = items.into_iter().map(|item| format!("<item>{item}</item>")).collect();
    format!("<{name}>{items}</{name}>")
}

/// The parameters of a call.
struct Form(BTreeMap<String, String>);

/// A filter's name and its values, of which one has to match.
struct Filter {
    name: String,
    values: Vec<String>,
}

impl Form {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// `Name.1`, `Name.2` and so on.
    fn list(&self, name: &str) -> Vec<String> {
        (1..).map_while(|n| self.0.get(&format!("{name}.{n}")).cloned()).collect()
    }

    /// Filters of these names; a name that ends with `*` stands for all that begin so.
    fn filters(&self, known: &[&str]) -> Result<Vec<Filter>, ApiError> {
        let mut filters = Vec::new();
        for n in 1.. {
            let Some(name) = self.0.get(&format!("Filter.{n}.Name")) else { break };
            let values = self.list(&format!("Filter.{n}.Value"));
            if !known.iter().any(|known| wildcard(known.as_bytes(), name.as_bytes())) {
                return Err(parameter(format!("The filter '{name}' is invalid")));
            }
            if values.is_empty() {
                return Err(parameter(format!("The filter '{name}' has no values")));
            }
            if values.len() > MAX_FILTER_VALUES {
                return Err(ApiError::new(400, "FilterLimitExceeded", "The maximum number of filter values is 200"));
            }
            filters.push(Filter { name: name.clone(), values });
        }
        Ok(filters)
    }

    /// The part of `all` that is asked for, and the token of the next.
    fn page<'a, T>(&self, all: &'a [T], least: usize) -> Result<(&'a [T], String), ApiError> {
        let limit = match self.get("MaxResults") {
            None => usize::MAX,
            Some(text) => text.parse().ok().filter(|limit| (least..=1000).contains(limit)).ok_or_else(|| {
                parameter(format!(
                    "Value ( {text} ) for parameter maxResults is invalid. Expecting a value greater than {least}."
                ))
            })?,
        };
        let first = match self.get("NextToken") {
            None => 0,
            Some(token) => token
                .strip_prefix("page-")
                .and_then(|first| first.parse::<usize>().ok())
                .filter(|first| *first <= all.len())
                .ok_or_else(|| ApiError::new(400, "InvalidNextToken", "The token is not valid"))?,
        };
        let end = first.saturating_add(limit).min(all.len());
        let next = if end < all.len() { element("nextToken", &format!("page-{end}")) } else { String::new() };
        Ok((&all[first..end], next))
    }
}

impl Filter {
    /// Whether one of its values is one of these. Values can have `*` and `?`.
    fn matches(&self, of: &[&str]) -> bool {
        self.values.iter().any(|value| of.iter().any(|text| wildcard(value.as_bytes(), text.as_bytes())))
    }
}

fn parameter(message: String) -> ApiError {
    ApiError::new(400, "InvalidParameterValue", message)
}

/// Whether a text has the form of a pattern with `*` and `?`.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| wildcard(rest, &text[skipped..])),
        Some((b'?', rest)) => text.split_first().is_some_and(|(_, text)| wildcard(rest, text)),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && wildcard(rest, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_can_have_wildcards() {
        for (pattern, text, matches) in [
            ("bastion", "bastion", true),
            ("bastion", "bastions", false),
            ("*bastion*", "my-bastion-1", true),
            ("b?stion", "bastion", true),
            ("b?stion", "bstion", false),
            ("*", "", true),
        ] {
            assert_eq!(wildcard(pattern.as_bytes(), text.as_bytes()), matches, "{pattern} {text}");
        }
    }
}

//! Whether policies that somebody has allow what a document asks for, as far as that can be told by reading them.
//!
//! Invariants:
//!
//! * What is said to be allowed is allowed by a statement that has no condition that the document lacks.
//!
//! Leaves out what takes away: statements that deny, boundaries, and policies of organisations.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Document, Statement};

/// Returns the names of the statements of a document that these policies do not allow as a whole, each with the actions that are
/// missing.
#[must_use]
pub fn not_allowed(document: &Document, policies: &[Value]) -> Vec<(String, Vec<&'static str>)> {
    let held: Vec<&Value> = policies.iter().flat_map(|policy| several(&policy["Statement"])).collect();
    let missing = document.statement.iter().map(|statement| {
        let actions = statement.action.iter().copied();
        let actions =
            actions.filter(|action| !statement.resource.iter().all(|of| is_allowed(&held, statement, action, of)));
        (statement.sid.clone(), actions.collect::<Vec<_>>())
    });
    missing.filter(|(_, actions)| !actions.is_empty()).collect()
}

fn is_allowed(held: &[&Value], wanted: &Statement, action: &str, resource: &str) -> bool {
    let wanted_condition = serde_json::to_value(&wanted.condition).unwrap_or_default();
    held.iter().any(|statement| {
        let matches_any = |key: &str, text: &str| {
            several(&statement[key]).into_iter().filter_map(Value::as_str).any(|pattern| matches(pattern, text))
        };
        let condition = &statement["Condition"];
        statement["Effect"] == "Allow"
            // IAM does not tell capital letters from small ones in actions.
            && several(&statement["Action"])
                .into_iter()
                .filter_map(Value::as_str)
                .any(|pattern| matches(&pattern.to_lowercase(), &action.to_lowercase()))
            && matches_any("Resource", resource)
            && (condition.is_null() || is_same(condition, &wanted_condition))
    })
}

/// Whether two conditions are the same, however lists of one are written.
fn is_same(one: &Value, other: &Value) -> bool {
    fn parts(condition: &Value) -> BTreeSet<(String, String, BTreeSet<String>)> {
        let operators = condition.as_object().into_iter().flatten();
        let keys = operators.flat_map(|(operator, keys)| {
            keys.as_object().into_iter().flatten().map(move |(key, values)| {
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let values = several(values).into_iter().map(text);
                (operator.clone(), key.to_lowercase(), values.collect())
            })
        });
        keys.collect()
    }
    parts(one) == parts(other)
}

/// What is one or a list in a policy.
pub(super) fn several(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Null => Vec::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => vec![value],
    }
}

/// The texts of what is one or a list in a policy.
pub(super) fn texts(value: &Value) -> Vec<&str> {
    several(value).into_iter().filter_map(Value::as_str).collect()
}

/// Whether a pattern, in which `*` stands for any characters and `?` for one, covers a text, which may have those itself.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut of) = (0, 0);
    // Where to go on after the last star, with one character more for it.
    let mut star: Option<(usize, usize)> = None;
    while of < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, of));
                at += 1;
            }
            // A question mark is no match for a star, which stands for more.
            Some(b'?') if text[of] != b'*' => (at, of) = (at + 1, of + 1),
            Some(byte) if *byte == text[of] => (at, of) = (at + 1, of + 1),
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    (at, of) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::iam::Grant;

    fn wanted() -> Document {
        let start =
            Statement::allow("Start", ["ssm:StartSession"], vec!["arn:aws:ec2:us-east-1:1:instance/*".to_owned()]);
        Grant::document_of(vec![
            Statement::allow("List", ["eks:ListClusters", "eks:DescribeCluster"], vec!["*".to_owned()]),
            start.when("StringLike", "ssm:resourceTag/a", "*").when("StringLike", "ssm:resourceTag/a", "b"),
        ])
    }

    fn names(policies: &[Value]) -> Vec<String> {
        not_allowed(&wanted(), policies)
            .into_iter()
            .map(|(name, actions)| format!("{name} {}", actions.join(" ")))
            .collect()
    }

    #[test]
    fn what_is_allowed_more_widely_is_allowed() {
        let all = json!({ "Statement": { "Effect": "Allow", "Action": "*", "Resource": "*" } });
        assert_eq!(names(&[all]), [""; 0]);
        let own: Value = serde_json::from_str(&wanted().to_line()).unwrap();
        assert_eq!(names(&[own]), [""; 0]);
        let apart = [
            json!({ "Statement": [{ "Effect": "Allow", "Action": ["EKS:list*", "eks:DescribeCluste?"], "Resource": ["*"] }] }),
            json!({ "Statement": [{ "Effect": "Allow", "Action": "ssm:*", "Resource": "arn:aws:ec2:*:1:instance/*",
                "Condition": { "StringLike": { "ssm:resourceTag/a": ["b", "*"] } } }] }),
        ];
        assert_eq!(names(&apart), [""; 0]);
    }

    #[test]
    fn what_is_allowed_in_part_is_not() {
        assert_eq!(names(&[]), ["List eks:ListClusters eks:DescribeCluster", "Start ssm:StartSession"]);
        let narrower = [json!({ "Statement": [
                { "Effect": "Allow", "Action": "eks:ListClusters", "Resource": "*" },
                { "Effect": "Deny", "Action": "eks:DescribeCluster", "Resource": "*" },
                { "Effect": "Allow", "NotAction": "iam:*", "Resource": "*" },
                { "Effect": "Allow", "Action": "eks:DescribeCluster", "Resource": "arn:aws:eks:us-east-1:1:cluster/a" },
                { "Effect": "Allow", "Action": "ssm:StartSession", "Resource": "*",
                  "Condition": { "StringLike": { "ssm:resourceTag/a": "b" } } },
                { "Effect": "Allow", "Action": "ssm:StartSession", "Resource": "arn:aws:ec2:us-east-1:1:instance/?" },
            ] })];
        assert_eq!(names(&narrower), ["List eks:DescribeCluster", "Start ssm:StartSession"]);
    }

    #[test]
    fn patterns_cover_patterns() {
        for (pattern, text, covers) in [
            ("*", "", true),
            ("a*c*", "abcd", true),
            ("a*c", "abcd", false),
            ("a?c", "abc", true),
            ("a?c", "a*c", false),
            ("arn:*:instance/*", "arn:aws:ec2:us-east-1:1:instance/*", true),
            ("arn:aws:ec2:us-east-1:1:instance/i-1", "arn:aws:ec2:us-east-1:1:instance/*", false),
        ] {
            assert_eq!(matches(pattern, text), covers, "{pattern} {text}");
        }
    }
}

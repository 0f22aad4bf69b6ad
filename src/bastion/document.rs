//! Session documents of the user's own.

use std::{fmt, str::FromStr};

/// Stands for the name of a cluster or a forward.
const PLACE: &str = "{cluster}";

/// Longest name of a document, in characters; Systems Manager's limit. Source of this and of what is in a name: `DocumentName`
/// of `CreateDocument`.
const MAX_LEN: usize = 128;

/// A session document in which host and port are fixed, or one for each cluster: with `{cluster}` in its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionDocument(String);

impl SessionDocument {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "the name of a session document of this account: 3 to 128 letters, digits and any of `_.-`, with \
                                `{cluster}` for the name of the cluster";

    /// Returns the name of the document that leads to a cluster or a forward of this name. What a document's name cannot have, as
    /// the colon of a forward without a name of its own, becomes a hyphen.
    #[must_use]
    pub fn of(&self, name: &str) -> String {
        let name: String = name.chars().map(|c| if is_of_names(c) { c } else { '-' }).collect();
        self.0.replace(PLACE, &name)
    }

    /// Whether there is one for each cluster.
    #[must_use]
    pub fn is_for_each(&self) -> bool {
        self.0.contains(PLACE)
    }

    /// Returns the names that a policy has to allow for these clusters and forwards; none: for any.
    #[must_use]
    pub fn patterns(&self, names: &[String]) -> Vec<String> {
        if names.is_empty() || !self.is_for_each() {
            return vec![self.0.replace(PLACE, "*")];
        }
        names.iter().map(|name| self.of(name)).collect()
    }

    /// Returns the content of a document that leads to a host and port and to nothing else.
    ///
    /// It is that of `AWS-StartPortForwardingSessionToRemoteHost`, with what is a parameter there fixed.
    #[must_use]
    pub fn content(host: &str, port: u16) -> String {
        let content = serde_json::json!({
            "schemaVersion": "1.0",
            "description": format!("Forwards to {host}:{port} and nowhere else"),
            "sessionType": "Port",
            "parameters": {
                "localPortNumber": {
                    "type": "string",
                    "description": "(Optional) Port on the local machine",
                    "allowedPattern": "^([0-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
                    "default": "0",
                },
            },
            "properties": {
                "portNumber": port.to_string(),
                "type": "LocalPortForwarding",
                "localPortNumber": "{{ localPortNumber }}",
                "host": host,
            },
        });
        content.to_string()
    }
}

impl fmt::Display for SessionDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_of_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// It is no name of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoDocument;

impl FromStr for SessionDocument {
    type Err = NoDocument;

    fn from_str(text: &str) -> Result<Self, NoDocument> {
        let rest = text.replacen(PLACE, "", 1);
        if rest.chars().all(is_of_names) && (3..=MAX_LEN).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NoDocument)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_systems_manager_takes() {
        for right in ["abc", "pa-{cluster}", "{cluster}", "Team.forward_1-x", &"x".repeat(128)] {
            assert_eq!(right.parse::<SessionDocument>().unwrap().to_string(), right);
        }
        for wrong in ["", "ab", "a b", "a{cluster", "{cluster}-{cluster}", "a/b", "a:b", "ä-b", &"x".repeat(129)] {
            assert_eq!(wrong.parse::<SessionDocument>(), Err(NoDocument), "{wrong}");
        }
    }

    #[test]
    fn policies_allow_the_documents_of_clusters_that_are_named_and_else_of_all() {
        let each: SessionDocument = "pa-{cluster}".parse().unwrap();
        let one: SessionDocument = "payments-only".parse().unwrap();
        let names = ["payments".to_owned(), "search".to_owned()];
        assert_eq!(each.patterns(&names), ["pa-payments", "pa-search"]);
        assert_eq!(each.patterns(&[]), ["pa-*"]);
        assert_eq!(one.patterns(&names), ["payments-only"]);
        assert_eq!(each.of("db.internal:5432"), "pa-db.internal-5432");
    }
}

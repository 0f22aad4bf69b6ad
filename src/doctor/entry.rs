//! A finding in words: what is printed, and what travels as a line of JSON.

use serde::{Deserialize, Serialize};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is as it should be.
    Ok,
    /// It works, and yet somebody may want to change it.
    Warning,
    /// It does not work.
    Failed,
    /// It was not tried.
    Skipped,
}

impl Status {
    /// Returns the name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// A finding in words. The names of the fields are an interface: scripts read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The check's name for programs.
    pub id: String,
    /// The check's name for people.
    pub title: String,
    /// How it went.
    pub status: Status,
    /// The region, once one is known.
    pub region: Option<String>,
    /// The cluster, for checks of one.
    pub cluster: Option<String>,
    /// The bastion, for checks of one.
    pub target: Option<String>,
    /// What was tried, or would have been.
    pub tried: String,
    /// What came back; none if it was not tried.
    pub answer: Option<String>,
    /// What that means, or why it was not tried.
    pub meaning: Option<String>,
    /// What to do: commands, or sentences with commands in backticks.
    pub fixes: Vec<String>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn travels_as_one_line() {
        let entry = Entry {
            id: "api".to_owned(),
            title: "API server answers".to_owned(),
            status: Status::Failed,
            region: Some("us-east-1".to_owned()),
            cluster: Some("payments".to_owned()),
            target: None,
            tried: "`GET /livez`".to_owned(),
            answer: Some("401".to_owned()),
            meaning: None,
            fixes: vec!["two\nlines".to_owned()],
            duration_ms: 12,
        };
        let line = serde_json::to_string(&entry).unwrap();
        assert!(!line.contains('\n') && line.contains(r#""status":"failed""#), "{line}");
        assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry);
    }
}

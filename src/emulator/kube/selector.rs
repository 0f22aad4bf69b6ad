//! Which objects a request is about: its label and field selectors.

use serde_json::Value;

/// Label and field selectors of a request.
#[derive(Debug, Default)]
pub(super) struct Selector {
    fields: Vec<Term>,
    labels: Vec<Term>,
}

/// One condition.
#[derive(Debug)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub(super) fn parse(parameters: &[(String, String)]) -> Result<Self, String> {
        let mut selector = Self::default();
        for (name, value) in parameters {
            match name.as_str() {
                "labelSelector" => selector.labels = parse_terms(value)?,
                "fieldSelector" => selector.fields = parse_terms(value)?,
                _ => {}
            }
        }
        Ok(selector)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let field = |path: &str| path.split('.').fold(object, |value, key| &value[key]).as_str();
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        self.fields.iter().all(|term| term.holds(field)) && self.labels.iter().all(|term| term.holds(label))
    }
}

impl Term {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::In(key, values) => value(key).is_some_and(|value| values.iter().any(|wanted| wanted == value)),
            Self::NotIn(key, values) => value(key).is_none_or(|value| values.iter().all(|wanted| wanted != value)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
fn parse_terms(text: &str) -> Result<Vec<Term>, String> {
    let mut terms = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut depth = 0_u32;
        let end = rest
            .char_indices()
            .find(|(_, c)| {
                match c {
                    '(' => depth += 1,
                    ')' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                *c == ',' && depth == 0
            })
            .map_or(rest.len(), |(i, _)| i);
        terms.push(parse_term(rest[..end].trim())?);
        rest = rest.get(end + 1..).unwrap_or_default().trim();
    }
    Ok(terms)
}

fn parse_term(term: &str) -> Result<Term, String> {
    let key = |text: &str| text.trim().to_owned();
    let set = |text: &str| -> Option<Vec<String>> {
        let list = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(list.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let unreadable = || format!("unable to parse requirement: {term}");
    if let Some((name, values)) = term.split_once(" notin ") {
        return Ok(Term::NotIn(key(name), set(values).ok_or_else(unreadable)?));
    }
    if let Some((name, values)) = term.split_once(" in ") {
        return Ok(Term::In(key(name), set(values).ok_or_else(unreadable)?));
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Ok(Term::NotIn(key(name), vec![key(value)]));
    }
    if let Some((name, value)) = term.split_once('=') {
        return Ok(Term::In(key(name), vec![key(value.trim_start_matches('='))]));
    }
    match term.strip_prefix('!') {
        Some(name) if !name.is_empty() => Ok(Term::Absent(key(name))),
        None if !term.is_empty() && !term.contains(' ') => Ok(Term::Exists(key(term))),
        Some(_) | None => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selects_as_kubernetes_does() {
        let object = json!({"metadata": {"name": "p", "labels": {"app": "web", "tier": "front"}}, "status": {"phase": "Running"}});
        let matches = |labels: &str, fields: &str| {
            let parameters =
                [("labelSelector".to_owned(), labels.to_owned()), ("fieldSelector".to_owned(), fields.to_owned())];
            Selector::parse(&parameters).unwrap().matches(&object)
        };
        for labels in
            ["", "app=web", "app==web,tier!=back", "app in (web, api)", "tier notin (back),app", "!gone", "other!=x"]
        {
            assert!(matches(labels, ""), "{labels}");
        }
        for labels in ["app=api", "app!=web", "app in (api)", "gone", "!app"] {
            assert!(!matches(labels, ""), "{labels}");
        }
        assert!(matches("", "metadata.name=p,status.phase!=Failed"));
        assert!(!matches("", "metadata.name=q"));
        assert!(parse_terms("app in web").is_err());
        assert!(parse_terms("a b").is_err());
    }
}

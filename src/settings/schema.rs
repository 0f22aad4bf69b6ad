//! The JSON schema of the configuration file, made of the rows: for editors, which complete and check by it.
//!
//! It accepts nothing that this program refuses for its form; whether a text is right is left to `config check`. It refuses
//! what only this program reads as it was meant, such as a name that other readers of YAML take for a number.

use serde_json::{Map, Value, json};

use super::{
    file::{ACCESS, MAX_ITEMS},
    row::{Kind, Row},
    rows,
};

#[must_use]
pub fn schema() -> Value {
    let mut top = properties(|_| true);
    let entry = json!({"type": "object", "additionalProperties": false, "properties": properties(|row| row.in_entry)});
    let access = json!({
        "description": "One entry for each identity in a region, with its bastions and clusters; what an entry leaves out \
                        comes from the top level.",
        "type": "array",
        "items": entry,
        "minItems": 1,
        "maxItems": MAX_ITEMS,
    });
    top.insert(ACCESS.to_owned(), access);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration file of autoheal-pa",
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": top,
    })
}

fn properties(wanted: impl Fn(&Row) -> bool) -> Map<String, Value> {
    let rows = rows::all().into_iter().filter(|row| wanted(row));
    rows.map(|row| (row.name.to_owned(), property(row))).collect()
}

fn property(row: &Row) -> Value {
    let one = value(row);
    let mut property = if row.is_list {
        let list = json!({"type": "array", "items": one, "minItems": 1, "maxItems": MAX_ITEMS});
        json!({"anyOf": [list, one]})
    } else {
        one
    };
    property["description"] = row.summary().into();
    if let Some(default) = row.default {
        property["default"] = match row.kind {
            Kind::Switch | Kind::Number { .. } => default.parse().expect("defaults are of their kind"),
            Kind::Duration { .. } | Kind::Path | Kind::Choice(_) | Kind::Text { .. } => default.into(),
        };
    }
    property
}

fn value(row: &Row) -> Value {
    match row.kind {
        Kind::Switch => json!({"type": "boolean"}),
        Kind::Number { min, max, .. } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Duration { or_zero, .. } => {
            let duration = json!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"});
            if or_zero { json!({"anyOf": [duration, {"const": 0}]}) } else { duration }
        }
        Kind::Choice(values) => {
            let words: Vec<_> = values().iter().map(|value| value.get_name().to_owned()).collect();
            json!({"enum": words})
        }
        // A word of YAML, such as `true`, or a number.
        Kind::Text { .. } if row.is_bare => json!({"type": ["string", "boolean", "integer"]}),
        Kind::Path | Kind::Text { .. } => json!({"type": "string"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{duration, rows::tests::example};

    /// Says where a value is not as a schema has it. Knows what [`schema`] uses, and nothing else.
    fn wrong(schema: &Value, value: &Value, place: &str) -> Vec<String> {
        let mut problems = Vec::new();
        for (keyword, what) in schema.as_object().unwrap() {
            let is_right = match keyword.as_str() {
                "$schema" | "title" | "description" | "default" => true,
                "type" => {
                    let types = what.as_array().cloned().unwrap_or_else(|| vec![what.clone()]);
                    let is = |name: &Value| match name.as_str().unwrap() {
                        "object" => value.is_object(),
                        "array" => value.is_array(),
                        "string" => value.is_string(),
                        "boolean" => value.is_boolean(),
                        "integer" => value.is_i64() || value.is_u64(),
                        "null" => value.is_null(),
                        other => panic!("{other}"),
                    };
                    types.iter().any(is)
                }
                "enum" => what.as_array().unwrap().contains(value),
                "const" => what == value,
                "minimum" => value.as_u64() >= what.as_u64(),
                "maximum" => value.as_u64() <= what.as_u64(),
                // There is one pattern.
                "pattern" => value.as_str().is_none_or(|text| duration::parse(text).is_ok()),
                "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= what.as_u64().unwrap()),
                "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= what.as_u64().unwrap()),
                "anyOf" => {
                    let fits = |schema: &Value| wrong(schema, value, place).is_empty();
                    what.as_array().unwrap().iter().any(fits)
                }
                "items" => {
                    let items = value.as_array().into_iter().flatten().enumerate();
                    problems.extend(items.flat_map(|(at, item)| wrong(what, item, &format!("{place}[{at}]"))));
                    true
                }
                "properties" => {
                    for (key, value) in value.as_object().into_iter().flatten() {
                        match what.get(key) {
                            Some(schema) => problems.extend(wrong(schema, value, &format!("{place}.{key}"))),
                            None => assert_eq!(schema["additionalProperties"], false),
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    let known = schema["properties"].as_object().unwrap();
                    value.as_object().into_iter().flatten().all(|(key, _)| known.contains_key(key))
                }
                other => panic!("{other}"),
            };
            if !is_right {
                problems.push(format!("{place}: {value} against {keyword} {what}"));
            }
        }
        problems
    }

    fn problems(yaml: &str) -> Vec<String> {
        wrong(&schema(), &serde_yaml::from_str(yaml).unwrap(), "$")
    }

    #[test]
    fn accepts_the_examples() {
        let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        for name in ["config.yaml", "config-several-regions.yaml"] {
            let text = std::fs::read_to_string(examples.join(name)).unwrap();
            assert_eq!(problems(&text), Vec::<String>::new(), "{name}");
        }
        assert_eq!(problems(""), Vec::<String>::new());
    }

    #[test]
    fn accepts_every_setting_and_refuses_what_is_none() {
        for row in rows::all() {
            let line = format!("{}: {}", row.name, example(row));
            assert_eq!(problems(&line), Vec::<String>::new());
            assert_eq!(problems(&format!("access: [{{{line}}}]")).is_empty(), row.in_entry, "{line}");
        }
        for text in [
            "regin: us-east-1",
            "region: [us-east-1]",
            "base_port: 65536",
            "base_port: -1",
            "sessions: [2]",
            "strict_ports: 'yes'",
            "timeout: 60",
            "timeout: 60 s",
            "kubeconfig_mode: tunnel",
            "clusters: []",
            "access: []",
            "access: {}",
            "access: [{base_port: 1}]",
            "access: [{regin: us-east-1}]",
            "[]",
        ] {
            assert_ne!(problems(text), Vec::<String>::new(), "{text}");
        }
        assert_eq!(problems("probe_interval: 0\nbastion: [i-0abcdef1]"), Vec::<String>::new());
    }
}

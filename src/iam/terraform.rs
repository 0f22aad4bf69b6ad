//! The same for Terraform: the policy, the access entries and their policy as resources of the provider `aws`.

use std::fmt::Write;

use super::{Clusters, Document, Grant, POLICY_NAME, Principal, ServiceRole, VERSION, access_entry::access_policy_arn};

/// What the resources are called: [`POLICY_NAME`], as HCL takes names.
const RESOURCE: &str = "autoheal_pa";

/// Returns the resources that give an identity the policy and admit it to the clusters of a grant, and the roles that services
/// act as.
#[must_use]
pub fn terraform(grant: &Grant, document: &Document, principal: &Principal, roles: &[ServiceRole]) -> String {
    let (kind, attribute) = match principal {
        Principal::Role { .. } => ("aws_iam_role_policy", "role"),
        Principal::User { .. } => ("aws_iam_user_policy", "user"),
    };
    let (name, policy_name) = (quoted(principal.name()), quoted(POLICY_NAME));
    let statements = statements(document);
    let access = clusters(grant).map(|(data, clusters)| access(grant, principal, &data, &clusters)).unwrap_or_default();
    let roles: String = roles.iter().enumerate().map(|(number, role)| self::role(number, role)).collect();
    format!(
        r#"resource "{kind}" "{RESOURCE}" {{
  name = {policy_name}
  {attribute} = {name}

  policy = jsonencode({{
    Version = "{VERSION}"
    Statement = [
{statements}    ]
  }})
}}
{roles}{access}"#
    )
}

/// Admits an identity to clusters.
fn access(grant: &Grant, principal: &Principal, data: &str, clusters: &str) -> String {
    let (arn, access_policy) = (quoted(principal.arn()), quoted(&access_policy_arn(grant.partition())));
    format!(
        r#"{data}
resource "aws_eks_access_entry" "{RESOURCE}" {{
  for_each      = toset({clusters})
  cluster_name  = each.value
  principal_arn = {arn}
}}

resource "aws_eks_access_policy_association" "{RESOURCE}" {{
  for_each      = aws_eks_access_entry.{RESOURCE}
  cluster_name  = each.value.cluster_name
  principal_arn = each.value.principal_arn
  policy_arn    = {access_policy}

  access_scope {{
    type = "cluster"
  }}
}}
"#
    )
}

/// Writes a role that a service acts as, with its trust and what it may do.
fn role(number: usize, role: &ServiceRole) -> String {
    let resource = match number {
        0 => format!("{RESOURCE}_bastion"),
        _ => format!("{RESOURCE}_bastion_{}", number + 1),
    };
    let (name, service, policy_name) = (quoted(&role.name), quoted(&role.service), quoted(POLICY_NAME));
    let statements = statements(&role.document);
    format!(
        r#"
resource "aws_iam_role" "{resource}" {{
  name = {name}

  assume_role_policy = jsonencode({{
    Version = "{VERSION}"
    Statement = [
      {{
        Effect    = "Allow"
        Action    = "sts:AssumeRole"
        Principal = {{ Service = {service} }}
      }},
    ]
  }})
}}

resource "aws_iam_role_policy" "{resource}" {{
  name = {policy_name}
  role = aws_iam_role.{resource}.name

  policy = jsonencode({{
    Version = "{VERSION}"
    Statement = [
{statements}    ]
  }})
}}
"#
    )
}

fn statements(document: &Document) -> String {
    let mut text = String::new();
    for statement in &document.statement {
        let mut fields = vec![
            ("Sid", quoted(&statement.sid)),
            ("Effect", quoted(statement.effect)),
            ("Action", list(statement.action.iter().copied())),
            ("Resource", list(statement.resource.iter().map(String::as_str))),
        ];
        let conditions = statement.condition.iter().map(|(operator, keys)| {
            let keys = keys.iter().map(|(key, values)| {
                let values = match &values.0[..] {
                    [one] => quoted(one),
                    several => list(several.iter().map(String::as_str)),
                };
                format!("{} = {values}", quoted(key))
            });
            format!("{operator} = {{ {} }}", keys.collect::<Vec<_>>().join(", "))
        });
        let conditions: Vec<_> = conditions.collect();
        if !conditions.is_empty() {
            fields.push(("Condition", format!("{{ {} }}", conditions.join(", "))));
        }
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        text.push_str("      {\n");
        for (name, value) in fields {
            writeln!(text, "        {name:width$} = {value}").expect("a string takes everything");
        }
        text.push_str("      },\n");
    }
    text
}

/// Returns a data source, if one is needed, and the expression that gives the names of the clusters, if there are any.
fn clusters(grant: &Grant) -> Option<(String, String)> {
    match &grant.clusters {
        Clusters::All => {
            let data = format!("\ndata \"aws_eks_clusters\" \"{RESOURCE}\" {{}}\n");
            Some((data, format!("data.aws_eks_clusters.{RESOURCE}.names")))
        }
        Clusters::Named(names) => Some((String::new(), list(names.iter().map(String::as_str)))),
        Clusters::None => None,
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<_> = items.map(quoted).collect();
    format!("[{}]", items.join(", "))
}

/// Writes a string of HCL: quoted as in JSON, and what would start a template doubled.
fn quoted(text: &str) -> String {
    let json = serde_json::to_string(text).expect("a string is always JSON");
    json.replace("${", "$${").replace("%{", "%%{")
}

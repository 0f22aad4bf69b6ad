//! `clusters`: which EKS clusters the credentials can see, and which of them a tunnel can lead to.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::table::Columns;
use super::{GlobalArgs, error::CommandError, output::Printer};
use crate::{
    aws::{Aws, ClusterDescription},
    settings::{Access, Environment, UpArgs},
};

/// The version of the JSON. Another one means that old fields have changed their meaning.
const JSON_VERSION: u32 = 1;

#[derive(Debug, Clone, Default, Args)]
pub struct ClustersArgs {
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the clusters.
///
/// # Errors
/// [`CommandError`] if they cannot be listed.
pub async fn run(args: ClustersArgs, global: GlobalArgs, printer: &Printer) -> Result<ExitCode, CommandError> {
    let mut clusters = Vec::new();
    let mut regions: Vec<String> = Vec::new();
    for access in Access::load(&global, &UpArgs::default(), &Environment::read())? {
        let aws = Aws::new(&access.aws).await?;
        let discovery = aws.discover(&[]).await?;
        clusters.extend(discovery.clusters);
        if !regions.iter().any(|region| region == aws.region()) {
            regions.push(aws.region().to_owned());
        }
    }
    print(&clusters, &regions, args.json, printer)?;
    Ok(ExitCode::SUCCESS)
}

fn print(
    clusters: &[ClusterDescription],
    regions: &[String],
    json: bool,
    printer: &Printer,
) -> Result<(), CommandError> {
    if clusters.is_empty() {
        let regions = regions.join(" or ");
        printer.progress(&format!("there are no EKS clusters in {regions} that these credentials can see"));
    }
    if json { printer.result(&to_json(clusters, regions)) } else { printer.result(&to_table(clusters, regions)) }
}

fn to_json(clusters: &[ClusterDescription], regions: &[String]) -> String {
    #[derive(Serialize)]
    struct Root<'a> {
        version: u32,
        /// Null if there are several.
        region: Option<&'a str>,
        clusters: Vec<Item<'a>>,
    }
    /// One cluster. What may not be known is null.
    #[derive(Serialize)]
    struct Item<'a> {
        name: &'a str,
        region: &'a str,
        arn: Option<&'a str>,
        status: Option<&'a str>,
        kubernetes_version: Option<&'a str>,
        endpoint: Option<String>,
        endpoint_public: bool,
        endpoint_private: bool,
        authentication_mode: Option<&'a str>,
        vpc_id: Option<&'a str>,
        tunnel: bool,
        reason: Option<String>,
    }
    fn known(text: &str) -> Option<&str> {
        (!text.is_empty()).then_some(text)
    }
    let items = clusters.iter().map(|cluster| Item {
        name: &cluster.name,
        region: &cluster.region,
        arn: known(&cluster.arn),
        status: known(&cluster.status),
        kubernetes_version: cluster.version.as_deref(),
        endpoint: cluster.access.as_ref().ok().map(|cluster| cluster.endpoint.to_string()),
        endpoint_public: cluster.endpoint_public,
        endpoint_private: cluster.endpoint_private,
        authentication_mode: cluster.authentication_mode.as_deref(),
        vpc_id: cluster.vpc_id.as_deref(),
        tunnel: cluster.access.is_ok(),
        reason: cluster.access.as_ref().err().map(ToString::to_string),
    });
    let region = if let [region] = regions { Some(region.as_str()) } else { None };
    let root = Root { version: JSON_VERSION, region, clusters: items.collect() };
    serde_json::to_string_pretty(&root).expect("strings and numbers are always JSON")
}

fn to_table(clusters: &[ClusterDescription], regions: &[String]) -> String {
    if clusters.is_empty() {
        return String::new();
    }
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let rows = clusters.iter().map(|cluster| {
        let endpoint = match (cluster.endpoint_public, cluster.endpoint_private) {
            (true, true) => "public, private",
            (true, false) => "public",
            (false, true) => "private",
            (false, false) => "-",
        };
        [
            ("NAME", cluster.name.clone()),
            ("REGION", cluster.region.clone()),
            ("VERSION", or_dash(cluster.version.as_deref().unwrap_or_default())),
            ("STATUS", or_dash(&cluster.status)),
            ("ENDPOINT", endpoint.to_owned()),
            ("AUTHENTICATION", or_dash(cluster.authentication_mode.as_deref().unwrap_or_default())),
            ("TUNNEL", cluster.access.as_ref().map_or_else(|reason| format!("no: {reason}"), |_| "yes".to_owned())),
        ]
    });
    let rows: Vec<_> = rows
        .map(|row| {
            // There is no need to repeat what the user has asked for.
            let kept = row.into_iter().filter(|(column, _)| *column != "REGION" || regions.len() > 1);
            kept.collect::<Vec<_>>()
        })
        .collect();
    let header = rows.iter().take(1).map(|row| row.iter().map(|(column, _)| (*column).to_owned()).collect());
    let cells = rows.iter().map(|row| row.iter().map(|(_, cell)| cell.clone()).collect());
    let lines: Vec<Vec<String>> = header.chain(cells).collect();
    let columns = Columns::of(lines.iter().map(Vec::as_slice));
    lines.iter().map(|line| columns.plain(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        aws::SkipReason,
        cli::output::Captured,
        cluster::{Cluster, Destination, Origin},
    };

    fn description(name: &str, access: Result<(), SkipReason>) -> ClusterDescription {
        let arn = format!("arn:aws:eks:us-east-1:123456789012:cluster/{name}");
        ClusterDescription {
            name: name.to_owned(),
            region: "us-east-1".to_owned(),
            arn: arn.clone(),
            status: "ACTIVE".into(),
            version: Some("1.33".into()),
            endpoint_public: false,
            endpoint_private: true,
            authentication_mode: Some("API".into()),
            vpc_id: Some("vpc-1".to_owned()),
            security_group: None,
            access: access.map(|()| Cluster {
                name: name.to_owned(),
                region: "us-east-1".to_owned(),
                account: "123456789012".to_owned(),
                id: arn,
                endpoint: Destination { host: "x.eks.amazonaws.com".to_owned(), port: 443 },
                certificate_authority: Some(String::new()),
                origin: Origin::Eks { token_name: name.to_owned() },
                vpc: None,
            }),
        }
    }

    fn clusters() -> Vec<ClusterDescription> {
        let hidden = SkipReason::AccessDenied { action: "eks:DescribeCluster".into(), resource: "*".into() };
        vec![
            description("payments", Ok(())),
            ClusterDescription {
                status: "CREATING".into(),
                endpoint_public: true,
                ..description("no", Err(SkipReason::Status("CREATING".into())))
            },
            ClusterDescription {
                arn: String::new(),
                status: "".into(),
                version: None,
                endpoint_private: false,
                authentication_mode: None,
                vpc_id: None,
                ..description("hidden", Err(hidden))
            },
        ]
    }

    fn printed(clusters: &[ClusterDescription], json: bool) -> (String, String) {
        let (printer, out, err) = Captured::printer();
        print(clusters, &["us-east-1".to_owned()], json, &printer).unwrap();
        (out.text(), err.text())
    }

    #[test]
    fn prints_a_table() {
        assert_eq!(
            printed(&clusters(), false).0,
            "\
NAME      VERSION  STATUS    ENDPOINT         AUTHENTICATION  TUNNEL
payments  1.33     ACTIVE    private          API             yes
no        1.33     CREATING  public, private  API             no: its status is CREATING
hidden    -        -         -                -               no: not authorized to perform `eks:DescribeCluster` on `*`
"
        );
    }

    #[test]
    fn several_regions_are_told_apart() {
        let mut clusters = clusters();
        clusters.truncate(1);
        clusters.push(ClusterDescription { region: "eu-west-1".into(), ..description("search", Ok(())) });
        let regions = ["us-east-1".to_owned(), "eu-west-1".to_owned()];
        assert_eq!(
            to_table(&clusters, &regions),
            "\
NAME      REGION     VERSION  STATUS  ENDPOINT  AUTHENTICATION  TUNNEL
payments  us-east-1  1.33     ACTIVE  private   API             yes
search    eu-west-1  1.33     ACTIVE  private   API             yes
"
        );
        let json: serde_json::Value = serde_json::from_str(&to_json(&clusters, &regions)).unwrap();
        assert_eq!(json["region"], serde_json::Value::Null);
        assert_eq!(json["clusters"][1]["region"], "eu-west-1");
    }

    #[test]
    fn prints_json() {
        let json: serde_json::Value = serde_json::from_str(&printed(&clusters(), true).0).unwrap();
        assert_eq!(
            json["clusters"][0],
            serde_json::json!({
                "name": "payments",
                "region": "us-east-1",
                "arn": "arn:aws:eks:us-east-1:123456789012:cluster/payments",
                "status": "ACTIVE",
                "kubernetes_version": "1.33",
                "endpoint": "x.eks.amazonaws.com:443",
                "endpoint_public": false,
                "endpoint_private": true,
                "authentication_mode": "API",
                "vpc_id": "vpc-1",
                "tunnel": true,
                "reason": null,
            })
        );
        assert_eq!((&json["version"], &json["region"]), (&1.into(), &"us-east-1".into()));
        assert_eq!(json["clusters"][1]["reason"], "its status is CREATING");
        assert_eq!(json["clusters"][2]["arn"], serde_json::Value::Null);
    }

    #[test]
    fn says_that_there_are_none() {
        let note = "there are no EKS clusters in us-east-1 that these credentials can see\n";
        assert_eq!(printed(&[], false), (String::new(), note.to_owned()));
        let (out, err) = printed(&[], true);
        assert_eq!(err, note);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["clusters"], serde_json::json!([]));
    }
}

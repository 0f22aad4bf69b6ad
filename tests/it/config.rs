//! The configuration file, from outside: several regions, wrong files, and what wins over it.

use autoheal_pa::emulator::{ClusterConfig, Config};

use super::support::{Ended, Lab, Running};

const BASTION: &str = "i-0dc03fbcae2a87472";
const ROLE: &str = "arn:aws:iam::123456789012:role/AutohealReadOnlyRole";

/// An AWS with clusters in two regions, and a configuration file where it is looked for.
async fn lab(text: &str) -> Lab {
    let west = |name: &str| ClusterConfig { region: Some("eu-west-1".to_owned()), ..ClusterConfig::new(name) };
    let clusters = vec![ClusterConfig::new("payments"), ClusterConfig::new("search"), west("ledger")];
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    std::fs::create_dir_all(lab.path(".config/autoheal-pa")).unwrap();
    std::fs::write(lab.path(".config/autoheal-pa/config.yaml"), text).unwrap();
    lab
}

/// Runs the program with nothing in its environment that says who it is or where, but with what leads to the emulator.
async fn bare(lab: &Lab, args: &[&str]) -> Ended {
    let mut command = lab.program(args);
    for variable in ["AWS_REGION", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AUTOHEAL_PA_BASTION"] {
        command.env_remove(variable);
    }
    Running::start(&mut command).ended().await
}

/// The names of the clusters that have a session.
fn reached(lab: &Lab) -> Vec<String> {
    let kubeconfig = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    let mut names: Vec<_> = ["payments", "search", "ledger"]
        .into_iter()
        .filter(|name| kubeconfig.contains(&format!("name: \"pa-{name}\"")))
        .map(ToOwned::to_owned)
        .collect();
    names.sort();
    names
}

fn several() -> String {
    format!(
        "base_port: 0\nrole_arn: {ROLE}\nbastion: {BASTION}\naccess:\n\
         - region: us-east-1\n  clusters: [search]\n- region: eu-west-1\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_listed_in_every_region_of_the_file() {
    let lab = lab(&several()).await;
    // A region in the shell does not make one of two.
    let mut command = lab.program(&["clusters"]);
    command.env("AWS_REGION", "ap-south-1");
    let ended = Running::start(&mut command).ended().await;
    let stdout = ended.assert_success();
    for (name, region) in [("payments", "us-east-1"), ("search", "us-east-1"), ("ledger", "eu-west-1")] {
        assert!(stdout.lines().any(|line| line.starts_with(name) && line.contains(region)), "{stdout}");
    }
    let ended = lab.run(&["clusters", "--json", "--config", "/dev/null"]).await;
    assert!(!ended.assert_success().contains("ledger"), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_manager_opens_tunnels_in_two_regions() {
    let lab = lab(&several()).await;
    let mut command = lab.program(&["up"]);
    command.env("AWS_REGION", "ap-south-1");
    let mut up = Running::start(&mut command);
    up.ready().await;
    assert_eq!(
        reached(&lab),
        ["ledger", "search"],
        "one cluster is named in the first region, all are wanted in the other"
    );
    let kubeconfig = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    for region in ["us-east-1", "eu-west-1"] {
        assert!(kubeconfig.contains(&format!("--region={region}")), "{kubeconfig}");
    }
    // The manager is asked without the file: it may be wrong by now.
    std::fs::write(lab.path(".config/autoheal-pa/config.yaml"), "region: [").unwrap();
    let status = lab.run(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(status.assert_success()).unwrap();
    assert_eq!(status["tunnels"].as_array().map(Vec::len), Some(2), "{status}");
    let env = lab.run(&["env", "--shell", "bash"]).await;
    assert_eq!(env.assert_success(), format!("export KUBECONFIG='{}'\n", lab.kubeconfig().display()));
    lab.run(&["down"]).await.assert_success();
    assert_eq!(up.ended().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_entry_gives_up_all_that_it_needs() {
    let text = format!(
        "base_port: 0\naccess:\n- region: eu-west-1\n  role_arn: {ROLE}\n  bastion: {BASTION}\n  reason: INC-42\n"
    );
    let lab = lab(&text).await;
    let mut command = lab.program(&["up"]);
    command.env("AWS_REGION", "us-east-1").env("AUTOHEAL_PA_BASTION", "i-0fedcba9876543210");
    let mut up = Running::start(&mut command);
    up.ready().await;
    assert_eq!(reached(&lab), ["ledger"], "the entry wins over the environment");

    // The kubeconfig leads to a token without the file.
    let kubeconfig = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    assert!(kubeconfig.contains(&format!("--role-arn={ROLE}")) && kubeconfig.contains("--region=eu-west-1"));
    assert_eq!(up.stop().await.code(), Some(0));
    std::fs::write(lab.path(".config/autoheal-pa/config.yaml"), "region: [").unwrap();
    let token = lab.run(&["token", "--cluster-name=ledger", "--region=eu-west-1"]).await;
    assert!(token.assert_success().contains("k8s-aws-v1."));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_and_variables_win_over_the_top_level() {
    let lab = lab("base_port: 0\nregion: eu-west-1\nbastion: i-0fedcba9876543210\nclusters: [ledger]\n").await;
    let up = lab.up(&["--cluster", "payments"]).await;
    assert_eq!(reached(&lab), ["payments"], "a flag wins, and so does `AWS_REGION`");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_says_where_the_kubeconfig_is() {
    let lab = lab("kubeconfig: kube\n").await;
    let path = lab.path(".config/autoheal-pa/kube");
    let ended = lab.run(&["env", "--shell", "bash"]).await;
    assert_eq!(ended.assert_success(), format!("export KUBECONFIG='{}'\n", path.display()));
    let up = lab.up(&[]).await;
    assert!(path.is_file() && !lab.kubeconfig().exists());
    assert_eq!(up.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_stops_up_before_any_call_and_nothing_else() {
    let lab = lab("regin: us-east-1\nbase_port: x\n").await;
    let path = lab.path(".config/autoheal-pa/config.yaml").display().to_string();
    let ended = lab.run(&["up"]).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    for part in
        [format!("{path}:1:1: unknown key `regin`: did you mean `region`?"), format!("{path}:2:12: `base_port`")]
    {
        assert!(ended.stderr.contains(&part), "{}", ended.stderr);
    }
    assert_eq!(bare(&lab, &["up", "--config", "nowhere.yaml"]).await.code(), Some(2));
    assert_eq!(lab.emulator.events(), []);
    let up = lab.up(&["--config", "/dev/null"]).await;
    assert_eq!(up.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_checked_without_a_call() {
    let lab = lab(&several()).await;
    let ended = bare(&lab, &["config", "check"]).await;
    let home = lab.home.path().display().to_string();
    insta::assert_snapshot!(ended.assert_success().replace(&home, "/home/alice"));

    let wrong = lab.path("wrong.yaml");
    std::fs::write(&wrong, several().replace("role_arn", "role-arn").replace("eu-west-1", "EU West")).unwrap();
    let ended = bare(&lab, &["config", "check", wrong.to_str().unwrap()]).await;
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(2), ""));
    insta::assert_snapshot!(ended.stderr.replace(&home, "/home/alice"));
    assert_eq!(bare(&lab, &["--region", "us-east-1", "config", "check"]).await.code(), Some(2));
    assert_eq!(lab.emulator.events(), []);
}

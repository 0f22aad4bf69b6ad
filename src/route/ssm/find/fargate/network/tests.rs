//! Which clusters share a task.

use super::{super::failure::tests::stopped, *};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn vpc(id: &str, security_groups: &[&str], subnets: &[&str]) -> Vpc {
    Vpc { id: id.to_owned(), subnets: texts(subnets), security_groups: texts(security_groups) }
}

fn network(id: &str, security_groups: &[&str]) -> Network {
    Network::of(&FargateOptions::default(), &vpc(id, security_groups, &["subnet-a"]))
}

#[test]
fn it_is_the_users_own_else_the_clusters() {
    let cluster = vpc("vpc-1", &["sg-2", "sg-1", "sg-2"], &["subnet-b", "subnet-a"]);
    let of_cluster = Network::of(&FargateOptions::default(), &cluster);
    assert_eq!(
        (of_cluster.security_groups, of_cluster.subnets),
        (texts(&["sg-1", "sg-2"]), texts(&["subnet-b", "subnet-a"]))
    );
    let own = FargateOptions {
        subnets: texts(&["subnet-c"]),
        security_groups: texts(&["sg-3"]),
        ..FargateOptions::default()
    };
    let of_user = Network::of(&own, &cluster);
    assert_eq!((of_user.security_groups.clone(), of_user.subnets.clone()), (texts(&["sg-3"]), texts(&["subnet-c"])));
    assert!(of_user.covers(&Network::of(&own, &vpc("vpc-1", &["sg-9"], &["subnet-z"]))));
}

#[test]
fn one_task_is_in_the_groups_of_all_clusters_of_its_vpc() {
    let mut all = network("vpc-1", &["sg-2"]);
    let others = [network("vpc-2", &["sg-9"]), network("vpc-1", &["sg-1"]), network("vpc-1", &["sg-2", "sg-3"])];
    assert!(!all.covers(&others[1]));
    all.grow(&others);
    assert_eq!(all.security_groups, texts(&["sg-1", "sg-2", "sg-3"]));
    assert!(!all.covers(&others[0]) && all.covers(&others[1]) && all.covers(&others[2]));
}

#[test]
fn a_task_is_in_five_groups_at_most() {
    let mut most = network("vpc-1", &["sg-1"]);
    most.grow(&[
        network("vpc-1", &["sg-2", "sg-3", "sg-4"]),
        network("vpc-1", &["sg-5", "sg-6"]),
        network("vpc-1", &["sg-7"]),
    ]);
    assert_eq!(
        most.security_groups,
        texts(&["sg-1", "sg-2", "sg-3", "sg-4", "sg-7"]),
        "what fits, though not in a row"
    );
    let many: Vec<_> = (0..20).map(|at| format!("subnet-{at}")).collect();
    let mut wide = network("vpc-1", &["sg-1"]);
    wide.grow(&[Network { subnets: many, ..network("vpc-1", &["sg-1"]) }]);
    assert_eq!(wide.subnets.len(), MAX_SUBNETS);
}

#[test]
fn a_task_tells_whom_it_serves() {
    let of = |network: &Network| {
        let mut task = stopped("", "", None);
        task.tags = network.tags().into_iter().map(|(key, value)| (key.into(), tag_value(&value).into())).collect();
        task
    };
    let both = network("vpc-1", &["sg-1", "sg-12"]);
    let task = of(&both);
    assert!(both.is_of(&task) && both.is_served_by(&task));
    let one = network("vpc-1", &["sg-12"]);
    assert!(!one.is_of(&task) && one.is_served_by(&task));
    for other in [network("vpc-1", &["sg-1", "sg-2"]), network("vpc-2", &["sg-1"]), network("vpc-1", &["sg"])] {
        assert!(!other.is_of(&task) && !other.is_served_by(&task), "{other:?}");
    }
    assert!(is_in(&task, "vpc-1") && !is_in(&task, "vpc-2") && !is_in(&stopped("", "", None), "vpc-1"));
}

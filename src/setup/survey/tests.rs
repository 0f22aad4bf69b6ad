//! Plans of networks as they are found, without AWS.

use super::{tasks::STAYS, *};
use crate::{
    cluster::{Cluster, Destination, Origin},
    settings::SetupFormat,
    setup::MAX_TEMPLATE_LEN,
};

fn order(kind: BastionKind) -> Order {
    Order { clusters: Vec::new(), kind, private: false, namespaces: Vec::new(), principal: None, fargate_image: None }
}

fn found(name: &str, region: &str) -> Found {
    let vpc = Vpc {
        id: "vpc-0a0b0c0d0e0f01020".to_owned(),
        subnets: vec!["subnet-1".to_owned(), "subnet-2".to_owned()],
        security_groups: vec!["sg-1".to_owned()],
    };
    let arn = format!("arn:{}:eks:{region}:123456789012:cluster/{name}", iam::partition(region));
    let access = Cluster {
        name: name.to_owned(),
        region: region.to_owned(),
        account: "123456789012".to_owned(),
        id: arn.clone(),
        endpoint: Destination { host: "h".to_owned(), port: 443 },
        certificate_authority: None,
        origin: Origin::Eks { token_name: name.to_owned() },
        vpc: Some(vpc.clone()),
    };
    let description = ClusterDescription {
        name: name.to_owned(),
        region: region.to_owned(),
        arn,
        status: "ACTIVE".into(),
        version: None,
        endpoint_public: false,
        endpoint_private: true,
        authentication_mode: Some("API".into()),
        vpc_id: Some(vpc.id.clone()),
        security_group: Some("sg-1".to_owned()),
        access: Ok(access),
    };
    Found { description, group: format!("sg-of-{name}"), vpc }
}

fn site<'a>(order: &'a Order, region: &str, names: &[String]) -> Site<'a> {
    let subnet = |id: &str, zone: &str| Subnet { id: id.to_owned(), zone: format!("{region}{zone}") };
    Site {
        order,
        region: region.to_owned(),
        account: "123456789012".to_owned(),
        vpc: "vpc-0a0b0c0d0e0f01020".to_owned(),
        clusters: names.iter().map(|name| found(name, region)).collect(),
        subnets: vec![subnet("subnet-1", "a"), subnet("subnet-2", "b")],
        tables: Vec::new(),
        endpoints: Vec::new(),
        notes: Vec::new(),
        unseen: Vec::new(),
    }
}

fn one() -> Vec<String> {
    vec!["payments".to_owned()]
}

const KINDS: [BastionKind; 5] =
    [BastionKind::Ec2, BastionKind::Ssh, BastionKind::Ecs, BastionKind::Fargate, BastionKind::Direct];
const FORMATS: [SetupFormat; 3] = [SetupFormat::Cloudformation, SetupFormat::Terraform, SetupFormat::Cli];

#[test]
fn every_partition_has_its_own_names() {
    for (region, partition, instances, registry) in [
        ("eu-west-1", "aws", "ec2.amazonaws.com", "com.amazonaws.eu-west-1.ecr.api"),
        ("cn-north-1", "aws-cn", "ec2.amazonaws.com.cn", "cn.com.amazonaws.cn-north-1.ecr.api"),
        ("us-gov-west-1", "aws-us-gov", "ec2.amazonaws.com", "com.amazonaws.us-gov-west-1.ecr.api"),
        ("us-iso-east-1", "aws-iso", "ec2.c2s.ic.gov", "com.amazonaws.us-iso-east-1.ecr.api"),
    ] {
        for kind in KINDS {
            let mut order = order(kind);
            order.private = true;
            let runs_tasks = matches!(kind, BastionKind::Ecs | BastionKind::Fargate);
            order.fargate_image = runs_tasks.then(|| "i".to_owned());
            let plan = site(&order, region, &one()).plan().unwrap();
            for format in FORMATS {
                let document = plan.document(format);
                let others = ["arn:aws:", "arn:aws-cn:", "arn:aws-us-gov:", "arn:aws-iso:"];
                for other in others.into_iter().filter(|other| *other != format!("arn:{partition}:")) {
                    assert!(!document.contains(other), "{region} {kind:?}: {other}");
                }
                assert_eq!(document.contains(instances), kind == BastionKind::Ec2, "{region} {kind:?}");
                assert_eq!(document.contains(registry), runs_tasks, "{region} {kind:?}");
                let messages = format!("\"com.amazonaws.{region}.ssmmessages\"");
                let has_messages = document.contains(messages.trim_matches('"'));
                assert_eq!(has_messages, runs_tasks || kind == BastionKind::Ec2, "{region} {kind:?}");
            }
        }
    }
}

#[test]
fn all_names_are_short_enough_whatever_the_clusters_are_called() {
    let names: Vec<String> = (0..20).map(|number| format!("{number:_<100}")).collect();
    for kind in KINDS {
        let order = order(kind);
        let plan = site(&order, "us-east-1", &names).plan().unwrap();
        assert!(plan.name.len() <= names::STACK);
        assert!(plan.principal.name().len() <= names::ROLE);
        let mut ids = BTreeSet::new();
        for Item { id, piece } in &plan.items {
            assert!(ids.insert(id) && id.len() <= 255 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
            match piece {
                Piece::ServiceRole(role) => assert!(role.name.len() <= names::ROLE),
                Piece::InstanceProfile { name, role } => {
                    assert!(name.len() <= names::INSTANCE_PROFILE && role.len() <= names::ROLE);
                }
                Piece::Group(group) => assert!(group.name.len() <= names::SECURITY_GROUP && is_of_ec2(group.about)),
                Piece::Rule(rule) => assert!(rule.about.len() <= names::RULE_ABOUT && is_of_ec2(&rule.about)),
                Piece::Template(template) => assert!((3..=names::LAUNCH_TEMPLATE).contains(&template.name.len())),
                Piece::Scaling(scaling) => assert!(scaling.name.len() <= names::SCALING_GROUP),
                Piece::EcsCluster { name } => assert!(name.len() <= names::ECS),
                Piece::TaskDefinition(definition) => assert!(definition.family.len() <= names::ECS),
                Piece::Service(service) => {
                    assert!(service.cluster.len() <= names::ECS && service.name.len() <= names::ECS)
                }
                Piece::UserRole { name } => assert!(name.len() <= names::ROLE),
                Piece::Policy { document, .. } => assert!(document.to_line().len() <= MAX_ROLE_POLICY_LEN),
                Piece::Endpoint(_) | Piece::ConnectEndpoint { .. } | Piece::Entry(_) => {}
            }
        }
    }
}

/// The characters that EC2 takes in descriptions (EC2 API reference, `CreateSecurityGroup`).
fn is_of_ec2(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c))
}

#[test]
fn a_policy_that_no_role_can_have_is_refused() {
    let names = |count: usize| (0..count).map(|number| format!("{number:_<100}")).collect::<Vec<_>>();
    let order = order(BastionKind::Ec2);
    let most = (1..200).rev().find(|count| site(&order, "us-east-1", &names(*count)).plan().is_ok()).unwrap();
    assert!((40..80).contains(&most), "{most}");
    let plan = site(&order, "us-east-1", &names(most)).plan().unwrap();
    let len = plan.policy().to_line().len();
    assert!(len <= MAX_ROLE_POLICY_LEN && len > MAX_ROLE_POLICY_LEN - 200, "{len}");
    let error = site(&order, "us-east-1", &names(most + 1)).plan().unwrap_err();
    assert!(matches!(error, SurveyError::PolicyTooLong { count, .. } if count == most + 1), "{error}");
    // A template of that many clusters does not go without a bucket.
    let document = plan.document(SetupFormat::Cloudformation);
    assert_eq!(
        plan.how_to_deploy(SetupFormat::Cloudformation, &document).contains("--s3-bucket"),
        document.len() > MAX_TEMPLATE_LEN
    );
    assert!(
        plan.how_to_deploy(SetupFormat::Cloudformation, &" ".repeat(MAX_TEMPLATE_LEN + 1))
            .contains("--s3-bucket BUCKET")
    );
}

#[test]
fn a_role_of_identity_center_gets_no_policy_but_the_command_that_prints_it() {
    let mut order = order(BastionKind::Ec2);
    let arn = "arn:aws:iam::123456789012:role/aws-reserved/sso.amazonaws.com/AWSReservedSSO_Dev_0123456789abcdef";
    order.principal = Principal::from_arn(arn);
    let plan = site(&order, "us-east-1", &one()).plan().unwrap();
    assert!(plan.item("UserPolicy").is_none() && plan.item("AccessEntry1").is_some());
    assert_eq!(
        plan.notes,
        [format!(
            "the role is of IAM Identity Center, which lets nobody else change it: `autoheal-pa policy --region us-east-1 \
             --bastion auto --cluster payments --role-arn {arn}` prints the policy for its permission set"
        )]
    );
}

fn table(id: &str, subnets: &[&str], default: Option<&str>) -> RouteTable {
    RouteTable {
        id: id.to_owned(),
        is_main: subnets.is_empty(),
        subnets: subnets.iter().map(|&subnet| subnet.to_owned()).collect(),
        default: default.map(str::to_owned),
    }
}

#[test]
fn the_bastion_is_where_it_has_a_way_out() {
    let nat = || table("rtb-1", &["subnet-1"], Some("nat-1"));
    let public = || table("rtb-2", &["subnet-2"], Some("igw-1"));
    let none = || table("rtb-0", &[], None);
    for (private, kind, tables, chosen) in [
        (false, BastionKind::Ec2, vec![nat(), public(), none()], Some(&["subnet-1"][..])),
        (false, BastionKind::Ec2, vec![public(), table("rtb-0", &[], Some("tgw-1"))], Some(&["subnet-1"])),
        (false, BastionKind::Ec2, vec![public(), none()], None),
        (true, BastionKind::Ec2, vec![public(), none()], Some(&["subnet-1"])),
        (false, BastionKind::Ssh, vec![public(), none()], Some(&["subnet-1"])),
        (true, BastionKind::Ec2, vec![table("rtb-0", &[], Some("igw-1"))], Some(&["subnet-1", "subnet-2"])),
        (false, BastionKind::Ec2, Vec::new(), Some(&["subnet-1", "subnet-2"])),
    ] {
        let mut order = order(kind);
        order.private = private;
        let site = site(&order, "us-east-1", &one());
        let found = site.choose(site.subnets.clone(), &tables);
        let ids = found.ok().map(|subnets| subnets.into_iter().map(|subnet| subnet.id).collect::<Vec<_>>());
        assert_eq!(
            ids,
            chosen.map(|ids| ids.iter().map(|&id| id.to_owned()).collect()),
            "{private} {kind:?} {tables:?}"
        );
    }
}

#[test]
fn endpoints_that_are_there_are_used_and_ours_are_made_again() {
    let endpoint = |service: &str, name: &str, group: &str| VpcEndpoint {
        id: "vpce-1".to_owned(),
        service: format!("com.amazonaws.us-east-1.{service}"),
        state: "available".into(),
        private_dns: true,
        groups: vec![group.to_owned()],
        name: Some(name.into()),
    };
    let mut order = order(BastionKind::Ec2);
    order.private = true;
    let mut site = site(&order, "us-east-1", &one());
    site.subnets[1].zone = "us-east-1a".to_owned();
    site.endpoints = vec![
        endpoint("ssm", "theirs", "sg-9"),
        endpoint("ssmmessages", "autoheal-pa-vpc-0a0b0c0d0e0f01020-ssmmessages", "sg-8"),
    ];
    let plan = site.plan().unwrap();
    assert!(plan.item("EndpointSsm").is_none());
    let Some(Item { piece: Piece::Endpoint(made), .. }) = plan.item("EndpointSsmmessages") else { panic!("{plan:?}") };
    // No two addresses of an endpoint are in one zone.
    assert_eq!(made.kind, EndpointKind::Interface { subnets: vec!["subnet-1".to_owned()] });
    let of_endpoints = |item: &Item| item.id.starts_with("EndpointRule");
    let into: Vec<_> = plan
        .items
        .iter()
        .filter(|item| of_endpoints(item))
        .map(|item| {
            let Piece::Rule(rule) = &item.piece else { panic!("{item:?}") };
            rule.into.clone()
        })
        .collect();
    assert_eq!(into, [GroupRef::Made(GroupOf::Endpoints), GroupRef::There("sg-9".to_owned())]);
}

#[test]
fn the_same_bastion_is_printed_as_is_looked_for() {
    for kind in KINDS {
        let order = order(kind);
        let plan = site(&order, "us-east-1", &one()).plan().unwrap();
        let words: Vec<_> = plan.up().split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
        let at = words.iter().position(|word| word == "--bastion").unwrap();
        let read: Bastion = words[at + 1].parse().unwrap();
        assert_eq!(read.to_string(), plan.bastion.to_string());
        assert_eq!(plan.check(&order).contains("--bastion-kind"), kind != BastionKind::Ec2);
    }
}

/// A task can be in five security groups, a service has one of its own; what it runs does not end by itself.
#[test]
fn a_service_keeps_one_task_that_stays() {
    let names: Vec<String> = (0..9).map(|number| format!("cluster-{number}")).collect();
    let mut order = order(BastionKind::Ecs);
    (order.private, order.fargate_image) = (true, Some("i".to_owned()));
    let plan = site(&order, "us-east-1", &names).plan().unwrap();
    assert_eq!(plan.bastion.to_string(), "ecs:autoheal-pa-vpc-0a0b0c0d0e0f01020/bastion");
    assert_eq!(plan.items.iter().filter(|item| item.id.starts_with("ClusterRule")).count(), names.len());
    let Some(Item { piece: Piece::TaskDefinition(own), .. }) = plan.item("TaskDefinition") else { panic!("{plan:?}") };
    assert_eq!((own.container.command.as_slice(), own.container.image.as_str()), (&STAYS.map(str::to_owned)[..], "i"));
    // All that its tasks need before they start is named, and made, by that name.
    let text = plan.document(SetupFormat::Terraform);
    let (_, named) = text.split_once("depends_on = [").unwrap();
    let named: Vec<&str> = named.split(']').next().unwrap().split(", ").collect();
    for name in &named {
        let (kind, id) = name.split_once('.').unwrap();
        assert!(text.contains(&format!("resource \"{kind}\" \"{id}\" {{")), "{name}");
    }
    // Two roles, four endpoints, the rule to them and those to the clusters.
    assert_eq!(named.len(), 2 + 4 + 1 + names.len());

    order.kind = BastionKind::Fargate;
    let plan = site(&order, "us-east-1", &names).plan().unwrap();
    let Some(Item { piece: Piece::TaskDefinition(other), .. }) = plan.item("TaskDefinition") else {
        panic!("{plan:?}")
    };
    assert!(other.family != own.family && other.container.command != own.container.command, "{other:?}");
}

//! What is looked at, against a fake service.

use serde_json::json;

use crate::aws::testing::{Answer, Fake, aws, in_time};

fn wrapped(action: &str, result: &str) -> Answer {
    Answer::xml(200, &format!("<{action}Response><{action}Result>{result}</{action}Result></{action}Response>"))
}

#[tokio::test]
async fn policies_of_a_role_are_its_own_and_those_attached() {
    let fake = Fake::start(|request| {
        let operation = request.operation().to_owned();
        match operation.as_str() {
            "GetRole" => wrapped(
                "GetRole",
                "<Role><Arn>arn:aws:iam::1:role/r</Arn><AssumeRolePolicyDocument>%7B%22Version%22%3A%221%22%7D\
                 </AssumeRolePolicyDocument></Role>",
            ),
            "ListRolePolicies" if request.parameter("Marker").is_empty() => wrapped(
                "ListRolePolicies",
                "<PolicyNames><member>a</member></PolicyNames><IsTruncated>true</IsTruncated><Marker>m</Marker>",
            ),
            "ListRolePolicies" => wrapped("ListRolePolicies", "<PolicyNames><member>b</member></PolicyNames>"),
            "GetRolePolicy" => {
                let name = request.parameter("PolicyName").to_owned();
                wrapped("GetRolePolicy", &format!("<PolicyDocument>%7B%22Id%22%3A%22{name}%22%7D</PolicyDocument>"))
            }
            "ListAttachedRolePolicies" => wrapped(
                "ListAttachedRolePolicies",
                "<AttachedPolicies><member><PolicyName>c</PolicyName><PolicyArn>arn:aws:iam::1:policy/c</PolicyArn>\
                 </member></AttachedPolicies>",
            ),
            "GetPolicy" => wrapped("GetPolicy", "<Policy><DefaultVersionId>v3</DefaultVersionId></Policy>"),
            "GetPolicyVersion" => {
                assert_eq!(request.parameter("VersionId"), "v3");
                let document = "<PolicyVersion><Document>%7B%22Id%22%3A%22c%22%7D</Document></PolicyVersion>";
                wrapped("GetPolicyVersion", document)
            }
            other => panic!("{other}"),
        }
    })
    .await;
    let aws = aws(&fake).await;
    let role = in_time(aws.role("r")).await.unwrap().unwrap();
    assert_eq!((role.arn.as_str(), &role.trust["Version"]), ("arn:aws:iam::1:role/r", &json!("1")));
    let policies = in_time(aws.policies_of_role("r")).await.unwrap();
    let found: Vec<_> = policies.into_iter().map(|policy| (policy.name, policy.document["Id"].clone())).collect();
    assert_eq!(found, ["a", "b", "c"].map(|name| (name.to_owned(), json!(name))));
    let authorization = fake.requests()[0].header("authorization").unwrap().to_owned();
    assert!(authorization.contains("/us-east-1/iam/aws4_request"), "{authorization}");
}

#[tokio::test]
async fn what_is_not_there_is_no_error() {
    let absent = "The role with name r cannot be found.";
    let fake = Fake::start(move |_| Answer::query_error(404, "NoSuchEntity", absent)).await;
    let aws = aws(&fake).await;
    assert_eq!(in_time(aws.role("r")).await.unwrap(), None);
    assert_eq!(in_time(aws.instance_profile("p")).await.unwrap(), None);
}

#[tokio::test]
async fn a_group_tells_whom_it_admits() {
    let rule = |protocol: &str, ports: &str, from: &str| {
        format!("<item><ipProtocol>{protocol}</ipProtocol>{ports}{from}</item>")
    };
    let group = |id: &str| format!("<groups><item><groupId>{id}</groupId></item></groups>");
    let rules = [
        rule("tcp", "<fromPort>400</fromPort><toPort>500</toPort>", &group("sg-2")),
        rule("-1", "", &group("sg-1")),
        rule("udp", "<fromPort>443</fromPort><toPort>443</toPort>", &group("sg-3")),
    ];
    let text = format!(
        "<DescribeSecurityGroupsResponse><securityGroupInfo><item><groupId>sg-1</groupId><groupName>n</groupName>\
         <vpcId>vpc-1</vpcId><ipPermissions>{}</ipPermissions></item></securityGroupInfo></DescribeSecurityGroupsResponse>",
        rules.concat()
    );
    let fake = Fake::start(move |_| Answer::xml(200, &text)).await;
    let found = in_time(aws(&fake).await.groups_by_id(&["sg-1".to_owned()])).await.unwrap();
    let [group] = &found[..] else { panic!("{found:?}") };
    assert!(group.admits("sg-2", 443) && group.admits("sg-1", 443) && group.lets_in());
    assert!(!group.admits("sg-2", 22) && !group.admits("sg-3", 443) && !group.admits("sg-4", 443));
}

#[tokio::test]
async fn a_route_that_leads_nowhere_is_none() {
    let text = "<DescribeRouteTablesResponse><routeTableSet>\
                <item><routeTableId>rtb-1</routeTableId><routeSet><item><destinationCidrBlock>10.0.0.0/16</destinationCidrBlock>\
                <gatewayId>local</gatewayId><state>active</state></item><item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock>\
                <natGatewayId>nat-1</natGatewayId><state>active</state></item></routeSet><associationSet><item><subnetId>subnet-1\
                </subnetId><main>false</main></item></associationSet></item><item><routeTableId>rtb-2</routeTableId><routeSet><item>\
                <destinationCidrBlock>0.0.0.0/0</destinationCidrBlock><natGatewayId>nat-2</natGatewayId><state>blackhole</state></item>\
                </routeSet><associationSet><item><main>true</main></item></associationSet></item></routeTableSet>\
                </DescribeRouteTablesResponse>";
    let fake = Fake::start(move |_| Answer::xml(200, text)).await;
    let found = in_time(aws(&fake).await.route_tables("vpc-1")).await.unwrap();
    let [own, main] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (own.default.as_deref(), own.is_main, &own.subnets),
        (Some("nat-1"), false, &vec!["subnet-1".to_owned()])
    );
    assert_eq!((main.default.as_deref(), main.is_main), (None, true));
}

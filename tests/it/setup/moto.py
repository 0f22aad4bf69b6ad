"""Deploys templates with boto3 against moto and tells what came of it, as JSON.

`moto.py URL network`: the default VPC, its subnets and a security group that is made in it.
`moto.py URL deploy NAME FILE ROLE`: a stack of the template; the policy of the role, the instances and the rules of groups.
"""

import json
import sys

import boto3

url, what, *arguments = sys.argv[1:]


def client(service):
    return boto3.client(service, endpoint_url=url, region_name="us-east-1")


ec2 = client("ec2")


def network():
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    group = ec2.create_security_group(GroupName="eks-cluster", Description="of EKS", VpcId=vpc)["GroupId"]
    # The default VPC is public: instances without an address have a way out by a NAT gateway.
    table = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"][0]["RouteTableId"]
    gateway = ec2.create_nat_gateway(SubnetId=subnets[0]["SubnetId"], ConnectivityType="private")["NatGateway"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=gateway["NatGatewayId"])
    return {"vpc": vpc, "subnets": [subnet["SubnetId"] for subnet in subnets[:3]], "group": group}


def deploy(name, file, role):
    cloudformation = client("cloudformation")
    with open(file) as template:
        stack = {"StackName": name, "TemplateBody": template.read(), "Capabilities": ["CAPABILITY_NAMED_IAM"]}
    # Another kind has some of the same names.
    for old in cloudformation.describe_stacks()["Stacks"]:
        cloudformation.delete_stack(StackName=old["StackName"])
    cloudformation.create_stack(**stack)
    status = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
    assert status == "CREATE_COMPLETE", status
    policy = client("iam").get_role_policy(RoleName=role, PolicyName="autoheal-pa")["PolicyDocument"]
    instances = [
        {
            "type": instance["InstanceType"],
            "tags": {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])},
        }
        for reservation in ec2.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    ]
    rules = [
        {"into": group["GroupId"], "port": rule.get("FromPort"), "addresses": rule["IpRanges"]}
        for group in ec2.describe_security_groups()["SecurityGroups"]
        for rule in group["IpPermissions"]
        if group["GroupName"] != "default"
    ]
    return {"policy": policy, "instances": instances, "rules": rules}


print(json.dumps({"network": network, "deploy": deploy}[what](*arguments)))

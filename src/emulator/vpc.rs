//! The networks of the emulated account: which subnets there are, and what leads out of them.

/// The network in which clusters and bastions are unless they say otherwise.
pub(super) const DEFAULT_VPC: &str = "vpc-0a0b0c0d0e0f01020";

/// The address of an instance in it, by its number.
pub(super) fn private_address(number: usize) -> String {
    format!("10.0.{}.{}", 1 + number / 200 % 15, 10 + number % 200)
}

#[derive(Debug, Clone)]
pub struct VpcConfig {
    /// The id, `vpc-…`.
    pub id: String,
    /// The subnets, which are those of its clusters too.
    pub subnets: Vec<SubnetConfig>,
    /// Ids of the security groups; the first is that of its clusters.
    pub security_groups: Vec<String>,
    /// Whether what has no public address reaches the internet.
    pub nat: bool,
    /// Services that have an endpoint in it: `ssmmessages`, `ecr.api`, `ecr.dkr`, `s3` and the like.
    pub endpoints: Vec<String>,
}

impl Default for VpcConfig {
    fn default() -> Self {
        Self {
            id: DEFAULT_VPC.to_owned(),
            subnets: vec![
                SubnetConfig::new("subnet-0a1b2c3d4e5f60718", "a"),
                SubnetConfig::new("subnet-08f7e6d5c4b3a2910", "b"),
            ],
            security_groups: vec!["sg-0c0ffee0c0ffee0c0".to_owned()],
            nat: true,
            endpoints: Vec::new(),
        }
    }
}

impl VpcConfig {
    /// The default one without a way out.
    #[must_use]
    pub fn closed() -> Self {
        Self { nat: false, ..Self::default() }
    }

    pub(super) fn has_endpoint(&self, service: &str) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint == service)
    }
}

/// One endpoint of EC2 Instance Connect.
#[derive(Debug, Clone)]
pub struct ConnectEndpointConfig {
    /// The id, `eice-…`.
    pub id: String,
    /// Id of its VPC.
    pub vpc: String,
    /// Id of its subnet.
    pub subnet: String,
    /// The name that it is reached by; `None`: where the emulator is.
    pub dns_name: Option<String>,
    /// `create-complete` and the like.
    pub state: String,
}

#[derive(Debug, Clone)]
pub struct SubnetConfig {
    /// The id, `subnet-…`.
    pub id: String,
    /// The letter of its availability zone.
    pub zone: String,
    /// Whether it has a route to an internet gateway, which is of use with a public address only.
    pub public: bool,
    /// Addresses that are free.
    pub free_addresses: u32,
}

impl SubnetConfig {
    /// A private subnet with room.
    #[must_use]
    pub fn new(id: impl Into<String>, zone: impl Into<String>) -> Self {
        Self { id: id.into(), zone: zone.into(), public: false, free_addresses: 251 }
    }
}

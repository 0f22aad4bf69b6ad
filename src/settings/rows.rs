//! Every setting, each in one row. Whoever adds one adds a row here, and uses the field that comes of it.
//!
//! The order is that of the help, of the manual and of the schema.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{
    CiOidc, ExecIdentity, ForwardCheck, KubeconfigMode, Launch, MetricsAddress, Oidc, Proxies, ProxyOthers, ProxyPlace,
    SdkVariables, Settings,
    ci::is_oidc,
    proxy::{is_metrics_address, is_proxy_place},
    row::{Row, Table, choice, duration, duration_or_zero, number, path, port, switch, table, text},
    sessions::{Sessions, is_sessions},
    values::{
        is_audience, is_bastion, is_cluster_name, is_context, is_context_prefix, is_document, is_external_id,
        is_forward, is_image, is_profile, is_reason, is_region, is_role, is_role_arn, is_security_group,
        is_session_name, is_subnet, is_tag, is_tag_key,
    },
};
use crate::{
    bastion::{Bastion, FargateOptions, SessionDocument, SshFiles, is_task_definition},
    forward::Forward,
};

/// All rows.
#[must_use]
pub fn all() -> Vec<&'static Row> {
    [AwsSettings::rows(), Access::rows(), UpSettings::rows()].concat()
}

table! {
    /// How to reach AWS, and as whom.
    pub struct AwsSettings, global: true, rows AWS: AwsRows {
        /// AWS region
        region: Option<String> = text("REGION", is_region, "a region, such as `us-east-1`")
            .variables(&["AWS_REGION", "AWS_DEFAULT_REGION"])
            .otherwise("the profile's")
            .in_entry(),
        // The variables are in the order of botocore.
        /// Profile of the AWS configuration files
        profile: Option<String> = text("NAME", is_profile, "the name of a profile")
            .variables(&["AWS_DEFAULT_PROFILE", "AWS_PROFILE"])
            .in_entry(),
        /// Role to assume
        role_arn: Option<String> =
            text("ARN", is_role_arn, "the ARN of a role, such as `arn:aws:iam::123456789012:role/ReadOnly`")
            .variables(&["AWS_ROLE_ARN"])
            .in_entry(),
        /// Name of the role's session, shown in CloudTrail, such as an e-mail address
        role_session_name: Option<String> = text("NAME", is_session_name, "a name or an e-mail address")
            .variables(&["AWS_ROLE_SESSION_NAME"])
            .of_role()
            .in_entry(),
        /// External id, if the role's trust policy requires one; only for a role that is assumed from other credentials
        external_id: Option<String> =
            text("ID", is_external_id, "an external id: 2 to 1224 letters, digits and any of `_+=,.@:/-`")
            .of_role()
            .in_entry(),
        /// Tag of the role's session, as KEY=VALUE, for policies and CloudTrail; repeat it for up to 50. Only for a role that is
        /// assumed from other credentials, whose trust policy has to allow `sts:TagSession`
        tags: Vec<String> = text("KEY=VALUE", is_tag, "a session tag: a key, `=`, and a value, of those that STS takes")
            .flag_for_one("tag")
            .of_role()
            .list()
            .in_entry(),
        /// Key of a tag that stays with sessions of other roles which are assumed from this one; repeat it for more
        transitive_tags: Vec<String> = text("KEY", is_tag_key, "the key of a session tag")
            .flag_for_one("transitive-tag")
            .of_role()
            .list()
            .in_entry(),
        /// File with an OIDC token, read again at each renewal
        web_identity_token_file: Option<PathBuf> = path()
            .variables(&["AWS_WEB_IDENTITY_TOKEN_FILE"])
            .of_role()
            .in_entry(),
        /// CI system whose OIDC token the role is assumed with, or `env:` and the variable that has one. Those of GitHub Actions
        /// (`id-token: write`), GitLab (`GITLAB_OIDC_TOKEN`) and Bitbucket (`oidc: true`) are found without it
        oidc: Option<Oidc> = text("SYSTEM", is_oidc, Oidc::EXPECTED)
            .variables(&["AUTOHEAL_PA_OIDC"])
            .of_role()
            .in_entry(),
        /// Audience of the CI job's OIDC token, for systems that let it be chosen
        oidc_audience: Option<String> = text("AUDIENCE", is_audience, "an audience, such as `sts.amazonaws.com`")
            .variables(&["AUTOHEAL_PA_OIDC_AUDIENCE"])
            .otherwise("sts.amazonaws.com, in China sts.amazonaws.com.cn")
            .in_entry(),
        // The limits are those of STS, and so is what it does without.
        /// How long the role's credentials last
        duration: Option<Duration> = duration("15m", "12h").otherwise("1h").of_role().in_entry(),
        /// PEM file with certificate authorities to trust besides the system's
        ca_bundle: Option<PathBuf> = path().variables(&["AWS_CA_BUNDLE"]),
        /// Host of the message gateway, if it can only be reached by a VPC endpoint's own name
        endpoint_ssmmessages: Option<String> = text("URL", |_| true, "a URL or a host")
            .variables(&["AWS_ENDPOINT_URL_SSMMESSAGES"])
            .in_entry(),
    } {
        /// The profile was named for this program, by a flag or in its file, so that it wins over keys in the environment.
        pub profile_is_chosen: bool,
        /// The environment names a token file, whether it is used or not.
        pub token_file_in_environment: bool,
        /// Where a CI job gets its OIDC tokens.
        pub ci_oidc: Option<CiOidc>,
        /// The environment names the endpoint of a container's credentials.
        pub in_container: bool,
        /// There are access keys in the environment.
        pub static_keys_in_environment: bool,
        /// When these keys expire, if whoever set them has said so.
        pub keys_expire: Option<SystemTime>,
        /// The role or its token file was named for this program, not by the environment.
        pub role_is_chosen: bool,
        /// What calls and WebSockets go through.
        pub proxies: Proxies,
        /// An endpoint of our own choice stands in for Systems Manager, so its stream URLs may point at that host
        /// and at loopback.
        pub ssm_endpoint_override: bool,
        /// That endpoint.
        pub ssm_endpoint: Option<String>,
        /// The files that AWS profiles are in, those of the AWS CLI; `None` where there is no home directory to look in.
        pub profile_files: [Option<PathBuf>; 2],
        /// The file of the system's certificate authorities, if there is one in the environment.
        pub root_certificates: Option<PathBuf>,
        /// What the SDK finds in its environment.
        pub sdk_variables: SdkVariables,
        /// The name of this machine, for the default session name.
        pub host_name: Option<String>,
        /// The name of the user, for the default session name.
        pub user_name: Option<String>,
    }
}

table! {
    /// One access: an identity in a region, the bastions there, and the clusters to reach through them.
    ///
    /// `bastion` has those in order of preference and is never empty for `up`; `clusters` is empty for all that are active.
    pub struct Access, global: false, rows ACCESS: AccessRows {
        /// Bastion to connect through: an instance, managed node or ECS container, `fargate` for one that is made, `ssh://` and
        /// what follows for an SSH server, or `direct` for none, if the API server can be reached from here; repeat it for
        /// fallbacks, in order of preference
        bastion: Vec<Bastion> = text("TARGET", is_bastion, Bastion::EXPECTED)
            .variables(&["AUTOHEAL_PA_BASTION"])
            .guessed_by(Bastion::nearest)
            .list()
            .in_entry(),
        /// Cluster to open a tunnel to; repeat it for more, in the order of their ports
        clusters: Vec<String> =
            text("NAME", is_cluster_name, "the name of a cluster: at most 100 letters, digits, `-` and `_`")
            .flag_for_one("cluster")
            .otherwise("all active ones")
            .list()
            .in_entry(),
        /// Context of a kubeconfig of yours whose cluster gets a tunnel as well, such as one of kops; repeat it for more. The
        /// context that is written for it names the user that it has there, so `KUBECONFIG` has to name both files, as
        /// `autoheal-pa env` says it
        import_contexts: Vec<String> = text("NAME", is_context, "the name of a context")
            .flag_for_one("import-context")
            .list()
            .in_entry(),
        /// Opens no tunnels to clusters, so that EKS is asked nothing: for forwards alone
        no_clusters: bool = switch().in_entry(),
        /// Host behind the bastion that gets a local port as well, as `[NAME=]HOST:PORT[@LOCAL]`, such as
        /// `db=db.internal:5432@15432`: a name for `status`, host and port as the bastion reaches them, and the local port, the
        /// first free one after those of the clusters unless it is given; an IPv6 address goes into brackets; repeat it for more
        forwards: Vec<Forward> = text("FORWARD", is_forward, Forward::EXPECTED)
            .flag_for_one("forward")
            .explained_by(Forward::fault)
            .list()
            .in_entry(),
        /// Reason for the sessions, shown in CloudTrail and in Session Manager's history
        reason: Option<String> =
            text("TEXT", is_reason, "a reason that Session Manager accepts: 1 to 256 characters on one line")
            .variables(&["AUTOHEAL_PA_REASON"])
            .in_entry(),
        /// Requests access to each instance that sessions are to run on, with the reason of `--reason`, waits until it is approved, and
        /// starts sessions with the credentials that come of it: for accounts with just-in-time node access, which take
        /// `ssm:StartSession` away
        request_access: bool = switch().variables(&["AUTOHEAL_PA_REQUEST_ACCESS"]).in_entry(),
        /// Session document of this account that leads to the API server and nowhere else, in place of the one of AWS, which leads
        /// to any host that the bastion sees; `{cluster}` in its name stands for the name of the cluster or forward.
        /// `autoheal-pa policy --document` makes them
        document: Option<SessionDocument> = text("NAME", is_document, SessionDocument::EXPECTED)
            .variables(&["AUTOHEAL_PA_DOCUMENT"])
            .in_entry(),
        /// Task definition to run for `--bastion fargate`, so that none is made; its container must live as long as
        /// `--fargate-ttl` says
        fargate_task_definition: Option<String> =
            text("ARN", is_task_definition, "a task definition: a family, with or without `:<revision>`, or an ARN")
            .in_entry(),
        /// Role of the task that `--bastion fargate` runs, by name or ARN; with a task definition of your own, the one that it names
        fargate_task_role: String = text("ROLE", is_role, "the name of a role or its ARN")
            .default(FargateOptions::TASK_ROLE)
            .in_entry(),
        /// Image of that task: it needs `sh`, `date`, `grep` and `sleep`
        fargate_image: String = text("IMAGE", is_image, "the name of a container image")
            .default(FargateOptions::IMAGE)
            .in_entry(),
        /// Gives that task a public address, which it needs in a public subnet to reach AWS
        fargate_public_ip: bool = switch().in_entry(),
        /// Security group of that task, which the cluster's must admit on port 443; repeat it for up to 5
        fargate_security_groups: Vec<String> = text("ID", is_security_group, "a security group, such as `sg-0123456789abcdef0`")
            .flag_for_one("fargate-security-group")
            .otherwise("the cluster security group")
            .list()
            .in_entry(),
        /// Subnet that the task may be in; repeat it for up to 16
        fargate_subnets: Vec<String> = text("ID", is_subnet, "a subnet, such as `subnet-0123456789abcdef0`")
            .flag_for_one("fargate-subnet")
            .otherwise("those of the EKS cluster")
            .list()
            .in_entry(),
        /// How long the task runs at most; another takes its place before
        fargate_ttl: Duration = duration("15m", "24h").default("8h").in_entry(),
    } {
        /// How to reach AWS, and as whom.
        pub aws: AwsSettings,
        /// How `token` finds the same identity from another shell.
        pub identity: ExecIdentity,
        /// Files that have to do with SSH servers.
        pub ssh: SshFiles,
    }
}

table! {
    /// What `up` works with.
    pub struct UpSettings, global: false, rows UP: UpRows {
        /// First local port; clusters use this one and the following; 0: any free ones
        base_port: u16 = port().default("10100"),
        /// Fails when a port is taken, instead of skipping it
        strict_ports: bool = switch(),
        /// Lets programs of other users connect to the local ports; otherwise, on Linux, only this user's and root's can, and
        /// elsewhere everybody's can anyway
        allow_other_users: bool = switch(),
        /// Kubeconfig to write the contexts to
        kubeconfig = path().otherwise("~/.kube/autoheal-pa.yaml, with --name x autoheal-pa-x.yaml"),
        /// Kubeconfig that contexts are imported from
        import_kubeconfig = path().otherwise("the files of KUBECONFIG, else ~/.kube/config"),
        /// Makes the first cluster the current context, even in a kubeconfig that has other contexts
        set_current: bool = switch(),
        /// How the contexts reach the clusters: `proxy` is for clients that ignore `tls-server-name`, `local-tls` for those that
        /// ignore `proxy-url` as well. With `local-tls`, TLS ends in this process, which then sees what clients send, and client
        /// certificates do not get through; the contexts have a certificate authority that is made anew at each start
        kubeconfig_mode: KubeconfigMode = choice::<KubeconfigMode>("MODE").default("direct"),
        /// Opens a proxy for programs of this machine, for HTTP, CONNECT and SOCKS5, which leads to the API servers and to forwards
        /// by their real names and ports; `autoheal-pa env --proxy` prints the variables. A port, 0 for any free one, or an IP
        /// address and a port; without a value the port before the first local one, 10099, or the next that is free
        proxy: ProxyPlace = text("PLACE", is_proxy_place, ProxyPlace::EXPECTED)
            .default("false")
            .otherwise("none, unless with --kubeconfig-mode proxy")
            .alone(ProxyPlace::ANYWHERE),
        /// What the proxy does with all other names: `refuse`, or `direct`, which connects to them from here, through
        /// the proxy of HTTPS_PROXY and HTTP_PROXY where there is one
        proxy_others: ProxyOthers = choice::<ProxyOthers>("WHAT").default("refuse"),
        /// Prefix of the context names
        context_prefix: String =
            text("PREFIX", is_context_prefix, "a prefix: at most 64 characters without spaces").default("pa-"),
        /// How long to wait until all tunnels are ready
        timeout: Duration = duration("1s", "24h").default("60s").otherwise("one minute, and three where a task may have to be started"),
        /// What makes a forward ready: that the other end of its session takes connections, or that the host has accepted one
        check: ForwardCheck = choice::<ForwardCheck>("CHECK").default("agent"),
        // The default is several in each minute in which a session may idle out.
        /// How often each tunnel is proved to work, which also keeps its session from idling out; 0: only once
        probe_interval: Duration = duration_or_zero("1s", "1h").default("30s"),
        /// How long to try to resume a lost session, which keeps open connections, before starting a new one
        reconnect_timeout: Duration = duration("1s", "1h").default("90s"),
        // Each costs a call and a line in CloudTrail. In parallel they were observed to carry up to about 10 MB/s together, which
        // eleven reach.
        /// Maximum number of sessions for a cluster, 1 to 16. An agent sends 0.6 to 0.8 MB/s through one, and small requests queue
        /// behind large ones. More are started when connections come while the others carry data; these connections wait up to 2 s
        /// for them. `auto`: a second one while the first has been busy for two seconds, so that nothing waits for it, but not on
        /// tasks of ECS, which take a few. An additional session ends after a minute without connections
        sessions: Sessions = text("N", is_sessions, Sessions::EXPECTED).default("auto").bare(),
        /// Binds the ports and writes the contexts as always, and starts a cluster's session with the first connection, which
        /// waits for it. One session for each bastion is started at once, so that `tunnel ready` means that there can be one
        on_demand: bool = switch(),
        /// With `--on-demand`, how long a session is kept without connections; a manager that kubectl has started ends then as well
        idle: Duration = duration("10s", "24h").default("15m"),
        // Agents took 32 KiB in one message (`StreamDataPayloadSize` of the official client is 1024, and agents have no limit of
        // their own); less than 256 would be mostly headers.
        /// Payload of each message that is sent, in bytes: larger ones carry more, but not every agent handles them well
        payload_size: Option<usize> = number("BYTES", "a number of bytes", 256, 32768).otherwise("1024"),
        /// Sends as fast as the agent accepts data. AWS pauses, then closes sessions with more than about 1000 messages a second,
        /// so this is only for endpoints of your own
        no_rate_limit: bool = switch(),
        /// Serves metrics for Prometheus at `http://127.0.0.1:PORT/metrics`, to programs of all users of this machine; or at an IP
        /// address and a port
        metrics: Option<MetricsAddress> =
            text("ADDR", is_metrics_address, MetricsAddress::EXPECTED).otherwise("nowhere").bare(),
        /// File to add a line of JSON to for each connection that is opened or closed, with the program that has opened it, the
        /// session that carried it, and how many bytes. A new file is begun after 16 MiB, and four older ones are kept
        audit: Option<PathBuf> = path(),
        /// File to write shell lines to that set KUBECONFIG, for sourcing when the tunnels are ready
        env_file: Option<PathBuf> = path(),
    } {
        /// What all commands share.
        pub common: Settings,
        /// The accesses, in the order of their ports; never empty.
        pub access: Vec<Access>,
        /// The file by which a step of a GitHub Actions job sets variables of later ones.
        pub github_env: Option<PathBuf>,
        /// What a manager has to be given to be started like this from anywhere.
        pub launch: Launch,
        /// Nothing but contexts is wanted, by which kubectl starts the manager.
        pub contexts_only: bool,
        /// The time in which tunnels wait for somebody's approval is not part of [`timeout`](Self::timeout), which nobody has
        /// given.
        pub waits_for_people: bool,
        /// kubectl has started the manager, so it ends when it has not been used for [`idle`](Self::idle).
        pub ends_unused: bool,
    }
}

#[cfg(test)]
pub(crate) mod tests;

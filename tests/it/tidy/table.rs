//! Who may use whom. A row of a module holds for all that is below it and has no row of its own.

/// What a module may use besides itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) module: &'static str,
    /// Modules of this crate, with all that is below them; those after a `!` it may not use all the same.
    pub(super) may: &'static [&'static str],
    pub(super) crates: Crates,
}

/// What it may use of other crates.
#[derive(Debug, Clone, Copy)]
pub(super) enum Crates {
    Any,
    /// All but these.
    Not(&'static [&'static str]),
    /// These and no others, without what is named in the second list.
    Only(&'static [&'static str], &'static [&'static str]),
}

const fn row(module: &'static str, may: &'static [&'static str]) -> Row {
    Row { module, may, crates: Crates::Any }
}

/// A module that has no row may use all but `cli`.
///
/// `manager` needs none, and `cli` may use everything.
pub(super) const TABLE: &[Row] = &[
    row("util", &[]),
    row("version", &[]),
    row("bastion", &["util"]),
    row("cluster", &[]),
    row("forward", &["cluster"]),
    row("remote", &["cluster"]),
    row("fault", &[]),
    row("secret", &[]),
    row("random", &[]),
    row("overlap", &[]),
    row("clock", &["util"]),
    row("journal", &["util"]),
    row("settings", &["bastion", "cluster", "forward", "secret", "util"]),
    // The seam knows none of the ways, and each of them knows the seam.
    row("route", &["clock", "cluster", "fault", "remote", "util", "!route::direct", "!route::ssh", "!route::ssm"]),
    // All ways in stand in one list.
    row("route::list", &["aws", "bastion", "iam", "journal", "remote", "route"]),
    row(
        "route::direct",
        &[
            "aws",
            "bastion",
            "clock",
            "cluster",
            "fault",
            "remote",
            "route",
            "util",
            "!route::list",
            "!route::ssh",
            "!route::ssm",
        ],
    ),
    row(
        "route::ssm",
        &[
            "aws",
            "bastion",
            "clock",
            "cluster",
            "fault",
            "iam",
            "journal",
            "overlap",
            "remote",
            "route",
            "secret",
            "util",
            "!route::direct",
            "!route::list",
            "!route::ssh",
        ],
    ),
    row(
        "route::ssh",
        &[
            "aws",
            "bastion",
            "clock",
            "cluster",
            "fault",
            "iam",
            "remote",
            "route",
            "util",
            "!route::direct",
            "!route::list",
            "!route::ssm",
        ],
    ),
    Row {
        module: "route::ssm::proto",
        may: &["util::peer_text", "util::time"],
        crates: Crates::Only(
            &["std", "bytes", "serde", "serde_json", "sha2", "itoa", "thiserror", "tracing", "uuid"],
            &[
                "std::env",
                "std::fs",
                "std::net",
                "std::process",
                "std::thread",
                "std::time::Instant",
                "std::time::SystemTime",
            ],
        ),
    },
    row(
        "tunnel",
        &[
            "clock",
            "cluster",
            "fault",
            "remote",
            "route",
            "secret",
            "util",
            "!route::direct",
            "!route::list",
            "!route::ssh",
            "!route::ssm",
        ],
    ),
    row("aws", &["fault", "settings", "util"]),
    row("iam", &["bastion", "cluster", "util"]),
    row("setup", &["aws", "bastion", "cluster", "iam", "route::list", "settings", "util"]),
    row("kubeconfig", &["cluster", "secret", "clock", "util"]),
    row(
        "doctor",
        &[
            "aws",
            "bastion",
            "fault",
            "tunnel",
            "route",
            "remote",
            "cluster",
            "clock",
            "secret",
            "settings",
            "setup",
            "kubeconfig",
            "iam",
            "util",
        ],
    ),
    // It has an agent and signatures of its own, so that no error of the client hides in code that both have.
    Row {
        module: "emulator",
        may: &["route::ssm::proto::handshake", "route::ssm::proto::message", "route::ssm::proto::smux::frame"],
        crates: Crates::Not(&["aws_sigv4"]),
    },
];

/// What is used all the same until the house is rebuilt, each with who uses it. What nobody uses any more has to go from here.
pub(super) const YET: &[(&str, &str)] = &[
    ("aws", "clock"),
    ("aws", "cluster"),
    ("aws", "iam"),
    ("aws", "random"),
    ("aws", "secret"),
    ("emulator", "random"),
    ("route::ssm::proto", "random"),
    ("util", "random"),
    ("util", "secret"),
];

/// Of two modules that use each other, the use that is to go. What is no circle any more has to go from here.
pub(super) const CIRCLES_YET: &[(&str, &str)] = &[];

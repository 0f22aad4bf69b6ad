//! What a manager says of itself, as Prometheus and its kin read it: made of its status, so that the two never differ.
//!
//! There are two ways to write the same. The text format of Prometheus (version 0.0.4) is what everything reads, `promtool` and
//! files for the node exporter included. OpenMetrics 1.0.0 differs in how counters are declared, and is for those who ask for it.
//!
//! Invariants: names follow the conventions (base units, `_total` for what only grows); no label has a value that moves, but
//! those of `_info`.

use std::{fmt::Write, net::SocketAddr, time::SystemTime};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    ManagerError,
    control::{ManagerStatus, TunnelReport},
};
use crate::{
    tunnel::{Admission, Listeners},
    util::written::Timestamp,
};

mod serve;
#[cfg(test)]
mod tests;

/// How metrics are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus.
    #[default]
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// The type of content that it is served as.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Chooses what somebody takes who says so in a header.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let takes =
            |part: &str| part.split(';').next().is_some_and(|kind| kind.trim() == "application/openmetrics-text");
        if accept.split(',').any(takes) { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// The states of a manager, as [`ManagerStatus::state`] has them.
const MANAGER_STATES: [&str; 5] = ["starting", "active", "degraded", "failed", "stopping"];

/// The states of a tunnel, as [`TunnelReport::state`] has them.
const TUNNEL_STATES: [&str; 7] = ["starting", "active", "idle", "reconnecting", "degraded", "failed", "stopped"];

/// Serves the metrics at an address in one of the tasks, and returns where.
///
/// # Errors
/// [`ManagerError::MetricsPort`] if there is no such port.
pub(super) fn start(
    address: SocketAddr,
    status: impl Fn() -> ManagerStatus + Clone + Send + Sync + 'static,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Result<SocketAddr, ManagerError> {
    let listeners = Listeners::at(address, Admission::everyone()).map_err(ManagerError::MetricsPort)?;
    let bound = SocketAddr::new(address.ip(), listeners.port());
    tasks.spawn(serve::serve(listeners, address.ip().is_loopback(), status, stop.clone()));
    Ok(bound)
}

/// Writes the metrics of a manager.
#[must_use]
pub fn text(status: &ManagerStatus, format: Format) -> String {
    let mut page = Page { text: String::new(), format };
    let tunnels = &status.tunnels;
    page.info("autoheal_pa_build_info", "The version of autoheal-pa.", [vec![("version", env!("CARGO_PKG_VERSION"))]]);
    page.gauge(
        "autoheal_pa_start_time_seconds",
        "When the manager was started, in Unix time.",
        [(Labels::<&str>::new(), seconds(&status.started_at))],
    );
    let name = status.name.as_str();
    page.states(
        "autoheal_pa_manager_state",
        "The state of the manager: 1 for the one that it is in.",
        &MANAGER_STATES,
        [(vec![("manager", name)], status.state.as_str())],
    );
    let expiries = status.access.iter().filter_map(|access| {
        let labels = vec![("region", access.region.as_str()), ("account", access.account.as_str())];
        Some((labels, seconds(access.credentials_expire.as_ref()?)))
    });
    page.gauge(
        "autoheal_pa_credentials_expiry_timestamp_seconds",
        "When the AWS credentials expire, in Unix time.",
        expiries,
    );

    let of = |tunnel: &TunnelReport| vec![("tunnel", tunnel.context.clone())];
    page.info(
        "autoheal_pa_tunnel_info",
        "Where a tunnel leads, and by what.",
        tunnels.iter().map(|tunnel| {
            let port = tunnel.port.to_string();
            let bastion = tunnel.bastion.clone().unwrap_or_default();
            vec![
                ("tunnel", tunnel.context.clone()),
                ("kind", if tunnel.forward.is_some() { "forward" } else { "cluster" }.to_owned()),
                ("name", tunnel.cluster.clone()),
                ("endpoint", tunnel.endpoint.clone()),
                ("region", tunnel.region.clone()),
                ("account", tunnel.account.clone()),
                ("port", port),
                ("bastion", bastion),
            ]
        }),
    );
    let states = tunnels.iter().map(|tunnel| (of(tunnel), tunnel.state.as_str()));
    page.states(
        "autoheal_pa_tunnel_state",
        "The state of a tunnel: 1 for the one that it is in.",
        &TUNNEL_STATES,
        states,
    );
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&TunnelReport) -> Option<f64>| {
        page.gauge(name, help, tunnels.iter().filter_map(|tunnel| Some((of(tunnel), value(tunnel)?))));
    };
    gauge("autoheal_pa_tunnel_ready", "Whether a tunnel can be used: it works, or is idle.", &|tunnel| {
        Some(f64::from(u8::from(tunnel.is_ready())))
    });
    gauge("autoheal_pa_tunnel_open_connections", "Local connections that are open.", &|tunnel| {
        Some(tunnel.open_connections as f64)
    });
    gauge("autoheal_pa_tunnel_sessions", "Sessions that carry a tunnel.", &|tunnel| Some(tunnel.sessions.len() as f64));
    gauge("autoheal_pa_tunnel_probe_round_trip_seconds", "How long the last successful probe took.", &|tunnel| {
        tunnel.probe_rtt_ms.map(|ms| ms as f64 / 1000.0)
    });
    gauge("autoheal_pa_tunnel_probe_timestamp_seconds", "When that probe ended, in Unix time.", &|tunnel| {
        tunnel.probed_at.as_ref().map(seconds)
    });
    gauge(
        "autoheal_pa_tunnel_error_timestamp_seconds",
        "When something last went wrong with a tunnel, in Unix time.",
        &|tunnel| tunnel.last_error_at.as_ref().map(seconds),
    );
    let mut counter = |name: &str, help: &str, value: &dyn Fn(&TunnelReport) -> u64| {
        page.counter(name, help, tunnels.iter().map(|tunnel| (of(tunnel), value(tunnel))));
    };
    counter("autoheal_pa_tunnel_connections", "Local connections that have been carried.", &|tunnel| {
        tunnel.connections_total
    });
    counter("autoheal_pa_tunnel_sent_bytes", "Bytes from local programs.", &|tunnel| tunnel.bytes_sent);
    counter("autoheal_pa_tunnel_received_bytes", "Bytes for local programs.", &|tunnel| tunnel.bytes_received);
    counter("autoheal_pa_tunnel_resumes", "How often a session got another WebSocket.", &|tunnel| tunnel.resumes);
    counter("autoheal_pa_tunnel_restarts", "How often a session was replaced by a new one.", &|tunnel| tunnel.restarts);
    if let Some(proxy) = &status.proxy {
        let none = Vec::<(&str, String)>::new;
        page.gauge(
            "autoheal_pa_proxy_open_connections",
            "Clients of the proxy that are connected.",
            [(none(), proxy.open_connections as f64)],
        );
        page.counter(
            "autoheal_pa_proxy_connections",
            "Clients that have connected to the proxy.",
            [(none(), proxy.connections_total)],
        );
        page.counter(
            "autoheal_pa_proxy_refused",
            "Requests that the proxy has refused.",
            [(none(), proxy.refused_total)],
        );
    }
    page.text.push_str("# EOF\n");
    page.text
}

fn seconds(at: &Timestamp) -> f64 {
    at.time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Names and values of labels.
type Labels<V> = Vec<(&'static str, V)>;

struct Page {
    text: String,
    format: Format,
}

impl Page {
    /// Declares a family, if it has anything to say.
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _infallible = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            let _infallible = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    fn sample<V: AsRef<str>>(&mut self, name: &str, labels: &Labels<V>, value: impl std::fmt::Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value.as_ref()))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _infallible = writeln!(self.text, "{name}{labels} {value}");
    }

    fn gauge<V: AsRef<str>>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<V>, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.head(name, "gauge", help);
        }
        samples.for_each(|(labels, value)| self.sample(name, &labels, value));
    }

    /// Adds what only grows; the name is without `_total`.
    fn counter<V: AsRef<str>>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<V>, u64)>) {
        let total = format!("{name}_total");
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            // The one place in which the two formats do not have the same text.
            self.head(if self.format == Format::OpenMetrics { name } else { &total }, "counter", help);
        }
        samples.for_each(|(labels, value)| self.sample(&total, &labels, value));
    }

    /// Adds what is told by labels alone; the name ends in `_info`.
    fn info<V: AsRef<str>>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Labels<V>>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            match (self.format, name.strip_suffix("_info")) {
                (Format::OpenMetrics, Some(family)) => self.head(family, "info", help),
                (Format::OpenMetrics | Format::Prometheus, _) => self.head(name, "gauge", help),
            }
        }
        samples.for_each(|labels| self.sample(name, &labels, 1));
    }

    /// Adds a sample for each state that something may be in.
    fn states<'a, V: AsRef<str> + Clone>(
        &mut self,
        name: &str,
        help: &str,
        all: &[&'static str],
        samples: impl IntoIterator<Item = (Labels<V>, &'a str)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.head(name, "gauge", help);
        }
        for (labels, state) in samples {
            for one in all {
                let labels =
                    labels.iter().map(|(name, value)| (*name, value.as_ref())).chain([("state", *one)]).collect();
                self.sample(name, &labels, u8::from(*one == state));
            }
        }
    }
}

/// Writes the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

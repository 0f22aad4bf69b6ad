//! The names that the proxy leads to: which host and port is behind which local port.

use std::{collections::BTreeMap, net::IpAddr};

use crate::cluster::Destination;

/// Most names that a sentence lists.
const MAX_LISTED: usize = 4;

/// Which endpoint is behind which local port. Hosts are compared as DNS and IP compare them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names(BTreeMap<(String, u16), u16>);

impl Names {
    /// Returns the port of the tunnel that leads to an endpoint.
    pub(super) fn port(&self, endpoint: &Destination) -> Option<u16> {
        self.0.get(&key(endpoint)).copied()
    }

    /// Says in words where tunnels lead, those first that are most like what was asked for.
    pub(super) fn listed(&self, asked: &Destination) -> String {
        let (host, _) = key(asked);
        let (same, others): (Vec<_>, Vec<_>) = self.0.keys().partition(|(known, _)| *known == host);
        let all = same.into_iter().chain(others);
        let name = |(host, port): &(String, u16)| format!("`{}`", Destination { host: host.clone(), port: *port });
        let listed: Vec<_> = all.take(MAX_LISTED).map(name).collect();
        match (listed.len(), self.0.len() - listed.len()) {
            (0, _) => "there is none yet".to_owned(),
            (_, 0) => format!("there are those to {}", listed.join(", ")),
            (_, more) => format!("there are those to {} and {more} more", listed.join(", ")),
        }
    }
}

impl FromIterator<(Destination, u16)> for Names {
    /// The first of several with one name counts.
    fn from_iter<I: IntoIterator<Item = (Destination, u16)>>(names: I) -> Self {
        let mut all = BTreeMap::new();
        for (endpoint, port) in names {
            all.entry(key(&endpoint)).or_insert(port);
        }
        Self(all)
    }
}

/// Brings an endpoint to the form in which endpoints are compared.
pub(super) fn key(endpoint: &Destination) -> (String, u16) {
    let host = match endpoint.host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        // With the dot at its end a name is a whole one, as it is here without.
        Err(_) => endpoint.host.strip_suffix('.').unwrap_or(&endpoint.host).to_ascii_lowercase(),
    };
    (host, endpoint.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(host: &str, port: u16) -> Destination {
        Destination { host: host.to_owned(), port }
    }

    #[test]
    fn hosts_are_compared_as_dns_and_ip_compare_them() {
        let names: Names =
            [(to("DB.internal", 5432), 1), (to("FD00:0::1", 443), 2), (to("10.0.0.1", 80), 3)].into_iter().collect();
        for (host, port, wanted) in [
            ("db.internal", 5432, Some(1)),
            ("DB.INTERNAL.", 5432, Some(1)),
            ("db.internal", 5433, None),
            ("xdb.internal", 5432, None),
            ("fd00::1", 443, Some(2)),
            ("::ffff:10.0.0.1", 80, Some(3)),
            ("", 80, None),
        ] {
            assert_eq!(names.port(&to(host, port)), wanted, "{host}:{port}");
        }
        let twice: Names = [(to("a", 1), 1), (to("A", 1), 2)].into_iter().collect();
        assert_eq!(twice.port(&to("a", 1)), Some(1));
    }

    #[test]
    fn the_likeliest_are_listed_first() {
        let of = |count: u16| -> Names { (1..=count).map(|n| (to(&format!("h{n}"), 443), n)).collect() };
        assert_eq!(of(0).listed(&to("x", 1)), "there is none yet");
        assert_eq!(of(2).listed(&to("h2", 80)), "there are those to `h2:443`, `h1:443`");
        assert_eq!(of(9).listed(&to("h7", 80)), "there are those to `h7:443`, `h1:443`, `h2:443`, `h3:443` and 5 more");
    }
}

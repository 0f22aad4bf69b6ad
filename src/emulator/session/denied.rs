//! What hosts lead to, and which addresses agents refuse to forward to, by their version.
//!
//! Follows `DefaultDeniedPortForwardingRemoteIPs` (`agent/appconfig/constants.go`) and `validateParameters`
//! (`agent/session/plugins/port/port.go`) of amazon-ssm-agent up to 3.3.1142.0, and the release notes of 3.3.4851.0 and
//! 3.3.5068.0, whose code was not at hand: what the last one adds is a guess. Left out: the first four addresses and the
//! last of a VPC's primary address blocks, which the emulated one does not have.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::route::ssm::proto::handshake::Version;

const fn v4(third: u8, fourth: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(169, 254, third, fourth))
}

const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, last))
}

/// Metadata, DNS, time, and two of EC2's own; from the first agent that forwards to remote hosts.
const ALWAYS: [IpAddr; 6] = [v4(169, 254), v6(0x254), v4(169, 253), v6(0x253), v4(169, 123), v4(169, 250)];

/// The first agent with [`SINCE_2024`].
const FIRST_OF_2024: Version = Version([3, 3, 551, 0]);

/// Their IPv6 forms, and one more.
const SINCE_2024: [IpAddr; 3] = [v6(0x123), v4(169, 251), v6(0x240)];

/// The first agent that refuses loopback and [`CREDENTIALS`], and compares addresses in one form.
const FIRST_WITHOUT_LOOPBACK: Version = Version([3, 3, 4851, 0]);

/// Where tasks of ECS and pods of EKS get their credentials.
const CREDENTIALS: [IpAddr; 3] = [v4(170, 2), v4(170, 23), v6(0x23)];

/// The first agent that also looks into addresses which hold another, and at those that stand for this host.
const FIRST_WITH_EMBEDDED: Version = Version([3, 3, 5068, 0]);

/// The addresses of a host, as the resolver of the bastion gives them; none for a name that is only routed. Addresses in
/// any spelling stand for themselves.
pub(super) fn lookup(host: &str, known: &BTreeMap<String, IpAddr>) -> Vec<String> {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let (address, _zone) = without_zone(host);
    if address.parse::<IpAddr>().is_ok() {
        return vec![host.to_owned()];
    }
    if let Some(address) = loose_ipv4(&name) {
        return vec![address.to_string()];
    }
    if name == "localhost" || name.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.to_string(), Ipv6Addr::LOCALHOST.to_string()];
    }
    known.get(host).or_else(|| known.get("*")).map(ToString::to_string).into_iter().collect()
}

/// Whether an agent of this version refuses an address; one whose version cannot be read counts as new.
pub(super) fn is_denied(version: &str, address: &str) -> bool {
    let is_since = |first: Version| Version::parse(version).is_none_or(|version| version >= first);
    // Older agents read no zone, and what they cannot read they do not refuse.
    let (bare, zone) = without_zone(address);
    let Some(address) = bare.parse::<IpAddr>().ok().filter(|_| zone.is_none() || is_since(FIRST_WITHOUT_LOOPBACK))
    else {
        return false;
    };
    let forms = [Some(address.to_canonical()), embedded(address).filter(|_| is_since(FIRST_WITH_EMBEDDED))];
    forms.into_iter().flatten().any(|address| {
        ALWAYS.contains(&address)
            || (is_since(FIRST_OF_2024) && SINCE_2024.contains(&address))
            || (is_since(FIRST_WITHOUT_LOOPBACK) && (address.is_loopback() || CREDENTIALS.contains(&address)))
            || (is_since(FIRST_WITH_EMBEDDED) && address.is_unspecified())
    })
}

fn without_zone(address: &str) -> (&str, Option<&str>) {
    address.split_once('%').map_or((address, None), |(address, zone)| (address, Some(zone)))
}

/// The IPv4 address in an IPv6 address that is made of one: `::a.b.c.d`, or as NAT64 writes it.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let is_embedding = matches!(address.segments(), [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..]);
    let octets = address.octets();
    is_embedding.then(|| Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into())
}

/// Reads an IPv4 address as the C library does: one to four numbers, each decimal, octal or hexadecimal, the last of which
/// fills what is left.
fn loose_ipv4(text: &str) -> Option<Ipv4Addr> {
    let numbers: Vec<u32> = text.split('.').map(loose_number).collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    let bits = 32_u32.checked_sub(8 * u32::try_from(first.len()).ok()?).filter(|bits| *bits > 0)?;
    if first.iter().any(|number| *number > 0xff) || u64::from(*last) >= 1_u64 << bits {
        return None;
    }
    let high = first.iter().zip([24, 16, 8]).fold(0, |high, (number, shift)| high | number << shift);
    Some(Ipv4Addr::from_bits(high | last))
}

fn loose_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix('0') {
        None => (text, 10),
        Some("") => ("0", 10),
        Some(rest) => rest.strip_prefix('x').map_or((rest, 8), |rest| (rest, 16)),
    };
    let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    u32::from_str_radix(digits, radix).ok().filter(|_| are_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(version: &str, host: &str) -> bool {
        lookup(host, &BTreeMap::new()).iter().any(|address| is_denied(version, address))
    }

    #[test]
    fn each_agent_refuses_what_those_before_it_did_and_more() {
        let agents = ["3.1.1374.0", "3.2.1041.0", "3.3.551.0", "3.3.1142.0", "3.3.4851.0", "3.3.5068.0", "odd"];
        for (host, first) in [
            ("169.254.169.254", Some("3.1.1374.0")),
            ("fd00:ec2::254", Some("3.1.1374.0")),
            ("fd00:0ec2:0:0::0253", Some("3.1.1374.0")),
            ("::ffff:169.254.169.253", Some("3.1.1374.0")),
            ("2852039166", Some("3.1.1374.0")),
            ("0xa9.254.0xa9fe", Some("3.1.1374.0")),
            ("169.254.169.251", Some("3.3.551.0")),
            ("fd00:ec2::123", Some("3.3.551.0")),
            ("fd00:ec2::240", Some("3.3.551.0")),
            ("127.0.0.1", Some("3.3.4851.0")),
            ("127.255.255.254", Some("3.3.4851.0")),
            ("127.1", Some("3.3.4851.0")),
            ("0177.0.0.01", Some("3.3.4851.0")),
            ("0x7f000001", Some("3.3.4851.0")),
            ("::1", Some("3.3.4851.0")),
            ("0:0:0:0:0:0:0:1", Some("3.3.4851.0")),
            ("::1%lo", Some("3.3.4851.0")),
            ("::ffff:127.0.0.1", Some("3.3.4851.0")),
            ("::ffff:7f00:1", Some("3.3.4851.0")),
            ("localhost", Some("3.3.4851.0")),
            ("LocalHost.", Some("3.3.4851.0")),
            ("db.localhost", Some("3.3.4851.0")),
            ("169.254.170.2", Some("3.3.4851.0")),
            ("169.254.170.23", Some("3.3.4851.0")),
            ("fd00:ec2::23", Some("3.3.4851.0")),
            ("fd00:ec2::254%eth0", Some("3.3.4851.0")),
            ("0.0.0.0", Some("3.3.5068.0")),
            ("0", Some("3.3.5068.0")),
            ("::", Some("3.3.5068.0")),
            ("::127.0.0.1", Some("3.3.5068.0")),
            ("64:ff9b::169.254.169.254", Some("3.3.5068.0")),
            ("10.0.0.2", None),
            ("169.254.169.252", None),
            ("fd00:ec2::24", None),
            ("128.0.0.1", None),
            ("127.0.0.256", None),
            ("127.0.0.0.1", None),
            ("4294967296", None),
            ("localhost.example", None),
            ("db.internal", None),
        ] {
            let from = first.map_or(agents.len(), |first| agents.iter().position(|agent| *agent == first).unwrap());
            for (index, agent) in agents.iter().enumerate() {
                assert_eq!(refuses(agent, host), index >= from, "{host} and agent {agent}");
            }
        }
    }

    #[test]
    fn a_name_stands_for_its_address() {
        let known = BTreeMap::from([("a".to_owned(), IpAddr::from([127, 0, 0, 2])), ("*".to_owned(), v6(0x23))]);
        assert_eq!(lookup("a", &known), ["127.0.0.2"]);
        assert_eq!(lookup("b", &known), ["fd00:ec2::23"]);
        assert_eq!(lookup("10.0.0.9", &known), ["10.0.0.9"]);
    }
}

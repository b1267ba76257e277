//! Which addresses may be connected to. Pure: callers resolve, this decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// The policy on connected addresses: public unicast only, plus the networks the operator allowed, minus our own endpoints.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allow: Vec<IpNet>,
    blocked: Vec<SocketAddr>,
}

impl AddressPolicy {
    /// `blocked` endpoints are refused even inside `allow`; one with the unspecified address stands for its port on every address that is not public.
    pub fn new(allow: Vec<IpNet>, blocked: Vec<SocketAddr>) -> Self {
        Self { allow, blocked }
    }

    /// The same from texts: networks as CIDR, endpoints as `ip:port`. Errors: the one that cannot be read.
    pub fn parse(allow: &[String], blocked: &[String]) -> Result<Self, String> {
        let allow = allow.iter().map(|text| text.parse().map_err(|_| text.clone())).collect::<Result<_, _>>()?;
        let blocked = blocked.iter().map(|text| text.parse().map_err(|_| text.clone())).collect::<Result<_, _>>()?;
        Ok(Self::new(allow, blocked))
    }

    /// Whether the address may be connected to; the error names what it is.
    pub fn check(&self, address: SocketAddr) -> Result<(), &'static str> {
        let ip = address.ip();
        let special = classify(ip);
        if ip.is_unspecified() {
            // The kernel takes it for loopback, so that an allowed network could not mean it.
            return Err("unspecified");
        }
        if self.blocked.iter().any(|own| is_own(*own, address, special.is_some())) {
            return Err("an endpoint of this service");
        }
        match special {
            Some(reason) if !self.allow.iter().any(|net| net.contains(&ip)) => Err(reason),
            _ => Ok(()),
        }
    }

    /// The same for every answer of a name: one refused address refuses the name, because mixed answers are how a rebinding name hides.
    pub fn check_all(&self, addresses: &[SocketAddr]) -> Result<(), (SocketAddr, &'static str)> {
        addresses.iter().try_for_each(|address| self.check(*address).map_err(|reason| (*address, reason)))
    }
}

fn is_own(own: SocketAddr, target: SocketAddr, special: bool) -> bool {
    own.port() == target.port() && (own.ip() == unmapped(target.ip()) || (own.ip().is_unspecified() && special))
}

fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// What kind of special address it is; `None` for public unicast.
pub fn classify(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

fn classify_v4(ip: Ipv4Addr) -> Option<&'static str> {
    Some(match ip.octets() {
        [0, ..] => "this network",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared (CGNAT)",
        [127, ..] => "loopback",
        [169, 254, ..] => "link-local",
        [192, 0, 0, _] => "protocol assignment",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "documentation",
        [192, 88, 99, _] => "6to4 relay",
        [198, 18..=19, ..] => "benchmarking",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved",
        _ => return None,
    })
}

fn classify_v6(ip: Ipv6Addr) -> Option<&'static str> {
    Some(match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0, ..] => "IPv4-compatible",
        [0, 0, 0, 0, 0, 0xffff, ..] => "IPv4-mapped",
        [0x64, 0xff9b, ..] => "NAT64",
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xff00..=0xffff, ..] => "multicast",
        [0x2001, 0, ..] => "Teredo",
        [0x2001, 0x1..=0x1ff, ..] => "protocol assignment",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "documentation",
        [0x2002, ..] => "6to4",
        // Global unicast is 2000::/3; the rest is not handed out to anyone.
        [0x2000..=0x3fff, ..] => return None,
        _ => "reserved",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn allowed_networks_open_what_is_special_and_nothing_else() {
        let policy = AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()], vec![]);
        assert_eq!(policy.check(socket("127.0.0.1:80")), Ok(()));
        assert_eq!(policy.check(socket("93.184.216.34:80")), Ok(()));
        assert!(policy.check(socket("10.0.0.1:80")).is_err());
        assert!(policy.check(socket("[::1]:80")).is_err());
        assert!(policy.check(socket("[::ffff:127.0.0.1]:80")).is_err());
    }

    #[test]
    fn own_endpoints_stay_closed_inside_allowed_networks() {
        let nets = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let policy = AddressPolicy::new(nets, vec![socket("127.0.0.1:8080"), socket("0.0.0.0:9464"), socket("203.0.113.9:9000")]);
        let table = [
            ("127.0.0.1:8080", false),
            ("[::ffff:127.0.0.1]:8080", false),
            ("127.0.0.1:8081", true),
            ("127.0.0.1:9464", false),
            ("10.1.2.3:9464", false),
            ("93.184.216.34:9464", true),
            ("203.0.113.9:9000", false),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
        ];
        for (address, allowed) in table {
            assert_eq!(policy.check(socket(address)).is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn one_refused_answer_refuses_the_name() {
        let policy = AddressPolicy::default();
        let answers = [socket("93.184.216.34:80"), socket("127.0.0.1:80")];
        assert_eq!(policy.check_all(&answers), Err((answers[1], "loopback")));
        assert_eq!(policy.check_all(&answers[..1]), Ok(()));
    }
}

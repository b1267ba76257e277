//! Every IPv4 address and ten million IPv6 ones against IANA's registries (cases 1 to 3 of docs/hostile-cases.md).
//!
//! The tables are the registries' own rows with the registries' own word on reachability: "IPv4 Special-Purpose Address Space" and its IPv6 sister,
//! the multicast registry and the allocation of the IPv6 address space. Nothing here was taken from the policy that it judges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fetchbox_engine::classify;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Whether the registry calls a network globally reachable, and what FetchBox makes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    /// Not reachable from everywhere: refused.
    Local,
    /// Reachable, and for web servers as good as any other: allowed.
    Global,
    /// The registry lets it pass or says nothing, but it can lead inside or is nobody's: refused all the same.
    Refused,
}
use Row::{Global, Local, Refused};

const IPV4: [(&str, Row, &str); 25] = [
    ("0.0.0.0/8", Local, "this network"),
    ("0.0.0.0/32", Local, "this host on this network"),
    ("10.0.0.0/8", Local, "private use"),
    ("100.64.0.0/10", Local, "shared address space"),
    ("127.0.0.0/8", Local, "loopback"),
    ("169.254.0.0/16", Local, "link-local"),
    ("172.16.0.0/12", Local, "private use"),
    ("192.0.0.0/24", Local, "IETF protocol assignments"),
    ("192.0.0.0/29", Local, "IPv4 service continuity prefix"),
    ("192.0.0.8/32", Local, "IPv4 dummy address"),
    ("192.0.0.9/32", Refused, "port control protocol anycast: a router's, not a web server's"),
    ("192.0.0.10/32", Refused, "TURN anycast: the same"),
    ("192.0.0.170/31", Local, "NAT64 discovery"),
    ("192.0.2.0/24", Local, "documentation"),
    ("192.31.196.0/24", Global, "AS112"),
    ("192.52.193.0/24", Global, "AMT"),
    ("192.88.99.0/24", Refused, "6to4 relay anycast, deprecated"),
    ("192.168.0.0/16", Local, "private use"),
    ("192.175.48.0/24", Global, "direct delegation AS112"),
    ("198.18.0.0/15", Local, "benchmarking"),
    ("198.51.100.0/24", Local, "documentation"),
    ("203.0.113.0/24", Local, "documentation"),
    ("224.0.0.0/4", Refused, "multicast: its own registry"),
    ("240.0.0.0/4", Local, "reserved"),
    ("255.255.255.255/32", Local, "limited broadcast"),
];

const IPV6: [(&str, Row, &str); 36] = [
    ("::1/128", Local, "loopback"),
    ("::/128", Local, "unspecified"),
    ("::ffff:0:0/96", Local, "IPv4-mapped"),
    ("::/96", Refused, "IPv4-compatible, deprecated"),
    ("64:ff9b::/96", Refused, "IPv4-IPv6 translation: holds any IPv4 address"),
    ("64:ff9b:1::/48", Local, "IPv4-IPv6 translation, local"),
    ("100::/64", Local, "discard only"),
    ("100:0:0:1::/64", Local, "dummy prefix"),
    ("2001::/23", Local, "IETF protocol assignments"),
    ("2001::/32", Refused, "Teredo: holds any IPv4 address"),
    ("2001:1::1/128", Refused, "port control protocol anycast"),
    ("2001:1::2/128", Refused, "TURN anycast"),
    ("2001:1::3/128", Refused, "DNS-SD registration anycast"),
    ("2001:2::/48", Local, "benchmarking"),
    ("2001:3::/32", Refused, "AMT, inside the protocol assignments"),
    ("2001:4:112::/48", Refused, "AS112, inside the protocol assignments"),
    ("2001:10::/28", Refused, "ORCHID, deprecated"),
    ("2001:20::/28", Refused, "ORCHIDv2: no locators"),
    ("2001:30::/28", Refused, "drone identifiers: no locators"),
    ("2001:db8::/32", Local, "documentation"),
    ("2002::/16", Refused, "6to4: holds any IPv4 address"),
    ("2620:4f:8000::/48", Global, "direct delegation AS112"),
    ("3fff::/20", Local, "documentation"),
    ("5f00::/16", Local, "segment routing"),
    ("fc00::/7", Local, "unique local"),
    ("fe80::/10", Local, "link-local"),
    ("fec0::/10", Refused, "site-local, deprecated"),
    ("ff00::/8", Refused, "multicast: its own registry"),
    // Of the address space only 2000::/3 is allocated as global unicast.
    ("::/8", Refused, "reserved"),
    ("100::/8", Refused, "reserved"),
    ("200::/7", Refused, "reserved"),
    ("400::/6", Refused, "reserved"),
    ("800::/5", Refused, "reserved"),
    ("1000::/4", Refused, "reserved"),
    ("4000::/2", Refused, "reserved"),
    ("8000::/1", Refused, "reserved or local"),
];

/// What is refused, as ranges in order that neither touch nor overlap.
fn merged(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    merged
}

fn refused_v4() -> Vec<(u128, u128)> {
    let bits = |ip: Ipv4Addr| u128::from(u32::from(ip));
    merged(rows_v4(|row| row != Global).map(|net| (bits(net.network()), bits(net.broadcast()))).collect())
}

fn rows_v4(wanted: impl Fn(Row) -> bool) -> impl Iterator<Item = Ipv4Net> {
    IPV4.into_iter().filter(move |(_, row, _)| wanted(*row)).map(|(net, ..)| net.parse().unwrap())
}

fn rows_v6(wanted: impl Fn(Row) -> bool) -> impl Iterator<Item = Ipv6Net> {
    IPV6.into_iter().filter(move |(_, row, _)| wanted(*row)).map(|(net, ..)| net.parse().unwrap())
}

fn refused_v6() -> Vec<(u128, u128)> {
    merged(rows_v6(|row| row != Global).map(|net| (u128::from(net.network()), u128::from(net.broadcast()))).collect())
}

fn is_refused(ranges: &[(u128, u128)], bits: u128) -> bool {
    let after = ranges.partition_point(|(low, _)| *low <= bits);
    after > 0 && bits <= ranges[after - 1].1
}

fn v4(bits: u128) -> IpAddr {
    IpAddr::from(Ipv4Addr::from(u32::try_from(bits).unwrap()))
}

/// A sequence without pattern, the same in every run.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[track_caller]
fn assert_like(ranges: &[(u128, u128)], ip: IpAddr, bits: u128) {
    assert_eq!(classify(ip).is_some(), is_refused(ranges, bits), "{ip}: {:?}", classify(ip));
}

#[test]
fn what_the_registries_call_global_is_allowed_and_the_tables_hold_what_they_say() {
    for net in rows_v4(|row| row == Global).map(IpNet::V4).chain(rows_v6(|row| row == Global).map(IpNet::V6)) {
        for ip in [net.network(), net.broadcast()] {
            assert_eq!(classify(ip), None, "{ip}");
        }
    }
    // The ranges are those of the rows: an error in merging them would blind all tests below.
    assert_eq!(refused_v4().iter().map(|(low, high)| high - low + 1).sum::<u128>(), 592_708_864);
    assert_eq!(refused_v4().len(), 14);
    let whole: u128 = refused_v6().iter().map(|(low, high)| high - low + 1).fold(0, u128::wrapping_add);
    let open = (1u128 << 125) - (1 << 105) - (1 << 96) - (1 << 112) - (1 << 108);
    assert_eq!(whole.wrapping_add(open), 0, "2000::/3 less 2001::/23, 2001:db8::/32, 2002::/16 and 3fff::/20 is open");
}

/// Each boundary with all of its surroundings, and three addresses of each /24: no network that anyone routes is smaller.
#[test]
fn case_01_ipv4_addresses_are_classified_as_the_registry_says() {
    let ranges = refused_v4();
    let mut checked = 0u64;
    for net in rows_v4(|_| true) {
        for edge in [u32::from(net.network()), u32::from(net.broadcast())] {
            for bits in edge.saturating_sub(5_000)..=edge.saturating_add(5_000) {
                assert_like(&ranges, v4(u128::from(bits)), u128::from(bits));
                checked += 1;
            }
        }
    }
    let mut sequence = Sequence(4);
    for block in 0..1u32 << 24 {
        let first = block << 8;
        for bits in [first, first | (sequence.next() as u32 & 255), first | 255] {
            assert_like(&ranges, v4(u128::from(bits)), u128::from(bits));
            checked += 1;
        }
    }
    assert!(checked > 50_000_000);
}

/// The whole of it: `cargo test --release -p fetchbox-engine --test engine every_ipv4 -- --ignored`.
#[test]
#[ignore = "walks 4,294,967,296 addresses: half a minute without optimisation"]
fn every_ipv4_address_is_classified_as_the_registry_says() {
    let ranges = refused_v4();
    let mut next = 0u128;
    let mut checked = 0u64;
    let mut walk = |low: u128, high: u128, refused: bool| {
        for bits in low..=high {
            if classify(v4(bits)).is_some() != refused {
                panic!("{} is {:?}, the registry says refused: {refused}", v4(bits), classify(v4(bits)));
            }
            checked += 1;
        }
    };
    for (low, high) in &ranges {
        if next < *low {
            walk(next, low - 1, false);
        }
        walk(*low, *high, true);
        next = high + 1;
    }
    if next < 1 << 32 {
        walk(next, (1 << 32) - 1, false);
    }
    assert_eq!(checked, 1 << 32);
    println!("{checked} IPv4 addresses agree with the registry");
}

/// A million around the boundaries, four million inside the rows or beside them, five million anywhere.
#[test]
fn case_02_and_03_ten_million_ipv6_addresses_are_classified_as_the_registry_says() {
    let ranges = refused_v6();
    let mut sequence = Sequence(6);
    let mut checked = 0u64;
    let mut check = |bits: u128| {
        assert_like(&ranges, IpAddr::from(Ipv6Addr::from(bits)), bits);
        checked += 1;
    };
    let nets: Vec<Ipv6Net> = rows_v6(|_| true).collect();
    for net in &nets {
        for edge in [u128::from(net.network()), u128::from(net.broadcast())] {
            for offset in 0..7_000 {
                check(edge.saturating_sub(offset));
                check(edge.saturating_add(offset));
            }
        }
    }
    for n in 0..4_000_000 {
        let net = &nets[n % nets.len()];
        let random = u128::from(sequence.next()) << 64 | u128::from(sequence.next());
        let host = u128::from(net.hostmask());
        let inside = u128::from(net.network()) | (random & host);
        // Every second one has one bit of its prefix turned: a neighbour of the network.
        let flip =
            if n % 2 == 0 || net.prefix_len() == 0 { 0 } else { 1u128 << (127 - (random >> 64) as u32 % u32::from(net.prefix_len())) };
        check(inside ^ flip);
    }
    for _ in 0..5_000_000 {
        check(u128::from(sequence.next()) << 64 | u128::from(sequence.next()));
    }
    assert!(checked >= 10_000_000, "{checked}");
}

//! Policy routing: where marked packets go.

use super::{MarkMask, Ruleset};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

/// Priorities of our policy rules (dataplane.md §7).
pub const POLICY_PRIORITIES: RangeInclusive<u32> = 10_000..=10_099;
/// Our routing tables.
pub const POLICY_TABLES: RangeInclusive<u32> = 610..=619;
/// The protocol number that our rules and routes carry; without it an object is foreign.
pub const POLICY_PROTOCOL: u8 = 97;
/// Delivers every packet to the local host.
pub const TABLE_CAPTURE: u32 = 610;
/// Sends every packet into the device of the IP tunnel. Empty without that device, so that lookups fall through.
pub const TABLE_TUNNEL_DEVICE: u32 = 611;

const PRIORITY_OWN_SOCKETS: u32 = 10_000;
const PRIORITY_ESTABLISHED: u32 = 10_001;
const PRIORITY_TUNNEL: u32 = 10_002;
const PRIORITY_TUNNEL_FALLBACK: u32 = 10_003;
const PRIORITY_CAPTURED: u32 = 10_004;
const PRIORITY_ALIASES: u32 = 10_005;
const PRIORITY_END: u32 = 10_099;

/// Where the exit of the IP tunnel puts clients, each under an address of its own, so that clients of two peers may have
/// the same one (dataplane.md §3). IPv4: a part of 240.0.0.0/4, which is reserved (RFC 1112 §4) and on no host; IPv6: a
/// unique local prefix (RFC 4193) of our own, `arctic` in ASCII behind `fd`.
pub fn alias_network(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from([251, 97, 0, 0]), 16),
        Family::V6 => IpNet::new_assert(IpAddr::from([0xfd61, 0x7263, 0x7469, 0x6300, 0, 0, 0, 0]), 64),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(ip: std::net::IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// What a policy rule does with a packet that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyRule {
    /// `fwmark value/mask goto priority`
    SkipTo { value: u32, mask: u32, priority: u32 },
    /// `fwmark value/mask lookup table`
    Lookup { value: u32, mask: u32, table: u32 },
    /// `not fwmark value/mask lookup table`
    LookupUnless { value: u32, mask: u32, table: u32 },
    /// `to net lookup table`
    LookupDest { net: IpNet, table: u32 },
    /// `nop`: the place where `SkipTo` lands.
    Label,
    /// A rule with our protocol number that none of the above describes; only ever read, then deleted.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyItem {
    /// `local default dev lo table <table>`
    LocalDefault {
        family: Family,
        table: u32,
    },
    /// `default dev <device> table <table>`, the device by its index
    DeviceDefault {
        family: Family,
        table: u32,
        device: u32,
    },
    /// A route with our protocol number that is none of the above; only ever read, then deleted.
    UnknownRoute {
        family: Family,
        table: u32,
    },
    Rule {
        family: Family,
        priority: u32,
        rule: PolicyRule,
    },
}

impl PolicyItem {
    pub fn family(&self) -> Family {
        match *self {
            Self::LocalDefault { family, .. }
            | Self::DeviceDefault { family, .. }
            | Self::UnknownRoute { family, .. }
            | Self::Rule { family, .. } => family,
        }
    }
}

/// The policy routing that should exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyRouting {
    pub items: BTreeSet<PolicyItem>,
}

impl PolicyRouting {
    /// Captured packets go to the local host, packets of our own sockets do not.
    ///
    /// A rule can compare the bits of the mark with one value, or with anything but one value, so "neither none nor all
    /// ones" takes two: all ones skip the rest, then everything but 0 is looked up.
    pub fn capturing(mask: MarkMask) -> Self {
        let bits = mask.bits();
        let rules = [
            (PRIORITY_OWN_SOCKETS, PolicyRule::SkipTo { value: mask.own(), mask: bits, priority: PRIORITY_END }),
            (PRIORITY_ESTABLISHED, PolicyRule::Lookup { value: mask.established(), mask: bits, table: TABLE_CAPTURE }),
            (PRIORITY_CAPTURED, PolicyRule::LookupUnless { value: 0, mask: bits, table: TABLE_CAPTURE }),
            (PRIORITY_END, PolicyRule::Label),
        ];
        let items = Family::BOTH.into_iter().flat_map(|family| {
            rules
                .into_iter()
                .map(move |(priority, rule)| PolicyItem::Rule { family, priority, rule })
                .chain([PolicyItem::LocalDefault { family, table: TABLE_CAPTURE }])
        });
        Self { items: items.collect() }
    }

    /// Marked packets, and replies to the addresses of the exit, go into the tunnel's device. While that is gone, marked
    /// packets skip the rest, which would deliver them to the local host, and take the plain way.
    fn tunnelling(mask: MarkMask, device: u32) -> impl Iterator<Item = PolicyItem> {
        let (value, mask) = (mask.tunnel_bit(), mask.tunnel_bit());
        Family::BOTH.into_iter().flat_map(move |family| {
            let table = TABLE_TUNNEL_DEVICE;
            let rules = [
                (PRIORITY_TUNNEL, PolicyRule::Lookup { value, mask, table }),
                (PRIORITY_TUNNEL_FALLBACK, PolicyRule::SkipTo { value, mask, priority: PRIORITY_END }),
                (PRIORITY_ALIASES, PolicyRule::LookupDest { net: alias_network(family), table }),
            ];
            rules
                .into_iter()
                .map(move |(priority, rule)| PolicyItem::Rule { family, priority, rule })
                .chain([PolicyItem::DeviceDefault { family, table, device }])
        })
    }

    /// What the rules of `ruleset` need: nothing for a family that has no listener, as on a host where IPv6 is off and the
    /// kernel refuses its rules and routes.
    pub fn needed_by(ruleset: &Ruleset) -> Self {
        let heard = |family| match family {
            Family::V4 => ruleset.intercept.v4.is_some(),
            Family::V6 => ruleset.intercept.v6.is_some(),
        };
        let mut policy = Self::capturing(ruleset.mask);
        policy.items.extend(ruleset.tunnel.iter().flat_map(|tunnel| Self::tunnelling(ruleset.mask, tunnel.index)));
        policy.items.retain(|item| heard(item.family()));
        policy
    }

    /// The table in which a packet with `mark` is looked up first, before the main one.
    pub fn table_for(&self, family: Family, mark: u32) -> Option<u32> {
        let mut from = 0;
        for item in &self.items {
            let PolicyItem::Rule { family: of, priority, rule } = *item else { continue };
            if of != family || priority < from {
                continue;
            }
            match rule {
                PolicyRule::SkipTo { value, mask, priority } if mark & mask == value => from = priority,
                PolicyRule::Lookup { value, mask, table } if mark & mask == value => return Some(table),
                PolicyRule::LookupUnless { value, mask, table } if mark & mask != value => return Some(table),
                _ => {}
            }
        }
        None
    }
}

/// What `set_policy` did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyChange {
    pub added: Vec<PolicyItem>,
    pub deleted: Vec<PolicyItem>,
}

impl PolicyChange {
    /// In the order in which it is safe to apply them: a route exists before the rule that leads to it, a label before
    /// the rule that skips to it; deletion is the reverse. `PolicyItem` sorts routes before rules.
    pub fn between(have: &BTreeSet<PolicyItem>, want: &BTreeSet<PolicyItem>) -> Self {
        let mut added: Vec<_> = want.difference(have).copied().collect();
        added.sort_by_key(|item| match item {
            PolicyItem::LocalDefault { .. } | PolicyItem::DeviceDefault { .. } | PolicyItem::UnknownRoute { .. } => {
                (0, 0)
            }
            PolicyItem::Rule { priority, .. } => (1, u32::MAX - priority),
        });
        let mut deleted: Vec<_> = have.difference(want).copied().collect();
        deleted.sort_by_key(|item| match item {
            PolicyItem::LocalDefault { .. } | PolicyItem::DeviceDefault { .. } | PolicyItem::UnknownRoute { .. } => {
                (1, 0)
            }
            PolicyItem::Rule { priority, .. } => (0, *priority),
        });
        Self { added, deleted }
    }

    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.deleted.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_captured_packets_are_looked_up_in_the_capture_table() {
        let mask = MarkMask::default();
        let policy = PolicyRouting::capturing(mask);
        for family in Family::BOTH {
            let table = |mark| policy.table_for(family, mark);
            assert_eq!(table(0), None);
            assert_eq!(table(0x000f_ffff), None, "bits outside the mask do not count");
            assert_eq!(table(mask.own()), None);
            assert_eq!(table(mask.own() | 7), None);
            assert_eq!(table(mask.service(1)), Some(TABLE_CAPTURE));
            assert_eq!(table(mask.service(2045) | 7), Some(TABLE_CAPTURE));
            assert_eq!(table(mask.established()), Some(TABLE_CAPTURE));
        }
    }

    #[test]
    fn tunnelled_packets_are_looked_up_in_the_table_of_the_device_and_never_delivered_here() {
        let mask = MarkMask::default();
        let ruleset = Ruleset {
            intercept: crate::kernel::Intercept { v4: Some("127.0.0.1:1".parse().unwrap()), v6: None },
            tunnel: Some(crate::kernel::Tunnel { device: "arctic-tun0".into(), index: 7 }),
            ..Ruleset::default()
        };
        let policy = PolicyRouting::needed_by(&ruleset);
        let table = |mark| policy.table_for(Family::V4, mark);
        assert_eq!(table(mask.tunnel(1)), Some(TABLE_TUNNEL_DEVICE));
        assert_eq!(table(mask.tunnel(2045)), Some(TABLE_TUNNEL_DEVICE));
        assert_eq!(table(mask.service(1)), Some(TABLE_CAPTURE));
        assert_eq!(table(mask.established()), Some(TABLE_CAPTURE));
        assert_eq!((table(mask.own()), table(0)), (None, None));
        let mut without = policy;
        without.items.retain(|item| {
            !matches!(item, PolicyItem::Rule { rule: PolicyRule::Lookup { table: TABLE_TUNNEL_DEVICE, .. }, .. })
        });
        assert_eq!(
            without.table_for(Family::V4, mask.tunnel(1)),
            None,
            "the empty table falls through to plain routing"
        );
    }

    #[test]
    fn routes_come_before_rules_and_go_after_them() {
        let want = PolicyRouting::capturing(MarkMask::default()).items;
        let up = PolicyChange::between(&BTreeSet::new(), &want);
        let down = PolicyChange::between(&want, &BTreeSet::new());
        assert!(matches!(up.added[..2], [PolicyItem::LocalDefault { .. }, PolicyItem::LocalDefault { .. }]));
        assert!(matches!(down.deleted.last(), Some(PolicyItem::LocalDefault { .. })));
        assert!(PolicyChange::between(&want, &want).is_empty());
    }
}

//! The rules of captures: one each, in their order, while they are few; when they are many, maps, so that a packet meets
//! a handful of lookups whatever their number (dataplane.md §7).
//!
//! The order of routes compares the lengths of prefixes before anything but the interface and which CIDRs there are. So
//! the order falls into tiers, in each of which no two different networks of a family overlap: a tier is one map from
//! networks to the chain of a service, and first come the tiers of longer prefixes. Of routes with the same networks the
//! first one has the place in the map; the others never take a packet.

use super::{
    Capture, Family,
    program::{Action, Chain, Covers, Elements, Jump, Key, Match, Rule, Set},
};
use std::collections::{BTreeMap, BTreeSet};

/// From how many on captures are maps instead of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Up to so many in a chain are rules only.
    pub list_max_rules: usize,
    /// Beyond that, those of a tier are still rules up to so many.
    pub tier_max_rules: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { list_max_rules: 100, tier_max_rules: 4 }
    }
}

/// What is done with a packet that a capture takes, after its networks were found to match.
pub(super) struct Take {
    pub matches: Vec<Match>,
    pub action: Action,
}

/// Captures as parts of a table.
#[derive(Debug, Default)]
pub(super) struct Captured {
    /// What enters by the interfaces of services; comes first.
    pub by_interface: Vec<Rule>,
    pub rules: Vec<Rule>,
    /// Chains to which the maps lead.
    pub chains: Vec<Chain>,
    pub maps: Vec<Set>,
}

type TakeOf<'a> = &'a dyn Fn(&Capture, Family) -> Option<Take>;

/// `captures`: most preferred first. `prefix` begins the names of chains and maps. `take_of` tells nothing where a
/// capture takes no packets of a family.
pub(super) fn compile<'a>(
    prefix: &str,
    captures: impl IntoIterator<Item = &'a Capture>,
    take_of: TakeOf<'_>,
    shape: Shape,
) -> Captured {
    let parts = captures.into_iter().flat_map(|capture| {
        let of_family = move |family| Some(Part { capture, family, take: take_of(capture, family)? });
        families(capture).filter_map(of_family).collect::<Vec<_>>()
    });
    let (entering, others): (Vec<Part<'_>>, Vec<Part<'_>>) = parts.partition(|part| part.capture.interface.is_some());
    let as_list = entering.len() + others.len() <= shape.list_max_rules;
    let mut compiler = Compiler { prefix, take_of, shape, services: BTreeSet::new(), captured: Captured::default() };
    compiler.captured.by_interface = if as_list || entering.len() <= shape.tier_max_rules {
        entering.iter().map(|part| part.rule(true)).collect()
    } else {
        compiler.by_interface(entering)
    };
    compiler.captured.rules =
        if as_list { others.iter().map(|part| part.rule(true)).collect() } else { compiler.tiers("", &others) };
    compiler.captured
}

/// The families whose packets a capture takes.
fn families(capture: &Capture) -> impl Iterator<Item = Family> + use<> {
    let (source, dest) = (capture.source, capture.dest);
    let is_of = move |family| move |net: &ipnet::IpNet| Family::of(net.addr()) == family;
    Family::BOTH.into_iter().filter(move |family| source.iter().chain(&dest).all(is_of(*family)))
}

/// A capture in one family.
struct Part<'a> {
    capture: &'a Capture,
    family: Family,
    take: Take,
}

impl Part<'_> {
    fn rule(&self, with_interface: bool) -> Rule {
        let Capture { source, dest, interface, .. } = self.capture;
        let mut matches = Vec::new();
        matches.extend(interface.clone().filter(|_| with_interface).map(Match::EnteredBy));
        if source.is_none() && dest.is_none() {
            matches.push(Match::Family(self.family));
        }
        matches.extend(source.map(Match::Source));
        matches.extend(dest.map(Match::Dest));
        matches.extend(self.take.matches.iter().cloned());
        Rule { matches, action: self.take.action.clone(), comment: self.capture.to_string() }
    }

    /// Those of one tier have the same.
    fn lengths(&self) -> (Option<u8>, Option<u8>) {
        (self.capture.source.map(|n| n.prefix_len()), self.capture.dest.map(|n| n.prefix_len()))
    }

    /// Its place in the map of its tier; nothing where it covers all packets of its family.
    fn place(&self) -> Option<(Key, Covers)> {
        Some(match (self.capture.source, self.capture.dest) {
            (Some(source), Some(dest)) => (Key::SourceAndDest(self.family), Covers::Nets(source, dest)),
            (Some(source), None) => (Key::Source(self.family, source.prefix_len()), Covers::Net(source)),
            (None, Some(dest)) => (Key::Dest(self.family, dest.prefix_len()), Covers::Net(dest)),
            (None, None) => return None,
        })
    }
}

struct Compiler<'a> {
    prefix: &'a str,
    take_of: TakeOf<'a>,
    shape: Shape,
    /// Services that have their chain.
    services: BTreeSet<String>,
    captured: Captured,
}

impl Compiler<'_> {
    /// A map from interfaces to chains, which hold the captures of one interface each.
    fn by_interface(&mut self, parts: Vec<Part<'_>>) -> Vec<Rule> {
        let mut interfaces = BTreeMap::<&str, Vec<Part<'_>>>::new();
        for part in parts {
            interfaces.entry(part.capture.interface.as_deref().unwrap_or_default()).or_default().push(part);
        }
        let mut jumps = Vec::with_capacity(interfaces.len());
        for (interface, parts) in interfaces {
            let rules = if parts.len() <= self.shape.list_max_rules {
                parts.iter().map(|part| part.rule(false)).collect()
            } else {
                self.tiers(&format!("on_{interface}_"), &parts)
            };
            let chain = format!("{}on_{interface}", self.prefix);
            self.captured.chains.push(Chain { name: chain.clone(), base: None, rules });
            jumps.push(Jump { covers: Covers::Interface(interface.to_owned()), chain, comment: None });
        }
        vec![self.map("interfaces", Key::Interface, jumps)]
    }

    /// A map or a few rules for each tier, in order. `infix` tells maps from those of other chains.
    fn tiers(&mut self, infix: &str, parts: &[Part<'_>]) -> Vec<Rule> {
        let mut rules = Vec::new();
        for tier in parts.chunk_by(|a, b| a.lengths() == b.lengths()) {
            for family in Family::BOTH {
                let of_family: Vec<&Part<'_>> = tier.iter().filter(|part| part.family == family).collect();
                rules.extend(self.tier(infix, &of_family));
            }
        }
        rules
    }

    fn tier(&mut self, infix: &str, parts: &[&Part<'_>]) -> Vec<Rule> {
        let key = parts.first().and_then(|part| part.place()).map(|(key, _)| key);
        let Some(key) = key.filter(|_| parts.len() > self.shape.tier_max_rules) else {
            return parts.iter().map(|part| part.rule(false)).collect();
        };
        let mut jumps = BTreeMap::<Covers, Jump>::new();
        for part in parts {
            let Some((_, covers)) = part.place() else { continue };
            if !jumps.contains_key(&covers) {
                let (chain, comment) = (self.chain_of(part.capture), Some(part.capture.to_string()));
                jumps.insert(covers.clone(), Jump { covers, chain, comment });
            }
        }
        let (source, dest) = parts[0].lengths();
        let lengths = source.iter().chain(&dest).map(|length| format!("_{length}")).collect::<String>();
        let what = match key {
            Key::Interface => "interfaces",
            Key::Source(Family::V4, _) => "source4",
            Key::Source(Family::V6, _) => "source6",
            Key::Dest(Family::V4, _) => "dest4",
            Key::Dest(Family::V6, _) => "dest6",
            Key::SourceAndDest(Family::V4) => "both4",
            Key::SourceAndDest(Family::V6) => "both6",
        };
        vec![self.map(&format!("{infix}{what}{lengths}"), key, jumps.into_values().collect())]
    }

    /// Adds a map; the rule that asks it.
    fn map(&mut self, name: &str, key: Key, jumps: Vec<Jump>) -> Rule {
        let base = format!("{}{name}", self.prefix);
        let is_taken = |name: &String| self.captured.maps.iter().any(|map| map.name == *name);
        let numbered = (2..).map(|n| format!("{base}_{n}"));
        let map = std::iter::once(base.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or_default();
        self.captured.maps.push(Set::new(&map, Elements::Jumps { key, jumps }));
        let matches = match key {
            Key::Interface => vec![],
            Key::Source(family, _) | Key::Dest(family, _) | Key::SourceAndDest(family) => vec![Match::Family(family)],
        };
        Rule { matches, action: Action::JumpBy { map, key }, comment: "routes".to_owned() }
    }

    /// The chain that takes packets for the service of a capture.
    fn chain_of(&mut self, capture: &Capture) -> String {
        let name = format!("{}{}", self.prefix, capture.service);
        if self.services.insert(name.clone()) {
            let takes = Family::BOTH.into_iter().filter_map(|family| Some((family, (self.take_of)(capture, family)?)));
            let rule = |(family, Take { matches, action })| Rule {
                matches: std::iter::once(Match::Family(family)).chain(matches).collect(),
                action,
                comment: capture.service.to_string(),
            };
            let rules = takes.map(rule).collect();
            self.captured.chains.push(Chain { name: name.clone(), base: None, rules });
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::{super::contract::sample_rulesets, *};

    fn maps(captured: &Captured) -> Vec<&str> {
        captured.maps.iter().map(|map| map.name.as_str()).collect()
    }

    #[test]
    fn few_are_rules_in_their_order_and_many_a_map_for_each_tier() {
        let rulesets = sample_rulesets();
        let accept = |_: &Capture, _| Some(Take { matches: vec![], action: Action::Accept });
        let few = compile("x_", &rulesets[2].captures, &accept, Shape::default());
        assert_eq!((few.by_interface.len(), few.rules.len(), few.chains.len(), few.maps.len()), (2, 5, 0, 0));
        let many = compile("x_", &rulesets[6].captures, &accept, Shape::default());
        let expected = [
            "x_on_svc_01HABCDEFGH_dest4_24",
            "x_interfaces",
            "x_both4_32_32",
            "x_both6_32_32",
            "x_both4_16_24",
            "x_source6_32",
            "x_source4_24",
            "x_dest6_128",
            "x_dest4_32",
            "x_dest4_24",
            "x_dest6_24",
        ];
        assert_eq!(maps(&many), expected);
        assert_eq!((many.by_interface.len(), many.rules.len()), (1, 10), "nine maps, and the route that is alone");
    }
}

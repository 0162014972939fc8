//! What every `Kernel` must do, as one suite. `FakeKernel` runs it in the unit tests, `os::LinuxKernel` in a namespace.
//! Each check starts from and leaves a kernel without anything of ours; a broken rule panics.

use super::{
    Capture, Family, Hints, Intercept, Interface, InterfaceChange, Kernel, Link, MarkMask, Owned, PeerSocket,
    PolicyChange, PolicyItem, PolicyRouting, Ruleset, Tunnel,
};
use crate::model::{Rng, ServiceId, UnixTime};
use std::{collections::BTreeSet, net::IpAddr, time::Duration};

/// How long a hint may take to arrive.
const SETTLE: Duration = Duration::from_millis(200);

/// Runs every check in order.
pub async fn run(kernel: &dyn Kernel) {
    a_clean_kernel_has_nothing_of_ours(kernel).await;
    what_was_applied_is_what_is_read(kernel).await;
    applying_twice_is_applying_once(kernel).await;
    removing_is_idempotent(kernel).await;
    liveness_needs_the_tables(kernel).await;
    policy_is_set_exactly(kernel).await;
    own_writes_are_no_hints(kernel).await;
    the_host_has_a_loopback(kernel).await;
}

/// The checks about interfaces, on a host whose Ethernet link `parent` is up and has no interface of ours.
pub async fn run_interfaces(kernel: &dyn Kernel, parent: &str) {
    let (index, link) = link(kernel, parent).await.expect("the parent exists");
    let base = Interface {
        service: ServiceId::mint(UnixTime::from_secs(2), &mut Rng::from_seed([4; 32])),
        parent: index,
        mtu: link.mtu,
        up: true,
        addresses: addresses(&["192.0.2.10/24", "fd00:2::10/64"]),
    };
    let name = base.name();
    let moved = Interface { addresses: addresses(&["192.0.2.11/24", "fd00:2::11/64"]), ..base.clone() };
    let bare = Interface { addresses: BTreeSet::new(), ..base.clone() };
    let down = Interface { up: false, ..base.clone() };
    let steps =
        [(&base, InterfaceChange::Created), (&moved, InterfaceChange::Changed), (&bare, InterfaceChange::Changed)];
    for (wanted, change) in
        steps.into_iter().chain([(&down, InterfaceChange::Changed), (&base, InterfaceChange::Changed)])
    {
        assert_eq!(kernel.set_interface(wanted).await, Ok(change), "{wanted:?}");
        let (_, found) = self::link(kernel, &name).await.expect("it exists");
        assert!(found.holds(wanted) && found.is_ours(), "{found:?} of {wanted:?}");
        assert_eq!(kernel.set_interface(wanted).await, Ok(InterfaceChange::None), "a second pass changes nothing");
    }
    for _ in 0..2 {
        assert_eq!(kernel.remove_interface(&name).await, Ok(()));
        assert!(self::link(kernel, &name).await.is_none());
    }
    assert_eq!(kernel.remove_interface(parent).await, Ok(()), "a foreign link stays");
    assert!(self::link(kernel, parent).await.is_some());
    let nowhere = Interface { parent: u32::from(u16::MAX), ..base };
    kernel.set_interface(&nowhere).await.expect_err("there is no such parent");
    assert!(self::link(kernel, &name).await.is_none());
}

async fn link(kernel: &dyn Kernel, name: &str) -> Option<(u32, Link)> {
    let host = kernel.read_host().await.expect("the host can be read");
    host.links.into_iter().find(|(_, link)| link.name == name)
}

fn addresses(of: &[&str]) -> BTreeSet<ipnet::IpNet> {
    of.iter().map(|net| net.parse().expect("a network")).collect()
}

/// Rulesets that use every match and action, from nothing to 300 routes.
pub fn sample_rulesets() -> Vec<Ruleset> {
    let base = Ruleset::default();
    let listening = Ruleset {
        intercept: Intercept {
            v4: Some("127.0.0.1:50123".parse().expect("an address")),
            v6: Some("[::1]:50124".parse().expect("an address")),
        },
        peers: sample_peers(),
        ..base.clone()
    };
    let captures = sample_captures();
    let small = Ruleset { captures: captures.clone(), ..listening.clone() };
    let narrow = Ruleset { mask: MarkMask::new(0xff00).expect("a mask"), ..small.clone() };
    let only_v4 = Ruleset { intercept: Intercept { v6: None, ..listening.intercept }, ..small.clone() };
    let tunnel = Ruleset { tunnel: Some(Tunnel { device: "arctic-tun0".into(), index: 1 }), ..small.clone() };
    let many = Ruleset { captures: many_captures(), ..tunnel.clone() };
    vec![base, listening, small, narrow, only_v4, tunnel, many]
}

/// Too many for a list of rules, in evaluation order: every kind of map, with neighbours, exact addresses, the last network of each
/// family, and networks of two services.
fn many_captures() -> Vec<Capture> {
    let mut rng = Rng::from_seed([7; 32]);
    let services = [3, 4].map(|s| ServiceId::mint(UnixTime::from_secs(s), &mut rng));
    let mut captures = Vec::new();
    let mut add = |of: usize, interface: Option<String>, source: Option<String>, dest: Option<String>| {
        let net = |text: String| text.parse().expect("a network");
        let (service, mark) = (services[of], of as u32 + 1);
        let route = Some(captures.len() as u32 + 1);
        captures.push(Capture { service, route, source: source.map(net), dest: dest.map(net), interface, mark });
    };
    for n in 0..8 {
        add(0, Some(format!("svc_01HABCDE{n:03}")), None, Some(format!("10.{n}.0.0/16")));
    }
    for n in 0..120 {
        add(0, Some("svc_01HABCDEFGH".into()), None, Some(format!("10.77.{n}.0/24")));
    }
    for n in 0..40 {
        add(n % 2, None, Some(format!("10.1.2.{n}/32")), Some(format!("192.0.2.{n}/32")));
        add(n % 2, None, Some(format!("fd01:{n:x}::/32")), Some(format!("fd02:{n:x}::/32")));
    }
    (0..40).for_each(|n| add(n % 2, None, Some(format!("10.{n}.0.0/16")), Some(format!("192.168.{n}.0/24"))));
    (0..40).for_each(|n| add(1, None, Some(format!("fd03:{n:x}::/32")), None));
    (0..40).for_each(|n| add(0, None, Some(format!("172.16.{n}.0/24")), None));
    (0..40).for_each(|n| add(1, None, None, Some(format!("fd04::{n:x}/128"))));
    (0..40).for_each(|n| add(0, None, None, Some(format!("203.0.113.{n}/32"))));
    for n in 230..256 {
        add(n % 2, None, None, Some(format!("255.255.{n}.0/24")));
        add(n % 2, None, None, Some(format!("ffff:{n:x}00::/24")));
    }
    add(1, None, None, Some("0.0.0.0/0".into()));
    captures
}

fn sample_peers() -> BTreeSet<PeerSocket> {
    let ips: [IpAddr; 2] = [[192, 0, 2, 7].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 7].into()];
    let ports = [(6, 8080), (6, 61000), (17, 61000), (17, 51840)];
    ips.into_iter().flat_map(|ip| ports.map(|(protocol, port)| PeerSocket { ip, protocol, port })).collect()
}

fn sample_captures() -> Vec<Capture> {
    let service = ServiceId::mint(UnixTime::from_secs(1), &mut Rng::from_seed([3; 32]));
    let net = |s: &str| Some(s.parse().expect("a network"));
    let capture = |route, source, dest, interface: Option<&str>| Capture {
        service,
        route,
        source,
        dest,
        interface: interface.map(str::to_owned),
        mark: 1,
    };
    vec![
        capture(None, None, None, Some("svc_01HABCDEFGH")),
        capture(Some(1), net("10.1.0.0/16"), net("192.168.100.0/24"), None),
        capture(Some(2), net("10.1.2.3/32"), None, None),
        capture(Some(3), None, net("0.0.0.0/0"), None),
        capture(Some(4), net("fd01::/17"), net("fd02::/64"), None),
        capture(Some(5), None, net("fd03::1/128"), None),
    ]
}

async fn clear(kernel: &dyn Kernel) {
    kernel.remove_tables().await.expect("tables are removed");
    kernel.set_policy(&PolicyRouting::default()).await.expect("policy is removed");
}

async fn a_clean_kernel_has_nothing_of_ours(kernel: &dyn Kernel) {
    clear(kernel).await;
    assert_eq!(kernel.read_owned().await, Ok(Owned::default()));
}

async fn what_was_applied_is_what_is_read(kernel: &dyn Kernel) {
    let mut seen = BTreeSet::new();
    for ruleset in sample_rulesets() {
        kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
        let owned = kernel.read_owned().await.expect("own state can be read");
        let expected = kernel.fingerprint(&ruleset);
        assert_eq!(owned.tables, Some(expected), "of {} captures", ruleset.captures.len());
        assert!(seen.insert(expected.0), "different rulesets have different fingerprints");
    }
    clear(kernel).await;
}

async fn applying_twice_is_applying_once(kernel: &dyn Kernel) {
    for ruleset in sample_rulesets() {
        kernel.replace_tables(&ruleset).await.expect("the first time");
        let once = kernel.read_owned().await;
        kernel.replace_tables(&ruleset).await.expect("the second time");
        assert_eq!(kernel.read_owned().await, once);
    }
    clear(kernel).await;
}

async fn removing_is_idempotent(kernel: &dyn Kernel) {
    kernel.replace_tables(&Ruleset::default()).await.expect("the base state is accepted");
    for _ in 0..2 {
        kernel.remove_tables().await.expect("tables are removed");
        assert_eq!(kernel.read_owned().await.map(|o| o.tables), Ok(None));
    }
}

async fn liveness_needs_the_tables(kernel: &dyn Kernel) {
    assert!(kernel.feed_liveness().await.expect_err("there are no tables").is_missing());
    let ruleset = sample_rulesets().remove(2);
    kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
    for _ in 0..3 {
        kernel.feed_liveness().await.expect("liveness is fed");
    }
    let tables = kernel.read_owned().await.map(|o| o.tables);
    assert_eq!(tables, Ok(Some(kernel.fingerprint(&ruleset))), "feeding is no change");
    clear(kernel).await;
}

async fn policy_is_set_exactly(kernel: &dyn Kernel) {
    let full = PolicyRouting::capturing(MarkMask::default());
    let other = PolicyRouting::capturing(MarkMask::new(0xff00).expect("a mask"));
    let v4_only = PolicyRouting {
        items: full
            .items
            .iter()
            .filter(|item| {
                matches!(
                    item,
                    PolicyItem::Rule { family: Family::V4, .. } | PolicyItem::LocalDefault { family: Family::V4, .. }
                )
            })
            .copied()
            .collect(),
    };
    // The loopback stands for the device of the tunnel.
    let tunnelling = PolicyRouting::needed_by(&sample_rulesets().remove(5));
    for policy in [&full, &other, &v4_only, &tunnelling, &full, &PolicyRouting::default()] {
        kernel.set_policy(policy).await.expect("the policy is accepted");
        assert_eq!(kernel.read_owned().await.map(|o| o.policy), Ok(policy.items.clone()));
        assert_eq!(kernel.set_policy(policy).await, Ok(PolicyChange::default()), "a second pass changes nothing");
    }
}

async fn own_writes_are_no_hints(kernel: &dyn Kernel) {
    let changes = kernel.changes();
    tokio::time::sleep(SETTLE).await;
    let before: Hints = *changes.borrow();
    for ruleset in sample_rulesets() {
        kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
        kernel.feed_liveness().await.expect("liveness is fed");
    }
    kernel.set_policy(&PolicyRouting::capturing(MarkMask::default())).await.expect("the policy is accepted");
    clear(kernel).await;
    tokio::time::sleep(SETTLE).await;
    assert_eq!(*changes.borrow(), before);
}

async fn the_host_has_a_loopback(kernel: &dyn Kernel) {
    let host = kernel.read_host().await.expect("the host can be read");
    assert!(host.links.values().any(|link| link.name == "lo"), "{host:?}");
}

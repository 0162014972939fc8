//! Interfaces: which parent, what stands in the way, and what the loop keeps.

use super::*;
use crate::kernel::{HostFacts, Interface, Link, MACVLAN, Mac};

fn ethernet(name: &str, addresses: &[&str]) -> Link {
    Link {
        name: name.into(),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        up: true,
        mtu: 1400,
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        ..Link::default()
    }
}

fn host(links: &[(u32, Link)]) -> HostFacts {
    HostFacts { links: links.iter().cloned().collect() }
}

fn with_interface(seed: u8, ipv4: Option<&str>) -> Service {
    let mut service = outgoing(seed, "10.1.0.0/16");
    service.body.requires_interface = true;
    service.body.desired_ipv4_cidr = ipv4.map(|net| net.parse().unwrap());
    service
}

fn wish(seed: u8, addresses: &[&str]) -> InterfaceWish {
    let addresses: BTreeSet<IpNet> = addresses.iter().map(|net| net.parse().unwrap()).collect();
    InterfaceWish { service: service_id(seed), up: true, leases: addresses.is_empty(), addresses }
}

fn made(interface: &Interface) -> Link {
    Link {
        name: interface.name(),
        alias: Some(interface.alias()),
        kind: Some(MACVLAN.into()),
        parent: Some(interface.parent),
        mac: Some(interface.mac()),
        up: interface.up,
        mtu: interface.mtu,
        addresses: interface.addresses.clone(),
    }
}

fn reasons(plan: &InterfacePlan) -> Vec<&'static str> {
    plan.skipped.values().map(|skipped| skipped.reason).collect()
}

fn parent_of(plan: &InterfacePlan) -> Option<u32> {
    plan.wanted.values().next().map(|interface| interface.parent)
}

#[test]
fn the_parent_is_the_named_one_else_that_with_the_network_else_that_of_the_default_route() {
    let lo = Link { name: "lo".into(), addresses: ["127.0.0.1/8".parse().unwrap()].into(), ..Link::default() };
    let host = host(&[
        (1, lo),
        (2, ethernet("eth0", &["192.0.2.2/24"])),
        (3, ethernet("lan0", &["10.5.0.1/16", "fd05::1/64"])),
        (4, ethernet("lan1", &["10.5.7.1/24"])),
        (5, Link { name: "tun0".into(), ..Link::default() }),
    ]);
    let plan = |addresses: &[&str], default, named| plan_interfaces(&[wish(1, addresses)], &host, default, named);
    assert_eq!(parent_of(&plan(&["10.5.9.9/16"], Some(2), None)), Some(3));
    assert_eq!(parent_of(&plan(&["10.5.7.9/24"], Some(2), None)), Some(4), "the longest network");
    assert_eq!(parent_of(&plan(&["fd05::9/64"], Some(2), None)), Some(3));
    assert_eq!(parent_of(&plan(&["172.16.0.1/24"], Some(2), None)), Some(2));
    assert_eq!(parent_of(&plan(&[], Some(2), None)), Some(2));
    assert_eq!(parent_of(&plan(&["10.5.9.9/16"], Some(2), Some("eth0"))), Some(2));
    for (default, named) in [(None, None), (Some(5), None), (Some(2), Some("eth9")), (Some(2), Some("lo"))] {
        let found = plan(&["172.16.0.1/24"], default, named);
        assert_eq!(reasons(&found), ["NO_PARENT"], "{default:?} {named:?}");
        assert!(found.steps.is_empty());
    }
    let interface = plan(&[], Some(2), None).wanted.into_values().next().unwrap();
    assert_eq!((interface.mtu, interface.name().len()), (1400, 15));
}

#[test]
fn foreign_devices_and_addresses_are_left_alone() {
    let name = crate::model::interface_name(service_id(1));
    let eth0 = (2, ethernet("eth0", &["192.0.2.2/24"]));
    let taken = host(&[eth0.clone(), (3, Link { kind: Some("dummy".into()), ..ethernet(&name, &[]) })]);
    let plan = plan_interfaces(&[wish(1, &[]), wish(2, &["192.0.2.9/24"])], &taken, Some(2), None);
    assert_eq!(reasons(&plan), ["NAME_TAKEN"]);
    assert_eq!(plan.steps.len(), 1, "one that cannot be made does not hold up the other");

    let twice = [wish(1, &["192.0.2.9/24"]), wish(2, &["192.0.2.9/16"]), wish(3, &["192.0.2.2/24"])];
    let plan = plan_interfaces(&twice, &host(&[eth0]), None, None);
    assert_eq!(plan.skipped.keys().copied().collect::<Vec<_>>(), [service_id(2), service_id(3)]);
    assert_eq!(reasons(&plan), ["ADDRESS_IN_USE"; 2]);
}

#[test]
fn what_is_there_is_left_and_what_nobody_wants_goes() {
    let eth0 = (2, ethernet("eth0", &["192.0.2.2/24"]));
    let wishes = [wish(1, &["192.0.2.9/24"])];
    let wanted =
        plan_interfaces(&wishes, &host(std::slice::from_ref(&eth0)), None, None).wanted[&service_id(1)].clone();
    let here = made(&wanted);
    let steps = |link: Link| plan_interfaces(&wishes, &host(&[eth0.clone(), (7, link)]), None, None).steps;
    let link_local = "fe80::1/64".parse().unwrap();
    assert_eq!(steps(Link { addresses: &here.addresses | &BTreeSet::from([link_local]), ..here.clone() }), []);
    let set = [InterfaceStep::Set(wanted.clone())];
    for changed in [
        Link { up: false, ..here.clone() },
        Link { alias: None, ..here.clone() },
        Link { mtu: 1500, ..here.clone() },
        Link { mac: Some(Mac([2; 6])), ..here.clone() },
        Link { parent: Some(9), ..here.clone() },
        Link { addresses: BTreeSet::new(), ..here.clone() },
        Link { addresses: &here.addresses | &BTreeSet::from(["192.0.2.10/24".parse().unwrap()]), ..here.clone() },
    ] {
        assert_eq!(steps(changed.clone()), set, "{changed:?}");
    }
    let left = host(&[eth0, (7, here.clone()), (8, Link { alias: None, mac: None, ..here.clone() })]);
    assert_eq!(plan_interfaces(&[], &left, None, None).steps, [InterfaceStep::Remove(here.name)]);
}

#[test]
fn only_the_source_peer_of_a_licensed_service_with_an_interface_makes_one() {
    let mut incoming = with_interface(3, None);
    std::mem::swap(&mut incoming.body.source_peer_id, &mut incoming.body.target_peer_id);
    let input = desired(vec![with_interface(1, Some("192.0.2.9/24")), outgoing(2, "10.0.0.0/8"), incoming]);
    let (wishes, skipped) = interface_wishes(&input);
    assert_eq!(wishes, [wish(1, &["192.0.2.9/24"])]);
    assert!(skipped.is_empty());
    let suspended = Desired { data_plane_runs: false, features: Features::default(), ..input.clone() };
    assert_eq!(interface_wishes(&suspended).0, [InterfaceWish { up: false, ..wish(1, &["192.0.2.9/24"]) }]);
    let (wishes, skipped) = interface_wishes(&Desired { features: Features::default(), ..input });
    assert!(wishes.is_empty());
    assert_eq!(skipped[&service_id(1)].reason, "LICENSE_FEATURE_DISABLED");
}

fn with_eth0(first: Desired) -> Running {
    let running = Running::new(first);
    running.kernel.set_link(2, Some(ethernet("eth0", &["192.0.2.2/24"])));
    running
}

fn interfaces(kernel: &FakeKernel) -> Vec<Link> {
    kernel.links().into_iter().filter(Link::is_ours).collect()
}

// accepts: 001-64, 002-59
#[tokio::test]
async fn an_interface_comes_with_its_service_and_goes_with_it() {
    let service = with_interface(10, Some("192.0.2.9/24"));
    let mut running = with_eth0(at_revision(1, vec![service.clone()]));
    running.wait("the interface", |s| s.interfaces.contains_key(&service.id) && s.network.is_ready()).await;
    running
        .wait("its condition", |s| {
            s.condition(service.id, Reconciler::Network).is_some_and(|c| c.status == ConditionStatus::Applied)
        })
        .await;
    let facts = running.status.borrow().interfaces[&service.id];
    assert_eq!((facts.ipv4, facts.up), (net("192.0.2.9/24"), true));
    assert_eq!(interfaces(&running.kernel).len(), 1);

    running.set(&Desired { data_plane_runs: false, ..at_revision(2, vec![service.clone()]) });
    running.wait("down", |s| s.interfaces.get(&service.id).is_some_and(|i| !i.up)).await;
    assert_eq!(running.reason(10, Reconciler::Network).unwrap().0, ConditionStatus::Pending);

    running.set(&at_revision(3, vec![]));
    running.wait("gone", |s| s.interfaces.is_empty() && s.applied_revision == 3).await;
    assert!(interfaces(&running.kernel).is_empty());
    assert_eq!(running.reason(10, Reconciler::Network), None);
}

#[tokio::test]
async fn a_deleted_interface_is_back_and_an_unwanted_one_is_not() {
    let service = with_interface(10, Some("192.0.2.9/24"));
    let mut running = with_eth0(at_revision(1, vec![service.clone()]));
    running.wait("the interface", |s| s.interfaces.contains_key(&service.id)).await;
    for repairs in 1..=3 {
        running.kernel.foreign_link_delete(&crate::model::interface_name(service.id));
        running.wait("the repair", |s| s.network.drift_repairs == repairs).await;
        assert_eq!(interfaces(&running.kernel).len(), 1);
    }
    running.set(&at_revision(2, vec![]));
    running.wait("gone", |s| s.interfaces.is_empty() && s.applied_revision == 2).await;
    assert_eq!(running.status.borrow().network.drift_repairs, 3);
}

#[tokio::test]
async fn a_missing_parent_is_said_and_looked_for_at_each_change_of_links() {
    let service = with_interface(10, Some("192.0.2.9/24"));
    let mut running = Running::new(at_revision(1, vec![service.clone(), outgoing(11, "10.9.0.0/16")]));
    running.wait("skipped", |s| s.condition(service.id, Reconciler::Network).is_some()).await;
    assert_eq!(running.reason(10, Reconciler::Network).unwrap().1, "NO_PARENT");
    running.wait("the rest", |s| s.network.is_ready() && s.applied_revision == 1).await;
    assert_eq!(running.reason(11, Reconciler::Firewall).unwrap().0, ConditionStatus::Applied);
    running.kernel.set_link(2, Some(ethernet("eth0", &["192.0.2.2/24"])));
    running.wait("the interface", |s| s.interfaces.contains_key(&service.id)).await;
    assert_eq!(running.status.borrow().network.drift_repairs, 0);
}

#[tokio::test]
async fn what_the_kernel_refuses_is_tried_again_and_does_not_stop_the_firewall() {
    let first = at_revision(1, vec![]);
    let mut running = with_eth0(first.clone());
    running.in_sync(&first).await;
    running.kernel.push_fault(Fault::Busy);
    let service = with_interface(10, Some("192.0.2.9/24"));
    let second = at_revision(2, vec![service.clone()]);
    running.set(&second);
    running.wait("the interface", |s| s.interfaces.contains_key(&service.id) && s.network.failures == 1).await;
    running.in_sync(&second).await;
}

#[tokio::test]
async fn a_stop_removes_interfaces_or_keeps_them_as_set() {
    for clear in [true, false] {
        let service = with_interface(10, Some("192.0.2.9/24"));
        let mut running = Running::start(at_revision(1, vec![service.clone()]), Duration::from_secs(60), clear);
        running.kernel.set_link(2, Some(ethernet("eth0", &["192.0.2.2/24"])));
        running.wait("the interface", |s| s.interfaces.contains_key(&service.id)).await;
        running.stop.cancel();
        running.task.await.unwrap();
        assert_eq!(interfaces(&running.kernel).is_empty(), clear);
    }
}

/// A look at the links once read the new state without applying it.
#[tokio::test]
async fn a_change_of_state_beside_one_of_links_is_applied() {
    let service = with_interface(10, Some("192.0.2.9/24"));
    let mut running = Running::new(at_revision(1, vec![service.clone()]));
    running.kernel.set_link(2, Some(ethernet("eth0", &["192.0.2.2/24"])));
    running.wait("the interface", |s| s.interfaces.contains_key(&service.id)).await;
    for round in 1..40 {
        running.kernel.set_link(3, Some(ethernet(&format!("eth{round}"), &[])));
        sleep(Duration::from_millis(round)).await;
        let services =
            if round % 2 == 0 { vec![service.clone()] } else { vec![service.clone(), outgoing(11, "10.0.0.0/8")] };
        running.set(&at_revision(1 + round, services));
        running
            .wait("the change", |s| s.ruleset.captures.iter().any(|c| c.service == service_id(11)) == (round % 2 == 1))
            .await;
    }
}

proptest! {
    /// dataplane.md §6, rule 1.
    #[test]
    fn what_enters_by_an_interface_is_of_its_service_first(
        services in any_services(),
        with in proptest::collection::vec(any::<bool>(), 6),
        pairs in proptest::collection::vec((any_ip(true), any_ip(true), 0usize..7), 1..20),
    ) {
        let mut services = services;
        for (service, with) in services.iter_mut().zip(with) {
            service.body.requires_interface = with;
        }
        let compiled = compiled(&desired(services.clone()));
        for (source, dest, by) in pairs {
            let entered = services.get(by).map(|s| (s, crate::model::interface_name(s.id)));
            let interface = entered.as_ref().map_or("lan0".to_owned(), |(_, name)| name.clone());
            let packet = Packet {
                arrival: Arrival::Entered { interface: interface.clone() },
                source,
                dest,
                ..packet("10.0.0.1", "10.0.0.1")
            };
            let chosen = compiled.forwarding.select(source, dest, Some(&interface));
            let told = match classify(&compiled.ruleset.tables(), &packet, &view()) {
                Verdict::Captured { comment, .. } => Some(comment),
                _ => None,
            };
            let name = |r: &crate::routing::CompiledRoute| match r.route {
                Some(route) => format!("{}/{route}", r.service),
                None => r.service.to_string(),
            };
            prop_assert_eq!(told, chosen.map(name));
            if let Some((service, _)) = entered.filter(|(s, _)| s.body.requires_interface) {
                let covers = |net: &Option<IpNet>, ip| net.is_none_or(|n: IpNet| n.contains(&ip));
                let routes = &service.body.routes;
                let own = routes.is_empty()
                    || routes.iter().any(|r| covers(&r.source_cidr, source) && covers(&r.dest_cidr, dest));
                prop_assert!(!own || chosen.is_some_and(|r| r.service == service.id));
            }
            let explained = explain(&services, &explained_status(&compiled), &HostFacts::default(), &Flow {
                source,
                dest,
                protocol: TCP,
                dest_port: None,
                interface: Some(interface),
            });
            prop_assert_eq!(explained.winner(), chosen);
        }
    }
}

fn explained_status(compiled: &Compiled) -> Status {
    Status { ruleset: Arc::new(compiled.ruleset.clone()), ..Status::default() }
}

fn transparent(seed: u8, source: u8, target: u8) -> Service {
    let mut service = service(seed, peer_id(source), peer_id(target), vec![route(1, None, net("10.1.0.0/16"), 1)]);
    service.body.requires_interface = true;
    service.body.fully_transparent = true;
    service
}

#[tokio::test]
async fn the_host_is_set_for_transparent_exits_and_interfaces_only_while_there_are_some() {
    use crate::kernel::HostSetting::{Forwarding, LooseReversePath, OwnArpOnly};
    let (eth0, tun0) = (|| "eth0".to_owned(), || "tun0".to_owned());
    let mut running = with_eth0(at_revision(1, vec![transparent(10, THERE, HERE)]));
    running.kernel.set_link(3, Some(Link { name: tun0(), up: true, ..Link::default() }));
    let exit = BTreeSet::from([Forwarding, LooseReversePath { link: eth0() }, LooseReversePath { link: tun0() }]);
    let wanted: [(Vec<Service>, BTreeSet<_>); 4] = [
        (vec![transparent(10, THERE, HERE)], exit),
        (vec![with_interface(11, Some("192.0.2.9/24"))], BTreeSet::from([OwnArpOnly { link: eth0() }])),
        (vec![outgoing(12, "10.0.0.0/8")], BTreeSet::new()),
        (vec![transparent(13, HERE, THERE)], BTreeSet::new()),
    ];
    for (revision, (services, settings)) in (2..).zip(wanted) {
        running.set(&at_revision(revision, services));
        running.wait("applied", |s| s.applied_revision == revision).await;
        timeout(Duration::from_secs(5), async {
            while running.kernel.settings() != settings {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{revision}: {:?}", running.kernel.settings()));
    }
    running.set(&at_revision(9, vec![transparent(10, THERE, HERE)]));
    running.wait("applied", |s| s.applied_revision == 9).await;
    running.stop.cancel();
    running.task.await.unwrap();
    assert!(running.kernel.settings().is_empty());
}

#[test]
fn a_transparent_service_is_carried_over_tcp_with_an_interface_only() {
    let good = transparent(10, HERE, THERE);
    let (mut kcp, mut bare) = (transparent(11, HERE, THERE), transparent(12, HERE, THERE));
    kcp.body.transport_type = Transport::Kcp;
    bare.body.requires_interface = false;
    let now = compiled(&desired(vec![good, kcp, bare]));
    assert_eq!(now.forwarding.services.keys().copied().collect::<Vec<_>>(), [service_id(10)]);
    assert!(now.forwarding.services[&service_id(10)].transparent);
    assert_eq!(now.skipped[&(service_id(12), Reconciler::Tproxy)].reason, "TRANSPARENT_UNAVAILABLE");
}

#[tokio::test]
async fn without_a_desired_address_the_interface_waits_for_a_lease() {
    let service = with_interface(10, None);
    let mut running = with_eth0(at_revision(1, vec![service.clone()]));
    running.kernel.set_default_link(Some(2));
    running.wait("the interface", |s| s.interfaces.contains_key(&service.id)).await;
    let (status, reason, _) = running.reason(10, Reconciler::Network).unwrap();
    assert_eq!((status, reason.as_str()), (ConditionStatus::Pending, "NO_ADDRESS"));
    assert_eq!(running.status.borrow().interfaces[&service.id].ipv4, None);
    running.set(&at_revision(2, vec![]));
    running.wait("gone", |s| s.interfaces.is_empty() && s.applied_revision == 2).await;
}

//! The rules agree with the routes; the loop keeps its promises on a kernel that fails.

mod license;
mod network;

use super::*;
use crate::{
    env::SystemClock,
    kernel::{
        Arrival, Capture, FakeKernel, Family, Fault, HostView, Intercept, Kernel, MarkMask, Operation, Packet,
        PolicyRouting, Ruleset, Verdict, classify,
    },
    license::Features,
    model::{
        DataPorts, Endpoint, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime,
    },
    routing::{Forwarding, PeerPath},
    store::StoreError,
};
use ipnet::IpNet;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn rng(seed: u8) -> Rng {
    Rng::from_seed([seed; 32])
}

fn peer_id(seed: u8) -> PeerId {
    PeerId::mint(UnixTime::from_secs(1), &mut rng(seed))
}

fn service_id(seed: u8) -> ServiceId {
    ServiceId::mint(UnixTime::from_secs(u64::from(seed)), &mut rng(seed))
}

fn path(host: &str) -> PeerPath {
    PeerPath {
        public_key: SigningKey::from_seed([1; 32]).public(),
        x25519_key: SigningKey::from_seed([2; 32]).x25519_public(),
        endpoints: vec![Endpoint::new(host, 8080).unwrap()],
        data_ports: DataPorts::default(),
    }
}

fn net(s: &str) -> Option<IpNet> {
    Some(s.parse().unwrap())
}

fn route(id: u32, source: Option<IpNet>, dest: Option<IpNet>, priority: u16) -> Route {
    Route { id, source_cidr: source, dest_cidr: dest, priority, version: 1, created_at: UnixTime::from_secs(1) }
}

fn service(seed: u8, source: PeerId, target: PeerId, routes: Vec<Route>) -> Service {
    let body = ServiceBody {
        routes,
        next_route_id: 100,
        ..ServiceBody::plain(&format!("s{seed}"), source, target, UnixTime::from_secs(1))
    };
    Service { id: service_id(seed), version: 1, body }
}

const HERE: u8 = 1;
const THERE: u8 = 2;

fn desired(services: Vec<Service>) -> Desired {
    Desired {
        revision: 1,
        peers: BTreeMap::from([(peer_id(THERE), path("192.0.2.2"))]),
        services,
        data_plane_runs: true,
        features: Features::every(),
        ..Desired::idle(Some(peer_id(HERE)))
    }
}

fn outgoing(seed: u8, dest: &str) -> Service {
    service(seed, peer_id(HERE), peer_id(THERE), vec![route(1, None, net(dest), 100)])
}

fn listening() -> Intercept {
    Intercept { v4: Some("127.0.0.1:50001".parse().unwrap()), v6: Some("[::1]:50002".parse().unwrap()) }
}

fn compiled(desired: &Desired) -> Compiled {
    compile(desired, MarkMask::default(), listening(), &mut Marks::default())
}

fn view() -> HostView {
    HostView { not_forwarded: BTreeSet::new(), listener_v4: true, listener_v6: true, alive: true }
}

fn packet(source: &str, dest: &str) -> Packet {
    Packet {
        arrival: Arrival::Local,
        source: source.parse().unwrap(),
        dest: dest.parse().unwrap(),
        protocol: TCP,
        dest_port: 443,
        mark: 0,
        reply: false,
        opening: true,
        connection_mark: 0,
        transparent_socket: false,
    }
}

// Few bits, so that networks nest and tie.
fn any_ip(v4: bool) -> impl Strategy<Value = IpAddr> {
    (0u8..4, 0u8..4, 0u8..4).prop_map(move |(a, b, c)| match v4 {
        true => IpAddr::from([10, a, b, c]),
        false => IpAddr::from([0xfd00, a.into(), b.into(), 0, 0, 0, 0, c.into()]),
    })
}

fn any_net(v4: bool) -> impl Strategy<Value = Option<IpNet>> {
    let lengths = if v4 { [0, 8, 15, 16, 24, 31, 32] } else { [0, 8, 31, 32, 48, 127, 128] };
    let net = (any_ip(v4), proptest::sample::select(lengths.to_vec()))
        .prop_map(|(ip, len)| IpNet::new(ip, len).unwrap().trunc());
    proptest::option::weighted(0.7, net)
}

fn any_route() -> impl Strategy<Value = Route> {
    any::<bool>()
        .prop_flat_map(|v4| (any_net(v4), any_net(v4), 0u16..3))
        .prop_filter("a route has a CIDR", |(source, dest, _)| source.is_some() || dest.is_some())
        .prop_map(|(source, dest, priority)| route(0, source, dest, priority))
}

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    proptest::collection::vec(proptest::collection::vec(any_route(), 0..5), 0..6).prop_map(|services| {
        let numbered = |routes: Vec<Route>| (1..).zip(routes).map(|(id, r)| Route { id, ..r }).collect();
        let made = (10..).zip(services).map(|(seed, r)| service(seed, peer_id(HERE), peer_id(THERE), numbered(r)));
        made.collect()
    })
}

proptest! {
    #[test]
    fn firewall_and_engines_agree_on_every_packet(
        services in any_services(),
        pairs in proptest::collection::vec(
            any::<bool>().prop_flat_map(|v4| (any_ip(v4), any_ip(v4), any::<bool>(), any::<u32>())), 1..20),
    ) {
        let compiled = compiled(&desired(services));
        let mask = compiled.ruleset.mask;
        for (source, dest, local, noise) in pairs {
            let arrival = if local { Arrival::Local } else { Arrival::Entered { interface: "lan0".into() } };
            let mark = noise & !mask.bits();
            let packet = Packet { arrival, source, dest, mark, ..packet("10.0.0.1", "10.0.0.1") };
            let expected = match compiled.forwarding.select(source, dest, None) {
                Some(route) => Verdict::Captured {
                    mark: mark | mask.service(compiled.forwarding.services[&route.service].mark.unwrap()),
                    comment: format!("{}/{}", route.service, route.route.unwrap()),
                },
                None => Verdict::Plain,
            };
            prop_assert_eq!(classify(&compiled.ruleset.tables(), &packet, &view()), expected);
        }
    }

    #[test]
    fn every_prefix_of_a_plan_captures_by_old_or_new_rules(old in any_services(), new in any_services()) {
        let (old, new) = (compiled(&desired(old)).ruleset, compiled(&desired(new)).ruleset);
        let steps = plan(Some(&old), &new);
        for step in &steps {
            if let FirewallStep::Shrink(common) = step {
                prop_assert!(common.captures.iter().all(|c| old.captures.contains(c)));
                let in_new = |c: &Capture| new.captures.contains(c);
                prop_assert!(common.captures.iter().all(in_new));
                prop_assert!(common.captures.len() < old.captures.len());
            }
        }
        prop_assert_eq!(steps.last(), Some(&FirewallStep::Tables(new.clone())));
        prop_assert_eq!(plan(Some(&new), &new).len(), 2, "without a change: the policy is asked for, the tables are written");
    }

    #[test]
    fn a_mark_stays_with_its_service_and_is_never_shared(
        steps in proptest::collection::vec(proptest::collection::btree_set(1u8..200, 0..40), 1..10),
    ) {
        let mask = MarkMask::default();
        let mut marks = Marks::default();
        let mut before: BTreeMap<ServiceId, u32> = BTreeMap::new();
        for step in steps {
            let services: BTreeSet<_> = step.into_iter().map(service_id).collect();
            marks.assign(mask, &services);
            let now: BTreeMap<_, _> = services.iter().map(|id| (*id, marks.of(*id).unwrap())).collect();
            prop_assert!(before.iter().all(|(id, mark)| now.get(id).is_none_or(|m| m == mark)));
            prop_assert_eq!(now.values().collect::<BTreeSet<_>>().len(), now.len());
            prop_assert!(now.values().all(|m| mask.services().contains(m)));
            before = now;
        }
    }
}

#[test]
fn marks_run_out_without_harm() {
    let mask = MarkMask::new(0xff).unwrap();
    let services: BTreeSet<_> = (1..=200).map(service_id).collect();
    let mut marks = Marks::default();
    marks.assign(mask, &services);
    let given = services.iter().filter(|id| marks.of(**id).is_some()).count();
    assert_eq!(given, 125);
}

#[test]
fn exclusions_win_over_every_route() {
    let service = service(
        10,
        peer_id(HERE),
        peer_id(THERE),
        vec![route(1, None, net("0.0.0.0/0"), 1), route(2, None, net("::/0"), 1)],
    );
    let mut desired = desired(vec![service]);
    desired.peers.get_mut(&peer_id(THERE)).unwrap().endpoints.push(Endpoint::new("tokyo", 9090).unwrap());
    desired.addresses = BTreeMap::from([("tokyo".into(), BTreeSet::from(["2001:db8::7".parse().unwrap()]))]);
    let tables = compiled(&desired).ruleset.tables();
    let mut host = view();
    host.not_forwarded.insert("10.0.0.1".parse().unwrap());
    let verdict = |p: &Packet| classify(&tables, p, &host);
    let entered = |p: Packet| Packet { arrival: Arrival::Entered { interface: "lan0".into() }, ..p };

    let captured = packet("10.0.0.9", "198.51.100.1");
    assert!(matches!(verdict(&captured), Verdict::Captured { .. }));
    assert!(matches!(verdict(&entered(captured.clone())), Verdict::Captured { .. }));
    let dest = |dest: &str, dest_port| Packet { dest_port, ..packet("10.0.0.9", dest) };
    let excluded = [
        dest("10.0.0.1", 22),
        dest("127.0.0.9", 22),
        dest("169.254.1.1", 22),
        dest("224.0.0.5", 22),
        dest("255.255.255.255", 22),
        dest("::1", 22),
        dest("fe80::1", 22),
        dest("ff02::1", 22),
        dest("192.0.2.2", 8080),
        dest("192.0.2.2", 61000),
        dest("2001:db8::7", 9090),
        Packet { reply: true, ..captured.clone() },
        Packet { opening: false, ..captured.clone() },
        Packet { opening: false, connection_mark: !MarkMask::default().bits(), ..captured.clone() },
        Packet { mark: MarkMask::default().own() | 5, ..captured.clone() },
    ];
    for packet in excluded {
        assert!(matches!(verdict(&packet), Verdict::Excluded(_)), "{packet:?}");
        assert!(matches!(verdict(&entered(packet.clone())), Verdict::Excluded(_)), "{packet:?}");
    }
    for (dest_port, protocol) in [(51840, UDP), (67, UDP), (547, UDP), (53, UDP), (0, 1)] {
        let packet = Packet { protocol, dest_port, ..captured.clone() };
        assert!(!matches!(verdict(&packet), Verdict::Captured { .. }), "{packet:?}");
    }
    let (opening, connection_mark) = (false, MarkMask::default().service(1));
    let later = Packet { opening, connection_mark, ..captured.clone() };
    assert!(matches!(verdict(&later), Verdict::Captured { .. }), "of a captured connection");
    let established = entered(Packet { transparent_socket: true, reply: true, ..captured.clone() });
    assert_eq!(verdict(&established), Verdict::Diverted);
    host.alive = false;
    assert!(matches!(classify(&tables, &captured, &host), Verdict::Excluded(_)), "without liveness");
}

#[test]
fn without_a_listener_a_forwarded_packet_is_plain() {
    let tables = compiled(&desired(vec![outgoing(10, "10.0.0.0/8")])).ruleset.tables();
    let packet = Packet { arrival: Arrival::Entered { interface: "lan0".into() }, ..packet("192.168.0.1", "10.0.0.1") };
    let verdict = classify(&tables, &packet, &HostView { listener_v4: false, ..view() });
    assert_eq!(verdict, Verdict::Plain);
    let later = Packet { opening: false, connection_mark: MarkMask::default().service(1), ..packet };
    let verdict = classify(&tables, &later, &HostView { listener_v4: false, ..view() });
    assert_eq!(verdict, Verdict::Dropped, "what was captured does not go on in clear");
}

#[test]
fn what_cannot_be_carried_has_a_reason_and_no_rules() {
    let kcp = |mut s: Service| {
        s.body.transport_type = Transport::Kcp;
        (s.body.requires_interface, s.body.fully_transparent) = (true, true);
        s
    };
    let stranger = service(12, peer_id(HERE), peer_id(9), vec![route(1, None, net("10.3.0.0/16"), 1)]);
    let services = vec![outgoing(10, "10.1.0.0/16"), kcp(outgoing(11, "10.2.0.0/16")), stranger];
    let now = compiled(&desired(services.clone()));
    let reason = |c: &Compiled, seed| c.skipped.get(&(service_id(seed), Reconciler::Firewall)).map(|s| s.reason);
    assert_eq!(reason(&now, 10), None);
    assert_eq!(reason(&now, 11), Some("TRANSPORT_UNAVAILABLE"));
    assert_eq!(reason(&now, 12), Some("PEER_UNKNOWN"));
    assert_eq!(now.ruleset.captures.len(), 1);
    assert_eq!(now.forwarding.services.len(), 1);

    let contested = compiled(&Desired { contested: true, ..desired(services.clone()) });
    assert_eq!(reason(&contested, 10), Some("IDENTITY_CONFLICT"));
    assert!(contested.ruleset.captures.is_empty() && contested.forwarding.services.is_empty());
    let suspended = compiled(&Desired { data_plane_runs: false, ..desired(services) });
    assert_eq!(reason(&suspended, 10), Some("LICENSE_SUSPENDED"));
    assert!(suspended.ruleset.captures.is_empty() && suspended.forwarding.services.is_empty());
    let base = Ruleset { captures: vec![], ..suspended.ruleset.clone() };
    assert_eq!(suspended.ruleset.tables(), base.tables());
}

#[test]
fn the_target_captures_nothing_and_unshaped_peers_have_no_limit() {
    let mut incoming = service(10, peer_id(THERE), peer_id(HERE), vec![route(1, None, net("10.0.0.0/8"), 1)]);
    incoming.body.bandwidth_limit_mbps = 5;
    let mut limited = outgoing(11, "10.0.0.0/8");
    limited.body.bandwidth_limit_mbps = 7;
    let mut input = desired(vec![incoming, limited]);
    let limits = |c: &Compiled| c.forwarding.services.values().map(|s| s.limit_mbps).collect::<Vec<_>>();
    let shaped = compiled(&input);
    assert_eq!(shaped.ruleset.captures.iter().map(|c| c.service).collect::<Vec<_>>(), [service_id(11)]);
    assert_eq!(limits(&shaped), [5, 7]);
    input.unshaped.insert(peer_id(THERE));
    assert_eq!(limits(&compiled(&input)), [5, 0]);
}

// ---- the loop ----

struct TestSource(watch::Receiver<Result<Desired, String>>);

impl Source for TestSource {
    fn desired(&mut self) -> Result<Desired, StoreError> {
        let broken = |what: &String| StoreError::Corrupt { what: "record", text: what.clone() };
        self.0.borrow_and_update().as_ref().cloned().map_err(broken)
    }
    fn changed(&mut self) -> crate::kernel::BoxFuture<'_, Change> {
        Box::pin(async {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            Change::State
        })
    }
}

struct Running {
    kernel: Arc<FakeKernel>,
    input: watch::Sender<Result<Desired, String>>,
    engines: watch::Sender<EngineState>,
    forwarding: watch::Receiver<Arc<Forwarding>>,
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(first: Desired, resync: Duration, clear_on_stop: bool) -> Self {
        let kernel = Arc::new(FakeKernel::new());
        let (input, source) = watch::channel(Ok(first));
        let pace = Pace {
            rest_longest: Duration::from_millis(20),
            coalesce: Duration::from_millis(5),
            links: Duration::from_millis(20),
            resync,
            liveness: Duration::from_millis(30),
            retry_first: Duration::from_millis(20),
            retry_longest: Duration::from_millis(100),
        };
        let settings = Settings { clear_on_stop, pace, ..Settings::default() };
        let reconcile = Reconcile::new(kernel.clone(), Arc::new(SystemClock::new()), TestSource(source), settings);
        let (forwarding, status) = (reconcile.forwarding(), reconcile.status());
        let (engines, engine_state) = watch::channel(EngineState::Ready(listening()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(reconcile.run(engine_state, stop.clone()));
        Self { kernel, input, engines, forwarding, status, stop, task }
    }

    fn new(first: Desired) -> Self {
        Self::start(first, Duration::from_secs(60), true)
    }

    async fn wait(&mut self, what: &str, good: impl Fn(&Status) -> bool) {
        let waited = timeout(Duration::from_secs(5), self.status.wait_for(good)).await;
        waited.unwrap_or_else(|_| panic!("never: {what}")).expect("the loop runs");
    }

    async fn in_sync(&mut self, with: &Desired) {
        let revision = with.revision;
        self.wait("in sync", |s| s.applied_revision == revision && s.firewall.is_ready()).await;
        let ruleset = compiled(with).ruleset;
        let owned = self.kernel.read_owned().await.unwrap();
        assert_eq!(owned.tables, Some(self.kernel.fingerprint(&ruleset)));
        assert_eq!(owned.policy, PolicyRouting::capturing(ruleset.mask).items);
    }

    fn set(&self, desired: &Desired) {
        drop(self.input.send_replace(Ok(desired.clone())));
    }

    fn reason(&self, seed: u8, reconciler: Reconciler) -> Option<(ConditionStatus, String, u64)> {
        let status = self.status.borrow();
        status.condition(service_id(seed), reconciler).map(|c| (c.status, c.reason.clone(), c.observed_version))
    }
}

fn at_revision(revision: u64, services: Vec<Service>) -> Desired {
    Desired { revision, ..desired(services) }
}

// accepts: 001-63, 001-65, 001-66, 001-78, 002-60
#[tokio::test]
async fn a_change_reaches_engine_and_kernel_and_is_reported() {
    let first = at_revision(1, vec![]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    let second = at_revision(2, vec![outgoing(10, "10.1.0.0/16")]);
    running.set(&second);
    running.in_sync(&second).await;
    assert!(running.forwarding.borrow().services.contains_key(&service_id(10)));
    for reconciler in [Reconciler::Firewall, Reconciler::Tproxy] {
        assert_eq!(running.reason(10, reconciler), Some((ConditionStatus::Applied, "APPLIED".into(), 1)));
    }
    assert_eq!(running.status.borrow().fwmarks[&service_id(10)], 0x0010_0000);
    let third = at_revision(3, vec![]);
    running.set(&third);
    running.in_sync(&third).await;
    assert_eq!(running.reason(10, Reconciler::Firewall), None);
}

#[tokio::test]
async fn routes_exist_before_rules_and_rules_before_captures() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    let operations = running.kernel.take_operations();
    let at = |wanted: fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
    let route = at(|o| matches!(o, Operation::AddPolicy(crate::kernel::PolicyItem::LocalDefault { .. })));
    let rule = at(|o| matches!(o, Operation::AddPolicy(crate::kernel::PolicyItem::Rule { .. })));
    assert!(route < rule && rule < at(|o| *o == Operation::ReplaceTables));
    assert!(running.forwarding.has_changed().unwrap(), "the engine knew it");
}

// accepts: 001-71, 001-80
#[tokio::test]
async fn a_resync_without_change_writes_only_the_two_tables() {
    let first = at_revision(1, vec![]);
    let mut running = Running::start(first.clone(), Duration::from_millis(40), true);
    running.in_sync(&first).await;
    running.kernel.take_operations();
    let passes = running.status.borrow().firewall.passes;
    running.wait("three passes", |s| s.firewall.passes >= passes + 3).await;
    let operations = running.kernel.take_operations();
    assert!(operations.len() >= 3 && operations.iter().all(|o| *o == Operation::ReplaceTables), "{operations:?}");
}

#[tokio::test]
async fn a_commit_about_other_things_writes_nothing_to_the_kernel() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    running.kernel.take_operations();
    let mut service = outgoing(10, "10.1.0.0/16");
    (service.version, service.body.bandwidth_limit_mbps) = (2, 7);
    // Another status of a peer; a service that the engines shape otherwise, with the rules that it has.
    for next in [Desired { revision: 2, ..first }, at_revision(3, vec![service])] {
        running.set(&next);
        running.in_sync(&next).await;
        assert!(!running.kernel.take_operations().contains(&Operation::ReplaceTables));
    }
    assert_eq!(running.forwarding.borrow().services[&service_id(10)].limit_mbps, 7);
    assert_eq!(running.reason(10, Reconciler::Firewall), Some((ConditionStatus::Applied, "APPLIED".into(), 2)));
}

#[tokio::test]
async fn a_failure_keeps_the_last_good_state_and_is_retried() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    let before = running.kernel.tables();
    for _ in 0..6 {
        running.kernel.push_fault(Fault::Busy);
    }
    let second = at_revision(2, vec![outgoing(10, "10.1.0.0/16"), outgoing(11, "10.2.0.0/16")]);
    running.set(&second);
    running.wait("a failure", |s| s.firewall.failure.is_some()).await;
    assert_eq!(running.kernel.tables(), before);
    assert!(running.status.borrow().tproxy.is_ready(), "one failing reconciler does not stop the other");
    assert_eq!(running.reason(10, Reconciler::Firewall).unwrap().0, ConditionStatus::Applied);
    assert_eq!(running.reason(11, Reconciler::Firewall).unwrap().1, "KERNEL_REFUSED");
    running.in_sync(&second).await;
    assert_eq!(running.reason(11, Reconciler::Firewall).unwrap().0, ConditionStatus::Applied);
}

#[tokio::test]
async fn an_unreadable_store_changes_nothing_and_says_so() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    drop(running.input.send_replace(Err("page 7".into())));
    running.wait("a failure", |s| s.tproxy.failure.as_deref().is_some_and(|f| f.contains("page 7"))).await;
    assert!(running.forwarding.borrow().services.contains_key(&service_id(10)));
    running.set(&Desired { revision: 2, ..first.clone() });
    running.in_sync(&Desired { revision: 2, ..first }).await;
}

#[tokio::test]
async fn drift_is_repaired_and_counted() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    let edits: [fn(&FakeKernel); 3] =
        [FakeKernel::foreign_edit, FakeKernel::foreign_flush, FakeKernel::foreign_policy_flush];
    for (n, edit) in (1..).zip(edits) {
        edit(&running.kernel);
        running.wait("the repair", |s| s.firewall.drift_repairs == n).await;
        running.in_sync(&first).await;
    }
}

#[tokio::test]
async fn a_lost_notification_is_healed_by_the_resync_and_vanished_tables_by_the_next_feed() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::start(first.clone(), Duration::from_millis(200), true);
    running.in_sync(&first).await;
    running.kernel.push_fault(Fault::LostNotification);
    running.wait("the repair", |s| s.firewall.drift_repairs == 1).await;
    running.in_sync(&first).await;
    running.kernel.push_fault(Fault::Vanished);
    running.wait("the repair", |s| s.firewall.drift_repairs == 2).await;
    running.in_sync(&first).await;
}

#[tokio::test]
async fn without_engines_there_are_base_tables_and_failed_conditions_until_they_start() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    running.engines.send_replace(EngineState::Failed("port 61000/tcp is taken".into()));
    running.wait("the failure", |s| s.tproxy.failure.as_deref() == Some("port 61000/tcp is taken")).await;
    let deaf = compile(&first, MarkMask::default(), Intercept::default(), &mut Marks::default()).ruleset;
    let owned = running.kernel.read_owned().await.unwrap();
    assert_eq!(owned.tables, Some(running.kernel.fingerprint(&deaf)));
    assert!(owned.policy.is_empty(), "nothing is marked, so no mark needs a way");
    for reconciler in [Reconciler::Firewall, Reconciler::Tproxy] {
        let (status, reason, _) = running.reason(10, reconciler).unwrap();
        assert_eq!((status, reason.as_str()), (ConditionStatus::Failed, "ENGINE_UNAVAILABLE"));
    }
    running.engines.send_replace(EngineState::Ready(listening()));
    running.wait("the start", |s| s.tproxy.failure.is_none()).await;
    running.in_sync(&first).await;
    assert_eq!(running.reason(10, Reconciler::Firewall).unwrap().0, ConditionStatus::Applied);
}

#[tokio::test]
async fn a_family_without_a_listener_needs_no_policy() {
    let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    running.engines.send_replace(EngineState::Ready(Intercept { v6: None, ..listening() }));
    timeout(Duration::from_secs(5), async {
        while running.kernel.read_owned().await.unwrap().policy.iter().any(|i| i.family() == Family::V6) {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the policy of IPv6 goes");
    assert!(running.kernel.read_owned().await.unwrap().policy.iter().any(|i| i.family() == Family::V4));
}

#[tokio::test]
async fn liveness_is_fed_only_while_something_is_captured() {
    let first = at_revision(1, vec![]);
    let mut running = Running::new(first.clone());
    running.in_sync(&first).await;
    sleep(Duration::from_millis(100)).await;
    assert!(!running.kernel.take_operations().contains(&Operation::FeedLiveness));
    let second = at_revision(2, vec![outgoing(10, "10.1.0.0/16")]);
    running.set(&second);
    running.in_sync(&second).await;
    running.kernel.expire_liveness();
    timeout(Duration::from_secs(5), async {
        while !running.kernel.alive() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("fed again");
}

#[tokio::test]
async fn a_stop_removes_all_or_keeps_all_as_set() {
    for clear in [true, false] {
        let first = at_revision(1, vec![outgoing(10, "10.1.0.0/16")]);
        let mut running = Running::start(first.clone(), Duration::from_secs(60), clear);
        running.in_sync(&first).await;
        running.stop.cancel();
        running.task.await.unwrap();
        let owned = running.kernel.read_owned().await.unwrap();
        assert_eq!((owned.tables.is_none(), owned.policy.is_empty()), (clear, clear));
    }
}

#[tokio::test]
async fn any_sequence_of_faults_ends_in_sync() {
    let all = [
        Fault::Exists,
        Fault::Busy,
        Fault::NoBuffers,
        Fault::Interrupted,
        Fault::ForeignEdit,
        Fault::LostNotification,
        Fault::Vanished,
    ];
    for seed in 0..6 {
        let mut rng = rng(seed);
        let first = at_revision(1, vec![]);
        let mut running = Running::start(first.clone(), Duration::from_millis(100), true);
        for revision in 2..6 {
            for _ in 0..rng.below(4) {
                running.kernel.push_fault(all[rng.below(all.len() as u64) as usize]);
            }
            let services =
                (0..rng.below(4)).map(|n| outgoing(10 + n as u8, &format!("10.{revision}.0.0/16"))).collect();
            let next = at_revision(revision, services);
            running.set(&next);
            running.wait("applied", |s| s.applied_revision == revision).await;
        }
        let last = running.input.borrow().clone().unwrap();
        timeout(Duration::from_secs(5), async {
            let expected = running.kernel.fingerprint(&compiled(&last).ruleset);
            let policy = PolicyRouting::capturing(MarkMask::default()).items;
            loop {
                let owned = running.kernel.read_owned().await.unwrap();
                if owned.tables == Some(expected) && owned.policy == policy {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("seed {seed} never in sync"));
    }
}

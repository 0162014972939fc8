//! What should be, compiled from what the cluster says. Pure but for `StoreSource`.

use super::status::{Condition, ConditionStatus, Reconciler};
use crate::{
    kernel::{BoxFuture, Capture, Family, Intercept, MarkMask, PeerSocket, Ruleset},
    license::{Entitlement, Features, IP_TUNNEL},
    model::{DEFAULT_API_PORT, PeerId, Service, ServiceId, Transport, UnixTime},
    routing::{CompiledRoute, ForwardedService, Forwarding, PeerPath},
    store::{Revision, Store, StoreError},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};
use tokio::sync::watch;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The input of one pass: everything that decides about kernel and engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// None while the host belongs to no cluster.
    pub local: Option<PeerId>,
    pub revision: u64,
    /// Trusted peers whose record is held, without the local one.
    pub peers: BTreeMap<PeerId, PeerPath>,
    pub services: Vec<Service>,
    /// False while the license is suspended or absent.
    pub data_plane_runs: bool,
    /// What the license includes; nothing while it is absent.
    pub features: Features,
    /// Peers refuse this host because another live copy of its identity is heard (cluster.md §7).
    pub contested: bool,
    /// Peers to which traffic is not shaped (dataplane.md §9).
    pub unshaped: BTreeSet<PeerId>,
    /// Addresses of the host names in endpoints, as far as they are known.
    pub addresses: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Desired {
    /// Nothing to do.
    pub fn idle(local: Option<PeerId>) -> Self {
        Self {
            local,
            revision: 0,
            peers: BTreeMap::new(),
            services: vec![],
            data_plane_runs: false,
            features: Features::default(),
            contested: false,
            unshaped: BTreeSet::new(),
            addresses: BTreeMap::new(),
        }
    }
}

/// Why to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `desired` may have another answer than at its last call. Nothing is written if it has not.
    State,
    /// A full pass is wanted, whatever `desired` says.
    Asked,
}

/// Where `Desired` comes from.
pub trait Source: Send + 'static {
    fn desired(&mut self) -> Result<Desired, StoreError>;
    /// Returns when it is time to look again.
    fn changed(&mut self) -> BoxFuture<'_, Change>;
}

/// The store and the license of this host.
pub struct StoreSource {
    store: Store,
    local: watch::Receiver<Option<PeerId>>,
    revision: watch::Receiver<Revision>,
    entitlement: watch::Receiver<Option<Arc<Entitlement>>>,
    addresses: watch::Receiver<BTreeMap<String, BTreeSet<IpAddr>>>,
}

impl StoreSource {
    /// `local`: this peer, from the moment at which the rest counts. `addresses`: the host names in endpoints of peers, resolved. Each publication asks for a full pass.
    pub fn new(
        store: Store,
        local: watch::Receiver<Option<PeerId>>,
        entitlement: watch::Receiver<Option<Arc<Entitlement>>>,
        addresses: watch::Receiver<BTreeMap<String, BTreeSet<IpAddr>>>,
    ) -> Self {
        Self { revision: store.revision(), store, local, entitlement, addresses }
    }
}

impl Source for StoreSource {
    fn desired(&mut self) -> Result<Desired, StoreError> {
        let revision = self.revision.borrow_and_update().0;
        let entitlement = self.entitlement.borrow_and_update().clone();
        let data_plane_runs = entitlement.as_ref().is_some_and(|e| e.data_plane_runs());
        let features = entitlement.map(|e| e.document.features().clone()).unwrap_or_default();
        let addresses = self.addresses.borrow_and_update().clone();
        let local = *self.local.borrow_and_update();
        if local.is_none() {
            return Ok(Desired { revision, ..Desired::idle(None) });
        }
        let (services, rows, contested) =
            self.store.read(|v| Ok::<_, StoreError>((v.services()?, v.trusted_peers()?, v.is_contested()?)))?;
        let idle = Desired::idle(local);
        let mut desired = Desired { revision, services, data_plane_runs, features, contested, addresses, ..idle };
        for row in rows.into_iter().filter(|row| Some(row.peer_id) != local) {
            if !row.qos_enabled {
                desired.unshaped.insert(row.peer_id);
            }
            let endpoints = row.all_endpoints();
            let Some(body) = row.body else { continue };
            let path = PeerPath {
                public_key: row.public_key,
                x25519_key: body.x25519_key,
                endpoints,
                data_ports: body.data_ports,
            };
            desired.peers.insert(row.peer_id, path);
        }
        Ok(desired)
    }

    fn changed(&mut self) -> BoxFuture<'_, Change> {
        Box::pin(async move {
            tokio::select! {
                biased;
                () = change_of(&mut self.addresses) => Change::Asked,
                () = change_of(&mut self.local) => Change::State,
                () = change_of(&mut self.revision) => Change::State,
                () = change_of(&mut self.entitlement) => Change::State,
            }
        })
    }
}

/// A channel whose sender is gone never changes again.
pub(super) async fn change_of<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The marks of outgoing services: one stays with its service while that exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    by_service: BTreeMap<ServiceId, u32>,
}

impl Marks {
    /// Frees marks of services that are gone and gives new services the smallest free ones, while there are any.
    pub fn assign(&mut self, mask: MarkMask, services: &BTreeSet<ServiceId>) {
        self.by_service.retain(|id, mark| services.contains(id) && mask.services().contains(mark));
        let taken: BTreeSet<u32> = self.by_service.values().copied().collect();
        let mut free = mask.services().filter(|mark| !taken.contains(mark));
        for id in services {
            if !self.by_service.contains_key(id) {
                let Some(mark) = free.next() else { return };
                self.by_service.insert(*id, mark);
            }
        }
    }

    pub fn of(&self, id: ServiceId) -> Option<u32> {
        self.by_service.get(&id).copied()
    }
}

/// What kernel and engines shall hold, and what is wrong with each service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compiled {
    pub ruleset: Ruleset,
    pub forwarding: Forwarding,
    /// Services of which the local peer is source or target, with the version that was compiled.
    pub versions: BTreeMap<ServiceId, u64>,
    /// Outgoing services, which are those with rules here.
    pub outgoing: BTreeSet<ServiceId>,
    /// Why a service, or a part of it, is left out; by the reconciler that leaves it out.
    pub skipped: BTreeMap<(ServiceId, Reconciler), Skipped>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub status: ConditionStatus,
    pub reason: &'static str,
    pub message: String,
}

impl Skipped {
    pub(super) fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::Failed, reason, message: message.into() }
    }
    pub(super) fn pending(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::Pending, reason, message: message.into() }
    }

    pub(super) fn condition(&self, reconciler: Reconciler, version: u64, at: UnixTime) -> Condition {
        Condition {
            reconciler,
            status: self.status,
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            observed_version: version,
            at,
        }
    }
}

/// Pure: the same input gives the same output, but for `marks`, which remembers.
pub fn compile(desired: &Desired, mask: MarkMask, intercept: Intercept, marks: &mut Marks) -> Compiled {
    let local = |peer| Some(peer) == desired.local;
    let ours = |s: &&Service| local(s.body.source_peer_id) || local(s.body.target_peer_id);
    let involved: Vec<&Service> = desired.services.iter().filter(ours).collect();
    let outgoing: BTreeSet<_> = involved.iter().filter(|s| local(s.body.source_peer_id)).map(|s| s.id).collect();
    marks.assign(mask, &outgoing);

    let mut skipped = BTreeMap::new();
    let mut carried = vec![];
    for service in &involved {
        match obstacle(desired, service, outgoing.contains(&service.id).then(|| marks.of(service.id))) {
            Some(reason) => {
                if outgoing.contains(&service.id) {
                    skipped.insert((service.id, Reconciler::Firewall), reason.clone());
                }
                skipped.insert((service.id, Reconciler::Tproxy), reason);
            }
            None => carried.push(*service),
        }
    }
    if !desired.features.allows(IP_TUNNEL) {
        let tcp_only =
            || lacks_feature(format!("the license does not include the feature {IP_TUNNEL}: only TCP is carried"));
        let without = carried.iter().filter(|s| outgoing.contains(&s.id));
        skipped.extend(without.map(|s| ((s.id, Reconciler::Iptun), tcp_only())));
    }
    let entries = carried.iter().map(|s| (s.id, forwarded(desired, s, marks))).collect();
    let sources = carried.iter().filter(|s| outgoing.contains(&s.id)).copied();
    let forwarding = Forwarding::new(desired.revision, desired.peers.clone(), entries, sources);
    let captures: Vec<_> = forwarding.routes().iter().filter_map(|route| capture(route, marks)).collect();
    for (id, reason) in unheard(&captures, intercept) {
        skipped.insert((id, Reconciler::Firewall), reason);
    }
    Compiled {
        ruleset: Ruleset { mask, intercept, peers: peer_sockets(desired), captures, tunnel: None },
        forwarding,
        versions: involved.iter().map(|s| (s.id, s.version)).collect(),
        outgoing,
        skipped,
    }
}

/// Whether this peer dials with the addresses of clients for some service (dataplane.md §4).
pub(super) fn has_transparent_exit(desired: &Desired) -> bool {
    let here = |s: &&Service| s.body.fully_transparent && Some(s.body.target_peer_id) == desired.local;
    desired.services.iter().filter(here).any(|s| obstacle(desired, s, None).is_none())
}

/// Why nothing of a service can be carried. `mark` is given for outgoing services.
fn obstacle(desired: &Desired, service: &Service, mark: Option<Option<u32>>) -> Option<Skipped> {
    let body = &service.body;
    let other = if mark.is_some() { body.target_peer_id } else { body.source_peer_id };
    if !desired.data_plane_runs {
        return Some(Skipped::pending("LICENSE_SUSPENDED", "the license does not permit traffic"));
    }
    if desired.contested {
        return Some(Skipped::pending("IDENTITY_CONFLICT", "another live copy of this peer's identity exists"));
    }
    if let Some(feature) = desired.features.missing_for(body) {
        return Some(lacks_feature(format!("the license does not include the feature {feature}")));
    }
    if body.transport_type == Transport::Kcp && body.fully_transparent {
        return Some(Skipped::failed("TRANSPORT_UNAVAILABLE", "a fully transparent service needs transport tcp"));
    }
    if body.fully_transparent && (!body.requires_interface || body.transport_type != Transport::Tcp) {
        return Some(Skipped::failed(
            "TRANSPARENT_UNAVAILABLE",
            "transparent mode needs an interface and transport tcp",
        ));
    }
    if Some(other) == desired.local {
        return Some(Skipped::failed("SAME_PEER", "source and target are this peer"));
    }
    if !desired.peers.contains_key(&other) {
        return Some(Skipped::pending("PEER_UNKNOWN", format!("{other} is not a trusted peer with a known record")));
    }
    if mark == Some(None) {
        return Some(Skipped::failed("MARKS_EXHAUSTED", "FWMARK_MASK has no mark left for this service"));
    }
    None
}

fn lacks_feature(message: String) -> Skipped {
    Skipped::failed("LICENSE_FEATURE_DISABLED", message)
}

fn forwarded(desired: &Desired, service: &Service, marks: &Marks) -> ForwardedService {
    let body = &service.body;
    let limit = if desired.unshaped.contains(&body.target_peer_id) { 0 } else { body.bandwidth_limit_mbps };
    ForwardedService {
        source: body.source_peer_id,
        target: body.target_peer_id,
        transport: body.transport_type,
        transparent: body.fully_transparent,
        limit_mbps: limit,
        mark: marks.of(service.id),
        routes: body.routes.iter().map(|r| (r.source_cidr, r.dest_cidr)).collect(),
        whole_interface: body.requires_interface && body.routes.is_empty(),
    }
}

pub(super) fn capture(route: &CompiledRoute, marks: &Marks) -> Option<Capture> {
    Some(Capture {
        service: route.service,
        route: route.route,
        source: route.source,
        dest: route.dest,
        interface: route.interface.clone(),
        mark: marks.of(route.service)?,
    })
}

/// Services with routes of a family in which no listener takes captured connections.
fn unheard(captures: &[Capture], intercept: Intercept) -> BTreeMap<ServiceId, Skipped> {
    let deaf = |family| match family {
        Family::V4 => intercept.v4.is_none(),
        Family::V6 => intercept.v6.is_none(),
    };
    let mut found = BTreeMap::new();
    for capture in captures {
        let family = capture.source.or(capture.dest).map(|net| Family::of(net.addr()));
        let name = match family {
            Some(f) if deaf(f) => f.name(),
            None if Family::BOTH.into_iter().all(deaf) => "IPv4 or IPv6",
            _ => continue,
        };
        let message = format!("the engine has no listener for {name}, so route {capture} captures nothing");
        found.entry(capture.service).or_insert_with(|| Skipped::failed("ENGINE_UNAVAILABLE", message));
    }
    found
}

/// API and data ports of every endpoint whose address is known (dataplane.md §8).
fn peer_sockets(desired: &Desired) -> BTreeSet<PeerSocket> {
    let mut sockets = BTreeSet::new();
    for path in desired.peers.values() {
        for endpoint in &path.endpoints {
            let named = desired.addresses.get(endpoint.host()).into_iter().flatten().copied();
            let ports = path.data_ports;
            for ip in endpoint.ip().into_iter().chain(named) {
                let tcp = [DEFAULT_API_PORT, endpoint.port(), ports.tproxy].map(|port| (TCP, port));
                let udp = [ports.kcp, ports.iptun].map(|port| (UDP, port));
                let all = tcp.into_iter().chain(udp);
                sockets.extend(all.map(|(protocol, port)| PeerSocket { ip, protocol, port }));
            }
        }
    }
    sockets
}

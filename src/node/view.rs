//! The cluster as this node sees it, for `peers list` and `cluster status`.

use super::Node;
use crate::{
    gossip::{Gossip, PeerView},
    license::median_time,
    model::{Endpoint, Mono, PeerId, PeerStatus, UnixTime},
    wire::gossip::Registry,
};
use std::collections::BTreeMap;

/// What is known of the health of one peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerHealth {
    pub status: PeerStatus,
    pub last_seen: Option<UnixTime>,
    pub rtt_ms: Option<f64>,
    /// The endpoint that answered last.
    pub endpoint: Option<Endpoint>,
    /// Version of its software and state of its license, as it said last.
    pub version: Option<String>,
    pub license_state: Option<String>,
    /// Registry digests it reported last, hex.
    pub registries: BTreeMap<String, String>,
    /// Two live copies of its identity are heard (cluster.md §7).
    pub has_two_copies: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    /// Every healthy peer reported the digests that this one has.
    pub converged: bool,
    /// Count and digest (hex) of each registry.
    pub registries: BTreeMap<String, (usize, String)>,
}

impl Node {
    pub fn peer_health(&self, peer: PeerId) -> PeerHealth {
        let view = self.gossip().as_ref().and_then(|machine| machine.peer_view(peer));
        let endpoint = self.endpoint_reached(peer);
        let Some(view) = view else {
            let local = self.identity().is_some_and(|i| i.peer_id == peer);
            let now = self.env().clock.unix();
            return PeerHealth {
                status: if local { PeerStatus::Healthy } else { self.attempts().status(peer) },
                last_seen: local.then_some(now),
                rtt_ms: local.then_some(0.0),
                endpoint,
                version: local.then(|| crate::model::VERSION.to_owned()),
                license_state: self.entitlement().filter(|_| local).map(|e| e.state.to_string()),
                registries: BTreeMap::new(),
                has_two_copies: false,
            };
        };
        let digest = |r: Registry| view.registries.map(|d| (r.name().to_owned(), d.get(r).to_string()));
        PeerHealth {
            status: view.status,
            last_seen: view.last_seen.map(|at| self.wall_time_of(at)),
            rtt_ms: self.round_trip(peer).map(|rtt| (rtt.as_secs_f64() * 10_000.0).round() / 10.0),
            endpoint,
            registries: Registry::ALL.into_iter().filter_map(digest).collect(),
            has_two_copies: view.has_two_copies,
            version: view.heard.as_ref().map(|h| h.version.clone()),
            license_state: view.heard.map(|h| h.license_state),
        }
    }

    pub fn cluster_view(&self) -> ClusterView {
        let gossip = self.gossip();
        let registries = gossip.as_ref().map(Gossip::registries).unwrap_or_default();
        ClusterView {
            converged: gossip.as_ref().is_none_or(Gossip::converged),
            registries: registries
                .into_iter()
                .map(|(r, state)| (r.name().to_owned(), (state.count, state.digest.to_string())))
                .collect(),
        }
    }

    /// The median of the healthy peers' clocks, brought forward to now; None without any.
    pub(super) fn median_peer_time(&self) -> Option<UnixTime> {
        let now = self.env().clock.mono();
        let local = self.identity()?.peer_id;
        let peers = self.store().read(|v| v.trusted_peers()).ok()?;
        let gossip = self.gossip();
        let machine = gossip.as_ref()?;
        let time_of = |PeerView { status, last_seen, heard, .. }: PeerView| {
            let heard = heard.filter(|_| status == PeerStatus::Healthy)?;
            Some(heard.time.plus(now - last_seen?))
        };
        let others = peers.iter().map(|p| p.peer_id).filter(|id| *id != local);
        let times: Vec<UnixTime> = others.filter_map(|id| time_of(machine.peer_view(id)?)).collect();
        median_time(times)
    }

    fn wall_time_of(&self, at: Mono) -> UnixTime {
        let clock = &self.env().clock;
        clock.unix().minus(clock.mono() - at)
    }
}

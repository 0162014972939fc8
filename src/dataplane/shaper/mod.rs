//! Bandwidth limits (dataplane.md §9): each direction of a service has a lane with a token bucket and fair queueing
//! between its flows, whichever path they take. Both are kept at the source peer: what it sends waits there, and what it
//! reads slowly the exit sends slowly. The exit does its part for streams and sends no faster in the first place.

mod fair;
mod lane;
#[cfg(test)]
mod tests;

pub(super) use fair::FlowId;
pub(super) use lane::{Lane, Turns};

use super::Core;
use crate::{model::ServiceId, routing::Forwarding};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The lanes of one service.
#[derive(Clone)]
pub(super) struct Lanes {
    pub to_target: Arc<Lane>,
    pub to_source: Arc<Lane>,
    _driven: Arc<DropGuard>,
}

/// The lanes of all services that have carried something.
#[derive(Default)]
pub(super) struct Shaper {
    lanes: Mutex<BTreeMap<ServiceId, Lanes>>,
}

impl Shaper {
    /// The lanes of a service; its limit is the one of the present snapshot.
    pub fn lanes(&self, core: &Core, service: ServiceId) -> Lanes {
        let mut all = self.all();
        // Read behind the lock: of a new limit either this or `follow` knows.
        all.entry(service).or_insert_with(|| open(core, service)).clone()
    }

    /// Goes by each new snapshot, until the engine stops.
    pub async fn follow(core: Arc<Core>) {
        let mut forwarding = core.forwarding.clone();
        loop {
            let snapshot = forwarding.borrow_and_update().clone();
            core.shaper.all().retain(|id, lanes| {
                let limit = limit_of(&snapshot, *id);
                lanes.to_target.set_limit(limit);
                lanes.to_source.set_limit(limit);
                snapshot.services.contains_key(id)
            });
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                changed = forwarding.changed() => if changed.is_err() { return },
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Lanes>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limit_of(forwarding: &Forwarding, service: ServiceId) -> u32 {
    forwarding.services.get(&service).map_or(0, |s| s.limit_mbps)
}

fn open(core: &Core, service: ServiceId) -> Lanes {
    let ended = CancellationToken::new();
    let forwarding = core.forwarding.borrow().clone();
    let limit_mbps = limit_of(&forwarding, service);
    let is_source = forwarding.services.get(&service).is_some_and(|s| s.source == core.local);
    let backstop = if is_source { lane::SPARING } else { lane::EXACT };
    let [to_target, to_source] = [lane::EXACT, backstop].map(|bytes_per_mbit| {
        let lane = Lane::new(limit_mbps, bytes_per_mbit);
        let (until, stop) = (ended.clone(), core.stop.clone());
        let driven = lane.clone();
        core.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = until.cancelled() => {}
                () = stop.cancelled() => {}
                () = driven.drive() => {}
            }
        });
        lane
    });
    Lanes { to_target, to_source, _driven: Arc::new(ended.drop_guard()) }
}

//! What happened, as this agent sees it (api.md §8): the last events, numbered, for whoever listens.

use crate::model::UnixTime;
use serde_json::{Map, Value, json};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;

/// Older ones are forgotten.
pub const EVENTS_KEPT_MAX: usize = 10_000;

/// Every type there is.
pub const EVENT_TYPES: [&str; 21] = [
    "peer.added",
    "peer.removed",
    "peer.healthy",
    "peer.unhealthy",
    "peer.unreachable",
    "service.created",
    "service.updated",
    "service.deleted",
    "service.applied",
    "service.failed",
    "route.changed",
    "license.state",
    "credential.created",
    "credential.revoked",
    "credential.rotated",
    "drift.repaired",
    "cluster.merged",
    "cluster.locked",
    "cluster.unlocked",
    "agent.started",
    "agent.stopping",
];

/// Something that happened, not yet told: its type and what it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    pub kind: &'static str,
    pub data: Value,
}

impl News {
    pub fn new(kind: &'static str, data: Value) -> Self {
        Self { kind, data }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// From 1 at each start of the agent.
    pub number: u64,
    pub kind: &'static str,
    pub at: UnixTime,
    data: Value,
}

impl Event {
    /// As JSON, under its id.
    pub fn shown(&self, id: &str) -> Value {
        let mut fields = Map::from_iter([
            ("id".to_owned(), json!(id)),
            ("type".to_owned(), json!(self.kind)),
            ("at".to_owned(), json!(self.at)),
        ]);
        if let Value::Object(data) = &self.data {
            fields.extend(data.clone());
        }
        Value::Object(fields)
    }
}

/// Events after a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Backlog {
    pub events: Vec<Arc<Event>>,
    /// Some that came after the number are no longer kept.
    pub is_torn: bool,
}

#[derive(Debug, Default)]
pub struct EventLog {
    kept: Mutex<VecDeque<Arc<Event>>>,
    newest: watch::Sender<u64>,
}

impl EventLog {
    pub fn record(&self, news: News, at: UnixTime) {
        debug_assert!(EVENT_TYPES.contains(&news.kind), "{} is no type of event", news.kind);
        let mut kept = self.kept();
        let number = *self.newest.borrow() + 1;
        kept.push_back(Arc::new(Event { number, kind: news.kind, at, data: news.data }));
        if kept.len() > EVENTS_KEPT_MAX {
            kept.pop_front();
        }
        self.newest.send_replace(number);
    }

    /// The number of the last event; changes with each.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub fn after(&self, number: u64) -> Backlog {
        let kept = self.kept();
        let is_torn = kept.front().is_some_and(|first| first.number > number + 1);
        Backlog { events: kept.iter().filter(|e| e.number > number).cloned().collect(), is_torn }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.kept.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_thousand_are_kept_and_a_gap_is_told() {
        let log = EventLog::default();
        let at = UnixTime::from_secs(1);
        let record = |n: u64| log.record(News::new("peer.added", json!({ "n": n })), at);
        assert_eq!(log.after(0), Backlog { events: vec![], is_torn: false });
        (1..=10_000).for_each(record);
        let numbers = |b: &Backlog| (b.events.first().map(|e| e.number), b.events.len());
        let all = log.after(0);
        assert_eq!((numbers(&all), all.is_torn), ((Some(1), 10_000), false));
        record(10_001);
        let all = log.after(0);
        assert_eq!((numbers(&all), all.is_torn), ((Some(2), 10_000), true));
        assert!(!log.after(1).is_torn);
        assert_eq!(numbers(&log.after(9_999)), (Some(10_000), 2));
        assert_eq!(numbers(&log.after(10_001)), (None, 0));
        let shown = log.after(10_000).events[0].shown("x-10001");
        assert_eq!(shown, json!({"id": "x-10001", "type": "peer.added", "at": at, "n": 10_001}));
    }
}

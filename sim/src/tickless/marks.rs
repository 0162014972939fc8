//! Coverage of situations: `sometimes!("…")` marks a place that a sweep has to reach now and then.

use std::{cell::RefCell, collections::BTreeMap};

thread_local! {
    static HITS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Every mark there is; a sweep of 1,000 seeds that misses one fails.
pub const ALL: &[&str] = &[
    "a bootstrap is repeated when the clock is right again",
    "a call fails over to the next endpoint",
    "a call gives up waiting",
    "a clock is in doubt",
    "a commit fails and is tried again",
    "a connect is refused by a host without agent",
    "a connect times out at a partition",
    "a copy of an identity is refused by its peers",
    "a damaged request fails its signature",
    "a foreign customer is refused",
    "a handshake fails on a signature",
    "a healthy core comes to rest beside a faulty node",
    "a license is in its grace period",
    "a license is read-only",
    "a license is renewed",
    "a license is suspended",
    "a license warns",
    "a member equivocates",
    "a member replays records of others",
    "a member sends an oversize record",
    "a member signs for another",
    "a member withholds its records",
    "a node adopts a version of its own that it had lost",
    "a node boots in 1970",
    "a node catches up with an owner",
    "a node dies after it has stored a merge",
    "a node dies before it has stored a merge",
    "a node dies in the middle of a write",
    "a node gives its word about peers anew",
    "a node goes back to an old snapshot",
    "a node has caught up with an owner",
    "a node joins a peer of its own accord",
    "a node learns of its own revocation",
    "a node limit refuses a peer",
    "a node loses its database and keeps its key",
    "a node starts after a page was flipped",
    "a node writes own records anew after a loss",
    "a peer out of reach tells of other endpoints",
    "a peer removes itself",
    "a peer that knows us no more is handshaken again",
    "a peer turns healthy",
    "a peer turns unhealthy",
    "a record above the limit is refused",
    "a record introduces a stranger",
    "a removed peer is told where it answered last",
    "a removed peer learns of it when it calls",
    "a request that comes twice is served once",
    "a responder is busy",
    "a responder knows the session no more",
    "a revocation voids records",
    "a revoked peer is refused",
    "a service captures traffic",
    "a service is deleted",
    "a service limit refuses a service",
    "a start fails on its disk and is tried again",
    "a suspended agent keeps silent",
    "a tombstone is collected",
    "a trusted peer is not added again",
    "a voucher introduces a peer",
    "a voucher of another customer",
    "a write is blocked by the license",
    "an agent without a cluster is no peer",
    "an answer is rejected",
    "an operator is told that the disk failed",
    "an operator readmits a peer",
    "an operator removes a peer",
    "an owner publishes a floor",
    "another peer answers at an endpoint",
    "of two contents of one version the larger hash wins",
    "someone shakes hands in the name of another",
    "the call back of a handshake fails",
    "the task of a call dies with its answer",
    "three attempts at a handshake fail",
    "tombstones are collected, or a reset drops what is not confirmed",
    "trust ends that the other side does not return",
    "two clocks are too far apart",
    "two live copies of a peer are heard",
    "two live copies of one identity",
    "two services want one name",
    "what was merged is merged in another order",
];

/// Counts the mark, which stands in [`ALL`].
pub fn hit(mark: &'static str) {
    debug_assert!(ALL.contains(&mark), "mark {mark:?} is not listed in marks.rs");
    HITS.with_borrow_mut(|hits| *hits.entry(mark).or_default() += 1);
}

/// Hits of this thread since the last call.
pub fn take() -> BTreeMap<&'static str, u64> {
    HITS.take()
}

/// Marks a place, or a condition at a place, that a sweep has to reach.
#[macro_export]
macro_rules! sometimes {
    ($mark:literal) => {
        $crate::tickless::marks::hit($mark)
    };
    ($condition:expr, $mark:literal) => {
        if $condition {
            $crate::tickless::marks::hit($mark)
        }
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_listed_mark_stands_somewhere_and_every_mark_is_listed() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tickless");
        let mut text = String::new();
        let mut dirs = vec![root];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if !path.ends_with("tickless/marks.rs") {
                    text.push_str(&std::fs::read_to_string(path).unwrap());
                }
            }
        }
        let used: std::collections::BTreeSet<&str> = text
            .split("sometimes!(")
            .skip(1)
            .filter_map(|after| after.split(");").next()?.rsplit('"').nth(1))
            .filter(|mark| !mark.contains('…'))
            .collect();
        let listed: std::collections::BTreeSet<&str> = super::ALL.iter().copied().collect();
        assert_eq!(used, listed);
        assert_eq!(listed.len(), super::ALL.len());
        assert!(listed.len() >= 60);
    }
}

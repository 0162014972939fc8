//! Bugs that are put in on purpose, to see that the simulator finds them. They exist only with the feature `simulation`,
//! which no release has; there each thread switches its own on. Without the feature every branch on them folds away.

/// The planted bugs of simulation.md §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A record is taken without a look at the version that is held.
    VersionCheckSkipped,
    /// Of two versions the one written later by the wall clock wins.
    WallClockDecidesOrder,
    /// A tombstone goes before every peer has acknowledged it.
    TombstoneCollectedEarly,
    /// A message may be played again.
    ReplayCheckOff,
    /// A write is acknowledged before it is on disk.
    AckBeforeCommit,
    /// Whoever fell silent is never called again.
    UnhealthyPeersNotCalled,
    /// A new ruleset is written in part.
    HalfARulesetApplied,
    /// The customer of a license is not compared.
    ForeignCustomerMerged,
    /// Nothing bounds how often a stranger may call.
    NoRateLimit,
    /// Some wrong signatures pass.
    LaxSignatureCheck,
    /// A nonce serves twice.
    NonceReused,
    /// A revocation names the record that was seen, instead of the identity.
    RevocationByBlobHash,
    /// A handshake is signed without what makes it a new one.
    FieldLeftUnsigned,
    /// The signature of who opens a handshake is not looked at.
    HandshakeSignatureSkipped,
    /// License, members and record are told to whoever has signed, reached or not.
    ToldBeforeCallBack,
    /// The keys of a handshake are kept until the process ends.
    KeysOutliveHandshake,
    /// What a stranger shows is verified, whatever has been found wrong before.
    StrangerCostsTwice,
    /// Of two contents of one version the smaller hash wins.
    SmallerHashWins,
    /// A cluster forgets the id of the one that it merged with.
    MergeForgetsId,
    /// A license past its grace lets operators write.
    WritesPastGrace,
    /// A start takes the database as it is.
    DamageServed,
}

impl Bug {
    pub const ALL: [Bug; 21] = [
        Bug::VersionCheckSkipped,
        Bug::WallClockDecidesOrder,
        Bug::TombstoneCollectedEarly,
        Bug::ReplayCheckOff,
        Bug::AckBeforeCommit,
        Bug::UnhealthyPeersNotCalled,
        Bug::HalfARulesetApplied,
        Bug::ForeignCustomerMerged,
        Bug::NoRateLimit,
        Bug::LaxSignatureCheck,
        Bug::NonceReused,
        Bug::RevocationByBlobHash,
        Bug::FieldLeftUnsigned,
        Bug::HandshakeSignatureSkipped,
        Bug::ToldBeforeCallBack,
        Bug::KeysOutliveHandshake,
        Bug::StrangerCostsTwice,
        Bug::SmallerHashWins,
        Bug::MergeForgetsId,
        Bug::WritesPastGrace,
        Bug::DamageServed,
    ];

    /// The word of `scripts/sweep --plant`.
    pub fn name(self) -> &'static str {
        match self {
            Bug::VersionCheckSkipped => "version-check-skipped",
            Bug::WallClockDecidesOrder => "wall-clock-decides-order",
            Bug::TombstoneCollectedEarly => "tombstone-collected-early",
            Bug::ReplayCheckOff => "replay-check-off",
            Bug::AckBeforeCommit => "ack-before-commit",
            Bug::UnhealthyPeersNotCalled => "unhealthy-peers-not-called",
            Bug::HalfARulesetApplied => "half-a-ruleset-applied",
            Bug::ForeignCustomerMerged => "foreign-customer-merged",
            Bug::NoRateLimit => "no-rate-limit",
            Bug::LaxSignatureCheck => "lax-signature-check",
            Bug::NonceReused => "nonce-reused",
            Bug::RevocationByBlobHash => "revocation-by-blob-hash",
            Bug::FieldLeftUnsigned => "field-left-unsigned",
            Bug::HandshakeSignatureSkipped => "handshake-signature-skipped",
            Bug::ToldBeforeCallBack => "told-before-call-back",
            Bug::KeysOutliveHandshake => "keys-outlive-handshake",
            Bug::StrangerCostsTwice => "stranger-costs-twice",
            Bug::SmallerHashWins => "smaller-hash-wins",
            Bug::MergeForgetsId => "merge-forgets-id",
            Bug::WritesPastGrace => "writes-past-grace",
            Bug::DamageServed => "damage-served",
        }
    }
}

/// Whether this thread has the bug.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "simulation")]
pub use switch::{plant, planted};

#[cfg(feature = "simulation")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<u32> = const { Cell::new(0) };
    }

    /// Whether this thread has the bug.
    #[inline]
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() & (1 << bug as u32) != 0
    }

    /// Gives this thread exactly these bugs.
    pub fn plant(bugs: &[Bug]) {
        PLANTED.set(bugs.iter().fold(0, |set, bug| set | 1 << *bug as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bug_is_there_unless_it_is_planted() {
        assert!(Bug::ALL.iter().all(|bug| !planted(*bug)));
        let mut names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        names.dedup();
        assert_eq!(names.len(), Bug::ALL.len());
    }
}

//! Many seeds, and what they say together.

use super::{KNOBS, Outcome, Shape, run_part};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

/// A knob that so many seeds never turn is dead.
const KNOBS_FROM_SEEDS: u64 = 50;

/// What a sweep found.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub seeds: u64,
    /// Simulated time of all clusters,
    pub simulated: Duration,
    /// and of each of their nodes.
    pub node_time: Duration,
    /// What it took on the wall; zero if nobody looked.
    pub took: Duration,
    pub acknowledged: u64,
    pub slowest_convergence: Duration,
    pub fired: BTreeMap<&'static str, u64>,
    pub failed: Vec<Outcome>,
}

impl Summary {
    pub fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.simulated += outcome.simulated;
        self.node_time += outcome.simulated * u32::try_from(outcome.nodes).unwrap_or(u32::MAX);
        self.acknowledged += outcome.acknowledged;
        self.slowest_convergence = self.slowest_convergence.max(outcome.converged_after);
        for (&knob, times) in &outcome.fired {
            *self.fired.entry(knob).or_default() += times;
        }
        if !outcome.violated.is_empty() {
            self.failed.push(outcome);
        }
    }

    /// Knobs that never turned: the sweep proved nothing about them.
    pub fn never_fired(&self) -> Vec<&'static str> {
        KNOBS.into_iter().filter(|knob| self.fired.get(knob).is_none_or(|times| *times == 0)).collect()
    }

    /// No invariant was violated, and no knob is dead.
    pub fn is_green(&self) -> bool {
        self.failed.is_empty() && (self.seeds < KNOBS_FROM_SEEDS || self.never_fired().is_empty())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (knob, times) in &self.fired {
            writeln!(f, "fired       {times:>6} {knob}")?;
        }
        let hours = |time: Duration| time.as_secs_f64() / 3600.0;
        write!(f, "sim: seeds={} hours={:.1} failed={} tier=B", self.seeds, hours(self.simulated), self.failed.len())?;
        if !self.took.is_zero() {
            write!(f, " speedup={:.0}x", self.simulated.as_secs_f64() / self.took.as_secs_f64())?;
        }
        let (node_hours, slowest) = (hours(self.node_time), self.slowest_convergence.as_secs_f64());
        write!(f, " node_hours={node_hours:.1} acknowledged={} slowest_convergence={slowest:.1}s", self.acknowledged)
    }
}

/// Runs the seeds on so many threads, each run on one of them; `done` hears of each outcome as it comes.
pub fn sweep(
    seeds: impl IntoIterator<Item = u64, IntoIter: Send>,
    threads: usize,
    run: impl Fn(u64) -> Outcome + Sync,
    done: impl Fn(&Outcome) + Sync,
) -> Summary {
    let (seeds, summary) = (Mutex::new(seeds.into_iter()), Mutex::new(Summary::default()));
    let next = || seeds.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let outcome = run(seed);
                    done(&outcome);
                    summary.lock().unwrap_or_else(PoisonError::into_inner).add(outcome);
                }
            });
        }
    });
    summary.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves out faults one by one while the run still fails; positions in the list of those that are needed.
pub fn shrink(failed: &Outcome, shape: Shape) -> Vec<usize> {
    let mut needed = failed.kept.clone();
    for candidate in failed.kept.iter().copied().rev() {
        let fewer: Vec<usize> = needed.iter().copied().filter(|n| *n != candidate).collect();
        if !run_part(failed.seed, shape, |n| fewer.contains(&n)).violated.is_empty() {
            needed = fewer;
        }
    }
    needed
}

/// Joins so many nodes and leaves them alone for a while; the simulated time that took, for who holds a stopwatch (S3).
pub fn idle(nodes: usize, lasts: Duration) -> Duration {
    let mut cluster = crate::Cluster::new(&crate::Options::new(1, nodes));
    let license = cluster.license(1, 100);
    super::join_all(&mut cluster, &license);
    cluster.act(|_| async move { tokio::time::sleep(lasts).await });
    cluster.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swept(seeds: u64, dead: Option<&str>) -> Summary {
        let fired: BTreeMap<_, _> = KNOBS.into_iter().map(|knob| (knob, u64::from(dead != Some(knob)))).collect();
        let mut summary = Summary::default();
        (0..seeds).for_each(|seed| summary.add(Outcome { seed, fired: fired.clone(), ..Outcome::default() }));
        summary
    }

    #[test]
    fn a_sweep_of_many_seeds_is_red_while_one_knob_never_turned() {
        assert!(swept(KNOBS_FROM_SEEDS, None).is_green());
        assert!(swept(KNOBS_FROM_SEEDS - 1, Some("old copy")).is_green(), "too few to say");
        let dead = swept(KNOBS_FROM_SEEDS, Some("old copy"));
        assert_eq!((dead.is_green(), dead.never_fired()), (false, vec!["old copy"]));
    }

    #[test]
    fn a_violated_invariant_makes_a_sweep_red() {
        let mut summary = swept(1, None);
        summary.add(Outcome { violated: vec!["D1".into()], ..Outcome::default() });
        assert!(!summary.is_green() && summary.failed.len() == 1);
    }
}

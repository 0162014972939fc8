//! Cutting a failing plan down to the faults and the work that it takes.

use super::{
    runs::{Plan, run_plan},
    trace::Detail,
};

/// Drops what is not needed for a violation of the same invariant: halves, then quarters, then single entries
/// (delta debugging), while `more` allows another run.
pub fn shrink(plan: &Plan, invariant: &'static str, mut more: impl FnMut() -> bool) -> Plan {
    let mut best = plan.clone();
    let fails =
        |candidate: &Plan| run_plan(candidate, Detail::Off).world.failure.is_some_and(|f| f.invariant == invariant);
    loop {
        let before = (best.faults.len(), best.work.len());
        best.faults =
            minimal(&best.faults, &mut more, |faults| fails(&Plan { faults: faults.to_vec(), ..best.clone() }));
        best.work = minimal(&best.work, &mut more, |work| fails(&Plan { work: work.to_vec(), ..best.clone() }));
        if best.outsider.is_some() && more() && fails(&Plan { outsider: None, ..best.clone() }) {
            best.outsider = None;
        }
        if (best.faults.len(), best.work.len()) == before || !more() {
            return best;
        }
    }
}

fn minimal<T: Clone>(list: &[T], more: &mut impl FnMut() -> bool, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut best = list.to_vec();
    let mut chunk = best.len().div_ceil(2).max(1);
    while !best.is_empty() {
        let mut at = 0;
        while at < best.len() {
            if !more() {
                return best;
            }
            let end = (at + chunk).min(best.len());
            let without: Vec<T> = [&best[..at], &best[end..]].concat();
            if fails(&without) {
                best = without;
            } else {
                at = end;
            }
        }
        if chunk == 1 {
            return best;
        }
        chunk = chunk.div_ceil(2);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_it_takes_is_left() {
        let list: Vec<u32> = (0..100).collect();
        let mut runs = 0;
        let needs = |l: &[u32]| l.contains(&17) && l.contains(&61);
        let found = minimal(&list, &mut || true, |l| {
            runs += 1;
            needs(l)
        });
        assert_eq!(found, [17, 61]);
        assert!(runs < 80, "{runs}");
        assert!(minimal(&list, &mut || false, needs).len() == 100, "no time, no change");
    }
}

//! Sets of numbers as ranges, end exclusive.

use std::collections::BTreeMap;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        if let Some((&s, &e)) = self.0.range(..=start).next_back()
            && e >= start
        {
            (start, end) = (s, end.max(e));
        }
        while let Some((&s, &e)) = self.0.range(start..=end).next() {
            end = end.max(e);
            self.0.remove(&s);
        }
        self.0.insert(start, end);
    }

    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((&s, &e)) = self.0.range(..start).next_back()
            && e > start
        {
            self.0.insert(s, start);
            if e > end {
                self.0.insert(end, e);
            }
        }
        while let Some((&s, &e)) = self.0.range(start..end).next() {
            self.0.remove(&s);
            if e > end {
                self.0.insert(end, e);
            }
        }
    }

    pub fn contains(&self, n: u64) -> bool {
        self.0.range(..=n).next_back().is_some_and(|(_, &end)| end > n)
    }

    pub fn first(&self) -> Option<(u64, u64)> {
        self.0.first_key_value().map(|(&s, &e)| (s, e))
    }

    /// Takes at most `max` numbers from the front.
    pub fn take_first(&mut self, max: u64) -> Option<(u64, u64)> {
        let (start, end) = self.0.pop_first()?;
        let cut = end.min(start.saturating_add(max));
        if cut < end {
            self.0.insert(cut, end);
        }
        Some((start, cut))
    }

    pub fn pop_first(&mut self) -> Option<(u64, u64)> {
        self.0.pop_first()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Highest first.
    pub fn descending(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().rev().map(|(&s, &e)| (s, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_a_set_holds(steps in proptest::collection::vec((any::<bool>(), 0..60u64, 0..12u64), 0..60)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (add, start, length) in steps {
                if add {
                    ranges.insert(start, start + length);
                    set.extend(start..start + length);
                } else {
                    ranges.remove(start, start + length);
                    set.retain(|n| !(start..start + length).contains(n));
                }
                let held: BTreeSet<u64> = ranges.descending().flat_map(|(s, e)| s..e).collect();
                prop_assert_eq!(&held, &set);
                prop_assert!((0..80).all(|n| ranges.contains(n) == set.contains(&n)));
                let bounds: Vec<_> = ranges.0.iter().collect();
                prop_assert!(bounds.windows(2).all(|w| w[0].1 < w[1].0), "neighbours are one range");
            }
        }
    }
}

//! One direction of a long link, as a pure machine: no clock, no I/O; time is an argument, chance comes from a seed.
//!
//! A packet meets, in this order: the cut, the largest size, the finite queue in front of the bottleneck, the bottleneck's rate, loss on
//! the wire (so a lost packet has used the link), the delay and its jitter.

use std::time::Duration;

/// What a direction does to packets. The default does nothing: no delay, no loss, no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conditions {
    /// One-way propagation delay.
    pub delay: Duration,
    /// Each packet is late by a uniform part of this, on top of `delay`.
    pub jitter: Duration,
    /// Probability that a packet is lost, each on its own.
    pub loss: f64,
    /// Losses that come in bursts, on top of `loss`.
    pub burst: Option<Burst>,
    /// Bottleneck rate in bits per second of IP packets; `None` is infinite.
    pub rate_bps: Option<u64>,
    /// Bytes that may wait for the bottleneck, the packet on it included; `None` is one bandwidth-delay product of a
    /// symmetric link, at least [`MIN_QUEUE_BYTES`].
    pub queue_bytes: Option<u64>,
    /// With jitter, whether a packet may overtake another.
    pub reorder: bool,
    /// Probability that a packet arrives once more, as late again as jitter says.
    pub duplicate: f64,
    /// Larger packets (IP header included) vanish without an error; `None` is no bound.
    pub mtu_bytes: Option<usize>,
    /// A black hole.
    pub cut: bool,
}

/// Ten full packets: below that no TCP can fill a link.
pub const MIN_QUEUE_BYTES: u64 = 15_000;

/// Two-state loss after Gilbert and Elliott: each packet first moves the state, then meets the state's loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    /// Probability to enter the bad state, a packet.
    pub enter: f64,
    /// Probability to leave it, a packet: bursts last 1/`leave` packets on average.
    pub leave: f64,
    /// Loss within the bad state.
    pub loss: f64,
}

impl Burst {
    /// The loss this causes in the long run.
    pub fn mean_loss(&self) -> f64 {
        if self.enter == 0.0 { 0.0 } else { self.loss * self.enter / (self.enter + self.leave) }
    }
}

impl Conditions {
    /// The bound of the queue in bytes, when there is a bottleneck.
    pub fn queue_limit_bytes(&self) -> Option<u64> {
        let rate_bps = self.rate_bps?;
        let bdp = (rate_bps as u128 * 2 * self.delay.as_nanos() / 8 / NS_PER_S as u128) as u64;
        Some(self.queue_bytes.unwrap_or(bdp.max(MIN_QUEUE_BYTES)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Deliver { at_ns: u64 },
    Drop(DropReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    Cut,
    TooBig,
    QueueFull,
    Random,
    Burst,
}

/// Packets seen in one direction, and what became of them. `offered` = `delivered` + all drops + packets in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub offered: u64,
    pub offered_bytes: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub dropped_cut: u64,
    pub dropped_too_big: u64,
    pub dropped_queue_full: u64,
    pub dropped_random: u64,
    pub dropped_burst: u64,
    /// No buffer left in the emulator, or the far device refused the packet: zero unless the harness itself failed.
    pub dropped_emulator: u64,
}

const NS_PER_S: u64 = 1_000_000_000;

pub struct Path {
    conditions: Conditions,
    chance: Chance,
    /// Of its own, so that copies do not shift the luck of packets.
    copies: Chance,
    in_burst: bool,
    /// When the bottleneck will have sent all it holds, and the part of a nanosecond (in 1/rate) left over.
    free_at_ns: u64,
    free_at_fraction: u64,
    latest_delivery_ns: u64,
    counters: Counters,
}

impl Path {
    pub fn new(conditions: Conditions, seed: u64) -> Path {
        Path {
            conditions,
            chance: Chance(seed),
            copies: Chance(seed.rotate_left(32)),
            in_burst: false,
            free_at_ns: 0,
            free_at_fraction: 0,
            latest_delivery_ns: 0,
            counters: Counters::default(),
        }
    }

    /// Changes the conditions for packets offered from now on. Bytes that wait stay, and leave at the new rate.
    pub fn set(&mut self, now_ns: u64, conditions: Conditions) {
        let waiting_bytes = self.waiting_bytes(now_ns);
        self.conditions = conditions;
        self.free_at_ns = now_ns;
        self.free_at_fraction = 0;
        self.serialise(now_ns, waiting_bytes);
    }

    /// Decides the fate of a packet of `len` bytes that arrives now. `now_ns` never goes back.
    pub fn offer(&mut self, now_ns: u64, len: usize) -> Verdict {
        self.counters.offered += 1;
        self.counters.offered_bytes += len as u64;
        let verdict = self.decide(now_ns, len as u64);
        match verdict {
            Verdict::Deliver { at_ns } => self.latest_delivery_ns = self.latest_delivery_ns.max(at_ns),
            Verdict::Drop(DropReason::Cut) => self.counters.dropped_cut += 1,
            Verdict::Drop(DropReason::TooBig) => self.counters.dropped_too_big += 1,
            Verdict::Drop(DropReason::QueueFull) => self.counters.dropped_queue_full += 1,
            Verdict::Drop(DropReason::Random) => self.counters.dropped_random += 1,
            Verdict::Drop(DropReason::Burst) => self.counters.dropped_burst += 1,
        }
        verdict
    }

    /// When a packet that is delivered at `at_ns` arrives once more, if it does.
    pub fn again(&mut self, at_ns: u64) -> Option<u64> {
        let lateness = self.copies.below(self.conditions.jitter.as_nanos() as u64 + 1);
        self.copies.happens(self.conditions.duplicate).then_some(at_ns + lateness)
    }

    /// Bytes that wait for the bottleneck, the packet on it included.
    pub fn waiting_bytes(&self, now_ns: u64) -> u64 {
        let Some(rate_bps) = self.conditions.rate_bps else { return 0 };
        let waiting_ns = self.free_at_ns.saturating_sub(now_ns);
        (waiting_ns as u128 * rate_bps as u128).div_ceil(8 * NS_PER_S as u128) as u64
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    fn decide(&mut self, now_ns: u64, len: u64) -> Verdict {
        // Every packet draws the same numbers, so that one decision does not shift the luck of later packets.
        let lost_alone = self.chance.happens(self.conditions.loss);
        let lost_in_burst = self.burst_takes();
        let lateness = self.chance.below(self.conditions.jitter.as_nanos() as u64 + 1);

        if self.conditions.cut {
            return Verdict::Drop(DropReason::Cut);
        }
        if self.conditions.mtu_bytes.is_some_and(|mtu| len > mtu as u64) {
            return Verdict::Drop(DropReason::TooBig);
        }
        if self.conditions.queue_limit_bytes().is_some_and(|limit| self.waiting_bytes(now_ns) + len > limit) {
            return Verdict::Drop(DropReason::QueueFull);
        }
        let sent_ns = self.serialise(now_ns, len);
        if lost_alone {
            return Verdict::Drop(DropReason::Random);
        }
        if lost_in_burst {
            return Verdict::Drop(DropReason::Burst);
        }
        let at_ns = sent_ns + self.conditions.delay.as_nanos() as u64 + lateness;
        let not_before_ns = if self.conditions.reorder { 0 } else { self.latest_delivery_ns };
        Verdict::Deliver { at_ns: at_ns.max(not_before_ns) }
    }

    /// Puts `len` bytes on the bottleneck; when its last bit has left.
    fn serialise(&mut self, now_ns: u64, len: u64) -> u64 {
        let Some(rate_bps) = self.conditions.rate_bps else { return now_ns };
        if self.free_at_ns < now_ns {
            (self.free_at_ns, self.free_at_fraction) = (now_ns, 0);
        }
        let duration = len as u128 * 8 * NS_PER_S as u128 + self.free_at_fraction as u128;
        self.free_at_ns += (duration / rate_bps as u128) as u64;
        self.free_at_fraction = (duration % rate_bps as u128) as u64;
        self.free_at_ns
    }

    fn burst_takes(&mut self) -> bool {
        let burst = self.conditions.burst.unwrap_or(Burst { enter: 0.0, leave: 1.0, loss: 0.0 });
        let turn = if self.in_burst { burst.leave } else { burst.enter };
        self.in_burst ^= self.chance.happens(turn);
        self.chance.happens(burst.loss) && self.in_burst
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn happens(&mut self, probability: f64) -> bool {
        // The upper 53 bits as a fraction of 1, exact in a double.
        ((self.next() >> 11) as f64 / (1u64 << 53) as f64) < probability
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACKET: usize = 1500;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn deliveries(path: &mut Path, packets: u64, gap_ns: u64) -> Vec<u64> {
        (0..packets)
            .filter_map(|n| match path.offer(n * gap_ns, PACKET) {
                Verdict::Deliver { at_ns } => Some(at_ns),
                Verdict::Drop(_) => None,
            })
            .collect()
    }

    #[test]
    fn no_conditions_deliver_at_once() {
        let mut path = Path::new(Conditions::default(), 1);
        assert_eq!(path.offer(17, PACKET), Verdict::Deliver { at_ns: 17 });
    }

    #[test]
    fn rate_spaces_packets_and_full_queue_drops() {
        let conditions = Conditions { rate_bps: Some(12_000_000), queue_bytes: Some(15_000), ..Conditions::default() };
        let mut path = Path::new(conditions, 1);
        let at = deliveries(&mut path, 20, 0);
        assert_eq!(at, (1..=10).map(|n| n * 1_000_000).collect::<Vec<_>>());
        assert_eq!(path.counters().dropped_queue_full, 10);
        assert_eq!(path.waiting_bytes(0), 15_000);
        assert_eq!(path.waiting_bytes(4_000_000), 9_000);
    }

    #[test]
    fn default_queue_is_one_bandwidth_delay_product() {
        let ocean = Conditions { delay: ms(75), rate_bps: Some(200_000_000), ..Conditions::default() };
        assert_eq!(ocean.queue_limit_bytes(), Some(3_750_000));
        assert_eq!(Conditions::default().queue_limit_bytes(), None);
    }

    #[test]
    fn cut_drops_all_until_healed() {
        let mut path = Path::new(Conditions { cut: true, ..Conditions::default() }, 1);
        assert_eq!(path.offer(0, PACKET), Verdict::Drop(DropReason::Cut));
        path.set(5, Conditions::default());
        assert_eq!(path.offer(5, PACKET), Verdict::Deliver { at_ns: 5 });
    }

    #[test]
    fn what_is_too_big_vanishes() {
        let mut path = Path::new(Conditions { mtu_bytes: Some(1280), ..Conditions::default() }, 1);
        assert_eq!(path.offer(0, 1281), Verdict::Drop(DropReason::TooBig));
        assert_eq!(path.offer(0, 1280), Verdict::Deliver { at_ns: 0 });
        assert_eq!(path.counters().dropped_too_big, 1);
    }

    #[test]
    fn some_packets_arrive_once_more_and_shift_the_luck_of_none() {
        let lossy = Conditions { loss: 0.1, jitter: ms(1), ..Conditions::default() };
        let run = |duplicate| {
            let mut path = Path::new(Conditions { duplicate, ..lossy }, 5);
            let verdicts: Vec<Verdict> = (0..1000).map(|n| path.offer(n, PACKET)).collect();
            let copies = (0..1000).filter(|n| path.again(*n).is_some_and(|at| at >= *n)).count();
            (verdicts, copies)
        };
        let ((plain, none), (doubled, copies)) = (run(0.0), run(0.2));
        assert_eq!((plain, none), (doubled, 0));
        assert!((150..250).contains(&copies), "{copies}");
    }

    #[test]
    fn waiting_bytes_survive_a_change_of_rate() {
        let slow = Conditions { rate_bps: Some(12_000_000), ..Conditions::default() };
        let mut path = Path::new(slow, 1);
        deliveries(&mut path, 10, 0);
        path.set(0, Conditions { rate_bps: Some(120_000_000), ..slow });
        assert_eq!(path.waiting_bytes(0), 15_000);
        assert_eq!(path.waiting_bytes(1_000_000), 0);
    }

    #[test]
    fn bursts_lose_their_mean_in_runs() {
        let burst = Burst { enter: 0.005, leave: 0.2, loss: 1.0 };
        let mut path = Path::new(Conditions { burst: Some(burst), ..Conditions::default() }, 3);
        let lost: Vec<bool> = (0..200_000).map(|n| matches!(path.offer(n, PACKET), Verdict::Drop(_))).collect();
        let losses = lost.iter().filter(|lost| **lost).count() as f64;
        let runs = lost.windows(2).filter(|pair| pair[1] && !pair[0]).count() as f64;
        assert!((losses / 200_000.0 - burst.mean_loss()).abs() < 0.003, "mean loss {}", losses / 200_000.0);
        assert!((losses / runs - 5.0).abs() < 0.7, "mean run {}", losses / runs);
    }

    fn conditions() -> impl Strategy<Value = Conditions> {
        let burst = proptest::option::of((0.0..0.1, 0.05..1.0, 0.0..1.0))
            .prop_map(|burst| burst.map(|(enter, leave, loss)| Burst { enter, leave, loss }));
        let rate = proptest::option::of(100_000u64..1_000_000_000);
        let queue = proptest::option::of(1_500u64..10_000_000);
        (0u64..500, 0u64..50, 0.0..0.3, burst, rate, queue, any::<bool>()).prop_map(
            |(delay, jitter, loss, burst, rate_bps, queue_bytes, reorder)| Conditions {
                delay: ms(delay),
                jitter: ms(jitter),
                loss,
                burst,
                rate_bps,
                queue_bytes,
                reorder,
                ..Conditions::default()
            },
        )
    }

    fn arrivals() -> impl Strategy<Value = Vec<(u64, usize)>> {
        proptest::collection::vec((0u64..200_000, 20usize..=1500), 1..400)
    }

    proptest! {
        #[test]
        fn same_seed_same_decisions(conditions in conditions(), arrivals in arrivals(), seed: u64) {
            let run = || {
                let (mut path, mut now) = (Path::new(conditions, seed), 0);
                arrivals.iter().map(|(gap, len)| { now += gap; path.offer(now, *len) }).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }

        #[test]
        fn delay_queue_and_order_are_kept(conditions in conditions(), arrivals in arrivals(), seed: u64) {
            let (mut path, mut now, mut latest) = (Path::new(conditions, seed), 0, 0);
            for (gap, len) in arrivals {
                now += gap;
                let verdict = path.offer(now, len);
                if let Some(limit) = conditions.queue_limit_bytes() {
                    prop_assert!(path.waiting_bytes(now) <= limit + 1, "a byte may be rounded up");
                }
                if let Verdict::Deliver { at_ns } = verdict {
                    prop_assert!(at_ns >= now + conditions.delay.as_nanos() as u64);
                    prop_assert!(conditions.reorder || at_ns >= latest);
                    latest = at_ns;
                }
            }
        }

        #[test]
        fn rate_is_never_exceeded(rate_bps in 100_000u64..10_000_000_000, arrivals in arrivals(), seed: u64) {
            let conditions = Conditions { rate_bps: Some(rate_bps), ..Conditions::default() };
            let (mut path, mut now, mut sent_bits) = (Path::new(conditions, seed), 0, 0u128);
            let start = arrivals[0].0;
            for (gap, len) in arrivals {
                now += gap;
                if let Verdict::Deliver { at_ns } = path.offer(now, len) {
                    sent_bits += len as u128 * 8;
                    let allowed = (at_ns - start + 1) as u128 * rate_bps as u128 / NS_PER_S as u128;
                    prop_assert!(sent_bits <= allowed + 1, "{sent_bits} bits by {at_ns} ns");
                }
            }
        }

        #[test]
        fn random_loss_is_near_its_probability(loss in 0.0..0.5f64, seed: u64) {
            const PACKETS: u64 = 20_000;
            let mut path = Path::new(Conditions { loss, ..Conditions::default() }, seed);
            let arrived = deliveries(&mut path, PACKETS, 1).len() as f64;
            let sigma = (loss * (1.0 - loss) / PACKETS as f64).sqrt();
            prop_assert!((1.0 - arrived / PACKETS as f64 - loss).abs() <= 6.0 * sigma + 1e-9);
        }
    }
}

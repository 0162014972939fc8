//! How fast a path carries and how much may be on it, learned from acknowledgements; and the pace of sending.
//!
//! After BBR (draft-cardwell-iccrg-bbr-congestion-control-00): the rate is the largest delivery rate of the last
//! rounds, probed upwards in turns and never lowered by loss alone. A session keeps what it learned while idle, so a new
//! flow starts at the path's rate.

use super::{ACK_DELAY, GROUP_DELAY, MTU_BYTES, RTO_MIN, RTT_INITIAL};
use crate::model::Mono;
use std::{collections::VecDeque, time::Duration};

const WINDOW_MIN_BYTES: u64 = 16 * MTU_BYTES as u64;
const WINDOW_INITIAL_BYTES: u64 = 32 * MTU_BYTES as u64;
const WINDOW_MAX_BYTES: u64 = 64 << 20;
/// A rate is forgotten after so many rounds, and not before this: where a round trip takes no time, one slow moment of a
/// busy host would fill all of them.
const RATE_ROUNDS: u64 = 10;
const RATE_WINDOW: Duration = Duration::from_millis(100);
/// The shortest round trip is forgotten after this and so many round trips, three cycles in which the queue was drained:
/// on a path that has become longer, the window would be too small for the rate, and the rate shrink with it.
const RTT_WINDOW: Duration = Duration::from_secs(3);
const RTT_WINDOW_ROUNDS: u32 = 3 * CYCLE.len() as u32;
const STARTUP_GAIN: f64 = 2.885;
const DRAIN_GAIN: f64 = 1.0 / STARTUP_GAIN;
const WINDOW_GAIN: f64 = 2.0;
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// A little less than was measured, so that a standing queue drains.
const MARGIN: f64 = 0.99;
/// Round trips of a round all longer than the shortest by this part: the queue grows, so the pipe is full.
const QUEUE_PART: f64 = 1.2;
const QUEUE_SAMPLES: u32 = 8;
/// Lost packets are made up for by half, lest probing does not outweigh them; by all, a full queue would stay full.
const LOSS_MADE_UP: f64 = 0.5;
/// Both hosts look at their sockets when they have the time: what leaves and arrives meanwhile has room beyond the path.
const TURN: Duration = Duration::from_millis(4);
/// Once window or pace are used up, what leaves next waits for as much more, so that it leaves together.
const TRAIN: Duration = Duration::from_micros(500);
const TRAIN_MAX_BYTES: u64 = 44 * MTU_BYTES as u64;
/// Packets a round trip that leave however slow the path seems.
const PACE_MIN_PACKETS: f64 = 4.0;
/// What may leave at once after a wait; timers are no finer than a millisecond.
const BURST: Duration = Duration::from_millis(2);
const BURST_MIN_BYTES: u64 = 4 * MTU_BYTES as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Startup,
    Drain,
    Probe,
}

/// What was known when a packet left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    pub at: Mono,
    pub bytes: u64,
    delivered: u64,
    delivered_at: Mono,
    first_sent: Mono,
    starved: bool,
}

struct Sample {
    round: u64,
    at: Mono,
    rate: f64,
}

pub(super) struct Path {
    srtt: Option<Duration>,
    rttvar: Duration,
    rtt_min: Option<(Duration, Mono)>,
    latest: Duration,
    pub inflight: u64,
    delivered: u64,
    delivered_at: Mono,
    first_sent: Mono,
    /// Until as much is delivered, samples say what was offered and not what the path carries.
    starved_until: u64,
    round: u64,
    round_ends: u64,
    /// The largest rates of the last rounds, bytes a second, falling.
    rates: VecDeque<Sample>,
    phase: Phase,
    full_rate: f64,
    full_rounds: u32,
    round_rtt: Option<Duration>,
    round_samples: u32,
    cycle: usize,
    cycle_since: Mono,
    next_send: Mono,
    /// The pace was used up: not before.
    resumes: Mono,
    /// The window was used up, and there is no room yet for a train.
    full: bool,
    /// The part of packets that the path loses.
    pub loss: f64,
}

impl Path {
    pub fn new(now: Mono, handshake_rtt: Option<Duration>) -> Self {
        let mut path = Self {
            srtt: None,
            rttvar: Duration::ZERO,
            rtt_min: None,
            latest: Duration::ZERO,
            inflight: 0,
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            starved_until: 0,
            round: 0,
            round_ends: 0,
            rates: VecDeque::new(),
            phase: Phase::Startup,
            full_rate: 0.0,
            full_rounds: 0,
            round_rtt: None,
            round_samples: 0,
            cycle: 2,
            cycle_since: now,
            next_send: now,
            resumes: now,
            full: false,
            loss: 0.0,
        };
        if let Some(rtt) = handshake_rtt {
            path.measure_rtt(now, rtt);
        }
        path
    }

    pub fn srtt(&self) -> Duration {
        self.srtt.unwrap_or(RTT_INITIAL)
    }

    pub fn measure_rtt(&mut self, now: Mono, rtt: Duration) {
        self.latest = rtt;
        self.round_rtt = Some(self.round_rtt.map_or(rtt, |least| least.min(rtt)));
        self.round_samples += 1;
        match self.srtt {
            None => (self.srtt, self.rttvar) = (Some(rtt), rtt / 2),
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(rtt)) / 4;
                self.srtt = Some((srtt * 7 + rtt) / 8);
            }
        }
        let forgotten_after = RTT_WINDOW.max(self.srtt() * RTT_WINDOW_ROUNDS);
        if self.rtt_min.is_none_or(|(least, at)| rtt <= least || now - at > forgotten_after) {
            self.rtt_min = Some((rtt, now));
        }
    }

    /// Silence after which a packet is asked after.
    pub fn timeout(&self) -> Duration {
        let spread = (self.rttvar * 4).max(Duration::from_millis(5));
        (self.srtt() + spread + ACK_DELAY + GROUP_DELAY).max(RTO_MIN)
    }

    /// A packet is lost if a later one was acknowledged and it left this long ago.
    pub fn loss_delay(&self) -> Duration {
        self.srtt().max(self.latest) * 9 / 8 + GROUP_DELAY
    }

    fn rate(&self) -> Option<f64> {
        self.rates.front().map(|sample| sample.rate)
    }

    fn base_rtt(&self) -> Duration {
        self.rtt_min.map_or(RTT_INITIAL, |(rtt, _)| rtt)
    }

    fn product(&self, gain: f64) -> Option<u64> {
        self.rate().map(|rate| (rate * self.base_rtt().as_secs_f64() * gain) as u64)
    }

    /// Bytes that the path carries in a time.
    fn within(&self, time: Duration) -> u64 {
        (self.rate().unwrap_or(0.0) * time.as_secs_f64()) as u64
    }

    pub fn window(&self) -> u64 {
        let gain = if self.phase == Phase::Startup { STARTUP_GAIN } else { WINDOW_GAIN };
        match self.product(gain) {
            None => WINDOW_INITIAL_BYTES,
            // Acknowledgements come in lumps: room for two of them.
            Some(product) => {
                (product + self.within(TURN) + 2 * BURST_MIN_BYTES).clamp(self.window_min(), WINDOW_MAX_BYTES)
            }
        }
    }

    /// Small requests teach nothing: what is assumed without them holds until more is known.
    fn window_min(&self) -> u64 {
        if self.phase == Phase::Startup { WINDOW_INITIAL_BYTES } else { WINDOW_MIN_BYTES }
    }

    fn pace(&self) -> f64 {
        let rtt = self.srtt().max(Duration::from_millis(1)).as_secs_f64();
        let assumed = WINDOW_INITIAL_BYTES as f64 / rtt;
        let (rate, gain) = match self.phase {
            Phase::Startup => (self.rate().unwrap_or(0.0).max(assumed), STARTUP_GAIN),
            Phase::Drain => (self.rate().unwrap_or(assumed), DRAIN_GAIN),
            Phase::Probe => (self.rate().unwrap_or(assumed), CYCLE[self.cycle] * MARGIN),
        };
        (rate * gain * (1.0 + self.loss * LOSS_MADE_UP)).max(PACE_MIN_PACKETS * MTU_BYTES as f64 / rtt)
    }

    /// When the next packet may leave.
    pub fn next_send(&self) -> Mono {
        self.next_send.max(self.resumes)
    }

    pub fn may_send(&self, now: Mono) -> bool {
        self.next_send() <= now && self.has_room()
    }

    pub fn has_room(&self) -> bool {
        !self.full && self.room() >= MTU_BYTES as u64
    }

    fn room(&self) -> u64 {
        self.window().saturating_sub(self.inflight)
    }

    /// What should leave together.
    fn train(&self) -> u64 {
        self.within(TRAIN).min(self.window() / 4).clamp(MTU_BYTES as u64, TRAIN_MAX_BYTES)
    }

    pub fn on_sent(&mut self, now: Mono, bytes: u64) -> Departure {
        if self.inflight == 0 {
            (self.first_sent, self.delivered_at) = (now, now);
        }
        self.inflight += bytes;
        let pace = self.pace();
        let credit = BURST.max(Duration::from_secs_f64(BURST_MIN_BYTES as f64 / pace).min(BURST * 5));
        let earliest = Mono::from_duration(now.since_start().saturating_sub(credit));
        self.next_send = self.next_send.max(earliest) + Duration::from_secs_f64(bytes as f64 / pace);
        if self.next_send > now && pace * TRAIN.as_secs_f64() >= (2 * MTU_BYTES) as f64 {
            self.resumes = self.next_send + TRAIN;
        }
        self.full |= self.room() < MTU_BYTES as u64;
        Departure {
            at: now,
            bytes,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            // What leaves first after an idle time is no measure of the path either.
            starved: self.starved_until >= self.delivered.max(1),
        }
    }

    /// Nothing is left to be sent although more might be.
    pub fn on_starved(&mut self) {
        if self.room() >= MTU_BYTES as u64 {
            self.starved_until = (self.delivered + self.inflight).max(1);
        }
    }

    pub fn on_lost(&mut self, bytes: u64) {
        self.leaves(bytes);
    }

    fn leaves(&mut self, bytes: u64) {
        self.inflight = self.inflight.saturating_sub(bytes);
        self.full &= self.room() < self.train();
    }

    /// Packets were acknowledged together; `newest` is the one that left last.
    pub fn on_acked(&mut self, now: Mono, bytes: u64, newest: &Departure) {
        self.leaves(bytes);
        self.delivered += bytes;
        self.delivered_at = now;
        self.first_sent = newest.at;
        let round_over = newest.delivered >= self.round_ends;
        if round_over {
            self.round += 1;
            self.round_ends = self.delivered;
        }
        let took = (newest.at - newest.first_sent).max(now - newest.delivered_at);
        if took >= self.base_rtt() && !took.is_zero() {
            let rate = (self.delivered - newest.delivered) as f64 / took.as_secs_f64();
            if !newest.starved || self.rate().is_none_or(|known| rate >= known) {
                self.sample(now, rate);
            }
        }
        if round_over && !newest.starved {
            self.judge_startup();
        }
        self.judge_queue();
        if round_over {
            (self.round_rtt, self.round_samples) = (None, 0);
        }
        self.turn(now);
    }

    fn sample(&mut self, now: Mono, rate: f64) {
        while self.rates.back().is_some_and(|other| other.rate <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back(Sample { round: self.round, at: now, rate });
        let is_old = |sample: &Sample| sample.round + RATE_ROUNDS < self.round && now - sample.at > RATE_WINDOW;
        while self.rates.len() > 1 && is_old(&self.rates[0]) {
            self.rates.pop_front();
        }
    }

    fn judge_startup(&mut self) {
        let (Phase::Startup, Some(rate)) = (self.phase, self.rate()) else { return };
        if rate >= self.full_rate * 1.25 {
            (self.full_rate, self.full_rounds) = (rate, 0);
        } else {
            self.full_rounds += 1;
            if self.full_rounds >= 3 {
                self.phase = Phase::Drain;
            }
        }
    }

    fn judge_queue(&mut self) {
        let limit = self.base_rtt().mul_f64(QUEUE_PART) + ACK_DELAY;
        if self.phase == Phase::Startup
            && self.round_samples >= QUEUE_SAMPLES
            && self.round_rtt.is_some_and(|r| r > limit)
        {
            self.phase = Phase::Drain;
        }
    }

    fn turn(&mut self, now: Mono) {
        let Some(product) = self.product(1.0) else { return };
        match self.phase {
            Phase::Startup => {}
            Phase::Drain if self.inflight <= product => {
                (self.phase, self.cycle, self.cycle_since) = (Phase::Probe, 2, now);
            }
            Phase::Drain => {}
            Phase::Probe => {
                let drained = CYCLE[self.cycle] < 1.0 && self.inflight <= product;
                if drained || now - self.cycle_since > self.base_rtt() {
                    (self.cycle, self.cycle_since) = ((self.cycle + 1) % CYCLE.len(), now);
                }
            }
        }
    }
}

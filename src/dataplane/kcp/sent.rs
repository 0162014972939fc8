//! The packets that wait for their acknowledgement, by number.

use super::{
    FAST_RESEND, FAST_RESEND_MAX,
    flow::Part,
    frame::FlowId,
    path::{Departure, Path},
    size::Size,
};
use crate::model::Mono;
use std::collections::VecDeque;

/// What is sent again if its packet is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    Part(Part),
    Reset(FlowId),
    Window(FlowId),
}

struct Packet {
    departure: Departure,
    carried: Vec<Carried>,
    /// The last packet of its parity, which may still rebuild it; `u64::MAX` while that is not sent.
    horizon: u64,
    lost: bool,
}

#[derive(Default)]
pub(super) struct Sent {
    /// Number of the first entry.
    base: u64,
    packets: VecDeque<Option<Packet>>,
    /// Below it no packet is undecided.
    cursor: u64,
    largest_acked: Option<u64>,
    reordering: u64,
    /// Packets that are neither acknowledged nor lost.
    undecided: usize,
    /// How long a lost packet is remembered.
    memory: std::time::Duration,
    /// When the last packet left that asks for an answer.
    pub last_departure: Option<Mono>,
}

/// What an acknowledgement or its absence tells.
#[derive(Default)]
pub(super) struct Fates {
    pub acked: Vec<Carried>,
    pub lost: Vec<Carried>,
    pub acked_packets: u64,
    pub lost_packets: u64,
    /// Of them those that only a wide path carries.
    pub acked_large: u64,
    pub lost_large: u64,
}

impl Sent {
    /// Every number is told, in order; `None` for packets that need no answer.
    pub fn push(&mut self, now: Mono, number: u64, packet: Option<(Departure, Vec<Carried>, bool)>) {
        debug_assert_eq!(number, self.base + self.packets.len() as u64);
        if let Some((departure, ..)) = &packet {
            self.last_departure = Some(departure.at);
            self.undecided += 1;
        }
        self.packets.push_back(packet.map(|(departure, carried, grouped)| Packet {
            departure,
            carried,
            horizon: if grouped { u64::MAX } else { number },
            lost: false,
        }));
        self.trim(now);
    }

    /// The parity of these packets ends with the packet `horizon`.
    pub fn covered(&mut self, base: u64, count: u64, horizon: u64) {
        for number in base..base + count {
            if let Some(packet) = self.get_mut(number) {
                packet.horizon = horizon.max(number);
            }
        }
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Packet> {
        let at = usize::try_from(number.checked_sub(self.base)?).ok()?;
        self.packets.get_mut(at)?.as_mut()
    }

    /// Whether all of these packets were acknowledged.
    pub fn all_acked(&mut self, base: u64, count: u64) -> bool {
        (base..base + count).all(|number| self.get_mut(number).is_none())
    }

    pub fn is_waiting(&self) -> bool {
        self.undecided > 0
    }

    fn undecided(&self) -> impl Iterator<Item = &Packet> {
        let from = (self.cursor - self.base) as usize;
        self.packets.range(from.min(self.packets.len())..).flatten().filter(|packet| !packet.lost)
    }

    /// Takes an acknowledgement; `None` if it names a packet that was never sent.
    pub fn on_ack(
        &mut self,
        now: Mono,
        ranges: &[(u64, u64)],
        delay: std::time::Duration,
        path: &mut Path,
    ) -> Option<Fates> {
        let end = self.base + self.packets.len() as u64;
        let highest = ranges.first()?.1;
        if highest >= end {
            return None;
        }
        let newly_largest = self.largest_acked.is_none_or(|largest| highest > largest);
        self.largest_acked = self.largest_acked.max(Some(highest));
        let largest = self.largest_acked.unwrap_or(highest);
        let (mut fates, mut bytes, mut newest) = (Fates::default(), 0, None::<Departure>);
        for &(low, high) in ranges {
            for number in low.max(self.base)..=high {
                let at = (number - self.base) as usize;
                let Some(packet) = self.packets[at].take() else { continue };
                if packet.lost {
                    // It was only late: the path reorders by so much.
                    self.reordering = self.reordering.max(largest.saturating_sub(packet.horizon)).min(FAST_RESEND_MAX);
                } else {
                    self.undecided -= 1;
                    bytes += packet.departure.bytes;
                    if newest.is_none_or(|n| packet.departure.at >= n.at) {
                        newest = Some(packet.departure);
                    }
                }
                fates.acked_packets += 1;
                fates.acked_large += u64::from(Size::is_large(packet.departure.bytes));
                fates.acked.extend(packet.carried);
                if number == highest && newly_largest {
                    let rtt = now - packet.departure.at;
                    path.measure_rtt(now, rtt.checked_sub(delay).filter(|r| !r.is_zero()).unwrap_or(rtt));
                }
            }
        }
        if let Some(newest) = &newest {
            path.on_acked(now, bytes, newest);
        }
        self.find_lost(now, path, &mut fates);
        Some(fates)
    }

    /// Declares lost what later acknowledgements or time say.
    pub fn find_lost(&mut self, now: Mono, path: &mut Path, fates: &mut Fates) {
        let Some(largest) = self.largest_acked else { return };
        let (threshold, delay) = (FAST_RESEND + self.reordering, path.loss_delay());
        self.memory = delay * 2;
        while self.cursor < largest {
            let at = (self.cursor.max(self.base) - self.base) as usize;
            match self.packets.get_mut(at) {
                Some(Some(packet)) if !packet.lost => {
                    let overtaken = packet.horizon.saturating_add(threshold) <= largest;
                    if !overtaken && packet.departure.at + delay > now {
                        break;
                    }
                    packet.lost = true;
                    self.undecided -= 1;
                    fates.lost_packets += 1;
                    fates.lost_large += u64::from(Size::is_large(packet.departure.bytes));
                    // A copy stays, so that a late acknowledgement still spares the repetition.
                    fates.lost.extend(packet.carried.iter().copied());
                    path.on_lost(packet.departure.bytes);
                }
                _ => {}
            }
            self.cursor = self.cursor.max(self.base) + 1;
        }
        self.trim(now);
    }

    /// When time alone will tell that a packet is lost.
    pub fn loss_due(&self, path: &Path) -> Option<Mono> {
        if self.cursor >= self.largest_acked? {
            return None;
        }
        self.undecided().next().map(|packet| packet.departure.at + path.loss_delay())
    }

    /// What the oldest undecided packet carries, to be sent once more as a question.
    pub fn oldest(&self) -> Option<&[Carried]> {
        self.undecided().map(|packet| packet.carried.as_slice()).find(|carried| !carried.is_empty())
    }

    fn trim(&mut self, now: Mono) {
        while let Some(first) = self.packets.front() {
            if first.as_ref().is_some_and(|packet| !packet.lost || packet.departure.at + self.memory > now) {
                break;
            }
            self.packets.pop_front();
            self.base += 1;
        }
        self.cursor = self.cursor.max(self.base);
    }
}

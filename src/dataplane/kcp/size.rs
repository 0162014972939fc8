//! How large datagrams may be. Nobody tells of a path that swallows large ones, so they are small until a large question
//! was answered, and again once several large ones in a row got lost (after RFC 8899).

use super::{NARROW_MTU_BYTES, PARITY_OVERHEAD_BYTES, PAYLOAD_MAX_BYTES, SEAL_BYTES, datagram_bytes};
use crate::model::Mono;
use std::time::Duration;

const NARROW_PAYLOAD_BYTES: usize = NARROW_MTU_BYTES - SEAL_BYTES;
/// Large datagrams lost one after the other that make the path a narrow one.
const LOST_IN_A_ROW_MAX: u64 = 8;
/// Questions in a row, each after a silence, that do the same: if nothing large arrives, nothing may arrive at all.
const SILENCES_MAX: u32 = 2;
/// A path that was found narrow is asked again after this, then after twice as long, up to the maximum.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(600);

pub(super) struct Size {
    wide: bool,
    lost_in_a_row: u64,
    /// When the path is asked next.
    ask_at: Mono,
    wait: Duration,
}

impl Size {
    pub fn new(now: Mono) -> Self {
        Self { wide: false, lost_in_a_row: 0, ask_at: now, wait: ASK_AGAIN }
    }

    /// Of the frames of one packet.
    pub fn payload_max(&self) -> usize {
        if self.wide { PAYLOAD_MAX_BYTES } else { NARROW_PAYLOAD_BYTES }
    }

    /// Of the frames of a packet that parity may cover.
    pub fn source_max(&self) -> usize {
        self.payload_max() - PARITY_OVERHEAD_BYTES
    }

    /// Whether a datagram (as `datagram_bytes` counts) tells about the width of the path.
    pub fn is_large(bytes: u64) -> bool {
        bytes > datagram_bytes(NARROW_PAYLOAD_BYTES)
    }

    /// When a large question is to be asked.
    pub fn ask_at(&self) -> Option<Mono> {
        (!self.wide).then_some(self.ask_at)
    }

    pub fn on_asked(&mut self, now: Mono) {
        self.ask_at = now + self.wait;
        self.wait = (self.wait * 2).min(ASK_AGAIN_MAX);
    }

    /// Large datagrams met their fates; the lost ones left before those that arrived.
    pub fn on_fates(&mut self, now: Mono, arrived: u64, lost: u64) {
        self.lost_in_a_row += lost;
        if arrived > 0 {
            (self.wide, self.lost_in_a_row, self.wait) = (true, 0, ASK_AGAIN);
        } else if self.lost_in_a_row >= LOST_IN_A_ROW_MAX {
            self.narrow(now);
        }
    }

    /// `silences`: questions in a row to which there was no answer.
    pub fn on_silence(&mut self, now: Mono, silences: u32) {
        if silences >= SILENCES_MAX {
            self.narrow(now);
        }
    }

    fn narrow(&mut self, now: Mono) {
        if self.wide {
            (self.wide, self.ask_at) = (false, now + self.wait);
        }
        self.lost_in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_large_only_on_a_path_that_carries_them() {
        let at = Mono::from_ms;
        let mut size = Size::new(at(0));
        assert_eq!((size.payload_max(), size.ask_at()), (NARROW_PAYLOAD_BYTES, Some(at(0))));
        size.on_asked(at(0));
        assert_eq!(size.ask_at(), Some(at(1000)));
        size.on_fates(at(10), 0, 1);
        size.on_asked(at(1000));
        assert_eq!(size.ask_at(), Some(at(3000)));
        size.on_fates(at(1010), 1, 0);
        assert_eq!((size.payload_max(), size.ask_at()), (PAYLOAD_MAX_BYTES, None));
        // Some are lost on any path.
        size.on_fates(at(1020), 0, LOST_IN_A_ROW_MAX - 1);
        size.on_fates(at(1021), 1, 1);
        size.on_fates(at(1022), 0, LOST_IN_A_ROW_MAX - 1);
        assert!(size.ask_at().is_none());
        size.on_fates(at(1023), 0, 1);
        assert_eq!((size.source_max(), size.ask_at()), (NARROW_PAYLOAD_BYTES - PARITY_OVERHEAD_BYTES, Some(at(2023))));
        assert!(
            Size::is_large(datagram_bytes(PAYLOAD_MAX_BYTES)) && !Size::is_large(datagram_bytes(NARROW_PAYLOAD_BYTES))
        );
    }

    #[test]
    fn a_path_that_swallows_everything_is_taken_for_a_narrow_one() {
        let mut size = Size::new(Mono::from_ms(0));
        size.on_fates(Mono::from_ms(5), 1, 0);
        size.on_silence(Mono::from_ms(6), 1);
        assert_eq!(size.ask_at(), None);
        size.on_silence(Mono::from_ms(7), 2);
        assert!(size.ask_at().is_some());
    }
}

//! One byte stream each way: what is to be sent, repeated and acknowledged; what has arrived and in which order.

use super::{
    PIECES_MAX, WINDOW_INITIAL_BYTES,
    frame::{End, FlowId, Frame, NUMBER_MAX, STREAM_OVERHEAD_BYTES},
    ranges::Ranges,
};
use std::collections::{BTreeMap, VecDeque};

/// A part of the stream that a packet carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub flow: FlowId,
    pub offset: u64,
    pub length: u32,
    pub end: bool,
}

/// Bytes from the first unacknowledged one on.
pub(super) struct Sending {
    held: VecDeque<u8>,
    base: u64,
    next: u64,
    lost: Ranges,
    acked: Ranges,
    end: Option<End>,
    end_due: bool,
    end_acked: bool,
    limit: u64,
}

impl Sending {
    fn new() -> Self {
        Self {
            held: VecDeque::new(),
            base: 0,
            next: 0,
            lost: Ranges::default(),
            acked: Ranges::default(),
            end: None,
            end_due: false,
            end_acked: false,
            limit: WINDOW_INITIAL_BYTES,
        }
    }

    fn written(&self) -> u64 {
        self.base + self.held.len() as u64
    }

    pub fn unsent(&self) -> usize {
        (self.written() - self.next) as usize
    }

    pub fn write(&mut self, data: &[u8]) {
        debug_assert!(self.end.is_none());
        self.held.extend(data);
    }

    pub fn is_ended(&self) -> bool {
        self.end.is_some()
    }

    pub fn end(&mut self, end: End) {
        if self.end.is_none() {
            (self.end, self.end_due) = (Some(end), true);
        }
    }

    pub fn is_done(&self) -> bool {
        self.end_acked && self.held.is_empty()
    }

    pub fn raise_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    pub fn has_work(&self) -> bool {
        !self.lost.is_empty()
            || self.next < self.written().min(self.limit)
            || (self.end_due && self.next == self.written())
    }

    /// Whether nothing of this direction has been acknowledged.
    pub fn is_untouched(&self) -> bool {
        self.base == 0 && self.acked.is_empty()
    }

    /// Writes the next frame of at most `room` bytes.
    pub fn poll_frame(&mut self, flow: FlowId, room: usize, out: &mut Vec<u8>) -> Option<Part> {
        let room = room.checked_sub(STREAM_OVERHEAD_BYTES)? as u64;
        let (start, stop) = match self.lost.take_first(room) {
            Some(range) => range,
            None => {
                let start = self.next;
                let stop = self.written().min(self.limit).min(start + room).max(start);
                if start == stop && !(self.end_due && stop == self.written()) {
                    return None;
                }
                self.next = stop;
                (start, stop)
            }
        };
        let end = if stop == self.written() && self.next == stop { self.end } else { None };
        self.end_due &= end.is_none();
        let (front, back) = self.held.as_slices();
        let (from, to) = ((start - self.base) as usize, (stop - self.base) as usize);
        let split = front.len();
        if to <= split || from >= split {
            let data = if to <= split { &front[from..to] } else { &back[from - split..to - split] };
            Frame::Stream { flow, offset: start, end, data }.encode(out);
        } else {
            let data = [&front[from..], &back[..to - split]].concat();
            Frame::Stream { flow, offset: start, end, data: &data }.encode(out);
        }
        Some(Part { flow, offset: start, length: (stop - start) as u32, end: end.is_some() })
    }

    pub fn on_lost(&mut self, part: Part) {
        let (start, stop) = (part.offset.max(self.base), part.offset + u64::from(part.length));
        self.lost.insert(start, stop.max(start));
        let acked: Vec<_> = self.acked.descending().filter(|(s, e)| *s < stop && *e > start).collect();
        acked.into_iter().for_each(|(s, e)| self.lost.remove(s, e));
        self.end_due |= part.end && !self.end_acked;
    }

    pub fn on_acked(&mut self, part: Part) {
        let (start, stop) = (part.offset, part.offset + u64::from(part.length));
        if stop > self.base {
            self.acked.insert(start.max(self.base), stop);
            self.lost.remove(start, stop);
        }
        if let Some((start, stop)) = self.acked.first()
            && start == self.base
        {
            self.acked.pop_first();
            self.held.drain(..(stop - start) as usize);
            self.base = stop;
            if self.held.is_empty() {
                // An idle flow holds no memory.
                self.held = VecDeque::new();
            }
        }
        if part.end {
            (self.end_acked, self.end_due) = (true, false);
        }
    }
}

pub(super) struct Receiving {
    ready: VecDeque<u8>,
    pieces: BTreeMap<u64, Vec<u8>>,
    /// First byte not yet in `ready`, first byte not yet read.
    next: u64,
    read: u64,
    end: Option<(u64, End)>,
    pub limit: u64,
    pub window: u64,
}

impl Receiving {
    fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            pieces: BTreeMap::new(),
            next: 0,
            read: 0,
            end: None,
            limit: WINDOW_INITIAL_BYTES,
            window: WINDOW_INITIAL_BYTES,
        }
    }

    /// Whether an honest peer could have sent this part.
    pub fn permits(&self, offset: u64, length: usize, end: Option<End>) -> bool {
        let stop = offset.saturating_add(length as u64);
        let ends_once = match (self.end, end) {
            (Some((at, known)), Some(said)) => at == stop && known == said,
            (Some((at, _)), None) => stop <= at,
            (None, Some(_)) => {
                stop >= self.next && self.pieces.last_key_value().is_none_or(|(s, p)| s + p.len() as u64 <= stop)
            }
            (None, None) => true,
        };
        ends_once && stop <= self.limit && self.limit <= NUMBER_MAX
    }

    /// Whether it has to be dropped like a lost one: too many pieces wait already.
    pub fn is_full(&self, offset: u64) -> bool {
        offset > self.next && self.pieces.len() >= PIECES_MAX
    }

    /// Whether there is something new to read.
    pub fn take(&mut self, offset: u64, data: &[u8], end: Option<End>) -> bool {
        let before = (self.next, self.is_at_end());
        let stop = offset + data.len() as u64;
        if let Some(end) = end {
            self.end = Some((stop, end));
        }
        if offset > self.next {
            self.keep(offset, data);
        } else if stop > self.next {
            self.ready.extend(&data[(self.next - offset) as usize..]);
            self.next = stop;
            self.join();
        }
        before != (self.next, self.is_at_end())
    }

    /// Keeps what is new of a part that lies ahead.
    fn keep(&mut self, mut offset: u64, mut data: &[u8]) {
        if let Some((start, piece)) = self.pieces.range(..=offset).next_back() {
            let covered = (start + piece.len() as u64).saturating_sub(offset).min(data.len() as u64);
            offset += covered;
            data = &data[covered as usize..];
        }
        while !data.is_empty() {
            let gap = match self.pieces.range(offset..).next() {
                Some((start, piece)) if *start < offset + data.len() as u64 => {
                    Some((*start - offset, piece.len() as u64))
                }
                _ => None,
            };
            let Some((gap, covered)) = gap else {
                self.pieces.insert(offset, data.to_vec());
                return;
            };
            if gap > 0 {
                self.pieces.insert(offset, data[..gap as usize].to_vec());
            }
            let skip = (gap + covered).min(data.len() as u64);
            offset += skip;
            data = &data[skip as usize..];
        }
    }

    fn join(&mut self) {
        while let Some(entry) = self.pieces.first_entry()
            && *entry.key() <= self.next
        {
            let (start, piece) = entry.remove_entry();
            let known = ((self.next - start) as usize).min(piece.len());
            self.ready.extend(&piece[known..]);
            self.next += (piece.len() - known) as u64;
        }
    }

    pub fn is_at_end(&self) -> bool {
        self.end.is_some_and(|(at, _)| at == self.next)
    }

    /// Appends at most `max` bytes to `out`.
    pub fn read(&mut self, max: usize, out: &mut Vec<u8>) -> usize {
        let n = self.ready.len().min(max);
        let (front, back) = self.ready.as_slices();
        let from_front = n.min(front.len());
        out.extend_from_slice(&front[..from_front]);
        out.extend_from_slice(&back[..n - from_front]);
        self.ready.drain(..n);
        if self.ready.is_empty() {
            self.ready = VecDeque::new();
        }
        self.read += n as u64;
        n
    }

    /// How it ended, once all is read.
    pub fn ended(&self) -> Option<End> {
        self.end.filter(|(at, _)| *at == self.read).map(|(_, end)| end)
    }

    /// Whether the peer is to hear of more room.
    pub fn wants_raise(&self) -> bool {
        self.end.is_none() && self.read + self.window >= self.limit + self.window / 2
    }

    pub fn raise(&mut self) {
        self.limit = self.limit.max(self.read + self.window);
    }
}

pub(super) struct Flow {
    pub sending: Sending,
    pub receiving: Receiving,
    /// Neither side sends any more; nothing of it is read.
    pub reset: bool,
    pub detached: bool,
    pub queued: bool,
    pub window_due: bool,
    pub writer_waits: bool,
    pub raised_at: crate::model::Mono,
}

impl Flow {
    pub fn new(now: crate::model::Mono) -> Self {
        Self {
            sending: Sending::new(),
            receiving: Receiving::new(),
            reset: false,
            detached: false,
            queued: false,
            window_due: false,
            writer_waits: false,
            raised_at: now,
        }
    }

    /// Whether nothing is left to do or to tell.
    pub fn is_over(&self) -> bool {
        self.detached && (self.reset || (self.sending.is_done() && self.receiving.is_at_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_in_any_order_and_number_give_the_bytes_once(
            cuts in proptest::collection::vec((0..3000u64, 0..700usize), 1..120),
        ) {
            let whole: Vec<u8> = (0..4000u32).map(|i| (i * 7 >> 3) as u8).collect();
            let mut receiving = Receiving::new();
            let mut out = vec![];
            for (i, (offset, length)) in cuts.iter().enumerate() {
                let at = *offset as usize;
                prop_assert!(receiving.permits(*offset, *length, None));
                receiving.take(*offset, &whole[at..at + length], None);
                if i % 3 == 0 {
                    receiving.read(500, &mut out);
                }
            }
            receiving.take(0, &whole, Some(End::Finished));
            receiving.read(usize::MAX, &mut out);
            prop_assert!(out == whole);
            prop_assert_eq!(receiving.ended(), Some(End::Finished));
            prop_assert!(receiving.pieces.is_empty());
        }
    }

    #[test]
    fn an_end_is_said_once_and_binds() {
        let mut receiving = Receiving::new();
        assert!(receiving.permits(0, 10, Some(End::Finished)));
        receiving.take(5, b"world", Some(End::Finished));
        assert!(!receiving.permits(5, 6, None), "beyond the end");
        assert!(!receiving.permits(0, 4, Some(End::Finished)), "another end");
        assert!(!receiving.permits(5, 5, Some(End::Cut)), "another kind of end");
        assert!(!receiving.permits(WINDOW_INITIAL_BYTES, 1, None), "beyond the window");
        assert_eq!(receiving.ended(), None);
        receiving.take(0, b"hello", None);
        let mut out = vec![];
        receiving.read(100, &mut out);
        assert_eq!((out.as_slice(), receiving.ended()), (&b"helloworld"[..], Some(End::Finished)));
    }
}

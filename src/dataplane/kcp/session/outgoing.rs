//! Packets out: what goes into each, and in which order.

use super::Session;
use crate::{
    dataplane::kcp::{
        ACK_RANGES_TOLD, PAYLOAD_MAX_BYTES, datagram_bytes,
        fec::Parity,
        frame::{Ack, Frame, STREAM_OVERHEAD_BYTES},
        sent::Carried,
        session::Notice,
    },
    model::Mono,
};

impl Session {
    pub(super) fn has_work(&self) -> bool {
        let queued = !self.fresh.is_empty() || !self.turn.is_empty();
        queued || self.ping || !self.parity.is_empty() || !self.resets.is_empty() || !self.windows.is_empty()
    }

    /// The next payload, of at most `PAYLOAD_MAX_BYTES`, and its number; `None` until something happens or is due.
    pub fn poll_payload(&mut self, now: Mono, out: &mut Vec<u8>) -> Option<u64> {
        out.clear();
        if self.closing {
            self.closing = false;
            Frame::Close.encode(out);
            return Some(self.departs(now, None, out));
        }
        if self.closed {
            return None;
        }
        if self.grouping.deadline().is_some_and(|due| due <= now) {
            self.close_group();
        }
        let may_send = self.probes > 0 || self.path.may_send(now);
        if may_send && let Some(parity) = self.parity.pop_front() {
            return Some(self.send_parity(now, &parity, out));
        }
        if may_send && !self.ping && self.size.ask_at().is_some_and(|at| at <= now) {
            return Some(self.send_large(now, out));
        }
        let work = may_send && self.has_work();
        if !work && self.ack_due.is_none_or(|due| due > now) {
            if !self.has_work() {
                self.path.on_starved();
            }
            return None;
        }
        if self.since_ack > 0 {
            self.put_ack(now, out);
        }
        let mut carried = vec![];
        if work {
            self.put_control(&mut carried, out);
            self.put_streams(&mut carried, out);
            if std::mem::take(&mut self.ping) && carried.is_empty() {
                Frame::Ping.encode(out);
                return Some(self.departs(now, Some(carried), out));
            }
        }
        if out.is_empty() {
            return None;
        }
        let packet = (!carried.is_empty()).then_some(carried);
        Some(self.departs(now, packet, out))
    }

    fn put_ack(&mut self, now: Mono, out: &mut Vec<u8>) {
        let since = self.newest.map_or(now, |(_, at)| at);
        let ranges = self.received.descending().take(ACK_RANGES_TOLD).map(|(start, end)| (start, end - 1)).collect();
        let delay_us = u64::try_from((now - since).as_micros()).unwrap_or(0);
        Frame::Ack(Ack { delay_us, recovered: self.rebuilding.rebuilt, ranges }).encode(out);
        (self.since_ack, self.ack_due) = (0, None);
    }

    fn put_control(&mut self, carried: &mut Vec<Carried>, out: &mut Vec<u8>) {
        const CONTROL_MAX_BYTES: usize = 24;
        while out.len() + CONTROL_MAX_BYTES <= self.size.source_max() {
            if let Some(flow) = self.resets.pop_front() {
                Frame::Reset { flow }.encode(out);
                carried.push(Carried::Reset(flow));
            } else if let Some(id) = self.windows.pop_front() {
                let Some(flow) = self.flows.get_mut(&id) else { continue };
                flow.window_due = false;
                Frame::Window { flow: id, limit: flow.receiving.limit }.encode(out);
                carried.push(Carried::Window(id));
            } else {
                return;
            }
        }
    }

    fn put_streams(&mut self, carried: &mut Vec<Carried>, out: &mut Vec<u8>) {
        let (unsent_max, source_max) = (self.unsent_max(), self.size.source_max());
        while source_max - out.len() > STREAM_OVERHEAD_BYTES {
            let Some(id) = self.fresh.pop_front().or_else(|| self.turn.pop_front()) else { return };
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.queued = false;
            if flow.reset {
                continue;
            }
            if let Some(part) = flow.sending.poll_frame(id, source_max - out.len(), out) {
                carried.push(Carried::Part(part));
            }
            if flow.writer_waits && flow.sending.unsent() < unsent_max / 2 {
                flow.writer_waits = false;
                self.notices.push_back(Notice::Writable(id));
            }
            if flow.sending.has_work() {
                flow.queued = true;
                self.turn.push_back(id);
            }
        }
    }

    /// Gives the payload its number and keeps what its loss would cost.
    fn departs(&mut self, now: Mono, carried: Option<Vec<Carried>>, payload: &[u8]) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.probes = self.probes.saturating_sub(u32::from(carried.is_some()));
        let grouped = self.grouping.wants(&self.loss, carried.as_ref().is_some_and(|c| !c.is_empty()));
        let full = grouped && self.grouping.add(now, number, payload);
        let packet = carried.map(|carried| {
            self.asked_at.get_or_insert(now);
            (self.path.on_sent(now, datagram_bytes(payload.len())), carried, grouped)
        });
        self.sent.push(now, number, packet);
        if full {
            self.close_group();
        }
        number
    }

    fn close_group(&mut self) {
        let (base, count, parity) = self.grouping.close(&self.loss);
        if parity.is_empty() || self.sent.all_acked(base, count) {
            self.sent.covered(base, count, 0);
        } else {
            self.parity.extend(parity);
        }
    }

    fn send_parity(&mut self, now: Mono, parity: &Parity, out: &mut Vec<u8>) -> u64 {
        let Parity { base, data, count, index, shard } = parity;
        Frame::Parity { base: *base, data: *data, count: *count, index: *index, shard }.encode(out);
        // The group it belongs to is closed; one that has begun since must stay in one piece.
        if self.grouping.is_open() {
            self.close_group();
        }
        let number = self.next_number;
        self.next_number += 1;
        self.probes = self.probes.saturating_sub(1);
        self.asked_at.get_or_insert(now);
        let departure = self.path.on_sent(now, datagram_bytes(out.len()));
        self.sent.push(now, number, Some((departure, vec![], false)));
        if index + 1 == *count {
            self.sent.covered(*base, u64::from(*data), number);
        }
        number
    }

    /// Asks whether the path carries the largest datagrams: nothing but questions, as many as fit.
    fn send_large(&mut self, now: Mono, out: &mut Vec<u8>) -> u64 {
        // A group has to stay in one piece.
        if self.grouping.is_open() {
            self.close_group();
        }
        while out.len() < PAYLOAD_MAX_BYTES {
            Frame::Ping.encode(out);
        }
        self.size.on_asked(now);
        self.departs(now, Some(vec![]), out)
    }
}

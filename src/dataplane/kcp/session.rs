//! One peer's packets: numbers, acknowledgements, loss, parity, and the flows they carry. Knows neither keys nor
//! addresses.

mod outgoing;

use super::{
    ACK_DELAY, ACK_EVERY, ACK_RANGES_MAX, FLOW_AHEAD_MAX, MAX_FLOWS_PER_SESSION, RTO_MAX, UNSENT_ALL_BYTES,
    UNSENT_MAX_BYTES, UNSENT_MIN_BYTES, WINDOW_EXTRA_MAX_BYTES, WINDOW_INITIAL_BYTES, WINDOW_MAX_BYTES,
    fec::{Grouping, Loss, Parity, Rebuilding},
    flow::Flow,
    frame::{self, Ack, End, FlowId, Frame, FrameError},
    path::Path,
    ranges::Ranges,
    replay::Replay,
    sent::{Carried, Fates, Sent},
    size::Size,
};
use crate::model::Mono;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Who opened the session: flows are opened by its source only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("acknowledgement of a packet that was not sent")]
    Acknowledgement,
    #[error("stream beyond its window or its end")]
    Stream,
    #[error("flow number is too far ahead")]
    FlowAhead,
    #[error("too many pieces of a flow wait")]
    Pieces,
}

/// What the owner of a flow should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Notice {
    Opened(FlowId),
    Readable(FlowId),
    Writable(FlowId),
}

/// What a read or write met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Moved(usize),
    Blocked,
    /// The peer ended its direction.
    Ended(End),
    /// Reset by the peer, or the session is gone; whether no byte of the flow ever reached the peer, as far as known.
    Reset {
        untouched: bool,
    },
}

pub(super) struct Session {
    role: Role,
    next_number: u64,
    pub replay: Replay,
    received: Ranges,
    newest: Option<(u64, Mono)>,
    since_ack: u32,
    ack_due: Option<Mono>,
    rebuilding: Rebuilding,
    recovered_told: u64,
    loss: Loss,
    grouping: Grouping,
    parity: VecDeque<Parity>,
    sent: Sent,
    path: Path,
    size: Size,
    flows: BTreeMap<FlowId, Flow>,
    /// Flows with something to send: those that had nothing before go first, then all in turn.
    fresh: VecDeque<FlowId>,
    turn: VecDeque<FlowId>,
    opened: Ranges,
    resets: VecDeque<FlowId>,
    windows: VecDeque<FlowId>,
    extra_window: u64,
    learned_window: u64,
    ping: bool,
    /// Packets that leave whatever window and pace say.
    probes: u32,
    backoff: u32,
    closing: bool,
    pub closed: bool,
    pub last_heard: Mono,
    /// Since when an answer is awaited.
    pub asked_at: Option<Mono>,
    notices: VecDeque<Notice>,
}

impl Session {
    pub fn new(now: Mono, role: Role, rtt: Option<Duration>) -> Self {
        Self {
            role,
            next_number: 0,
            replay: Replay::new(),
            received: Ranges::default(),
            newest: None,
            since_ack: 0,
            ack_due: None,
            rebuilding: Rebuilding::new(),
            recovered_told: 0,
            loss: Loss::new(),
            grouping: Grouping::new(),
            parity: VecDeque::new(),
            sent: Sent::default(),
            path: Path::new(now, rtt),
            size: Size::new(now),
            flows: BTreeMap::new(),
            fresh: VecDeque::new(),
            turn: VecDeque::new(),
            opened: Ranges::default(),
            resets: VecDeque::new(),
            windows: VecDeque::new(),
            extra_window: 0,
            learned_window: WINDOW_INITIAL_BYTES,
            ping: false,
            probes: 0,
            backoff: 0,
            closing: false,
            closed: false,
            last_heard: now,
            asked_at: None,
            notices: VecDeque::new(),
        }
    }

    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    // ---- flows, as their owners see them

    /// A new flow; `None` at the limit.
    pub fn open(&mut self, now: Mono) -> Option<FlowId> {
        let id = self.opened.first().map_or(0, |(_, end)| end);
        if self.closed || self.flows.len() >= MAX_FLOWS_PER_SESSION {
            return None;
        }
        self.opened.insert(id, id + 1);
        self.adopt(now, id);
        Some(id)
    }

    fn adopt(&mut self, now: Mono, id: FlowId) {
        let mut flow = Flow::new(now);
        let extra = self.learned_window - WINDOW_INITIAL_BYTES;
        if extra > 0 && self.extra_window + extra <= WINDOW_EXTRA_MAX_BYTES {
            // What flows of this session needed before, a new one gets at once.
            self.extra_window += extra;
            flow.receiving.window = self.learned_window;
            flow.receiving.raise();
            flow.window_due = true;
            self.windows.push_back(id);
        }
        self.flows.insert(id, flow);
    }

    fn unsent_max(&self) -> usize {
        (UNSENT_ALL_BYTES / self.flows.len().max(1)).clamp(UNSENT_MIN_BYTES, UNSENT_MAX_BYTES)
    }

    pub fn write(&mut self, id: FlowId, data: &[u8]) -> Outcome {
        let max = self.unsent_max();
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.reset) else {
            return Outcome::Reset { untouched: false };
        };
        if flow.sending.is_ended() {
            return Outcome::Moved(0);
        }
        let room = max.saturating_sub(flow.sending.unsent());
        if room == 0 {
            flow.writer_waits = true;
            return Outcome::Blocked;
        }
        let taken = room.min(data.len());
        flow.sending.write(&data[..taken]);
        self.queue(id);
        Outcome::Moved(taken)
    }

    pub fn end(&mut self, id: FlowId, end: End) -> Outcome {
        match self.flows.get_mut(&id).filter(|flow| !flow.reset) {
            Some(flow) => flow.sending.end(end),
            None => return Outcome::Reset { untouched: false },
        }
        self.queue(id);
        Outcome::Moved(0)
    }

    /// Appends at most `max` bytes to `out`.
    pub fn read(&mut self, now: Mono, id: FlowId, max: usize, out: &mut Vec<u8>) -> Outcome {
        let rtt = self.path.srtt();
        let Some(flow) = self.flows.get_mut(&id) else { return Outcome::Reset { untouched: false } };
        let read = flow.receiving.read(max, out);
        if flow.reset {
            // What arrived before the reset is there before it.
            return match flow.receiving.ended() {
                _ if read > 0 => Outcome::Moved(read),
                Some(end) => Outcome::Ended(end),
                None => Outcome::Reset { untouched: flow.sending.is_untouched() },
            };
        }
        if flow.receiving.wants_raise() && !flow.window_due {
            let window = flow.receiving.window;
            let quick = now - flow.raised_at < rtt * 2;
            if quick && window < WINDOW_MAX_BYTES && self.extra_window + window <= WINDOW_EXTRA_MAX_BYTES {
                self.extra_window += window;
                flow.receiving.window = 2 * window;
                self.learned_window = self.learned_window.max(2 * window);
            }
            flow.receiving.raise();
            (flow.raised_at, flow.window_due) = (now, true);
            self.windows.push_back(id);
        }
        match flow.receiving.ended() {
            _ if read > 0 => Outcome::Moved(read),
            Some(end) => Outcome::Ended(end),
            None => Outcome::Blocked,
        }
    }

    /// Whether the peer has all that was written, and its end.
    pub fn is_delivered(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_none_or(|flow| flow.reset || flow.sending.is_done())
    }

    pub fn is_reset(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_none_or(|flow| flow.reset)
    }

    /// The owner lets go: a flow that has not ended in both directions is reset.
    pub fn detach(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.detached = true;
        let ended = flow.sending.is_ended() && flow.receiving.is_at_end();
        if !flow.reset && !ended {
            flow.reset = true;
            self.resets.push_back(id);
        }
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: FlowId) {
        if self.flows.get(&id).is_some_and(Flow::is_over)
            && let Some(flow) = self.flows.remove(&id)
        {
            self.extra_window -= flow.receiving.window - WINDOW_INITIAL_BYTES;
        }
    }

    fn queue(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.queued
            && !flow.reset
            && flow.sending.has_work()
        {
            flow.queued = true;
            self.fresh.push_back(id);
        }
    }

    fn reset_flow(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.reset
        {
            flow.reset = true;
            self.notices.extend([Notice::Readable(id), Notice::Writable(id)]);
        }
        self.forget_if_over(id);
    }

    /// The session is over: every flow is reset.
    pub fn abort(&mut self) {
        self.closed = true;
        for id in self.flows.keys().copied().collect::<Vec<_>>() {
            self.reset_flow(id);
        }
    }

    /// Tells the peer that the session is over with the next packet.
    pub fn close(&mut self) {
        self.abort();
        self.closing = true;
    }

    /// Asks the peer for an answer.
    pub fn ping(&mut self) {
        (self.ping, self.probes) = (true, self.probes.max(1));
    }

    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }

    // ---- packets in

    /// Takes the payload of an authenticated packet with a fresh number. A violation leaves all as it was.
    pub fn receive(&mut self, now: Mono, number: u64, payload: &[u8]) -> Result<(), Violation> {
        let frames = frame::decode(payload)?;
        self.check(&frames)?;
        self.last_heard = now;
        self.asked_at = None;
        let is_parity = frames.iter().any(|f| matches!(f, Frame::Parity { .. }));
        let mut rebuilt = vec![];
        for frame in &frames {
            if let Frame::Parity { base, data, count, index, shard } = *frame {
                let parity = Parity { base, data, count, index, shard: shard.to_vec() };
                rebuilt.extend(self.rebuilding.parity(number, parity));
            }
        }
        self.take_in(now, number, &frames);
        if !is_parity {
            rebuilt.extend(self.rebuilding.arrived(number, payload));
        }
        for (number, payload) in rebuilt {
            if self.replay.is_fresh(number)
                && let Ok(frames) = frame::decode(&payload)
                && self.check(&frames).is_ok()
            {
                self.take_in(now, number, &frames);
            }
        }
        Ok(())
    }

    fn check(&self, frames: &[Frame<'_>]) -> Result<(), Violation> {
        for frame in frames {
            match frame {
                Frame::Ack(ack) if ack.ranges[0].1 >= self.next_number => return Err(Violation::Acknowledgement),
                Frame::Stream { flow, offset, end, data } => match self.flows.get(flow) {
                    Some(known) if !known.reset => {
                        if !known.receiving.permits(*offset, data.len(), *end) {
                            return Err(Violation::Stream);
                        }
                        if known.receiving.is_full(*offset) {
                            return Err(Violation::Pieces);
                        }
                    }
                    Some(_) => {}
                    None if self.role == Role::Source || self.opened.contains(*flow) => {}
                    None if offset + data.len() as u64 > WINDOW_INITIAL_BYTES => return Err(Violation::Stream),
                    None => self.check_ahead(*flow)?,
                },
                Frame::Reset { flow } | Frame::Window { flow, .. } => self.check_ahead(*flow)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_ahead(&self, flow: FlowId) -> Result<(), Violation> {
        let contiguous = self.opened.first().map_or(0, |(start, end)| if start == 0 { end } else { 0 });
        if self.role == Role::Exit && flow > contiguous + FLOW_AHEAD_MAX { Err(Violation::FlowAhead) } else { Ok(()) }
    }

    fn take_in(&mut self, now: Mono, number: u64, frames: &[Frame<'_>]) {
        self.replay.mark(number);
        self.received.insert(number, number + 1);
        if self.received.len() > ACK_RANGES_MAX {
            self.received.pop_first();
        }
        let in_order = self.newest.is_none_or(|(newest, _)| number == newest + 1);
        if self.newest.is_none_or(|(newest, _)| number > newest) {
            self.newest = Some((number, now));
        }
        let asks = frames.iter().any(|f| !matches!(f, Frame::Ack(_) | Frame::Close));
        if asks {
            self.since_ack += 1;
            let at_once = !in_order || self.since_ack >= ACK_EVERY;
            let due = if at_once { now } else { now + ACK_DELAY };
            self.ack_due = Some(self.ack_due.map_or(due, |d| d.min(due)));
        }
        for frame in frames {
            self.apply(now, frame);
        }
    }

    fn apply(&mut self, now: Mono, frame: &Frame<'_>) {
        match frame {
            Frame::Ping | Frame::Parity { .. } => {}
            Frame::Ack(ack) => self.on_ack(now, ack),
            Frame::Close => self.abort(),
            Frame::Reset { flow } => {
                if self.role == Role::Exit {
                    self.opened.insert(*flow, flow + 1);
                }
                self.reset_flow(*flow);
            }
            Frame::Window { flow, limit } => {
                // It may overtake the first bytes of its flow.
                self.meet(now, *flow);
                if let Some(known) = self.flows.get_mut(flow) {
                    known.sending.raise_limit(*limit);
                    self.queue(*flow);
                }
            }
            Frame::Stream { flow, offset, end, data } => self.on_stream(now, *flow, *offset, *end, data),
        }
    }

    /// An exit takes on a flow that it has not met before.
    fn meet(&mut self, now: Mono, id: FlowId) {
        if self.role == Role::Source || self.opened.contains(id) || self.closed {
            return;
        }
        self.opened.insert(id, id + 1);
        if self.flows.len() >= MAX_FLOWS_PER_SESSION {
            return self.resets.push_back(id);
        }
        self.adopt(now, id);
        self.notices.push_back(Notice::Opened(id));
    }

    fn on_stream(&mut self, now: Mono, id: FlowId, offset: u64, end: Option<End>, data: &[u8]) {
        self.meet(now, id);
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.reset) else { return };
        if !flow.receiving.permits(offset, data.len(), end) {
            return;
        }
        if flow.receiving.take(offset, data, end) {
            self.notices.push_back(Notice::Readable(id));
        }
        self.forget_if_over(id);
    }

    fn on_ack(&mut self, now: Mono, ack: &Ack) {
        let delay = Duration::from_micros(ack.delay_us).min(ACK_DELAY * 2);
        let Some(fates) = self.sent.on_ack(now, &ack.ranges, delay, &mut self.path) else { return };
        if fates.acked_packets > 0 {
            self.backoff = 0;
        }
        self.settle(now, fates);
        let recovered = ack.recovered.saturating_sub(self.recovered_told);
        self.recovered_told += recovered;
        self.loss.record_recovered(recovered);
    }

    fn settle(&mut self, now: Mono, fates: Fates) {
        self.size.on_fates(now, fates.acked_large, fates.lost_large);
        self.loss.record(fates.acked_packets, fates.lost_packets);
        self.path.loss = self.loss.part();
        for carried in fates.acked {
            if let Carried::Part(part) = carried
                && let Some(flow) = self.flows.get_mut(&part.flow)
            {
                flow.sending.on_acked(part);
                self.forget_if_over(part.flow);
            }
        }
        for carried in fates.lost {
            self.send_again(carried);
        }
    }

    fn send_again(&mut self, carried: Carried) {
        match carried {
            Carried::Reset(id) => self.resets.push_back(id),
            Carried::Window(id) => {
                if let Some(flow) = self.flows.get_mut(&id)
                    && !flow.window_due
                {
                    flow.window_due = true;
                    self.windows.push_back(id);
                }
            }
            Carried::Part(part) => {
                if let Some(flow) = self.flows.get_mut(&part.flow) {
                    flow.sending.on_lost(part);
                    self.queue(part.flow);
                }
            }
        }
    }

    // ---- time

    pub fn handle_timeout(&mut self, now: Mono) {
        let mut fates = Fates::default();
        self.sent.find_lost(now, &mut self.path, &mut fates);
        self.settle(now, fates);
        if self.question_due().is_some_and(|due| due <= now) {
            self.backoff = (self.backoff + 1).min(16);
            self.size.on_silence(now, self.backoff);
            self.probes = 2;
            let oldest = self.sent.oldest().map(<[Carried]>::to_vec);
            match oldest {
                Some(carried) => carried.into_iter().for_each(|c| self.send_again(c)),
                None => self.ping = true,
            }
            if !self.has_work() {
                self.ping = true;
            }
        }
    }

    /// When silence calls for a question.
    fn question_due(&self) -> Option<Mono> {
        let last = self.sent.last_departure.filter(|_| self.sent.is_waiting())?;
        let wait = self.path.timeout().mul_f64(1.5f64.powi(self.backoff as i32));
        Some(last + wait.min(RTO_MAX.max(self.path.timeout())))
    }

    pub fn poll_timeout(&self) -> Option<Mono> {
        if self.closed {
            return self.closing.then_some(Mono::default());
        }
        let paced = if !self.has_work() {
            None
        } else if self.probes > 0 {
            Some(Mono::default())
        } else {
            self.path.has_room().then(|| self.path.next_send())
        };
        // Without room the acknowledgement that makes some wakes us.
        let asking = self.size.ask_at().filter(|_| self.path.has_room()).map(|at| at.max(self.path.next_send()));
        let lost = self.sent.loss_due(&self.path);
        let all = [paced, asking, self.ack_due, self.grouping.deadline(), lost, self.question_due()];
        all.into_iter().flatten().min()
    }
}

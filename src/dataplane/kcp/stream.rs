//! A flow as one task holds it.

use super::{
    driver::Shared,
    endpoint::Handle,
    frame::{End, FlowId},
    session::{Outcome, Session},
};
use crate::{
    dataplane::{
        carrier::Carrier,
        session::{READ_BYTES, Received},
    },
    model::Mono,
};
use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, Waker},
};

/// Resets the flow when dropped, unless it has ended both ways.
pub(in crate::dataplane) struct KcpStream(View);

/// Which flow; only looks.
#[derive(Clone)]
struct View {
    shared: Arc<Shared>,
    session: Handle,
    flow: FlowId,
}

/// Who waits for what of a flow.
#[derive(Default)]
pub(super) struct Wakers {
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    pub failure: Option<Waker>,
}

fn lost(untouched: bool) -> io::Error {
    // Says whether the exit can have seen any of it: if not, another session may carry it.
    if untouched { io::ErrorKind::NotConnected.into() } else { io::ErrorKind::ConnectionReset.into() }
}

impl KcpStream {
    pub(super) fn new(shared: Arc<Shared>, session: Handle, flow: FlowId) -> Self {
        Self(View { shared, session, flow })
    }
}

impl View {
    /// Works on the flow; blocked, the task is woken by the waker that `slot` names.
    fn with(
        &self,
        cx: &mut Context<'_>,
        slot: impl FnOnce(&mut Wakers) -> &mut Option<Waker>,
        work: impl FnOnce(&mut Session, Mono) -> Outcome,
    ) -> Poll<Outcome> {
        let now = self.shared.now();
        let outcome = self.shared.run(|state| {
            let outcome = match state.endpoint.session(self.session) {
                Some(session) => work(session, now),
                None => Outcome::Reset { untouched: false },
            };
            if outcome == Outcome::Blocked {
                let wakers = state.wakers.entry((self.session, self.flow)).or_default();
                *slot(wakers) = Some(cx.waker().clone());
            }
            outcome
        });
        if outcome == Outcome::Blocked { Poll::Pending } else { Poll::Ready(outcome) }
    }

    fn poll_read(&self, cx: &mut Context<'_>, max: usize, out: &mut Vec<u8>) -> Poll<io::Result<Received>> {
        let read = |session: &mut Session, now| session.read(now, self.flow, max, out);
        self.with(cx, |w| &mut w.reader, read).map(|outcome| match outcome {
            Outcome::Moved(_) => Ok(Received::Bytes),
            Outcome::Ended(End::Finished) => Ok(Received::Closed),
            Outcome::Ended(End::Cut) => Err(io::ErrorKind::UnexpectedEof.into()),
            Outcome::Reset { untouched } => Err(lost(untouched)),
            Outcome::Blocked => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.with(cx, |w| &mut w.writer, |session, _| session.write(self.flow, data)).map(|outcome| match outcome {
            Outcome::Moved(n) => Ok(n),
            Outcome::Reset { untouched } => Err(lost(untouched)),
            Outcome::Ended(_) | Outcome::Blocked => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }

    fn end(&self, end: End) -> Poll<io::Result<()>> {
        let outcome = self.shared.run(|state| match state.endpoint.session(self.session) {
            Some(session) => session.end(self.flow, end),
            None => Outcome::Reset { untouched: false },
        });
        Poll::Ready(match outcome {
            Outcome::Reset { untouched } => Err(lost(untouched)),
            _ => Ok(()),
        })
    }
}

impl Carrier for KcpStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, raw: &mut [u8], out: &mut Vec<u8>) -> Poll<io::Result<Received>> {
        // Nothing is read by way of `raw`, and yet no more at once than it would hold.
        self.0.poll_read(cx, raw.len(), out)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write(cx, &[]).map_ok(|_| ())
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end(End::Finished)
    }

    fn poll_cut(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.end(End::Cut)
    }

    fn is_delivered(&self) -> bool {
        let View { shared, session, flow } = &self.0;
        shared.run(|state| state.endpoint.session(*session).is_none_or(|session| session.is_delivered(*flow)))
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut dropped = Vec::new();
        loop {
            dropped.clear();
            match self.0.poll_read(cx, READ_BYTES, &mut dropped) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Received::Bytes)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }

    fn failed(&self) -> impl Future<Output = ()> + Send + 'static {
        let view = self.0.clone();
        poll_fn(move |cx| {
            let look = |session: &mut Session, _| match session.is_reset(view.flow) {
                true => Outcome::Reset { untouched: false },
                false => Outcome::Blocked,
            };
            view.with(cx, |w| &mut w.failure, look).map(|_| ())
        })
    }

    fn let_go(&self) {}

    /// The window of a flow grows only under a reader that empties it quickly.
    fn expect_reads_at(&self, _bytes_per_s: u64) {}
}

impl Drop for KcpStream {
    fn drop(&mut self) {
        let View { shared, session, flow } = &self.0;
        shared.run(|state| {
            state.wakers.remove(&(*session, *flow));
            if let Some(session) = state.endpoint.session(*session) {
                session.detach(*flow);
            }
        });
    }
}

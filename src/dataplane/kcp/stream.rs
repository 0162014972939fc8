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

pub(in crate::dataplane) struct KcpStream {
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
        Self { shared, session, flow }
    }

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
    fn poll_receive(&mut self, cx: &mut Context<'_>, _raw: &mut [u8], out: &mut Vec<u8>) -> Poll<io::Result<Received>> {
        let read = |session: &mut Session, now| session.read(now, self.flow, READ_BYTES, out);
        self.with(cx, |w| &mut w.reader, read).map(|outcome| match outcome {
            Outcome::Moved(_) => Ok(Received::Bytes),
            Outcome::Ended(End::Finished) => Ok(Received::Closed),
            Outcome::Ended(End::Cut) => Err(io::ErrorKind::UnexpectedEof.into()),
            Outcome::Reset { untouched } => Err(lost(untouched)),
            Outcome::Blocked => Err(io::ErrorKind::WouldBlock.into()),
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write(cx, &[]).map_ok(|_| ())
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end(End::Finished)
    }

    fn poll_cut(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end(End::Cut)
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut dropped = Vec::new();
        loop {
            dropped.clear();
            match self.poll_receive(cx, &mut [], &mut dropped) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Received::Bytes)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }

    fn failed(&self) -> impl Future<Output = ()> + Send + 'static {
        let view = Self { shared: self.shared.clone(), session: self.session, flow: self.flow };
        // Only looks: the stream itself lets go of the flow.
        let view = std::mem::ManuallyDrop::new(view);
        poll_fn(move |cx| {
            let look = |session: &mut Session, _| match session.is_reset(view.flow) {
                true => Outcome::Reset { untouched: false },
                false => Outcome::Blocked,
            };
            view.with(cx, |w| &mut w.failure, look).map(|_| ())
        })
    }

    fn let_go(&self) {}
}

impl Drop for KcpStream {
    fn drop(&mut self) {
        self.shared.run(|state| {
            state.wakers.remove(&(self.session, self.flow));
            if let Some(session) = state.endpoint.session(self.session) {
                session.detach(self.flow);
            }
        });
    }
}

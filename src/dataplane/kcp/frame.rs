//! What sealed packets carry. Numbers are LEB128; a payload is frames without a gap.

pub(super) type FlowId = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("frame ends early")]
    Short,
    #[error("number is out of range")]
    Number,
    #[error("unknown frame {0}")]
    Kind(u8),
    #[error("frame is not as it must be: {0}")]
    Malformed(&'static str),
}

/// How a direction of a flow ends: in order, or cut off behind its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Finished,
    Cut,
}

/// Packet numbers received, highest range first, both bounds inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ack {
    pub delay_us: u64,
    /// Packets rebuilt from parity since the session began.
    pub recovered: u64,
    pub ranges: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Ping,
    Ack(Ack),
    /// Both directions of the flow are over at once.
    Reset {
        flow: FlowId,
    },
    /// The receiver takes bytes of the flow below `limit`.
    Window {
        flow: FlowId,
        limit: u64,
    },
    /// One of `count` parity shards over the payloads of `data` packets from number `base` on.
    Parity {
        base: u64,
        data: u8,
        count: u8,
        index: u8,
        shard: &'a [u8],
    },
    /// The sender has ended the session.
    Close,
    Stream {
        flow: FlowId,
        offset: u64,
        end: Option<End>,
        data: &'a [u8],
    },
}

const PING: u8 = 1;
const ACK: u8 = 2;
const RESET: u8 = 3;
const WINDOW: u8 = 4;
const PARITY: u8 = 5;
const CLOSE: u8 = 6;
const STREAM: u8 = 8;
const STREAM_FINISHED: u8 = 9;
const STREAM_CUT: u8 = 10;
/// No number is as large: sums of two do not overflow.
pub(super) const NUMBER_MAX: u64 = (1 << 62) - 1;
/// Of a stream frame, at most: kind, flow, offset, length.
pub(super) const STREAM_OVERHEAD_BYTES: usize = 1 + 9 + 9 + 2;

impl Frame<'_> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Ping => out.push(PING),
            Frame::Close => out.push(CLOSE),
            Frame::Reset { flow } => put_all(out, RESET, &[*flow]),
            Frame::Window { flow, limit } => put_all(out, WINDOW, &[*flow, *limit]),
            Frame::Ack(ack) => {
                let Some(&(low, high)) = ack.ranges.first() else { return };
                put_all(out, ACK, &[ack.delay_us, ack.recovered, ack.ranges.len() as u64, high, high - low]);
                let mut above = low;
                for (low, high) in &ack.ranges[1..] {
                    put(out, above - high - 2);
                    put(out, high - low);
                    above = *low;
                }
            }
            Frame::Parity { base, data, count, index, shard } => {
                put_all(out, PARITY, &[*base]);
                out.extend([*data, *count, *index]);
                put(out, shard.len() as u64);
                out.extend_from_slice(shard);
            }
            Frame::Stream { flow, offset, end, data } => {
                let kind = match end {
                    None => STREAM,
                    Some(End::Finished) => STREAM_FINISHED,
                    Some(End::Cut) => STREAM_CUT,
                };
                put_all(out, kind, &[*flow, *offset, data.len() as u64]);
                out.extend_from_slice(data);
            }
        }
    }
}

/// All frames of a payload, or none.
pub(super) fn decode(mut payload: &[u8]) -> Result<Vec<Frame<'_>>, FrameError> {
    let input = &mut payload;
    let mut frames = Vec::with_capacity(4);
    while let Some((&kind, rest)) = input.split_first() {
        *input = rest;
        frames.push(match kind {
            PING => Frame::Ping,
            CLOSE => Frame::Close,
            RESET => Frame::Reset { flow: take(input)? },
            WINDOW => Frame::Window { flow: take(input)?, limit: take(input)? },
            ACK => Frame::Ack(take_ack(input)?),
            PARITY => {
                let base = take(input)?;
                let [data, count, index] = take_bytes(input, 3)?.try_into().map_err(|_| FrameError::Short)?;
                let shard = take_counted(input)?;
                let shaped = data > 0 && index < count && shard.len() >= 2 && shard.len().is_multiple_of(2);
                if !shaped {
                    return Err(FrameError::Malformed("parity"));
                }
                Frame::Parity { base, data, count, index, shard }
            }
            STREAM | STREAM_FINISHED | STREAM_CUT => {
                let (flow, offset) = (take(input)?, take(input)?);
                let end = match kind {
                    STREAM_FINISHED => Some(End::Finished),
                    STREAM_CUT => Some(End::Cut),
                    _ => None,
                };
                Frame::Stream { flow, offset, end, data: take_counted(input)? }
            }
            other => return Err(FrameError::Kind(other)),
        });
    }
    Ok(frames)
}

fn take_ack(input: &mut &[u8]) -> Result<Ack, FrameError> {
    let (delay_us, recovered, count) = (take(input)?, take(input)?, take(input)?);
    if count == 0 || count > super::ACK_RANGES_TOLD as u64 {
        return Err(FrameError::Malformed("number of ranges"));
    }
    let high = take(input)?;
    let mut low = high.checked_sub(take(input)?).ok_or(FrameError::Number)?;
    let mut ranges = vec![(low, high)];
    for _ in 1..count {
        let high = take(input)?.checked_add(2).and_then(|gap| low.checked_sub(gap)).ok_or(FrameError::Number)?;
        low = high.checked_sub(take(input)?).ok_or(FrameError::Number)?;
        ranges.push((low, high));
    }
    Ok(Ack { delay_us, recovered, ranges })
}

fn put_all(out: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    out.push(kind);
    numbers.iter().for_each(|n| put(out, *n));
}

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn take(input: &mut &[u8]) -> Result<u64, FrameError> {
    let mut n = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = input.split_first().ok_or(FrameError::Short)?;
        *input = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return if n <= NUMBER_MAX { Ok(n) } else { Err(FrameError::Number) };
        }
    }
    Err(FrameError::Number)
}

fn take_counted<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], FrameError> {
    let length = usize::try_from(take(input)?).map_err(|_| FrameError::Number)?;
    take_bytes(input, length)
}

fn take_bytes<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8], FrameError> {
    let (head, rest) = input.split_at_checked(length).ok_or(FrameError::Short)?;
    *input = rest;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..300u64, 0..=NUMBER_MAX]
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_were(flow in number(), offset in number(), data: Vec<u8>, end in 0..3u8,
                                         lows in proptest::collection::btree_set(0..100_000u64, 1..20)) {
            let end = [None, Some(End::Finished), Some(End::Cut)][usize::from(end)];
            let ranges: Vec<_> = lows.iter().rev().map(|low| (low * 3, low * 3 + 1)).collect();
            let frames = vec![
                Frame::Ping,
                Frame::Ack(Ack { delay_us: offset, recovered: flow, ranges }),
                Frame::Reset { flow },
                Frame::Window { flow, limit: offset },
                Frame::Parity { base: flow, data: 10, count: 3, index: 2, shard: &[1, 2, 3, 4] },
                Frame::Stream { flow, offset, end, data: &data },
                Frame::Close,
            ];
            let mut bytes = vec![];
            frames.iter().for_each(|f| f.encode(&mut bytes));
            prop_assert_eq!(decode(&bytes), Ok(frames));
        }

        #[test]
        fn no_input_panics(bytes: Vec<u8>, kind in 0..12u8) {
            let _ = decode(&[&[kind], &bytes[..]].concat());
        }
    }
}

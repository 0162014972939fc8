//! Frames of the device: datagrams of one UDP flow cross it together and are cut, or joined, here, so that the kernel
//! takes the way through its firewall once for all of them (`virtio_net_hdr`: virtio 1.2 §5.1.6).

use super::packet::{Malformed, UDP, fold, sum_of};

/// What goes before the packet in each frame.
pub(super) const FRAME_HEADER_BYTES: usize = 10;
/// The largest frame.
pub(super) const FRAME_MAX_BYTES: usize = FRAME_HEADER_BYTES + 65_535;
const NEEDS_CHECKSUM: u8 = 1;
const WHOLE: u8 = 0;
const UDP_SEGMENTS: u8 = 5;
const UDP_HEADER_BYTES: usize = 8;
/// Of the checksum, in a UDP header.
const UDP_CHECKSUM: u16 = 6;
const V4_HEADER_BYTES: usize = 20;
const V6_HEADER_BYTES: usize = 40;
/// "Don't fragment", and no fragment.
const WHOLE_FOR_GOOD: [u8; 2] = [0x40, 0];
/// What the kernel cuts one frame into at most (`UDP_MAX_SEGMENTS`).
const JOINED_MAX: usize = 64;
/// Frames that are looked at for the flow of a datagram, the latest first.
const OPEN_MAX: usize = 8;

/// The packets of one frame.
pub(super) struct Pieces<'a> {
    packet: &'a mut [u8],
    /// Where the UDP header is, and how much of its data each packet has. None: one packet as it is.
    cut: Option<(usize, usize)>,
    /// Where the data of the next packet begins; the packet's end when there is none.
    at: usize,
    number: u16,
}

impl<'a> Pieces<'a> {
    /// Completes a checksum that was left to us.
    pub fn of(frame: &'a mut [u8]) -> Result<Self, Malformed> {
        let (header, packet) = frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>().ok_or(Malformed)?;
        let [flags, kind, _, _, size @ .., s0, s1, o0, o1] = *header;
        let size = usize::from(u16::from_ne_bytes(size));
        let start = usize::from(u16::from_ne_bytes([s0, s1]));
        let checksum = start + usize::from(u16::from_ne_bytes([o0, o1]));
        let cut = match kind & 0x7f {
            WHOLE => None,
            UDP_SEGMENTS if size > 0 && flags & NEEDS_CHECKSUM != 0 => Some((start, size)),
            _ => return Err(Malformed),
        };
        let at = match cut {
            Some((udp, _)) if udp + UDP_HEADER_BYTES < packet.len() && udp >= header_bytes(packet)? => {
                udp + UDP_HEADER_BYTES
            }
            Some(_) => return Err(Malformed),
            None => 0,
        };
        if cut.is_none() && flags & NEEDS_CHECKSUM != 0 {
            let covered = packet.get(start..).filter(|p| checksum + 2 <= start + p.len()).ok_or(Malformed)?;
            let sum = not_zero(!fold(sum_of(covered, 0)));
            packet[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(Self { packet, cut, at, number: 0 })
    }

    /// Writes the next packet to the beginning of `to`; gives its length, none when there are no more.
    pub fn next_into(&mut self, to: &mut [u8]) -> Option<usize> {
        let rest = self.packet.get(self.at..).filter(|rest| !rest.is_empty())?;
        let Some((udp, size)) = self.cut else {
            to[..rest.len()].copy_from_slice(rest);
            self.at = self.packet.len();
            return Some(self.packet.len());
        };
        let data = &rest[..size.min(rest.len())];
        let head = udp + UDP_HEADER_BYTES;
        let len = head + data.len();
        to[..head].copy_from_slice(&self.packet[..head]);
        to[head..len].copy_from_slice(data);
        self.at += data.len();
        let packet = &mut to[..len];
        set_lengths(packet, udp, self.number);
        self.number = self.number.wrapping_add(1);
        let sum = not_zero(!fold(sum_of(&packet[udp..], u32::from(pseudo_sum(packet, udp)))));
        packet[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
        Some(len)
    }
}

fn header_bytes(packet: &[u8]) -> Result<usize, Malformed> {
    match packet.first().map(|b| b >> 4) {
        Some(4) => Ok(V4_HEADER_BYTES),
        Some(6) => Ok(V6_HEADER_BYTES),
        _ => Err(Malformed),
    }
}

/// Makes all lengths those of the packet as it is, and its checksum field 0. The `number`-th of its frame.
fn set_lengths(packet: &mut [u8], udp: usize, number: u16) {
    let len = packet.len();
    if packet[0] >> 4 == 4 {
        let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(number);
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[10..12].fill(0);
        let sum = !fold(sum_of(&packet[..udp], 0));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&((len - V6_HEADER_BYTES) as u16).to_be_bytes());
    }
    packet[udp + 4..udp + 6].copy_from_slice(&((len - udp) as u16).to_be_bytes());
    packet[udp + 6..udp + 8].fill(0);
}

/// Of what a checksum covers besides the datagram itself (RFC 768, RFC 8200 §8.1).
fn pseudo_sum(packet: &[u8], udp: usize) -> u16 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    fold(sum_of(addresses, u32::from(UDP) + (packet.len() - udp) as u32))
}

/// In UDP, 0 says that there is no checksum.
fn not_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// What datagrams that may be joined have in common: their headers, without lengths, numbers and checksums.
type Flow = [u8; V6_HEADER_BYTES + 4];

/// A whole UDP datagram with right checksums, which may be computed again.
struct Datagram {
    flow: Flow,
    /// Where the UDP header is.
    udp: usize,
    data_len: usize,
}

impl Datagram {
    fn of(packet: &[u8]) -> Option<Self> {
        let len = packet.len();
        let mut flow = [0; V6_HEADER_BYTES + 4];
        let udp = match *packet.first()? {
            0x45 if len > V4_HEADER_BYTES + UDP_HEADER_BYTES
                && packet[2..4] == (len as u16).to_be_bytes()
                && packet[6..8] == WHOLE_FOR_GOOD
                && packet[9] == UDP
                && fold(sum_of(&packet[..V4_HEADER_BYTES], 0)) == 0xffff =>
            {
                flow[..2].copy_from_slice(&packet[..2]);
                flow[8] = packet[8];
                flow[12..24].copy_from_slice(&packet[12..24]);
                V4_HEADER_BYTES
            }
            first
                if first >> 4 == 6
                    && len > V6_HEADER_BYTES + UDP_HEADER_BYTES
                    && packet[4..6] == ((len - V6_HEADER_BYTES) as u16).to_be_bytes()
                    && packet[6] == UDP =>
            {
                flow.copy_from_slice(&packet[..V6_HEADER_BYTES + 4]);
                flow[4..6].fill(0);
                V6_HEADER_BYTES
            }
            _ => return None,
        };
        let is_whole = packet[udp + 4..udp + 6] == ((len - udp) as u16).to_be_bytes();
        let has_checksum = packet[udp + 6..udp + 8] != [0, 0];
        let is_right = || fold(sum_of(&packet[udp..], u32::from(pseudo_sum(packet, udp)))) == 0xffff;
        (is_whole && has_checksum && is_right()).then_some(Self { flow, udp, data_len: len - udp - UDP_HEADER_BYTES })
    }
}

/// One frame to be written.
#[derive(Default)]
struct Frame {
    bytes: Vec<u8>,
    joined: Option<Joined>,
}

struct Joined {
    flow: Flow,
    udp: usize,
    /// Of all but the last, which may have less.
    data_len: usize,
    count: usize,
    is_closed: bool,
}

impl Frame {
    fn begin(&mut self, packet: &[u8], datagram: Option<Datagram>) {
        self.bytes.clear();
        self.bytes.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        self.bytes.extend_from_slice(packet);
        self.joined =
            datagram.map(|Datagram { flow, udp, data_len }| Joined { flow, udp, data_len, count: 1, is_closed: false });
    }

    /// Whether the data was taken.
    fn join(&mut self, datagram: &Datagram, data: &[u8]) -> bool {
        let Some(joined) = &mut self.joined else { return false };
        let has_room = joined.count < JOINED_MAX && self.bytes.len() + data.len() <= FRAME_MAX_BYTES;
        if joined.is_closed || !has_room || datagram.data_len > joined.data_len {
            joined.is_closed = true;
            return false;
        }
        self.bytes.extend_from_slice(data);
        joined.count += 1;
        joined.is_closed = datagram.data_len < joined.data_len;
        true
    }

    /// The frame as it is written.
    fn sealed(&mut self) -> &[u8] {
        if let Some(Joined { udp, data_len, count: 2.., .. }) = self.joined {
            let (header, packet) = self.bytes.split_at_mut(FRAME_HEADER_BYTES);
            set_lengths(packet, udp, 0);
            let sum = pseudo_sum(packet, udp);
            packet[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
            header[..2].copy_from_slice(&[NEEDS_CHECKSUM, UDP_SEGMENTS]);
            let numbers = [(udp + UDP_HEADER_BYTES) as u16, data_len as u16, udp as u16, UDP_CHECKSUM];
            for (place, number) in header[2..].chunks_exact_mut(2).zip(numbers) {
                place.copy_from_slice(&number.to_ne_bytes());
            }
        }
        &self.bytes
    }
}

/// Packets on their way to the device. Those of one flow stay in order.
#[derive(Default)]
pub(super) struct Trains {
    /// The first `used` of them; the others keep their space.
    frames: Vec<Frame>,
    used: usize,
    /// Behind the last one that nothing may pass.
    barrier: usize,
}

impl Trains {
    /// `joins`: the device takes frames of several datagrams.
    pub fn push(&mut self, packet: &[u8], joins: bool) {
        let datagram = if joins { Datagram::of(packet) } else { None };
        if let Some(datagram) = &datagram {
            let data = &packet[datagram.udp + UDP_HEADER_BYTES..];
            let of_flow = |frame: &&mut Frame| frame.joined.as_ref().is_some_and(|j| j.flow == datagram.flow);
            let mut latest = self.frames[self.barrier..self.used].iter_mut().rev().take(OPEN_MAX);
            if latest.find(of_flow).is_some_and(|frame| frame.join(datagram, data)) {
                return;
            }
        }
        if self.used == self.frames.len() {
            self.frames.push(Frame::default());
        }
        let is_barrier = datagram.is_none();
        self.frames[self.used].begin(packet, datagram);
        self.used += 1;
        if is_barrier {
            self.barrier = self.used;
        }
    }

    /// Gives every frame to `write`, and is empty.
    pub fn drain(&mut self, mut write: impl FnMut(&[u8])) {
        self.frames[..self.used].iter_mut().for_each(|frame| write(frame.sealed()));
        (self.used, self.barrier) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A datagram of flow `flow`, whose data is told by `tag`.
    fn datagram(v6: bool, flow: u8, data_len: usize, tag: u8) -> Vec<u8> {
        let udp = if v6 { V6_HEADER_BYTES } else { V4_HEADER_BYTES };
        let mut packet = vec![0; udp];
        if v6 {
            packet[..8].copy_from_slice(&[0x60, 0, 0, 7, 0, 0, UDP, 64]);
            packet[23] = flow;
            packet[39] = 9;
        } else {
            packet[..10].copy_from_slice(&[0x45, 0, 0, 0, tag, 0, 0x40, 0, 64, UDP]);
            packet[15] = flow;
            packet[19] = 9;
        }
        packet.extend_from_slice(&[0x10, flow, 0x20, 0x00, 0, 0, 0, 0]);
        packet.extend((0..data_len).map(|i| tag.wrapping_mul(31).wrapping_add(i as u8)));
        set_lengths(&mut packet, udp, 0);
        let sum = not_zero(!fold(sum_of(&packet[udp..], u32::from(pseudo_sum(&packet, udp)))));
        packet[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn crossed(packets: &[Vec<u8>]) -> (usize, Vec<Vec<u8>>) {
        let mut trains = Trains::default();
        packets.iter().for_each(|packet| trains.push(packet, true));
        let (mut frames, mut out) = (0, vec![]);
        trains.drain(|frame| {
            frames += 1;
            let (mut frame, mut to) = (frame.to_vec(), vec![0; 65_535]);
            let mut pieces = Pieces::of(&mut frame).unwrap();
            while let Some(len) = pieces.next_into(&mut to) {
                out.push(to[..len].to_vec());
            }
        });
        (frames, out)
    }

    /// Without what numbers IPv4 packets that are never cut: nobody needs it (RFC 6864 §4.1).
    fn unnumbered(packet: &[u8]) -> Vec<u8> {
        let mut packet = packet.to_vec();
        if packet[0] == 0x45 && packet[6..8] == WHOLE_FOR_GOOD {
            assert_eq!(fold(sum_of(&packet[..V4_HEADER_BYTES], 0)), 0xffff, "the header's checksum");
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        packet
    }

    fn by_flow(packets: &[Vec<u8>]) -> std::collections::BTreeMap<u8, Vec<Vec<u8>>> {
        let mut flows = std::collections::BTreeMap::<u8, Vec<_>>::new();
        for packet in packets {
            let flow = if packet[0] >> 4 == 6 { packet[23] } else { packet[15] };
            flows.entry(flow).or_default().push(unnumbered(packet));
        }
        flows
    }

    #[derive(Debug, Clone, Copy)]
    enum Kind {
        Plain,
        MayBeCut,
        WrongChecksum,
        NoChecksum,
        Icmp,
    }

    fn packet() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop_oneof![
            12 => Just(Kind::Plain),
            1 => Just(Kind::MayBeCut),
            1 => Just(Kind::WrongChecksum),
            1 => Just(Kind::NoChecksum),
            1 => Just(Kind::Icmp)
        ];
        let size = prop_oneof![4 => Just(1200usize), 1 => 0..1300usize];
        (any::<bool>(), 0..4u8, size, any::<u8>(), kind).prop_map(|(v6, flow, size, tag, kind)| {
            // A flow has one family.
            let mut packet = datagram(v6, flow * 2 + u8::from(v6), size, tag);
            let udp = if v6 { V6_HEADER_BYTES } else { V4_HEADER_BYTES };
            match kind {
                Kind::MayBeCut if !v6 => {
                    packet[6] = 0;
                    set_lengths(&mut packet, udp, 0);
                }
                Kind::WrongChecksum => packet[udp + 6] ^= 0x55,
                Kind::NoChecksum => packet[udp + 6..udp + 8].fill(0),
                Kind::Icmp if !v6 => {
                    packet[9] = 1;
                    set_lengths(&mut packet, udp, 0);
                }
                _ => {}
            }
            packet
        })
    }

    #[test]
    fn equal_datagrams_of_one_flow_are_one_frame_and_the_last_may_be_shorter() {
        for v6 in [false, true] {
            let mut packets: Vec<_> = (0..9).map(|tag| datagram(v6, 1, 1200, tag)).collect();
            packets.push(datagram(v6, 1, 7, 9));
            let (frames, out) = crossed(&packets);
            assert_eq!((frames, out.len()), (1, 10));
            assert_eq!(by_flow(&out), by_flow(&packets));
        }
    }

    #[test]
    fn two_flows_in_turns_are_two_frames() {
        let packets: Vec<_> = (0..20).map(|tag| datagram(false, tag % 2, 500, tag)).collect();
        assert_eq!(crossed(&packets).0, 2);
    }

    #[test]
    fn a_device_that_joins_nothing_gets_each_packet_alone() {
        let mut trains = Trains::default();
        let packet = datagram(false, 1, 100, 1);
        (0..3).for_each(|_| trains.push(&packet, false));
        let mut frames = vec![];
        trains.drain(|frame| frames.push(frame.to_vec()));
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|f| f[..FRAME_HEADER_BYTES] == [0; FRAME_HEADER_BYTES] && f[10..] == packet));
        trains.drain(|_| panic!("nothing is written twice"));
    }

    #[test]
    fn a_checksum_that_was_left_to_us_is_completed() {
        let packet = datagram(true, 3, 333, 5);
        let udp = V6_HEADER_BYTES;
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        frame[0] = NEEDS_CHECKSUM;
        frame[6..8].copy_from_slice(&(udp as u16).to_ne_bytes());
        frame[8..10].copy_from_slice(&UDP_CHECKSUM.to_ne_bytes());
        frame.extend_from_slice(&packet);
        let pseudo = pseudo_sum(&packet, udp);
        frame[10 + udp + 6..10 + udp + 8].copy_from_slice(&pseudo.to_be_bytes());
        let mut to = vec![0; 2000];
        let len = Pieces::of(&mut frame).unwrap().next_into(&mut to).unwrap();
        assert_eq!(to[..len], packet);
    }

    proptest! {
        #[test]
        fn what_is_joined_and_cut_again_is_what_it_was_in_the_order_of_each_flow(
            packets in proptest::collection::vec(packet(), 0..120),
        ) {
            let (frames, out) = crossed(&packets);
            prop_assert!(frames <= packets.len());
            prop_assert_eq!(by_flow(&out), by_flow(&packets));
        }

        #[test]
        fn no_frame_is_read_beyond_its_end(mut frame in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6u8) {
            if let Some(place) = frame.get_mut(1) {
                *place = kind;
            }
            let mut to = vec![0; 65_535];
            if let Ok(mut pieces) = Pieces::of(&mut frame) {
                while pieces.next_into(&mut to).is_some() {}
            }
        }
    }
}

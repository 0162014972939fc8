//! Tells neighbours where an address is now: gratuitous ARP (RFC 5227 §3), unsolicited neighbour advertisement
//! (RFC 4861 §7.2.6).

use super::packet::PacketSocket;
use crate::kernel::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: Mac = Mac([0xff; 6]);
/// Of `ff02::1`.
const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Replaces what neighbours have.
const FLAG_OVERRIDE: u8 = 0x20;
const OPTION_TARGET_MAC: u8 = 2;
const ADVERTISEMENT_BYTES: usize = 32;

/// A link that is not running tells nobody, and nobody misses it: it is told again when it is.
pub fn send(index: u32, mac: Mac, addresses: &[IpAddr]) {
    if addresses.is_empty() {
        return;
    }
    let sent = PacketSocket::sending(index).and_then(|socket| {
        addresses.iter().try_for_each(|address| {
            socket.send(&match address {
                IpAddr::V4(v4) => gratuitous_arp(mac, *v4),
                IpAddr::V6(v6) => unsolicited_advertisement(mac, *v6),
            })
        })
    });
    if let Err(e) = sent {
        tracing::debug!(index, error = %e, "addresses were not announced");
    }
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, 6 and 4 bytes, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, FLAG_OVERRIDE, 0, 0, 0];
    body.extend(address.octets());
    body.extend([OPTION_TARGET_MAC, 1]);
    body.extend(mac.0);
    debug_assert_eq!(body.len(), ADVERTISEMENT_BYTES);
    let pseudo = [&address.octets()[..], &to.octets(), &[0, 0, 0, ADVERTISEMENT_BYTES as u8, 0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[&pseudo[..], &body].concat());
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES, mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, ADVERTISEMENT_BYTES as u8, ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(to.octets());
    frame.extend(body);
    frame
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.fold(0, |sum, word| sum.wrapping_add(word));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn an_arp_announcement_names_the_address_as_sender_and_target() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(frame.len(), 42);
        assert_eq!((&frame[..6], &frame[6..12], &frame[12..14]), (&[0xff; 6][..], &MAC.0[..], &[8, 6][..]));
        assert_eq!((&frame[28..32], &frame[38..42]), (&[192, 0, 2, 7][..], &[192, 0, 2, 7][..]));
    }

    #[test]
    fn an_advertisement_has_a_right_checksum() {
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        let (ip, body) = (&frame[14..54], &frame[54..]);
        let pseudo = [&ip[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo[..], body].concat()), 0);
        assert_eq!((body[0], &body[8..24]), (136, &address.octets()[..]));
    }
}

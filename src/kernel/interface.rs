//! The MACVLAN of a service (dataplane.md §5), as one value that the kernel is made to hold.

use crate::model::{ServiceId, interface_name};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, fmt};

/// What begins the alias of every link of ours.
const ALIAS_PREFIX: &str = "arctic:";
/// `IFLA_INFO_KIND` of our links.
pub const MACVLAN: &str = "macvlan";

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Locally administered, unicast, the same at every creation.
    pub fn of_service(service: ServiceId) -> Self {
        let digest = Sha256::new().chain_update(b"arctic/mac/v1").chain_update(service.to_bytes()).finalize();
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&digest[..6]);
        bytes[0] = bytes[0] & !0x01 | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What the interface of a service shall be: a MACVLAN in bridge mode on `parent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub service: ServiceId,
    /// Index of the link that carries it.
    pub parent: u32,
    /// That of the parent.
    pub mtu: u32,
    pub up: bool,
    /// Of the host in its networks; link-local IPv6 addresses are the kernel's own. Of no meaning while it is down.
    pub addresses: BTreeSet<IpNet>,
}

impl Interface {
    pub fn name(&self) -> String {
        interface_name(self.service)
    }
    pub fn mac(&self) -> Mac {
        Mac::of_service(self.service)
    }
    pub fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}", self.service)
    }
}

/// What `set_interface` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InterfaceChange {
    #[default]
    None,
    Changed,
    /// It was not there, or on another parent.
    Created,
}

/// One link of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    pub name: String,
    /// `arctic:<service id>` on links of ours.
    pub alias: Option<String>,
    /// `macvlan`, `veth`, …; none for hardware and loopback.
    pub kind: Option<String>,
    /// Index of the link below, in this network namespace.
    pub parent: Option<u32>,
    /// Of Ethernet links only.
    pub mac: Option<Mac>,
    pub up: bool,
    pub mtu: u32,
    pub addresses: BTreeSet<IpNet>,
}

impl Link {
    /// Whether we made it, for whatever service.
    pub fn is_ours(&self) -> bool {
        self.kind.as_deref() == Some(MACVLAN) && self.alias.as_deref().is_some_and(|a| a.starts_with(ALIAS_PREFIX))
    }

    /// Whether we made it for this service. One whose alias is not written yet, or was taken away, is known by its MAC.
    pub fn is_of(&self, service: ServiceId) -> bool {
        let alias = self.alias.as_deref();
        let named = alias == Some(&*format!("{ALIAS_PREFIX}{service}"));
        let unnamed = alias.is_none() && self.mac == Some(Mac::of_service(service));
        self.kind.as_deref() == Some(MACVLAN) && self.name == interface_name(service) && (named || unnamed)
    }

    /// Without the link-local IPv6 addresses that the kernel gives by itself.
    pub fn set_addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        let automatic = |net: &IpNet| matches!(net, IpNet::V6(v6) if v6.addr().is_unicast_link_local());
        self.addresses.iter().copied().filter(move |net| !automatic(net))
    }

    /// Whether nothing is left to do for `wanted`.
    pub fn holds(&self, wanted: &Interface) -> bool {
        self.is_of(wanted.service)
            && self.alias.is_some()
            && (self.parent, self.mac, self.up, self.mtu)
                == (Some(wanted.parent), Some(wanted.mac()), wanted.up, wanted.mtu)
            && (!wanted.up || self.set_addresses().eq(wanted.addresses.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, UnixTime};

    #[test]
    fn a_mac_is_local_unicast_and_stays() {
        let mut rng = Rng::from_seed([1; 32]);
        let mut seen = BTreeSet::new();
        for n in 0..200 {
            let service = ServiceId::mint(UnixTime::from_ms(n), &mut rng);
            let mac = Mac::of_service(service);
            assert_eq!((mac.0[0] & 0x03, mac), (0x02, Mac::of_service(service)));
            seen.insert(mac);
        }
        assert_eq!(seen.len(), 200);
        assert_eq!(Mac([2, 0, 0xab, 0, 1, 0xff]).to_string(), "02:00:ab:00:01:ff");
    }
}

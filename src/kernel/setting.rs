//! Settings of the network namespace that are changed while something needs them, and put back after.

/// What is needed of the host; a setting that serves already is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostSetting {
    /// A link answers ARP only for addresses that it has itself: the parent of a MACVLAN would answer for the MACVLAN.
    OwnArpOnly { link: String },
    /// IPv4 packets may be forwarded.
    Forwarding,
    /// A link heeds router advertisements also on a host that forwards, if it did before: its routes would expire.
    RouterAdvertisements { link: String },
    /// IPv6 packets may be forwarded. Comes after the advertisements.
    ForwardingV6,
    /// Where a link takes packets only from where it would send the answer, it takes them from any known network.
    LooseReversePath { link: String },
}

impl HostSetting {
    /// Its path below `/proc/sys`.
    pub fn key(&self) -> String {
        match self {
            Self::Forwarding => "net/ipv4/ip_forward".to_owned(),
            Self::ForwardingV6 => "net/ipv6/conf/all/forwarding".to_owned(),
            Self::RouterAdvertisements { link } => format!("net/ipv6/conf/{link}/{}", self.name()),
            Self::OwnArpOnly { link } | Self::LooseReversePath { link } => {
                format!("net/ipv4/conf/{link}/{}", self.name())
            }
        }
    }

    /// The path of the same setting for all links, where the larger of both counts.
    pub fn key_of_all(&self) -> Option<String> {
        let of_a_link = matches!(self, Self::OwnArpOnly { .. } | Self::LooseReversePath { .. });
        of_a_link.then(|| format!("net/ipv4/conf/all/{}", self.name()))
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::OwnArpOnly { .. } => "arp_ignore",
            Self::Forwarding => "ip_forward",
            Self::RouterAdvertisements { .. } => "accept_ra",
            Self::ForwardingV6 => "forwarding",
            Self::LooseReversePath { .. } => "rp_filter",
        }
    }

    /// The value that it is given.
    pub const fn value(&self) -> u32 {
        match self {
            Self::OwnArpOnly { .. } | Self::Forwarding | Self::ForwardingV6 => 1,
            Self::LooseReversePath { .. } | Self::RouterAdvertisements { .. } => 2,
        }
    }

    /// Whether the value that counts serves.
    pub const fn is_served_by(&self, value: u32) -> bool {
        match self {
            Self::OwnArpOnly { .. } | Self::Forwarding | Self::ForwardingV6 => value >= 1,
            Self::LooseReversePath { .. } | Self::RouterAdvertisements { .. } => value != 1,
        }
    }
}

/// What `set_host_settings` did, as `key = value`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsChange {
    pub set: Vec<String>,
    pub restored: Vec<String>,
}

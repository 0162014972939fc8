//! Settings of the network namespace that are changed while something needs them, and put back after.

/// What is needed of the host; a setting that serves already is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostSetting {
    /// A link answers ARP only for addresses that it has itself: the parent of a MACVLAN would answer for the MACVLAN.
    OwnArpOnly { link: String },
    /// IPv4 packets may be forwarded.
    Forwarding,
    /// Where a link takes packets only from where it would send the answer, it takes them from any known network.
    LooseReversePath { link: String },
}

impl HostSetting {
    /// Its path below `/proc/sys`.
    pub fn key(&self) -> String {
        match self {
            Self::Forwarding => "net/ipv4/ip_forward".to_owned(),
            Self::OwnArpOnly { link } | Self::LooseReversePath { link } => {
                format!("net/ipv4/conf/{link}/{}", self.name())
            }
        }
    }

    /// The path of the same setting for all links, where the larger of both counts.
    pub fn key_of_all(&self) -> Option<String> {
        let of_a_link = !matches!(self, Self::Forwarding);
        of_a_link.then(|| format!("net/ipv4/conf/all/{}", self.name()))
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::OwnArpOnly { .. } => "arp_ignore",
            Self::Forwarding => "ip_forward",
            Self::LooseReversePath { .. } => "rp_filter",
        }
    }

    /// The value that it is given.
    pub const fn value(&self) -> u32 {
        match self {
            Self::OwnArpOnly { .. } | Self::Forwarding => 1,
            Self::LooseReversePath { .. } => 2,
        }
    }

    /// Whether the value that counts serves.
    pub const fn is_served_by(&self, value: u32) -> bool {
        match self {
            Self::OwnArpOnly { .. } | Self::Forwarding => value >= 1,
            Self::LooseReversePath { .. } => value != 1,
        }
    }
}

/// What `set_host_settings` did, as `key = value`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingsChange {
    pub set: Vec<String>,
    pub restored: Vec<String>,
}

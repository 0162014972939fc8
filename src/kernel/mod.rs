//! What Arctic owns in the kernel, in our own words: two packet-filter tables, policy rules and their routes, and the
//! interfaces of services.
//!
//! `Kernel` is the seam: `os::LinuxKernel` speaks netlink, `FakeKernel` keeps the same state in memory. Both pass the
//! suite in `contract`. What the tables *mean* is decided once, in `Ruleset::tables`; the real kernel encodes that
//! program, the fake and the tests interpret it (`classify`).

mod captures;
mod classify;
pub mod contract;
mod fake;
mod interface;
mod mark;
mod policy;
mod program;
mod ruleset;
mod setting;

pub(crate) use ruleset::{DHCP_PORTS, ICMP_V6, NEIGHBOUR_DISCOVERY, TCP, UDP, sets, special_networks};

pub use captures::Shape;
pub use classify::{Arrival, HostView, Packet, Verdict, classify};
pub use fake::{FakeKernel, Fault, Operation};
pub use interface::{Interface, InterfaceChange, Link, MACVLAN, Mac};
pub use mark::{MarkError, MarkMask};
pub use policy::{
    Family, POLICY_PRIORITIES, POLICY_PROTOCOL, POLICY_TABLES, PolicyChange, PolicyItem, PolicyRouting, PolicyRule,
    TABLE_CAPTURE, TABLE_TUNNEL_DEVICE, alias_network,
};
pub use program::{Action, Base, Chain, ChainKind, Covers, Elements, Hook, Jump, Key, Match, Rule, Set, Table};
pub use ruleset::{Capture, Intercept, PeerSocket, Ruleset, TABLE_TCP, TABLE_TUNNEL, Tunnel};
pub use setting::{HostSetting, SettingsChange};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    net::IpAddr,
    pin::Pin,
    time::Duration,
};
use tokio::sync::watch;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The liveness element expires this long after it was last fed (dataplane.md §7).
pub const LIVENESS_TIMEOUT: Duration = Duration::from_secs(9);
/// How often the reconciler feeds it.
pub const LIVENESS_REFRESH: Duration = Duration::from_secs(3);

/// The kernel of one host, as far as Arctic owns it. Every verb is idempotent and touches nothing foreign; on an error
/// the state is as before the call (tables: always; policy: each item on its own, see `set_policy`).
pub trait Kernel: Send + Sync + 'static {
    /// Replaces both tables whole, in one transaction: a packet meets the old rules or the new ones, never neither.
    /// The liveness element is fed in the same transaction.
    fn replace_tables<'a>(&'a self, ruleset: &'a Ruleset) -> BoxFuture<'a, Result<(), KernelError>>;

    /// Sets the liveness element to `LIVENESS_TIMEOUT` again. Fails with `KernelError::is_missing` without the tables.
    fn feed_liveness(&self) -> BoxFuture<'_, Result<(), KernelError>>;

    /// Removes both tables; succeeds when there are none.
    fn remove_tables(&self) -> BoxFuture<'_, Result<(), KernelError>>;

    /// Makes our policy rules and routes equal `policy`: adds what is missing (routes first), then deletes what is
    /// surplus (rules first). The empty policy removes all. After an error some items may be applied; call it again.
    fn set_policy<'a>(&'a self, policy: &'a PolicyRouting) -> BoxFuture<'a, Result<PolicyChange, KernelError>>;

    /// Lets the host forward packets of both families, or ends that if we began it (dataplane.md §3). Answers whether
    /// something changed.
    fn set_forwarding(&self, on: bool) -> BoxFuture<'_, Result<bool, KernelError>>;

    /// Makes a link of ours be `interface`, exactly: creates it, or changes what differs. Neighbours are told where it is
    /// when it was created or got an address. Refused with `EEXIST` when a foreign link has its name. After an error some
    /// of it may be done; call it again.
    fn set_interface<'a>(&'a self, interface: &'a Interface) -> BoxFuture<'a, Result<InterfaceChange, KernelError>>;

    /// Removes a link of ours by its name; succeeds when there is none, and leaves a foreign one of that name.
    fn remove_interface<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), KernelError>>;

    /// A port to a link for DHCP, by its name.
    fn frame_port<'a>(&'a self, link: &'a str) -> BoxFuture<'a, Result<Box<dyn FramePort>, KernelError>>;

    /// Index of the link by which packets leave for destinations that no other route names: of IPv4, else of IPv6.
    fn default_link(&self) -> BoxFuture<'_, Result<Option<u32>, KernelError>>;

    /// Makes exactly these settings hold, as far as we have to do with them: sets those that do not serve, and gives those
    /// that we set before and are not among them their former values. What is of a link that is not there is passed over.
    fn set_host_settings<'a>(
        &'a self,
        wanted: &'a BTreeSet<HostSetting>,
    ) -> BoxFuture<'a, Result<SettingsChange, KernelError>>;

    /// Sets those settings again that others have changed since; which, as `key = value`.
    fn hold_host_settings(&self) -> BoxFuture<'_, Result<Vec<String>, KernelError>>;

    /// What exists now of ours, but for interfaces, which `read_host` tells.
    fn read_owned(&self) -> BoxFuture<'_, Result<Owned, KernelError>>;

    /// Addresses and links of the host.
    fn read_host(&self) -> BoxFuture<'_, Result<HostFacts, KernelError>>;

    /// What `read_owned` reports as `tables` while exactly `ruleset` is applied.
    fn fingerprint(&self, ruleset: &Ruleset) -> Fingerprint;

    /// Says when to look again. Our own writes do not count; lost notifications count as all kinds.
    fn changes(&self) -> watch::Receiver<Hints>;
}

/// Whole Ethernet frames on one link: out any, in those that may be answers of a DHCP server.
pub trait FramePort: Send + Sync {
    fn send(&self, frame: &[u8]) -> std::io::Result<()>;
    /// Cancel-safe. An error says that the link has gone or is down.
    fn receive(&mut self) -> BoxFuture<'_, std::io::Result<Vec<u8>>>;
}

/// Digest of the content of both tables: chains, sets, rules in order; not of counters, handles, the liveness element.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Our own state as it is in the kernel now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owned {
    /// Absent when none of the two tables exists.
    pub tables: Option<Fingerprint>,
    pub policy: BTreeSet<PolicyItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// By interface index.
    pub links: BTreeMap<u32, Link>,
}

impl HostFacts {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.links.values().flat_map(|link| link.addresses.iter().map(|net| net.addr()))
    }
}

/// How often each part of the kernel was changed by someone else, as far as we were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hints {
    /// Our two tables.
    pub tables: u64,
    /// Policy rules, and routes in our tables.
    pub policy: u64,
    /// Links, addresses.
    pub links: u64,
}

/// A request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{attempted}: {reason}")]
pub struct KernelError {
    /// What was attempted, with the object.
    pub attempted: String,
    pub reason: String,
    /// Linux error number, where there is one.
    pub errno: Option<i32>,
}

const ENOENT: i32 = 2;

impl KernelError {
    pub fn new(attempted: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { attempted: attempted.into(), reason: reason.into(), errno: None }
    }
    pub fn from_errno(attempted: impl Into<String>, errno: i32) -> Self {
        let reason = std::io::Error::from_raw_os_error(errno).to_string();
        Self { attempted: attempted.into(), reason, errno: Some(errno) }
    }
    /// The object that should have been changed does not exist.
    pub fn is_missing(&self) -> bool {
        self.errno == Some(ENOENT)
    }
}

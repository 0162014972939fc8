//! The only Linux code: the kernel of the host over netlink. No external command runs.

mod announce;
pub mod datagram;
mod interface;
mod link;
pub mod log;
mod monitor;
pub mod net;
mod netlink;
mod nft;
mod packet;
mod route;
mod rule;
pub mod sockets;
mod sysctl;
pub mod tun;

use crate::kernel::{
    BoxFuture, Family, Fingerprint, FramePort, Hints, HostFacts, HostSetting, Interface, InterfaceChange, Kernel,
    KernelError, Owned, PolicyChange, PolicyItem, PolicyRouting, Ruleset, SettingsChange,
};
use monitor::Monitor;
use netlink::Netlink;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use route::Found;
use std::{
    collections::BTreeSet,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use sysctl::NeededBy;
use tokio::sync::watch;

const CLAIM_NAME: &[u8] = b"arctic/kernel-state";

/// The kernel of one network namespace: that of the thread which called `open`. A netlink socket keeps the namespace in
/// which it was opened, and all sockets are opened there, so later calls may come from any thread.
pub struct LinuxKernel {
    sockets: Arc<Mutex<Sockets>>,
    before: Arc<Mutex<sysctl::Before>>,
    monitor: Monitor,
}

/// One request at a time on each.
struct Sockets {
    netfilter: Netlink,
    route: Netlink,
}

impl LinuxKernel {
    /// Opens the sockets and starts to listen for changes. Needs CAP_NET_ADMIN and a tokio runtime.
    pub fn open() -> Result<Self, KernelError> {
        Self::open_sockets().map_err(|e| KernelError {
            attempted: "opening netlink sockets".into(),
            errno: e.raw_os_error(),
            reason: e.to_string(),
        })
    }

    fn open_sockets() -> io::Result<Self> {
        let sockets = Sockets { netfilter: Netlink::open(NETLINK_NETFILTER)?, route: Netlink::open(NETLINK_ROUTE)? };
        sockets.route.set_strict()?;
        let monitor = Monitor::start(sockets.netfilter.port(), sockets.route.port())?;
        Ok(Self { sockets: Arc::new(Mutex::new(sockets)), before: Arc::default(), monitor })
    }

    /// Keeps in `file` what settings of the host were before they were changed.
    pub fn remembering(self, file: PathBuf) -> Self {
        Self { before: Arc::new(Mutex::new(sysctl::Before::kept_in(file))), ..self }
    }

    /// Runs `work` where it may take its time: a large ruleset keeps the kernel busy for tens of milliseconds.
    fn run<T: Send + 'static>(
        &self,
        attempted: &'static str,
        work: impl FnOnce(&Sockets) -> Result<T, KernelError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, KernelError>> {
        let sockets = self.sockets.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&lock(&sockets))).await;
            done.unwrap_or_else(|e| Err(KernelError::new(attempted, e.to_string())))
        })
    }
}

fn lock(sockets: &Mutex<Sockets>) -> MutexGuard<'_, Sockets> {
    // A panic leaves at worst unread answers, which the next request discards.
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernel for LinuxKernel {
    fn replace_tables<'a>(&'a self, ruleset: &'a Ruleset) -> BoxFuture<'a, Result<(), KernelError>> {
        let tables = ruleset.tables();
        self.run("replacing tables", move |s| nft::replace(&s.netfilter, &tables))
    }

    fn feed_liveness(&self) -> BoxFuture<'_, Result<(), KernelError>> {
        let tables = Ruleset::default().tables();
        self.run("feeding the liveness element", move |s| nft::feed_liveness(&s.netfilter, &tables))
    }

    fn remove_tables(&self) -> BoxFuture<'_, Result<(), KernelError>> {
        self.run("removing tables", |s| nft::remove(&s.netfilter))
    }

    fn set_policy<'a>(&'a self, policy: &'a PolicyRouting) -> BoxFuture<'a, Result<PolicyChange, KernelError>> {
        let policy = policy.clone();
        self.run("setting policy routing", move |s| set_policy(&s.route, &policy))
    }

    fn set_interface<'a>(&'a self, interface: &'a Interface) -> BoxFuture<'a, Result<InterfaceChange, KernelError>> {
        let interface = interface.clone();
        self.run("setting an interface", move |s| interface::set(&s.route, &interface))
    }

    fn remove_interface<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), KernelError>> {
        let name = name.to_owned();
        self.run("removing an interface", move |s| interface::remove(&s.route, &name))
    }

    fn set_host_settings<'a>(
        &'a self,
        wanted: &'a BTreeSet<HostSetting>,
    ) -> BoxFuture<'a, Result<SettingsChange, KernelError>> {
        let (before, wanted) = (self.before.clone(), wanted.clone());
        self.run("setting what the host needs", move |_| {
            before.lock().unwrap_or_else(PoisonError::into_inner).set(NeededBy::Network, wanted)
        })
    }

    fn hold_host_settings(&self) -> BoxFuture<'_, Result<Vec<String>, KernelError>> {
        let before = self.before.clone();
        self.run("looking at settings of the host", move |_| {
            before.lock().unwrap_or_else(PoisonError::into_inner).hold()
        })
    }

    fn frame_port<'a>(&'a self, link: &'a str) -> BoxFuture<'a, Result<Box<dyn FramePort>, KernelError>> {
        let name = link.to_owned();
        Box::pin(async move {
            let attempted = format!("listening on {name}");
            let missing = KernelError::from_errno(attempted.clone(), libc::ENODEV);
            let host = self.read_host().await?;
            let found = host.links.iter().find(|(_, link)| link.name == name);
            let index = found.map(|(index, _)| *index).ok_or(missing)?;
            let port = packet::DhcpPort::open(index).map_err(|e| KernelError::new(attempted, e.to_string()))?;
            Ok(Box::new(port) as Box<dyn FramePort>)
        })
    }

    fn default_link(&self) -> BoxFuture<'_, Result<Option<u32>, KernelError>> {
        self.run("reading the default route", |s| {
            Ok(match route::default_link(&s.route, Family::V4)? {
                None => route::default_link(&s.route, Family::V6)?,
                found => found,
            })
        })
    }

    fn set_forwarding(&self, on: bool) -> BoxFuture<'_, Result<bool, KernelError>> {
        let before = self.before.clone();
        self.run("setting forwarding", move |_| {
            let mut before = before.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = if on { before.forwarding_of_both() } else { BTreeSet::new() };
            before.set(NeededBy::Tunnel, wanted).map(|change| change != SettingsChange::default())
        })
    }

    fn read_owned(&self) -> BoxFuture<'_, Result<Owned, KernelError>> {
        self.run("reading own state", |s| {
            let tables = nft::Content::read(&s.netfilter)?.map(|content| content.fingerprint());
            let policy = read_policy(&s.route)?.into_iter().map(|found| found.item).collect();
            Ok(Owned { tables, policy })
        })
    }

    fn read_host(&self) -> BoxFuture<'_, Result<HostFacts, KernelError>> {
        self.run("reading links and addresses", |s| link::read(&s.route))
    }

    fn fingerprint(&self, ruleset: &Ruleset) -> Fingerprint {
        nft::Content::expected(&ruleset.tables()).fingerprint()
    }

    fn changes(&self) -> watch::Receiver<Hints> {
        self.monitor.hints()
    }
}

/// Says that this process owns the agent's state in the kernel of its network namespace, until it is dropped or the
/// process ends, however it ends.
pub struct HostClaim {
    _socket: UnixListener,
}

impl HostClaim {
    /// Fails with `AddrInUse` while another agent runs in this network namespace.
    pub fn take() -> io::Result<Self> {
        // Abstract names are unique in a network namespace, exactly as far as the state reaches.
        let name = SocketAddr::from_abstract_name(CLAIM_NAME)?;
        Ok(Self { _socket: UnixListener::bind_addr(&name)? })
    }
}

fn read_policy(netlink: &Netlink) -> Result<Vec<Found>, KernelError> {
    let mut found = vec![];
    for family in Family::BOTH {
        // Asked for a family that is off, the kernel lists the routes of all others.
        let of_family = |f: &Found| f.item.family() == family;
        found.extend(route::read(netlink, family)?.into_iter().filter(of_family));
        found.extend(rule::read(netlink, family)?.into_iter().filter(of_family));
    }
    Ok(found)
}

fn set_policy(netlink: &Netlink, policy: &PolicyRouting) -> Result<PolicyChange, KernelError> {
    let have = read_policy(netlink)?;
    let change = PolicyChange::between(&have.iter().map(|found| found.item).collect(), &policy.items);
    for item in &change.added {
        match *item {
            PolicyItem::LocalDefault { family, table } => route::add_local_default(netlink, family, table)?,
            PolicyItem::DeviceDefault { family, table, device } => {
                route::add_device_default(netlink, family, table, device)?;
            }
            PolicyItem::Rule { family, priority, rule } => rule::add(netlink, family, priority, rule)?,
            PolicyItem::UnknownRoute { .. } => {}
        }
    }
    for item in &change.deleted {
        for found in have.iter().filter(|found| found.item == *item) {
            let result = match item {
                PolicyItem::Rule { .. } => rule::delete(netlink, found),
                _ => route::delete(netlink, found),
            };
            match result {
                Err(e) if e.is_missing() || e.errno == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Ok(change)
}

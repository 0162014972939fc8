//! Brings the planned faults over a cluster, each at its time, and ends them.

use super::{
    faults::{Fault, Planned},
    memory::Memory,
};
use crate::Cluster;
use arctic::{kernel::Fault as KernelFault, store::Store, wire::record::Record};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

/// A host that lost data is down this long.
const DATA_LOSS_DOWN: Duration = Duration::from_secs(2);
const DATABASE: &str = "arctic.db";
const LOG: &str = "arctic.db-wal";
const LOG_INDEX: &str = "arctic.db-shm";

/// What one direction of a link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    Cut,
    Held,
}

pub(super) struct Storm {
    /// In order of time; from the back.
    waiting: Vec<Planned>,
    active: Vec<Active>,
    begun: Duration,
    hosts: Vec<String>,
    /// Other than open.
    flows: BTreeMap<(String, String), Flow>,
    down: BTreeSet<String>,
    memory: Rc<RefCell<Memory>>,
    /// Nobody counts on a copy that this host has.
    leaver: Option<String>,
    max_latency: Duration,
    fired: BTreeMap<&'static str, u64>,
}

struct Active {
    planned: Planned,
    until: Duration,
    /// A copy of the data directory, by file.
    copy: BTreeMap<&'static str, Vec<u8>>,
    /// Since when the write is on its way that a crash waited for.
    met_at: Option<Duration>,
}

impl Storm {
    pub fn new(
        cluster: &Cluster,
        faults: &[Planned],
        memory: Rc<RefCell<Memory>>,
        leaver: Option<String>,
        max_latency: Duration,
    ) -> Self {
        Self {
            waiting: faults.iter().rev().cloned().collect(),
            active: Vec::new(),
            begun: cluster.elapsed(),
            hosts: cluster.names(),
            flows: BTreeMap::new(),
            down: BTreeSet::new(),
            memory,
            leaver,
            max_latency,
            fired: BTreeMap::new(),
        }
    }

    /// Before each step.
    pub fn blow(&mut self, cluster: &mut Cluster) {
        let now = cluster.elapsed();
        while let Some(planned) = self.waiting.pop_if(|p| self.begun + p.at <= now) {
            self.begin(cluster, planned, now);
        }
        self.meet_a_write(cluster, now);
        let (ended, active) = std::mem::take(&mut self.active).into_iter().partition(|a| a.until <= now);
        self.active = active;
        for fault in ended {
            self.end(cluster, fault);
        }
    }

    /// From now on nothing fails any more; how often each knob turned.
    pub fn calm(mut self, cluster: &mut Cluster) -> BTreeMap<&'static str, u64> {
        for fault in std::mem::take(&mut self.active) {
            self.end(cluster, fault);
        }
        self.set_flows(cluster);
        for name in &self.hosts {
            let host = cluster.host(name);
            host.skew.set_ms(0);
            host.streams.clear();
            for fault in host.kernel.take_faults() {
                self.fired.entry(kernel_knob(name, fault)).and_modify(|n| *n = n.saturating_sub(1));
            }
            for (knob, times) in host.streams.fired() {
                *self.fired.entry(knob).or_default() += times;
            }
        }
        self.fired
    }

    fn begin(&mut self, cluster: &mut Cluster, planned: Planned, now: Duration) {
        crate::record(format_args!("fault {planned}"));
        let mut active = Active { until: now + planned.lasts, planned, copy: BTreeMap::new(), met_at: None };
        match &active.planned.fault {
            Fault::Crash(host) => {
                if !self.crash(cluster, host) {
                    return;
                }
            }
            Fault::OldCopy(host) => active.copy = copy_of(cluster.host(host).data_dir()),
            Fault::Wipe(host) => {
                if !self.crash(cluster, host) {
                    return;
                }
                self.forget_what_nobody_else_has(cluster, host, &[]);
                self.memory.borrow_mut().to_bootstrap.insert(host.clone());
                replace_database(cluster.host(host).data_dir(), &BTreeMap::new());
                active.until = now + DATA_LOSS_DOWN;
            }
            Fault::Clock { host, ahead_ms } => cluster.host(host).skew.set_ms(*ahead_ms),
            Fault::Streams { host, fault, count } => {
                (0..*count).for_each(|_| cluster.host(host).streams.push(*fault));
            }
            Fault::Kernel { host, fault } => cluster.kernel(host).push_fault(*fault),
            Fault::ForeignEdit(host) => cluster.kernel(host).foreign_edit(),
            Fault::ForeignFlush(host) => cluster.kernel(host).foreign_flush(),
            Fault::ForeignPolicyFlush(host) => cluster.kernel(host).foreign_policy_flush(),
            Fault::Slow { one, other, latency } => cluster.set_max_latency(one, other, *latency),
            Fault::Partition { .. }
            | Fault::OneWay { .. }
            | Fault::Isolate(_)
            | Fault::Clog { .. }
            | Fault::CrashInWrite { .. } => {}
        }
        // These are counted when they show.
        if !matches!(active.planned.fault, Fault::CrashInWrite { .. } | Fault::OldCopy(_) | Fault::Streams { .. }) {
            *self.fired.entry(active.planned.fault.name()).or_default() += 1;
        }
        self.active.push(active);
        self.set_flows(cluster);
    }

    fn end(&mut self, cluster: &mut Cluster, mut ended: Active) {
        crate::record(format_args!("end of {:?}", ended.planned.fault));
        match &ended.planned.fault {
            Fault::Crash(host) | Fault::Wipe(host) | Fault::CrashInWrite { host, .. } => self.restart(cluster, host),
            Fault::OldCopy(host) if !ended.copy.is_empty() && self.crash(cluster, host) => {
                let copy = std::mem::take(&mut ended.copy);
                let kept = records_in(&copy);
                self.forget_what_nobody_else_has(cluster, host, &kept);
                self.memory.borrow_mut().recovering.insert(host.clone());
                replace_database(cluster.host(host).data_dir(), &copy);
                *self.fired.entry(ended.planned.fault.name()).or_default() += 1;
                self.restart(cluster, host);
            }
            Fault::Clock { host, .. } => cluster.host(host).skew.set_ms(0),
            Fault::Streams { host, .. } => cluster.host(host).streams.clear(),
            Fault::Slow { one, other, .. } => cluster.set_max_latency(one, other, self.max_latency),
            _ => {}
        }
        self.set_flows(cluster);
    }

    /// Crashes that waited for a write to be on its way.
    fn meet_a_write(&mut self, cluster: &mut Cluster, now: Duration) {
        let called = self.memory.borrow().in_flight.clone();
        let mut due = Vec::new();
        for active in &mut self.active {
            let Fault::CrashInWrite { host, after } = &active.planned.fault else { continue };
            if active.met_at.is_none() && called.as_ref() == Some(host) {
                active.met_at = Some(now);
            }
            if active.met_at.is_some_and(|met_at| now >= met_at + *after) {
                due.push(host.clone());
            }
        }
        for host in due {
            if self.crash(cluster, &host) {
                *self.fired.entry("crash during write").or_default() += 1;
                self.set_flows(cluster);
            }
        }
    }

    fn crash(&mut self, cluster: &mut Cluster, host: &str) -> bool {
        if !self.down.insert(host.to_owned()) {
            return false;
        }
        cluster.crash(host);
        for other in self.hosts.iter().filter(|o| *o != host) {
            self.flows.insert((host.to_owned(), other.clone()), Flow::Cut);
            self.flows.insert((other.clone(), host.to_owned()), Flow::Cut);
        }
        true
    }

    fn restart(&mut self, cluster: &mut Cluster, host: &str) {
        if self.down.remove(host) {
            cluster.restart(host);
            self.flows.retain(|(from, to), _| from != host && to != host);
        }
    }

    fn wanted(&self, from: &str, to: &str) -> Flow {
        if self.down.contains(from) || self.down.contains(to) {
            return Flow::Cut;
        }
        let within = |one: &[String], other: &[String]| one.iter().any(|h| h == from) && other.iter().any(|h| h == to);
        let of = |active: &Active| match &active.planned.fault {
            Fault::Partition { one, other } if within(one, other) || within(other, one) => Flow::Cut,
            Fault::OneWay { from: a, to: b } if a == from && b == to => Flow::Cut,
            Fault::Isolate(host) if host == from || host == to => Flow::Cut,
            Fault::Clog { one, other } if (one == from && other == to) || (one == to && other == from) => Flow::Held,
            _ => Flow::Open,
        };
        let flows: Vec<Flow> = self.active.iter().map(of).collect();
        [Flow::Cut, Flow::Held].into_iter().find(|f| flows.contains(f)).unwrap_or(Flow::Open)
    }

    fn set_flows(&mut self, cluster: &mut Cluster) {
        let hosts = self.hosts.clone();
        for (i, one) in hosts.iter().enumerate() {
            for other in &hosts[i + 1..] {
                let ways = [(one.clone(), other.clone()), (other.clone(), one.clone())];
                let is = ways.clone().map(|way| self.flows.get(&way).copied().unwrap_or(Flow::Open));
                let wanted = ways.clone().map(|(from, to)| self.wanted(&from, &to));
                if is == wanted {
                    continue;
                }
                if is.contains(&Flow::Held) {
                    cluster.release(one, other);
                }
                cluster.heal(&[one], &[other]);
                if wanted.contains(&Flow::Held) {
                    cluster.hold(one, other);
                }
                for ((from, to), flow) in ways.iter().zip(wanted) {
                    if flow == Flow::Cut {
                        cluster.partition_oneway(from, to);
                    }
                    self.flows.insert((from.clone(), to.clone()), flow);
                }
            }
        }
    }

    /// What `host` wrote and no other host has may be lost with its database; `kept` is what it still has.
    fn forget_what_nobody_else_has(&mut self, cluster: &Cluster, host: &str, kept: &[Record]) {
        let others = self.hosts.iter().filter(|h| *h != host && Some(*h) != self.leaver.as_ref());
        let held: Vec<Record> = others.flat_map(|other| records_of(cluster.host(other).data_dir())).collect();
        self.memory.borrow_mut().losses += 1;
        let elsewhere = |r: &Record| held.iter().chain(kept).any(|h| h.key == r.key && h.version >= r.version);
        for record in records_of(cluster.host(host).data_dir()).iter().filter(|r| !elsewhere(r)) {
            self.memory.borrow_mut().lost(&record.key);
        }
    }
}

fn kernel_knob(host: &str, fault: KernelFault) -> &'static str {
    Fault::Kernel { host: host.to_owned(), fault }.name()
}

fn records_of(data_dir: &Path) -> Vec<Record> {
    let path = data_dir.join(DATABASE);
    if !path.exists() {
        return Vec::new();
    }
    let store = Store::open(&path).expect("the database of a host can be read");
    store.read(|v| v.all_records()).expect("the database of a host holds records")
}

fn records_in(copy: &BTreeMap<&'static str, Vec<u8>>) -> Vec<Record> {
    let dir = tempfile::tempdir().expect("a scratch directory");
    replace_database(dir.path(), copy);
    records_of(dir.path())
}

/// The database with its log; the log's index is made anew.
fn copy_of(data_dir: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let read = |name: &'static str| Some((name, fs::read(data_dir.join(name)).ok()?));
    [DATABASE, LOG].into_iter().filter_map(read).collect()
}

fn replace_database(data_dir: &Path, with: &BTreeMap<&'static str, Vec<u8>>) {
    let replace = || -> io::Result<()> {
        for name in [DATABASE, LOG, LOG_INDEX] {
            let path: PathBuf = data_dir.join(name);
            match with.get(name) {
                Some(bytes) => fs::write(path, bytes)?,
                None if path.exists() => fs::remove_file(path)?,
                None => {}
            }
        }
        Ok(())
    };
    replace().expect("the data directory can be written");
}

//! Brings the planned faults over a cluster, each at its time, and ends them.

use super::{
    faults::{Fault, Planned},
    memory::Memory,
};
use crate::{Cluster, clock::drifted_ms};
use arctic::{
    kernel::{FakeKernel, Fault as KernelFault},
    store::Store,
    wire::record::Record,
};
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
    now: Duration,
}

struct Active {
    planned: Planned,
    until: Duration,
    /// A copy of the data directory, by file.
    copy: BTreeMap<&'static str, Vec<u8>>,
    /// How often a name server had been wrong before.
    misled: u64,
    /// Since when the write is on its way that a crash waited for.
    met_at: Option<Duration>,
    /// It has had an effect and is counted, or it had nothing to change and never will.
    is_settled: bool,
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
            now: cluster.elapsed(),
        }
    }

    /// Before each step.
    pub fn blow(&mut self, cluster: &mut Cluster) {
        let now = cluster.elapsed();
        self.now = now;
        while let Some(planned) = self.waiting.pop_if(|p| self.begun + p.at <= now) {
            self.begin(cluster, planned, now);
        }
        self.meet_a_write(cluster, now);
        if self.active.iter().any(|a| matches!(a.planned.fault, Fault::Swizzle(_))) {
            self.set_flows(cluster);
        }
        self.count_what_shows(cluster);
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
            host.skew.end_drift();
            host.names.set(None);
            host.streams.clear();
            for fault in host.kernel.take_faults() {
                self.fired.entry(kernel_knob(name, fault)).and_modify(|n| *n = n.saturating_sub(1));
            }
            for (knob, times) in host.streams.fired() {
                *self.fired.entry(knob).or_default() += times;
            }
        }
        for (knob, times) in &self.memory.borrow().turned {
            *self.fired.entry(*knob).or_default() += times;
        }
        self.fired
    }

    fn begin(&mut self, cluster: &mut Cluster, planned: Planned, now: Duration) {
        crate::record(format_args!("fault {planned}"));
        let until = now + planned.lasts;
        let mut active = Active { until, planned, copy: BTreeMap::new(), misled: 0, met_at: None, is_settled: false };
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
            Fault::Drift { host, ppm } => cluster.host(host).skew.drift(*ppm, now),
            Fault::Names { host, bad } => {
                active.misled = cluster.host(host).names.misled();
                cluster.host(host).names.set(Some(bad.clone()));
            }
            Fault::Errand { host, errand } => {
                self.memory.borrow_mut().errands.push_back((host.clone(), errand.clone()));
            }
            Fault::Streams { host, fault, count } => {
                (0..*count).for_each(|_| cluster.host(host).streams.push(*fault));
            }
            Fault::Kernel { host, fault } => cluster.kernel(host).push_fault(*fault),
            Fault::ForeignEdit(host) => active.is_settled = !changes(cluster.kernel(host), FakeKernel::foreign_edit),
            Fault::ForeignFlush(host) => active.is_settled = !changes(cluster.kernel(host), FakeKernel::foreign_flush),
            Fault::ForeignPolicyFlush(host) => {
                // Policy is never without tables.
                active.is_settled = cluster.kernel(host).tables().is_none();
                cluster.kernel(host).foreign_policy_flush();
            }
            Fault::Slow { one, other, latency } => cluster.set_max_latency(one, other, *latency),
            Fault::Partition { .. }
            | Fault::OneWay { .. }
            | Fault::Bridge { .. }
            | Fault::Swizzle(_)
            | Fault::Isolate(_)
            | Fault::Clog { .. }
            | Fault::CrashInWrite { .. } => {}
        }
        self.active.push(active);
        self.set_flows(cluster);
    }

    /// A fault counts once it troubles hosts that run.
    fn count_what_shows(&mut self, cluster: &Cluster) {
        for at in 0..self.active.len() {
            let active = &self.active[at];
            if !active.is_settled && self.shows(cluster, active) {
                *self.fired.entry(active.planned.fault.name()).or_default() += 1;
                self.active[at].is_settled = true;
            }
        }
    }

    fn shows(&self, cluster: &Cluster, active: &Active) -> bool {
        let is_up = |host: &String| !self.down.contains(host);
        match &active.planned.fault {
            Fault::Bridge { over, one, other } => is_up(over) && one.iter().any(is_up) && other.iter().any(is_up),
            Fault::Swizzle(order) => {
                let mut held = order.iter().filter(|host| is_up(host) && self.is_swizzled(active, order, host));
                held.any(|host| self.hosts.iter().any(|other| other != host && self.wanted(host, other) == Flow::Held))
            }
            Fault::Drift { host, ppm } => {
                let lasted = self.now.saturating_sub(active.until.saturating_sub(active.planned.lasts));
                is_up(host) && drifted_ms(*ppm, lasted) != 0
            }
            Fault::Names { host, .. } => cluster.host(host).names.misled() > active.misled,
            Fault::Partition { one, other } => one.iter().any(is_up) && other.iter().any(is_up),
            Fault::OneWay { from: one, to: other } | Fault::Clog { one, other } => is_up(one) && is_up(other),
            Fault::Slow { one, other, .. } => is_up(one) && is_up(other) && self.wanted(one, other) == Flow::Open,
            Fault::Isolate(host) => is_up(host) && self.hosts.iter().any(|other| other != host && is_up(other)),
            Fault::Clock { host, .. } => is_up(host),
            // A crash that met a host that was down already has not become active; what a kernel was told to do and never
            // did is taken back in the end.
            Fault::Crash(_) | Fault::Wipe(_) | Fault::Kernel { .. } => true,
            Fault::ForeignEdit(_) | Fault::ForeignFlush(_) | Fault::ForeignPolicyFlush(_) => true,
            // These count where they show.
            Fault::CrashInWrite { .. } | Fault::OldCopy(_) | Fault::Streams { .. } | Fault::Errand { .. } => false,
        }
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
            Fault::Drift { host, .. } => cluster.host(host).skew.end_drift(),
            Fault::Names { host, .. } => cluster.host(host).names.set(None),
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
            Fault::Bridge { one, other, .. } if within(one, other) || within(other, one) => Flow::Cut,
            Fault::OneWay { from: a, to: b } if a == from && b == to => Flow::Cut,
            Fault::Swizzle(order) if [from, to].into_iter().any(|host| self.is_swizzled(active, order, host)) => {
                Flow::Held
            }
            Fault::Isolate(host) if host == from || host == to => Flow::Cut,
            Fault::Clog { one, other } if (one == from && other == to) || (one == to && other == from) => Flow::Held,
            _ => Flow::Open,
        };
        let flows: Vec<Flow> = self.active.iter().map(of).collect();
        [Flow::Cut, Flow::Held].into_iter().find(|f| flows.contains(f)).unwrap_or(Flow::Open)
    }

    /// One after the other in the first half of the time; free again in the second half, the first one last but for the
    /// last one.
    fn is_swizzled(&self, active: &Active, order: &[String], host: &str) -> bool {
        let Some(at) = order.iter().position(|h| h == host) else { return false };
        let (count, step) = (order.len() as u32, active.planned.lasts / (2 * order.len() as u32));
        let begun = active.until.saturating_sub(active.planned.lasts);
        let freed = count + (at as u32 + count - 1) % count;
        (begun + step * at as u32..begun + step * freed).contains(&self.now)
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

/// Whether someone's hand on a kernel found anything to change.
fn changes(kernel: &FakeKernel, hand: impl FnOnce(&FakeKernel)) -> bool {
    let state = || (kernel.tables(), kernel.alive());
    let before = state();
    hand(kernel);
    state() != before
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

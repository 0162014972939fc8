//! A cluster of production nodes on simulated hosts.

use crate::{Names, Operator, SimClock, SimNet, Skew, StreamFaults};
use arctic::{
    env::{BoxFuture, EngineSetup, Engines, Env, InterceptPorts, RunningEngines},
    kernel::{Arrival, FakeKernel, HostView, Packet, Verdict},
    license::{Features, LicenseDocument, Terms, TrustRoots},
    model::{CustomerId, LicenseId, Rng, SigningKey, UnixTime},
    node::{Config, Node},
    routing::Forwarding,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    /// Hosts are named n1, n2, …
    pub nodes: usize,
    pub max_latency: Duration,
    pub duration: Duration,
    /// How long an operator waits for an answer.
    pub patience: Duration,
}

impl Options {
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            max_latency: Duration::from_millis(50),
            duration: Duration::from_secs(3600),
            patience: Duration::from_secs(90),
        }
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What of a host outlives its crashes.
pub struct SimHost {
    pub kernel: Arc<FakeKernel>,
    pub skew: Skew,
    pub streams: Arc<StreamFaults>,
    pub names: Arc<Names>,
    dir: TempDir,
}

impl SimHost {
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Nodes n1…
pub struct Cluster {
    sim: turmoil::Sim<'static>,
    hosts: BTreeMap<String, SimHost>,
    /// Where each leads to.
    gateways: BTreeMap<String, Rc<RefCell<String>>>,
    vendor: SigningKey,
    seed: u64,
    operator: Operator,
    acts: usize,
}

impl Cluster {
    pub fn new(options: &Options) -> Self {
        crate::assert_panics_are_reported();
        let mut sim = turmoil::Builder::new()
            .rng_seed(options.seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_millis(crate::EPOCH.as_ms()))
            .tick_duration(Duration::from_millis(5))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(options.max_latency)
            .simulation_duration(options.duration)
            .tcp_capacity(4096)
            .build();
        let vendor = SigningKey::from_seed(derive(options.seed, "vendor", 0));
        let mut hosts = BTreeMap::new();
        for n in 1..=options.nodes {
            let name = format!("n{n}");
            let host = SimHost {
                kernel: Arc::new(FakeKernel::new()),
                skew: Skew::default(),
                streams: Arc::default(),
                names: Arc::default(),
                dir: scratch_directory(),
            };
            let software = HostSoftware {
                name: name.clone(),
                seed: options.seed,
                kernel: host.kernel.clone(),
                skew: host.skew.clone(),
                streams: host.streams.clone(),
                names: host.names.clone(),
                data_dir: host.data_dir().to_owned(),
                roots: TrustRoots::from_keys([vendor.public()]),
                starts: Rc::new(Cell::new(0)),
            };
            hosts.insert(name.clone(), host);
            sim.host(name.as_str(), move || software.clone().run());
        }
        let operator = Operator::with_patience(options.patience);
        Self { sim, hosts, gateways: BTreeMap::new(), vendor, seed: options.seed, operator, acts: 0 }
    }

    /// A license of this run's vendor; equal `customer` gives one customer id, and another limit another issue.
    pub fn license(&self, customer: u8, max_nodes: u32) -> Value {
        self.license_until(customer, max_nodes, crate::EPOCH.plus(YEAR))
    }

    /// The same with another end, up to which it lasted for a year.
    pub fn license_until(&self, customer: u8, max_nodes: u32, expires_at: UnixTime) -> Value {
        let mut rng = Rng::from_seed(derive(self.seed, "customer", u64::from(customer)));
        let mut issue = Rng::from_seed(derive(self.seed, "license", u64::from(customer) << 32 | u64::from(max_nodes)));
        let issued_at = expires_at.minus(YEAR);
        let terms = Terms {
            customer_id: CustomerId::mint(crate::EPOCH, &mut rng),
            license_id: LicenseId::mint(crate::EPOCH, &mut issue),
            customer_name: None,
            issued_at,
            expires_at,
            max_nodes,
            max_services: 100,
            features: Features::every(),
        };
        LicenseDocument::issue(&self.vendor, terms).expect("well-formed terms").as_value().clone()
    }

    /// A host `name` that passes every connection to port 8080 on to `to`: another endpoint of the same agent, which a
    /// partition takes away.
    pub fn gateway(&mut self, name: &str, to: &str) {
        let to = self.gateways.entry(name.to_owned()).or_insert_with(|| Rc::new(RefCell::new(to.to_owned()))).clone();
        self.sim.host(name, move || {
            let to = to.clone();
            async move {
                let listener = turmoil::net::TcpListener::bind(("0.0.0.0", 8080)).await?;
                loop {
                    let (mut caller, _) = listener.accept().await?;
                    let to = to.borrow().clone();
                    tokio::spawn(async move {
                        let mut agent = turmoil::net::TcpStream::connect((to.as_str(), 8080)).await?;
                        tokio::io::copy_bidirectional(&mut caller, &mut agent).await
                    });
                }
            }
        });
    }

    /// From now on the gateway leads to another host.
    pub fn redirect(&mut self, gateway: &str, to: &str) {
        crate::record(format_args!("redirect {gateway} to {to}"));
        to.clone_into(&mut self.gateways[gateway].borrow_mut());
    }

    pub fn host(&self, name: &str) -> &SimHost {
        &self.hosts[name]
    }

    pub fn names(&self) -> Vec<String> {
        self.hosts.keys().cloned().collect()
    }

    pub fn kernel(&self, host: &str) -> &FakeKernel {
        &self.host(host).kernel
    }

    /// What the rules of `host` do with a new TCP connection that enters it for `dest`.
    pub fn verdict(&self, host: &str, dest: &str) -> Verdict {
        verdict(self.kernel(host), dest)
    }

    pub fn captures(&self, host: &str, dest: &str) -> bool {
        captures(self.kernel(host), dest)
    }

    /// Simulated time since the start.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Lets an operator act until it is done; nodes run on meanwhile. A panic of anyone fails the run.
    pub fn act<F, Fut>(&mut self, script: F)
    where
        F: FnOnce(Operator) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        self.act_while(script, |_| {});
    }

    /// The same, and `before_step` sees the cluster before each step of 5 ms.
    pub fn act_while<F, Fut>(&mut self, script: F, mut before_step: impl FnMut(&mut Self))
    where
        F: FnOnce(Operator) -> Fut,
        Fut: Future<Output = ()> + 'static,
    {
        self.acts += 1;
        let script = script(self.operator.clone());
        self.sim.client(format!("operator-{}", self.acts), async move {
            script.await;
            Ok(())
        });
        loop {
            before_step(self);
            if self.sim.step().expect("every node runs until it is stopped") {
                return;
            }
        }
    }

    /// Like a power cut: the host stops at once, and nobody is told.
    ///
    /// The runtime drops its tasks in an order that depends on how many were spawned before in this process, so what
    /// they still send must neither travel nor leave its order in the trace.
    pub fn crash(&mut self, host: &str) {
        crate::record(format_args!("crash {host}"));
        self.for_others(host, |sim, other| sim.partition(host, other));
        crate::trace::unordered(|| self.sim.crash(host));
        self.kernel(host).expire_liveness();
    }

    pub fn restart(&mut self, host: &str) {
        crate::record(format_args!("restart {host}"));
        self.for_others(host, |sim, other| sim.repair(host, other));
        crate::trace::unordered(|| self.sim.bounce(host));
    }

    fn for_others(&self, host: &str, f: impl Fn(&turmoil::Sim<'static>, &str)) {
        let operators = (1..=self.acts).map(|n| format!("operator-{n}"));
        let others = self.hosts.keys().cloned().chain(operators).filter(|other| other != host);
        others.for_each(|other| f(&self.sim, &other));
    }

    pub fn partition(&mut self, one: &[&str], other: &[&str]) {
        crate::record(format_args!("partition {one:?} | {other:?}"));
        self.for_pairs(one, other, |sim, a, b| sim.partition(a, b));
    }

    pub fn heal(&mut self, one: &[&str], other: &[&str]) {
        crate::record(format_args!("heal {one:?} | {other:?}"));
        self.for_pairs(one, other, |sim, a, b| sim.repair(a, b));
    }

    /// Nothing of what `from` sends arrives at `to`.
    pub fn partition_oneway(&mut self, from: &str, to: &str) {
        crate::record(format_args!("partition {from} -> {to}"));
        self.sim.partition_oneway(from, to);
    }

    /// Keeps back what the two send each other, until `release` lets all of it go at once.
    pub fn hold(&mut self, one: &str, other: &str) {
        crate::record(format_args!("hold {one} | {other}"));
        self.sim.hold(one, other);
    }

    pub fn release(&mut self, one: &str, other: &str) {
        crate::record(format_args!("release {one} | {other}"));
        self.sim.release(one, other);
    }

    /// How long a message takes at most between the two.
    pub fn set_max_latency(&mut self, one: &str, other: &str, latency: Duration) {
        crate::record(format_args!("latency {one} | {other} {latency:?}"));
        self.sim.set_link_max_message_latency(one, other, latency);
    }

    fn for_pairs(&mut self, one: &[&str], other: &[&str], f: impl Fn(&turmoil::Sim<'static>, &str, &str)) {
        for a in one {
            for b in other {
                f(&self.sim, a, b);
            }
        }
    }
}

#[derive(Clone)]
struct HostSoftware {
    name: String,
    seed: u64,
    kernel: Arc<FakeKernel>,
    skew: Skew,
    streams: Arc<StreamFaults>,
    names: Arc<Names>,
    data_dir: PathBuf,
    roots: TrustRoots,
    starts: Rc<Cell<u64>>,
}

impl HostSoftware {
    async fn run(self) -> turmoil::Result {
        let start = self.starts.get();
        self.starts.set(start + 1);
        let env = Env::new(
            Arc::new(SimNet { faults: self.streams, names: self.names }),
            self.kernel,
            Arc::new(SimClock { skew: self.skew }),
            Arc::new(SimEngines),
            derive(self.seed, &self.name, start),
        );
        let config = Config { data_dir: self.data_dir, default_name: self.name, ..Config::default() };
        let node = Node::start(env, config, self.roots).await?;
        node.run(None, CancellationToken::new()).await?;
        Ok(())
    }
}

/// What the rules in `kernel` do with a new TCP connection that enters its host for `dest`.
pub fn verdict(kernel: &FakeKernel, dest: &str) -> Verdict {
    let packet = Packet {
        arrival: Arrival::Entered { interface: "eth0".into() },
        source: "192.0.2.1".parse().expect("an address"),
        dest: dest.parse().expect("an address"),
        protocol: 6,
        dest_port: 443,
        mark: 0,
        reply: false,
        opening: true,
        connection_mark: 0,
        transparent_socket: false,
    };
    let view = HostView { listener_v4: true, listener_v6: true, alive: kernel.alive(), ..HostView::default() };
    kernel.classify(&packet, &view)
}

pub fn captures(kernel: &FakeKernel, dest: &str) -> bool {
    matches!(verdict(kernel, dest), Verdict::Captured { .. })
}

/// In memory where the system offers it: what a disk loses is not the subject here, and syncs to one take long.
fn scratch_directory() -> TempDir {
    const MEMORY: &str = "/dev/shm";
    let made = if Path::new(MEMORY).is_dir() { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() };
    made.expect("a scratch directory")
}

pub(crate) fn derive(seed: u64, label: &str, n: u64) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_be_bytes()).chain_update(n.to_be_bytes()).chain_update(label).finalize().into()
}

/// Packets are not simulated: the engines of a simulated host accept every configuration and carry nothing.
struct SimEngines;

impl Engines for SimEngines {
    fn start(
        &self,
        _setup: EngineSetup,
        forwarding: watch::Receiver<Arc<Forwarding>>,
    ) -> BoxFuture<'_, io::Result<Box<dyn RunningEngines>>> {
        Box::pin(async move { Ok(Box::new(Idle { _forwarding: forwarding }) as Box<dyn RunningEngines>) })
    }
}

struct Idle {
    _forwarding: watch::Receiver<Arc<Forwarding>>,
}

impl RunningEngines for Idle {
    fn intercept_ports(&self) -> InterceptPorts {
        InterceptPorts { v4: 40001, v6: Some(40001) }
    }

    fn shutdown(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

//! Random runs of production nodes: faults drawn per seed, an operator who writes meanwhile and remembers what was
//! acknowledged, then calm, in which every invariant must hold within its bound.

mod calm;
mod errands;
mod faults;
mod memory;
mod storm;
mod sweep;
mod workload;

pub use calm::CONVERGENCE_BOUND;
pub use errands::Errand;
pub use faults::{Fault, KNOBS, Planned};
pub use sweep::{Summary, idle, shrink, sweep};

use crate::{Cluster, Options, Trace, cluster::derive, tickless::panic_text, trace};
use arctic::{
    model::Rng,
    planted::{Bug, planted},
};
use calm::Inspection;
use errands::Licenses;
use memory::Memory;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};
use storm::Storm;
use workload::{Workload, endpoint_of};

/// The only story of harness B that takes seeds, as `sim/seeds/turmoil.txt` calls it.
const STORY: &str = "chaos";
/// Lines of history in a report; the file has all.
const HISTORY_LINES: usize = 24;

/// How long faults last in a run, and an operator waits for an answer.
const CHAOS: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(12);
const JOINING_BOUND: Duration = Duration::from_secs(60);

/// What became of one run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub seed: u64,
    pub nodes: usize,
    pub chaos: Duration,
    /// The list that was drawn,
    pub faults: Vec<String>,
    /// and which of it the run used, by position.
    pub kept: Vec<usize>,
    /// Bugs that were in on purpose.
    pub planted: Vec<&'static str>,
    /// How often each knob turned.
    pub fired: BTreeMap<&'static str, u64>,
    pub acknowledged: u64,
    pub simulated: Duration,
    /// From the end of the faults until every invariant held.
    pub converged_after: Duration,
    /// Invariants that did not hold, or the panic that ended the run.
    pub violated: Vec<String>,
    /// What the hosts said at the end of a run that failed.
    pub node_lines: Vec<String>,
    /// The end of a run that was told anew: faults, operators, and where its whole trace is.
    pub history: Vec<String>,
    pub file: Option<String>,
}

/// The size of a run.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub chaos: Duration,
    /// `None`: drawn from the seed, 3 to 6.
    pub nodes: Option<usize>,
}

impl Default for Shape {
    fn default() -> Self {
        Self { chaos: CHAOS, nodes: None }
    }
}

/// One run; a violated invariant or a panic is in its outcome.
pub fn run(seed: u64) -> Outcome {
    run_part(seed, Shape::default(), |_| true)
}

/// The same; `joined` is called when all have become one cluster, before the first fault.
pub fn run_from_joined(seed: u64, joined: impl Fn()) -> Outcome {
    run_with(seed, Shape::default(), |_| true, joined)
}

/// The same with those faults of the list that `keep` chooses by position.
pub fn run_part(seed: u64, shape: Shape, keep: impl Fn(usize) -> bool) -> Outcome {
    run_with(seed, shape, keep, || {})
}

fn run_with(seed: u64, shape: Shape, keep: impl Fn(usize) -> bool, joined: impl Fn()) -> Outcome {
    let mut outcome = Outcome { seed, chaos: shape.chaos, ..Outcome::default() };
    let ended = catch_unwind(AssertUnwindSafe(|| play(&mut outcome, shape, keep, joined)));
    if let Err(panic) = ended {
        outcome.violated.push(format!("panic: {}", panic_text(panic.as_ref())));
    }
    outcome.planted = Bug::ALL.into_iter().filter(|bug| planted(*bug)).map(Bug::name).collect();
    outcome
}

/// Seeds that once failed. An error says what is wrong with their file.
pub fn known_seeds() -> Result<Vec<u64>, String> {
    let known = crate::known_seeds("turmoil")?;
    match known.iter().find(|k| k.story != STORY) {
        Some(other) => Err(format!("sim/seeds/turmoil.txt: no story is called {:?}", other.story)),
        None => Ok(known.into_iter().map(|k| k.seed).collect()),
    }
}

/// One run; the variable `SIM_FAULTS=0,3` keeps only those faults of the list.
pub fn run_chosen(seed: u64, shape: Shape) -> Outcome {
    let chosen = std::env::var("SIM_FAULTS").ok();
    let chosen: Option<Vec<usize>> = chosen.map(|list| list.split(',').filter_map(|n| n.parse().ok()).collect());
    run_part(seed, shape, |n| chosen.as_ref().is_none_or(|kept| kept.contains(&n)))
}

/// The same with its trace, line by line.
pub fn run_traced(seed: u64, shape: Shape) -> (Outcome, Trace) {
    let mut outcome = Outcome::default();
    let trace = trace::recorded("chaos", seed, || outcome = run_chosen(seed, shape));
    (outcome, trace)
}

/// The failed run once more with these faults alone and its trace kept in a file, for a report.
pub fn retold(failed: &Outcome, shape: Shape, needed: &[usize]) -> Outcome {
    let mut outcome = Outcome::default();
    let trace = trace::recorded(STORY, failed.seed, || {
        outcome = run_part(failed.seed, shape, |n| needed.contains(&n));
    });
    let told = trace.lines().iter().filter(|line| line.split_whitespace().nth(1) == Some("scenario"));
    let told: Vec<String> = told.filter(|line| !line.contains("scenario outcome")).cloned().collect();
    outcome.history = told[told.len().saturating_sub(HISTORY_LINES)..].to_vec();
    outcome.file = Some(trace.save(STORY, failed.seed, "trace.log").display().to_string());
    outcome
}

/// One run for a test: panics with the report when an invariant is violated.
pub fn check(seed: u64, shape: Shape) {
    let outcome = run_chosen(seed, shape);
    assert!(outcome.violated.is_empty(), "{outcome}");
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.violated.is_empty() {
            let (simulated, after) = (self.simulated.as_secs(), self.converged_after.as_secs_f64());
            let (seed, nodes, acknowledged) = (self.seed, self.nodes, self.acknowledged);
            return write!(
                f,
                "seed {seed}: {nodes} nodes, {simulated} s, {acknowledged} writes, well {after:.1} s after"
            );
        }
        writeln!(f, "SIM FAILED  {STORY}\nseed        {}   commit {}", self.seed, crate::commit())?;
        writeln!(f, "nodes       {}", self.nodes)?;
        for n in &self.kept {
            writeln!(f, "fault {n:<5} {}", self.faults[*n])?;
        }
        for violated in &self.violated {
            writeln!(f, "violated    {violated}")?;
        }
        writeln!(f, "at          {:.3} s of simulated time", self.simulated.as_secs_f64())?;
        for line in &self.history {
            writeln!(f, "history     {line}")?;
        }
        for line in &self.node_lines {
            writeln!(f, "nodes       {line}")?;
        }
        if let Some(file) = &self.file {
            writeln!(f, "files       {file}")?;
        }
        write!(f, "reproduce   {}", self.reproduce())
    }
}

impl Outcome {
    /// The command that runs it again.
    fn reproduce(&self) -> String {
        let kept: Vec<String> = self.kept.iter().map(usize::to_string).collect();
        let is_whole = kept.len() == self.faults.len();
        let chosen = if is_whole { String::new() } else { format!("SIM_FAULTS={} ", kept.join(",")) };
        let planted: String = self.planted.iter().map(|bug| format!(" --plant {bug}")).collect();
        format!("{chosen}scripts/sweep --tier b --seed {}{planted} --trace", self.seed)
    }
}

fn play(outcome: &mut Outcome, shape: Shape, keep: impl Fn(usize) -> bool, joined: impl Fn()) {
    let mut rng = Rng::from_seed(derive(outcome.seed, "chaos", 0));
    let drawn = 3 + rng.below(4) as usize;
    outcome.nodes = shape.nodes.unwrap_or(drawn);
    let options = Options { patience: PATIENCE, ..Options::new(outcome.seed, outcome.nodes) };
    let mut cluster = Cluster::new(&options);
    let license = cluster.license(1, 50);
    let licenses = Licenses::of(&cluster, outcome.seed);
    let peer_ids = join_all(&mut cluster, &license);
    joined();

    let hosts = cluster.names();
    let leaver = hosts.last().filter(|_| hosts.len() > 3 && rng.below(2) == 0).cloned();
    let loser = hosts[rng.below(hosts.len() as u64 - 1) as usize].clone();
    let ground = faults::Ground { hosts: &hosts, loser: &loser, lasts: shape.chaos };
    let list = faults::draw(outcome.seed, &ground, &mut rng);
    outcome.faults = list.iter().map(ToString::to_string).collect();
    outcome.kept = (0..list.len()).filter(|n| keep(*n)).collect();
    let list: Vec<Planned> = outcome.kept.iter().map(|n| list[*n].clone()).collect();

    let memory = Rc::new(RefCell::new(Memory::default()));
    let mut storm = Storm::new(&cluster, &list, memory.clone(), leaver.clone(), options.max_latency);
    let workload = |op| Workload {
        op,
        rng: rng.fork(),
        hosts: hosts.clone(),
        peer_ids: peer_ids.clone(),
        license: license.clone(),
        licenses: licenses.clone(),
        memory: memory.clone(),
        leaver,
        loser: loser.clone(),
        ends_at: shape.chaos,
    };
    cluster.act_while(|op| workload(op).run(), |cluster| storm.blow(cluster));
    outcome.fired = storm.calm(&mut cluster);
    outcome.acknowledged = memory.borrow().acknowledged;

    let kernels = hosts.iter().map(|h| (h.clone(), cluster.host(h).kernel.clone())).collect();
    let verdict = Rc::new(RefCell::new(Ok(Duration::ZERO)));
    let told = verdict.clone();
    cluster.act(|op| async move {
        let inspection = Inspection { op, kernels, peer_ids, memory, license, loser };
        let result = inspection.run().await;
        *told.borrow_mut() = result;
    });
    outcome.simulated = cluster.elapsed();
    let verdict = std::mem::replace(&mut *verdict.borrow_mut(), Ok(Duration::ZERO));
    match verdict {
        Ok(after) => outcome.converged_after = after,
        Err(failing) => (outcome.violated, outcome.node_lines) = (failing.violated, failing.node_lines),
    }
    let (violated, after) = (&outcome.violated, outcome.converged_after);
    trace::record(format_args!("outcome {violated:?} {after:?} {} writes", outcome.acknowledged));
}

/// Bootstraps everyone and makes them one cluster; peer ids by host.
fn join_all(cluster: &mut Cluster, license: &serde_json::Value) -> BTreeMap<String, String> {
    let hosts = cluster.names();
    let ids = Rc::new(RefCell::new(BTreeMap::new()));
    let (license, told) = (license.clone(), ids.clone());
    cluster.act(|op| async move {
        for host in &hosts {
            let made = op.bootstrap(host, &license).await;
            told.borrow_mut().insert(host.clone(), made["peer_id"].as_str().unwrap_or_default().to_owned());
        }
        for host in &hosts[1..] {
            op.post(&hosts[0], "/v1/peers", endpoint_of(host)).await.expect(201);
        }
        let count = hosts.len();
        for host in &hosts {
            let all_healthy = move |answer: &crate::Answer| {
                let peers = answer.body["peers"].as_array().cloned().unwrap_or_default();
                peers.len() == count && peers.iter().all(|p| p["status"] == "healthy")
            };
            op.eventually(host, "/v1/peers", JOINING_BOUND, all_healthy).await;
        }
    });
    ids.take()
}

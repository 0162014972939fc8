//! The sweep of both harnesses: `scripts/sweep --help`. Many seeds on all cores, replay of one, canaries, figures.

use arctic::planted::Bug;
use clap::{Parser, ValueEnum};
use sim::chaos::{self, Shape};
use sim::tickless::{
    Plan,
    faults::Kind,
    marks, plan,
    report::{REPORTED, Report},
    run_plan,
    scenarios::{SCENARIOS, Scenario},
    shrink::shrink,
    trace::Detail,
    world::World,
};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A mark or a fault kind that so many seeds never reach is dead.
const COVERAGE_FROM_SEEDS: u64 = 1000;
/// One seed in so many runs twice, and its two traces are compared.
const TWIN_ONE_IN: u64 = 20;
/// Within so many seeds a planted bug must show.
const CANARY_SEEDS: u64 = 500;
const CHAOS: &str = "chaos";
/// Seeds of a sweep, and of each scenario, unless another number is asked for.
const SEEDS: u64 = 1000;
const SCENARIO_SEEDS: u64 = 100;

/// What is simulated.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// The machines alone, without a runtime: many seeds.
    A,
    /// Whole production nodes with HTTP and SQLite: few seeds.
    B,
}

/// Simulates clusters under faults and checks what must hold.
#[derive(Parser)]
struct Args {
    /// Machines alone, or whole nodes.
    #[arg(long, value_enum, ignore_case = true, default_value = "a")]
    tier: Tier,
    /// Seeds of chaos to run, 1000 without it; of each scenario, 100 without it.
    #[arg(long)]
    seeds: Option<u64>,
    /// Stop after so many minutes, whatever has been run.
    #[arg(long)]
    minutes: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Replay one seed and print its end.
    #[arg(long)]
    seed: Option<u64>,
    /// A scenario of simulation.md §8 instead of chaos.
    #[arg(long)]
    scenario: Option<String>,
    /// Every scenario of simulation.md §8 that is of tier A, each at many seeds.
    #[arg(long)]
    scenarios: bool,
    /// Threads; all cores without it.
    #[arg(long)]
    threads: Option<usize>,
    /// Plant each of the named bugs, or of all, and see that it is found.
    #[arg(long, num_args = 0.., value_name = "BUG")]
    canaries: Option<Vec<String>>,
    /// Plant one bug, by its name.
    #[arg(long)]
    plant: Option<String>,
    /// Figures N1-N8, of large clusters.
    #[arg(long)]
    scale: bool,
    /// With --scale: what a limit of the wall would cut off (the 24 h of N5, the half hour of N7) runs to its end.
    #[arg(long, requires = "scale")]
    whole: bool,
    /// Figures S1-S12.
    #[arg(long)]
    bench: bool,
    /// Print the hash of the trace of each seed, for a comparison with another process.
    #[arg(long)]
    hashes: bool,
    /// Seconds that shrinking a failure may take.
    #[arg(long, default_value_t = 120)]
    shrink_seconds: u64,
    /// Print the whole trace of a replay; of machines alone only if it does not fail.
    #[arg(long)]
    trace: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
}

#[allow(clippy::disallowed_methods, reason = "the sweep measures how fast the simulator is; no run sees this clock")]
fn wall() -> Instant {
    Instant::now()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(name) = &args.plant {
        let Some(bug) = bug_of(name) else { return ExitCode::FAILURE };
        arctic::planted::plant(&[bug]);
    }
    let done = if let Some(names) = &args.canaries {
        canaries(&args, names)
    } else if args.tier == Tier::B {
        whole_nodes(&args)
    } else if args.bench {
        sim::tickless::scale::print_bench();
        true
    } else if args.scale {
        sim::tickless::scale::print_scale(args.whole);
        true
    } else if let Some(seed) = args.seed {
        replay(&args, seed)
    } else if args.scenarios {
        all_scenarios(&args)
    } else if args.hashes {
        hashes(&args)
    } else {
        sweep(&args)
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn bug_of(name: &str) -> Option<Bug> {
    let bug = Bug::ALL.into_iter().find(|bug| bug.name() == name);
    if bug.is_none() {
        eprintln!("no bug {name:?}; there are {}", Bug::ALL.map(Bug::name).join(", "));
    }
    bug
}

/// The seeds that were asked for.
fn chosen(args: &Args, otherwise: u64) -> std::ops::Range<u64> {
    args.from..args.from + args.seeds.unwrap_or(otherwise)
}

fn threads(args: &Args) -> usize {
    args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
}

/// Chaos over production nodes. Every knob has to turn in a sweep of many seeds.
fn whole_nodes(args: &Args) -> bool {
    if args.scenario.is_some() {
        eprintln!("scenarios are of tier A; those of tier B are tests: cargo test --release -p sim");
        return false;
    }
    let planted = args.plant.as_deref().and_then(bug_of);
    if let Some(seed) = args.seed {
        return whole_nodes_replayed(seed, args.trace);
    }
    let started = wall();
    let is_over = || args.minutes.is_some_and(|minutes| started.elapsed() >= Duration::from_secs(60 * minutes));
    let failed = AtomicBool::new(false);
    let known = match chaos::known_seeds() {
        Ok(known) => known,
        Err(e) => return refuse(&e),
    };
    let seeds: Vec<u64> = known.into_iter().chain(chosen(args, SEEDS)).collect();
    let may_go_on = |_: &u64| !is_over() && (args.keep_going || !failed.load(Ordering::Relaxed));
    let seeds = seeds.into_iter().take_while(may_go_on);
    let mut summary = chaos::sweep(
        seeds,
        threads(args),
        |seed| {
            arctic::planted::plant(planted.as_slice());
            chaos::run_chosen(seed, Shape::default())
        },
        |outcome| {
            failed.fetch_or(!outcome.violated.is_empty(), Ordering::Relaxed);
            if !outcome.violated.is_empty() {
                println!("{outcome}\n");
            }
        },
    );
    summary.took = started.elapsed();
    if let Some(first) = summary.failed.first() {
        print_needed(first);
    }
    summary.never_fired().iter().for_each(|knob| println!("never       fault {knob}"));
    println!("{summary}");
    summary.is_green()
}

/// One run of whole nodes; `SIM_FAULTS` keeps some of its faults.
fn whole_nodes_replayed(seed: u64, is_traced: bool) -> bool {
    let outcome = if is_traced {
        let (outcome, trace) = chaos::run_traced(seed, Shape::default());
        trace.lines().iter().for_each(|line| println!("{line}"));
        outcome
    } else {
        chaos::run_chosen(seed, Shape::default())
    };
    println!("{outcome}");
    let is_green = outcome.violated.is_empty();
    if !is_green && !is_traced {
        print_needed(&outcome);
    }
    is_green
}

/// The failed run again, cut down to the faults that it takes.
fn print_needed(failed: &chaos::Outcome) {
    let needed = chaos::shrink(failed, Shape::default());
    println!("shrunk      {} faults -> {}", failed.kept.len(), needed.len());
    println!("{}\n", chaos::retold(failed, Shape::default(), &needed));
}

fn refuse(why: &str) -> bool {
    eprintln!("{why}");
    false
}

/// What a run of a seed is made of.
#[derive(Clone, Copy)]
enum Story {
    Chaos,
    Told(&'static Scenario),
}

impl Story {
    fn of(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some(CHAOS) => Some(Story::Chaos),
            Some(name) => SCENARIOS.iter().find(|s| s.name == name).map(Story::Told),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Story::Chaos => CHAOS,
            Story::Told(scenario) => scenario.name,
        }
    }

    fn run(self, seed: u64, detail: Detail) -> Ran {
        match self {
            Story::Chaos => {
                let run = run_plan(&plan(seed), detail);
                Ran { world: run.world, marks: run.marks }
            }
            Story::Told(scenario) => {
                drop(marks::take());
                let world = scenario.play(seed, seed.is_multiple_of(10), detail);
                Ran { world, marks: marks::take() }
            }
        }
    }
}

struct Ran {
    world: World,
    marks: BTreeMap<&'static str, u64>,
}

/// What all seeds came to.
#[derive(Default)]
struct Totals {
    seeds: u64,
    /// Of the clusters,
    simulated: Duration,
    /// and of all their nodes.
    node_hours: f64,
    marks: BTreeMap<&'static str, u64>,
    fired: BTreeMap<Kind, u64>,
    rested: Vec<Duration>,
    twins: u64,
}

impl Totals {
    fn take(&mut self, ran: &Ran) {
        self.seeds += 1;
        let span = ran.world.now.since_start();
        self.simulated += span;
        self.node_hours += span.as_secs_f64() * ran.world.options.nodes as f64 / 3600.0;
        for (mark, hits) in &ran.marks {
            *self.marks.entry(mark).or_default() += u64::from(*hits > 0);
        }
        for (kind, count) in ran.world.fired() {
            *self.fired.entry(*kind).or_default() += count;
        }
        self.rested.extend(ran.world.rested_after);
    }
}

fn command(args: &Args, story: Story, seed: u64) -> String {
    let scenario = if let Story::Told(s) = story { format!(" --scenario {}", s.name) } else { String::new() };
    let plant = args.plant.as_ref().map(|name| format!(" --plant {name}")).unwrap_or_default();
    format!("scripts/sweep --seed {seed}{scenario}{plant}")
}

/// Runs a failing seed again with its whole trace, cuts it down and prints it.
fn tell_failure(args: &Args, story: Story, seed: u64) {
    let reproduce = command(args, story, seed);
    let commit = sim::commit();
    if let Story::Told(_) = story {
        let ran = story.run(seed, REPORTED);
        let report =
            Report { scenario: story.name(), seed, world: &ran.world, plans: None, commit: &commit, reproduce };
        return println!("{}", report.write());
    }
    let whole: Plan = plan(seed);
    let Some(failure) = run_plan(&whole, Detail::Off).world.failure else { return };
    let end = wall() + Duration::from_secs(args.shrink_seconds);
    let shrunk = shrink(&whole, failure.invariant, || wall() < end);
    let run = run_plan(&shrunk, REPORTED);
    let plans = Some((&whole, &shrunk));
    let report = Report { scenario: CHAOS, seed, world: &run.world, plans, commit: &commit, reproduce };
    println!("{}", report.write());
}

fn replay(args: &Args, seed: u64) -> bool {
    let Some(story) = story_of(args) else { return false };
    let ran = story.run(seed, REPORTED);
    match &ran.world.failure {
        Some(_) => {
            tell_failure(args, story, seed);
            false
        }
        None => {
            let (lines, hash) = (ran.world.trace.len(), ran.world.trace.hash());
            ran.world.node_lines().iter().for_each(|line| println!("{line}"));
            if args.trace {
                print!("{}", ran.world.trace.text());
            }
            println!("sim: seed={seed} failed=0 rested={:?} lines={lines} trace={hash:016x}", ran.world.rested_after);
            true
        }
    }
}

fn story_of(args: &Args) -> Option<Story> {
    let story = Story::of(args.scenario.as_deref());
    if story.is_none() {
        let names: Vec<&str> = SCENARIOS.iter().map(|s| s.name).collect();
        eprintln!("no scenario {:?}; there are {CHAOS}, {}", args.scenario, names.join(", "));
    }
    story
}

fn hashes(args: &Args) -> bool {
    let Some(story) = story_of(args) else { return false };
    let seeds: Vec<u64> = chosen(args, SEEDS).collect();
    let found = Mutex::new(BTreeMap::new());
    on_threads(args, &seeds, |seed| {
        let trace = story.run(seed, Detail::Recent).world.trace;
        found.lock().unwrap_or_else(|p| p.into_inner()).insert(seed, (trace.hash(), trace.len()));
        true
    });
    for (seed, (hash, lines)) in found.into_inner().unwrap_or_else(|p| p.into_inner()) {
        println!("{} {seed} {hash:016x} {lines}", story.name());
    }
    true
}

/// Takes seeds in order on all threads until `work` says no.
fn on_threads(args: &Args, seeds: &[u64], work: impl Fn(u64) -> bool + Sync) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let planted = args.plant.as_deref().and_then(bug_of);
    std::thread::scope(|scope| {
        for _ in 0..threads(args) {
            scope.spawn(|| {
                arctic::planted::plant(planted.as_slice());
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seeds.get(at as usize) else { return };
                    if !work(*seed) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Seeds that once failed, oldest first.
fn known_seeds() -> Result<Vec<(Story, u64)>, String> {
    let story = |name: &str| {
        Story::of(Some(name)).ok_or_else(|| format!("sim/seeds/tickless.txt: no story is called {name:?}"))
    };
    sim::known_seeds("tickless")?.iter().map(|known| Ok((story(&known.story)?, known.seed))).collect()
}

/// Each scenario at many seeds, one line each.
fn all_scenarios(args: &Args) -> bool {
    let began = wall();
    let seeds: Vec<u64> = chosen(args, SCENARIO_SEEDS).collect();
    let is_over = || args.minutes.is_some_and(|minutes| began.elapsed() >= Duration::from_secs(60 * minutes));
    let mut first_failed = None;
    for scenario in SCENARIOS {
        let (started, story) = (wall(), Story::Told(scenario));
        let (ran, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        on_threads(args, &seeds, |seed| {
            if is_over() {
                return false;
            }
            ran.fetch_add(1, Ordering::Relaxed);
            if story.run(seed, Detail::Off).world.failure.is_some() {
                failed.lock().unwrap_or_else(|p| p.into_inner()).push(seed);
            }
            true
        });
        let mut failed = failed.into_inner().unwrap_or_else(|p| p.into_inner());
        failed.sort_unstable();
        let (ran, took) = (ran.into_inner(), started.elapsed().as_secs_f64());
        println!("scenario    {:<55} seeds={ran} failed={} {took:.1} s", scenario.name, failed.len());
        if !failed.is_empty() {
            println!("failed      {failed:?}");
        }
        first_failed = first_failed.or(failed.first().map(|seed| (story, *seed)));
    }
    if let Some((story, seed)) = first_failed {
        tell_failure(args, story, seed);
    }
    let many = seeds.len();
    println!("tier B      SIM_SEEDS={many} cargo test --release -p sim --test scenarios");
    first_failed.is_none() && !is_over()
}

fn sweep(args: &Args) -> bool {
    let Some(story) = story_of(args) else { return false };
    let started = wall();
    let totals = Mutex::new(Totals::default());
    let failed = Mutex::new(Vec::new());
    let is_over = || args.minutes.is_some_and(|minutes| started.elapsed() >= Duration::from_secs(60 * minutes));
    let take = |story: Story, seed: u64| {
        let ran = story.run(seed, Detail::Recent);
        if ran.world.failure.is_some() {
            failed.lock().unwrap_or_else(|p| p.into_inner()).push((story, seed));
        }
        let is_twin = seed.is_multiple_of(TWIN_ONE_IN);
        if is_twin {
            let twin = story.run(seed, Detail::Full).world.trace;
            let own = &ran.world.trace;
            if (twin.hash(), twin.len()) != (own.hash(), own.len()) {
                println!("SIM NOT DETERMINISTIC  {}\nseed        {seed}", story.name());
                failed.lock().unwrap_or_else(|p| p.into_inner()).push((story, seed));
            }
        }
        let mut totals = totals.lock().unwrap_or_else(|p| p.into_inner());
        totals.twins += u64::from(is_twin);
        totals.take(&ran);
        (ran.world.failure.is_none() || args.keep_going) && !is_over()
    };
    if matches!(story, Story::Chaos) {
        let known = match known_seeds() {
            Ok(known) => known,
            Err(e) => return refuse(&e),
        };
        let numbers: Vec<u64> = (0..known.len() as u64).collect();
        on_threads(args, &numbers, |at| take(known[at as usize].0, known[at as usize].1));
    }
    let seeds: Vec<u64> = chosen(args, SEEDS).collect();
    on_threads(args, &seeds, |seed| take(story, seed));
    let took = started.elapsed();
    let totals = totals.into_inner().unwrap_or_else(|p| p.into_inner());
    let mut failed = failed.into_inner().unwrap_or_else(|p| p.into_inner());
    failed.sort_by_key(|(_, seed)| *seed);
    if let Some((story, seed)) = failed.first() {
        tell_failure(args, *story, *seed);
    }
    if failed.len() > 1 {
        let list: Vec<String> = failed.iter().map(|(story, seed)| format!("{} {seed}", story.name())).collect();
        println!("failed      {}", list.join(", "));
    }
    let dead = if matches!(story, Story::Chaos) { print_coverage(&totals) } else { 0 };
    print_rest(&totals);
    println!(
        "sim: seeds={} hours={:.1} failed={} tier=A speedup={:.0}x node_hours={:.1} twins={} dead={dead}",
        totals.seeds,
        totals.simulated.as_secs_f64() / 3600.0,
        failed.len(),
        totals.simulated.as_secs_f64() / took.as_secs_f64(),
        totals.node_hours,
        totals.twins,
    );
    failed.is_empty() && (dead == 0 || totals.seeds < COVERAGE_FROM_SEEDS)
}

/// Prints what was reached; gives the number of marks and fault kinds that never were.
fn print_coverage(totals: &Totals) -> usize {
    let dead_marks: Vec<&str> = marks::ALL.iter().filter(|m| !totals.marks.contains_key(*m)).copied().collect();
    let dead_kinds: Vec<&str> =
        Kind::ALL.iter().filter(|k| !totals.fired.contains_key(k)).map(|kind| kind.name()).collect();
    let rare = marks::ALL.iter().filter(|m| {
        let seeds = totals.marks.get(*m).copied().unwrap_or(0);
        seeds > 0 && seeds * 100 < totals.seeds
    });
    let rare: Vec<&str> = rare.copied().collect();
    println!("marks       {} of {} reached", marks::ALL.len() - dead_marks.len(), marks::ALL.len());
    println!("faults      {} of {} kinds fired", Kind::ALL.len() - dead_kinds.len(), Kind::ALL.len());
    dead_marks.iter().for_each(|mark| println!("never       {mark}"));
    dead_kinds.iter().for_each(|kind| println!("never       fault {kind}"));
    rare.iter().for_each(|mark| println!("rare        {mark}"));
    dead_marks.len() + dead_kinds.len()
}

fn print_rest(totals: &Totals) {
    let mut rested = totals.rested.clone();
    rested.sort();
    let at = |percent: usize| rested.get((rested.len() * percent / 100).min(rested.len().saturating_sub(1)));
    if let (Some(half), Some(most), Some(worst)) = (at(50), at(99), rested.last()) {
        println!("rest        p50={half:.1?} p99={most:.1?} max={worst:.1?} after faults stop");
    }
}

/// Each planted bug has to show within its seeds.
fn canaries(args: &Args, names: &[String]) -> bool {
    let named: Option<Vec<Bug>> = names.iter().map(|name| bug_of(name)).collect();
    let Some(mut bugs) = named else { return false };
    if bugs.is_empty() {
        bugs = Bug::ALL.to_vec();
    }
    let mut all = true;
    for bug in bugs {
        let started = wall();
        let found = if args.tier == Tier::A { found_by_machines(args, bug) } else { found_by_nodes(args, bug) };
        let took = started.elapsed().as_secs_f64();
        match found {
            Some((seed, story, invariant)) => {
                println!("canary      {:<28} found by {invariant} in {story}, seed {seed}, {took:.1} s", bug.name());
            }
            None => {
                println!("canary      {:<28} NOT FOUND in {CANARY_SEEDS} seeds, {took:.1} s", bug.name());
                all = false;
            }
        }
    }
    all
}

/// The smallest seed that fails with the bug and not without it, and what it was and violated.
type Found = Option<(u64, &'static str, String)>;

fn found_by_machines(args: &Args, bug: Bug) -> Found {
    let found = Mutex::new(None);
    let seeds: Vec<u64> = (1..=CANARY_SEEDS).collect();
    let with_bug = Args { plant: Some(bug.name().to_owned()), ..Args::parse_from(["sweep"]) };
    let with_bug = Args { threads: args.threads, ..with_bug };
    let stories: Vec<Story> = std::iter::once(Story::Chaos).chain(SCENARIOS.iter().map(Story::Told)).collect();
    on_threads(&with_bug, &seeds, |seed| {
        for story in &stories {
            if matches!(story, Story::Told(s) if seed > s.seeds) {
                continue;
            }
            if let Some(failure) = story.run(seed, Detail::Off).world.failure {
                // What fails without the bug as well says nothing about it.
                arctic::planted::plant(&[]);
                let is_green = story.run(seed, Detail::Off).world.failure.is_none();
                arctic::planted::plant(&[bug]);
                if is_green {
                    keep_smallest(&found, (seed, story.name(), failure.invariant.to_owned()));
                    return false;
                }
            }
        }
        true
    });
    found.into_inner().unwrap_or_else(|p| p.into_inner())
}

/// By what an operator was told and does not find again: nodes that cannot even join show nothing.
fn found_by_nodes(args: &Args, bug: Bug) -> Found {
    let found = Mutex::new(None);
    let seeds: Vec<u64> = (1..=CANARY_SEEDS).collect();
    on_threads(args, &seeds, |seed| {
        let violated = chaos::run_from_joined(seed, || arctic::planted::plant(&[bug])).violated;
        arctic::planted::plant(&[]);
        let Some(lost) = violated.into_iter().find(|v| v.starts_with("D1")) else { return true };
        let is_green = chaos::run(seed).violated.is_empty();
        if is_green {
            keep_smallest(&found, (seed, CHAOS, lost));
        }
        !is_green
    });
    found.into_inner().unwrap_or_else(|p| p.into_inner())
}

fn keep_smallest(found: &Mutex<Found>, new: (u64, &'static str, String)) {
    let mut found = found.lock().unwrap_or_else(|p| p.into_inner());
    if found.as_ref().is_none_or(|before| new.0 < before.0) {
        *found = Some(new);
    }
}

//! A run of chaos: a cluster is founded, faults and work come, faults stop, and everything must come to rest.

use super::{
    faults::{self, Fault},
    invariants::CONVERGENCE_BOUND,
    marks,
    message::Encoding,
    trace::Detail,
    workload::{self, Op},
    world::{Options, World, derive},
};
use arctic::model::{Mono, Rng};
use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Faults begin after the cluster has been founded,
const CHAOS_BEGIN: Mono = Mono::from_ms(12_000);
/// and stop here.
pub const CHAOS_END: Mono = Mono::from_ms(150_000);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The invariant that a panic violates.
pub(super) const PANIC: &str = "panic";
/// One seed in so many uses Ed25519.
const REAL_CRYPTO_ONE_IN: u64 = 10;

/// All that a seed decides.
#[derive(Debug, Clone)]
pub struct Plan {
    pub options: Options,
    pub faults: Vec<Fault>,
    pub work: Vec<Op>,
    /// A node that stays cut off one way while the others come to rest.
    pub outsider: Option<usize>,
}

/// What came of a run.
pub struct Run {
    pub world: World,
    pub marks: BTreeMap<&'static str, u64>,
}

/// The plan of a seed.
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::from_seed(derive(seed, "plan", 0));
    let nodes = 3 + rng.below(10) as usize;
    let mut options = Options::new(seed, nodes);
    options.real_crypto = seed.is_multiple_of(REAL_CRYPTO_ONE_IN);
    options.encoding = if rng.below(3) == 0 { Encoding::Bytes } else { Encoding::Values };
    options.license_lasts = match rng.below(10) {
        // The next state begins in the middle of the run.
        0 => 30 * DAY + Duration::from_secs(rng.below(150)),
        1 => Duration::from_secs(20 + rng.below(150)),
        _ => 365 * DAY,
    };
    if rng.below(6) == 0 {
        options.max_nodes = 2 + rng.below(nodes as u64) as u32;
    }
    if rng.below(6) == 0 {
        options.max_services = 3;
    }
    if rng.below(4) == 0 {
        options.foreigners_from = nodes - 1;
    }
    let count = 2 + rng.below(40) as usize;
    let faults = faults::draw(&mut rng, nodes, count, CHAOS_BEGIN, CHAOS_END);
    let operations = 10 + rng.below(50) as usize;
    let work = workload::draw(&mut rng, nodes, operations, CHAOS_BEGIN, CHAOS_END);
    let outsider = (nodes > 3 && rng.below(5) == 0).then(|| rng.below(nodes as u64) as usize);
    Plan { options, faults, work, outsider }
}

/// Runs a seed.
pub fn run(seed: u64, detail: Detail) -> Run {
    run_plan(&plan(seed), detail)
}

/// Runs a plan, of a seed or shrunk from one.
pub fn run_plan(plan: &Plan, detail: Detail) -> Run {
    drop(marks::take());
    let mut world = World::new(Options { detail, ..plan.options.clone() });
    world.plan_faults(plan.faults.clone());
    world.plan_work(plan.work.clone());
    // A machine that panics has failed like one that breaks a rule, and is reported and shrunk like it.
    let ended = catch_unwind(AssertUnwindSafe(|| play(&mut world, plan)));
    if let Err(panic) = ended {
        world.violate(PANIC, panic_text(panic.as_ref()));
    }
    Run { world, marks: marks::take() }
}

fn play(world: &mut World, plan: &Plan) {
    world.run_until(CHAOS_END, |_| false);
    if world.failure.is_none() {
        world.calm();
        if let Some(outsider) = plan.outsider {
            world.set_outside(outsider);
        }
        world.come_to_rest(CONVERGENCE_BOUND);
    }
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a text").to_owned()
}

//! N1-N8 of simulation.md §7, each step within its own time of the wall.

use super::{
    churn::{Churn, MEMBERS},
    fleet::{Fleet, facts, services},
    wall,
};
use arctic::{
    gossip::{Gossip, HEARTBEAT_INTERVAL, Local},
    model::{Mono, PeerId, PublicKey, Rng, SigningKey, UnixTime},
};
use std::{collections::BTreeMap, time::Duration};

const KIB: u64 = 1024;
/// How the text of a figure without a goal begins.
const NO_GOAL: &str = "none";
const PAGE_BYTES: u64 = 4096;

/// Resident bytes of this process.
pub fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE_BYTES
}

/// Processor time that this process has used: what others on the host do does not count.
pub fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * KIB
}

pub fn line(id: &str, what: &str, measured: &str, goal: &str, met: Option<bool>) {
    let verdict = match met {
        Some(true) if goal.starts_with(NO_GOAL) => "measured",
        Some(true) => "met",
        Some(false) => "not met",
        None => "not measured",
    };
    println!("{id:<6} {what:<44} {measured:<44} goal {goal:<28} {verdict}");
}

fn until(seconds: u64) -> impl Fn() -> bool {
    let began = wall();
    move || began.elapsed() < Duration::from_secs(seconds)
}

fn at(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn rounds(time: Duration) -> f64 {
    time.as_secs_f64() / HEARTBEAT_INTERVAL.as_secs_f64()
}

struct Size {
    nodes: usize,
    changes: usize,
    rounds_goal: f64,
    /// Seconds of the wall for the first rounds, for the changes, and for each half of the split.
    caps: [u64; 3],
}

const SIZES: [Size; 3] = [
    Size { nodes: 100, changes: 100, rounds_goal: 2.0, caps: [8, 8, 8] },
    Size { nodes: 1_000, changes: 40, rounds_goal: 3.0, caps: [25, 25, 15] },
    Size { nodes: 10_000, changes: 5, rounds_goal: 4.0, caps: [30, 150, 30] },
];
/// Of the wall, for half an hour of members that come and go.
const CHURN_SECONDS: u64 = 600;
/// A tombstone that is held for longer is one that is never collected, as far as this run can tell.
const COLLECTED_WITHIN: Duration = Duration::from_secs(600);
/// Links of 64 bytes, and as much again for what was heard and what is on its way.
const BYTES_PER_LINK: u64 = 96;

pub fn print(whole: bool) {
    println!(
        "scale: gossip machines that trust each other from the start (no handshakes, no store) on one lean queue; \
         stub signatures, loss 10 % each way, one thread"
    );
    // First: later the process has memory to spare, and nothing is seen of what this takes.
    print_memory();
    print_exchange();
    print_join();
    for size in SIZES {
        print_size(&size);
    }
    print_blame(5, 0, whole);
    print_blame(15, 1, whole);
    print_flood();
    line(
        "N2",
        "split of 1 min to 29 days, up to 50 peers",
        "scripts/sweep --scenario split_heals_without_seed_list",
        "<= 60 s",
        None,
    );
    print_churn(whole);
}

fn print_size(size: &Size) {
    let Size { nodes, changes, rounds_goal, caps: [idle_cap, changes_cap, split_cap] } = *size;
    let need = (nodes as u64).pow(2) * BYTES_PER_LINK;
    if need > available_bytes() {
        let why = format!("takes {} MiB, {} are free", need / KIB / KIB, available_bytes() / KIB / KIB);
        return line("N1", &format!("{nodes} nodes"), &why, "", None);
    }
    let mut fleet = Fleet::new(nodes, 1, 0, 0);
    fleet.loss_percent = 10;
    let (cpu_from, more) = (cpu(), until(idle_cap));
    // The first round is not the steady state.
    fleet.run(Mono::from_ms(12_000), &more, |_| false);
    let (from, bytes) = (fleet.now, fleet.bytes);
    fleet.run(from + Duration::from_secs(20), &more, |_| false);
    let span = (fleet.now - from).as_secs_f64();
    let rate = (fleet.bytes - bytes) as f64 / span.max(0.001) / nodes as f64;
    let speed = fleet.now.since_start().as_secs_f64() / (cpu() - cpu_from).as_secs_f64();
    line(
        "-",
        &format!("{nodes} nodes idle: bytes sent a node and second"),
        &format!("{rate:.0} B over {span:.1} sim-s"),
        "none set",
        (span >= 1.0).then_some(true),
    );
    let took = spread(&mut fleet, "one", changes, changes_cap);
    let what = format!("{nodes} nodes: one change everywhere");
    let goal = format!("p99 <= {rounds_goal} rounds");
    let (half, most) = (at(&took, 50), at(&took, 99));
    let text = format!(
        "p50 {:.2} r {half:.1?} p99 {:.2} r {most:.1?}, {} of {changes}",
        rounds(half),
        rounds(most),
        took.len()
    );
    line("N1", &what, &text, &goal, (took.len() == changes).then(|| rounds(most) <= rounds_goal));
    print_split(&mut fleet, nodes, split_cap);
    let held = resident() / KIB / KIB;
    line(
        "-",
        &format!("{nodes} nodes: memory of the process, speed"),
        &format!("{held} MiB, {speed:.2} sim-s a CPU-s"),
        "<= 8192 MiB",
        Some(held <= 8192),
    );
}

/// Writes `changes` services at random places 0.2 s apart; how long each took to be everywhere, sorted.
fn spread(fleet: &mut Fleet, prefix: &str, changes: usize, seconds: u64) -> Vec<Duration> {
    let more = until(seconds);
    let mut written = Vec::new();
    for n in 0..changes {
        let (place, name) = (fleet.below(fleet.ids.len()), format!("{prefix}-{n}"));
        fleet.write_followed(place, &name);
        written.push((name, fleet.now));
        fleet.run(fleet.now + Duration::from_millis(200), &more, |_| false);
    }
    let all = fleet.ids.len();
    let names: Vec<String> = written.iter().map(|(name, _)| name.clone()).collect();
    let end = fleet.now + 10 * HEARTBEAT_INTERVAL;
    fleet.run(end, &more, |f| names.iter().all(|name| f.reached[name].0 >= all));
    let mut took: Vec<_> = written
        .iter()
        .filter(|(name, _)| fleet.reached[name].0 >= all)
        .map(|(name, from)| fleet.reached[name].1 - *from)
        .collect();
    took.sort();
    took
}

/// A split of a minute, or of what the time of the wall allows; one change in each half during it.
fn print_split(fleet: &mut Fleet, nodes: usize, seconds: u64) {
    fleet.split_at = Some(nodes / 2);
    fleet.write_followed(0, "low");
    fleet.write_followed(nodes - 1, "high");
    let from = fleet.now;
    fleet.run(from + Duration::from_secs(60), &until(seconds), |_| false);
    let lasted = fleet.now - from;
    fleet.split_at = None;
    let healed = fleet.now;
    let is_whole = |f: &Fleet| ["low", "high"].iter().all(|name| f.reached[*name].0 >= nodes);
    let done = fleet.run(healed + Duration::from_secs(120), &until(seconds), is_whole);
    let took = fleet.now - healed;
    let what = format!("{nodes} nodes: a 50/50 split heals");
    let text =
        if done { format!("{took:.1?} after {lasted:.0?}") } else { format!("not after {took:.1?} (time used up)") };
    line(
        "N2",
        &what,
        &text,
        "<= 60 s (up to 50 peers)",
        (done && lasted >= Duration::from_secs(60)).then(|| took <= Duration::from_secs(60)),
    );
}

fn print_exchange() {
    for records in [100, 100_000] {
        let mut fleet = Fleet::new(2, 2, records, 2);
        fleet.run(Mono::from_ms(40_000), &until(10), |_| false);
        let bytes = fleet.exchange_bytes();
        let what = format!("in-sync exchange, 2 peers, {records} records");
        let text = bytes.map_or("no answer".into(), |b| format!("{b} B both ways, 492 of them headers"));
        line("N3", &what, &text, "<= 1600 B", bytes.map(|b| b <= 1600));
    }
    let mut fleet = Fleet::new(120, 2, 0, 0);
    fleet.run(Mono::from_ms(40_000), &until(10), |_| false);
    let text = fleet.exchange_bytes().map_or("no answer".into(), |b| format!("{b} B both ways, 492 of them headers"));
    line("N3", "the same, 120 peers: with signs of life", &text, "none set above 50 peers", Some(true));
    let mut fleet = Fleet::new(2, 2, 10_000, 2);
    fleet.sample = 1;
    fleet.run(Mono::from_ms(40_000), &until(10), |_| false);
    let in_sync = fleet.exchange_bytes().unwrap_or(0);
    fleet.split_at = Some(1);
    fleet.write_followed(0, "one");
    // Until its pushes have been given up.
    fleet.run(fleet.now + Duration::from_secs(20), &until(10), |_| false);
    fleet.split_at = None;
    let before = fleet.bytes;
    let done = fleet.run(fleet.now + Duration::from_secs(90), &until(10), Fleet::are_equal);
    let more = (fleet.bytes - before).saturating_sub(in_sync);
    let text = format!("{more} B beyond one in-sync exchange");
    line("N3", "one difference, 10,000 records (incl. heartbeats)", &text, "<= 2.5 kB", done.then_some(more <= 2_500));
}

fn print_join() {
    let mut fleet = Fleet::new(2, 4, 10_000, 1);
    fleet.sample = 1;
    let done = fleet.run(Mono::from_ms(60_000), &until(20), Fleet::are_equal);
    let (took, mb) = (fleet.now.since_start(), fleet.bytes as f64 / 1e6);
    let text = format!("{mb:.2} MB, {took:.1?}");
    line(
        "N4",
        "an empty peer joins 10,000 records",
        &text,
        "<= 3.5 MB, <= 3 s",
        done.then(|| mb <= 3.5 && took <= Duration::from_secs(3)),
    );
}

fn print_blame(loss_percent: u64, allowed: usize, whole: bool) {
    let mut fleet = Fleet::new(100, 5, 0, 0);
    fleet.loss_percent = loss_percent;
    fleet.sample = u64::MAX;
    fleet.run(Mono::from_ms(60_000), &until(5), |_| false);
    fleet.blamed.clear();
    let from = fleet.now;
    let day = Duration::from_secs(24 * 3600);
    let more = until(20);
    fleet.run(from + day, &|| whole || more(), |_| false);
    let (lived, blamed) = (fleet.now - from, fleet.blamed.len());
    let text = format!("{blamed} in {:.2} h of 24", lived.as_secs_f64() / 3600.0);
    let verdict = if blamed > allowed { Some(false) } else { (lived >= day).then_some(true) };
    line(
        "N5",
        &format!("100 peers, {loss_percent} % loss: false unhealthy"),
        &text,
        &format!("<= {allowed} in 24 h"),
        verdict,
    );
    let mut took = Vec::new();
    let more = until(10);
    for subject in 0..5 {
        let (died, id) = (fleet.now, fleet.ids[subject]);
        fleet.dead.insert(subject);
        fleet.blamed.clear();
        fleet.run(died + Duration::from_secs(60), &more, |_| false);
        let dead = &fleet.dead;
        took.extend(
            fleet.blamed.iter().filter(|(by, of, _)| *of == id && !dead.contains(by)).map(|(.., at)| *at - died),
        );
    }
    took.sort();
    let expected: usize = (0..5).map(|n| 99 - n).sum();
    let text = format!("p50 {:.1?} p99 {:.1?}, {} of {expected} views", at(&took, 50), at(&took, 99), took.len());
    line(
        "N5",
        &format!("100 peers, {loss_percent} % loss: a death is known"),
        &text,
        "p99 <= 45 s",
        (took.len() == expected).then(|| at(&took, 99) <= Duration::from_secs(45)),
    );
}

fn print_flood() {
    const NODES: usize = 16;
    let mut calm = Fleet::new(NODES, 6, 0, 0);
    calm.loss_percent = 10;
    calm.run(Mono::from_ms(15_000), &until(5), |_| false);
    let normal = spread(&mut calm, "calm", 50, 15);
    let mut fleet = Fleet::new(NODES, 6, 0, 0);
    fleet.loss_percent = 10;
    fleet.sample = u64::MAX;
    fleet.run(Mono::from_ms(15_000), &until(5), |_| false);
    let (from, more) = (fleet.now, until(30));
    let (mut own, cpu_from) = (Duration::ZERO, cpu());
    let mut written = Vec::new();
    let mut flooded = 0;
    for n in 0..50 {
        let names: Vec<String> = (0..1_000).map(|i| format!("flood-{}", n * 1_000 + i)).collect();
        let began = cpu();
        fleet.write(0, &names);
        own += cpu() - began;
        flooded += names.len();
        let name = format!("calm-{n}");
        fleet.write_followed(1 + n % (NODES - 1), &name);
        written.push((name, fleet.now));
        fleet.run(fleet.now + Duration::from_millis(100), &more, |_| false);
    }
    let end = fleet.now + 3 * HEARTBEAT_INTERVAL;
    fleet.run(end, &more, |f| written.iter().all(|(name, _)| f.reached[name].0 >= NODES));
    let used = (cpu() - cpu_from).saturating_sub(own).as_secs_f64();
    let share = 100.0 * used / (fleet.now - from).as_secs_f64() / (NODES - 1) as f64;
    let mut took: Vec<Duration> = written
        .iter()
        .filter(|(name, _)| fleet.reached[name].0 >= NODES)
        .map(|(name, from)| fleet.reached[name].1 - *from)
        .collect();
    took.sort();
    let text =
        format!("p99 {:.1?}, normal {:.1?}; {} of {}", at(&took, 99), at(&normal, 99), took.len(), written.len());
    let done = took.len() == written.len();
    line(
        "N8",
        &format!("{flooded} records flood at 10,000/s: others' changes"),
        &text,
        "<= 2x normal",
        Some(done && at(&took, 99) <= 2 * at(&normal, 99)),
    );
    line(
        "N8",
        "CPU of another member (all it does, stub crypto)",
        &format!("{share:.1} % of a core"),
        "<= 5 %",
        Some(share <= 5.0),
    );
}

fn print_churn(whole: bool) {
    let (span, more) = (Duration::from_secs(30 * 60), until(CHURN_SECONDS));
    let mut churn = Churn::new(10);
    let lived = churn.live(span, &|| whole || more());
    let is_whole = lived >= span;
    let (views, minutes) = (churn.views, lived.as_secs_f64() / 60.0);
    let text = format!("{:.2} % of {:.1} M in {minutes:.0} min", views.wrong_percent(), views.judged as f64 / 1e6);
    line(
        "N7",
        &format!("{MEMBERS} peers, 10 %/min come and go: wrong views"),
        &text,
        "< 1 %",
        is_whole.then(|| views.wrong_percent() < 1.0),
    );
    let (held, lately) = (churn.held.last().copied().unwrap_or_default(), churn.made_within(COLLECTED_WITHIN));
    let text = format!("mean {:.0}, most {:.0}; {} made", held.mean, held.most, churn.tombstones.len());
    line(
        "N7",
        "the same: tombstones a peer, of members",
        &text,
        &format!("<= {lately}: made in 10 min"),
        is_whole.then_some(held.most <= lately),
    );
    let text = format!("{} revocations, {:.0} tombstones", churn.revocations.len(), held.of_departed);
    line("-", "the same: never collected, of who left", &text, "none set", Some(true));
}

fn print_memory() {
    let mut rng = Rng::from_seed([7; 32]);
    let key = SigningKey::from_seed([1; 32]);
    let ids: Vec<_> = (0..10_000).map(|i| PeerId::mint(UnixTime::from_secs(1_700_000_000 + i), &mut rng)).collect();
    let before = resident();
    let trusted: BTreeMap<PeerId, PublicKey> = ids.iter().map(|id| (*id, key.public())).collect();
    let records = ids.iter().flat_map(|id| services(&key, *id, 10));
    let local = Local { peer_id: ids[0], public_key: key.public() };
    let machine = Gossip::sharing(local, facts(), records, &trusted, rng.fork(), Mono::default());
    drop(trusted);
    let mib = resident().saturating_sub(before) / KIB / KIB;
    let held = machine.registries().values().map(|state| state.count).sum::<usize>();
    line(
        "N6",
        "10,000 peers, 100,000 records",
        &format!("{mib} MiB resident for the machine, {held} records"),
        "<= 400 MiB",
        Some(mib <= 400 && held == 100_000),
    );
}

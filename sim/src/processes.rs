//! The same seeds in two processes: what differs between processes, such as hash seeds and addresses, must not show.

use std::{
    collections::BTreeMap,
    ops::Range,
    process::{Child, Command, Stdio},
};

/// Set for a child that is to print its digests.
const CHILD: &str = "SIM_PRINT_DIGESTS";
const LINE: &str = "sim-digest";

/// Runs the calling test, which has the path `test` in its binary, as two processes at once, and demands that each gives
/// the same `digest` for every seed: of a trace, or of whatever else a run must give again.
pub fn equal_in_two_processes(test: &str, seeds: Range<u64>, digest: impl Fn(u64) -> String) {
    let seeds: Vec<u64> = crate::chosen_seeds(seeds).collect();
    if std::env::var_os(CHILD).is_some() {
        for seed in seeds {
            println!("{LINE} {seed} {}", digest(seed));
        }
        return;
    }
    let [first, second] = [start(test), start(test)].map(digests_of);
    let missing: Vec<&u64> = seeds.iter().filter(|seed| !first.contains_key(*seed)).collect();
    assert!(missing.is_empty(), "no digest of seeds {missing:?}: is {test} the name of this test?");
    let differing: Vec<&u64> = seeds.iter().filter(|seed| first[*seed] != second[*seed]).collect();
    assert!(
        differing.is_empty(),
        "SIM NOT DETERMINISTIC  {test}\nseeds       {differing:?} differ between two processes"
    );
}

fn start(test: &str) -> Child {
    let program = std::env::current_exe().expect("a test knows its program");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the test runs again")
}

fn digests_of(child: Child) -> BTreeMap<u64, String> {
    let output = child.wait_with_output().expect("the child ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "the run in a process of its own failed:\n{text}");
    // The test harness may have printed on the same line before.
    let lines = text.lines().filter_map(|line| line.split_once(LINE)?.1.trim().split_once(' '));
    lines.filter_map(|(seed, digest)| Some((seed.parse().ok()?, digest.to_owned()))).collect()
}

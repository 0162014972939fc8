//! What a failure prints (simulation.md §6).

use super::{runs::Plan, trace::Detail, world::World};
use std::{fmt::Write as _, fs, path::PathBuf};

/// Lines of history in a report; the file has all.
const HISTORY_LINES: usize = 24;

/// A failure of a named scenario at a seed.
pub struct Report<'a> {
    pub scenario: &'a str,
    pub seed: u64,
    pub world: &'a World,
    /// The plan that failed, and what is left of it; none for a scenario, which is its own plan.
    pub plans: Option<(&'a Plan, &'a Plan)>,
    /// `a1b2c3d (dirty)`.
    pub commit: &'a str,
    pub reproduce: String,
}

impl Report<'_> {
    /// Writes the files and gives the text.
    pub fn write(&self) -> String {
        let dir = self.directory();
        let saved = self.save(&dir);
        let mut text = String::new();
        let Some(failure) = &self.world.failure else { return "nothing failed".to_owned() };
        let options = &self.world.options;
        let line = |text: &mut String, name: &str, value: &str| {
            let _infallible = writeln!(text, "{name:<12}{value}");
        };
        line(&mut text, "SIM FAILED", &format!(" tickless::{}", self.scenario));
        line(&mut text, "seed", &format!("{}   commit {}", self.seed, self.commit));
        let crypto = if options.real_crypto { "ed25519" } else { "stub" };
        let mut about = format!("nodes={} crypto={crypto} encoding={:?}", options.nodes, options.encoding);
        if let Some((before, after)) = self.plans {
            let counts = format!(
                "  shrunk {} -> {} (work {} -> {})",
                before.faults.len(),
                after.faults.len(),
                before.work.len(),
                after.work.len()
            );
            about.push_str(&counts);
        }
        line(&mut text, "faults", &about);
        if let Some((_, after)) = self.plans {
            after.faults.iter().for_each(|fault| line(&mut text, "", &fault.to_string()));
            after.work.iter().for_each(|op| line(&mut text, "work", &op.to_string()));
        }
        let at = failure.at.since_start().as_secs_f64();
        let violated = format!("{} {}   at {at:.3}s step {}", failure.invariant, failure.what, failure.step);
        line(&mut text, "violated", &violated);
        let recent: Vec<&str> = self.world.trace.lines().rev().take(HISTORY_LINES).collect();
        recent.iter().rev().for_each(|entry| line(&mut text, "history", entry));
        self.world.node_lines().iter().for_each(|entry| line(&mut text, "nodes", entry));
        line(&mut text, "files", &saved);
        line(&mut text, "reproduce", &self.reproduce);
        text
    }

    fn directory(&self) -> PathBuf {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/sim");
        root.join(format!("{}.{}", self.scenario, self.seed))
    }

    fn save(&self, dir: &std::path::Path) -> String {
        let mut plan = String::new();
        if let Some((before, after)) = self.plans {
            let _infallible = writeln!(plan, "shrunk\n{after:#?}\n\nwhole\n{before:#?}");
        }
        let mut nodes = String::new();
        for node in &self.world.nodes {
            let _infallible = writeln!(nodes, "{}", node.name());
            node.disk.read(|s| {
                for row in s.peers.values() {
                    let name = self.world.peer_name(row.peer_id);
                    let _infallible = writeln!(nodes, "  peer {name} trusted={}", row.trusted);
                }
                for (key, held) in &s.records {
                    let owner = self.world.peer_name(key.owner);
                    let _infallible = writeln!(
                        nodes,
                        "  {} {} of {owner} version={} deleted={} {}",
                        key.kind, key.id, held.head.version, held.record.deleted, held.record.body
                    );
                }
            });
        }
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(dir)?;
            fs::write(dir.join("trace.log"), self.world.trace.text())?;
            fs::write(dir.join("plan.txt"), &plan)?;
            fs::write(dir.join("nodes.txt"), &nodes)
        };
        match write() {
            Ok(()) => format!("{}/{{trace.log,plan.txt,nodes.txt}}", dir.display()),
            Err(e) => format!("not written: {e}"),
        }
    }
}

/// The detail of a run that is going to be reported.
pub const REPORTED: Detail = Detail::Full;

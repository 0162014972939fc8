//! The trace of a run: every event of every crate at every level, in order, as text.

use sha2::{Digest, Sha256};
use std::{
    cell::RefCell,
    fmt::{self, Write as _},
    path::PathBuf,
    sync::Once,
};
use tracing::{Event, Subscriber, field::Visit};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry::LookupSpan};

thread_local! {
    static CURRENT: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// Lines of one run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trace {
    lines: Vec<String>,
}

impl Trace {
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// SHA-256 over its lines, hex.
    pub fn digest(&self) -> String {
        let hash = self.lines.iter().fold(Sha256::new(), |hash, line| hash.chain_update(line).chain_update(b"\n"));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes it to a file below `target/sim`.
    pub(crate) fn save(&self, scenario: &str, seed: u64, name: &str) -> PathBuf {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../target/sim/{scenario}.{seed}"));
        let file = dir.join(name);
        if let Err(e) = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&file, self.lines.join("\n"))) {
            eprintln!("trace was not saved: {e}");
        }
        file
    }

    /// Panics with the first difference and the command that reproduces it.
    pub fn assert_equal(&self, other: &Trace, scenario: &str, seed: u64) {
        let common = self.lines.iter().zip(&other.lines).take_while(|(a, b)| a == b).count();
        if common == self.lines.len() && common == other.lines.len() {
            return;
        }
        let at = |t: &Trace| t.lines.get(common).cloned().unwrap_or_else(|| "(end)".to_owned());
        panic!(
            "SIM NOT DETERMINISTIC  {scenario}\nseed        {seed}\nline        {common}\nfirst       {}\nsecond      {}\n\
             traces      {} {}\n{}",
            at(self),
            at(other),
            self.save(scenario, seed, "first.log").display(),
            other.save(scenario, seed, "second.log").display(),
            reproduce(scenario, seed)
        );
    }
}

fn reproduce(scenario: &str, seed: u64) -> String {
    format!("reproduce   SIM_SEED={seed} cargo test -p sim {scenario} -- --exact --nocapture")
}

/// Runs `f` and returns its trace. A panic inside leaves the trace in a file and prints where.
pub(crate) fn recorded(scenario: &str, seed: u64, f: impl FnOnce()) -> Trace {
    install();
    CURRENT.set(Some(Trace::default()));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    let trace = CURRENT.take().unwrap_or_default();
    if let Err(panic) = outcome {
        let file = trace.save(scenario, seed, "trace.log");
        eprintln!(
            "SIM FAILED  {scenario}\nseed        {seed}\ntrace       {}\n{}",
            file.display(),
            reproduce(scenario, seed)
        );
        std::panic::resume_unwind(panic);
    }
    trace
}

/// A line of the scenario itself.
pub fn record(line: impl fmt::Display) {
    push(format!("scenario {line}"));
}

/// Runs `f` and sorts the lines that it causes. Outside of any host turmoil reads the real clock for their time, which
/// shows when the machine is slower than the simulation: they get none.
pub(crate) fn unordered(f: impl FnOnce()) {
    let lines = || CURRENT.with_borrow(|trace| trace.as_ref().map_or(0, |t| t.lines.len()));
    let before = lines();
    f();
    CURRENT.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            for line in &mut trace.lines[before..] {
                let text = line.trim_start().split_once(' ').map_or("", |(_, text)| text);
                *line = format!("{:>12} {text}", 0);
            }
            trace.lines[before..].sort();
        }
    });
}

fn is_recording() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

fn push(line: String) {
    let at = turmoil::sim_elapsed().map_or(0, |t| t.as_micros());
    CURRENT.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            trace.lines.push(format!("{at:>12} {line}"));
        }
    });
}

/// One global sink for the life of the process: tracing caches callsites globally, so a sink per test loses lines.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Capture);
        tracing::subscriber::set_global_default(subscriber).expect("the simulator owns the global subscriber");
    });
}

struct Capture;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attrs: &tracing::span::Attributes<'_>, id: &tracing::Id, ctx: Context<'_, S>) {
        let mut text = Text(String::new());
        attrs.record(&mut text);
        if let Some(span) = ctx.span(id) {
            span.extensions_mut().insert(text);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        if !is_recording() {
            return;
        }
        if event.metadata().target().starts_with("turmoil") && event.metadata().name().contains("step") {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let mut scope = String::new();
        for span in ctx.event_scope(event).into_iter().flatten() {
            let fields = span.extensions().get::<Text>().map(|t| t.0.clone()).unwrap_or_default();
            let _ = write!(scope, "{}{{{fields}}} ", span.name());
        }
        push(format!("{} {} {scope}{}", event.metadata().level(), event.metadata().target(), text.0));
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

//! The log of one reconciler. Every line holds `component=… reconciler=…` in its message and as fields (operations.md §3).

use super::status::Reconciler;
use std::collections::BTreeMap;

/// Says each thing once per change.
#[derive(Debug)]
pub struct Report {
    reconciler: Reconciler,
    failure: Option<String>,
    skipped: BTreeMap<String, String>,
}

impl Report {
    pub fn new(reconciler: Reconciler) -> Self {
        Self { reconciler, failure: None, skipped: BTreeMap::new() }
    }

    pub fn info(&self, text: &str) {
        let (component, reconciler) = (self.reconciler.component(), self.reconciler.name());
        tracing::info!(component, reconciler, "component={component} reconciler={reconciler} {text}");
    }

    pub fn debug(&self, text: &str) {
        let (component, reconciler) = (self.reconciler.component(), self.reconciler.name());
        tracing::debug!(component, reconciler, "component={component} reconciler={reconciler} {text}");
    }

    fn warn(&self, text: &str) {
        let (component, reconciler) = (self.reconciler.component(), self.reconciler.name());
        tracing::warn!(component, reconciler, "component={component} reconciler={reconciler} {text}");
    }

    /// An event, as field too.
    pub fn event(&self, event: &str, text: &str) {
        let (component, reconciler) = (self.reconciler.component(), self.reconciler.name());
        tracing::warn!(component, reconciler, event, "component={component} reconciler={reconciler} {event}: {text}");
    }

    /// A failure with another reason than the one before.
    pub fn failure(&mut self, reason: &str) {
        if self.failure.as_deref() != Some(reason) {
            self.warn(&format!("failed, the last good state stays: {reason}"));
            self.failure = Some(reason.to_owned());
        }
    }

    pub fn success(&mut self) {
        if self.failure.take().is_some() {
            self.info("recovered");
        }
    }

    /// All objects that are left out now, with the reason of each.
    pub fn skipped(&mut self, now: BTreeMap<String, String>) {
        for (object, reason) in &now {
            if self.skipped.get(object) != Some(reason) {
                self.warn(&format!("skipped {object}: {reason}"));
            }
        }
        for object in self.skipped.keys().filter(|object| !now.contains_key(*object)) {
            self.info(&format!("no longer skipped {object}"));
        }
        self.skipped = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    // accepts: 001-20, 001-70, 001-73, 002-56
    #[test]
    fn every_line_names_its_reconciler_and_a_failure_is_said_once_per_reason() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut report = Report::new(Reconciler::Firewall);
            report.info("started");
            for reason in ["busy", "busy", "full", "busy"] {
                report.failure(reason);
            }
            report.success();
            report.success();
            let skipped = |reason: &str| BTreeMap::from([("service x".to_owned(), reason.to_owned())]);
            for reason in ["no transport", "no transport", "no mark"] {
                report.skipped(skipped(reason));
            }
            report.skipped(BTreeMap::new());
            report.event("drift.repaired", "tables are gone");
            Report::new(Reconciler::Tproxy).info("started");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let with = |part: &str| text.lines().filter(|line| line.contains(part)).count();
        assert_eq!(with("component=fwmgr reconciler=firewall "), text.lines().count() - 1, "{text}");
        assert_eq!(with("component=tproxymgr reconciler=tproxy started"), 1);
        assert_eq!((with(": busy"), with(": full"), with("recovered")), (2, 1, 1));
        assert_eq!((with("skipped service x: no transport"), with("skipped service x: no mark")), (1, 1));
        assert_eq!((with("no longer skipped service x"), with("drift.repaired: tables are gone")), (1, 1));
    }
}

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

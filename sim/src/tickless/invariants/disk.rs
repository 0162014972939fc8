//! What a crash and a bad page leave of a disk.

use super::super::world::{World, derive};
use crate::sometimes;
use arctic::{
    model::Rng,
    wire::record::{Record, RecordKey},
};
use serde_json::{Value, json};

impl World {
    /// D2: a process died over a transaction; its disk holds all of it, or nothing. Says whether it died over one.
    pub(super) fn check_whole_transaction(&mut self, n: usize) -> bool {
        let Some((before, after)) = self.nodes[n].disk.take_dying() else { return false };
        let is_whole = self.nodes[n].disk.read(|s| s.holds_the_same(&before) || s.holds_the_same(&after));
        if !is_whole {
            self.violate("D2", format!("n{} died over a transaction, and its disk holds half of it", n + 1));
        }
        true
    }

    /// A page of the database of `n` is flipped: one record is another one, and its hash is what it was.
    pub(in super::super) fn flip_page(&mut self, n: usize) {
        let mut rng = Rng::from_seed(derive(self.options.seed, "page", self.steps));
        let held: Vec<RecordKey> = self.nodes[n].disk.read(|s| s.records.keys().cloned().collect());
        if held.is_empty() {
            return;
        }
        let key = held[rng.below(held.len() as u64) as usize].clone();
        self.nodes[n].disk.damage(&key, |record| Record { body: flipped(&record.body), ..record.clone() });
        self.witness.flipped.entry(n).or_default().insert(key);
    }

    /// D3: no process serves what was on a page that was flipped before it started.
    pub(super) fn check_disk_is_sound(&mut self, n: usize) {
        let Some(flipped) = self.witness.flipped.get(&n) else { return };
        sometimes!("a node starts after a page was flipped");
        let disk = &self.nodes[n].disk;
        let is_whole = |key: &&RecordKey| {
            disk.read(|s| s.records.get(*key).is_none_or(|held| held.record.head().is_ok_and(|head| head == held.head)))
        };
        if let Some(key) = flipped.iter().find(|key| !is_whole(key)) {
            let what = format!("n{} serves a damaged {} after its start", n + 1, key.kind);
            self.violate("D3", what);
        }
    }
}

/// Still JSON, and not the same.
fn flipped(body: &Value) -> Value {
    match body {
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.insert("flipped".to_owned(), json!(true));
            Value::Object(fields)
        }
        other => json!([other, "flipped"]),
    }
}

//! A plan in a file (`compose diff --out`): what was wanted, and the digests of what it was made from.

use super::{
    live::{Contact, Live},
    model::ClusterFile,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const FORMAT: &str = "arctic-plan/v1";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    format: String,
    /// Where the license of the file is relative to.
    pub directory: String,
    pub file: ClusterFile,
    pub prune: bool,
    /// By name of the peer.
    contacts: BTreeMap<String, Contact>,
    digests: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum SavedPlanError {
    #[error("not a saved plan: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the plan is of format `{0}`, which this version does not know")]
    Format(String),
}

impl SavedPlan {
    pub fn new(directory: String, file: &ClusterFile, live: &Live, contacts: &[Contact], prune: bool) -> Self {
        Self {
            format: FORMAT.to_owned(),
            directory,
            file: file.clone(),
            prune,
            contacts: by_name(file, contacts),
            digests: live.digests(),
        }
    }

    /// Whether a text is meant to be a saved plan, and not a cluster file.
    pub fn is_one(text: &str) -> bool {
        text.trim_start().starts_with('{') && text.contains("\"arctic-plan/")
    }

    pub fn parse(text: &str) -> Result<Self, SavedPlanError> {
        let plan: SavedPlan = serde_json::from_str(text)?;
        if plan.format == FORMAT { Ok(plan) } else { Err(SavedPlanError::Format(plan.format)) }
    }

    /// What has moved since the plan was made: ids of records and names of peers.
    pub fn moved(&self, live: &Live, contacts: &[Contact]) -> Vec<String> {
        let (records, answers) = (live.digests(), by_name(&self.file, contacts));
        let mut moved = differing(&self.digests, &records);
        moved.extend(differing(&self.contacts, &answers));
        moved
    }
}

fn by_name(file: &ClusterFile, contacts: &[Contact]) -> BTreeMap<String, Contact> {
    file.peers.iter().zip(contacts).map(|(peer, contact)| (peer.name.clone(), *contact)).collect()
}

fn differing<T: PartialEq>(then: &BTreeMap<String, T>, now: &BTreeMap<String, T>) -> Vec<String> {
    let gone_or_changed = then.iter().filter(|(key, value)| now.get(*key) != Some(value)).map(|(key, _)| key);
    let new = now.keys().filter(|key| !then.contains_key(*key));
    gone_or_changed.chain(new).cloned().collect()
}

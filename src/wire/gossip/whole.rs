//! What peers tell each other about all records of one owner (cluster.md §7).

use crate::wire::record::Record;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, sync::Arc};

/// All records of one owner up to a version (cluster.md §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    pub through: u64,
    pub sum: Sum,
}

/// "I hold all of your records up to `through`", as the copy `of` of the owner itself confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    pub of: String,
    pub through: u64,
}

/// The sum, modulo 2^64, of one hash a record: equal sums of one owner's records mean equal records. Hex in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(pub u64);

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let sum = digits.then(|| u64::from_str_radix(&text, 16).ok()).flatten();
        sum.map(Self).ok_or_else(|| D::Error::custom("sum is not of 16 hex digits"))
    }
}

/// What lets a peer that catches up take an owner's old records: the floor they lie under, and up to where the sender
/// is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    pub floor: Arc<Record>,
    pub through: u64,
}

#[derive(Serialize, Deserialize)]
struct BackingText {
    floor: Record,
    through: u64,
}

impl Serialize for Backing {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        BackingText { floor: self.floor.as_ref().clone(), through: self.through }.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Backing {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let BackingText { floor, through } = BackingText::deserialize(d)?;
        Ok(Self { floor: Arc::new(floor), through })
    }
}

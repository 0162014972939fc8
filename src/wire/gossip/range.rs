//! Ranges of a registry as two peers compare them (cluster.md §6): the records whose path begins with some hex digits,
//! summed up as salted short digests. A fresh salt for each comparison lets nobody prepare two states that look alike.

use super::{Malformed, VERSION_MAX, bound};
use crate::wire::record::{RecordHead, RecordKey};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Children of an inner node: one a hex digit.
pub const FANOUT: usize = 16;
/// A range of at most so many records is a leaf; a larger one is split by its next digit.
pub const LEAF_MAX_RECORDS: usize = 16;
/// Hex digits of a whole path.
pub const PATH_DIGITS: usize = 32;
const PATH_BYTES: usize = PATH_DIGITS / 2;
const SHORT_BYTES: usize = 6;
const VERSION_BYTES: usize = 7;
const TAG_BYTES: usize = 3;
const HEAD_BYTES: usize = SHORT_BYTES + VERSION_BYTES + TAG_BYTES;

/// Where a record stands: the first 128 bits of SHA-256 over kind, id and owner, each behind its length (8 bytes,
/// big-endian).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Path(pub [u8; PATH_BYTES]);

impl Path {
    pub fn of(key: &RecordKey) -> Self {
        let mut hasher = Sha256::new();
        for text in [key.kind.as_bytes(), key.id.as_bytes(), key.owner.to_string().as_bytes()] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
        Self(clipped(hasher))
    }

    /// The digit at `depth`, 0 for the first.
    pub fn digit(&self, depth: usize) -> usize {
        let byte = self.0[depth / 2];
        usize::from(if depth.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    }
}

/// The first digits of paths. JSON form: those digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Zero behind the digits.
    path: Path,
    digits: u8,
}

impl Prefix {
    /// A whole registry.
    pub const ROOT: Prefix = Prefix { path: Path([0; PATH_BYTES]), digits: 0 };

    pub fn digits(&self) -> usize {
        usize::from(self.digits)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// None below a whole path, or for a digit above 15.
    pub fn child(&self, digit: usize) -> Option<Prefix> {
        let nibble = u8::try_from(digit).ok().filter(|d| *d < 16)?;
        let mut child = *self;
        let byte = child.path.0.get_mut(self.digits() / 2)?;
        *byte |= if self.digits().is_multiple_of(2) { nibble << 4 } else { nibble };
        child.digits += 1;
        Some(child)
    }

    pub fn holds(&self, path: &Path) -> bool {
        (0..self.digits()).all(|at| path.digit(at) == self.path.digit(at))
    }

    /// Whether `inner` lies in this range, or is it.
    pub fn contains(&self, inner: &Prefix) -> bool {
        self.digits <= inner.digits && self.holds(&inner.path)
    }

    fn parse(text: &str) -> Option<Self> {
        text.chars().try_fold(Self::ROOT, |prefix, c| {
            let digit = c.to_digit(16).filter(|_| !c.is_ascii_uppercase())?;
            prefix.child(digit as usize)
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..self.digits()).try_for_each(|at| write!(f, "{:x}", self.path.digit(at)))
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}*")
    }
}

/// Random for each comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 8]);

impl Salt {
    /// Of a child; zero for an empty one.
    pub fn short(&self, digest: &super::Digest) -> Short {
        if digest.0 == [0; 32] {
            return Short::default();
        }
        let mut hasher = Sha256::new_with_prefix(self.0);
        hasher.update(digest.0);
        Short(clipped(hasher))
    }

    /// What names a record.
    pub fn id(&self, path: &Path) -> Short {
        let mut hasher = Sha256::new_with_prefix(self.0);
        hasher.update(path.0);
        Short(clipped(hasher))
    }

    pub fn head(&self, path: &Path, head: &RecordHead) -> ShortHead {
        let mut hasher = Sha256::new_with_prefix(self.0);
        hasher.update(head.hash);
        ShortHead { id: self.id(path), version: head.version, tag: clipped(hasher) }
    }
}

fn clipped<const N: usize>(hasher: Sha256) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&hasher.finalize()[..N]);
    out
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Short(pub [u8; SHORT_BYTES]);

/// Name, version and content of one record. Heads of one name and version with different tags differ in content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShortHead {
    pub id: Short,
    pub version: u64,
    pub tag: [u8; TAG_BYTES],
}

/// What one side says of a range. JSON form: a text, `b` prefix `:` 16 short digests, `l` prefix `:` heads, `o` prefix,
/// or `w` prefix `:` names; binary parts in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The digests of its sixteen parts.
    Branch(Prefix, Box<[Short; FANOUT]>),
    /// Everything that is held of it.
    Leaf(Prefix, Vec<ShortHead>),
    /// In an answer: not finished, ask again.
    Open(Prefix),
    /// Send these.
    Wants(Prefix, Vec<Short>),
}

impl Part {
    pub fn prefix(&self) -> &Prefix {
        match self {
            Part::Branch(prefix, _) | Part::Leaf(prefix, _) | Part::Open(prefix) | Part::Wants(prefix, _) => prefix,
        }
    }

    pub(super) fn check(&self) -> Result<(), Malformed> {
        match self {
            Part::Leaf(_, heads) => {
                bound(heads.len() <= LEAF_MAX_RECORDS, "a range lists too many heads")?;
                bound(heads.iter().all(|h| h.version <= VERSION_MAX), "a version is too high")
            }
            Part::Wants(_, ids) => bound(ids.len() <= LEAF_MAX_RECORDS, "too many records of a range are wanted"),
            Part::Branch(..) | Part::Open(_) => Ok(()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let kind = text.chars().next().filter(char::is_ascii)?;
        let (prefix, data) = text[1..].split_once(':').unwrap_or((&text[1..], ""));
        let prefix = Prefix::parse(prefix)?;
        let data = BASE64.decode(data).ok()?;
        let short = |bytes: &[u8]| bytes.try_into().ok().map(Short);
        match kind {
            'b' if data.len() == FANOUT * SHORT_BYTES => {
                let mut all = [Short::default(); FANOUT];
                for (to, from) in all.iter_mut().zip(data.chunks_exact(SHORT_BYTES)) {
                    *to = short(from)?;
                }
                Some(Part::Branch(prefix, Box::new(all)))
            }
            'l' if data.len().is_multiple_of(HEAD_BYTES) => data
                .chunks_exact(HEAD_BYTES)
                .map(read_head)
                .collect::<Option<_>>()
                .map(|heads| Part::Leaf(prefix, heads)),
            'w' if data.len().is_multiple_of(SHORT_BYTES) => {
                data.chunks_exact(SHORT_BYTES).map(short).collect::<Option<_>>().map(|ids| Part::Wants(prefix, ids))
            }
            'o' if data.is_empty() => Some(Part::Open(prefix)),
            _ => None,
        }
    }
}

fn read_head(bytes: &[u8]) -> Option<ShortHead> {
    let (id, rest) = bytes.split_at_checked(SHORT_BYTES)?;
    let (version, tag) = rest.split_at_checked(VERSION_BYTES)?;
    let version = version.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Some(ShortHead { id: Short(id.try_into().ok()?), version, tag: tag.try_into().ok()? })
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, data): (char, Vec<u8>) = match self {
            Part::Branch(_, all) => ('b', all.iter().flat_map(|short| short.0).collect()),
            Part::Leaf(_, heads) => ('l', heads.iter().flat_map(write_head).collect()),
            Part::Wants(_, ids) => ('w', ids.iter().flat_map(|id| id.0).collect()),
            Part::Open(prefix) => return write!(f, "o{prefix}"),
        };
        write!(f, "{kind}{}:{}", self.prefix(), BASE64.encode(data))
    }
}

fn write_head(head: &ShortHead) -> [u8; HEAD_BYTES] {
    let mut out = [0; HEAD_BYTES];
    out[..SHORT_BYTES].copy_from_slice(&head.id.0);
    out[SHORT_BYTES..SHORT_BYTES + VERSION_BYTES].copy_from_slice(&head.version.to_be_bytes()[8 - VERSION_BYTES..]);
    out[SHORT_BYTES + VERSION_BYTES..].copy_from_slice(&head.tag);
    out
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        Part::parse(&text).ok_or_else(|| D::Error::custom("not a part of a comparison"))
    }
}

impl Serialize for Salt {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Salt {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        let bytes = BASE64.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| D::Error::custom("salt is not base64 of 8 bytes"))
    }
}

/// Sorted, and none inside another: no record is in two of them.
pub(super) fn check_disjoint(parts: &[Part]) -> Result<(), Malformed> {
    let apart = |pair: &[Part]| pair[0].prefix() < pair[1].prefix() && !pair[0].prefix().contains(pair[1].prefix());
    bound(parts.windows(2).all(apart), "ranges are not in order or overlap")
}

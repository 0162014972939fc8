//! A Merkle radix trie over the paths of records (cluster.md §6). Its shape follows from its contents alone: a range of
//! up to [`LEAF_MAX_RECORDS`] is a leaf, a larger one splits by its next digit. So equal contents give equal digests, in
//! whatever order they came, and one change costs the digests on one path.

use super::index::Entry;
use crate::wire::{
    gossip::{
        Digest,
        range::{FANOUT, LEAF_MAX_RECORDS, PATH_DIGITS, Path, Prefix},
    },
    record::RecordKey,
};
use sha2::{Digest as _, Sha256};

/// Keeps a digest of a leaf from being that of an inner node.
const LEAF_MARK: [u8; 1] = [0];
const INNER_MARK: [u8; 1] = [1];
/// Of an empty range.
const EMPTY: Digest = Digest([0; 32]);

#[derive(Debug, Clone, Default)]
pub(super) struct Trie {
    root: Node,
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Leaf),
    Inner(Box<Inner>),
}

#[derive(Debug, Clone, Default)]
struct Leaf {
    /// By path, then key.
    entries: Vec<Entry>,
    /// None after a change.
    digest: Option<Digest>,
}

#[derive(Debug, Clone)]
struct Inner {
    children: [Node; FANOUT],
    count: usize,
    digest: Option<Digest>,
}

/// What stands at a prefix.
pub(super) enum View<'a> {
    /// The digests of its sixteen parts.
    Branch(Box<[Digest; FANOUT]>),
    Leaf(&'a [Entry]),
}

impl Default for Node {
    fn default() -> Self {
        Node::Leaf(Leaf::default())
    }
}

impl Trie {
    pub fn get(&self, key: &RecordKey) -> Option<&Entry> {
        let path = Path::of(key);
        let mut node = &self.root;
        for depth in 0.. {
            match node {
                Node::Inner(inner) => node = &inner.children[path.digit(depth)],
                Node::Leaf(leaf) => return leaf.position(&path, key).ok().map(|at| &leaf.entries[at]),
            }
        }
        None
    }

    /// Puts `entry` in the place of one with its key, which is given back.
    pub fn insert(&mut self, entry: Entry) -> Option<Entry> {
        self.root.insert(entry, 0)
    }

    pub fn remove(&mut self, key: &RecordKey) -> Option<Entry> {
        self.root.remove(&Path::of(key), key, 0)
    }

    /// Computes the digests that changes have left open.
    pub fn settle(&mut self) -> Digest {
        self.root.settle()
    }

    pub fn digest(&self) -> Digest {
        self.root.digest()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        Iter { stack: vec![&self.root], rest: [].iter() }
    }

    /// Everything under `prefix`, by path.
    pub fn under(&self, prefix: &Prefix) -> impl Iterator<Item = &Entry> {
        let node = self.node(prefix);
        let prefix = *prefix;
        Iter { stack: vec![node], rest: [].iter() }.filter(move |entry| prefix.holds(&entry.path))
    }

    pub fn view(&self, prefix: &Prefix) -> View<'_> {
        match self.node(prefix) {
            Node::Inner(inner) => View::Branch(Box::new(std::array::from_fn(|i| inner.children[i].digest()))),
            Node::Leaf(leaf) => {
                let from = leaf.entries.partition_point(|e| e.path < *prefix.path());
                let held = leaf.entries[from..].iter().take_while(|e| prefix.holds(&e.path)).count();
                View::Leaf(&leaf.entries[from..from + held])
            }
        }
    }

    /// The leaf that `path` lies in.
    pub fn leaf_prefix(&self, path: &Path) -> Prefix {
        let (mut node, mut prefix) = (&self.root, Prefix::ROOT);
        while let Node::Inner(inner) = node {
            let digit = path.digit(prefix.digits());
            let Some(child) = prefix.child(digit) else { break };
            (node, prefix) = (&inner.children[digit], child);
        }
        prefix
    }

    /// The node at `prefix`, or the leaf that it lies in.
    fn node(&self, prefix: &Prefix) -> &Node {
        let mut node = &self.root;
        for depth in 0..prefix.digits() {
            match node {
                Node::Inner(inner) => node = &inner.children[prefix.path().digit(depth)],
                Node::Leaf(_) => break,
            }
        }
        node
    }
}

impl Node {
    fn count(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.entries.len(),
            Node::Inner(inner) => inner.count,
        }
    }

    fn insert(&mut self, entry: Entry, depth: usize) -> Option<Entry> {
        match self {
            Node::Leaf(leaf) => {
                leaf.digest = None;
                let replaced = leaf.insert(entry);
                if leaf.entries.len() > LEAF_MAX_RECORDS && depth < PATH_DIGITS {
                    *self = Node::split(std::mem::take(&mut leaf.entries), depth);
                }
                replaced
            }
            Node::Inner(inner) => {
                inner.digest = None;
                let replaced = inner.children[entry.path.digit(depth)].insert(entry, depth + 1);
                inner.count += usize::from(replaced.is_none());
                replaced
            }
        }
    }

    fn split(entries: Vec<Entry>, depth: usize) -> Node {
        let count = entries.len();
        let mut children: [Node; FANOUT] = std::array::from_fn(|_| Node::default());
        for entry in entries {
            children[entry.path.digit(depth)].insert(entry, depth + 1);
        }
        Node::Inner(Box::new(Inner { children, count, digest: None }))
    }

    fn remove(&mut self, path: &Path, key: &RecordKey, depth: usize) -> Option<Entry> {
        match self {
            Node::Leaf(leaf) => {
                let at = leaf.position(path, key).ok()?;
                leaf.digest = None;
                Some(leaf.entries.remove(at))
            }
            Node::Inner(inner) => {
                let removed = inner.children[path.digit(depth)].remove(path, key, depth + 1)?;
                inner.digest = None;
                inner.count -= 1;
                if inner.count <= LEAF_MAX_RECORDS {
                    let entries = Iter { stack: vec![self], rest: [].iter() }.cloned().collect();
                    *self = Node::Leaf(Leaf { entries, digest: None });
                }
                Some(removed)
            }
        }
    }

    fn settle(&mut self) -> Digest {
        match self {
            Node::Leaf(leaf) => *leaf.digest.get_or_insert_with(|| leaf_digest(&leaf.entries)),
            Node::Inner(inner) => {
                if let Some(digest) = inner.digest {
                    return digest;
                }
                let digest = inner_digest(inner.children.iter_mut().map(Node::settle));
                inner.digest = Some(digest);
                digest
            }
        }
    }

    fn digest(&self) -> Digest {
        match self {
            Node::Leaf(leaf) => leaf.digest.unwrap_or_else(|| leaf_digest(&leaf.entries)),
            Node::Inner(inner) => inner.digest.unwrap_or_else(|| inner_digest(inner.children.iter().map(Node::digest))),
        }
    }
}

impl Leaf {
    fn position(&self, path: &Path, key: &RecordKey) -> Result<usize, usize> {
        self.entries.binary_search_by(|e| (&e.path, &e.record.key).cmp(&(path, key)))
    }

    fn insert(&mut self, entry: Entry) -> Option<Entry> {
        match self.position(&entry.path, &entry.record.key) {
            Ok(at) => Some(std::mem::replace(&mut self.entries[at], entry)),
            Err(at) => {
                // Thousands of machines in one simulation: no spare room in small lists.
                self.entries.reserve_exact(1);
                self.entries.insert(at, entry);
                None
            }
        }
    }
}

fn leaf_digest(entries: &[Entry]) -> Digest {
    if entries.is_empty() {
        return EMPTY;
    }
    let mut hasher = Sha256::new_with_prefix(LEAF_MARK);
    for entry in entries {
        hasher.update(entry.path.0);
        hasher.update(entry.head.version.to_be_bytes());
        hasher.update(entry.head.hash);
    }
    Digest(hasher.finalize().into())
}

fn inner_digest(children: impl Iterator<Item = Digest>) -> Digest {
    let mut hasher = Sha256::new_with_prefix(INNER_MARK);
    children.for_each(|child| hasher.update(child.0));
    Digest(hasher.finalize().into())
}

struct Iter<'a> {
    stack: Vec<&'a Node>,
    rest: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        loop {
            if let Some(entry) = self.rest.next() {
                return Some(entry);
            }
            match self.stack.pop()? {
                Node::Leaf(leaf) => self.rest = leaf.entries.iter(),
                Node::Inner(inner) => self.stack.extend(inner.children.iter().rev().filter(|child| child.count() > 0)),
            }
        }
    }
}

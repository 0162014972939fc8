//! Which comment belongs to what: the entry below it, the one left of it, or the end of a collection.

use super::yaml::{Collection, Entry, Node};

/// A comment as it was written.
pub struct Comment {
    /// Byte offset of its `#`.
    pub start: usize,
    /// From 1.
    pub line: usize,
    /// Columns before it.
    pub column: usize,
    pub text: String,
}

/// Hangs every comment into the tree, except those on top of the file that a blank line sets apart: they are returned.
pub fn attach(text: &str, root: &mut Node, mut comments: Vec<Comment>) -> Vec<String> {
    comments.sort_by_key(|c| c.start);
    let lines: Vec<&str> = text.lines().collect();
    let first_line = root
        .collection()
        .and_then(|c| c.entries.first())
        .map_or(root.place.line, |e| e.key.as_ref().map_or(e.value.place.line, |key| key.place.line));
    let above_all = &lines[..first_line.saturating_sub(1).min(lines.len())];
    let last_blank = above_all.iter().rposition(|line| line.trim().is_empty());
    let mut head = Vec::new();
    for comment in comments {
        let before = lines.get(comment.line - 1).map_or("", |line| prefix(line, comment.column)).trim();
        let own_line = before.is_empty();
        if own_line && last_blank.is_some_and(|blank| comment.line <= blank) {
            head.push(comment.text);
        } else if own_line {
            own(root, comment.start, comment.column, comment.text);
        } else if before.bytes().all(|b| b == b'-') {
            own(root, comment.start, 0, comment.text);
        } else {
            right(root, comment.start, comment.text);
        }
    }
    head
}

fn prefix(line: &str, chars: usize) -> &str {
    line.char_indices().nth(chars).map_or(line, |(at, _)| &line[..at])
}

/// A comment on a line of its own goes above the next entry, or to the end of the collection it is indented into.
fn own(node: &mut Node, start: usize, column: usize, text: String) {
    let Some(collection) = node.collection_mut() else { return };
    let next = collection.entries.iter().position(|e| e.start() > start);
    let previous = next.unwrap_or(collection.entries.len()).checked_sub(1);
    let outer = next.map(|_| collection.indent);
    if let Some(entry) = previous.and_then(|p| collection.entries.get_mut(p))
        && is_inside(&entry.value, start, column, outer)
    {
        return own(&mut entry.value, start, column, text);
    }
    match next {
        Some(next) => collection.entries[next].above.push(text),
        None => collection.foot.push(text),
    }
}

/// Whether a comment lies in this value. `outer` is the indent of the collection around it, if that goes on.
fn is_inside(value: &Node, start: usize, column: usize, outer: Option<usize>) -> bool {
    let Some(inner) = value.collection() else { return false };
    if inner.flow {
        return value.start < start && start < value.end;
    }
    let goes_on = inner.entries.iter().any(|e| e.start() > start);
    goes_on || (column >= inner.indent && outer.is_none_or(|outer| column > outer))
}

/// A comment behind something belongs to the last entry that began before it and still stands in the same line.
fn right(node: &mut Node, start: usize, text: String) {
    let Some(collection) = node.collection_mut() else { return };
    let Some(last) = collection.entries.iter().rposition(|e| e.start() < start) else {
        return above_first(collection, text);
    };
    let entry = &mut collection.entries[last];
    if goes_deeper(entry, start) {
        return right(&mut entry.value, start, text);
    }
    match &entry.right {
        None => entry.right = Some(text),
        Some(_) => entry.above.push(text),
    }
}

fn goes_deeper(entry: &Entry, start: usize) -> bool {
    match entry.value.collection() {
        Some(inner) if inner.flow => entry.value.start < start && start < entry.value.end,
        Some(inner) => inner.entries.iter().any(|e| e.start() < start),
        None => false,
    }
}

fn above_first(collection: &mut Collection, text: String) {
    match collection.entries.first_mut() {
        Some(first) => first.above.push(text),
        None => collection.foot.push(text),
    }
}

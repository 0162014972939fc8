//! The canonical order and layout of a cluster file, with its comments (`compose fmt`).
//!
//! Keys come in the order of [`Table::fields`], unknown ones after them as written. A file with anchors keeps its own
//! order, because an alias must follow its anchor. Small maps and lists of scalars stand on one line if they fit and
//! hold no comments.

use super::{
    fields::{Kind, Table},
    yaml::{Collection, Content, Document, Entry, Node, Scalar},
};
use std::fmt::Write;

const WIDTH_MAX_CHARS: usize = 100;
const STEP: usize = 2;

/// What stands at a place of the tree, as far as the format knows it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Map(Table),
    List(Table),
    Other,
}

/// The file in canonical form. Formatting the result again changes nothing.
pub fn format(document: &Document) -> String {
    let mut page = Page { out: String::new(), keep_order: document.root.has_anchors() };
    for comment in &document.head {
        page.line(0, comment);
    }
    if !document.head.is_empty() {
        page.out.push('\n');
    }
    match &document.root.content {
        Content::Map(root) if !root.entries.is_empty() => page.map(0, root, Role::Map(Table::Root), 0),
        _ => {
            let text = page.one_line(&document.root, Role::Other);
            page.line(0, &text);
            page.foot(0, &document.root);
        }
    }
    page.out
}

impl Role {
    fn of_value(self, key: &str) -> Role {
        let Role::Map(table) = self else { return Role::Other };
        match table.field(key).map(|f| f.kind) {
            Some(Kind::One(inner)) => Role::Map(inner),
            Some(Kind::Many(inner)) => Role::List(inner),
            _ => Role::Other,
        }
    }
    fn of_item(self) -> Role {
        match self {
            Role::List(table) => Role::Map(table),
            _ => Role::Other,
        }
    }
    fn fits_one_line(self, node: &Node) -> bool {
        let scalars = |c: &Collection| c.entries.iter().all(|e| matches!(e.value.content, Content::Scalar(_)));
        match (self, &node.content) {
            (Role::Map(Table::Peer | Table::Interface | Table::Qos | Table::Route), Content::Map(_)) => true,
            (Role::Other, Content::List(c)) => scalars(c),
            (Role::Other, Content::Map(c)) => c.flow && scalars(c),
            _ => false,
        }
    }
}

struct Page {
    out: String,
    keep_order: bool,
}

impl Page {
    fn line(&mut self, indent: usize, text: &str) {
        let _ = writeln!(self.out, "{:indent$}{text}", "");
    }

    fn comments(&mut self, indent: usize, comments: &[String]) {
        for comment in comments {
            self.line(indent, comment);
        }
    }

    /// The comments at the end of an empty collection have no line of their own inside of it.
    fn foot(&mut self, indent: usize, node: &Node) {
        if let Some(collection) = node.collection() {
            self.comments(indent, &collection.foot);
        }
    }

    /// The entries of a block map, the first `after` of them already begun on the line of a dash.
    fn map(&mut self, indent: usize, map: &Collection, role: Role, begun: usize) {
        for (i, entry) in self.ordered(map, role).into_iter().enumerate() {
            let inner = role.of_value(entry.key_text());
            if i >= begun {
                let apart = role == Role::Map(Table::Root) && i > 0 && self.is_block(&entry.value, inner, indent);
                if apart {
                    self.out.push('\n');
                }
                self.above(indent, entry);
                let _ = write!(self.out, "{:indent$}", "");
            }
            let key = entry.key.as_ref().map(|k| scalar_text(&k.scalar, false)).unwrap_or_default();
            let _ = write!(self.out, "{key}:");
            self.value(indent, entry, inner, key.chars().count() + 1);
        }
        self.comments(indent, &map.foot);
    }

    /// As [`Self::map`], for the items of a block list.
    fn list(&mut self, indent: usize, list: &Collection, role: Role, begun: usize) {
        let inner = role.of_item();
        for (i, entry) in list.entries.iter().enumerate() {
            if i > 0 && role == Role::List(Table::Service) {
                self.out.push('\n');
            }
            let block = self.is_item_block(entry, inner, indent + 1);
            if i >= begun {
                self.above(indent, entry);
                self.leading(indent, entry, inner, block);
                let _ = write!(self.out, "{:indent$}", "");
            }
            self.out.push('-');
            match &entry.value.content {
                Content::Map(map) if block => {
                    self.out.push(' ');
                    self.map(indent + STEP, map, inner, 1);
                }
                Content::List(list) if block => {
                    self.out.push(' ');
                    self.list(indent + STEP, list, inner, 1);
                }
                _ if entry.value.anchor.is_none() => self.rest_of_line(entry, inner),
                _ => self.value(indent, entry, inner, 1),
            }
        }
        self.comments(indent, &list.foot);
    }

    /// The comments of what begins on the line of a dash go above that line.
    fn leading(&mut self, indent: usize, entry: &Entry, role: Role, block: bool) {
        let (None, Some(collection)) = (&entry.value.anchor, entry.value.collection()) else { return };
        if block {
            self.comments(indent, entry.right.as_slice());
        }
        let ordered = self.ordered(collection, role);
        let Some(first) = ordered.first() else { return };
        self.above(indent, first);
        if first.key.is_none() {
            let inner = role.of_item();
            let block = self.is_item_block(first, inner, indent + STEP + 1);
            self.leading(indent, first, inner, block);
        }
    }

    fn above(&mut self, indent: usize, entry: &Entry) {
        self.comments(indent, &entry.above);
        if entry.value.collection().is_some_and(|c| c.entries.is_empty()) {
            self.foot(indent, &entry.value);
        }
    }

    /// A value on the line of its dash.
    fn rest_of_line(&mut self, entry: &Entry, role: Role) {
        let text = self.one_line(&entry.value, role);
        let gap = if text.is_empty() { "" } else { " " };
        let right = entry.right.as_ref().map(|right| format!("  {right}")).unwrap_or_default();
        let _ = writeln!(self.out, "{gap}{text}{right}");
    }

    /// What follows a key or a dash, up to and with the end of its line, and the lines below it.
    fn value(&mut self, indent: usize, entry: &Entry, role: Role, before: usize) {
        let node = &entry.value;
        if let Some(anchor) = &node.anchor {
            let _ = write!(self.out, " &{anchor}");
        }
        let block = self.is_block(node, role, indent + before);
        if !block {
            let text = self.one_line(node, role);
            let gap = if text.is_empty() { "" } else { " " };
            let _ = write!(self.out, "{gap}{text}");
        }
        if let Some(right) = &entry.right {
            let _ = write!(self.out, "  {right}");
        }
        self.out.push('\n');
        match &node.content {
            Content::Map(map) if block => self.map(indent + STEP, map, role, 0),
            Content::List(list) if block => self.list(indent + STEP, list, role, 0),
            _ => {}
        }
    }

    /// Whether a value takes lines of its own.
    /// `before` counts the columns that are used already.
    fn is_block(&self, node: &Node, role: Role, before: usize) -> bool {
        let Some(collection) = node.collection() else { return false };
        if collection.entries.is_empty() {
            return false;
        }
        !self.may_be_one_line(node, collection, role, node.has_comments())
            || before + 1 + self.one_line(node, role).chars().count() > WIDTH_MAX_CHARS
    }

    fn may_be_one_line(&self, node: &Node, collection: &Collection, role: Role, has_comments: bool) -> bool {
        role.fits_one_line(node) && !has_comments && !collection.entries.iter().any(|e| e.value.has_anchors())
    }

    /// As [`Self::is_block`], for what begins on the line of a dash: its leading comments move above that line, so they
    /// do not count. A value with an anchor begins on a line of its own.
    fn is_item_block(&self, entry: &Entry, role: Role, before: usize) -> bool {
        let node = &entry.value;
        let Some(collection) = node.collection().filter(|c| !c.entries.is_empty()) else { return false };
        if node.anchor.is_some() {
            return false;
        }
        let has_comments = self.has_comments_but_leading(collection, role);
        let width = before + 1 + self.one_line(node, role).chars().count();
        !self.may_be_one_line(node, collection, role, has_comments) || width > WIDTH_MAX_CHARS
    }

    fn has_comments_but_leading(&self, collection: &Collection, role: Role) -> bool {
        let counts = |(i, e): (usize, &&Entry)| {
            let inner = match (i, e.key.is_none(), e.value.collection()) {
                (0, true, Some(c)) => self.has_comments_but_leading(c, role.of_item()),
                _ => e.value.has_comments(),
            };
            (i > 0 && !e.above.is_empty()) || e.right.is_some() || inner
        };
        !collection.foot.is_empty() || self.ordered(collection, role).iter().enumerate().any(counts)
    }

    fn one_line(&self, node: &Node, role: Role) -> String {
        match &node.content {
            Content::Scalar(scalar) => scalar_text(scalar, false),
            Content::Alias(name, _) => format!("*{name}"),
            Content::List(list) => format!("[{}]", self.joined(list, role)),
            Content::Map(map) if map.entries.is_empty() => "{}".to_owned(),
            Content::Map(map) => format!("{{ {} }}", self.joined(map, role)),
        }
    }

    fn joined(&self, collection: &Collection, role: Role) -> String {
        let one = |e: &&Entry| {
            let inner = if e.key.is_some() { role.of_value(e.key_text()) } else { role.of_item() };
            let value = match &e.value.content {
                Content::Scalar(scalar) => scalar_text(scalar, true),
                _ => self.one_line(&e.value, inner),
            };
            match &e.key {
                Some(key) => format!("{}: {value}", scalar_text(&key.scalar, true)),
                None => value,
            }
        };
        self.ordered(collection, role).iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn ordered<'a>(&self, map: &'a Collection, role: Role) -> Vec<&'a Entry> {
        let mut entries: Vec<&Entry> = map.entries.iter().collect();
        if let (Role::Map(table), false) = (role, self.keep_order) {
            let place = |e: &&Entry| table.fields().iter().position(|f| f.name == e.key_text()).unwrap_or(usize::MAX);
            entries.sort_by_key(place);
        }
        entries
    }
}

/// A scalar as it is written: plain where that reads back as the same, else in double quotes.
pub fn scalar_text(scalar: &Scalar, in_flow: bool) -> String {
    let text = &scalar.text;
    if !scalar.plain {
        return if is_plain_text(text) { text.clone() } else { quoted(text) };
    }
    let breaks = |c: char| c.is_control() || (in_flow && matches!(c, ',' | '[' | ']' | '{' | '}'));
    match text.as_str() {
        "" if in_flow => "null".to_owned(),
        text if text.chars().any(breaks) => quoted(text),
        text => text.to_owned(),
    }
}

/// A text as a scalar that no reader of any YAML version takes for something else.
pub fn text_scalar(text: &str) -> String {
    scalar_text(&Scalar { text: text.to_owned(), plain: false }, false)
}

fn is_plain_text(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_'));
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./:@+-".contains(&b));
    let numeric = |b: u8| b.is_ascii_hexdigit() || b"._:xXoOTZ+-".contains(&b);
    let like_number = text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(numeric);
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    first && rest && !text.ends_with(':') && !like_number && !words.contains(&text.to_ascii_lowercase().as_str())
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

//! YAML 1.2 as a tree that knows where everything was written and which comment belongs to what.

use super::{
    comments::{self, Comment},
    diagnostic::{Diagnostic, Place},
};
use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};
use std::{collections::BTreeMap, rc::Rc};

/// Comments of one file.
const COMMENTS_MAX: usize = 100_000;
const DEPTH_MAX: usize = 32;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    pub place: Place,
    /// Byte offsets in the text. The end of a block collection is not known exactly.
    pub start: usize,
    pub end: usize,
    pub anchor: Option<String>,
    pub content: Content,
}

#[derive(Debug, Clone)]
pub enum Content {
    Scalar(Scalar),
    List(Collection),
    Map(Collection),
    /// The name of an anchor and the value it stands for.
    Alias(String, Rc<Node>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar {
    pub text: String,
    /// Quoted scalars and blocks are texts; plain ones may be numbers, booleans or nothing.
    pub plain: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Collection {
    pub entries: Vec<Entry>,
    pub flow: bool,
    /// Columns before its entries, or before the dashes of a list.
    pub indent: usize,
    /// Comments after the last entry.
    pub foot: Vec<String>,
}

/// An item of a list, or a key of a map with its value. Comments are kept from their `#` on.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: Option<Key>,
    pub value: Node,
    pub above: Vec<String>,
    pub right: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Key {
    pub scalar: Scalar,
    pub place: Place,
    pub start: usize,
}

impl Entry {
    pub fn start(&self) -> usize {
        self.key.as_ref().map_or(self.value.start, |key| key.start)
    }
    pub fn key_text(&self) -> &str {
        self.key.as_ref().map_or("", |key| &key.scalar.text)
    }
}

impl Node {
    pub fn collection(&self) -> Option<&Collection> {
        match &self.content {
            Content::List(c) | Content::Map(c) => Some(c),
            Content::Scalar(_) | Content::Alias(..) => None,
        }
    }
    pub fn collection_mut(&mut self) -> Option<&mut Collection> {
        match &mut self.content {
            Content::List(c) | Content::Map(c) => Some(c),
            Content::Scalar(_) | Content::Alias(..) => None,
        }
    }
    /// The value itself, or what its alias stands for.
    pub fn resolved(&self) -> &Node {
        match &self.content {
            Content::Alias(_, target) => target.resolved(),
            _ => self,
        }
    }
    /// Whether anything in it has or uses an anchor.
    pub fn has_anchors(&self) -> bool {
        let inside = || self.collection().is_some_and(|c| c.entries.iter().any(|e| e.value.has_anchors()));
        self.anchor.is_some() || matches!(self.content, Content::Alias(..)) || inside()
    }
    pub fn has_comments(&self) -> bool {
        let of = |e: &Entry| !e.above.is_empty() || e.right.is_some() || e.value.has_comments();
        self.collection().is_some_and(|c| !c.foot.is_empty() || c.entries.iter().any(of))
    }
}

/// A file: comments on top of it, apart from the rest by a blank line, and its one value.
#[derive(Debug)]
pub struct Document {
    pub head: Vec<String>,
    pub root: Node,
}

/// Reads one document. Duplicate keys, custom tags, directives and keys that are no scalars are refused.
pub fn parse(text: &str) -> Result<Document, Diagnostic> {
    let mut builder = Builder::new(text);
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_anchor_events: true,
        max_buffered_comment_events: COMMENTS_MAX,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|e| {
            let place = Place { line: e.marker().line(), column: e.marker().col() + 1, width: 1 };
            Diagnostic::error(place, format!("not valid YAML: {}", e.info()))
        })?;
        builder.take(event, span)?;
    }
    let nothing = || Diagnostic::error(Place { line: 1, column: 1, width: 1 }, "the file is empty");
    let mut root = builder.root.take().ok_or_else(nothing)?;
    let head = comments::attach(text, &mut root, builder.comments);
    Ok(Document { head, root })
}

/// A collection that is still open.
struct Open {
    node: Node,
    anchor_id: usize,
    is_map: bool,
    collection: Collection,
    key: Option<Key>,
}

struct Builder<'t> {
    text: &'t str,
    stack: Vec<Open>,
    root: Option<Node>,
    anchors: BTreeMap<usize, Rc<Node>>,
    comments: Vec<Comment>,
    documents: usize,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, stack: Vec::new(), root: None, anchors: BTreeMap::new(), comments: Vec::new(), documents: 0 }
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Diagnostic> {
        let place = place_of(&span);
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Diagnostic::error(place, "a cluster file is one YAML document"));
                }
            }
            Event::Comment(..) => self.comments.extend(self.comment(&span)),
            Event::Scalar(text, style, anchor_id, tag) => {
                refuse_tag(tag.is_some(), place)?;
                let scalar = Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                self.close(node(&span, Content::Scalar(scalar)), anchor_id)?;
            }
            Event::SequenceStart(style, anchor_id, tag) | Event::MappingStart(style, anchor_id, tag)
                if tag.is_some() =>
            {
                let _ = (style, anchor_id);
                refuse_tag(true, place)?;
            }
            Event::SequenceStart(style, anchor_id, _) => self.open(&span, style, anchor_id, false)?,
            Event::MappingStart(style, anchor_id, _) => self.open(&span, style, anchor_id, true)?,
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.stack.pop() else { return Ok(()) };
                let end = offset(self.text, span.end.byte_offset(), span.end.index());
                let content = if open.is_map { Content::Map(open.collection) } else { Content::List(open.collection) };
                self.close(Node { end, content, ..open.node }, open.anchor_id)?;
            }
            Event::Anchor(id, name) => self.name_anchor(id, &name),
            Event::Alias(id) => {
                let Some(target) = self.anchors.get(&id).cloned() else {
                    return Err(Diagnostic::error(place, "this alias stands inside of what it refers to"));
                };
                let name = target.anchor.clone().unwrap_or_default();
                self.close(node(&span, Content::Alias(name, target)), 0)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn comment(&self, span: &Span) -> Option<Comment> {
        let start = offset(self.text, span.start.byte_offset(), span.start.index());
        let text = self.text.get(start..)?.lines().next()?.trim_end().to_owned();
        Some(Comment { start, line: span.start.line(), column: span.start.col(), text })
    }

    fn open(&mut self, span: &Span, style: StructureStyle, anchor_id: usize, is_map: bool) -> Result<(), Diagnostic> {
        self.refuse_key_collection(span)?;
        let flow = style == StructureStyle::Flow;
        let collection = Collection { flow, indent: span.start.col(), ..Collection::default() };
        let node = node(span, Content::List(Collection::default()));
        self.stack.push(Open { node, anchor_id, is_map, collection, key: None });
        Ok(())
    }

    fn refuse_key_collection(&self, span: &Span) -> Result<(), Diagnostic> {
        match self.stack.last() {
            Some(open) if open.is_map && open.key.is_none() => {
                Err(Diagnostic::error(place_of(span), "a key is a text"))
            }
            _ => Ok(()),
        }
    }

    /// The anchor of a scalar comes right after it, that of a collection before its entries.
    fn name_anchor(&mut self, id: usize, name: &str) {
        if let Some(open) = self.stack.iter_mut().find(|open| open.anchor_id == id) {
            open.node.anchor = Some(name.to_owned());
            return;
        }
        let last = match self.stack.last_mut() {
            Some(open) => open.collection.entries.last_mut().map(|e| &mut e.value),
            None => self.root.as_mut(),
        };
        if let Some(node) = last {
            node.anchor = Some(name.to_owned());
            self.anchors.insert(id, Rc::new(node.clone()));
        }
    }

    /// Puts a finished value where it belongs.
    fn close(&mut self, node: Node, anchor_id: usize) -> Result<(), Diagnostic> {
        if anchor_id > 0 {
            self.anchors.insert(anchor_id, Rc::new(node.clone()));
        }
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        if !open.is_map {
            open.collection.entries.push(Entry { key: None, value: node, above: Vec::new(), right: None });
            return Ok(());
        }
        match open.key.take() {
            None => open.key = Some(new_key(node, &open.collection.entries)?),
            key => open.collection.entries.push(Entry { key, value: node, above: Vec::new(), right: None }),
        }
        Ok(())
    }
}

fn new_key(node: Node, before: &[Entry]) -> Result<Key, Diagnostic> {
    let Content::Scalar(scalar) = node.content else {
        return Err(Diagnostic::error(node.place, "a key is a text"));
    };
    if let Some(first) = before.iter().filter_map(|e| e.key.as_ref()).find(|k| k.scalar.text == scalar.text) {
        let text = format!("duplicate key `{}`", scalar.text);
        let first = format!("the first one is in line {}", first.place.line);
        return Err(Diagnostic::error(node.place, text).suggest(Some(first)));
    }
    Ok(Key { scalar, place: node.place, start: node.start })
}

fn refuse_tag(tagged: bool, place: Place) -> Result<(), Diagnostic> {
    if tagged { Err(Diagnostic::error(place, "tags are not allowed in a cluster file")) } else { Ok(()) }
}

fn node(span: &Span, content: Content) -> Node {
    let start = span.start.byte_offset().unwrap_or(span.start.index());
    let end = span.end.byte_offset().unwrap_or(span.end.index());
    Node { place: place_of(span), start, end, anchor: None, content }
}

fn offset(text: &str, bytes: Option<usize>, chars: usize) -> usize {
    bytes.unwrap_or(chars).min(text.len())
}

fn place_of(span: &Span) -> Place {
    let one_line = span.start.line() == span.end.line();
    let width = if one_line { span.end.col().saturating_sub(span.start.col()) } else { 1 };
    Place { line: span.start.line(), column: span.start.col() + 1, width: width.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_keys_values_and_lists_are_exact() {
        let doc = parse("peers:\n  - name: syd\n    endpoints: [a, \"b\"]\n").unwrap();
        let root = doc.root.collection().unwrap();
        assert_eq!(root.entries[0].key.as_ref().unwrap().place, Place { line: 1, column: 1, width: 5 });
        let peers = root.entries[0].value.collection().unwrap();
        assert_eq!((peers.indent, peers.flow), (2, false));
        let peer = peers.entries[0].value.collection().unwrap();
        assert_eq!((peer.indent, peer.flow), (4, false));
        assert_eq!(peer.entries[0].value.place, Place { line: 2, column: 11, width: 3 });
        let endpoints = &peer.entries[1].value;
        assert_eq!((endpoints.place.line, endpoints.place.column), (3, 16));
        assert!(endpoints.collection().unwrap().flow);
    }

    #[test]
    fn duplicate_keys_tags_and_second_documents_are_named_with_their_place() {
        let wrong = |text: &str| parse(text).err().map(|d| (d.place.line, d.place.column, d.message)).unwrap();
        assert_eq!(wrong("a: 1\nb: 2\na: 3\n"), (3, 1, "duplicate key `a`".to_owned()));
        assert_eq!(wrong("a: !x 1\n").2, "tags are not allowed in a cluster file");
        assert_eq!(wrong("a: !x [1]\n").2, "tags are not allowed in a cluster file");
        assert_eq!(wrong("a: 1\n---\nb: 1\n").2, "a cluster file is one YAML document");
        assert_eq!(wrong("? [a]\n: 1\n").2, "a key is a text");
        assert_eq!(wrong("").2, "the file is empty");
        let (line, column, text) = wrong("a: [1\nb: 2\n");
        assert!(line >= 1 && column >= 1 && text.starts_with("not valid YAML: "), "{line}:{column} {text}");
        assert!(parse(&"[".repeat(100)).is_err());
    }

    #[test]
    fn aliases_stand_for_what_was_anchored_before() {
        let doc = parse("a: &x {k: 1}\nb: *x\nc: &y 2\nd: *y\n").unwrap();
        let root = doc.root.collection().unwrap();
        assert_eq!(root.entries[1].value.resolved().collection().unwrap().entries[0].key_text(), "k");
        assert!(matches!(&root.entries[3].value.resolved().content, Content::Scalar(s) if s.text == "2"));
        assert_eq!(root.entries[0].value.anchor.as_deref(), Some("x"));
        assert!(parse("a: *nobody\n").is_err() && parse("a: &x [*x]\n").is_err());
    }
}

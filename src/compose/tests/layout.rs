//! `compose fmt`: canonical, idempotent, and no comment is lost.

use crate::compose::{Rules, format, parse, read};
use proptest::prelude::*;

fn formatted(text: &str) -> String {
    format(&parse(text).unwrap_or_else(|e| panic!("{}", e.render("f", text))))
}

#[track_caller]
fn is_canonical(text: &str) {
    assert_eq!(formatted(text), text);
}

#[test]
fn the_canonical_form_has_its_order_and_layout() {
    let loose = "# yaml-language-server: $schema=s.json\n\n# who\npeers:\n- endpoints: [ '203.0.113.10:8080' ]   # one\n  name: \"syd\"\n\
                 # the far end\n- {name: fra, endpoints: [\"198.51.100.7:8080\",'b']}\nversion: 'v1' # format\n\
                 services:\n- routes:\n    - {dest_cidr: 192.168.100.0/24, source_cidr: '10.0.0.0/8'}\n    # more to come\n  target_peer: fra\n  \
                 source_peer: syd\n  name: s2f # busy\n  qos:\n    bandwidth_limit_mbps: 1000\n# the end\n";
    let canonical = "# yaml-language-server: $schema=s.json\n\nversion: v1  # format\n\n# who\npeers:\n  - name: syd\n    \
                     endpoints: [\"203.0.113.10:8080\"]  # one\n  # the far end\n  - { name: fra, endpoints: [\"198.51.100.7:8080\", b] }\n\n\
                     services:\n  - name: s2f  # busy\n    source_peer: syd\n    target_peer: fra\n    qos: { bandwidth_limit_mbps: 1000 }\n    \
                     routes:\n      - { source_cidr: 10.0.0.0/8, dest_cidr: 192.168.100.0/24 }\n      # more to come\n# the end\n";
    assert_eq!(formatted(loose), canonical);
    is_canonical(canonical);
}

#[test]
fn comments_stay_at_what_they_are_about() {
    // A comment that moves above the dash is no reason for lines of their own.
    let moved = "peers:\n  - odd: a\n    # c\n    name: b\n";
    assert_eq!(formatted(moved), "peers:\n  # c\n  - { name: b, odd: a }\n");
    is_canonical(
        "version: v1\n\npeers:  # all of them\n  # first\n  - { name: a, endpoints: [a] }  # x\n  # end of peers\n# top\nservices: []\n",
    );
    is_canonical(
        "version: v1\n\npeers:\n  - name: a\n    endpoints:\n      - a  # lan\n      # wan\n      - b\n      # end\n    # after\n  # last\n",
    );
    assert_eq!(formatted("peers: [ # in\n a, # one\n b ] # out\n"), "peers:  # out\n  # in\n  - a  # one\n  - b\n");
    assert_eq!(formatted("peers: [ # c\n]\n"), "# c\npeers: []\n");
    assert_eq!(
        formatted("peers:\n  - # c\n    name: a\n  - # d\n    name: b\n"),
        "peers:\n  # c\n  - { name: a }\n  # d\n  - { name: b }\n"
    );
}

#[test]
fn a_file_with_anchors_keeps_its_order() {
    is_canonical("services:\n  - &base\n    target_peer: b\n    name: x\n    qos: &q { bandwidth_limit_mbps: 1 }\n\n  - { <<: *base, qos: *q }\n".replace("  - { <<: *base, qos: *q }", "  - <<: *base\n    qos: *q").as_str());
}

#[test]
fn scalars_keep_their_type_and_lose_needless_quotes() {
    assert_eq!(
        formatted(
            "a: \"v1\"\nb: '12'\nc: 12\nd: \"true\"\ne: true\nf: '1:2'\ng: \"a b\"\nh: \"${X}\"\ni:\nj: \"\"\nk: \"2001-01-01\"\n"
        ),
        "a: v1\nb: \"12\"\nc: 12\nd: \"true\"\ne: true\nf: \"1:2\"\ng: \"a b\"\nh: \"${X}\"\ni: ~\nj: \"\"\nk: \"2001-01-01\"\n"
    );
    assert_eq!(formatted("a: |\n  x\n  y\nb: >-\n  p\n  q\n"), "a: \"x\\ny\\n\"\nb: \"p q\"\n");
}

/// Random files: maps and lists in both styles, comments wherever YAML takes them.
fn yaml_text() -> impl Strategy<Value = String> {
    let comment = || prop_oneof![4 => Just(String::new()), 1 => "# [a-z]{3}"];
    let scalar = || prop_oneof!["[a-z]{1,4}", "[0-9]{1,3}", "\"[a-z0-9 :,]{0,5}\"", "10\\.0\\.0\\.0/8"];
    let key = || {
        prop_oneof![
            Just("name"),
            Just("peers"),
            Just("services"),
            Just("routes"),
            Just("version"),
            Just("other"),
            Just("qos"),
            Just("priority"),
            Just("endpoints")
        ]
    };
    let leaf = (scalar(), comment()).prop_map(|(s, c)| Tree::Leaf(s, c));
    let flow =
        (prop::collection::vec((scalar(), comment()), 0..4), comment()).prop_map(|(items, c)| Tree::Flow(items, c));
    let tree = prop_oneof![3 => leaf, 1 => flow].prop_recursive(4, 24, 4, move |inner| {
        let entry = (key(), comment(), inner.clone());
        prop_oneof![
            (prop::collection::vec(entry, 1..5), comment()).prop_map(|(entries, foot)| Tree::Map(entries, foot)),
            (prop::collection::vec((comment(), inner), 1..4), comment())
                .prop_map(|(items, foot)| Tree::List(items, foot)),
        ]
    });
    let entry = (key(), comment(), tree);
    (comment(), prop::collection::vec(entry, 1..6), comment(), 1usize..4).prop_map(|(head, entries, foot, step)| {
        let mut out = if head.is_empty() { head } else { format!("{head}\n\n") };
        Tree::Map(entries, foot).write(&mut out, 0, step);
        out
    })
}

#[derive(Clone, Debug)]
enum Tree {
    Leaf(String, String),
    Flow(Vec<(String, String)>, String),
    Map(Vec<(&'static str, String, Tree)>, String),
    List(Vec<(String, Tree)>, String),
}

fn line(out: &mut String, indent: usize, comment: &str) {
    if !comment.is_empty() {
        out.push_str(&format!("{:indent$}{comment}\n", ""));
    }
}

fn right(comment: &str) -> String {
    if comment.is_empty() { "\n".to_owned() } else { format!(" {comment}\n") }
}

impl Tree {
    fn write(&self, out: &mut String, indent: usize, step: usize) {
        match self {
            Tree::Leaf(scalar, comment) => out.push_str(&format!(" {scalar}{}", right(comment))),
            Tree::Flow(items, comment) => {
                out.push_str(" [");
                for (item, comment) in items {
                    out.push_str(item);
                    out.push(',');
                    if !comment.is_empty() {
                        out.push_str(&format!(" {comment}\n{:1$}", "", indent + step));
                    }
                }
                out.push_str(&format!("]{}", right(comment)));
            }
            Tree::Map(entries, foot) => {
                let mut seen = std::collections::BTreeSet::new();
                for (key, above, value) in entries.iter().filter(|(key, _, _)| seen.insert(*key)) {
                    line(out, indent, above);
                    out.push_str(&format!("{:indent$}{key}:", ""));
                    value.below(out, indent, step);
                }
                line(out, indent, foot);
            }
            Tree::List(items, foot) => {
                for (above, value) in items {
                    line(out, indent, above);
                    out.push_str(&format!("{:indent$}-", ""));
                    value.below(out, indent, step);
                }
                line(out, indent, foot);
            }
        }
    }

    fn below(&self, out: &mut String, indent: usize, step: usize) {
        if matches!(self, Tree::Map(..) | Tree::List(..)) {
            out.push('\n');
        }
        self.write(out, indent + step, step);
    }
}

fn comments_of(text: &str) -> Vec<String> {
    let mut found: Vec<String> = text.lines().filter_map(|l| l.find("# ").map(|at| l[at..].to_owned())).collect();
    found.sort();
    found
}

/// Keys and scalars without layout, order and comments.
fn content_of(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn formatting_is_idempotent_keeps_every_comment_and_changes_no_value(text in yaml_text()) {
        let once = formatted(&text);
        prop_assert_eq!(comments_of(&once), comments_of(&text), "{}\n---\n{}", text, once);
        prop_assert_eq!(content_of(&once), content_of(&text), "{}\n---\n{}", text, once);
        prop_assert_eq!(&formatted(&once), &once, "{}", text);
    }

    #[test]
    fn whatever_a_file_says_each_finding_lies_inside_of_it(text in yaml_text()) {
        let document = parse(&text).unwrap();
        for rules in [Rules::Full, Rules::Backup] {
            let found = match read(&document, rules, &|_| None) {
                Ok((_, warnings)) => warnings,
                Err(found) => found,
            };
            for one in found {
                let line = text.lines().nth(one.place.line - 1);
                prop_assert!(line.is_some_and(|l| one.place.column <= l.chars().count() + 1), "{one:?}\n{text}");
                let _ = one.render("f", &text);
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic_and_places_lie_inside(text in "[-a-z#:{}\\[\\], \n\"'&*!|>?]{0,60}") {
        match parse(&text) {
            Ok(document) => { let _ = parse(&format(&document)); }
            Err(found) => {
                prop_assert!(found.place.line >= 1 && found.place.line <= text.lines().count() + 1);
                let _ = found.render("f", &text);
            }
        }
    }
}

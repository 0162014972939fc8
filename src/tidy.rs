//! Rules of the house that a compiler does not know, checked over the sources in milliseconds.

use std::{fs, path::Path, path::PathBuf};

/// Rooms from the bottom up. A room imports only from rooms of lower layers, or of its own layer.
const LAYERS: &[&[&str]] = &[
    &["model"],
    &["wire"],
    &["compose", "dhcp", "gossip", "handshake", "license", "lock", "routing"],
    &["membership"],
    &["kernel", "env"],
    &["store"],
    &["reconcile"],
    &["dataplane", "os"],
    &["node", "api"],
    &["cli"],
];
const PURE_ROOMS: &[&str] =
    &["model", "wire", "compose", "dhcp", "gossip", "handshake", "license", "lock", "routing", "membership"];
const UNSAFE_ROOMS: &[&str] = &["os", "dataplane"];
const SECRET_WORDS: &[&str] = &["secret", "recovery_token", "sha256"];
/// A file longer than this does not fit one reader's head.
const FILE_MAX_LINES: usize = 700;

struct Source {
    /// `store/peers.rs`, from `src/`.
    name: String,
    text: String,
}

impl Source {
    fn room(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
    /// The file without its test module.
    fn product(&self) -> &str {
        self.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default()
    }
    fn is_test(&self) -> bool {
        self.name.contains("/tests") || self.name == "tidy.rs"
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn sources(dir: &str) -> Vec<Source> {
    let base = root().join(dir);
    let mut found = Vec::new();
    files(&base, "rs", &mut found);
    found
        .into_iter()
        .map(|path| Source {
            name: path.strip_prefix(&base).unwrap().to_string_lossy().into_owned(),
            text: fs::read_to_string(path).unwrap(),
        })
        .collect()
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

/// Names of rooms that a text mentions as `crate::room`, also within `use crate::{…}`.
fn imported_rooms(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for after in text.split("crate::").skip(1) {
        let Some(block) = after.strip_prefix('{') else {
            rooms.extend(after.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned));
            continue;
        };
        let (mut depth, mut word) = (0, String::new());
        for c in block.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => rooms.push(std::mem::take(&mut word)),
                c if depth == 0 => word.push(c),
                _ => {}
            }
        }
        rooms.push(word);
    }
    rooms.iter().map(|r| r.trim().split("::").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some(own) = layer(source.room()) else { continue };
        for room in imported_rooms(source.product()) {
            if layer(&room).is_some_and(|other| other > own) {
                wrong.push(format!("src/{} imports crate::{room}, which is not below it", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_know_no_runtime_and_no_clock() {
    let banned = ["tokio", "std::time::Instant", "SystemTime", "std::net::Tcp", "std::fs", "getrandom", "rusqlite"];
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| PURE_ROOMS.contains(&s.room()) && !s.is_test()) {
        for word in banned.iter().filter(|w| source.product().contains(*w)) {
            wrong.push(format!("src/{} names {word}: time, randomness and I/O are arguments there", source.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_lives_in_os_and_dataplane_and_argues() {
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| !s.is_test()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            if !line.contains("unsafe {") && !line.trim_start().starts_with("unsafe ") {
                continue;
            }
            if !UNSAFE_ROOMS.contains(&source.room()) {
                wrong.push(format!("src/{}:{} is unsafe outside os and dataplane", source.name, i + 1));
            }
            if !lines[i.saturating_sub(6)..=i].iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety")) {
                wrong.push(format!("src/{}:{} has no SAFETY argument", source.name, i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn select_is_never_random() {
    let mut wrong = Vec::new();
    for dir in ["src", "sim", "netns-tests/src"] {
        for source in sources(dir).iter().filter(|s| s.name != "tidy.rs") {
            for (i, after) in source.text.split("select! {").skip(1).enumerate() {
                if !after.trim_start().starts_with("biased;") {
                    wrong.push(format!("{dir}/{}: select! number {} is not biased", source.name, i + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_fit_one_reader() {
    let long: Vec<String> = ["src", "sim", "netns-tests"]
        .iter()
        .flat_map(|dir| sources(dir).into_iter().map(move |s| (format!("{dir}/{}", s.name), s.text.lines().count())))
        .filter(|(_, lines)| *lines > FILE_MAX_LINES)
        .map(|(name, lines)| format!("{name} has {lines} lines; split it"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_migration_is_listed_once_and_reads_no_clock() {
    let listed = sources("src").into_iter().find(|s| s.name == "store/migrate.rs").unwrap().text;
    let mut found = Vec::new();
    files(&root().join("migrations"), "sql", &mut found);
    for path in found {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(listed.matches(&format!("migrations/{name}\"")).count(), 1, "{name} is not listed once");
        let sql = fs::read_to_string(&path).unwrap().to_lowercase();
        for word in ["current_timestamp", "'now'", "random("] {
            assert!(!sql.contains(word), "{name} uses {word}: times and ids are parameters");
        }
    }
}

#[test]
fn every_scenario_has_a_twin_run() {
    for source in sources("sim/tests") {
        if source.text.contains("macro_rules! scenarios") {
            let compares = source.text.contains("assert_eq!(traces[0], traces[1]");
            assert!(compares, "sim/tests/{}: the macro runs each scenario twice", source.name);
            continue;
        }
        let tests = source.text.matches("#[test]").count();
        let in_one = source.text.matches("twin_run(").count() + source.text.matches("twin_run_with(").count();
        let in_two = source.text.matches(" equal_in_two_processes(").count();
        let text = "each scenario runs twice, by sim::twin_run or sim::equal_in_two_processes";
        assert_eq!(tests, in_one + in_two, "sim/tests/{}: {text}", source.name);
    }
}

/// The word before and the word after each `==` and `!=` of a line, in lower case.
fn compared_words(line: &str) -> impl Iterator<Item = String> {
    let sides: Vec<String> = line.replace("!=", "==").split("==").map(|s| s.trim().to_lowercase()).collect();
    let inner = sides.len().saturating_sub(1);
    let before = sides.clone().into_iter().take(inner).filter_map(|s| s.split_whitespace().last().map(str::to_owned));
    let after = sides.into_iter().skip(1).filter_map(|s| s.split_whitespace().next().map(str::to_owned));
    before.chain(after)
}

#[test]
fn secrets_are_compared_in_constant_time() {
    let mut wrong = Vec::new();
    for source in sources("src").iter().filter(|s| !s.is_test()) {
        for (i, line) in source.product().lines().enumerate() {
            if compared_words(line).any(|word| SECRET_WORDS.iter().any(|s| word.contains(s))) {
                wrong.push(format!("src/{}:{} compares a secret with ==", source.name, i + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Seeds that once failed: files in `sim/seeds` that only grow, and that a sweep runs first.

use std::path::PathBuf;

/// A line of a file: which story, and the seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSeed {
    pub story: String,
    pub seed: u64,
}

/// Those of `sim/seeds/<name>.txt`, oldest first. An error names the file, and the line that is not `STORY SEED # why`.
pub fn known_seeds(name: &str) -> Result<Vec<KnownSeed>, String> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("seeds/{name}.txt"));
    let text = std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    read(&text).map_err(|line| format!("{}: no story and seed in the line {line:?}", file.display()))
}

fn read(text: &str) -> Result<Vec<KnownSeed>, String> {
    let mut known = Vec::new();
    for line in text.lines() {
        let entry = line.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let parts: Vec<&str> = entry.split_whitespace().collect();
        let &[story, seed] = parts.as_slice() else { return Err(line.to_owned()) };
        let seed = seed.parse().map_err(|_| line.to_owned())?;
        known.push(KnownSeed { story: story.to_owned(), seed });
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_names_no_seed_is_an_error_and_a_remark_is_not() {
        let known = |story: &str, seed| KnownSeed { story: story.to_owned(), seed };
        assert_eq!(read("# remark\n\nchaos 7 # why\nsplit 9\n"), Ok(vec![known("chaos", 7), known("split", 9)]));
        for line in ["chaos", "7", "chaos x", "chaos 7 8"] {
            assert_eq!(read(&format!("chaos 1\n{line}")), Err(line.to_owned()));
        }
        assert!(known_seeds("no-such-file").is_err());
    }

    #[test]
    fn both_harnesses_have_seeds_that_once_failed() {
        for name in ["tickless", "turmoil"] {
            assert!(!known_seeds(name).expect("a sound file").is_empty());
        }
    }
}

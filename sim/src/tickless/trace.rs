//! What happened, line by line. Lines always feed a hash; they are kept only where someone will read them.

use arctic::model::Mono;
use std::{
    collections::VecDeque,
    fmt::{Arguments, Write as _},
};

/// Lines kept for the report of a run that fails.
const RECENT_MAX_LINES: usize = 400;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// How much of a run is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: runs that are only measured.
    Off,
    /// A hash over all lines, and the last of them.
    Recent,
    /// Every line.
    Full,
}

#[derive(Debug, Clone)]
pub struct Trace {
    detail: Detail,
    hash: u64,
    count: u64,
    lines: VecDeque<String>,
    buffer: String,
}

impl Trace {
    pub fn new(detail: Detail) -> Self {
        Self { detail, hash: FNV_OFFSET, count: 0, lines: VecDeque::new(), buffer: String::new() }
    }

    pub fn line(&mut self, at: Mono, line: Arguments<'_>) {
        if self.detail == Detail::Off {
            return;
        }
        self.buffer.clear();
        let us = at.since_start().as_micros();
        let _infallible = write!(self.buffer, "{:>6}.{:06} {line}", us / 1_000_000, us % 1_000_000);
        for byte in self.buffer.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        self.count += 1;
        if self.detail == Detail::Recent && self.lines.len() == RECENT_MAX_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(self.buffer.clone());
    }

    /// Over all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Lines so far.
    pub fn len(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

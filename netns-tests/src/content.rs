//! Seeded byte streams and their digests.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// Endless deterministic bytes: the same seed gives the same stream, and no part of it repeats.
#[derive(Debug, Clone)]
pub struct Content {
    state: u64,
    rest: [u8; 8],
    rest_used: usize,
}

impl Content {
    pub fn new(seed: u64) -> Content {
        Content { state: seed, rest: [0; 8], rest_used: 8 }
    }

    /// The next SplitMix64 word (Steele, Lea, Flood 2014).
    fn next_word(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        let head = buffer.len().min(8 - self.rest_used);
        buffer[..head].copy_from_slice(&self.rest[self.rest_used..self.rest_used + head]);
        self.rest_used += head;
        let mut words = buffer[head..].chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next_word());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            self.rest = self.next_word();
            self.rest_used = tail.len();
            tail.copy_from_slice(&self.rest[..self.rest_used]);
        }
    }

    /// The first `len` bytes of the stream.
    pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Content::new(seed).fill(&mut bytes);
        bytes
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer);
        Ok(buffer.len())
    }
}

/// SHA-256 of everything up to the end of `source`, in hex as `sha256sum` prints it, and the number of bytes.
pub fn digest(mut source: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total_bytes = 0;
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..read]);
        total_bytes += read as u64;
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), total_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_the_stream_differently_gives_the_same_bytes() {
        let whole = Content::bytes(7, 1000);
        let mut content = Content::new(7);
        let mut pieces = Vec::new();
        for len in [1, 2, 3, 8, 13, 0, 64, 909] {
            let mut piece = vec![0; len];
            content.fill(&mut piece);
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole);
        assert_ne!(Content::bytes(8, 1000), whole);
    }

    #[test]
    fn digest_is_sha256() {
        let (hex, len) = digest(&b"abc"[..]).unwrap();
        assert_eq!((hex.as_str(), len), ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3));
    }
}

//! Bytes and messages: signing, canonical JSON, signed records, and the messages between peers. Versioned and bounded.

pub mod applied;
pub mod canonical;
pub mod gossip;
pub mod handshake;
pub mod lock;
pub mod nonces;
pub mod record;
pub mod request;
pub mod sign;
pub mod stream;

//! What Arctic owns in the kernel, in our own words.

/// The kernel of one host.
pub trait Kernel: Send + Sync + 'static {}

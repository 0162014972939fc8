//! The only Linux code: sockets, netlink, files with special modes, systemd.

pub mod log;
pub mod net;
pub mod sockets;

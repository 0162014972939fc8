//! The only Linux code: sockets, netlink, files with special modes, systemd.

pub mod net;
pub mod sockets;

//! The second harness of arctic: real processes on the real kernel, in network namespaces.
//!
//! | room       | gives                                                                                         |
//! |------------|-----------------------------------------------------------------------------------------------|
//! | `lab`      | [`lab::Lab`], [`lab::Host`]: namespaces held by file descriptor, veth pairs, processes, captures |
//! | `wan`      | [`wan::Wan`]: a long link in user space: delay, jitter, loss, copies, rate, queue, size; `wan::path` is pure |
//! | `topology` | [`topology::TwoSites`]: `client - london =WAN= tokyo - server`, and the named profiles        |
//! | `content`  | seeded byte streams and their digests, to prove byte-exactness                                |
//! | `service`  | TCP services of the far end: echo, files over HTTP                                            |
//! | `datagram` | services of the far end that are not TCP, and clients that ask them                             |
//! | `dns`      | a name server that tells each asker its address, and askers                                   |
//! | `bulk`     | bulk TCP with a chosen congestion control, measured where the bytes arrive                    |
//! | `agent`    | a real `arctic agent run`, and the real CLI, inside a host                                    |
//! | `api`      | one connection to an agent's API                                                            |
//! | `disk`     | a disk under SQLite: records, fails on demand, plays power cuts                             |
//! | `cluster`  | two agents bootstrapped, joined and given a service by the CLI                                |
//! | `interfaces` | the same for services with an interface, and what is seen of it              |
//! | `lines`    | command lines of the documents and of `--help`                                             |
//! | `observer` | which marks the kernel gives to packets that open a connection                          |
//! | `plane`    | two engines without agents, and rules written by hand                                          |
//! | `vendor`   | throw-away licenses                                                                           |
//! | `world`    | two sites with agents, a service by tcp and one by kcp, and who sees whom from where           |
//! | `probe`    | which kernel features exist; `require` says aloud what it skips                               |
//!
//! Everything ends with its owner: dropping a value ends its threads and processes, and a namespace vanishes with its
//! last descriptor, also when a test panics or is killed. Nothing is registered in `/run/netns`, nothing is configured
//! in the namespace the tests were started in.

// This harness measures the real world: real time is its subject.
#![allow(clippy::disallowed_methods)]

pub mod agent;
pub mod api;
pub mod bulk;
pub mod cluster;
pub mod content;
pub mod datagram;
pub mod disk;
pub mod dns;
pub mod interfaces;
pub mod lab;
pub mod lines;
pub mod observer;
pub mod plane;
pub mod probe;
pub mod service;
pub mod topology;
pub mod vendor;
pub mod wan;
pub mod world;

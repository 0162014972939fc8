//! Which kernel features exist here, and a skip that nobody can mistake for a pass.

use std::fmt;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::lab::{Host, NetNs};
use crate::wan::tun;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Effective user id 0 and the right to make network namespaces.
    Root,
    Veth,
    Macvlan,
    Tun,
    /// The `tproxy` expression of nf_tables.
    NftTproxy,
    /// The `socket` expression of nf_tables.
    NftSocket,
    /// BBR congestion control.
    Bbr,
}

impl Feature {
    pub const ALL: [Feature; 7] = [
        Feature::Root,
        Feature::Veth,
        Feature::Macvlan,
        Feature::Tun,
        Feature::NftTproxy,
        Feature::NftSocket,
        Feature::Bbr,
    ];

    /// Tries the feature in a namespace of its own.
    pub fn probe(self) -> Result<()> {
        ensure!(rustix::process::geteuid().is_root(), "not root");
        let host = Host::new("probe", NetNs::create().context("making a network namespace")?);
        match self {
            Feature::Root => Ok(()),
            Feature::Veth => host.ip("link add left type veth peer name right").map(drop),
            Feature::Macvlan => {
                host.ip("link add left type veth peer name right")?;
                host.ip("link add upper link left type macvlan mode bridge").map(drop)
            }
            Feature::Tun => Ok(host.run(|| tun::open("probe")).map(drop)?),
            Feature::NftTproxy => {
                load_rule(&host, "meta l4proto tcp tproxy ip to 127.0.0.1:61000 meta mark set 1 accept")
            }
            Feature::NftSocket => load_rule(&host, "socket transparent 1 meta mark set 1 accept"),
            Feature::Bbr => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_tcp_congestion(b"bbr").context("setting TCP_CONGESTION to bbr")
            }
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Feature::Root => "root",
            Feature::Veth => "veth",
            Feature::Macvlan => "macvlan",
            Feature::Tun => "tun",
            Feature::NftTproxy => "nft-tproxy",
            Feature::NftSocket => "nft-socket",
            Feature::Bbr => "bbr",
        })
    }
}

/// True when the current test can run. Otherwise says on stderr what is missing and why, and returns false; with
/// `NETNS_REQUIRE=1` it panics instead, so that a machine meant to run these tests cannot skip them.
///
/// ```no_run
/// # use netns_tests::probe::{Feature, require};
/// if !require(&[Feature::Root, Feature::Veth]) {
///     return;
/// }
/// ```
pub fn require(features: &[Feature]) -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    for feature in features {
        if let Err(reason) = feature.probe() {
            let line = format!("SKIP {test}: kernel feature {feature} missing: {reason:#}");
            if std::env::var_os("NETNS_REQUIRE").is_some_and(|value| value == "1") {
                panic!("NETNS_REQUIRE=1: {line}");
            }
            // Past the test harness, which would swallow what `eprintln!` says in a test that returns normally.
            let _ = writeln!(std::io::stderr(), "{line}");
            return false;
        }
    }
    true
}

fn load_rule(host: &Host, rule: &str) -> Result<()> {
    let mut command = host.command("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = command.spawn().context("running nft")?;
    let table = format!("table inet probe {{ chain c {{ type filter hook prerouting priority mangle; {rule}; }}\n}}");
    nft.stdin.take().context("stdin of nft")?.write_all(table.as_bytes())?;
    let output = nft.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default());
    Ok(())
}

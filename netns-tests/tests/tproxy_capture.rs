//! The rules do on packets what they say: client, router (the agent's host) and server, each in its namespace.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

mod support;

use arctic::{
    kernel::{Capture, Intercept, Kernel, LIVENESS_TIMEOUT, MarkMask, PolicyRouting, Ruleset},
    model::{Rng, ServiceId, UnixTime},
    os::LinuxKernel,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use support::{Namespace, sh};

const PORT: u16 = 7000;
const CLIENT: [&str; 2] = ["10.1.0.2", "fd01::2"];
const SERVER: [&str; 2] = ["10.2.0.2", "fd02::2"];
const ROUTER_TO_CLIENT: [&str; 2] = ["10.1.0.1", "fd01::1"];
/// For an answer that has to come, and for one that is not to come.
const ANSWERED: Duration = Duration::from_secs(10);
const UNANSWERED: Duration = Duration::from_millis(1500);

struct Lab {
    client: Namespace,
    router: Namespace,
    server: Namespace,
    runtime: tokio::runtime::Runtime,
    kernel: LinuxKernel,
    listeners: [SocketAddr; 2],
    /// What captured connections said: original source, original destination.
    captured: mpsc::Receiver<(SocketAddr, SocketAddr)>,
    stop: Arc<AtomicBool>,
}

impl Lab {
    fn new() -> Self {
        let (client, router, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        router.sh(&format!(
            "ip link add c type veth peer name r netns {} && ip link add s type veth peer name r netns {} &&
             ip addr add 10.1.0.1/24 dev c && ip addr add 10.2.0.1/24 dev s &&
             ip addr add fd01::1/64 dev c nodad && ip addr add fd02::1/64 dev s nodad &&
             ip link set c up && ip link set s up &&
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 &&
             sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1",
            client.id, server.id
        ));
        for (host, net) in [(&client, 1), (&server, 2)] {
            host.sh(&format!(
                "ip addr add 10.{net}.0.2/24 dev r && ip addr add fd0{net}::2/64 dev r nodad && ip link set r up &&
                 ip route add default via 10.{net}.0.1 && ip -6 route add default via fd0{net}::1"
            ));
        }
        serve(&server, PORT, "plain");
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, captured) = mpsc::channel();
        let mask = MarkMask::default();
        let stopped = stop.clone();
        let listeners = router.run(move || {
            ["127.0.0.1:0", "[::1]:0"].map(|address| intercept(address, mask, seen.clone(), stopped.clone()))
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let kernel = router.run(move || {
            let _runtime = handle.enter();
            LinuxKernel::open().expect("netlink sockets open")
        });
        Self { client, router, server, runtime, kernel, listeners, captured, stop }
    }

    fn ruleset(&self, dests: &[&str]) -> Ruleset {
        let service = ServiceId::mint(UnixTime::from_secs(1), &mut Rng::from_seed([9; 32]));
        let [v4, v6] = self.listeners;
        let capture = |(route, dest): (u32, &&str)| Capture {
            service,
            route: Some(route),
            source: None,
            dest: Some(dest.parse().expect("a network")),
            interface: None,
            mark: 1 + route,
        };
        Ruleset {
            intercept: Intercept { v4: as_v4(v4), v6: as_v6(v6) },
            captures: (1..).zip(dests).map(capture).collect(),
            ..Ruleset::default()
        }
    }

    fn apply(&self, dests: &[&str]) {
        let policy = PolicyRouting::capturing(MarkMask::default());
        self.runtime.block_on(self.kernel.set_policy(&policy)).expect("the policy is accepted");
        self.runtime.block_on(self.kernel.replace_tables(&self.ruleset(dests))).expect("the rules are accepted");
    }

    /// What the router's transparent listener saw last.
    fn captured(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.captured.recv_timeout(ANSWERED).ok()
    }

    /// Ends the listeners, as the death of their agent does.
    fn deafen(&self) {
        self.stop.store(true, Ordering::Relaxed);
        eventually("the listeners are closed", || !self.router.sh("ss -Htln").contains("127.0.0.1:"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn as_v4(a: SocketAddr) -> Option<std::net::SocketAddrV4> {
    if let SocketAddr::V4(a) = a { Some(a) } else { None }
}

fn as_v6(a: SocketAddr) -> Option<std::net::SocketAddrV6> {
    if let SocketAddr::V6(a) = a { Some(a) } else { None }
}

/// Waits for something that must happen.
#[track_caller]
fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + ANSWERED;
    while !happened() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A transparent listener as the engine has it: sockets with the agent's own mark.
fn intercept(
    address: &str,
    mask: MarkMask,
    seen: mpsc::Sender<(SocketAddr, SocketAddr)>,
    stop: Arc<AtomicBool>,
) -> SocketAddr {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    set_transparent(&socket, address.ip());
    socket.set_mark(mask.own()).expect("SO_MARK");
    socket.bind(&SockAddr::from(address)).expect("bind");
    socket.listen(64).expect("listen");
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("nonblocking");
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, from)) => {
                    stream.set_nonblocking(false).expect("blocking");
                    let _ = seen.send((from, stream.local_addr().expect("connected")));
                    std::thread::spawn(move || talk(stream, "captured"));
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
            }
        }
    });
    address
}

fn set_transparent(socket: &Socket, ip: IpAddr) {
    let set = if ip.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
    set.expect("IP_TRANSPARENT (root)");
}

/// Listens when it returns.
fn serve(host: &Namespace, port: u16, word: &'static str) {
    let listener = host.run(move || TcpListener::bind(("::", port))).expect("the port is free");
    host.spawn(move || answer(listener, word));
}

fn answer(listener: TcpListener, word: &'static str) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || talk(stream, word));
    }
}

/// Says the word for every byte received.
fn talk(mut stream: TcpStream, word: &str) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() {
        if stream.write_all(word.as_bytes()).is_err() {
            return;
        }
    }
}

/// Connects from the namespace of this thread and returns who answers.
fn who_answers(to: SocketAddr, mark: Option<u32>) -> io::Result<String> {
    ask(&mut connect(to, mark, ANSWERED)?)
}

fn connect(to: SocketAddr, mark: Option<u32>, within: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&to.into(), within)?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(within))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"?")?;
    let mut answer = [0; 16];
    let n = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

fn says(word: &str) -> Option<String> {
    Some(word.to_owned())
}

// accepts: 001-22
#[test]
fn forwarded_and_local_tcp_is_captured_in_both_families() {
    let lab = Lab::new();
    for server in SERVER {
        let plain = lab.client.run(move || who_answers(at(server, PORT), None).ok());
        assert_eq!(plain, says("plain"), "before the rules, to {server}");
    }
    lab.apply(&["10.2.0.0/24", "fd02::/64"]);
    for (server, client) in SERVER.into_iter().zip(CLIENT) {
        let word = lab.client.run(move || who_answers(at(server, PORT), None).ok());
        assert_eq!(word, says("captured"), "forwarded to {server}");
        let (from, to) = lab.captured().expect("the listener saw it");
        assert_eq!((from.ip(), to), (at(client, 0).ip(), at(server, PORT)));
    }
    for server in SERVER {
        let word = lab.router.run(move || who_answers(at(server, PORT), None).map_err(|e| e.to_string()));
        assert_eq!(word.as_deref(), Ok("captured"), "local to {server}");
        let (_, to) = lab.captured().expect("the listener saw it");
        assert_eq!(to, at(server, PORT));
    }
    let own = MarkMask::default().own();
    for server in SERVER {
        let word = lab.router.run(move || who_answers(at(server, PORT), Some(own)).ok());
        assert_eq!(word, says("plain"), "a socket of the agent to {server}");
    }
    let unmatched = lab.server.run(|| connect(at(CLIENT[0], PORT), None, ANSWERED).map(drop).map_err(|e| e.kind()));
    assert_eq!(unmatched, Err(io::ErrorKind::ConnectionRefused), "the other direction is not captured");
}

#[test]
fn direct_dials_of_the_listener_are_dropped() {
    let lab = Lab::new();
    lab.apply(&["10.2.0.0/24", "fd02::/64"]);
    for listener in lab.listeners {
        let dialled = lab.router.run(move || connect(listener, None, UNANSWERED).map(drop).map_err(|e| e.kind()));
        assert_eq!(dialled, Err(io::ErrorKind::TimedOut), "{listener}");
    }
}

#[test]
fn sessions_to_the_host_survive_a_route_that_covers_their_client() {
    let lab = Lab::new();
    serve(&lab.router, 22, "shell");
    lab.apply(&["10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::/0"]);
    for router in ROUTER_TO_CLIENT {
        let word = lab.client.run(move || who_answers(at(router, 22), None).map_err(|e| e.to_string()));
        assert_eq!(word.as_deref(), Ok("shell"));
    }
}

#[test]
fn without_a_listener_forwarded_traffic_is_plain_and_without_liveness_all_traffic_is() {
    let lab = Lab::new();
    lab.apply(&["10.2.0.0/24", "fd02::/64"]);
    lab.deafen();
    for server in SERVER {
        let word = lab.client.run(move || who_answers(at(server, PORT), None).ok());
        assert_eq!(word, says("plain"), "the listener is gone: forwarded to {server}");
        assert!(
            lab.router.run(move || connect(at(server, PORT), None, UNANSWERED).is_err()),
            "local waits for the liveness element"
        );
    }
    std::thread::park_timeout(LIVENESS_TIMEOUT);
    for server in SERVER {
        let word = lab.router.run(move || who_answers(at(server, PORT), None).ok());
        assert_eq!(word, says("plain"), "liveness has expired: local to {server}");
    }
}

#[test]
fn liveness_is_kept_by_feeding() {
    let lab = Lab::new();
    lab.apply(&["10.2.0.0/24"]);
    for _ in 0..4 {
        std::thread::park_timeout(Duration::from_secs(3));
        lab.runtime.block_on(lab.kernel.feed_liveness()).expect("fed");
    }
    let word = lab.client.run(|| who_answers(at(SERVER[0], PORT), None).ok());
    assert_eq!(word, says("captured"));
}

#[test]
fn replacing_leaves_no_gap_and_cuts_no_flow() {
    let lab = Lab::new();
    lab.apply(&["10.2.0.0/24", "fd02::/64"]);
    let (stream, done) =
        (lab.client.run(|| connect(at(SERVER[0], PORT), None, ANSWERED)).expect("connected"), mpsc::channel());
    let local = lab.router.run(|| connect(at(SERVER[1], PORT), None, ANSWERED)).expect("connected");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    lab.client.spawn(move || {
        let mut answers = vec![];
        while !stopped.load(Ordering::Relaxed) {
            answers.push(who_answers(at(SERVER[0], PORT), None).unwrap_or_else(|e| e.to_string()));
        }
        done.0.send(answers).expect("the test waits");
    });
    for n in 0..100 {
        // Another route, then the same again; both take the server.
        lab.apply(if n % 2 == 0 { &["10.2.0.0/16", "fd02::/48"] } else { &["10.2.0.0/24", "fd02::/64"] });
        lab.runtime.block_on(lab.kernel.feed_liveness()).expect("fed");
    }
    stop.store(true, Ordering::Relaxed);
    let answers = done.1.recv().expect("the client answers");
    assert!(answers.len() > 20 && answers.iter().all(|a| a == "captured"), "{answers:?}");
    for mut flow in [stream, local] {
        assert_eq!(ask(&mut flow).ok(), says("captured"));
    }
}

/// Asks a few times, with the given connections, in the namespace where they live.
fn say_still(flows: &mut [(TcpStream, &str)], what: &str) {
    for _ in 0..3 {
        for (flow, word) in flows.iter_mut() {
            let peer = flow.peer_addr();
            assert_eq!(ask(flow).map_err(|e| e.to_string()).as_deref(), Ok(*word), "{what}: {peer:?}");
        }
    }
}

#[test]
fn connections_that_were_open_before_a_route_go_on_plainly_and_captured_ones_stay_captured() {
    let lab = Lab::new();
    // Opened before there is any table, so before conntrack looks at the namespace: it meets them in their middle.
    let mut flows = vec![];
    let open = |host: &Namespace, to: [&'static str; 2]| {
        to.map(|ip| host.run(move || connect(at(ip, PORT), None, ANSWERED)).unwrap_or_else(|e| panic!("{ip}: {e}")))
    };
    serve(&lab.router, 22, "shell");
    let mut sessions = ROUTER_TO_CLIENT
        .map(|ip| (lab.client.run(move || connect(at(ip, 22), None, ANSWERED)).expect("connected"), "shell"));
    for host in [&lab.client, &lab.router] {
        flows.extend(open(host, SERVER).map(|flow| (flow, "plain")));
    }
    // The base tables of an agent without services.
    lab.apply(&[]);
    say_still(&mut flows, "base tables");
    for host in [&lab.client, &lab.router] {
        flows.extend(open(host, SERVER).map(|flow| (flow, "plain")));
    }
    say_still(&mut flows[4..], "opened under the base tables");
    lab.apply(&["10.0.0.0/8", "fd00::/8"]);
    say_still(&mut flows, "a route covers it");
    say_still(&mut sessions, "a route covers the client of a session");
    for host in [&lab.client, &lab.router] {
        flows.extend(open(host, SERVER).map(|flow| (flow, "captured")));
    }
    say_still(&mut flows, "new ones are captured");
    for dests in [&["10.2.0.0/16", "fd02::/48"], &["10.0.0.0/8", "fd00::/8"]] {
        lab.apply(dests);
        say_still(&mut flows, "tables were replaced");
    }
}

#[test]
fn foreign_state_is_never_touched() {
    let lab = Lab::new();
    lab.router.sh("nft -f - <<'NFT'
         table inet filter { chain input { type filter hook input priority 0; tcp dport 22 counter accept; }; }
         table ip nat { chain post { type nat hook postrouting priority 100; oifname \"s\" masquerade; }; }
         table inet arctics { set x { type ipv4_addr; elements = { 1.2.3.4 }; }; }
NFT
         ip rule add pref 10050 fwmark 0x7 lookup 615
         ip route add 10.9.0.0/24 via 10.2.0.2 table 615
         ip route add 10.8.0.0/24 via 10.2.0.2 proto 97
         ip rule add pref 5000 from 10.7.0.0/16 lookup 97 protocol 97");
    let state = || {
        sh("nft list ruleset | sed '/^table inet arctic {/,/^}/d; /^table inet arctic_iptun {/,/^}/d'
            ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -d link | grep -v qdisc")
    };
    let before = lab.router.run(state);
    lab.apply(&["10.2.0.0/24", "fd02::/64"]);
    let during = lab.router.run(state);
    assert_ne!(before, during, "our rules and routes are there");
    assert!(before.lines().all(|line| during.contains(line)));
    lab.runtime.block_on(lab.kernel.remove_tables()).expect("removed");
    lab.runtime.block_on(lab.kernel.set_policy(&PolicyRouting::default())).expect("removed");
    assert_eq!(lab.router.run(state), before);
}

#[test]
fn changes_by_others_are_hinted_and_seen() {
    let lab = Lab::new();
    lab.apply(&["10.2.0.0/24"]);
    let expected = lab.kernel.fingerprint(&lab.ruleset(&["10.2.0.0/24"]));
    let owned = || lab.runtime.block_on(lab.kernel.read_owned()).expect("own state can be read");
    assert_eq!(owned().tables, Some(expected));
    let changes = lab.kernel.changes();
    // Those of our own writes.
    let settled = || {
        let mut last = *changes.borrow();
        eventually("no more hints", || {
            std::thread::park_timeout(Duration::from_millis(100));
            std::mem::replace(&mut last, *changes.borrow()) == last
        });
        last
    };
    let edits = [
        "nft flush chain inet arctic prerouting",
        "nft delete chain inet arctic input",
        "nft add rule inet arctic_iptun output accept",
        "nft delete table inet arctic_iptun",
        "nft flush ruleset",
    ];
    for edit in edits {
        lab.apply(&["10.2.0.0/24"]);
        let before = settled();
        lab.router.sh(edit);
        assert_ne!(owned().tables, Some(expected), "{edit}");
        eventually(edit, || changes.borrow().tables > before.tables);
    }
    for edit in ["ip rule del pref 10004", "ip -6 rule del pref 10000", "ip route flush table 610"] {
        lab.apply(&["10.2.0.0/24"]);
        let (whole, before) = (owned().policy, settled());
        lab.router.sh(edit);
        assert_ne!(owned().policy, whole, "{edit}");
        eventually(edit, || changes.borrow().policy > before.policy);
    }
}

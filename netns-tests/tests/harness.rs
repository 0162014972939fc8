//! The harness tests itself before anything is proved with it.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use netns_tests::agent::http_get;
use netns_tests::lab::{Capture, Host, Lab, NetNs, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::service::TcpService;
use netns_tests::topology::{self, Profile, TwoSites, at};
use netns_tests::wan::path::Conditions;
use netns_tests::wan::{Direction, Wan};
use netns_tests::{bulk, content};

const LAB: [Feature; 2] = [Feature::Root, Feature::Veth];
const WAN: [Feature; 3] = [Feature::Root, Feature::Veth, Feature::Tun];

fn pair(name: &str) -> (Lab, Host, Host) {
    let mut lab = Lab::new(name).unwrap();
    let (a, b) = (lab.host("london").unwrap(), lab.host("tokyo").unwrap());
    (lab, a, b)
}

fn wan(name: &str, conditions: Conditions) -> (Lab, Host, Host, Wan) {
    let (lab, a, b) = pair(name);
    let wan = Wan::connect((&a, &["10.71.0.1/30"]), (&b, &["10.71.0.2/30"]), conditions, 1).unwrap();
    (lab, a, b, wan)
}

/// Waits for something that must happen.
fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn probe_finds_what_the_kernel_has() {
    if !require(&[Feature::Root]) {
        return;
    }
    for feature in Feature::ALL {
        match feature.probe() {
            Ok(()) => println!("{feature}: present"),
            Err(reason) => println!("{feature}: missing: {reason:#}"),
        }
    }
    // These have been part of every kernel that can make a namespace at all.
    Feature::Veth.probe().unwrap();
}

#[test]
fn namespaces_are_isolated() {
    if !require(&LAB) {
        return;
    }
    let (_lab, a, b) = pair("isolated");
    let listener = a.run(|| TcpListener::bind("127.0.0.1:8080")).unwrap();
    let address = listener.local_addr().unwrap();
    assert!(a.run(|| TcpStream::connect(address)).is_ok());
    assert!(b.run(|| TcpStream::connect(address)).is_err(), "loopback is shared");
    assert_eq!(a.ip("-o link").unwrap().lines().count(), 1, "only lo");
    assert_ne!(a.namespace().inode(), b.namespace().inode());
    let outside = NetNs::open(Path::new("/proc/self/ns/net")).unwrap();
    assert_ne!(a.namespace().inode(), outside.inode());
}

#[test]
fn veth_joins_hosts_in_both_families() {
    if !require(&LAB) {
        return;
    }
    let (lab, a, b) = pair("veth");
    lab.veth(&a, &b, &["10.71.1.1/24", "fd71:1::1/64"], &["10.71.1.2/24", "fd71:1::2/64"]).unwrap();
    for address in ["10.71.1.2:7", "[fd71:1::2]:7"] {
        let echo = TcpService::echo(&b, address.parse().unwrap()).unwrap();
        let answer = a.run(|| {
            use std::io::{Read, Write};
            let mut stream = TcpStream::connect(echo.address()).unwrap();
            stream.write_all(b"over the wire").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        });
        assert_eq!(answer, b"over the wire");
    }
}

#[test]
fn panic_leaves_no_process_and_no_namespace() {
    if !require(&LAB) {
        return;
    }
    let mut left = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let (lab, a, b) = pair("panic");
        lab.veth(&a, &b, &["10.71.1.1/24"], &["10.71.1.2/24"]).unwrap();
        let mut owned = a.command("sleep");
        owned.arg("600");
        let owned = a.spawn(owned).unwrap();
        // A grandchild in a session of its own, which no process group reaches.
        b.sh("setsid sleep 600 >/dev/null 2>&1 &").unwrap();
        eventually("the grandchild runs", || b.namespace().processes().len() == 1);
        let grandchild = b.namespace().processes()[0];
        left = Some((owned.pid() as i32, grandchild, a.namespace().inode(), lab.scratch().to_owned()));
        panic!("a test fails (this panic is part of the test)");
    }));
    assert!(outcome.is_err());
    let (owned, grandchild, inode, scratch) = left.unwrap();
    let runs = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(!runs(owned));
    eventually("the grandchild ends", || !runs(grandchild));
    assert!(!namespace_is_held(inode), "a process still holds the namespace");
    assert!(scratch.is_dir(), "the scratch directory of a failed test is kept");
    std::fs::remove_dir_all(scratch).unwrap();
}

/// Whether a descriptor or a thread of any process refers to the namespace.
fn namespace_is_held(inode: u64) -> bool {
    let name = format!("net:[{inode}]");
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let refers = |path: &Path| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy() == name);
    let is_process = |path: &Path| path.file_name().is_some_and(|pid| pid.to_string_lossy().parse::<i32>().is_ok());
    entries(Path::new("/proc")).filter(|process| is_process(process)).any(|process| {
        entries(&process.join("fd")).any(|fd| refers(&fd))
            || entries(&process.join("task")).any(|task| refers(&task.join("ns/net")))
    })
}

#[test]
fn scratch_directory_goes_with_its_lab() {
    if !require(&LAB) {
        return;
    }
    let lab = Lab::new("scratch").unwrap();
    let scratch = lab.scratch().to_owned();
    assert!(scratch.is_dir());
    drop(lab);
    assert!(!scratch.exists());
}

#[test]
fn process_outlives_the_thread_that_started_it_but_not_its_owner() {
    if !require(&LAB) {
        return;
    }
    let (_lab, a, _b) = pair("process");
    let host = a.clone();
    let mut process = std::thread::spawn(move || {
        let mut sleep = host.command("sleep");
        sleep.arg("600");
        host.spawn(sleep).unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(process.wait(Duration::from_millis(200)).unwrap(), None, "it died with its thread");
    assert_eq!(a.namespace().processes(), [process.pid() as i32]);
    process.stop(Duration::from_secs(5)).unwrap();
    assert!(a.namespace().processes().is_empty());
}

#[test]
fn wan_delays_every_packet() {
    if !require(&WAN) {
        return;
    }
    let delay = Duration::from_millis(40);
    let (_lab, a, b, _wan) = wan("delay", Conditions { delay, ..Conditions::default() });
    let near = a.run(|| UdpSocket::bind("10.71.0.1:9000")).unwrap();
    let far = b.run(|| UdpSocket::bind("10.71.0.2:9000")).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for n in 0..10u8 {
        let sent = Instant::now();
        near.send_to(&[n], "10.71.0.2:9000").unwrap();
        let mut got = [0; 1];
        far.recv(&mut got).unwrap();
        assert_eq!(got, [n]);
        assert!(sent.elapsed() >= delay, "arrived after {:?}", sent.elapsed());
    }
}

#[test]
fn wan_loses_its_share_and_counts_every_packet() {
    if !require(&WAN) {
        return;
    }
    const PACKETS: u64 = 20_000;
    let (_lab, a, b, wan) = wan("loss", Conditions { loss: 0.1, ..Conditions::default() });
    let near = a.run(|| UdpSocket::bind("10.71.0.1:9000")).unwrap();
    let _far = b.run(|| UdpSocket::bind("10.71.0.2:9000")).unwrap();
    for n in 0..PACKETS {
        near.send_to(&[0; 100], "10.71.0.2:9000").unwrap();
        if n % 500 == 0 {
            eventually("the link keeps up", || wan.counters(Direction::AToB).offered >= n);
        }
    }
    eventually("the link has seen all", || wan.counters(Direction::AToB).offered == PACKETS);
    let seen = wan.counters(Direction::AToB);
    assert_eq!(seen.offered_bytes, PACKETS * 128);
    assert_eq!(seen.delivered + seen.dropped_random, PACKETS, "{seen:?}");
    assert_eq!(seen.dropped_emulator, 0);
    assert!((1800..2200).contains(&seen.dropped_random), "{seen:?}"); // 10 %, 4.7 sigma
    assert_eq!(wan.counters(Direction::BToA).offered, 0);
}

#[test]
fn wan_keeps_its_rate_and_its_queue() {
    if !require(&WAN) {
        return;
    }
    let conditions = Conditions { rate_bps: Some(10_000_000), queue_bytes: Some(60_000), ..Conditions::default() };
    let (_lab, a, b, wan) = wan("rate", conditions);
    let server = bulk::server(&b, "10.71.0.2:5001".parse().unwrap()).unwrap();
    let window = Duration::from_secs(3);
    let found = bulk::download(&a, server.address(), "cubic", window).unwrap();
    assert!(found.mbps <= 10.0, "{found}");
    assert!(found.second_half_mbps >= 6.0, "{found}");
    let seen = wan.counters(Direction::BToA);
    assert!(seen.dropped_queue_full > 0, "a queue of 40 packets never filled: {seen:?}");
}

#[test]
fn cut_wan_is_a_black_hole_until_healed() {
    if !require(&WAN) {
        return;
    }
    let (_lab, a, b, wan) = wan("cut", Conditions::default());
    let near = a.run(|| UdpSocket::bind("10.71.0.1:9000")).unwrap();
    let far = b.run(|| UdpSocket::bind("10.71.0.2:9000")).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    wan.cut();
    near.send_to(b"lost", "10.71.0.2:9000").unwrap();
    eventually("the cut takes it", || wan.counters(Direction::AToB).dropped_cut == 1);
    wan.heal();
    near.send_to(b"kept", "10.71.0.2:9000").unwrap();
    let mut got = [0; 4];
    far.recv(&mut got).unwrap();
    assert_eq!(&got, b"kept");
}

#[test]
fn two_sites_reach_each_other_directly_in_both_families() {
    if !require(&WAN) {
        return;
    }
    let sites = TwoSites::build(Lab::new("sites").unwrap(), Profile::OCEAN, 7).unwrap();
    let body = content::Content::bytes(3, 300_000);
    let files = BTreeMap::from([("file".to_owned(), body.clone())]);
    let any = "[::]:80".parse().unwrap();
    let _files = TcpService::files(&sites.server, any, files).unwrap();
    for url in ["http://10.71.2.2/file", "http://10.71.3.2/file", "http://[fd71:2::2]/file", "http://[fd71:3::2]/file"]
    {
        let digest = sites.client.sh(&format!("curl -sS --fail -m 30 '{url}' | sha256sum")).unwrap();
        assert_eq!(digest.split(' ').next().unwrap(), content::digest(&body[..]).unwrap().0, "{url}");
    }
    let (status, _) = http_get(&sites.client, at(topology::SERVER, 80), "/missing").unwrap();
    assert_eq!(status, 404);
}

#[test]
fn bulk_transfers_are_byte_exact_both_ways() {
    if !require(&WAN) {
        return;
    }
    let conditions = Conditions { loss: 0.01, delay: Duration::from_millis(5), ..Conditions::default() };
    let (_lab, a, b, _wan) = wan("bulk", conditions);
    let server = bulk::server(&b, "10.71.0.2:5001".parse().unwrap()).unwrap();
    bulk::fetch_exactly(&a, server.address(), 11, 2_000_003).unwrap();
    bulk::push_exactly(&a, server.address(), 12, 2_000_003).unwrap();
    let up = bulk::upload(&a, server.address(), "cubic", Duration::from_secs(1)).unwrap();
    assert!(up.bytes > 0 && up.mbps > 0.0, "{up}");
}

#[test]
fn capture_on_the_wan_shows_what_is_sent_in_clear() {
    if !require(&WAN) {
        return;
    }
    let (lab, a, b, _wan) = wan("capture", Conditions::default());
    let body = content::Content::bytes(9, 500_000);
    let files = BTreeMap::from([("file".to_owned(), body.clone())]);
    let _files = TcpService::files(&b, "10.71.0.2:80".parse().unwrap(), files).unwrap();
    let capture = Capture::start(&a, "wan-tokyo", lab.scratch()).unwrap();
    a.sh("curl -sS --fail -m 30 -o /dev/null http://10.71.0.2/file").unwrap();
    let seen = capture.stop().unwrap();
    assert!(seen.len() > body.len());
    assert!(contains(&seen, b"GET /file"));
    // A piece may be cut by the end of a packet, but not every one.
    assert!(body.chunks(1000).step_by(50).filter(|piece| contains(&seen, &piece[..32])).count() >= 5);
    assert!(!contains(&seen, &content::Content::bytes(10, 32)));
}

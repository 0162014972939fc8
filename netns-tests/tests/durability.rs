//! A real agent that is killed under write load, and one whose disk is full: what it acknowledged stays.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, AgentSettings, Cli, http_get};
use netns_tests::cluster::Cluster;
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{API_PORT, Profile, TwoSites};
use netns_tests::vendor::{Grant, Vendor};
use serde_json::{Value, json};

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const WRITERS: usize = 4;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a run in CI; `ARCTIC_KILLS` asks for more.
const KILLS: usize = 30;
/// A1 asks for 500 ms; the rest is for a machine that does other things as well, and a build without optimisation.
const SERVING_WITHIN: Duration = Duration::from_secs(5);
const SMALL_DISK_BYTES: u64 = 16 << 20;

fn api() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], API_PORT))
}

/// A call of the API on the agent's own host, with the recovery token in `token`: status and body.
fn call(method: &str, path: &str, token: &Path, body: Option<&Value>) -> Result<(u16, Value)> {
    let token = fs::read_to_string(token).context("reading the recovery token")?;
    let mut stream = TcpStream::connect_timeout(&api(), CALL_TIMEOUT)?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nX-Arctic-Recovery: {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        api(),
        token.trim(),
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status: the answer was cut")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("the answer was cut")?;
    Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// One writer raises the limit of a service of its own, by one each time.
struct Counter {
    path: String,
    tried: AtomicU64,
    acknowledged: AtomicU64,
}

fn write_until(counter: &Counter, token: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let next = counter.tried.load(Ordering::Relaxed) + 1;
        counter.tried.store(next, Ordering::Relaxed);
        match call("PUT", &counter.path, token, Some(&json!({"bandwidth_limit_mbps": next}))) {
            Ok((200, _)) => counter.acknowledged.store(next, Ordering::Relaxed),
            Ok((status, body)) => panic!("{status} {body}"),
            // Killed meanwhile.
            Err(_) => return,
        }
    }
}

fn limit(host: &Host, path: &str, token: &Path) -> Result<u64> {
    let (status, body) = host.run(|| call("GET", path, token, None))?;
    ensure!(status == 200, "{path}: {status} {body}");
    body["bandwidth_limit_mbps"].as_u64().context("a limit")
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[test]
fn kill9_loses_no_acked_write() {
    if !require(&PRODUCT) {
        return;
    }
    let kills = std::env::var("ARCTIC_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let sites = TwoSites::build(Lab::new("kill9").unwrap(), Profile::CLEAN, 1).unwrap();
    let Cluster { london, tokyo: _tokyo, operator } = Cluster::form(&sites, &Grant::default()).unwrap();
    let counters: Vec<Arc<Counter>> = (0..WRITERS)
        .map(|_| {
            let service: Value = operator.json(&["services", "create", "--target-peer", "tokyo"]).unwrap();
            let path = format!("/v1/services/{}", service["id"].as_str().unwrap());
            Arc::new(Counter { path, tried: AtomicU64::new(0), acknowledged: AtomicU64::new(0) })
        })
        .collect();
    let token = london.settings().recovery_token();
    let (mut agent, mut serving) = (london, Vec::new());
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = counters
            .iter()
            .map(|counter| {
                let (host, counter, token, stop) = (sites.london.clone(), counter.clone(), token.clone(), stop.clone());
                thread::spawn(move || host.run(|| write_until(&counter, &token, &stop)))
            })
            .collect();
        // Nothing is awaited: the kill is to come at any moment of a write.
        thread::sleep(Duration::from_millis(60 + (kill as u64 * 37) % 240));
        agent.kill().unwrap();
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let died = Instant::now();
        agent = Agent::start(&sites.london, AgentSettings::new(sites.lab.scratch(), "london")).unwrap();
        for counter in &counters {
            let found = limit(&sites.london, &counter.path, &token).unwrap();
            let (acknowledged, tried) =
                (counter.acknowledged.load(Ordering::Relaxed), counter.tried.load(Ordering::Relaxed));
            assert!(found >= acknowledged, "kill {kill}: {found} is there, {acknowledged} was acknowledged");
            assert!(found <= tried, "kill {kill}: {found} is there, {tried} was the last try");
        }
        serving.push(died.elapsed());
    }
    serving.sort_unstable();
    let writes: u64 = counters.iter().map(|c| c.acknowledged.load(Ordering::Relaxed)).sum();
    let (p50, p99) = (percentile(&serving, 50), percentile(&serving, 99));
    println!("{kills} kills, {writes} acknowledged writes, serving again after p50 {p50:?}, p99 {p99:?}");
    assert!(writes > kills as u64, "{writes} writes: the load was none");
    assert!(p99 < SERVING_WITHIN, "serving again after {p99:?}");
}

#[test]
fn a_full_disk_refuses_writes_with_a_reason_and_the_agent_goes_on() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = TwoSites::build(Lab::new("full").unwrap(), Profile::CLEAN, 1).unwrap();
    let mut settings = AgentSettings::new(sites.lab.scratch(), "london");
    settings.disk_bytes = Some(SMALL_DISK_BYTES);
    let (token, data_dir) = (settings.recovery_token(), settings.data_dir());
    let mut agent = Agent::start(&sites.london, settings).unwrap();
    let license = sites.lab.scratch().join("license.json");
    Vendor::find().unwrap().issue(&Grant::default(), &license).unwrap();
    let operator = Cli::new(&sites.london, &sites.lab.scratch().join("operator")).unwrap();
    operator.ok(&["bootstrap", "--license-file", license.to_str().unwrap(), "--name", "london"]).unwrap();

    let create = || sites.london.run(|| call("POST", "/v1/credentials", &token, Some(&json!({})))).unwrap();
    assert_eq!(create().0, 201);
    // The mount is the agent's own; this is the way to it.
    let inside = PathBuf::from(format!("/proc/{}/root{}", agent.process().pid(), data_dir.display()));
    let filler = inside.join("filler");
    fill(&filler);
    let mut acknowledged = 0;
    let (status, body) = loop {
        match create() {
            (201, _) => acknowledged += 1,
            refused => break refused,
        }
    };
    assert_eq!(status, 500, "{body}");
    for (field, part) in [("error", "not saved"), ("error", "full"), ("hint", "DATA_DIR")] {
        assert!(body[field].as_str().unwrap_or_default().contains(part), "{body}");
    }
    assert_eq!(http_get(&sites.london, api(), "/livez").unwrap().0, 200);
    assert_eq!(sites.london.run(|| call("GET", "/v1/credentials", &token, None)).unwrap().0, 200, "reads go on");
    fs::remove_file(&filler).unwrap();
    assert_eq!(create().0, 201, "space is back");
    println!("{acknowledged} writes fitted beside the filler");
    assert!(agent.stop().unwrap().success());
}

/// Takes all the space that is left.
fn fill(file: &Path) {
    let mut filler = fs::File::create(file).unwrap();
    for piece in [1 << 20, 4096, 512] {
        while filler.write_all(&vec![0; piece]).is_ok() {}
    }
}

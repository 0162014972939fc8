//! A real agent that is killed under write load, and one whose disk is full: what it acknowledged stays.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::agent::{Agent, AgentSettings, http_get};
use netns_tests::cluster::Cluster;
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{API_PORT, Profile, TwoSites};
use netns_tests::vendor::Grant;
use serde_json::{Value, json};

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const WRITERS: usize = 4;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
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

/// What one writer knows of the routes of its service, by destination; it adds one and deletes the one before, for ever.
#[derive(Default)]
struct Known {
    /// Acknowledged, with their ids.
    there: BTreeMap<String, u64>,
    /// Asked for, or to be deleted, without an answer.
    perhaps: BTreeSet<String>,
    next: u32,
    acknowledged: u64,
}

struct Writer {
    path: String,
    number: usize,
    known: Mutex<Known>,
}

impl Writer {
    /// Writes until the agent is gone.
    fn run(&self, token: &Path, stop: &AtomicBool) {
        let mut known = self.known.lock().unwrap();
        while !stop.load(Ordering::Relaxed) && self.one_write(&mut known, token).is_ok() {}
    }

    fn one_write(&self, known: &mut Known, token: &Path) -> Result<()> {
        if known.there.len() > 1 {
            let (dest, id) = known.there.pop_first().context("one of several")?;
            known.perhaps.insert(dest.clone());
            let (status, body) = call("DELETE", &format!("{}/{id}", self.path), token, None)?;
            assert_eq!(status, 204, "{body}");
            known.perhaps.remove(&dest);
        } else {
            known.next += 1;
            let dest = format!("10.{}.{}.{}/32", self.number, known.next / 256, known.next % 256);
            known.perhaps.insert(dest.clone());
            let (status, body) = call("POST", &self.path, token, Some(&json!({"routes": [{"dest_cidr": dest}]})))?;
            assert_eq!(status, 201, "{body}");
            known.perhaps.remove(&dest);
            known.there.insert(dest, body["route_ids"][0].as_u64().context("a route id")?);
        }
        known.acknowledged += 1;
        Ok(())
    }

    /// Compares with what the agent has; from here on that is what is known.
    fn check(&self, host: &Host, token: &Path, kill: usize) {
        let (status, body) = host.run(|| call("GET", &self.path, token, None)).unwrap();
        assert_eq!(status, 200, "{body}");
        let routes = body["routes"].as_array().cloned().unwrap_or_default();
        let found: BTreeMap<String, u64> =
            routes.iter().filter_map(|r| Some((r["dest_cidr"].as_str()?.to_owned(), r["id"].as_u64()?))).collect();
        let mut known = self.known.lock().unwrap();
        for dest in known.there.keys() {
            assert!(found.contains_key(dest), "kill {kill}: {dest} was acknowledged and is lost");
        }
        for dest in found.keys() {
            let may = known.there.contains_key(dest) || known.perhaps.contains(dest);
            assert!(may, "kill {kill}: {dest} was deleted and is back");
        }
        (known.there, known.perhaps) = (found, BTreeSet::new());
    }
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
    let writers: Vec<Arc<Writer>> = (0..WRITERS)
        .map(|number| {
            let service: Value = operator.json(&["services", "create", "--target-peer", "tokyo"]).unwrap();
            let path = format!("/v1/services/{}/routes", service["id"].as_str().unwrap());
            Arc::new(Writer { path, number, known: Mutex::default() })
        })
        .collect();
    let token = london.settings().recovery_token();
    let (mut agent, mut serving) = (london, Vec::new());
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = writers
            .iter()
            .map(|writer| {
                let (host, writer, token, stop) = (sites.london.clone(), writer.clone(), token.clone(), stop.clone());
                thread::spawn(move || host.run(|| writer.run(&token, &stop)))
            })
            .collect();
        // Nothing is awaited: the kill is to come at any moment of a write.
        thread::sleep(Duration::from_millis(60 + (kill as u64 * 37) % 240));
        agent.kill().unwrap();
        stop.store(true, Ordering::Relaxed);
        load.into_iter().for_each(|writer| writer.join().unwrap());
        let died = Instant::now();
        agent = Agent::start(&sites.london, AgentSettings::new(sites.lab.scratch(), "london")).unwrap();
        writers[0].check(&sites.london, &token, kill);
        serving.push(died.elapsed());
        writers.iter().for_each(|writer| writer.check(&sites.london, &token, kill));
    }
    serving.sort_unstable();
    let writes: u64 = writers.iter().map(|w| w.known.lock().unwrap().acknowledged).sum();
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
    let Cluster { london, tokyo: _tokyo, operator } = Cluster::form(&sites, &Grant::default()).unwrap();
    let service: Value = operator.json(&["services", "create", "--target-peer", "tokyo"]).unwrap();
    let routes = format!("/v1/services/{}/routes", service["id"].as_str().unwrap());
    assert!(london.stop().unwrap().success());
    let mut settings = AgentSettings::new(sites.lab.scratch(), "london");
    settings.disk_bytes = Some(SMALL_DISK_BYTES);
    let (token, data_dir) = (settings.recovery_token(), settings.data_dir());
    let mut agent = Agent::start(&sites.london, settings).unwrap();
    let mut number = 0;
    let mut add = || {
        number += 1;
        let dest = format!("10.0.{}.{}/32", number / 256, number % 256);
        sites.london.run(|| call("POST", &routes, &token, Some(&json!({"routes": [{"dest_cidr": dest}]})))).unwrap()
    };
    assert_eq!(add().0, 201);
    // The mount is the agent's own; this is the way to it.
    let inside = PathBuf::from(format!("/proc/{}/root{}", agent.process().pid(), data_dir.display()));
    let filler = inside.join("filler");
    fill(&filler);
    let mut acknowledged = 0;
    let (status, body) = loop {
        match add() {
            (201, _) => acknowledged += 1,
            refused => break refused,
        }
    };
    assert_eq!(status, 500, "{body}");
    for (field, part) in [("error", "not saved"), ("error", "full"), ("hint", "DATA_DIR")] {
        assert!(body[field].as_str().unwrap_or_default().contains(part), "{body}");
    }
    assert_eq!(http_get(&sites.london, api(), "/livez").unwrap().0, 200);
    assert_eq!(sites.london.run(|| call("GET", &routes, &token, None)).unwrap().0, 200, "reads go on");
    fs::remove_file(&filler).unwrap();
    assert_eq!(add().0, 201, "space is back");
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

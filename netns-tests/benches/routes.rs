//! What 10,000 routes cost beside 10: the first packet of a connection and throughput, in one run, in turns; and how long
//! the kernel takes to load them.
//!
//! `cargo bench -p netns-tests --bench routes`. The goal is 90 % with 10,000 routes of what 10 give.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use arctic::kernel::{Capture, Intercept, Kernel, Ruleset, Tunnel};
use arctic::model::{Rng, ServiceId, UnixTime};
use arctic::os::LinuxKernel;
use netns_tests::api::Client;
use netns_tests::bulk;
use netns_tests::cluster::Cluster;
use netns_tests::datagram::DatagramService;
use netns_tests::lab::{Host, Lab};
use netns_tests::plane::echo_through;
use netns_tests::service::TcpService;
use netns_tests::topology::{LONDON_WAN, Profile, SERVER, SERVER_DIRECT, SERVER_NET, SERVER_NET_V6, TwoSites, at};
use netns_tests::vendor::Grant;
use serde_json::{Value, json};

const ROUNDS: usize = 3;
const ROUTES: usize = 10_000;
const FEW: usize = 10;
const ROUTES_EACH: usize = 999;
const CONNECTS: usize = 500;
const ECHOES: usize = 100;
const DATAGRAMS: usize = 500;
const SETTLE: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);
const GOAL: f64 = 0.9;
const LOAD_GOAL_MS: f64 = 1000.0;

/// One number of each round.
#[derive(Default)]
struct Figures {
    captured_us: Vec<f64>,
    plain_us: Vec<f64>,
    first_answer_us: Vec<f64>,
    datagram_us: Vec<f64>,
    mbps: Vec<f64>,
}

/// A busy machine makes things slower, never faster: the best round says most of the routes.
fn best(of: Vec<f64>, less_is_better: bool) -> f64 {
    let better = if less_is_better { f64::min } else { f64::max };
    of.into_iter().reduce(better).unwrap_or_default()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// The median of so many tries, in µs.
fn p50_us(count: usize, mut work: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let took: Result<Vec<f64>> = (0..count).map(|_| Ok(work()?.as_secs_f64() * 1e6)).collect();
    Ok(median(took?))
}

fn connect_us(client: &Host, dest: SocketAddr) -> Result<f64> {
    client.run(|| {
        p50_us(CONNECTS, || {
            let began = Instant::now();
            let stream = TcpStream::connect_timeout(&dest, PATIENCE)?;
            let took = began.elapsed();
            drop(stream);
            Ok(took)
        })
    })
}

/// A word to a mirror through the tunnel, and back.
fn datagram_us(client: &Host, mirror: SocketAddr) -> Result<f64> {
    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(mirror)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        p50_us(DATAGRAMS, || {
            let began = Instant::now();
            socket.send(b"hello")?;
            socket.recv(&mut [0; 64])?;
            Ok(began.elapsed())
        })
    })
}

fn measure(sites: &TwoSites, figures: &mut Figures) -> Result<()> {
    // The agents have told each other, and pools are filled.
    std::thread::sleep(SETTLE);
    let client = &sites.client;
    figures.captured_us.push(connect_us(client, at(SERVER, 7))?);
    figures.plain_us.push(connect_us(client, at(SERVER_DIRECT, 7))?);
    figures.first_answer_us.push(p50_us(ECHOES, || {
        let began = Instant::now();
        echo_through(client, at(SERVER, 7));
        Ok(began.elapsed())
    })?);
    figures.datagram_us.push(datagram_us(client, at(SERVER, 53))?);
    figures.mbps.push(bulk::download(client, at(SERVER, 5001), "cubic", WINDOW)?.mbps);
    Ok(())
}

/// A service with routes of destinations that nobody uses, of several lengths.
fn add_service(api: &mut Client, tokyo: &str, n: usize, routes: usize, wait: bool) -> Result<String> {
    let route = |k: usize| {
        let (index, length) = (n * ROUTES_EACH + k, [24, 32, 28, 30][k % 4]);
        json!({"dest_cidr": format!("11.{}.{}.0/{length}", index / 256, index % 256)})
    };
    let made = api.json("POST", "/v1/services", &json!({"target_peer_id": tokyo}))?;
    let id = made["id"].as_str().context("an id")?.to_owned();
    let routes: Vec<Value> = (0..routes).map(route).collect();
    let path = format!("/v1/services/{id}/routes{}", if wait { "?wait=applied" } else { "" });
    let added = api.json("POST", &path, &json!({ "routes": routes }))?;
    ensure!(!wait || added["applied"] == true, "{}", added["waiting_for"]);
    Ok(id)
}

fn row(name: &str, few: Vec<f64>, many: Vec<f64>, less_is_better: bool) -> bool {
    let (few, many) = (best(few, less_is_better), best(many, less_is_better));
    let ratio = if less_is_better { few / many } else { many / few };
    let verdict = if ratio >= GOAL { "met" } else { "NOT MET" };
    println!("  {name:<44} {few:>10.1} {many:>10.1} {:>7.0} %  at least 90 %: {verdict}", ratio * 100.0);
    ratio >= GOAL
}

/// Source and destination of the n-th route.
type NetsOf = fn(usize) -> (Option<String>, Option<String>);

/// Whether the goal is met.
fn load() -> Result<bool> {
    let mut lab = Lab::new("load")?;
    let host = lab.host("london")?;
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let kernel = LinuxKernel::open()?;
            let mut rng = Rng::from_seed([2; 32]);
            let services: Vec<_> = (0..1000).map(|n| ServiceId::mint(UnixTime::from_secs(n), &mut rng)).collect();
            let mut met = true;
            let kinds: [(&str, NetsOf); 3] = [
                ("destinations /24", |n| (None, Some(format!("10.{}.{}.0/24", n / 256, n % 256)))),
                ("destinations /32", |n| (None, Some(format!("10.9.{}.{}/32", n / 256, n % 256)))),
                ("sources /24, destinations /24", |n| {
                    (Some(format!("10.{}.0.0/24", n % 100)), Some(format!("172.{}.{}.0/24", n / 256, n % 256)))
                }),
            ];
            for (name, nets) in kinds {
                let capture = |n: usize| {
                    let (source, dest) = nets(n);
                    let net = |text: Option<String>| text.map(|t| t.parse().expect("a network"));
                    let (route, mark) = (u32::try_from(n % 10 + 1).ok(), u32::try_from(n / 10 + 1).unwrap_or(1));
                    let (source, dest) = (net(source), net(dest));
                    Capture { service: services[n / 10], route, source, dest, interface: None, mark }
                };
                let ruleset = Ruleset {
                    intercept: Intercept { v4: Some("127.0.0.1:50123".parse()?), v6: None },
                    captures: (0..ROUTES).map(capture).collect(),
                    tunnel: Some(Tunnel { device: "arctic-tun0".into(), index: 1 }),
                    ..Ruleset::default()
                };
                let mut took = Vec::new();
                for _ in 0..5 {
                    let began = Instant::now();
                    kernel.replace_tables(&ruleset).await?;
                    took.push(began.elapsed().as_secs_f64() * 1e3);
                }
                let began = Instant::now();
                let intact = kernel.read_owned().await?.tables == Some(kernel.fingerprint(&ruleset));
                let compared = began.elapsed();
                ensure!(intact, "{name}: another content was read back");
                let took = median(took);
                println!(
                    "  {ROUTES} {name:<34} replaced in {took:>6.0} ms, compared in {:>4} ms",
                    compared.as_millis()
                );
                met &= took < LOAD_GOAL_MS;
            }
            Ok(met)
        })
    })
}

/// What the agent says of its last pass over all of the routes.
fn applied_line(log: &str) -> &str {
    let wanted = format!("applied {ROUTES} capture routes");
    log.lines().rev().find_map(|line| line.find(&wanted).map(|at| &line[at..])).unwrap_or("no pass over all routes")
}

fn main() -> Result<()> {
    println!("both tables, one transaction, the old ones removed in it");
    let loaded = load()?;
    let sites = TwoSites::build(Lab::new("routes")?, Profile::CLEAN, 1)?;
    let cluster = Cluster::form(&sites, &Grant::default())?;
    let _echoes = [SERVER, SERVER_DIRECT].map(|ip| TcpService::echo(&sites.server, at(ip, 7)));
    let _bulk = bulk::server(&sites.server, at(SERVER, 5001))?;
    let _mirror = DatagramService::udp_mirror(&sites.server, at(SERVER, 53))?;
    let mut api = Client::log_in(&sites.london, LONDON_WAN, &cluster.operator)?;
    let tokyo: Value = cluster.operator.json(&["peers", "get", "tokyo"])?;
    let tokyo = tokyo["id"].as_str().context("an id")?;
    let served = add_service(&mut api, tokyo, 0, FEW - 2, false)?;
    let routes = json!({"routes": [{"dest_cidr": SERVER_NET}, {"dest_cidr": SERVER_NET_V6}]});
    api.json("POST", &format!("/v1/services/{served}/routes?wait=applied"), &routes)?;
    let (mut few, mut many) = (Figures::default(), Figures::default());
    measure(&sites, &mut Figures::default())?;
    for _ in 0..ROUNDS {
        measure(&sites, &mut few)?;
        // The agent has closed the old connection, which was idle meanwhile.
        api = Client::log_in(&sites.london, LONDON_WAN, &cluster.operator)?;
        let more = (ROUTES - FEW).div_ceil(ROUTES_EACH);
        let began = Instant::now();
        let added: Result<Vec<String>> =
            (1..=more).map(|n| add_service(&mut api, tokyo, n, ROUTES_EACH, n == more)).collect();
        println!("{} routes added and applied in {:.1} s", more * ROUTES_EACH, began.elapsed().as_secs_f64());
        measure(&sites, &mut many)?;
        api = Client::log_in(&sites.london, LONDON_WAN, &cluster.operator)?;
        for id in added? {
            api.json("DELETE", &format!("/v1/services/{id}?wait=applied"), &Value::Null)?;
        }
    }
    println!("  {:<44} {:>10} {:>10}", "the best of the rounds", "10 routes", "10,000");
    println!("{}", applied_line(&cluster.london.log()?));
    let met = [
        loaded,
        row("captured connect, p50, µs", few.captured_us, many.captured_us, true),
        row("connect that no route takes, p50, µs", few.plain_us, many.plain_us, true),
        row("connect, request and answer, p50, µs", few.first_answer_us, many.first_answer_us, true),
        row("datagram and answer by the tunnel, p50, µs", few.datagram_us, many.datagram_us, true),
        row("one TCP flow, Mbit/s", few.mbps, many.mbps, false),
    ];
    ensure!(met.iter().all(|met| *met), "a goal is not met");
    Ok(())
}

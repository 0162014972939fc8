//! How long ordinary calls of the API take, in an idle cluster of three and with 1,000 services and 10,000 routes.
//!
//! `cargo bench -p netns-tests --bench api`. The goals: the list of 1,000 services in 50 ms, `arctic services list` in
//! 150 ms with all that a process needs.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::{Agent, AgentSettings, Cli};
use netns_tests::api::Client;
use netns_tests::lab::Lab;
use netns_tests::topology::{API_PORT, ThreeSites};
use netns_tests::vendor::{Grant, Vendor};
use serde_json::{Value, json};

const SERVICES: usize = 1000;
const ROUTES_EACH: usize = 10;
/// Connections that fill the cluster.
const WRITERS: usize = 16;
const SAMPLES: usize = 200;
const WRITE_SAMPLES: usize = 50;
const CLI_SAMPLES: usize = 40;
const LIST_GOAL: Duration = Duration::from_millis(50);
const CLI_GOAL: Duration = Duration::from_millis(150);
const SETTLED_WITHIN: Duration = Duration::from_secs(600);

struct World {
    _agents: Vec<Agent>,
    operator: Cli,
    client: Client,
    tokyo: String,
    sites: ThreeSites,
}

fn world() -> Result<World> {
    let sites = ThreeSites::build(Lab::new("api")?)?;
    let scratch = sites.lab.scratch();
    let license = scratch.join("license.json");
    Vendor::find()?.issue(&Grant { max_services: 2 * SERVICES as u32, ..Grant::default() }, &license)?;
    let operator = Cli::new(&sites.london, &scratch.join("operator"))?;
    let mut agents = Vec::new();
    for (host, address) in
        [(&sites.london, ThreeSites::LONDON), (&sites.tokyo, ThreeSites::TOKYO), (&sites.oslo, ThreeSites::OSLO)]
    {
        agents.push(Agent::start(host, AgentSettings::new(scratch, host.name()))?);
        let (url, file) = (format!("http://{address}:{API_PORT}"), license.to_str().context("path")?);
        operator.ok(&["bootstrap", "--url", &url, "--license-file", file, "--name", host.name()])?;
        if host.name() != "london" {
            operator.ok(&["peers", "add", &format!("{address}:{API_PORT}"), "--name", host.name()])?;
        }
    }
    let client = Client::log_in(&sites.london, ThreeSites::LONDON, &operator)?;
    let tokyo: Value = operator.json(&["peers", "get", "tokyo"])?;
    let tokyo = tokyo["id"].as_str().context("an id")?.to_owned();
    Ok(World { _agents: agents, operator, client, tokyo, sites })
}

/// Prints a row; the 99th percentile.
fn row(name: &str, mut took: Vec<Duration>, goal: Option<Duration>) -> Duration {
    took.sort();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let verdict = goal.map_or(String::new(), |goal| {
        let verdict = if at(99) < goal { "met" } else { "NOT MET" };
        format!("  below {} ms: {verdict}", goal.as_millis())
    });
    println!("  {name:<44} {:>8.2} {:>8.2}{verdict}", ms(at(50)), ms(at(99)));
    at(99)
}

fn times<T>(count: usize, mut work: impl FnMut(usize) -> Result<T>) -> Result<Vec<Duration>> {
    (0..count)
        .map(|n| {
            let began = Instant::now();
            work(n)?;
            Ok(began.elapsed())
        })
        .collect()
}

/// Every row of one state of the cluster; whether both goals are met.
fn measure(world: &mut World, title: &str) -> Result<bool> {
    println!("{title:<46} {:>8} {:>8}", "p50 ms", "p99 ms");
    let service =
        world.client.json("POST", "/v1/services", &json!({"target_peer_id": world.tokyo, "name": "probe"}))?;
    let path = format!("/v1/services/{}", service["id"].as_str().context("an id")?);
    let packet = json!({"src": "10.71.11.9", "dst": "10.200.3.4", "proto": "tcp", "dport": 443});
    let reads = [
        ("GET", "/livez", Value::Null),
        ("GET", "/v1/peers", Value::Null),
        ("GET", "/v1/cluster/status", Value::Null),
        ("GET", "/v1/license", Value::Null),
        ("GET", &path, Value::Null),
        ("POST", "/v1/routes/explain", packet),
        ("GET", "/metrics", Value::Null),
    ];
    for (method, path, body) in &reads {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let took = times(SAMPLES, |_| {
            let (status, _) = world.client.call(method, path, &body, "application/json")?;
            if status != 200 {
                bail!("{method} {path}: {status}");
            }
            Ok(())
        })?;
        let shown = if path.starts_with("/v1/services/") { "/v1/services/ID" } else { path };
        row(&format!("{method} {shown}"), took, None);
    }
    let list = times(SAMPLES, |_| world.client.call("GET", "/v1/services", "", "application/json"))?;
    let list = row("GET /v1/services", list, Some(LIST_GOAL));
    let limits = times(WRITE_SAMPLES, |n| world.client.json("PUT", &path, &json!({"bandwidth_limit_mbps": 100 + n})))?;
    row("PUT /v1/services/ID", limits, None);
    let routes = times(WRITE_SAMPLES, |n| {
        let route = json!({"routes": [{"dest_cidr": format!("172.16.{n}.0/24")}]});
        world.client.json("POST", &format!("{path}/routes"), &route)
    })?;
    row("POST /v1/services/ID/routes", routes, None);
    let cli = times(CLI_SAMPLES, |_| world.operator.ok(&["services", "list"]))?;
    let cli = row("arctic services list", cli, Some(CLI_GOAL));
    // It asks for each service by itself.
    let all_routes = times(CLI_SAMPLES / 8, |_| world.operator.ok(&["routes", "list"]))?;
    row("arctic routes list", all_routes, None);
    let status = times(CLI_SAMPLES, |_| world.operator.ok(&["status"]).or(Ok::<_, anyhow::Error>(String::new())))?;
    row("arctic status", status, None);
    // The agent may have closed the old connection, which was idle meanwhile.
    world.client = Client::log_in(&world.sites.london, ThreeSites::LONDON, &world.operator)?;
    world.client.json("DELETE", &path, &Value::Null)?;
    Ok(list < LIST_GOAL && cli < CLI_GOAL)
}

fn add_service(client: &mut Client, tokyo: &str, n: usize) -> Result<()> {
    let body = json!({"target_peer_id": tokyo, "name": format!("service-{n:04}")});
    let service = client.json("POST", "/v1/services", &body)?;
    let path = format!("/v1/services/{}/routes", service["id"].as_str().context("an id")?);
    let route = |k: usize| json!({"dest_cidr": format!("10.{}.{}.{}/32", 100 + n / 250, n % 250, k)});
    let routes: Vec<Value> = (0..ROUTES_EACH).map(route).collect();
    client.json("POST", &path, &json!({ "routes": routes })).map(drop)
}

/// 1,000 services of london to tokyo, every one with 10 routes.
fn fill(world: &mut World) -> Result<()> {
    let began = Instant::now();
    let failed = std::thread::scope(|scope| {
        let (sites, operator, tokyo) = (&world.sites, &world.operator, world.tokyo.as_str());
        let workers: Vec<_> = (0..WRITERS)
            .map(|first| {
                scope.spawn(move || {
                    let mut client = Client::log_in(&sites.london, ThreeSites::LONDON, operator)?;
                    (first..SERVICES).step_by(WRITERS).try_for_each(|n| add_service(&mut client, tokyo, n))
                })
            })
            .collect();
        workers.into_iter().find_map(|worker| worker.join().expect("a writer does not panic").err())
    });
    if let Some(error) = failed {
        return Err(error);
    }
    println!("filled in {:.1} s", began.elapsed().as_secs_f64());
    let there = format!("http://{}:{API_PORT}", ThreeSites::OSLO);
    loop {
        let known: Vec<Value> = world.operator.json(&["services", "list", "--url", &there])?;
        let here: Vec<Value> = world.operator.json(&["services", "list"])?;
        let applied = here.iter().filter(|s| s["conditions"].to_string().contains("applied")).count();
        if known.len() == SERVICES && applied == SERVICES {
            break;
        }
        ensure!(began.elapsed() < SETTLED_WITHIN, "{} known in oslo, {applied} applied", known.len());
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("known and applied everywhere after {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> Result<()> {
    let mut world = world()?;
    let idle = measure(&mut world, "three agents, nothing in them")?;
    fill(&mut world)?;
    // The agent has closed the old connection, which was idle meanwhile.
    world.client = Client::log_in(&world.sites.london, ThreeSites::LONDON, &world.operator)?;
    let full = measure(&mut world, "1,000 services, 10,000 routes")?;
    ensure!(idle && full, "a goal is not met");
    Ok(())
}

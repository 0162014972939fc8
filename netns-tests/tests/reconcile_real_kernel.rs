//! The reconcilers on the real kernel: applied, repaired, removed.

mod support;

use arctic::{
    env::SystemClock,
    kernel::{BoxFuture, Intercept, Kernel, MarkMask, Owned},
    model::{DataPorts, Endpoint, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, UnixTime},
    os::LinuxKernel,
    reconcile::{Change, Desired, EngineState, Reconcile, Settings, Source, Status},
    routing::PeerPath,
    store::StoreError,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use support::{in_namespace, sh};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// dataplane.md §7.
const DRIFT_REPAIR_MAX: Duration = Duration::from_secs(5);

struct TestSource(watch::Receiver<Desired>);

impl Source for TestSource {
    fn desired(&mut self) -> Result<Desired, StoreError> {
        Ok(self.0.borrow_and_update().clone())
    }
    fn changed(&mut self) -> BoxFuture<'_, Change> {
        Box::pin(async {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            Change::State
        })
    }
}

/// `count` services of this host to one other, two routes each.
fn desired(revision: u64, count: u64) -> Desired {
    let mut rng = Rng::from_seed([4; 32]);
    let at = UnixTime::from_secs(1);
    let (here, there) = (PeerId::mint(at, &mut rng), PeerId::mint(at, &mut rng));
    let key = SigningKey::from_seed([5; 32]);
    let path = PeerPath {
        public_key: key.public(),
        x25519_key: key.x25519_public(),
        endpoints: vec![Endpoint::new("192.0.2.2", 8080).expect("an endpoint")],
        data_ports: DataPorts::default(),
    };
    let mut service = |n: u64| {
        let route = |id, net: String| Route {
            id,
            source_cidr: None,
            dest_cidr: Some(net.parse().expect("a network")),
            priority: 100,
            version: 1,
            created_at: at,
        };
        let routes = vec![route(1, format!("10.{}.{}.0/24", n / 256, n % 256)), route(2, format!("fd00:{n:x}::/32"))];
        let body = ServiceBody { routes, next_route_id: 3, ..ServiceBody::plain(&format!("s{n}"), here, there, at) };
        Service { id: ServiceId::mint(at, &mut rng), version: 1, body }
    };
    let services = (0..count).map(&mut service).collect();
    let peers = BTreeMap::from([(there, path)]);
    Desired { revision, peers, services, data_plane_runs: true, ..Desired::idle(Some(here)) }
}

async fn wait(status: &mut watch::Receiver<Status>, good: impl Fn(&Status) -> bool) -> Duration {
    let started = Instant::now();
    let waited = tokio::time::timeout(Duration::from_secs(20), status.wait_for(good)).await;
    waited.expect("in 20 s").expect("the loop runs");
    started.elapsed()
}

// accepts: 002-44
#[test]
fn a_thousand_services_are_applied_repaired_and_removed() {
    in_namespace(|| async {
        let kernel = Arc::new(LinuxKernel::open().expect("netlink sockets open"));
        let (input, source) = watch::channel(desired(1, 0));
        let settings = Settings { mask: MarkMask::default(), ..Settings::default() };
        let clock = Arc::new(SystemClock::new());
        let reconcile = Reconcile::new(kernel.clone(), clock, TestSource(source), settings);
        let mut status = reconcile.status();
        let intercept = Intercept {
            v4: Some("127.0.0.1:50001".parse().expect("an address")),
            v6: Some("[::1]:50002".parse().expect("an address")),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(reconcile.run(watch::channel(EngineState::Ready(intercept)).1, stop.clone()));
        wait(&mut status, |s| s.applied_revision == 1).await;
        assert!(!sh("nft list table inet arctic").contains("tproxy"), "base state");

        input.send_replace(desired(2, 1000));
        let took = wait(&mut status, |s| s.applied_revision == 2).await;
        println!("1000 services, 2000 routes: applied in {took:?}");
        assert_eq!(sh("nft list table inet arctic | grep -o '/[12]\" : jump intercept_' | wc -l").trim(), "2000");

        let edits = [
            "nft flush ruleset",
            "nft flush chain inet arctic output",
            "nft add rule inet arctic input drop",
            "nft delete table inet arctic_iptun",
            "ip rule del pref 10004",
            "ip -6 rule del pref 10000",
            "ip route flush table 610",
            "ip -6 route flush table 610",
        ];
        for (repairs, edit) in (1..).zip(edits) {
            let before = kernel.read_owned().await.expect("own state can be read");
            sh(edit);
            let took = wait(&mut status, |s| s.firewall.drift_repairs >= repairs).await;
            println!("{edit}: repaired in {took:?}");
            assert!(took < DRIFT_REPAIR_MAX, "{took:?}");
            assert_eq!(kernel.read_owned().await.as_ref(), Ok(&before), "{edit}");
        }

        input.send_replace(desired(3, 1));
        wait(&mut status, |s| s.applied_revision == 3).await;
        assert_eq!(sh("nft list ruleset | grep -c 'tproxy ip6* to'").trim(), "2", "rules of deleted services are gone");
        stop.cancel();
        task.await.expect("the loop ends");
        assert_eq!(kernel.read_owned().await, Ok(Owned::default()));
    });
}

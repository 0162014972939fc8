//! The data plane alone carries flows of both families, and refuses what it should.

use std::io::Read;
use std::net::TcpStream;

use arctic::dataplane::Refusal;
use arctic::env::{RunningEngines, TunnelState};
use netns_tests::bulk;
use netns_tests::plane::{echo_through, plane};
use netns_tests::probe::{Feature, require};
use netns_tests::service::TcpService;
use netns_tests::topology::{self, Profile, SERVER, at};

const NEEDS: [Feature; 4] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy];

#[test]
fn captured_flows_of_both_families_and_of_the_source_itself_reach_the_server() {
    if !require(&NEEDS) {
        return;
    }
    let plane = plane("engines", Profile::CLEAN);
    let sites = &plane.sites;
    let tunnel = plane.london.engine().tunnel().borrow().clone();
    assert!(matches!(tunnel, TunnelState::Ready { .. }), "started with its tunnel, but {tunnel:?}");
    let v6 = topology::SERVER_V6;
    let (echo, echo6) = (at(SERVER, 7), at(v6, 7));
    let _services = [TcpService::echo(&sites.server, echo).unwrap(), TcpService::echo(&sites.server, echo6).unwrap()];
    for dest in [echo, echo6] {
        echo_through(&sites.client, dest);
        // Traffic that starts on the source peer itself.
        echo_through(&sites.london, dest);
    }
    let counts = plane.london.engine().counters().services()[&plane.service].clone();
    assert_eq!((counts.opened, counts.bytes_to_target, counts.bytes_to_source), (4, 20, 20));

    let bulk_at = at(SERVER, 5001);
    let _bulk = bulk::server(&sites.server, bulk_at).unwrap();
    bulk::fetch_exactly(&sites.client, bulk_at, 5, 20_000_000).unwrap();
    bulk::push_exactly(&sites.client, bulk_at, 6, 20_000_000).unwrap();

    // A refused port resets; a dial of the listener itself too.
    let refused = sites.client.run(|| TcpStream::connect(at(SERVER, 9)).and_then(|mut s| s.read(&mut [0])));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let port = plane.london.intercept.v4;
    let dialled = sites.london.run(|| TcpStream::connect(("127.0.0.1", port)).and_then(|mut s| s.read(&mut [0])));
    assert_eq!(dialled.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(plane.london.engine().counters().engine().refused.get(&Refusal::NotCaptured), Some(&1));
}

#[test]
fn bytes_arrive_exactly_over_a_long_lossy_link() {
    if !require(&NEEDS) {
        return;
    }
    let plane = plane("ocean", Profile::OCEAN);
    let dest = at(SERVER, 5001);
    let _bulk = bulk::server(&plane.sites.server, dest).unwrap();
    bulk::fetch_exactly(&plane.sites.client, dest, 7, 3_000_000).unwrap();
    bulk::push_exactly(&plane.sites.client, dest, 8, 3_000_000).unwrap();
}

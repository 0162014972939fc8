//! The kcp transport between two real engines: what a flow may expect does not depend on what carries it.

use super::{
    ends::{both_ways, pattern},
    *,
};
use crate::wire::stream::StreamRefusal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_arrive_exactly_and_are_counted_at_both_ends() {
    let pair = Pair::over(Transport::Kcp);
    let sizes =
        [(0, 0), (1, 100), (5_000, 3_000_000), (4_000_000, 1), (700_000, 700_000), (0, 50_000), (3, 0), (99_999, 1)];
    let mut flows = vec![];
    for (n, (up, down)) in (1u8..).zip(sizes) {
        let (client, server) = pair.flow().await;
        flows.push(tokio::spawn(async move {
            let (up, down) = (pattern(up, n), pattern(down, n ^ 0x80));
            let [at_server, at_client] = both_ways(client, server, &up, &down, 30_000).await;
            assert!(at_server == up && at_client == down, "flow {n}");
        }));
    }
    for flow in flows {
        flow.await.unwrap();
    }
    let (up, down) = sizes.iter().fold((0, 0), |(u, d), (up, down)| (u + *up as u64, d + *down as u64));
    for peer in [&pair.a, &pair.b] {
        eventually("all flows are closed", || peer.engine().counters().services()[&pair.service].active == 0).await;
        let counts = peer.engine().counters().services()[&pair.service].clone();
        assert_eq!((counts.bytes_to_target, counts.bytes_to_source, counts.opened), (up, down, sizes.len() as u64));
    }
    // Nothing went another way.
    assert_eq!(pair.a.engine().counters().engine().dialled_for_flow, 0);
    assert_eq!(pair.a.engine().counters().engine().warm_taken, 0);
}

#[tokio::test]
async fn half_close_is_kept_both_ways() {
    let pair = Pair::over(Transport::Kcp);
    let (mut client, mut server) = pair.flow().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"request");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"answer");

    let (mut client, mut server) = pair.flow().await;
    server.write_all(b"last words").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"last words");
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"still here");
}

#[tokio::test]
async fn a_reset_stays_a_reset_either_way_and_bytes_before_it_arrive() {
    let pair = Pair::over(Transport::Kcp);
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    sockets::set_reset_on_drop(&client, true).unwrap();
    drop(client);
    assert_reset(&mut server).await;

    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    server.write_all(b"refused, and here is why").await.unwrap();
    client.write_all(b"unread").await.unwrap();
    assert_eq!(server.peek(&mut [0]).await.unwrap(), 1);
    drop(server);
    let mut why = [0; 24];
    soon("the answer arrives", client.read_exact(&mut why)).await.unwrap();
    assert_eq!(&why, b"refused, and here is why");
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn the_exit_refuses_as_it_does_over_tcp() {
    let pair = Pair::over(Transport::Kcp);
    for (dest, refusal) in [
        ("127.0.0.1:80", StreamRefusal::ForbiddenDestination),
        ("203.0.113.1:80", StreamRefusal::OutsideRoutes),
        ("198.18.0.1:1", StreamRefusal::ConnectionRefused),
    ] {
        // With the usual routes the source would refuse the first two itself.
        let usual = pair.snapshot(|_| {});
        let forwarding = Forwarding::new(2, usual.peers.clone(), usual.services.clone(), &[everything(&pair)]);
        pair.a.snapshot.send_replace(Arc::new(forwarding));
        let mut client = pair.connect(dest.parse().unwrap()).await;
        assert_reset(&mut client).await;
        assert_eq!(pair.refused_a(Refusal::Exit(refusal)), 1, "{dest}");
        assert_eq!(pair.refused_b(Refusal::Exit(refusal)), 1, "{dest}");
    }
}

fn everything(pair: &Pair) -> Service {
    let route = Route {
        id: 1,
        source_cidr: None,
        dest_cidr: Some(net("0.0.0.0/0")),
        priority: 100,
        version: 1,
        created_at: UnixTime::from_ms(0),
    };
    let body = ServiceBody {
        transport_type: Transport::Kcp,
        routes: vec![route],
        ..ServiceBody::plain("s", pair.a.id, pair.b.id, UnixTime::from_ms(0))
    };
    Service { id: pair.service, version: 1, body }
}

#[tokio::test]
async fn revocation_on_either_side_closes_running_flows_at_once() {
    let pair = Pair::over(Transport::Kcp);
    let (a, b) = (pair.a.id, pair.b.id);
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    pair.publish_b(|f| drop(f.peers.remove(&a)));
    assert_reset(&mut server).await;
    pair.publish_a(|f| drop(f.peers.remove(&b)));
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn flows_of_a_removed_service_are_cut_and_others_are_not() {
    let pair = Pair::over(Transport::Kcp);
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    pair.publish_a(|f| f.revision += 1);
    pair.publish_b(|f| f.revision += 1);
    exchange(&mut client, &mut server).await;
    pair.publish_b(|f| f.services.clear());
    assert_reset(&mut server).await;
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn an_exit_that_stops_resets_its_flows_and_one_that_comes_back_is_found() {
    let mut pair = Pair::over(Transport::Kcp);
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    let exit = pair.b.engine.take().unwrap();
    let port = exit.kcp_port();
    soon("the engine ends", exit.shutdown()).await;
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    pair.b.start_at(DataPorts { tproxy: 0, kcp: port, ..DataPorts::default() }, Timing::default());
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_reader_that_pauses_stops_its_writer_and_nobody_else() {
    let pair = Pair::over(Transport::Kcp);
    let (client, mut server) = pair.flow().await;
    let stuffed = async {
        let mut sent = 0;
        while tokio::time::timeout(Duration::from_millis(500), client.writable()).await.is_ok() {
            sent += client.try_write(&[7; 65_536]).unwrap_or(0);
        }
        sent
    };
    let sent = soon("the way is full", stuffed).await;
    let (mut other, mut other_server) = pair.flow().await;
    exchange(&mut other, &mut other_server).await;
    let mut got = vec![0; sent];
    soon("all arrives once it is read", server.read_exact(&mut got)).await.unwrap();
    assert!(got.iter().all(|byte| *byte == 7));
}

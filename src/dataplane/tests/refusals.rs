//! Flows that are not carried: the client is reset, the reason counted.

use super::*;
use crate::wire::stream::{StreamHeader, StreamRefusal, decode_reply};
use tokio_rustls::{TlsConnector, client::TlsStream};

async fn assert_refused(pair: &Pair, dest: &str, refusal: Refusal) {
    let mut client = pair.connect(dest.parse().unwrap()).await;
    assert_reset(&mut client).await;
    eventually("the refusal is counted", || pair.refused_a(refusal) == 1).await;
}

#[tokio::test]
async fn a_destination_outside_the_routes_is_refused_by_the_exit() {
    let mut pair = Pair::new();
    pair.forwarded.routes = vec![(None, Some(net("198.18.7.0/24")))];
    pair.publish_b(|_| {});
    let outside = Refusal::Exit(StreamRefusal::OutsideRoutes);
    assert_refused(&pair, "198.18.8.1:80", outside).await;
    assert_eq!(pair.refused_b(outside), 1);
}

#[tokio::test]
async fn a_flow_that_no_route_covers_is_reset() {
    assert_refused(&Pair::new(), "203.0.113.1:80", Refusal::NoRoute).await;
}

#[tokio::test]
async fn a_peer_that_is_not_the_source_is_refused_by_the_exit() {
    let pair = Pair::new();
    let other = PeerId::mint(UnixTime::from_ms(7), &mut Rng::from_seed([7; 32]));
    pair.publish_b(|f| f.services.get_mut(&pair.service).unwrap().source = other);
    assert_refused(&pair, "198.18.0.9:80", Refusal::Exit(StreamRefusal::NotTheSource)).await;
}

#[tokio::test]
async fn a_service_that_the_exit_does_not_know_is_refused() {
    let pair = Pair::new();
    pair.publish_b(|f| f.services.clear());
    let unknown = Refusal::Exit(StreamRefusal::UnknownService);
    assert_refused(&pair, "198.18.0.9:80", unknown).await;
    assert_eq!(pair.refused_b(unknown), 1);
    assert!(pair.b.engine().counters().services().is_empty(), "unknown services take no memory");
}

#[tokio::test]
async fn loopback_and_ports_of_the_agent_are_never_dialled() {
    let mut pair = Pair::unpublished();
    let local = sockets::local_addresses().unwrap();
    let own = local.into_iter().find(|ip| ip.is_ipv4() && !ip.is_loopback());
    pair.forwarded.routes = vec![(None, Some(net("0.0.0.0/0")))];
    pair.publish_a(|_| {});
    pair.publish_b(|_| {});
    let forbidden = Refusal::Exit(StreamRefusal::ForbiddenDestination);
    assert_refused(&pair, "127.0.0.1:9", forbidden).await;
    let core = &pair.b.engine().core;
    assert!(core.forbids("127.0.0.1:8080".parse().unwrap()));
    assert!(core.forbids(SocketAddr::new([127, 0, 0, 1].into(), pair.b.engine().stream_port())));
    assert!(!core.forbids("127.0.0.1:81".parse().unwrap()));
    assert!(!core.forbids("203.0.113.1:8080".parse().unwrap()), "the same port elsewhere");
    if let Some(own) = own {
        let mut client = pair.connect(SocketAddr::new(own, 8080)).await;
        assert_reset(&mut client).await;
        eventually("the refusal is counted", || pair.refused_a(forbidden) == 2).await;
    }
}

#[tokio::test]
async fn a_closed_port_at_the_destination_resets_the_client() {
    let server = Server::new().await;
    let closed = server.dest().to_string();
    drop(server);
    assert_refused(&Pair::new(), &closed, Refusal::Exit(StreamRefusal::ConnectionRefused)).await;
}

#[tokio::test]
async fn a_dead_target_resets_the_client() {
    let mut pair = Pair::new();
    pair.b.engine.take().unwrap().shutdown().await;
    // The path still names the port of the engine that is gone.
    assert_refused(&pair, "198.18.0.9:80", Refusal::TargetUnreachable).await;
}

#[tokio::test]
async fn a_target_that_comes_back_is_used_again() {
    let (mut pair, port) = (Pair::unpublished(), lasting_port());
    pair.b.start(port);
    pair.publish_a(|_| {});
    pair.publish_b(|_| {});
    pair.b.engine.take().unwrap().shutdown().await;
    assert_refused(&pair, "198.18.0.9:80", Refusal::TargetUnreachable).await;
    pair.b.start(port);
    soon("the pool is warm again", pair.a.engine().warmed(pair.b.id, 2)).await;
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
}

#[tokio::test]
async fn a_service_over_kcp_is_not_carried_over_tcp() {
    let mut pair = Pair::unpublished();
    pair.forwarded.transport = Transport::Kcp;
    pair.a.start_timed(0, Timing { peer_connect: Duration::from_millis(300), ..Timing::default() });
    let b = pair.b.id;
    pair.publish_a(|f| f.peers.get_mut(&b).unwrap().data_ports.kcp = 1);
    pair.publish_b(|_| {});
    assert_refused(&pair, "198.18.0.9:80", Refusal::TargetUnreachable).await;

    pair.forwarded.transparent = true;
    pair.publish_a(|_| {});
    assert_refused(&pair, "198.18.0.9:80", Refusal::TransportUnavailable).await;
    assert_eq!(Refusal::TransportUnavailable.to_string(), "transport not available");
}

#[tokio::test]
async fn a_transparent_service_is_not_carried_with_the_address_of_the_exit() {
    let mut pair = Pair::unpublished();
    pair.forwarded.transparent = true;
    pair.publish_b(|_| {});
    pair.forwarded.transparent = false;
    pair.publish_a(|_| {});
    // The client's address is of loopback here: it is asked for, and no exit dials with it.
    assert_refused(&pair, "198.18.0.9:80", Refusal::Exit(StreamRefusal::ForbiddenSource)).await;
    pair.publish_b(|_| {});
    pair.forwarded.transparent = true;
    pair.publish_a(|_| {});
    assert_refused(&pair, "198.18.0.9:80", Refusal::Exit(StreamRefusal::TransparentUnavailable)).await;
}

/// A connection of peer `a` to the exit with nothing sent.
async fn raw_stream(pair: &Pair) -> TlsStream<TcpStream> {
    let client = pair.a.engine().core.identity.client(pair.b.key.public()).unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", pair.b.engine().stream_port())).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    TlsConnector::from(Arc::new(client)).connect(name, tcp).await.unwrap()
}

#[tokio::test]
async fn a_broken_header_is_answered_and_counted() {
    let pair = Pair::new();
    let mut stream = raw_stream(&pair).await;
    stream.write_all(&[0, 4, 1, 0, 0, 0]).await.unwrap();
    let mut reply = [0; 2];
    soon("the exit answers", stream.read_exact(&mut reply)).await.unwrap();
    assert_eq!(decode_reply(reply), Ok(Err(StreamRefusal::BadHeader)));
    assert_eq!(pair.refused_b(Refusal::Protocol), 1);
}

#[tokio::test]
async fn a_slow_header_is_given_up() {
    let mut pair = Pair::unpublished();
    pair.b.start_timed(0, Timing { header: Duration::from_millis(50), ..Timing::default() });
    pair.publish_b(|_| {});
    let mut stream = raw_stream(&pair).await;
    stream.write_all(&[0]).await.unwrap();
    let mut reply = [0; 2];
    soon("the exit answers", stream.read_exact(&mut reply)).await.unwrap();
    assert_eq!(decode_reply(reply), Ok(Err(StreamRefusal::BadHeader)));
}

#[tokio::test]
async fn a_header_in_single_bytes_opens_a_stream() {
    let pair = Pair::new();
    let server = Server::new().await;
    let source = "10.0.0.1:5".parse().unwrap();
    let header =
        StreamHeader { service: pair.service, source, dest: server.dest(), transparent: false, limited: false };
    let mut stream = raw_stream(&pair).await;
    for byte in header.encode() {
        stream.write_all(&[byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    stream.write_all(b"hi").await.unwrap();
    let mut hi = [0; 2];
    soon("the bytes behind it arrive", server.accept().await.read_exact(&mut hi)).await.unwrap();
    assert_eq!(&hi, b"hi");
}

#[tokio::test]
async fn a_stream_cut_without_its_closing_is_a_reset_not_an_end() {
    let pair = Pair::new();
    let server = Server::new().await;
    let source = "10.0.0.1:5".parse().unwrap();
    let header =
        StreamHeader { service: pair.service, source, dest: server.dest(), transparent: false, limited: false };
    let mut stream = raw_stream(&pair).await;
    stream.write_all(&header.encode()).await.unwrap();
    let mut at_server = server.accept().await;
    // FIN below TLS, no close_notify.
    sockets::finish_sending(stream.get_ref().0).unwrap();
    assert_reset(&mut at_server).await;
}

#[tokio::test]
async fn connections_without_a_stream_are_bounded_per_peer() {
    let pair = Pair::unpublished();
    pair.publish_b(|_| {});
    let mut held = vec![];
    for _ in 0..limits::MAX_IDLE_PER_PEER {
        held.push(raw_stream(&pair).await);
    }
    eventually("all are admitted", || {
        pair.b.engine().counters().engine().handshakes == limits::MAX_IDLE_PER_PEER as u64
    })
    .await;
    let _one_more = raw_stream(&pair).await;
    eventually("one more is refused", || pair.refused_b(Refusal::Busy) == 1).await;
}

//! Who may speak, and what a new snapshot cuts.

use super::*;
use tokio_rustls::TlsConnector;

async fn tls_to(identity: &tls::Identity, pinned: PublicKey, port: u16) -> io::Result<Vec<u8>> {
    let connector = TlsConnector::from(Arc::new(identity.client(pinned).unwrap()));
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = rustls::pki_types::ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    let mut stream = connector.connect(name, tcp).await?;
    let mut all = vec![];
    soon("the connection ends", stream.read_to_end(&mut all)).await.map(|_| all)
}

fn stranger() -> tls::Identity {
    tls::Identity::new(&SigningKey::from_seed([9; 32]), watch::Sender::default().subscribe()).unwrap()
}

#[tokio::test]
async fn an_unknown_key_is_refused_in_the_handshake() {
    let pair = Pair::new();
    let e = tls_to(&stranger(), pair.b.key.public(), pair.b.engine().stream_port()).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData, "an alert: {e}");
    eventually("the refusal is counted", || pair.refused_b(Refusal::Handshake) == 1).await;
    let admitted = pair.b.engine().counters().engine().handshakes;
    assert!(admitted <= 2, "only the pool of the source");
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_by_the_client() {
    let pair = Pair::new();
    let identity = &pair.a.engine().core.identity;
    let e = tls_to(identity, stranger_key(), pair.b.engine().stream_port()).await.unwrap_err();
    assert!(e.to_string().contains("certificate"), "{e}");
}

fn stranger_key() -> PublicKey {
    SigningKey::from_seed([9; 32]).public()
}

#[tokio::test]
async fn bytes_that_are_not_tls_are_refused() {
    let pair = Pair::new();
    let mut stream = TcpStream::connect(("127.0.0.1", pair.b.engine().stream_port())).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = read_all(&mut stream).await;
    eventually("the refusal is counted", || pair.refused_b(Refusal::Handshake) == 1).await;
}

#[tokio::test]
async fn revocation_at_the_exit_closes_running_streams_at_once() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    pair.publish_b(|f| {
        f.peers.remove(&pair.a.id);
    });
    assert_reset(&mut server).await;
    assert_reset(&mut client).await;
    // And the ready connections, which come back in vain.
    let level = pair.a.engine().core.pools.existing(pair.b.id).unwrap().level();
    eventually("the pool is empty", || *level.borrow() == 0).await;
}

#[tokio::test]
async fn revocation_at_the_source_closes_running_streams_at_once() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    pair.publish_a(|f| {
        f.peers.remove(&pair.b.id);
    });
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    let mut late = pair.connect("198.18.0.9:1".parse().unwrap()).await;
    assert_reset(&mut late).await;
    assert_eq!(pair.refused_a(Refusal::UnknownTarget), 1);
}

#[tokio::test]
async fn a_changed_key_is_another_peer() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    pair.publish_b(|f| f.peers.get_mut(&pair.a.id).unwrap().public_key = stranger_key());
    assert_reset(&mut server).await;
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn flows_of_a_removed_service_are_cut() {
    for at_source in [true, false] {
        let pair = Pair::new();
        let (mut client, mut server) = pair.flow().await;
        exchange(&mut client, &mut server).await;
        if at_source {
            pair.publish_a(|f| f.services.clear());
        } else {
            pair.publish_b(|f| f.services.clear());
        }
        assert_reset(&mut client).await;
        assert_reset(&mut server).await;
    }
}

#[tokio::test]
async fn new_snapshots_leave_flows_of_unchanged_services_alone() {
    let mut pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    for revision in 2..20 {
        pair.publish_a(|f| f.revision = revision);
        pair.publish_b(|f| f.revision = revision);
        exchange(&mut client, &mut server).await;
    }
    // Other routes, another address of the peer: neither concerns a flow that is open.
    pair.forwarded.routes = vec![(None, Some(net("198.18.7.0/24")))];
    pair.publish_a(|f| {
        let endpoints = &mut f.peers.get_mut(&pair.b.id).unwrap().endpoints;
        endpoints.insert(0, Endpoint::new("127.0.0.9", 8080).unwrap());
    });
    pair.publish_b(|_| {});
    exchange(&mut client, &mut server).await;
}

#[tokio::test]
async fn shutdown_resets_flows_and_frees_the_port() {
    let (mut pair, port) = (Pair::unpublished(), lasting_port());
    pair.b.start(port);
    pair.publish_a(|_| {});
    pair.publish_b(|_| {});
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    soon("shutdown", pair.b.engine.take().unwrap().shutdown()).await;
    assert_reset(&mut server).await;
    assert_reset(&mut client).await;
    let e = TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::ConnectionRefused);
    pair.b.start(port);
}

#[tokio::test]
async fn a_dropped_engine_ends_too() {
    let mut pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    drop(pair.a.engine.take());
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn the_next_endpoint_is_tried_when_the_first_fails() {
    let pair = Pair::unpublished();
    pair.publish_a(|f| {
        let endpoints = &mut f.peers.get_mut(&pair.b.id).unwrap().endpoints;
        // TCP to a multicast address fails at once and sends nothing.
        endpoints.insert(0, Endpoint::new("224.0.0.1", 8080).unwrap());
    });
    pair.publish_b(|_| {});
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
}

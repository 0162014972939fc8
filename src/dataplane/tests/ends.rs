//! Bytes, half-closes, resets, ends.

use super::*;
use proptest::prelude::*;

pub(super) fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ (i >> 11) as u8 ^ salt).collect()
}

/// Sends `up` and `down` at the same time in pieces, both ends half-closing when done; gives what each end read.
pub(super) async fn both_ways(
    client: TcpStream,
    server: TcpStream,
    up: &[u8],
    down: &[u8],
    piece: usize,
) -> [Vec<u8>; 2] {
    async fn send(mut half: tokio::net::tcp::OwnedWriteHalf, bytes: &[u8], piece: usize) {
        for part in bytes.chunks(piece) {
            half.write_all(part).await.unwrap();
        }
        half.shutdown().await.unwrap();
    }
    async fn read(mut half: tokio::net::tcp::OwnedReadHalf) -> Vec<u8> {
        let mut all = vec![];
        half.read_to_end(&mut all).await.unwrap();
        all
    }
    let ((client_read, client_write), (server_read, server_write)) = (client.into_split(), server.into_split());
    let all = async {
        tokio::join!(
            send(client_write, up, piece),
            send(server_write, down, piece),
            read(server_read),
            read(client_read)
        )
    };
    let ((), (), at_server, at_client) = soon("both directions end", all).await;
    [at_server, at_client]
}

#[test]
fn every_byte_arrives_in_both_directions() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pair = runtime.block_on(async { Pair::new() });
    let sizes = prop_oneof![Just(0usize), 1..200usize, 10_000..300_000usize, 1_000_000..3_000_000usize];
    let config = ProptestConfig { cases: 16, ..ProptestConfig::default() };
    proptest!(config, |(up in sizes.clone(), down in sizes, piece in 1_000..200_000usize)| {
        let (up, down) = (pattern(up, 1), pattern(down, 2));
        let [at_server, at_client] = runtime.block_on(async {
            let (client, server) = pair.flow().await;
            both_ways(client, server, &up, &down, piece).await
        });
        prop_assert!(at_server == up && at_client == down);
    });
    runtime.block_on(eventually("all streams are closed", || {
        [&pair.a, &pair.b].iter().all(|p| p.engine().counters().services()[&pair.service].active == 0)
    }));
}

#[tokio::test]
async fn bytes_are_counted_at_both_ends() {
    let pair = Pair::new();
    let (client, server) = pair.flow().await;
    both_ways(client, server, &pattern(70_000, 0), &pattern(5_000, 0), 10_000).await;
    for peer in [&pair.a, &pair.b] {
        let counts = peer.engine().counters().services()[&pair.service].clone();
        assert_eq!((counts.bytes_to_target, counts.bytes_to_source, counts.opened), (70_000, 5_000, 1));
    }
}

#[tokio::test]
async fn ipv6_flows_are_carried_too() {
    let pair = Pair::new();
    let Some(server) = Server::new_v6().await else { return };
    let mut client = pair.connect(server.dest()).await;
    exchange(&mut client, &mut server.accept().await).await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    server.write_all(b"hello").await.unwrap();
    let mut five = [0; 5];
    soon("the greeting arrives", client.read_exact(&mut five)).await.unwrap();
    assert_eq!(&five, b"hello");
}

// A half-close of either side leaves the other direction open for as long as it wants.
#[tokio::test]
async fn half_close_is_kept_both_ways() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"request");
    let answer = pattern(1_000_000, 7);
    let (sent, read) = tokio::join!(
        async {
            server.write_all(&answer).await.unwrap();
            server.shutdown().await.unwrap();
        },
        read_all(&mut client)
    );
    assert_eq!((sent, read.unwrap()), ((), answer));

    let (mut client, mut server) = pair.flow().await;
    server.write_all(b"last words").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"last words");
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"still here");
}

#[tokio::test]
async fn a_reset_of_the_server_resets_the_client() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    sockets::set_reset_on_drop(&server, true).unwrap();
    drop(server);
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn a_reset_of_the_client_resets_the_server() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    sockets::set_reset_on_drop(&client, true).unwrap();
    drop(client);
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn bytes_sent_before_a_reset_arrive_before_it() {
    let pair = Pair::new();
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    server.write_all(b"refused, and here is why").await.unwrap();
    let mut why = [0; 24];
    // Closing with the client's bytes unread makes the kernel send a reset behind the answer.
    client.write_all(b"unread").await.unwrap();
    assert_eq!(server.peek(&mut [0]).await.unwrap(), 1);
    drop(server);
    soon("the answer arrives", client.read_exact(&mut why)).await.unwrap();
    assert_eq!(&why, b"refused, and here is why");
    assert_reset(&mut client).await;
}

#[tokio::test]
async fn a_server_that_hangs_up_behind_its_last_words_stops_a_client_that_still_sends() {
    for transport in [Transport::Tcp, Transport::Kcp] {
        let pair = Pair::over(transport);
        let (mut client, mut server) = pair.flow().await;
        exchange(&mut client, &mut server).await;
        server.write_all(b"enough").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), b"enough");
        drop(server);
        let sending = async {
            while client.write_all(&[0; 1000]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // Well before the engines lose patience.
        tokio::time::timeout(Timing::default().drain / 2, sending).await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_of_a_client_that_is_not_read_from_still_reaches_the_server() {
    let mut pair = Pair::unpublished();
    let timing = Timing { drain: Duration::from_millis(50), ..Timing::default() };
    pair.a.start_timed(0, timing.clone());
    pair.b.start_timed(0, timing);
    pair.publish_a(|_| {});
    pair.publish_b(|_| {});
    let (client, mut server) = pair.flow().await;
    // The server reads nothing, until no side of the relay takes any more.
    let stuffed = async {
        while tokio::time::timeout(Duration::from_millis(500), client.writable()).await.is_ok() {
            let _ = client.try_write(&[0; 65_536]);
        }
    };
    soon("the way is full", stuffed).await;
    sockets::set_reset_on_drop(&client, true).unwrap();
    drop(client);
    let error = async {
        let ready = server.ready(tokio::io::Interest::ERROR).await.unwrap();
        assert!(ready.is_error());
    };
    soon("the server learns of the reset", error).await;
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn an_idle_stream_is_closed_and_a_busy_one_is_not() {
    let mut pair = Pair::unpublished();
    pair.a.start_timed(0, Timing { idle: Duration::from_millis(1500), ..Timing::default() });
    pair.publish_a(|_| {});
    pair.publish_b(|_| {});
    let (mut client, mut server) = pair.flow().await;
    for _ in 0..10 {
        exchange(&mut client, &mut server).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    exchange(&mut client, &mut server).await;
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
}

#[tokio::test]
async fn a_ready_connection_serves_a_flow_without_a_handshake() {
    let pair = Pair::new();
    soon("the pool is warm", pair.a.engine().warmed(pair.b.id, 2)).await;
    eventually("the exit admitted both", || pair.b.engine().counters().engine().handshakes == 2).await;
    let (mut client, mut server) = pair.flow().await;
    exchange(&mut client, &mut server).await;
    let counts = pair.a.engine().counters().engine();
    assert_eq!((counts.warm_taken, counts.dialled_for_flow), (1, 0));
    // The place that it left is filled again.
    eventually("the pool is refilled", || pair.b.engine().counters().engine().handshakes == 3).await;
}

#[tokio::test]
async fn a_ready_connection_that_died_unseen_costs_the_flow_nothing() {
    let mut pair = Pair::unpublished();
    pair.b.start(lasting_port());
    // A stand-in for the exit that closes each connection at the first byte of a header, then the exit itself.
    let exit = pair.b.engine.take().unwrap();
    let port = exit.stream_port();
    pair.publish_b(|_| {});
    let identity = tls::Identity::new(&pair.b.key, pair.b.snapshot.subscribe()).unwrap();
    exit.shutdown().await;
    let listener = sockets::wan_listener(port, 0).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(identity.server.clone());
    let mut at = pair.snapshot(|_| {}).peers[&pair.b.id].clone();
    at.data_ports.tproxy = port;
    let b = pair.b.id;
    pair.publish_a(|f| {
        f.peers.insert(b, at.clone());
    });
    let mut held = vec![];
    for _ in 0..2 {
        let (tcp, _) = soon("the pool dials", listener.accept()).await.unwrap();
        held.push(soon("handshake", acceptor.accept(tcp)).await.unwrap());
    }
    soon("the pool is warm", pair.a.engine().warmed(b, 2)).await;
    drop(listener);
    pair.b.start(port);
    let server = Server::new().await;
    let mut client = pair.connect(server.dest()).await;
    let mut taken = 0;
    for mut stale in held {
        let mut byte = [0];
        tokio::select! {
            biased;
            read = stale.read(&mut byte) => { read.unwrap(); taken += 1; sockets::set_reset_on_drop(stale.get_ref().0, true).unwrap(); }
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
    assert_eq!(taken, 1);
    exchange(&mut client, &mut server.accept().await).await;
    let counts = pair.a.engine().counters().engine();
    assert_eq!((counts.warm_taken, counts.retried, counts.dialled_for_flow), (1, 1, 1));
}

#[tokio::test]
async fn keys_are_renewed_in_the_middle_of_a_stream() {
    let pair = Pair::new();
    let acceptor = tokio_rustls::TlsAcceptor::from(pair.b.engine().core.identity.server.clone());
    let connector = pair.a.engine().core.identity.client(pair.b.key.public()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(connector));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    let (client, server) = tokio::join!(connector.connect(name, tcp), acceptor.accept(accepted));
    let ((tcp, tls), mut server) = (client.unwrap().into_inner(), server.unwrap());
    let mut session = session::Session::new(tcp, tls.into());
    session.set_rekey_bytes(10_000);
    let bytes = pattern(500_000, 3);
    let send = async {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let sent = std::future::poll_fn(|cx| session.poll_send(cx, &rest[..rest.len().min(3_000)])).await.unwrap();
            rest = &rest[sent..];
        }
        std::future::poll_fn(|cx| session.poll_close(cx)).await.unwrap();
    };
    let mut got = vec![];
    let (_, read) = soon("all bytes pass", async { tokio::join!(send, server.read_to_end(&mut got)) }).await;
    read.unwrap();
    assert!(got == bytes);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_exit_answers_is_no_refusal() {
    let pair = Pair::new();
    soon("the pool is warm", pair.a.engine().warmed(pair.b.id, 2)).await;
    for _ in 0..20 {
        let server = Server::new().await;
        let client = pair.connect(server.dest()).await;
        sockets::set_reset_on_drop(&client, true).unwrap();
        drop(client);
    }
    eventually("all flows have ended", || pair.a.engine().core.flows.available_permits() == limits::MAX_FLOWS).await;
    let refused = &pair.a.engine().counters().services()[&pair.service].refused;
    assert!(refused.is_empty(), "{refused:?}");
}

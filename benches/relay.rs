//! How fast one flow is through two engines, against the same bytes over plain loopback and through two plain relays.
//! Only the ratios mean anything: client, both engines and server share the processor.
//!
//! `cargo bench --bench relay`. Needs a non-loopback IPv4 address on the host, since no exit dials loopback; the bytes
//! stay on the host all the same.

use arctic::{
    dataplane::Engine,
    env::EngineSetup,
    model::{
        DataPorts, Endpoint, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime,
    },
    os::sockets,
    routing::{ForwardedService, Forwarding, PeerPath},
};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

const BULK_BYTES: u64 = 2 << 30;
const PIECE_BYTES: usize = 128 << 10;
const ROUNDS: usize = 3;
const EXCHANGES: usize = 2_000;
const NEW_FLOWS: usize = 200;
/// Six descriptors each.
const IDLE_FLOWS: usize = 150;

struct Side {
    id: PeerId,
    key: SigningKey,
    snapshot: watch::Sender<Arc<Forwarding>>,
    engine: Engine,
}

async fn side(seed: u8) -> Side {
    let id = PeerId::mint(UnixTime::from_ms(u64::from(seed)), &mut Rng::from_seed([seed; 32]));
    let key = SigningKey::from_seed([seed; 32]);
    let snapshot = watch::Sender::default();
    let config = EngineSetup {
        local: id,
        key: key.clone(),
        ports: DataPorts { tproxy: 0, kcp: 0, ..DataPorts::default() },
        own_mark: 0,
        forbidden_ports: vec![],
    };
    let engine = Engine::start_unprivileged(config, snapshot.subscribe()).await.expect("an engine starts");
    Side { id, key, snapshot, engine }
}

fn path(side: &Side) -> PeerPath {
    PeerPath {
        public_key: side.key.public(),
        x25519_key: side.key.x25519_public(),
        endpoints: vec![Endpoint::new("127.0.0.1", 8080).expect("a valid endpoint")],
        data_ports: DataPorts { tproxy: side.engine.stream_port(), ..DataPorts::default() },
    }
}

/// One service from `a` to `b` for every IPv4 destination.
fn publish(a: &Side, b: &Side) {
    let id = ServiceId::mint(UnixTime::from_ms(3), &mut Rng::from_seed([3; 32]));
    let all = "0.0.0.0/0".parse().ok();
    let now = UnixTime::from_ms(0);
    let body = ServiceBody {
        routes: vec![Route { id: 1, source_cidr: None, dest_cidr: all, priority: 100, version: 1, created_at: now }],
        next_route_id: 2,
        ..ServiceBody::plain("bench", a.id, b.id, now)
    };
    let forwarded = ForwardedService {
        source: a.id,
        target: b.id,
        transport: Transport::Tcp,
        transparent: false,
        limit_mbps: 0,
        mark: None,
        routes: vec![(None, all)],
        whole_interface: false,
    };
    let peers = BTreeMap::from([(a.id, path(a)), (b.id, path(b))]);
    let service = Service { id, version: 1, body };
    let snapshot = Arc::new(Forwarding::new(1, peers, BTreeMap::from([(id, forwarded)]), [&service]));
    a.snapshot.send_replace(snapshot.clone());
    b.snapshot.send_replace(snapshot);
}

/// Answers a first byte `u` with nothing but reading, `d` with bulk, and anything else with an echo.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buf = vec![0; PIECE_BYTES];
    match stream.read_u8().await? {
        b'u' => {
            while stream.read(&mut buf).await? > 0 {}
            stream.write_all(b"k").await?;
        }
        b'd' => {
            let mut left = BULK_BYTES;
            while left > 0 {
                stream.write_all(&buf).await?;
                left -= PIECE_BYTES as u64;
            }
        }
        _ => loop {
            match stream.read(&mut buf).await? {
                0 => break,
                n => stream.write_all(&buf[..n]).await?,
            }
        },
    }
    Ok(())
}

/// Relays to `to`, as plain as a relay can be.
async fn plain_relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(to).await {
                    let _ = client.set_nodelay(true);
                    let _ = server.set_nodelay(true);
                    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, PIECE_BYTES, PIECE_BYTES).await;
                }
            });
        }
    });
    addr
}

#[derive(Clone)]
enum Way {
    To(SocketAddr),
    Engine { a: Arc<Side>, entry: Arc<TcpListener>, dest: SocketAddr },
}

impl Way {
    async fn connect(&self) -> TcpStream {
        match self {
            Self::To(addr) => TcpStream::connect(addr).await.expect("the server answers"),
            Self::Engine { a, entry, dest } => {
                let addr = entry.local_addr().expect("an address");
                let (client, accepted) = tokio::join!(TcpStream::connect(addr), entry.accept());
                let (captured, source) = accepted.expect("an accepted connection");
                a.engine.carry_captured(captured, source, *dest);
                client.expect("a connection")
            }
        }
    }
}

fn gbits(bytes: u64, took: Duration) -> f64 {
    bytes as f64 * 8.0 / took.as_secs_f64() / 1e9
}

async fn upload(way: &Way) -> f64 {
    let (mut stream, piece, start) = (way.connect().await, vec![0; PIECE_BYTES], Instant::now());
    stream.write_all(b"u").await.expect("sent");
    for _ in 0..BULK_BYTES / PIECE_BYTES as u64 {
        stream.write_all(&piece).await.expect("sent");
    }
    stream.shutdown().await.expect("closed");
    stream.read_u8().await.expect("all arrived");
    gbits(BULK_BYTES, start.elapsed())
}

async fn download(way: &Way) -> f64 {
    let (mut stream, mut buf, start) = (way.connect().await, vec![0; PIECE_BYTES], Instant::now());
    stream.write_all(b"d").await.expect("sent");
    let mut got = 0;
    while got < BULK_BYTES {
        match stream.read(&mut buf).await.expect("read") {
            0 => panic!("ended after {got} bytes"),
            n => got += n as u64,
        }
    }
    gbits(got, start.elapsed())
}

async fn echo(stream: &mut TcpStream) -> Duration {
    let (start, mut hundred) = (Instant::now(), [b'e'; 100]);
    stream.write_all(&hundred).await.expect("sent");
    // The first byte told the server what to do, and is not echoed.
    stream.read_exact(&mut hundred[..99]).await.expect("echoed");
    start.elapsed()
}

fn median_us(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64() * 1e6
}

async fn kept_open(way: &Way) -> f64 {
    let mut stream = way.connect().await;
    stream.set_nodelay(true).expect("no delay");
    echo(&mut stream).await;
    let (mut all, mut hundred) = (vec![], [b'e'; 100]);
    for _ in 0..EXCHANGES {
        let start = Instant::now();
        stream.write_all(&hundred).await.expect("sent");
        stream.read_exact(&mut hundred).await.expect("echoed");
        all.push(start.elapsed());
    }
    median_us(all)
}

async fn new_flow(way: &Way) -> f64 {
    let mut all = vec![];
    for _ in 0..NEW_FLOWS {
        let start = Instant::now();
        echo(&mut way.connect().await).await;
        all.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    median_us(all)
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

/// Memory of one idle flow in one engine: both run here, so half of what the process grew by.
async fn idle_memory(way: &Way) -> Option<f64> {
    let before = resident_kib()?;
    let mut flows = vec![];
    for _ in 0..IDLE_FLOWS {
        let mut flow = way.connect().await;
        echo(&mut flow).await;
        flows.push(flow);
    }
    Some((resident_kib()?.saturating_sub(before)) as f64 / 2.0 / IDLE_FLOWS as f64)
}

async fn best(mut runs: impl AsyncFnMut() -> f64) -> f64 {
    let mut best: f64 = 0.0;
    for _ in 0..ROUNDS {
        best = best.max(runs().await);
    }
    best
}

#[tokio::main]
async fn main() {
    let own = sockets::local_addresses().expect("addresses").into_iter().find(|ip| ip.is_ipv4() && !ip.is_loopback());
    let Some(own) = own else {
        eprintln!("this host has only loopback addresses, which no exit dials");
        std::process::exit(1);
    };
    let listener = TcpListener::bind((own, 0)).await.expect("a free port");
    let server = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    });
    let (a, b) = (Arc::new(side(1).await), side(2).await);
    publish(&a, &b);
    a.engine.warmed(b.id, 2).await;
    let entry = Arc::new(TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
    let relays = plain_relay(plain_relay(server).await).await;
    let ways = [
        ("direct", Way::To(server)),
        ("two plain relays", Way::To(relays)),
        ("two engines", Way::Engine { a, entry, dest: server }),
    ];
    println!("{:<18}{:>10}{:>10}{:>14}{:>14}", "", "up Gbit/s", "down", "kept-open us", "new flow us");
    let mut rows = vec![];
    for (name, way) in &ways {
        let row = [
            best(async || upload(way).await).await,
            best(async || download(way).await).await,
            kept_open(way).await,
            new_flow(way).await,
        ];
        println!("{name:<18}{:>10.2}{:>10.2}{:>14.0}{:>14.0}", row[0], row[1], row[2], row[3]);
        rows.push(row);
    }
    if let Some(kib) = idle_memory(&ways[2].1).await {
        println!("an idle flow: {kib:.0} KiB in each engine, the server's and client's share included");
    }
    for (what, against) in [("direct", 0), ("plain relays", 1)] {
        let ratio: Vec<String> = (0..4).map(|i| format!("{:.2}", rows[2][i] / rows[against][i])).collect();
        println!("engines / {what}: {}", ratio.join("  "));
    }
}

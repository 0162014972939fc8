//! What no route captures, and that neither intercept nor exit is a proxy for anybody (dataplane.md §1, §8).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::agent::http_get;
use netns_tests::datagram::{DatagramService, ask_udp};
use netns_tests::lab::Host;
use netns_tests::probe::require;
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{
    API_PORT, CLIENT, CLIENT_V6, LONDON_LAN, Profile, SERVER, SERVER_V6, TOKYO_LAN, TOKYO_WAN, TwoSites, at,
};
use netns_tests::world::{
    ANSWERED, DNS, MIRROR_PORT, PATIENCE, PRODUCT, SHORT, World, addresses, connections, is_carried, metric, wait,
    wait_for_metric,
};
use socket2::{Domain, Socket, Type};

const TCP_PORT: u16 = 61000;
const KCP_PORT: u16 = 61000;
const TUNNEL_PORT: u16 = 51840;
/// Of the server, in a network that no service has.
const ASIDE: &str = "10.71.4.2";
/// Nobody has them, and the default routes of both sites lead to the other one.
const NOWHERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// A flow that goes round is seen to do so in this time.
const ROUNDS_WITHIN: Duration = Duration::from_secs(5);
/// What has been asked before comes to its end in this time.
const QUIET_FOR: Duration = Duration::from_millis(500);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// More addresses than hosts usually have: on loopback, second ones of a link, and a network aside.
fn prepare(sites: &TwoSites) {
    for (host, device, n) in [(&sites.london, "to-client", 1), (&sites.tokyo, "to-server", 2)] {
        host.ip(&format!("address add 10.99.{n}.1/32 dev lo")).unwrap();
        host.ip(&format!("address add fd99:{n}::1/128 dev lo")).unwrap();
        host.ip(&format!("address add 10.71.{n}.9/24 dev {device}")).unwrap();
        host.ip(&format!("address add fd71:{n}::9/64 dev {device} nodad preferred_lft 0")).unwrap();
    }
    sites.tokyo.ip("address add 10.71.4.1/24 dev to-server").unwrap();
    sites.server.ip(&format!("address add {ASIDE}/24 dev to-tokyo")).unwrap();
    // The hosts' other addresses lie behind their gateways.
    sites.london.route("10.99.2.1/32", "10.71.0.2").unwrap();
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Addresses of a host that others can reach through routers.
fn reachable(host: &Host) -> Vec<IpAddr> {
    let all = addresses(host).unwrap().into_iter().map(|(ip, _)| ip);
    all.filter(|ip| !ip.is_loopback() && !is_link_local(*ip) && !ip.to_string().starts_with("251.97.")).collect()
}

fn connect(host: &Host, to: SocketAddr, mark: Option<u32>, within: Duration) -> std::io::Result<TcpStream> {
    host.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        mark.map_or(Ok(()), |mark| socket.set_mark(mark))?;
        socket.connect_timeout(&to.into(), within)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// Whether no connection comes about, or one that ends without a byte.
fn is_denied(host: &Host, to: SocketAddr, mark: Option<u32>) -> bool {
    match connect(host, to, mark, SHORT) {
        Err(_) => true,
        Ok(mut stream) => {
            // The other side may have ended it before this.
            let _ = stream.write_all(b"CONNECT 10.71.1.2:22 HTTP/1.1\r\n\r\n");
            !matches!(stream.read(&mut [0]), Ok(1..))
        }
    }
}

/// A stranger who speaks no TLS hears an alert of it, at most, and that it is over.
fn is_told_nothing(stranger: &Host, exit: SocketAddr) {
    let mut stream = connect(stranger, exit, None, ANSWERED).unwrap();
    stream.write_all(b"CONNECT 10.71.1.2:22 HTTP/1.1\r\n\r\n").unwrap();
    let mut told = vec![];
    // A reset is an end too.
    let _ = stream.read_to_end(&mut told);
    assert!(told.is_empty() || told[0] == 21 && told.len() < 20, "{told:?}");
}

/// Everything that the services of london have carried: flows, and packets of the tunnel.
fn carried(world: &World) -> (u64, u64) {
    let london = &world.sites.london;
    (connections(london, "opened"), metric(london, "arctic_tunnel_packets_total", &[]))
}

/// The same once no more is added: an answer that came too late for who asked is carried too.
fn carried_before(world: &World) -> (u64, u64) {
    let mut last = carried(world);
    wait("quiet", PATIENCE, || {
        std::thread::sleep(QUIET_FOR);
        let before = std::mem::replace(&mut last, carried(world));
        ensure!(last == before, "{before:?}, then {last:?}");
        Ok(())
    });
    last
}

#[test]
fn what_is_the_hosts_own_goes_its_own_way_though_a_route_covers_everything() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::prepared("exclusions", Profile::CLEAN, prepare);
    let (client, london, server) = (&world.sites.client, &world.sites.london, &world.sites.server);
    ["0.0.0.0/0", "::/0"].into_iter().for_each(|net| world.route(net));
    world.wait_until_carried(PATIENCE);
    let before = carried_before(&world);

    // Every local address, from the host itself and from its neighbour.
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT));
    let _mirror = TcpService::mirror(london, any).unwrap();
    let _asked: Vec<_> =
        reachable(london).into_iter().map(|ip| DatagramService::udp_mirror(london, at(ip, DNS)).unwrap()).collect();
    let found = addresses(london).unwrap();
    assert!(found.len() >= 12, "{found:?}");
    for (address, link) in found.iter().filter(|(ip, _)| !is_link_local(*ip)) {
        let seen = seen_from(london, at(*address, MIRROR_PORT)).unwrap();
        assert!(found.iter().any(|(own, _)| *own == seen), "{address} of {link}: {seen}");
    }
    for address in reachable(london) {
        let own = if address.is_ipv4() { CLIENT } else { CLIENT_V6 };
        assert_eq!(seen_from(client, at(address, MIRROR_PORT)).unwrap(), own, "{address}");
        assert_eq!(ask_udp(client, at(address, DNS), b"hello", ANSWERED).unwrap(), own, "{address}");
        let seen = ask_udp(london, at(address, DNS), b"hello", ANSWERED).unwrap();
        assert!(found.iter().any(|(own, _)| *own == seen), "{address}: {seen}");
    }
    link_local_and_to_many(&world).unwrap();

    // DHCP through a relay, and what neighbours of the agents ask of them.
    for (server_ip, own, port) in [(SERVER, CLIENT, 67), (SERVER_V6, CLIENT_V6, 547)] {
        let _dhcp = DatagramService::udp_mirror(server, at(server_ip, port)).unwrap();
        // Neighbours on the WAN may have to find each other first.
        assert_eq!(ask_udp(client, at(server_ip, port), b"discover", PATIENCE).unwrap(), own);
    }
    assert_eq!(http_get(client, at(TOKYO_WAN, API_PORT), "/livez").unwrap().0, 200);
    is_told_nothing(client, at(TOKYO_WAN, TCP_PORT));
    assert_eq!(carried(&world), before, "nothing of this was captured");
    is_carried(client).unwrap();
}

/// Broadcast and multicast between client and london, both ways, and TCP by link-local addresses.
fn link_local_and_to_many(world: &World) -> Result<()> {
    let (client, london) = (&world.sites.client, &world.sites.london);
    for (from, link, to, far) in
        [(client, "to-london", london, "to-client"), (london, "to-client", client, "to-london")]
    {
        let here = from.sh(&format!("ip -o link show {link} | cut -d: -f1"))?.trim().parse::<u32>()?;
        let there = to.sh(&format!("ip -o link show {far} | cut -d: -f1"))?.trim().parse::<u32>()?;
        let heard4 = to.run(|| UdpSocket::bind("0.0.0.0:9999"))?;
        let heard6 = to.run(|| UdpSocket::bind("[::]:9998"))?;
        let own = addresses(to)?.into_iter().find(|(ip, name)| name == far && ip.is_ipv4());
        let IpAddr::V4(own) = own.expect("an address").0 else { unreachable!("asked for IPv4") };
        heard4.join_multicast_v4(&"239.1.2.3".parse()?, &own)?;
        heard6.join_multicast_v6(&"ff05::123".parse()?, there)?;
        let local = addresses(from)?.into_iter().find(|(ip, name)| name == link && ip.is_ipv4()).expect("an address").0;
        from.run(|| -> Result<()> {
            let v4 = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            v4.set_broadcast(true)?;
            let IpAddr::V4(local) = local else { unreachable!("asked for IPv4") };
            v4.set_multicast_if_v4(&local)?;
            v4.send_to(b"all", &SocketAddr::from(([10, 71, 1, 255], 9999)).into())?;
            v4.send_to(b"all", &SocketAddr::from(([239, 1, 2, 3], 9999)).into())?;
            let v6 = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
            v6.set_multicast_if_v6(here)?;
            v6.send_to(b"all", &SocketAddr::from((ip("ff05::123"), 9998)).into())?;
            Ok(())
        })?;
        for (socket, times) in [(heard4, 2), (heard6, 1)] {
            socket.set_read_timeout(Some(ANSWERED))?;
            for _ in 0..times {
                let (n, _) = socket.recv_from(&mut [0; 16])?;
                ensure!(n == 3, "{n} bytes");
            }
        }
        let far_local = addresses(to)?.into_iter().find(|(ip, name)| name == far && is_link_local(*ip));
        let IpAddr::V6(far_local) = far_local.expect("a link-local address").0 else { unreachable!("IPv6") };
        let _service;
        if to.name() == "client" {
            _service = TcpService::mirror(to, SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT)))?;
        }
        let seen = seen_from(from, SocketAddrV6::new(far_local, MIRROR_PORT, 0, here).into())?;
        // Of whichever of its addresses.
        ensure!(addresses(from)?.iter().any(|(own, _)| *own == seen), "{seen}");
    }
    Ok(())
}

#[test]
fn neither_intercept_nor_exit_is_a_proxy_for_anybody_and_nothing_goes_round() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::prepared("noproxy", Profile::CLEAN, prepare);
    world.wait_until_carried(PATIENCE);
    spoofed_marks_lead_nowhere(&world);
    ["0.0.0.0/0", "::/0"].into_iter().for_each(|net| world.route(net));
    world.wait_until_carried(PATIENCE);
    listeners_take_only_what_was_captured(&world);
    the_exit_dials_no_port_of_its_agent(&world);
    nothing_goes_round(&world);
    is_carried(&world.sites.client).unwrap();
}

/// Marks that a neighbour's packets get by someone else's rules, and that a program of the host gives its socket.
fn spoofed_marks_lead_nowhere(world: &World) {
    let (client, london) = (&world.sites.client, &world.sites.london);
    let before = carried_before(world);
    let mask = 0xfff0_0000_u32;
    let (first_service, established, first_tunnelled) = (0x0010_0000, mask - 0x0010_0000, 0x8010_0000);
    let aside = ip(ASIDE);
    let _asked = DatagramService::udp_mirror(&world.sites.server, at(aside, DNS)).unwrap();
    assert_eq!(seen_from(client, at(aside, MIRROR_PORT)).unwrap(), CLIENT);
    for mark in [first_service, established, first_tunnelled] {
        london.sh("nft add table inet spoof; nft flush table inet spoof").unwrap();
        london.sh("nft 'add chain inet spoof early { type filter hook prerouting priority -300; }'").unwrap();
        london
            .sh(&format!("nft add rule inet spoof early ip saddr {CLIENT} ip daddr {ASIDE} meta mark set {mark}"))
            .unwrap();
        assert!(is_denied(client, at(aside, MIRROR_PORT), None), "{mark:#x}");
        assert!(is_denied(london, at(aside, MIRROR_PORT), Some(mark)), "{mark:#x}");
        if mark == first_tunnelled {
            let asked = ask_udp(client, at(aside, DNS), b"hello", SHORT);
            assert!(asked.is_err(), "{asked:?}");
        }
    }
    london.sh("nft delete table inet spoof").unwrap();
    // Whoever may set marks may go past the agent, as the agent does; he comes no further by that.
    let plain = connect(london, at(aside, MIRROR_PORT), Some(mask), ANSWERED).map(|mut s| s.read(&mut [0]).unwrap());
    assert_eq!(plain.unwrap(), 1);
    assert_eq!(carried(world), before);
}

fn intercept_ports(host: &Host) -> Vec<SocketAddr> {
    let table = host.sh("nft list table inet arctic").unwrap();
    let dropped = table.lines().filter(|l| l.contains("\"not captured\""));
    let port = |line: &str| line.split("dport ").nth(1)?.split(' ').next()?.parse().ok();
    let of =
        |line: &str| Some(SocketAddr::new(ip(if line.contains("::1") { "::1" } else { "127.0.0.1" }), port(line)?));
    dropped.map(|line| of(line).unwrap()).collect()
}

fn listeners_take_only_what_was_captured(world: &World) {
    let (client, london) = (&world.sites.client, &world.sites.london);
    let opened = connections(london, "opened");
    let ports = intercept_ports(london);
    assert_eq!(ports.len(), 2, "{}", london.sh("nft list table inet arctic").unwrap());
    for listener in &ports {
        let dialled = connect(london, *listener, None, SHORT).map(drop);
        assert_eq!(dialled.unwrap_err().kind(), ErrorKind::TimedOut, "{listener}: dropped");
        for address in reachable(london) {
            for host in [client, london] {
                let dialled = connect(host, at(address, listener.port()), None, ANSWERED).map(drop);
                assert_eq!(dialled.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
            }
        }
    }
    // A host that routes loopback addresses, as some container networks make it, and a neighbour that knows that.
    london.sysctl("net/ipv4/conf/to-client/route_localnet", "1").unwrap();
    client.sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
    client.sh("ip address del 127.0.0.1/8 dev lo; ip rule add pref 5 to 127.0.0.1 lookup 99; ip rule del pref 0; ip rule add pref 9 lookup local").unwrap();
    client.sh(&format!("ip route add 127.0.0.1/32 via {LONDON_LAN} src {CLIENT} table 99")).unwrap();
    let dialled = connect(client, ports[0], None, SHORT).map(drop);
    assert_eq!(dialled.unwrap_err().kind(), ErrorKind::TimedOut, "from next door");
    client.sh("ip rule del pref 5; ip rule add pref 0 lookup local; ip rule del pref 9; ip address add 127.0.0.1/8 dev lo").unwrap();
    assert_eq!(connections(london, "opened"), opened);
}

/// At every address of the exit's host: what its agent listens on, also for strangers who dial it without any service.
fn the_exit_dials_no_port_of_its_agent(world: &World) {
    let (client, london, tokyo) = (&world.sites.client, &world.sites.london, &world.sites.tokyo);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT));
    let _mirror = TcpService::mirror(tokyo, any).unwrap();
    let intercept = intercept_ports(tokyo);
    let intercept: Vec<u16> = intercept.iter().map(SocketAddr::port).collect();
    let (mut tried, opened) = (0, connections(london, "opened"));
    let forbidden = || connections(london, "exit_forbidden_destination");
    let all = reachable(tokyo);
    assert!(all.len() >= 8, "{all:?}");
    for address in &all {
        // A neighbour of theirs is who knocks at the ports of the endpoint itself.
        for port in [API_PORT, TCP_PORT].into_iter().chain(intercept.clone()) {
            if *address == TOKYO_WAN && [API_PORT, TCP_PORT].contains(&port) {
                continue;
            }
            assert!(is_denied(client, at(*address, port), None), "{address} {port}");
            tried += 1;
        }
        for port in [KCP_PORT, TUNNEL_PORT] {
            assert!(ask_udp(client, at(*address, port), b"hello", Duration::from_millis(50)).is_err());
        }
    }
    wait_for_metric("forbidden", tried, forbidden);
    assert_eq!(connections(london, "opened"), opened);
    // The known ports of the endpoint are not captured.
    wait_for_metric("forbidden packets", 2 * (all.len() as u64 - 1), || {
        metric(tokyo, "arctic_tunnel_drops_total", &["tunnel_forbidden_destination"])
    });
    // Other services of the host are destinations as any.
    for address in all {
        let seen = seen_from(client, at(address, MIRROR_PORT)).unwrap();
        assert!(reachable(tokyo).contains(&seen), "{address}: {seen}");
    }
    is_told_nothing(&world.sites.server, at(TOKYO_LAN, TCP_PORT));
    wait("the stranger is told of", PATIENCE, || {
        ensure!(world.cluster.tokyo.log()?.contains("\"reason\":\"handshake\""), "not in the log");
        Ok(())
    });
}

fn nothing_goes_round(world: &World) {
    let (client, london, tokyo) = (&world.sites.client, &world.sites.london, &world.sites.tokyo);
    for address in NOWHERE.map(ip) {
        let (opened, looped) = (connections(london, "opened"), connections(tokyo, "exit_loop"));
        let started = Instant::now();
        assert!(is_denied(client, at(address, MIRROR_PORT), None), "{address}");
        assert!(started.elapsed() < ROUNDS_WITHIN, "{:?}", started.elapsed());
        wait("the loop is told of", PATIENCE, || {
            ensure!(connections(tokyo, "exit_loop") > looped, "{address}");
            Ok(())
        });
        assert!(connections(london, "opened") <= opened + 3, "it went round");
        // A packet has so many hops and no more.
        let packets = metric(london, "arctic_tunnel_packets_total", &[]);
        assert!(ask_udp(client, at(address, DNS), b"hello", SHORT).is_err());
        assert!(metric(london, "arctic_tunnel_packets_total", &[]) <= packets + 64);
    }
}

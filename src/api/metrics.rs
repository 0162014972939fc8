//! `GET /metrics` (operations.md §4): the text format of Prometheus, version 0.0.4.

use super::{
    admission::Request,
    answer::{Answer, Outcome},
};
use crate::{
    license::State,
    model::{PeerId, PeerStatus, Refused, Service, VERSION},
    node::Node,
    reconcile::{Reconciler, ReconcilerStatus},
};
use hyper::StatusCode;
use std::{collections::BTreeMap, fmt::Write};

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the API counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    by_status: BTreeMap<u16, u64>,
    events_dropped: u64,
}

impl Counts {
    pub(super) fn request(&mut self, status: StatusCode) {
        *self.by_status.entry(status.as_u16()).or_default() += 1;
    }
    pub(super) fn event_dropped(&mut self) {
        self.events_dropped += 1;
    }
}

/// One metric after the other, each with its help and type.
#[derive(Default)]
struct Page(String);

/// A sample: its labels and its value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

impl Page {
    fn add<'a>(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = Sample<'a>>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let page = &mut self.0;
        // Writing to a string does not fail.
        let _ = writeln!(page, "# HELP arctic_{name} {help}\n# TYPE arctic_{name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(page, "arctic_{name}{labels} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.add(name, "gauge", help, [(vec![], value)]);
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

pub(super) async fn scrape(r: Request) -> Outcome {
    r.query.only(&[])?;
    let mut page = Page::default();
    page.add("build_info", "gauge", "Version of the agent.", [(vec![("version", VERSION)], 1.0)]);
    let up = r.node().env().clock.mono() - r.api.started_at;
    page.gauge("up_seconds", "Time since the start of the agent.", up.as_secs_f64());
    peers(&mut page, &r)?;
    services(&mut page, &r)?;
    reconcilers(&mut page, r.node());
    license(&mut page, r.node());
    let counts = super::lock(&r.api.counts);
    let codes: Vec<(String, u64)> = counts.by_status.iter().map(|(code, n)| (code.to_string(), *n)).collect();
    page.add(
        "api_requests_total",
        "counter",
        "Answers of the API by HTTP status.",
        codes.iter().map(|(code, n)| (vec![("code", code.as_str())], *n as f64)),
    );
    let failures = counts.by_status.get(&StatusCode::UNAUTHORIZED.as_u16()).copied().unwrap_or(0);
    page.add("auth_failures_total", "counter", "Requests without a valid proof.", [(vec![], failures as f64)]);
    let dropped = counts.events_dropped as f64;
    page.add("events_dropped_total", "counter", "Listeners to events that took none any more.", [(vec![], dropped)]);
    Ok(Answer::of_type(MEDIA_TYPE, page.0))
}

fn peers(page: &mut Page, r: &Request) -> Result<(), Refused> {
    let own = r.node().identity().map(|i| i.peer_id);
    let peers = r.node().store().read(|v| v.trusted_peers())?;
    let others: Vec<(PeerId, String)> =
        peers.iter().filter(|p| Some(p.peer_id) != own).map(|p| (p.peer_id, p.display_name())).collect();
    let rows: Vec<(String, String, crate::node::PeerHealth)> =
        others.into_iter().map(|(id, name)| (id.to_string(), name, r.node().peer_health(id))).collect();
    let samples = |value: fn(&crate::node::PeerHealth) -> Option<f64>| {
        rows.iter().filter_map(move |(id, name, health)| {
            Some((vec![("peer", id.as_str()), ("name", name.as_str())], value(health)?))
        })
    };
    let up = |h: &crate::node::PeerHealth| Some(f64::from(u8::from(h.status == PeerStatus::Healthy)));
    page.add("peer_up", "gauge", "Whether a trusted peer is healthy.", samples(up));
    page.add(
        "peer_last_seen_timestamp_seconds",
        "gauge",
        "When the last sign of life of a peer came.",
        samples(|h| Some(h.last_seen?.as_ms() as f64 / 1000.0)),
    );
    let rtt = samples(|h| Some(h.rtt_ms? / 1000.0));
    page.add("peer_rtt_seconds", "gauge", "Round trip of the last call to a peer.", rtt);
    if own.is_some() {
        let converged = f64::from(u8::from(r.node().cluster_view().converged));
        page.gauge("gossip_converged", "Whether every healthy peer reported the same registries.", converged);
    }
    Ok(())
}

fn services(page: &mut Page, r: &Request) -> Result<(), Refused> {
    let Some(own) = r.node().identity().map(|i| i.peer_id) else { return Ok(()) };
    let ours = |s: &Service| [s.body.source_peer_id, s.body.target_peer_id].contains(&own);
    let services: Vec<Service> = r.node().store().read(|v| v.services())?.into_iter().filter(ours).collect();
    let mut traffic = r.node().traffic();
    let rows: Vec<(String, &Service, crate::env::ServiceTraffic)> =
        services.iter().map(|s| (s.id.to_string(), s, traffic.remove(&s.id).unwrap_or_default())).collect();
    let of = |row: &'_ (String, &Service, crate::env::ServiceTraffic)| (row.0.clone(), row.1.body.name.clone());
    let labelled: Vec<(String, String)> = rows.iter().map(of).collect();
    let labels = |i: usize| vec![("service", labelled[i].0.as_str()), ("name", labelled[i].1.as_str())];
    let bytes = rows.iter().enumerate().flat_map(|(i, (_, _, t))| {
        [("to_target", t.bytes_to_target), ("to_source", t.bytes_to_source)].map(|(direction, n)| {
            let mut all = labels(i);
            all.push(("direction", direction));
            (all, n as f64)
        })
    });
    page.add("service_bytes_total", "counter", "Payload carried for a service.", bytes);
    let active = rows.iter().enumerate().map(|(i, (_, _, t))| (labels(i), t.active as f64));
    page.add("service_connections", "gauge", "Connections of a service that are open.", active);
    let results = rows.iter().enumerate().flat_map(|(i, (_, _, t))| {
        let opened = std::iter::once(("opened", t.opened));
        opened.chain(t.refused.iter().map(|(reason, n)| (*reason, *n))).map(move |(result, n)| (i, result, n))
    });
    let results = results.map(|(i, result, n)| {
        let mut all = labels(i);
        all.push(("result", result));
        (all, n as f64)
    });
    page.add("service_connections_total", "counter", "Connections of a service by what became of them.", results);
    // A service without the tunnel has no figure of it.
    let tunnelled = |t: &crate::env::ServiceTraffic| t.tunnel_packets > 0 || !t.tunnel_drops.is_empty();
    let packets = rows.iter().enumerate().filter(|(_, (_, _, t))| tunnelled(t));
    let packets = packets.map(|(i, (_, _, t))| (labels(i), t.tunnel_packets as f64));
    page.add("tunnel_packets_total", "counter", "Packets that the IP tunnel carried for a service.", packets);
    let drops = rows.iter().enumerate().flat_map(|(i, (_, _, t))| t.tunnel_drops.iter().map(move |drop| (i, drop)));
    let drops = drops.map(|(i, (reason, n))| {
        let mut all = labels(i);
        all.push(("reason", *reason));
        (all, *n as f64)
    });
    page.add("tunnel_drops_total", "counter", "Packets of a service that the IP tunnel dropped.", drops);
    let limits =
        rows.iter().enumerate().map(|(i, (_, s, _))| (labels(i), f64::from(s.body.bandwidth_limit_mbps) * 1_000_000.0));
    page.add("service_limit_bps", "gauge", "Limit of a service in bit/s; 0 is none.", limits);
    let transports: Vec<String> = rows.iter().map(|(_, s, _)| s.body.transport_type.to_string()).collect();
    let transports = transports.iter().enumerate().map(|(i, transport)| {
        let mut all = labels(i);
        all.push(("transport", transport.as_str()));
        (all, 1.0)
    });
    page.add("service_effective_transport", "gauge", "The transport that carries a service.", transports);
    Ok(())
}

fn reconcilers(page: &mut Page, node: &Node) {
    let status = node.reconcile_status();
    let all: [(&str, &ReconcilerStatus); 4] = [
        (Reconciler::Network.name(), &status.network),
        (Reconciler::Firewall.name(), &status.firewall),
        (Reconciler::Tproxy.name(), &status.tproxy),
        (Reconciler::Iptun.name(), &status.iptun),
    ];
    let results = all.iter().flat_map(|(name, s)| {
        let counts = [("success", s.passes - s.failures), ("failure", s.failures)];
        counts.map(|(result, n)| (vec![("reconciler", *name), ("result", result)], n as f64))
    });
    page.add("reconcile_total", "counter", "Passes of a reconciler.", results);
    let took = all.iter().map(|(name, s)| (vec![("reconciler", *name)], s.last_pass_ms as f64 / 1000.0));
    page.add("reconcile_seconds", "gauge", "How long the last pass took.", took);
    let successes =
        all.iter().filter_map(|(name, s)| Some((vec![("reconciler", *name)], s.last_success?.as_ms() as f64 / 1000.0)));
    page.add("reconcile_last_success_timestamp_seconds", "gauge", "When a pass succeeded last.", successes);
    let repairs = all.iter().filter(|(name, _)| *name != Reconciler::Tproxy.name());
    let repairs = repairs.map(|(name, s)| (vec![("kind", *name)], s.drift_repairs as f64));
    page.add("drift_repairs_total", "counter", "Times that own kernel state was put back.", repairs);
}

fn license(page: &mut Page, node: &Node) {
    let Some(entitlement) = node.entitlement() else { return };
    let (now, end) = (entitlement.effective_time.as_ms() as f64, entitlement.document.expires_at().as_ms() as f64);
    page.gauge("license_expires_seconds", "Time until the license expires; negative after that.", (end - now) / 1000.0);
    let states = [State::Valid, State::Warning, State::GracePeriod, State::ReadOnly, State::Suspended];
    let samples = states.map(|s| (vec![("state", s.text())], f64::from(u8::from(s == entitlement.state))));
    page.add("license_state", "gauge", "1 for the state that the license is in.", samples);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_data_whatever_is_in_them() {
        let mut page = Page::default();
        page.add("x", "gauge", "Help.", [(vec![("name", "a\"b\\c\nd")], 1.5)]);
        page.add("none", "gauge", "Help.", []);
        let expected = "# HELP arctic_x Help.\n# TYPE arctic_x gauge\narctic_x{name=\"a\\\"b\\\\c\\nd\"} 1.5\n";
        assert_eq!(page.0, expected);
    }
}

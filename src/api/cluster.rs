//! The cluster as this agent sees it (api.md §3, §8).

use super::{
    admission::Request,
    answer::{Answer, Outcome},
    fields::Fields,
    lock,
};
use crate::{
    membership::IDENTITY_CONFLICT_HINT,
    model::{PeerStatus, VERSION},
};
use serde_json::{Value, json};

/// Ids that do not exist yet are empty.
pub(super) async fn identity(r: Request) -> Outcome {
    let text = |id: Option<String>| id.unwrap_or_default();
    let identity = r.node().identity();
    let cluster = r.node().store().read(|v| v.cluster())?;
    Answer::ok(&json!({
        "peer_id": text(identity.as_ref().map(|i| i.peer_id.to_string())),
        "public_key": text(identity.as_ref().map(|i| i.key.public().to_string())),
        "license_id": text(r.node().entitlement().map(|e| e.document.license_id().to_string())),
        "cluster_id": text(cluster.map(|c| c.cluster_id.to_string())),
        "version": VERSION,
    }))
}

pub(super) async fn status(r: Request) -> Outcome {
    r.query.only(&[])?;
    let (cluster, own_id, entitlement) = (r.cluster()?, r.identity()?.peer_id, r.entitlement()?);
    let view = r.node().cluster_view();
    let registries: serde_json::Map<String, Value> = view
        .registries
        .iter()
        .map(|(name, (count, digest))| (name.clone(), json!({"count": count, "digest": digest})))
        .collect();
    let peers = r.node().store().read(|v| v.peers())?;
    let mut warnings = entitlement.warnings();
    if r.node().is_contested() {
        warnings.push(format!(
            "another live copy of this peer's identity is heard, and this one is refused: {IDENTITY_CONFLICT_HINT}"
        ));
    }
    let mut lines = Vec::with_capacity(peers.len());
    for peer in &peers {
        let health = r.node().peer_health(peer.peer_id);
        if matches!(health.status, PeerStatus::Unhealthy | PeerStatus::Unreachable) {
            warnings.push(format!("peer {} is {}", peer.display_name(), super::peers::status_text(health.status)));
        }
        if health.has_two_copies {
            warnings
                .push(format!("two live copies of peer {} are heard: {IDENTITY_CONFLICT_HINT}", peer.display_name()));
        }
        lines.push(json!({
            "id": peer.peer_id,
            "name": peer.display_name(),
            "status": health.status,
            "last_seen": health.last_seen,
            "endpoint": health.endpoint,
            "rtt_ms": health.rtt_ms,
            "version": peer.body.as_ref().map(|b| b.version.as_str()),
            "registries": health.registries,
        }));
    }
    Answer::ok(&json!({
        "cluster_id": cluster.cluster_id,
        "aliases": cluster.aliases,
        "local_peer_id": own_id,
        "converged": view.converged,
        "registries": registries,
        "peers": lines,
        "license_state": entitlement.state,
        "lock": r.node().lock_view()?.map(|view| lock::shown(&view, None)),
        "warnings": warnings,
    }))
}

pub(super) async fn sync(r: Request) -> Outcome {
    r.query.only(&[])?;
    let outcome = r.node().sync().await;
    Answer::ok(&json!({"triggered": true, "peers": outcome.peers, "reached": outcome.reached}))
}

/// Without `force` it only says which cluster this is: an agent that answers here has one.
pub(super) async fn init(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let force = Fields::parse(&r.body)?.only(&["force"])?.flag("force")?.unwrap_or(false);
    let init = r.node().init_cluster(force, dry_run).await?;
    let message = match init.was_created {
        true if dry_run => {
            format!("A new cluster would take the place of {}, without all state of other peers", init.cluster_id)
        }
        true => format!("Cluster {} created; all state of other peers was dropped", init.cluster_id),
        false => format!("Cluster {} exists already", init.cluster_id),
    };
    Answer::ok(&json!({
        "cluster_id": init.cluster_id,
        "created_by": init.created_by,
        "oldest_peer_id": init.oldest_peer_id,
        "was_created": init.was_created,
        "message": message,
    }))
}

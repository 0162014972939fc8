//! Names and ids of new services.

use crate::{
    model::{Code, PeerId, Refused, Rng, Service, ServiceId, UnixTime, interface_name, looks_like_id},
    store::{PeerRow, Tx},
};
use std::{collections::BTreeSet, time::Duration};

/// Characters of each peer's name in a default service name.
const LABEL_MAX_CHARS: usize = 24;
/// One character of those that name an interface is random, 32 values; after as many tries the next millisecond is used.
const ID_TRIES_PER_MS: u64 = 32;
const ID_TRIES_MAX: u64 = 4096;

/// `<source>-to-<target>`, with a number where that is taken.
pub(super) fn default_name(tx: &Tx<'_>, source: PeerId, target: &PeerRow) -> Result<String, Refused> {
    let source_label = tx.peer(source)?.map_or_else(|| id_label(source), |row| label(&row));
    let base = format!("{source_label}-to-{}", label(target));
    let services = tx.services()?;
    let free = |name: &String| !services.iter().any(|s| s.body.name.eq_ignore_ascii_case(name));
    let numbered = (2..=services.len() + 2).map(|n| format!("{base}-{n}"));
    Ok(std::iter::once(base.clone()).chain(numbered).find(free).unwrap_or(base))
}

/// A peer's name in the letters that service names may have.
fn label(peer: &PeerRow) -> String {
    let name = peer.display_name();
    if looks_like_id(&name) {
        return id_label(peer.peer_id);
    }
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    name.chars().map(allowed).take(LABEL_MAX_CHARS).collect()
}

/// The end of an id, which differs between peers made in the same second.
fn id_label(id: PeerId) -> String {
    let text = id.to_string().to_ascii_lowercase();
    format!("p{}", text.get(text.len() - 6..).unwrap_or_default())
}

/// A new id whose interface name no other service has.
pub(super) fn mint_id(services: &[Service], now: UnixTime, rng: &mut Rng) -> Result<ServiceId, Refused> {
    let names: BTreeSet<String> = services.iter().map(|s| interface_name(s.id)).collect();
    let taken = |id: &ServiceId| names.contains(&interface_name(*id));
    let mut tries = (0..ID_TRIES_MAX).map(|n| {
        let at = now.plus(Duration::from_millis(n / ID_TRIES_PER_MS));
        ServiceId::mint(at, rng)
    });
    tries.find(|id| !taken(id)).ok_or_else(|| Refused::new(Code::Internal, "no free service id was found; try again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceBody;

    #[test]
    fn ids_made_at_one_moment_name_different_interfaces() {
        let (now, mut rng) = (UnixTime::from_secs(1_800_000_000), Rng::from_seed([1; 32]));
        let peer = PeerId::mint(now, &mut rng);
        let mut services: Vec<Service> = Vec::new();
        for _ in 0..100 {
            let id = mint_id(&services, now, &mut rng).unwrap();
            let body = ServiceBody::plain(&id.to_string(), peer, peer, now);
            services.push(Service { id, version: 1, body });
        }
        let names: std::collections::BTreeSet<_> = services.iter().map(|s| interface_name(s.id)).collect();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|n| n.len() == 15));
    }
}

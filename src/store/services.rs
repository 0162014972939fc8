//! Services as records of their source peers.

use super::{StoreError, Tx, View};
use crate::{
    membership::{Author, LedgerView, read_service},
    model::{Service, ServiceBody, ServiceId},
    wire::record::{RecordHead, RecordKey, kind},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Services as they were last read from their records. A record whose head is the one that was read is not read again;
/// so whoever looks, in a transaction or beside it, finds what the database says.
#[derive(Default)]
pub(super) struct ParsedServices(Mutex<BTreeMap<RecordKey, Parsed>>);

struct Parsed {
    head: RecordHead,
    /// None: the record is no service of its owner.
    service: Option<Arc<Service>>,
}

impl View<'_> {
    /// Live services, ordered by id. A record whose owner is not trusted, or is not its service's source, is no service.
    pub fn services(&self) -> Result<Vec<Service>, StoreError> {
        let mut known = self.parsed.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeMap::new();
        let mut found = Vec::new();
        for (key, head) in self.live_heads(kind::SERVICE)? {
            let parsed = match known.remove(&key).filter(|parsed| parsed.head == head) {
                Some(parsed) => parsed,
                None => {
                    let record = self.record(&key)?;
                    Parsed { head, service: record.as_ref().and_then(read_service).map(Arc::new) }
                }
            };
            found.extend(parsed.service.clone());
            now.insert(key, parsed);
        }
        *known = now;
        drop(known);
        let counted = self.owners_that_count(found.iter().map(|s| s.body.source_peer_id))?;
        found.retain(|s| counted.contains(&s.body.source_peer_id));
        Ok(found.iter().map(|s| Service::clone(s)).collect())
    }

    pub fn service(&self, id: ServiceId) -> Result<Option<Service>, StoreError> {
        LedgerView::service(self, id)
    }
}

impl Tx<'_> {
    /// Writes a service of which the author is the source.
    pub fn put_service(&self, author: &Author, id: ServiceId, body: &ServiceBody) -> Result<Service, StoreError> {
        let record = self.put_own(author, kind::SERVICE, &id.to_string(), body)?;
        Ok(Service { id, version: record.version, body: body.clone() })
    }

    pub fn delete_service(&self, author: &Author, id: ServiceId) -> Result<(), StoreError> {
        self.delete_own(author, kind::SERVICE, &id.to_string()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Store, StoreError};
    use crate::{
        membership::{Author, PeerRow},
        model::{PeerId, Rng, ServiceBody, ServiceId, SigningKey, UnixTime},
    };

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    /// What is read again and again is what a fresh look at the database says: after writes, deletions, and what a
    /// transaction wrote and undid.
    #[tokio::test]
    async fn services_that_were_read_before_are_those_of_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arctic.db");
        let store = Store::open(&path).unwrap();
        let mut rng = Rng::from_seed([1; 32]);
        let author = Author { peer_id: PeerId::mint(NOW, &mut rng), key: SigningKey::from_seed([1; 32]) };
        let own = PeerRow::trusted(author.peer_id, author.key.public(), vec![], NOW);
        store.write(move |tx| tx.put_peer(&own)).await.map_err(|e: StoreError| e).unwrap();
        let ids: Vec<ServiceId> = (0..6).map(|_| ServiceId::mint(NOW, &mut rng)).collect();
        for step in 0..120 {
            let (by, id, what) = (author.clone(), ids[rng.below(6) as usize], rng.below(4));
            let name = format!("s{}", rng.below(3));
            let wrote = store.write(move |tx| {
                let body = ServiceBody::plain(&name, by.peer_id, by.peer_id, NOW);
                match what {
                    0 => tx.delete_service(&by, id)?,
                    _ => drop(tx.put_service(&by, id, &body)?),
                }
                let seen = tx.services()?;
                assert_eq!(seen.iter().any(|s| s.id == id), what != 0);
                if what == 1 { Err(StoreError::Commit("undone".into())) } else { Ok(()) }
            });
            assert_eq!(wrote.await.is_err(), what == 1);
            let kept = store.read(|v| v.services()).map_err(|e: StoreError| e).unwrap();
            let fresh = Store::open(&path).unwrap().read(|v| v.services()).map_err(|e: StoreError| e).unwrap();
            assert_eq!(kept, fresh, "step {step}");
        }
    }
}

//! The first start of a peer, and what a later start brings up to date (cluster.md §2).

use super::{Author, ClusterFacts, Ledger, PeerRow};
use crate::{
    license::LicenseDocument,
    model::{ApiAccess, ClientId, ClusterId, DataPorts, Endpoint, LicenseId, Rng, ScopeSet, Secret, UnixTime, VERSION},
    wire::record::{ClusterBody, CredentialBody, PeerBody, SecretDigest, kind},
};

/// What the operator of a first start gives, or has it made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstWords {
    /// Self-given name of the peer.
    pub name: String,
    /// Of the credential.
    pub description: String,
}

/// What a peer is configured to say of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSettings {
    /// In order; empty if none is configured.
    pub endpoints: Vec<Endpoint>,
    pub data_ports: DataPorts,
    pub api_access: ApiAccess,
}

/// The records of a newborn cluster of one.
#[derive(Debug, Clone)]
pub struct Birth {
    pub peer: PeerBody,
    pub cluster: ClusterBody,
    pub credential: CredentialBody,
}

impl Birth {
    /// Mints cluster and client id. `secret` is the one the operator is shown.
    pub fn new(
        author: &Author,
        words: FirstWords,
        settings: OwnSettings,
        license: &LicenseDocument,
        secret: &Secret,
        now: UnixTime,
        rng: &mut Rng,
    ) -> Self {
        let client_id = ClientId::mint(now, rng);
        Self {
            peer: PeerBody {
                name: words.name,
                public_key: author.key.public(),
                x25519_key: author.key.x25519_public(),
                endpoints: settings.endpoints,
                data_ports: settings.data_ports,
                api_access: settings.api_access,
                version: VERSION.to_owned(),
                license_id: license.license_id(),
                created_at: now,
            },
            cluster: ClusterBody {
                cluster_id: ClusterId::mint(now, rng),
                created_at: now,
                client_id,
                aliases: Vec::new(),
            },
            credential: CredentialBody {
                client_id,
                secrets: vec![SecretDigest { sha256: secret.digest_hex(), not_after: None }],
                scopes: ScopeSet::admin(),
                description: words.description,
                license_id: license.license_id(),
                created_at: now,
                rotated_by: None,
                rotated_at: None,
            },
        }
    }

    /// Writes the cluster of one. The caller has seen that there is no cluster yet.
    pub fn write<L: Ledger>(&self, ledger: &L, author: &Author) -> Result<(), L::Error> {
        let (peer, cluster) = (&self.peer, &self.cluster);
        ledger.set_cluster(&ClusterFacts {
            cluster_id: cluster.cluster_id,
            created_at: cluster.created_at,
            aliases: Vec::new(),
        })?;
        let mut row = PeerRow::trusted(author.peer_id, peer.public_key, peer.endpoints.clone(), peer.created_at);
        row.license_id = Some(peer.license_id);
        ledger.put_peer(&row)?;
        ledger.put_own(author, kind::PEER, &author.peer_id.to_string(), peer)?;
        ledger.put_own(author, kind::CLUSTER, &cluster.cluster_id.to_string(), cluster)?;
        ledger.put_own(author, kind::CREDENTIAL, &self.credential.client_id.to_string(), &self.credential)?;
        Ok(())
    }
}

/// Brings the own `peer` record, which the row `own` carries, up to what this start was configured with.
pub fn publish_settings<L: Ledger>(
    ledger: &L,
    author: &Author,
    mut own: PeerRow,
    settings: &OwnSettings,
    license_id: LicenseId,
) -> Result<(), L::Error> {
    let Some(body) = own.body.take() else { return Ok(()) };
    let mut current = PeerBody {
        data_ports: settings.data_ports,
        api_access: settings.api_access,
        version: VERSION.to_owned(),
        license_id,
        ..body.clone()
    };
    if !settings.endpoints.is_empty() {
        current.endpoints.clone_from(&settings.endpoints);
        own.endpoints.clone_from(&settings.endpoints);
        ledger.put_peer(&own)?;
    }
    if current != body {
        ledger.put_own(author, kind::PEER, &author.peer_id.to_string(), &current)?;
    }
    Ok(())
}

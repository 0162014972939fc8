//! First start of a peer: license stored, identity and credential made (cluster.md §2).

use super::{Identity, Node, identity};
use crate::{
    license::{EffectiveClock, LicenseDocument, check_admission},
    model::{
        ClientId, ClusterId, Code, Endpoint, LicenseId, PeerId, PublicKey, Refused, Rng, ScopeSet, Secret, UnixTime,
    },
    store::{ClusterFacts, PeerRow, StoreError, Tx},
    wire::record::{ClusterBody, CredentialBody, PeerBody, SecretDigest, kind},
};
use serde_json::Value;
use std::sync::Arc;

/// What the operator gives.
#[derive(Debug, Clone)]
pub struct BootstrapRequest {
    pub license: Value,
    pub name: Option<String>,
    pub description: Option<String>,
    pub endpoints: Vec<Endpoint>,
    /// Where the request was sent to; serves as an endpoint of this peer unless it is a loopback address.
    pub called_at: Option<Endpoint>,
}

/// What the operator gets, the secret this one time.
pub struct Bootstrapped {
    pub peer_id: PeerId,
    pub peer_public_key: PublicKey,
    pub client_id: ClientId,
    pub client_secret: Secret,
    pub cluster_id: ClusterId,
    pub license_id: LicenseId,
    pub expires_at: UnixTime,
    pub max_nodes: u32,
    pub max_services: u32,
}

/// The records and facts of a newborn cluster of one.
struct Newborn {
    identity: Arc<Identity>,
    license: Arc<LicenseDocument>,
    peer: PeerBody,
    cluster: ClusterBody,
    credential: CredentialBody,
}

impl Node {
    /// Exactly one of several concurrent calls wins; the others are ALREADY_BOOTSTRAPPED.
    pub async fn bootstrap(&self, request: BootstrapRequest) -> Result<Bootstrapped, Refused> {
        let _turn = self.inner.bootstrap_turn.lock().await;
        if self.store().read(|v| v.cluster())?.is_some() {
            return Err(already_bootstrapped());
        }
        let now = self.env().clock.unix();
        let license = Arc::new(LicenseDocument::from_value(&request.license)?);
        let clock = EffectiveClock::start(now, self.env().clock.mono());
        check_admission(&license, self.trust_roots(), None, &clock)?;

        let identity = self.identity_or_mint(now)?;
        let mut rng = self.fork_rng();
        let secret = Secret::mint(&mut rng);
        let newborn = self.newborn(&request, identity.clone(), license.clone(), &secret, now, &mut rng);
        let answer = Bootstrapped {
            peer_id: identity.peer_id,
            peer_public_key: identity.key.public(),
            client_id: newborn.credential.client_id,
            client_secret: secret,
            cluster_id: newborn.cluster.cluster_id,
            license_id: license.license_id(),
            expires_at: license.expires_at(),
            max_nodes: license.max_nodes(),
            max_services: license.max_services(),
        };
        let snapshot = clock.snapshot();
        let instance = self.inner.instance.clone();
        self.store()
            .write(move |tx| {
                newborn.write(tx, now)?;
                tx.set_lineage(&instance)?;
                tx.set_license_clock(&snapshot)
            })
            .await
            .map_err(Refused::internal)?;
        self.begin_membership(identity, license, clock);
        tracing::info!(peer = %answer.peer_id, cluster = %answer.cluster_id, license = %answer.license_id, "bootstrapped");
        Ok(answer)
    }

    fn identity_or_mint(&self, now: UnixTime) -> Result<Arc<Identity>, Refused> {
        if let Some(identity) = identity::load(&self.config().data_dir).map_err(Refused::internal)? {
            return Ok(Arc::new(identity));
        }
        let mut rng = self.env().rng("identity");
        let minted = identity::mint(&self.config().data_dir, now, &mut rng).map_err(Refused::internal)?;
        Ok(Arc::new(minted))
    }

    fn newborn(
        &self,
        request: &BootstrapRequest,
        identity: Arc<Identity>,
        license: Arc<LicenseDocument>,
        secret: &Secret,
        now: UnixTime,
        rng: &mut Rng,
    ) -> Newborn {
        let client_id = ClientId::mint(now, rng);
        let name = request.name.clone().unwrap_or_else(|| self.config().default_name.clone());
        Newborn {
            peer: PeerBody {
                name,
                public_key: identity.key.public(),
                x25519_key: identity.key.x25519_public(),
                endpoints: self.first_endpoints(request),
                data_ports: self.config().data_ports,
                api_access: self.config().api_access,
                version: crate::model::VERSION.to_owned(),
                license_id: license.license_id(),
                created_at: now,
            },
            cluster: ClusterBody { cluster_id: ClusterId::mint(now, rng), created_at: now, client_id },
            credential: CredentialBody {
                client_id,
                secrets: vec![SecretDigest { sha256: secret.digest_hex(), not_after: None }],
                scopes: ScopeSet::admin(),
                description: request.description.clone().unwrap_or_default(),
                license_id: license.license_id(),
                created_at: now,
            },
            identity,
            license,
        }
    }

    /// The first that exists (cluster.md §2); a later handshake may tell us more.
    fn first_endpoints(&self, request: &BootstrapRequest) -> Vec<Endpoint> {
        let configured = &self.config().advertise_endpoints;
        if !configured.is_empty() {
            return configured.clone();
        }
        if !request.endpoints.is_empty() {
            return request.endpoints.clone();
        }
        let usable = |e: &&Endpoint| e.host() != "localhost" && !e.ip().is_some_and(|ip| ip.is_loopback());
        request.called_at.iter().filter(usable).cloned().collect()
    }
}

impl Newborn {
    fn write(&self, tx: &Tx<'_>, now: UnixTime) -> Result<(), StoreError> {
        let author = &self.identity;
        let facts = ClusterFacts { cluster_id: self.cluster.cluster_id, created_at: now, aliases: Vec::new() };
        tx.set_cluster(&facts)?;
        tx.set_license(self.license.as_value())?;
        let mut row =
            PeerRow::trusted(author.peer_id, author.key.public(), self.peer.endpoints.clone(), self.peer.created_at);
        row.license_id = Some(self.license.license_id());
        tx.put_peer(&row)?;
        tx.put_own(author, kind::PEER, &author.peer_id.to_string(), &self.peer)?;
        tx.put_own(author, kind::CLUSTER, &self.cluster.cluster_id.to_string(), &self.cluster)?;
        tx.put_own(author, kind::CREDENTIAL, &self.credential.client_id.to_string(), &self.credential)?;
        Ok(())
    }
}

fn already_bootstrapped() -> Refused {
    Refused::new(Code::AlreadyBootstrapped, "agent is already bootstrapped")
}

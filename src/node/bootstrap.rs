//! First start of a peer: license stored, identity and credential made (cluster.md §2).

use super::{Identity, Node, identity, licensing::Licensed};
use crate::{
    license::{EffectiveClock, LicenseDocument, check_admission},
    membership::{Birth, FirstWords, OwnSettings},
    model::{ClientId, ClusterId, Code, Endpoint, LicenseId, PeerId, PublicKey, Refused, Secret, UnixTime},
    store::StoreError,
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

impl Node {
    /// Exactly one of several concurrent calls wins; the others are ALREADY_BOOTSTRAPPED.
    pub async fn bootstrap(&self, request: BootstrapRequest) -> Result<Bootstrapped, Refused> {
        let _turn = self.inner.membership_turn.lock().await;
        let license = Arc::new(self.check_bootstrap(&request)?);
        let now = self.env().clock.unix();
        let clock = EffectiveClock::start(now, self.env().clock.mono());

        let identity = self.identity_or_mint(now)?;
        let mut rng = self.fork_rng();
        let secret = Secret::mint(&mut rng);
        let words = FirstWords {
            name: request.name.clone().unwrap_or_else(|| self.config().default_name.clone()),
            description: request.description.clone().unwrap_or_default(),
        };
        let settings = OwnSettings { endpoints: self.first_endpoints(&request), ..self.own_settings() };
        let birth = Birth::new(&identity, words, settings, &license, &secret, now, &mut rng);
        let answer = Bootstrapped {
            peer_id: identity.peer_id,
            peer_public_key: identity.key.public(),
            client_id: birth.credential.client_id,
            client_secret: secret,
            cluster_id: birth.cluster.cluster_id,
            license_id: license.license_id(),
            expires_at: license.expires_at(),
            max_nodes: license.max_nodes(),
            max_services: license.max_services(),
        };
        let licensed = Licensed::new(license, clock);
        let (author, document, kept) = (identity.clone(), licensed.document(), licensed.kept());
        let instance = self.inner.instance.clone();
        self.store()
            .write(move |tx| -> Result<(), StoreError> {
                birth.write(tx, &author)?;
                tx.set_lineage(&instance)?;
                tx.set_license(document.as_value())?;
                tx.set_license_clock(&kept)
            })
            .await?;
        self.begin_membership(identity, licensed);
        tracing::info!(peer = %answer.peer_id, cluster = %answer.cluster_id, license = %answer.license_id, "bootstrapped");
        Ok(answer)
    }

    /// Whether a bootstrap could succeed now: the license that it would go by.
    pub fn check_bootstrap(&self, request: &BootstrapRequest) -> Result<LicenseDocument, Refused> {
        if self.store().read(|v| v.cluster())?.is_some() {
            return Err(already_bootstrapped());
        }
        let license = LicenseDocument::from_value(&request.license)?;
        let clock = EffectiveClock::start(self.env().clock.unix(), self.env().clock.mono());
        check_admission(&license, self.trust_roots(), None, &clock)?;
        Ok(license)
    }

    fn identity_or_mint(&self, now: UnixTime) -> Result<Arc<Identity>, Refused> {
        if let Some(identity) = identity::load(&self.config().data_dir).map_err(Refused::internal)? {
            return Ok(Arc::new(identity));
        }
        let mut rng = self.env().rng("identity");
        let minted = identity::mint(&self.config().data_dir, now, &mut rng).map_err(Refused::internal)?;
        Ok(Arc::new(minted))
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

fn already_bootstrapped() -> Refused {
    Refused::new(Code::AlreadyBootstrapped, "agent is already bootstrapped")
}

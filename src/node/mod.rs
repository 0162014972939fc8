//! The drivers: they read clocks, move bytes and feed the machines. [`Node::start`] and [`Node::run`] are the same for
//! the daemon and the simulator.

mod applied;
mod bootstrap;
mod collection;
mod config;
mod confirm;
pub mod daemon;
mod data_dir;
mod events;
mod examine;
mod gossip;
mod identity;
mod init;
mod join;
mod kernel;
mod licensing;
mod lock;
mod observe;
mod peer_client;
mod recovery;
mod removal;
mod run;
mod view;

pub use bootstrap::{BootstrapRequest, Bootstrapped};
pub use config::{Config, ConfigError, LogFormat, OnStop};
pub use confirm::CONFIRM_MAX;
pub use data_dir::DataDirError;
pub use events::{EVENT_TYPES, EVENTS_KEPT_MAX, Event, EventLog, News};
pub use examine::Examined;
pub use gossip::{MAYBE_DONE_HINT, SyncOutcome};
#[cfg(test)]
pub(crate) use identity::mint as mint_identity;
pub use identity::{Identity, IdentityError};
pub use init::ClusterInit;
pub use join::{AddPeer, Added};
pub use lock::{LockView, LockWish};
pub use peer_client::{Call, CallError, PeerAnswer};
pub use recovery::RecoveryToken;
pub use run::RunError;
pub use view::{ClusterView, PeerHealth};

use crate::{
    env::{Env, Traffic},
    gossip::Gossip,
    handshake::Responder,
    license::{Entitlement, LicenseDocument, LicenseError, TrustRoots},
    lock::Lock,
    membership::{self, Attempts, OwnSettings},
    model::{PeerId, Rng},
    reconcile,
    store::{Store, StoreError},
};
use licensing::Licensed;
use peer_client::PeerClient;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicBool},
    time::Duration,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Pause of a driver after the store refused what it wanted.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// Characters of the instance id that tell one start from another.
const START_ID_CHARS: usize = 8;

/// A running node, as its API and its drivers share it. Clones are handles to one node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    config: Config,
    store: Store,
    trust_roots: TrustRoots,
    /// Set while bootstrapped.
    identity: watch::Sender<Option<Arc<Identity>>>,
    entitlement: watch::Sender<Option<Arc<Entitlement>>>,
    licensed: Mutex<Option<Licensed>>,
    client: PeerClient,
    ids: Mutex<Rng>,
    /// One bootstrap, renewal, new beginning or departure at a time.
    membership_turn: tokio::sync::Mutex<()>,
    /// What the gossip machine decided and the store does not have yet.
    commit_turn: tokio::sync::Mutex<Option<crate::gossip::Event>>,
    responder: Mutex<Responder>,
    gossip: Mutex<Option<Gossip>>,
    gossip_wake: Notify,
    lock: Mutex<Option<Lock>>,
    /// What the data planes carried, while they run.
    traffic: Mutex<Option<crate::env::ReadTraffic>>,
    events: EventLog,
    events_wake: Notify,
    reconcile_wake: Notify,
    reconcile_status: Mutex<Option<watch::Receiver<reconcile::Status>>>,
    reached: Mutex<BTreeMap<PeerId, gossip::Reached>>,
    attempts: Mutex<Attempts>,
    /// What handshakes were judged against last.
    side: Mutex<Option<join::KnownSide>>,
    /// This peer has begun to leave its cluster.
    leaving: AtomicBool,
    /// It has left, and the agent is to end.
    departed: CancellationToken,
    /// Random at each start; tells two live copies of one identity apart.
    instance: String,
}

/// Why a node does not start. The agent exits with status 1 after logging it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the database belongs to a cluster, but peer.key is missing: restore it from a backup, or remove the database"
    )]
    IdentityMissing,
    #[error(
        "peer.key is of {peer_id}, which is not the peer that the database belongs to: put the two of one backup together, or remove the database"
    )]
    IdentityOfAnother { peer_id: PeerId },
    #[error("the stored license {license_id} (key {key_id}) is refused: {reason}")]
    License { license_id: String, key_id: String, reason: String },
    #[error("the database belongs to a cluster, but holds no license")]
    LicenseMissing,
}

impl Node {
    /// Opens the data directory, reads the identity, and verifies the stored license before anything else happens.
    pub async fn start(env: Env, config: Config, trust_roots: TrustRoots) -> Result<Self, StartError> {
        data_dir::create(&config.data_dir)?;
        let identity = identity::load(&config.data_dir)?;
        let store = Store::open(&config.data_dir.join("arctic.db"))?;
        let node = Self {
            inner: Arc::new(Inner {
                client: PeerClient::new(env.clone()),
                ids: Mutex::new(env.rng("ids")),
                config,
                store,
                trust_roots,
                identity: watch::Sender::new(None),
                entitlement: watch::Sender::new(None),
                licensed: Mutex::new(None),
                membership_turn: tokio::sync::Mutex::new(()),
                commit_turn: tokio::sync::Mutex::new(None),
                responder: Mutex::new(Responder::new()),
                gossip: Mutex::new(None),
                gossip_wake: Notify::new(),
                lock: Mutex::new(None),
                traffic: Mutex::new(None),
                events: EventLog::default(),
                events_wake: Notify::new(),
                reconcile_wake: Notify::new(),
                reconcile_status: Mutex::new(None),
                reached: Mutex::default(),
                attempts: Mutex::default(),
                side: Mutex::default(),
                leaving: AtomicBool::new(false),
                departed: CancellationToken::new(),
                instance: format!("{:016x}", env.rng("instance").u64()),
                env,
            }),
        };
        node.finish_leaving().await?;
        node.resume_membership(identity).await?;
        Ok(node)
    }

    /// A peer that was stopped while it left has left.
    async fn finish_leaving(&self) -> Result<(), StoreError> {
        if self.store().read(|v| v.is_leaving())? {
            tracing::warn!("this peer was leaving its cluster when it was stopped; it has left");
            self.store().write(|tx| tx.clear_membership()).await?;
        }
        Ok(())
    }

    async fn resume_membership(&self, identity: Option<Identity>) -> Result<(), StartError> {
        let (cluster, license, kept) =
            self.store().read::<_, StoreError>(|v| Ok((v.cluster()?, v.license()?, v.license_clock()?)))?;
        if cluster.is_none() {
            return Ok(());
        }
        let identity = Arc::new(identity.ok_or(StartError::IdentityMissing)?);
        let license = self.verified_license(&license.ok_or(StartError::LicenseMissing)?)?;
        let (author, settings, license_id) = (identity.clone(), self.own_settings(), license.license_id());
        let instance = self.inner.instance.clone();
        self.store()
            .write(move |tx| {
                let own = tx.peer(author.peer_id)?.filter(|row| row.public_key == author.key.public());
                let own = own.ok_or(StartError::IdentityOfAnother { peer_id: author.peer_id })?;
                let was_contested = tx.is_contested()?;
                tx.count_start()?;
                tx.set_lineage(&instance)?;
                if was_contested {
                    membership::resume_writing(tx, &author)?;
                }
                membership::publish_settings(tx, &author, own, &settings, license_id).map_err(StartError::from)
            })
            .await?;
        let licensed = self.resumed(license, kept);
        self.begin_membership(identity, licensed);
        Ok(())
    }

    fn verified_license(&self, document: &Value) -> Result<Arc<LicenseDocument>, StartError> {
        let field = |name: &str| document[name].as_str().unwrap_or("unknown").to_owned();
        let refused = |error: LicenseError| {
            let (license_id, key_id, reason) = (field("license_id"), field("key_id"), error.reason());
            tracing::error!(license = license_id, key = key_id, reason, "the stored license is refused: no start");
            StartError::License { license_id, key_id, reason }
        };
        let license = LicenseDocument::from_value(document).map_err(refused)?;
        license.verify(self.trust_roots()).map_err(refused)?;
        Ok(Arc::new(license))
    }

    pub fn env(&self) -> &Env {
        &self.inner.env
    }
    pub fn config(&self) -> &Config {
        &self.inner.config
    }
    pub fn store(&self) -> &Store {
        &self.inner.store
    }
    pub fn trust_roots(&self) -> &TrustRoots {
        &self.inner.trust_roots
    }
    /// What happened since the start of this agent.
    pub fn events(&self) -> &EventLog {
        &self.inner.events
    }
    /// What the data planes carried of each service since they started.
    pub fn traffic(&self) -> Traffic {
        let read = self.inner.traffic.lock().unwrap_or_else(|p| p.into_inner()).clone();
        read.map(|read| read()).unwrap_or_default()
    }
    /// Tells this start of the agent from others.
    pub fn start_id(&self) -> &str {
        &self.inner.instance[..START_ID_CHARS]
    }
    /// None before bootstrap.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.inner.identity.borrow().clone()
    }
    /// None before bootstrap.
    pub fn entitlement(&self) -> Option<Arc<Entitlement>> {
        self.inner.entitlement.borrow().clone()
    }
    /// Changes with license, state and clock.
    pub fn entitlement_watch(&self) -> watch::Receiver<Option<Arc<Entitlement>>> {
        self.inner.entitlement.subscribe()
    }
    /// A random stream for one purpose, the same at each call.
    pub fn rng(&self, label: &str) -> Rng {
        self.inner.env.rng(label)
    }
    /// A random stream of its own, for ids and secrets.
    pub fn fork_rng(&self) -> Rng {
        self.inner.ids.lock().unwrap_or_else(|p| p.into_inner()).fork()
    }

    /// What the configuration lets this peer say of itself.
    fn own_settings(&self) -> OwnSettings {
        OwnSettings {
            endpoints: self.config().advertise_endpoints.clone(),
            data_ports: self.config().data_ports,
            api_access: self.config().api_access,
        }
    }

    fn client(&self) -> &PeerClient {
        &self.inner.client
    }
    /// Handshakes that others began and did not finish yet.
    #[cfg(test)]
    pub fn open_handshakes(&self) -> usize {
        self.responder().open_sessions()
    }
    fn responder(&self) -> MutexGuard<'_, Responder> {
        self.inner.responder.lock().unwrap_or_else(|p| p.into_inner())
    }
}

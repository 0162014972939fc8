//! Leases of interfaces without a desired address: one task each drives the client of `dhcp`.

use crate::{
    dhcp::Client,
    env::Clock,
    kernel::{FramePort, Kernel, Mac},
    model::{Rng, ServiceId, interface_name},
};
use ipnet::{IpNet, Ipv4Net};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Before a link that cannot be listened on is tried again.
const PORT_RETRY: Duration = Duration::from_secs(1);
/// To give an address back.
const RELEASE_MAX: Duration = Duration::from_secs(1);

/// Addresses by service.
pub type Leased = BTreeMap<ServiceId, Ipv4Net>;

/// The clients that run.
pub struct Leases {
    kernel: Arc<dyn Kernel>,
    clock: Arc<dyn Clock>,
    rng: Rng,
    leased: watch::Sender<Leased>,
    running: BTreeMap<ServiceId, (CancellationToken, JoinHandle<()>)>,
}

impl Leases {
    pub fn new(kernel: Arc<dyn Kernel>, clock: Arc<dyn Clock>, rng: Rng) -> Self {
        Self { kernel, clock, rng, leased: watch::Sender::default(), running: BTreeMap::new() }
    }

    /// Changes with each address that is leased or lost.
    pub fn watch(&self) -> watch::Receiver<Leased> {
        self.leased.subscribe()
    }

    pub fn address_of(&self, service: ServiceId) -> Option<IpNet> {
        self.leased.borrow().get(&service).copied().map(IpNet::V4)
    }

    /// Gives back what is leased for others than these; their interfaces are still there.
    pub async fn keep(&mut self, wanted: &BTreeSet<ServiceId>) {
        let ended: Vec<ServiceId> = self.running.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for service in ended {
            if let Some((stop, task)) = self.running.remove(&service) {
                stop.cancel();
                // One that does not end in time ends with its interface.
                drop(timeout(RELEASE_MAX, task).await);
            }
        }
    }

    /// Begins to ask for those that are new.
    pub fn begin(&mut self, wanted: &BTreeSet<ServiceId>) {
        for service in wanted {
            if !self.running.contains_key(service) {
                let stop = CancellationToken::new();
                let run = Lessee {
                    service: *service,
                    kernel: self.kernel.clone(),
                    clock: self.clock.clone(),
                    rng: self.rng.fork(),
                    leased: self.leased.clone(),
                };
                let task = tokio::spawn(run.run(stop.clone()));
                self.running.insert(*service, (stop, task));
            }
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, task)| task.abort());
    }
}

/// One client and what it needs.
struct Lessee {
    service: ServiceId,
    kernel: Arc<dyn Kernel>,
    clock: Arc<dyn Clock>,
    rng: Rng,
    leased: watch::Sender<Leased>,
}

impl Lessee {
    async fn run(mut self, stop: CancellationToken) {
        let mut client = Client::new(Mac::of_service(self.service).0, self.clock.mono());
        let mut port: Option<Box<dyn FramePort>> = None;
        loop {
            if port.is_none() {
                port = self.kernel.frame_port(&interface_name(self.service)).await.ok();
            }
            let wait = client.poll_timeout().saturating_since(self.clock.mono());
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                frame = receive(&mut port) => Some(frame),
                () = sleep(wait), if port.is_some() => None,
            };
            let now = self.clock.mono();
            match received {
                Some(Ok(frame)) => {
                    if let Err(reason) = client.handle_frame(now, &frame, &mut self.rng) {
                        tracing::debug!(service = %self.service, %reason, "a frame of DHCP was passed over");
                    }
                }
                // The link went away; it may come back as another one.
                Some(Err(_)) => port = None,
                None => client.handle_timeout(now, &mut self.rng),
            }
            if !send(&mut client, &mut port) {
                client.handle_unsent(now);
            }
            self.publish(&client);
        }
        client.handle_release(self.clock.mono(), &mut self.rng);
        if !send(&mut client, &mut port) {
            tracing::debug!(service = %self.service, "the lease was not given back");
        }
        self.publish(&client);
    }

    fn publish(&self, client: &Client) {
        let address = client.lease().map(|lease| lease.address);
        self.leased.send_if_modified(|leased| match address {
            Some(address) => leased.insert(self.service, address) != Some(address),
            None => leased.remove(&self.service).is_some(),
        });
    }
}

async fn receive(port: &mut Option<Box<dyn FramePort>>) -> std::io::Result<Vec<u8>> {
    match port {
        Some(port) => port.receive().await,
        None => {
            sleep(PORT_RETRY).await;
            Err(std::io::ErrorKind::NotConnected.into())
        }
    }
}

/// Whether all was sent.
fn send(client: &mut Client, port: &mut Option<Box<dyn FramePort>>) -> bool {
    let mut all = true;
    while let Some(frame) = client.poll_frame() {
        match port.as_ref().map(|port| port.send(&frame)) {
            Some(Ok(())) => {}
            Some(Err(e)) => {
                tracing::debug!(error = %e, "a frame of DHCP was not sent");
                *port = None;
                all = false;
            }
            None => all = false,
        }
    }
    all
}

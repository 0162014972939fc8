//! `arctic agent run`: the node on the real operating system.

use super::{Config, ConfigError, DataDirError, LogFormat, Node, RunError, StartError, data_dir, recovery};
use crate::{
    dataplane::LinuxEngines,
    env::{Env, SystemClock, system_seed},
    kernel::{KernelError, MarkMask},
    license::TrustRoots,
    os::{HostClaim, LinuxKernel, net::TokioNet},
};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Why the agent ends with status 1.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the operating system gives no randomness: {0}")]
    Randomness(getrandom::Error),
    #[error("another arctic agent runs on this host (in this network namespace): stop it first")]
    SecondAgent,
    #[error("kernel state of this host cannot be claimed")]
    Claim(#[source] std::io::Error),
    #[error("kernel access: run as root, or with CAP_NET_ADMIN")]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Recovery(#[from] recovery::RecoveryError),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

/// Reads the settings from the environment and runs until SIGTERM or SIGINT.
pub async fn run() -> Result<(), DaemonError> {
    let mut config = Config::read(|variable| std::env::var(variable).ok())?;
    start_log(&config);
    if config.default_name.is_empty() {
        config.default_name = host_name();
    }
    let mask = MarkMask::new(config.fwmark_mask).expect("Config::read has checked the mask");
    // Before anything is read or written: two agents would take the tables from each other for ever.
    let _claim = HostClaim::take().map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => DaemonError::SecondAgent,
        _ => DaemonError::Claim(e),
    })?;
    let env = Env::new(
        Arc::new(TokioNet::new(Some(mask.own()))),
        Arc::new(LinuxKernel::open()?.remembering(config.data_dir.join("host-settings.json"))),
        Arc::new(SystemClock::new()),
        Arc::new(LinuxEngines),
        system_seed().map_err(DaemonError::Randomness)?,
    );
    data_dir::create(&config.data_dir)?;
    let _held = data_dir::lock(&config.data_dir)?;
    let token = recovery::write_token(&config.recovery_token_path, &mut env.rng("recovery"))?;
    let node = Node::start(env, config, TrustRoots::embedded()).await?;
    let stop = CancellationToken::new();
    let signals = stop_on_signal(stop.clone()).map_err(DaemonError::Signals)?;
    let outcome = node.run(Some(token), stop).await;
    signals.abort();
    Ok(outcome?)
}

fn stop_on_signal(stop: CancellationToken) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        stop.cancel();
    }))
}

fn start_log(config: &Config) {
    let filter = EnvFilter::new(format!("warn,arctic={}", config.log_level));
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Json => registry.with(fmt::layer().event_format(crate::os::log::JsonLines)).init(),
        LogFormat::Text => registry.with(fmt::layer().with_ansi(false)).init(),
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

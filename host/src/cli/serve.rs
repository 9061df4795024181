//! `opr serve`: the daemon in the foreground, as a service manager runs it.

use std::io::IsTerminal;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::Session;
use crate::{
    config::{Config, env},
    serve::Node,
    telemetry::log::Lines,
};

pub(super) async fn run(session: Session) -> anyhow::Result<()> {
    start_logs(&session.config)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        file = session.file.as_deref().map(tracing::field::debug),
        settings = session.config.masked(),
        "node started"
    );
    let without_effect = env::without_effect(&|name| std::env::var(name).ok());
    if !without_effect.is_empty() {
        tracing::warn!(variables = ?without_effect, "variables without effect are set");
    }
    raise_open_files();
    let stop = CancellationToken::new();
    let signals = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let node = Node::bind(session.config).await?;
    let info = node.info();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("node is stopping");
        notify(sd_notify::NotifyState::Stopping);
        signals.cancel();
    });
    notify(sd_notify::NotifyState::Ready);
    tracing::info!(
        gateway = info.gateway,
        executor = info.executor,
        "node is ready"
    );
    node.run(stop).await?;
    tracing::info!("node stopped");
    Ok(())
}

/// Each execution has two connections: as many descriptors as the machine allows.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = ?limit.current, "the limit of open files stays");
    }
}

/// Lines for people on a terminal, JSON elsewhere.
fn start_logs(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).with_context(|| {
        format!(
            "setting log is {:?}, but must be as in `info,opr_host=debug`",
            config.log
        )
    })?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Lines);
    if std::io::stderr().is_terminal() {
        logs.init();
    } else {
        logs.json().flatten_event(true).init();
    }
    Ok(())
}

/// Tells the service manager, where there is one.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "service manager was not told");
    }
}

//! `opr serve`: the daemon in the foreground, as a service manager runs it.

use std::{io::IsTerminal, sync::Arc, time::Duration};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::Session;
use crate::{
    api::node::tuning::Tuning,
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
    cancel_at_signals(stop.clone())?;
    let file = session.file.clone();
    let read = move || super::load(file.as_deref());
    let node = Node::bind(session.config, Arc::new(read)).await?;
    let info = node.info();
    reload_at_signals(node.tuning())?;
    notify(sd_notify::NotifyState::Ready);
    tokio::spawn(feed_watchdog());
    tracing::info!(
        gateway = info.gateway,
        executor = info.executor,
        "node is ready"
    );
    node.run(stop).await?;
    tracing::info!("node stopped");
    Ok(())
}

/// Cancels `stop` when the service manager or a terminal asks for the end.
pub(super) fn cancel_at_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        notify(sd_notify::NotifyState::Stopping);
        stop.cancel();
    });
    Ok(())
}

/// Reads the settings anew when the service manager asks for it; it is told by the log how that went.
fn reload_at_signals(tuning: Tuning) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for signals")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let _ = tuning.reload();
        }
    });
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
pub(super) fn start_logs(config: &Config) -> anyhow::Result<()> {
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

/// Tells a service manager that asks for it that requests are still served.
async fn feed_watchdog() {
    let mut limit_us = 0;
    if !sd_notify::watchdog_enabled(false, &mut limit_us) {
        return;
    }
    loop {
        notify(sd_notify::NotifyState::Watchdog);
        tokio::time::sleep(Duration::from_micros(limit_us / 3)).await;
    }
}

/// Tells the service manager, where there is one.
pub(super) fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        tracing::warn!(%error, "service manager was not told");
    }
}

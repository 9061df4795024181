//! `opr containerd`: keeps the node's own containerd alive in the foreground, as a service manager runs it.

use std::path::Path;

use tokio::{
    process::{Child, Command},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{Session, serve};
use crate::{adapter::keep_containerd, rootless};

/// How soon pasta is started again.
const PAUSE: time::Duration = time::Duration::from_secs(1);

pub(super) async fn run(session: Session) -> anyhow::Result<()> {
    serve::start_logs(&session.config)?;
    let stop = CancellationToken::new();
    serve::cancel_at_signals(stop.clone())?;
    let uplink = rootless::uplink(&session.config.run_dir).join("net");
    let outbound = async {
        if uplink.exists() {
            keep_outbound(&uplink).await;
        }
        std::future::pending().await
    };
    let ready = || {
        serve::notify(sd_notify::NotifyState::Ready);
        tracing::info!("containerd is ready");
    };
    tokio::select! {
        kept = keep_containerd(&session.config, ready, stop) => kept?,
        () = outbound => {}
    }
    Ok(())
}

/// Keeps pasta between the network namespace `net` and the machine's network. Never ends.
async fn keep_outbound(net: &Path) {
    loop {
        match pasta(net).map(|mut child| async move { child.wait().await }) {
            Ok(ended) => match ended.await {
                Ok(status) => tracing::error!(%status, "pasta ended"),
                Err(error) => tracing::error!(%error, "pasta cannot be waited for"),
            },
            Err(error) => {
                tracing::error!(%error, "pasta was not started; functions have no way out: install passt")
            }
        }
        time::sleep(PAUSE).await;
    }
}

/// No port of the machine leads in, and none of its own ports, by the gateway's address, is led to.
///
/// Source: pasta(1).
fn pasta(net: &Path) -> std::io::Result<Child> {
    Command::new("pasta")
        .args([
            "--foreground",
            "--quiet",
            "--ipv4-only",
            "--config-net",
            "--no-map-gw",
        ])
        .args([
            "--tcp-ports",
            "none",
            "--udp-ports",
            "none",
            "--tcp-ns",
            "none",
            "--udp-ns",
            "none",
        ])
        .args(["--netns-only", "--netns"])
        .arg(net)
        .kill_on_drop(true)
        .spawn()
}

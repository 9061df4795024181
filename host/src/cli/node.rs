//! `opr up` and `opr down`: a node in the background, without a service manager.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use http::Method;

use super::{
    Session,
    client::{Client, Unreachable, empty, request},
};
use crate::{
    adapter::{Adapter, Containerd},
    api::node::wire::NodeInfo,
};

/// How long a node may take until it answers, and until it is gone.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn up(session: &Session) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    let info = match client.node().await {
        Ok(info) => info,
        Err(error) if error.is::<Unreachable>() => start(session, &client).await?,
        Err(error) => return Err(error),
    };
    session.output.result(&info, |info| {
        format!(
            "node {} runs as process {}: functions on http://{}, executor API on http://{}\n",
            info.hostname, info.pid, info.gateway, info.executor
        )
    });
    Ok(())
}

async fn start(session: &Session, client: &Client) -> anyhow::Result<NodeInfo> {
    let state = &session.config.state_dir;
    fs::create_dir_all(state).with_context(|| format!("cannot make {}", state.display()))?;
    let path = state.join("opr.log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot write {}", path.display()))?;
    let begin = log.metadata()?.len();
    let mut daemon = spawn(session, log)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(info) = client.node().await {
            return Ok(info);
        }
        let told = || {
            let text = fs::read(&path).unwrap_or_default();
            let from = usize::try_from(begin).unwrap_or_default().min(text.len());
            String::from_utf8_lossy(&text[from..]).trim().to_owned()
        };
        if let Some(status) = daemon.try_wait()? {
            bail!("the node ended with {status}: {}", told());
        }
        if Instant::now() > deadline {
            bail!("the node does not answer, see {}", path.display());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same program as a daemon that outlives this process and its terminal.
fn spawn(session: &Session, log: File) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(file) = &session.file {
        command.arg("--config").arg(fs::canonicalize(file)?);
    }
    command
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .process_group(0);
    command.spawn().context("cannot start the node")
}

pub(super) async fn down(session: &Session) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    match client.node().await {
        Ok(info) => {
            client
                .send(request(Method::POST, "/v1/stop", empty()))
                .await?;
            wait_for_end(&info).await?;
        }
        Err(error) if error.is::<Unreachable>() => remove_remains(session).await?,
        Err(error) => return Err(error),
    }
    let done = serde_json::json!({ "stopped": true });
    session
        .output
        .result(&done, |_| "the node is stopped\n".into());
    Ok(())
}

async fn wait_for_end(info: &NodeInfo) -> anyhow::Result<()> {
    let process = format!("/proc/{}/stat", info.pid);
    let is_running = || {
        let stat = fs::read_to_string(&process).unwrap_or_default();
        // A zombie waits for its parent only.
        stat.rsplit(')').next().is_some_and(|rest| {
            let state = rest.trim_start().chars().next();
            state.is_some_and(|state| state != 'Z')
        })
    };
    let deadline = Instant::now() + PATIENCE;
    while is_running() {
        if Instant::now() > deadline {
            bail!("the node, process {}, does not end", info.pid);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// A daemon that was killed has left its containers and its containerd.
async fn remove_remains(session: &Session) -> anyhow::Result<()> {
    if !session.config.run_dir.exists() {
        return Ok(());
    }
    let adapter = Containerd::start(Arc::new(session.config.clone())).await?;
    adapter.adopt().await?;
    adapter.remove_all().await?;
    Ok(())
}

//! What is measured, each of us and of the peer in turn.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tonic::Status;

use crate::{
    Row,
    baseline::Baseline,
    container::Container,
    inside::Inside,
    node::{Node, Runtime},
    program::Program,
    task::Task,
    traces,
};

/// Containers that are alive at once while memory is measured.
const ALIVE: usize = 100;
/// Containers for each figure of a rate.
const STARTS: usize = 96;
const GROUP: &str = "bench";
/// What all of them may take before something is wrong.
const TIMEOUT: Duration = Duration::from_secs(240);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Keeps the shim of a group alive.
async fn keeper(node: &Node, runtime: Runtime) -> Result<Task<'_>> {
    let keeper = node.container(runtime, "keeper").group(GROUP).silent();
    let task = keeper.args(&["sleep", "100000"]).create().await?;
    task.start().await?;
    Ok(task)
}

/// From a create to the answer of a wait, through containerd; deleted outside of the time.
async fn life(container: Container<'_>, program: Program) -> Result<Duration, Status> {
    let container = program.of(container);
    container.prepare();
    container.record().await?;
    let began = Instant::now();
    let task = container.create_task().await?;
    task.start().await?;
    task.wait().await?;
    let took = began.elapsed();
    task.delete().await?;
    let _ = fs::remove_dir_all(container.folder());
    Ok(took)
}

/// Create, start and exit of a static program.
pub(crate) async fn lives(node: &Node, program: Program, n: usize) -> Result<Vec<Row>> {
    let ours_keeper = keeper(node, Runtime::Ours).await?;
    let peer_keeper = keeper(node, Runtime::Peer).await?;
    let (mut ours, mut peer, mut grouped) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..n + 2 {
        let id = format!("life-{round}");
        let one = life(node.container(Runtime::Ours, &id).group(GROUP), program).await?;
        let two = life(node.container(Runtime::Peer, &id), program).await?;
        let three = life(node.container(Runtime::Peer, &id).group(GROUP), program).await?;
        // The first rounds fill caches.
        if round >= 2 {
            ours.push(milliseconds(one));
            peer.push(milliseconds(two));
            grouped.push(milliseconds(three));
        }
    }
    ours_keeper.remove().await?;
    peer_keeper.remove().await?;
    let ours = median(ours);
    let row = |peer_is: &str, peer| Row {
        name: format!("create+start+exit of {}, p50, {peer_is}", program.name()),
        unit: "ms",
        ours,
        peer: median(peer),
        n,
        target: "ratio at most 0.125",
    };
    Ok(vec![
        row("against runc's shim", peer),
        row("runc's shim grouped", grouped),
    ])
}

/// Create, start and exit asked of the shim directly, against the system calls that make such a container.
pub(crate) async fn inside(node: &Node, n: usize) -> Result<Row> {
    let keeper = keeper(node, Runtime::Ours).await?;
    let inside = Inside::connect(node, "keeper")?;
    let mut baseline = Baseline::start(node.dir.path())?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..n + 2 {
        let container = node.container(Runtime::Ours, &format!("inside-{round}"));
        let container = container
            .args(&["/bin/busybox", "true"])
            .spec(|spec| crate::spec::namespace(spec, "cgroup", None));
        let took = life_inside(&inside, &container)?;
        let least = baseline.life()?;
        if round >= 2 {
            ours.push(milliseconds(took));
            bare.push(milliseconds(least));
        }
    }
    keeper.remove().await?;
    Ok(Row {
        name: "the same inside the shim, against bare system calls".into(),
        unit: "ms",
        ours: median(ours),
        peer: median(bare),
        n,
        target: "ratio at most 2",
    })
}

/// From a create to the answer of a wait; deleted outside of the time.
fn life_inside(inside: &Inside, container: &Container<'_>) -> Result<Duration> {
    let id = &container.id;
    let bundle = container.node.dir.path().join("inside").join(id);
    container.prepare();
    fs::create_dir_all(bundle.join("rootfs"))?;
    fs::write(bundle.join("config.json"), container.spec_text())?;
    let began = Instant::now();
    inside.create(container, &bundle, None)?;
    inside.start(id)?;
    let exit = inside.wait(id)?;
    let took = began.elapsed();
    inside.delete(id)?;
    ensure!(exit == 0, "the program ended with {exit}");
    fs::remove_dir_all(bundle)?;
    fs::remove_dir_all(container.folder())?;
    Ok(took)
}

/// Memory of all shims together, for each container that is alive.
pub(crate) async fn memory(node: &Node) -> Result<Row> {
    let mut figures = Vec::new();
    for runtime in [Runtime::Ours, Runtime::Peer] {
        let mut tasks = Vec::new();
        for n in 0..ALIVE {
            let container = node.container(runtime, &format!("alive-{n}")).silent();
            let container = match runtime {
                Runtime::Ours => container.group(GROUP),
                Runtime::Peer => container,
            };
            let task = container
                .args(&["/bin/busybox", "sleep", "100000"])
                .create()
                .await?;
            task.start().await?;
            tasks.push(task);
        }
        figures.push(proportional(&node.namespace(runtime))? / ALIVE as f64);
        for task in tasks {
            task.remove().await?;
        }
    }
    Ok(Row {
        name: format!("memory of the shims per container, {ALIVE} alive, PSS"),
        unit: "KiB",
        ours: figures[0],
        peer: figures[1],
        n: ALIVE,
        target: "ratio at most 0.05",
    })
}

/// KiB, each page divided by those who share it (`Pss` of proc_pid_smaps(5)).
fn proportional(mark: &str) -> Result<f64> {
    let shims = traces::shims(&[mark]);
    ensure!(!shims.is_empty(), "no shim was found");
    let mut sum = 0.0;
    for pid in shims {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let figure = line
            .context("there is a figure")?
            .trim()
            .trim_end_matches(" kB");
        sum += figure.parse::<f64>()?;
    }
    Ok(sum)
}

/// Lives in a second, with several at once.
pub(crate) async fn rates(node: &Arc<Node>, n: usize) -> Result<Vec<Row>> {
    let starts = STARTS.min(n * 4).max(32);
    let keeper = keeper(node, Runtime::Ours).await?;
    let mut rows = Vec::new();
    for at_once in [1, 8, 32] {
        let ours = rate(node, Runtime::Ours, at_once, starts).await?;
        let peer = rate(node, Runtime::Peer, at_once, starts).await?;
        rows.push(Row {
            name: format!("lives per second, {at_once} at once"),
            unit: "1/s",
            ours,
            peer,
            n: starts,
            target: if at_once == 32 {
                "not lower than at 8"
            } else {
                ""
            },
        });
    }
    keeper.remove().await?;
    Ok(rows)
}

async fn rate(node: &Arc<Node>, runtime: Runtime, at_once: usize, starts: usize) -> Result<f64> {
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..at_once {
        let node = node.clone();
        workers.spawn(async move {
            for n in (worker..starts).step_by(at_once) {
                let container = node.container(runtime, &format!("rate-{at_once}-{n}"));
                let container = match runtime {
                    Runtime::Ours => container.group(GROUP),
                    Runtime::Peer => container,
                };
                life(container, Program::Busybox).await?;
            }
            Ok::<_, Status>(())
        });
    }
    let all = async {
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(TIMEOUT, all).await??;
    Ok(starts as f64 / began.elapsed().as_secs_f64())
}

//! The calls of a task from its creation to its deletion, in the right order and in wrong ones.

use serde_json::json;
use tonic::Status;

use crate::{
    container::Container,
    node::{Node, is_able},
    same::{outcome, same},
    task::Task,
};

pub(crate) const FOREVER: &str = "echo ready; exec sleep 1000";
/// Counts until it is told to end.
const COUNTS: &str =
    "trap 'exit 7' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done";

/// A task that said that it runs.
pub(crate) async fn running<'n>(
    container: Container<'n>,
    script: &str,
) -> Result<Task<'n>, Status> {
    let task = container.sh(script).create().await?;
    task.start().await?;
    task.stdio.read_until("ready").await;
    Ok(task)
}

#[tokio::test(flavor = "multi_thread")]
async fn states_and_events_are_the_same() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    same(&node, "states", async |container| {
        let task = container.sh(FOREVER).create().await?;
        let mut told = format!("created: {:?}\n", task.state("").await?);
        told += &format!("pids: {}\n", task.pids().await? == [task.pid]);
        told += &format!("same pid: {}\n", task.start().await? == task.pid);
        task.stdio.read_until("ready").await;
        told += &format!("started: {:?}\n", task.state("").await?);
        task.kill(9).await?;
        told += &format!("exit: {}\n", task.wait().await?);
        told += &format!("ended: {:?}\n", task.state("").await?);
        let process = task.process("").await?;
        told += &format!(
            "status {}, terminal {}\n",
            process.exit_status, process.terminal
        );
        told += &format!("has a time: {}\n", process.exited_at.is_some());
        told += &format!("delete: {}\n", outcome(&task.delete().await));
        told += &format!("gone: {}\n", outcome(&task.state("").await));
        Ok(told + &task.events_until("delete").await.join("\n"))
    })
    .await;
    same(&node, "never started", async |container| {
        let task = container.sh(FOREVER).create().await?;
        let killed = outcome(&task.kill(9).await);
        let exit = task.wait().await?;
        let deleted = outcome(&task.delete().await);
        let events = task.events_until("delete").await;
        Ok(format!("{killed} {exit} {deleted}\n{}", events.join("\n")))
    })
    .await;
    same(&node, "waits of several kinds", async |container| {
        let task = container
            .sh("echo ready; read line; exit 9")
            .stdin()
            .create()
            .await?;
        let early = async { (task.wait().await, task.wait().await) };
        let others = async {
            task.start().await?;
            task.stdio.read_until("ready").await;
            task.kill(9).await
        };
        let ((first, second), others) = tokio::join!(early, others);
        others?;
        let late = task.wait().await?;
        task.delete().await?;
        Ok(format!("{first:?} {second:?} {late}"))
    })
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_out_of_order_are_answered_alike() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    same(&node, "started twice", async |container| {
        let task = running(container, FOREVER).await?;
        let again = outcome(&task.start().await.map(drop));
        task.remove().await?;
        Ok(again)
    })
    .await;
    same(&node, "started after its end", async |container| {
        let task = running(container, "echo ready").await?;
        task.wait().await?;
        let again = outcome(&task.start().await.map(drop));
        task.delete().await?;
        Ok(again)
    })
    .await;
    same(&node, "created twice", async |container| {
        let task = running(container.clone(), FOREVER).await?;
        let again = container.create_task().await.map(drop);
        let told = format!("{} {:?}", outcome(&again), task.state("").await?);
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "deleted while it runs", async |container| {
        let task = running(container, FOREVER).await?;
        let told = format!(
            "{} {:?}",
            outcome(&task.delete_task().await),
            task.state("").await?
        );
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "deleted twice", async |container| {
        let task = running(container, "echo ready; exit 3").await?;
        task.wait().await?;
        Ok(format!(
            "{} {}",
            outcome(&task.delete().await),
            outcome(&task.delete().await)
        ))
    })
    .await;
    same(&node, "killed after its end", async |container| {
        let task = running(container, "echo ready").await?;
        task.wait().await?;
        let told = [
            outcome(&task.kill(9).await),
            outcome(&task.kill_process("", 9, true).await),
            outcome(&task.pause().await),
            outcome(&task.close_io("").await),
        ];
        task.delete().await?;
        Ok(told.join("\n"))
    })
    .await;
    same(&node, "made again under its name", async |container| {
        let mut told = String::new();
        for n in 0..3 {
            let run = container.clone().sh(&format!("exit {n}")).run().await?;
            told += &run.exit.to_string();
        }
        Ok(told)
    })
    .await;
    same(&node, "nothing of that name", async |container| {
        let task = running(container, "echo ready").await?;
        task.wait().await?;
        task.delete().await?;
        let update = task
            .update(&json!({ "memory": { "limit": 64 << 20 } }))
            .await;
        Ok([
            outcome(&task.start().await),
            outcome(&task.kill(9).await),
            outcome(&task.pause().await),
            outcome(&task.resume().await),
            outcome(&task.pids().await),
            outcome(&update),
            outcome(&task.wait_process("").await),
        ]
        .join("\n"))
    })
    .await;
    same(&node, "checkpoint", async |container| {
        let task = running(container, FOREVER).await?;
        let told = task.checkpoint().await;
        let is_refused = told.is_err();
        let state = task.state("").await?;
        task.remove().await?;
        Ok(format!("refused: {is_refused}, {state:?}"))
    })
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_arrive_alike() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    for (name, signal) in [
        ("HUP", 1),
        ("INT", 2),
        ("KILL", 9),
        ("USR1", 10),
        ("TERM", 15),
        ("RTMIN", 34),
    ] {
        same(&node, &format!("signal {name}"), async |container| {
            let script = "trap 'exit 40' HUP; trap 'exit 41' INT; trap 'exit 42' USR1; trap 'exit 43' TERM; \
                trap 'exit 44' RTMIN; echo ready; while :; do sleep 0.02; done";
            let task = running(container, script).await?;
            let killed = outcome(&task.kill(signal).await);
            if signal == 34 {
                // The shell of busybox cannot trap it, and a namespace's first process has no default for it.
                task.kill(9).await?;
            }
            let exit = task.wait().await?;
            task.delete().await?;
            Ok(format!("{killed} {exit}"))
        })
        .await;
    }
    same(&node, "signals without an effect", async |container| {
        let task = running(container, COUNTS).await?;
        let mut told = outcome(&task.kill(1).await);
        task.stdio.read_until("hup").await;
        told += &outcome(&task.kill(99).await);
        told += &format!(" {:?}", task.state("").await?);
        task.kill(15).await?;
        told += &format!(" {}", task.wait().await?);
        task.delete().await?;
        Ok(told)
    })
    .await;
    same(&node, "signal to all", async |container| {
        let script = "sh -c 'trap \"echo child\" TERM; echo one; while :; do sleep 0.02; done' & \
            trap 'echo main' TERM; echo two; while :; do sleep 0.02; done";
        let task = container.sh(script).create().await?;
        task.start().await?;
        task.stdio.read_until("one").await;
        task.stdio.read_until("two").await;
        let killed = outcome(&task.kill_process("", 15, true).await);
        task.stdio.read_until("child").await;
        task.stdio.read_until("main").await;
        task.remove().await?;
        Ok(killed)
    })
    .await;
    same(&node, "all that is left is killed", async |container| {
        let script = "sleep 1000 & sleep 1000 & echo ready; exec sleep 1000";
        let container = container.spec(|spec| crate::spec::no_namespace(spec, "pid"));
        let task = running(container, script).await?;
        let n_pids = task.pids().await?.len();
        let killed = outcome(&task.kill_process("", 9, true).await);
        let exit = task.wait().await?;
        task.delete().await?;
        Ok(format!("{n_pids} {killed} {exit}"))
    })
    .await;
    same(
        &node,
        "the end of the main process ends all of its pid namespace",
        async |container| {
            let script = "sleep 1000 & sleep 1000 & echo ready; exec sleep 1000";
            let task = running(container, script).await?;
            let n_pids = task.pids().await?.len();
            task.kill(9).await?;
            task.wait().await?;
            let exit = task.delete().await?;
            Ok(format!("{n_pids} {exit}"))
        },
    )
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_is_the_same() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    same(&node, "paused and resumed", async |container| {
        let task = running(container, COUNTS).await?;
        let mut told = outcome(&task.pause().await);
        told += &format!(" {:?}", task.state("").await?);
        told += &format!(" again: {}", outcome(&task.pause().await));
        told += &format!(" pids: {}", task.pids().await?.is_empty());
        told += &format!(" resume: {}", outcome(&task.resume().await));
        told += &format!(" {:?}", task.state("").await?);
        told += &format!(" again: {}", outcome(&task.resume().await));
        task.kill(15).await?;
        told += &format!(" {}\n", task.wait().await?);
        task.delete().await?;
        Ok(told + &task.events_until("delete").await.join("\n"))
    })
    .await;
    same(&node, "told nothing while paused", async |container| {
        let task = running(container, COUNTS).await?;
        task.pause().await?;
        let deleted = outcome(&task.delete_task().await);
        let exec = task.run_exec("one", &crate::spec::process(&["true"])).await;
        let exec = outcome(&exec.map(|run| run.exit));
        let killed = outcome(&task.kill(15).await);
        task.resume().await?;
        let exit = task.wait().await?;
        task.delete().await?;
        Ok(format!("{deleted} {exec} {killed} {exit}"))
    })
    .await;
    same(&node, "paused before its start", async |container| {
        let task = container.sh(FOREVER).create().await?;
        let told = outcome(&task.pause().await);
        let _ = task.resume().await;
        task.remove().await?;
        Ok(told)
    })
    .await;
    node.end().await;
}

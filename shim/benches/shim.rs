//! `scripts/bench shim [--json] [-n N]`: this shim beside runc's and beside the bare system calls, in one run on one
//! machine. Each figure stands beside the one that it has to reach.
#![allow(
    clippy::unwrap_used,
    reason = "what it shares with the tests ends where it finds what it does not expect"
)]

#[path = "shim/baseline.rs"]
mod baseline;
#[path = "shim/measure.rs"]
mod measure;
#[path = "shim/program.rs"]
mod program;
#[path = "shim/sys.rs"]
mod sys;

#[path = "../tests/containerd/harness.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod harness;

use std::sync::Arc;

use anyhow::{Context, Result};

use harness::{container, inside, node, rootfs, spec, task, traces};
use node::Node;
use program::Program;

/// One line of the result: what was measured, of us and of a peer, and what our figure has to be.
struct Row {
    name: String,
    unit: &'static str,
    ours: f64,
    peer: f64,
    n: usize,
    target: &'static str,
}

impl Row {
    fn print(&self, as_json: bool) {
        let Self {
            name,
            unit,
            ours,
            peer,
            n,
            target,
        } = self;
        let ratio = ours / peer;
        if as_json {
            let row = serde_json::json!({ "name": name, "unit": unit, "ours": ours, "peer": peer, "ratio": ratio,
                "n": n, "target": target });
            println!("{row}");
        } else {
            println!(
                "{name:<58} {ours:>10.3} {peer:>10.3} {unit:<5} {ratio:>7.3} {n:>6}  {target}"
            );
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    if args.first().is_some_and(|arg| arg == baseline::COMMAND) {
        return baseline::serve(&args[1..]);
    }
    let as_json = args.iter().any(|arg| arg == "--json");
    let n = match args.iter().position(|arg| arg == "-n") {
        Some(at) => args.get(at + 1).context("-n takes a number")?.parse()?,
        None => 40,
    };
    if !as_json {
        println!(
            "{:<58} {:>10} {:>10} {:<5} {:>7} {:>6}  target",
            "", "ours", "peer", "unit", "ratio", "n"
        );
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let node = Arc::new(Node::start().await);
        node.events.stop();
        for program in [Program::Busybox, Program::Exit] {
            for row in measure::lives(&node, program, n).await? {
                row.print(as_json);
            }
        }
        measure::inside(&node, n).await?.print(as_json);
        measure::memory(&node).await?.print(as_json);
        for row in measure::rates(&node, n).await? {
            row.print(as_json);
        }
        let node = Arc::into_inner(node).context("all workers have ended")?;
        node.end().await;
        Ok(())
    })
}

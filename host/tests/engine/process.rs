//! Processes beside a sandbox's main one: what they write, how they end, and that they end with their owner.

use std::{fs, time::Duration};

use opr_host::{
    adapter::{Adapter, EngineError, Process, ProcessSpec},
    config::OWN_RUNTIME,
    id::SandboxId,
};
use tokio::time;

use crate::node::{Node, is_able, sandbox, tmp};

const PATIENCE: Duration = Duration::from_secs(20);

async fn begin(
    node: &Node,
    id: &SandboxId,
    script: &str,
    terminal: bool,
) -> Result<Process, EngineError> {
    let command = ["sh", "-c", script].map(Into::into).to_vec();
    node.adapter
        .exec(id, ProcessSpec { command, terminal })
        .await
}

/// Runs a script to its end; answers its code and what it wrote to each stream.
async fn run(node: &Node, id: &SandboxId, script: &str, terminal: bool) -> (u32, [String; 2]) {
    let process = begin(node, id, script, terminal).await.unwrap();
    let mut streams = [Vec::new(), Vec::new()];
    let code = process.run(|number, part| streams[number].extend(part));
    let code = time::timeout(PATIENCE, code).await.unwrap();
    (code, streams.map(|bytes| String::from_utf8(bytes).unwrap()))
}

/// A sandbox whose main process waits.
async fn idle(node: &Node, name: &str) -> SandboxId {
    let mut spec = sandbox(name, "function", &["sleep", "1000"]);
    spec.mounts = vec![tmp()];
    spec.env = vec![("FROM".into(), "spec".into())];
    node.adapter.create(spec).await.unwrap().id
}

/// Waits until so many processes of this name are in the sandbox, the main one not counted.
async fn until(node: &Node, id: &SandboxId, name: &str, n: usize) {
    // The main process buries nobody: what is dead but still listed does not count.
    let is_it = format!("$1 != 1 && $2 !~ /Z/ && $3 == \"{name}\"");
    let script = format!("ps -o pid,stat,comm | awk '{is_it}' | wc -l");
    let reached = async {
        while run(node, id, &script, false).await.1[0].trim() != n.to_string() {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    let reached = time::timeout(PATIENCE, reached).await;
    reached.unwrap_or_else(|_| panic!("there are not {n} of {name}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_process_tells_output_and_code_under_either_shim() {
    if !is_able() {
        return;
    }
    for runtime in [OWN_RUNTIME, "io.containerd.runc.v2"] {
        let node = Node::start_with(|config| {
            for class in config.class.values_mut() {
                class.runtime = runtime.into();
            }
        })
        .await;
        let id = idle(&node, "idle").await;
        let script =
            "echo $FROM; id -u; pwd; [ -t 1 ] || echo no terminal; read it || echo err >&2; exit 3";
        let expected = ["spec\n0\n/\nno terminal\n".to_owned(), "err\n".to_owned()];
        assert_eq!(
            run(&node, &id, script, false).await,
            (3, expected),
            "{runtime}"
        );

        let script = "[ -t 0 ] && [ -t 1 ] && echo terminal; read it || echo err >&2; stty size; echo $TERM; kill -9 $$";
        let expected = [
            "terminal\r\nerr\r\n24 80\r\nxterm\r\n".to_owned(),
            String::new(),
        ];
        assert_eq!(
            run(&node, &id, script, true).await,
            (137, expected),
            "{runtime}"
        );

        // More than any pipe holds, to a reader that is in no hurry.
        let flood = "dd if=/dev/zero bs=1M count=8 2>/dev/null";
        let (code, [zeroes, _]) = run(&node, &id, flood, false).await;
        assert_eq!((code, zeroes.len()), (0, 8 << 20), "{runtime}");
        node.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_process_that_is_dropped_dies_with_all_that_it_started() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let id = idle(&node, "idle").await;
    for terminal in [false, true] {
        let process = begin(&node, &id, "sleep 1001 & sleep 1002", terminal)
            .await
            .unwrap();
        until(&node, &id, "sleep", 2).await;
        drop(process);
        until(&node, &id, "sleep", 0).await;
    }
    // What is left behind on purpose does not hold up its command, and goes on.
    let (code, [out, _]) = run(&node, &id, "sleep 1003 & echo begun", false).await;
    assert_eq!((code, out.as_str()), (0, "begun\n"));
    until(&node, &id, "sleep", 1).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_process_goes_with_its_sandbox_and_leaves_nothing() {
    if !is_able() {
        return;
    }
    let mut node = Node::start().await;
    let id = idle(&node, "idle").await;
    let missing = node.adapter.exec(
        &id,
        ProcessSpec {
            command: vec!["no-such-program".into()],
            terminal: false,
        },
    );
    let error = missing.await.unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");

    // The next daemon reaches into what it adopts.
    assert_eq!(node.restart().await.len(), 1);
    let (code, [out, _]) = run(&node, &id, "echo again", false).await;
    assert_eq!((code, out.as_str()), (0, "again\n"));

    let folder = node.config.run_dir.join("sandboxes").join(id.as_str());
    let pipes = || {
        let entries = fs::read_dir(&folder).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("process-")).count()
    };
    let gone = async {
        while pipes() > 0 {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(PATIENCE, gone)
        .await
        .expect("the pipes of what has ended go");

    let process = begin(&node, &id, "echo began; sleep 1000", false)
        .await
        .unwrap();
    let (ended, ()) = tokio::join!(process.run(|_, _| {}), async {
        until(&node, &id, "sleep", 1).await;
        node.adapter.delete(&id).await.unwrap();
    });
    assert_eq!(ended, 137);
    let error = begin(&node, &id, "true", false)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("sandbox idle does not run"), "{error}");
    node.end().await;
}

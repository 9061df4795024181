//! What a sandbox writes: its root file system by kind, and its output by pipe and by terminal.

use std::{fs, path::Path, time::Duration};

use opr_host::{
    adapter::{Adapter, Sandbox},
    id::ClassName,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::node::{Node, exit_of, is_able, output_of, sandbox, tmp};

const CHANGES: &str = "set -e; echo changed >/etc/passwd; cat /etc/passwd; mkdir /new; ls -d /new; \
    dd if=/dev/zero of=/new/big bs=1024k count=16 2>/dev/null && echo fits || echo full";

#[tokio::test(flavor = "multi_thread")]
async fn a_root_in_memory_takes_changes_up_to_its_size() {
    if !is_able() {
        return;
    }
    let node = small_scratch().await;
    let seen = output_of(&node, sandbox("first", "runtime", &["sh", "-c", CHANGES])).await;
    assert_eq!(seen, "changed\n/new\nfull\n");
    let seen = output_of(&node, sandbox("second", "runtime", &["cat", "/etc/passwd"])).await;
    assert!(seen.contains("root:x:0:0"), "the image was changed: {seen}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_on_disk_takes_changes_and_loses_them_with_the_sandbox() {
    if !is_able() {
        return;
    }
    let node = small_scratch().await;
    let mut events = node.adapter.events();
    let spec = sandbox("first", "build", &["sh", "-c", CHANGES]);
    let made = node.adapter.create(spec.clone()).await.unwrap();
    assert_eq!(exit_of(&mut events, &spec.id).await, 0);
    assert_eq!(made.output.tail(), b"changed\n/new\nfits\n");
    let disk = node.config.state_dir.join("sandboxes/first");
    let big = fs::metadata(disk.join("volume/.upper-root/new/big")).unwrap();
    assert_eq!(big.len(), 16 << 20);
    node.adapter.delete(&spec.id).await.unwrap();
    assert!(!disk.exists());
    let seen = output_of(&node, sandbox("second", "build", &["cat", "/etc/passwd"])).await;
    assert!(seen.contains("root:x:0:0"), "the image was changed: {seen}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_on_disk_has_a_size_for_all_that_is_written() {
    if !is_able() {
        return;
    }
    let node = Node::start_with(|config| {
        let class = config.class.get_mut(&ClassName::try_new("build").unwrap());
        class.unwrap().disk_mib = 48;
    })
    .await;
    // Root and scratch share it, and filling it is an error of the program's, without a cost in memory.
    let fill = "fill() { dd if=/dev/zero of=$1 bs=1024k count=$2 2>/dev/null && echo fits || echo full; }; \
        fill /tmp/one 30; fill /two 30; rm /tmp/one; fill /three 20; fill /tmp/four 200";
    let mut spec = sandbox("fills", "build", &["sh", "-c", fill]);
    spec.mounts = vec![tmp()];
    spec.limits.memory_bytes = 16 << 20;
    let seen = output_of(&node, spec).await;
    assert_eq!(seen, "fits\nfull\nfits\nfull\n");
    assert!(!node.config.state_dir.join("sandboxes/fills").exists());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_on_disk_waits_for_its_whole_size_while_others_have_theirs() {
    if !is_able() {
        return;
    }
    let node = Node::start_with(|config| {
        let class = config.class.get_mut(&ClassName::try_new("build").unwrap());
        class.unwrap().disk_mib = 96;
    })
    .await;
    // There is enough for one of them, and beside it half of what is left is too little.
    let disk = node.config.state_dir.join("sandboxes");
    mount(
        "opr-test",
        &disk,
        "tmpfs",
        MountFlags::empty(),
        c"size=224m,mode=0711",
    )
    .unwrap();
    let [first, second] = ["first", "second"].map(|id| sandbox(id, "build", &["sleep", "1000"]));
    node.adapter.create(first.clone()).await.unwrap();
    let (adapter, spec) = (node.adapter.clone(), second.clone());
    let mut waiting = tokio::spawn(async move { adapter.create(spec).await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "it took what was left");
    node.adapter.delete(&first.id).await.unwrap();
    waiting.await.unwrap().unwrap();
    let image = fs::metadata(disk.join("second/image")).unwrap();
    assert_eq!(image.len(), 96 << 20);
    node.adapter.delete(&second.id).await.unwrap();
    unmount(&disk, UnmountFlags::empty()).unwrap();
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_and_a_pipe_are_read_on_after_a_restart() {
    if !is_able() {
        return;
    }
    let mut node = Node::start().await;
    let script = "tty; [ -t 1 ] && echo $TERM; echo out; echo err >&2; \
        until [ -e /tmp/go ]; do sleep 0.02; done; echo more; exit 4";
    for (id, terminal) in [("terminal", true), ("pipe", false)] {
        let mut spec = sandbox(id, "function", &["sh", "-c", script]);
        spec.terminal = terminal;
        spec.mounts = vec![tmp()];
        let made = node.adapter.create(spec).await.unwrap();
        until_said(&made, "err").await;
        let said = String::from_utf8(made.output.tail()).unwrap();
        if terminal {
            assert_eq!(said, "/dev/pts/0\r\nxterm\r\nout\r\nerr\r\n");
        } else {
            assert_eq!(said, "not a tty\nout\nerr\n");
        }
    }
    let adopted = node.restart().await;
    assert_eq!(adopted.len(), 2);
    let mut events = node.adapter.events();
    for sandbox in adopted {
        let go: &Path = &sandbox.scratch_dir("tmp").join("go");
        fs::write(go, "").unwrap();
        assert_eq!(exit_of(&mut events, &sandbox.id).await, 4);
        let is_terminal = sandbox.id.as_str() == "terminal";
        let more: &[u8] = if is_terminal { b"more\r\n" } else { b"more\n" };
        assert_eq!(sandbox.output.tail(), more, "{}", sandbox.id);
        assert!(sandbox.output.is_closed());
        node.adapter.delete(&sandbox.id).await.unwrap();
    }
    node.end().await;
}

/// Where 16 MiB do not fit into memory.
async fn small_scratch() -> Node {
    Node::start_with(|config| {
        for class in config.class.values_mut() {
            class.scratch_mib = 8;
        }
    })
    .await
}

async fn until_said(sandbox: &Sandbox, words: &str) {
    let said = async {
        while !String::from_utf8_lossy(&sandbox.output.tail()).contains(words) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), said)
        .await
        .unwrap();
}

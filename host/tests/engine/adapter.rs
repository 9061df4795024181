//! A sandbox's life: made, dialled, heard of, adopted, deleted.

use std::{collections::BTreeMap, io, time::Duration};

use futures_util::future::join_all;
use opr_host::adapter::{Adapter, CreateError, Event};

use crate::{
    node::{Node, SERVER, exit_of, fetch, is_able, output_of, sandbox, tmp},
    traces::traces,
};

#[tokio::test(flavor = "multi_thread")]
async fn makes_dials_adopts_and_deletes_without_a_trace() {
    if !is_able() {
        return;
    }
    let mut node = Node::start().await;
    assert!(node.adapter.adopt().await.unwrap().is_empty());
    let spec = sandbox("server", "function", &SERVER);
    let id = spec.id.clone();
    let made = node.adapter.create(spec.clone()).await.unwrap();
    println!("phases: {:?}", made.phases);
    assert!(matches!(
        node.adapter.create(spec).await,
        Err(CreateError::Exists { .. })
    ));
    assert!(fetch(&node, &id).await.contains("root:x:0:0"));
    assert_eq!(made.output.tail(), b"began\n");

    let later = BTreeMap::from([("opr/later".to_owned(), "{\"a\": 1}".to_owned())]);
    node.adapter.label(&id, later.clone()).await.unwrap();
    let adopted = node.restart().await;
    assert_eq!(adopted.len(), 1);
    assert_eq!(adopted[0].id, id);
    let labels: BTreeMap<_, _> = made.labels.into_iter().chain(later).collect();
    assert_eq!(adopted[0].labels, labels);
    assert!(fetch(&node, &id).await.contains("root:x:0:0"));

    let mut events = node.adapter.events();
    node.adapter.delete(&id).await.unwrap();
    node.adapter.delete(&id).await.unwrap();
    assert_eq!(exit_of(&mut events, &id).await, 137);
    node.adapter.label(&id, labels).await.unwrap_err();
    let gone = node.adapter.dial(&id, 3000).await.unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_sees_little_and_may_little() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let script = "id -u; touch /etc/x || echo etc-is-fixed; echo hi >/tmp/f && cat /tmp/f; env; \
        mount -t tmpfs x /mnt 2>/dev/null || echo no-mount; cat /proc/self/uid_map; \
        unshare -U true 2>/dev/null || echo no-userns; ls /sys/class/net; stat -c %u /bin/busybox; \
        ls /sys/fs/cgroup; cat /etc/hostname";
    let mut spec = sandbox("view", "function", &["sh", "-c", script]);
    spec.mounts = vec![tmp()];
    spec.env = vec![("FROM".into(), "spec".into())];
    let seen = output_of(&node, spec).await;
    println!("{seen}");
    for line in [
        "0",
        "etc-is-fixed",
        "hi",
        "FROM=spec",
        "no-mount",
        "no-userns",
        "lo",
        "eth0",
        "view",
    ] {
        assert!(
            seen.lines().any(|seen| seen == line),
            "{line} is missing in {seen}"
        );
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_a_main_process_again_over_what_the_one_before_left() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let mut events = node.adapter.events();
    let script = "echo run >>/tmp/runs; cat /tmp/runs; exit $(wc -l </tmp/runs)";
    let mut spec = sandbox("again", "function", &["sh", "-c", script]);
    spec.mounts = vec![tmp()];
    let id = spec.id.clone();
    let made = node.adapter.create(spec).await.unwrap();
    assert_eq!(exit_of(&mut events, &id).await, 1);
    assert_eq!(made.output.tail(), b"run\n");
    for n in 2..4 {
        let again = node.adapter.restart(&id).await.unwrap();
        assert_eq!(again.labels, made.labels);
        assert_eq!(exit_of(&mut events, &id).await, n);
        assert_eq!(again.output.tail(), "run\n".repeat(n as usize).as_bytes());
    }
    node.adapter.delete(&id).await.unwrap();
    let gone = node.adapter.restart(&id).await.unwrap_err();
    assert!(matches!(gone, CreateError::Absent { .. }), "{gone}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_of_exits_and_of_memory_and_undoes_what_fails() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let mut events = node.adapter.events();
    let spec = sandbox("seven", "function", &["sh", "-c", "exit 7"]);
    let id = spec.id.clone();
    node.adapter.create(spec).await.unwrap();
    assert_eq!(exit_of(&mut events, &id).await, 7);
    node.adapter.delete(&id).await.unwrap();

    let greedy = sandbox("greedy", "function", &["sh", "-c", "tail /dev/zero"]);
    let id = greedy.id.clone();
    node.adapter.create(greedy).await.unwrap();
    let wait = async {
        loop {
            if let Event::OutOfMemory { id } = events.recv().await.unwrap() {
                return id;
            }
        }
    };
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap(),
        id
    );
    node.adapter.delete(&id).await.unwrap();

    let wrong = sandbox("wrong", "function", &["/no/such/program"]);
    let error = node.adapter.create(wrong).await.unwrap_err();
    assert!(matches!(error, CreateError::Command { .. }), "{error:?}");
    let mut left = traces(&node.config).remove("folders").unwrap_or_default();
    left.retain(|folder| folder.contains("/sandboxes/"));
    assert_eq!(left, Vec::<String>::new());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn makes_and_deletes_many_at_once() {
    if !is_able() {
        return;
    }
    const MANY: usize = 16;
    let node = Node::start().await;
    let one = async |n: usize| {
        let spec = sandbox(&format!("many-{n}"), "function", &SERVER);
        node.adapter.create(spec.clone()).await.unwrap();
        assert!(fetch(&node, &spec.id).await.contains("root:x:0:0"));
        spec.id
    };
    let ids = join_all((0..MANY).map(one)).await;
    let deleted = join_all(ids.iter().map(|id| node.adapter.delete(id))).await;
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_comes_late_spares_the_next_sandbox_of_that_name() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let spec = sandbox("again", "function", &SERVER);
    node.adapter.create(spec.clone()).await.unwrap();
    for _ in 0..5 {
        let create = async {
            // As soon as the name is free, while two deletes still wait for their turn.
            loop {
                match node.adapter.create(spec.clone()).await {
                    Err(CreateError::Exists { .. }) => tokio::task::yield_now().await,
                    made => return made,
                }
            }
        };
        let deletes = join_all((0..3).map(|_| node.adapter.delete(&spec.id)));
        let (deleted, made) = tokio::join!(deletes, create);
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        made.unwrap();
        assert!(fetch(&node, &spec.id).await.contains("root:x:0:0"));
    }
    node.end().await;
}

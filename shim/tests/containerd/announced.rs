//! What a shim prepares before it is asked for a container, as containerd's `start` tells it to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    container::Container,
    inside::Inside,
    node::{Node, Runtime, eventually, is_able, shim},
    task::Task,
    traces,
};

const GROUP: &str = "announced";
const LIMIT: u32 = 100;

async fn keeper(node: &Node) -> Task<'_> {
    let keeper = node
        .container(Runtime::Ours, "keeper")
        .group(GROUP)
        .silent();
    let task = keeper.args(&["sleep", "1000"]).create().await.unwrap();
    task.start().await.unwrap();
    task
}

fn says<'n>(node: &'n Node, id: &str, word: &str) -> Container<'n> {
    let container = node.container(Runtime::Ours, id).group(GROUP);
    container.args(&["echo", word])
}

/// A bundle with the container's spec, as containerd makes it.
fn bundle(container: &Container<'_>, name: &str) -> PathBuf {
    container.prepare();
    let bundle = container.node.dir.path().join(name);
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    fs::write(bundle.join("config.json"), container.spec_text()).unwrap();
    bundle
}

/// What containerd executes before it asks for a container, with a limit of descriptors as of a service.
fn announce(node: &Node, id: &str, bundle: &Path) {
    let start = Command::new("sh")
        .args(["-c", &format!("ulimit -Sn {LIMIT}; exec \"$@\""), "sh"])
        .arg(shim())
        .args(["-namespace", &node.namespace(Runtime::Ours), "-id", id])
        .args(["-address", node.socket().to_str().unwrap(), "start"])
        .current_dir(bundle)
        .output()
        .unwrap();
    assert!(start.status.success(), "{start:?}");
}

/// The process of the container, once the bundle tells it.
async fn process(bundle: &Path) -> u32 {
    let pid = || {
        let record = fs::read(bundle.join("init.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        u32::try_from(record["pid"].as_u64()?).ok()
    };
    eventually(|| pid().is_some(), || "no process was prepared".into()).await;
    pid().unwrap()
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Runs the container of a bundle, and answers what it prints.
fn run(shim: &Inside, container: &Container<'_>, bundle: &Path) -> String {
    let output = bundle.join("output");
    shim.create(container, bundle, Some(&output)).unwrap();
    shim.start(&container.id).unwrap();
    assert_eq!(shim.wait(&container.id).unwrap(), 0);
    shim.delete(&container.id).unwrap();
    fs::read_to_string(output).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_announced_is_prepared_and_taken() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let keeper = keeper(&node).await;
    let shim = Inside::connect(&node, "keeper").unwrap();
    let container = says(&node, "wanted", "here");
    let bundle = bundle(&container, "wanted");
    announce(&node, "wanted", &bundle);
    let prepared = process(&bundle).await;
    assert!(is_alive(prepared));
    assert_eq!(run(&shim, &container, &bundle), "here\n");
    assert_eq!(process(&bundle).await, prepared);
    keeper.remove().await.unwrap();
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_undone() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let keeper = keeper(&node).await;
    let before = traces::of(&node);
    let container = says(&node, "unwanted", "here");
    let bundle = bundle(&container, "unwanted");
    announce(&node, "unwanted", &bundle);
    let prepared = process(&bundle).await;
    eventually(
        || !is_alive(prepared) && traces::of(&node) == before,
        || format!("{before:#?} became {:#?}", traces::of(&node)),
    )
    .await;
    keeper.remove().await.unwrap();
    node.end().await;
}

/// One process serves many containers, and gives its own limit to none of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_may_have_as_many_descriptors_as_there_are() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let container = says(&node, "first", "here");
    let bundle = bundle(&container, "first");
    announce(&node, "first", &bundle);
    let limits = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files"));
        let words: Vec<_> = line
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        (words[3].clone(), words[4].clone())
    };
    let prepared = process(&bundle).await;
    assert_eq!(limits(&prepared.to_string()).0, LIMIT.to_string());
    let shim = fs::read_to_string(bundle.join("shim.pid")).unwrap();
    let (soft, hard) = limits(&shim);
    assert_eq!(soft, hard);
    node.end().await;
}

/// The request counts, whatever was announced.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_request_is_made_anew() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    let keeper = keeper(&node).await;
    let shim = Inside::connect(&node, "keeper").unwrap();

    // Another spec by then.
    let container = says(&node, "changed", "right");
    let changed = bundle(&says(&node, "changed", "wrong"), "changed");
    announce(&node, "changed", &changed);
    let prepared = process(&changed).await;
    fs::write(changed.join("config.json"), container.spec_text()).unwrap();
    assert_eq!(run(&shim, &container, &changed), "right\n");
    assert_ne!(process(&changed).await, prepared);

    // Another bundle, of which nothing was announced.
    let container = says(&node, "moved", "right");
    let wrong = bundle(&says(&node, "moved", "wrong"), "wrong");
    announce(&node, "moved", &wrong);
    let right = bundle(&container, "right");
    assert_eq!(run(&shim, &container, &right), "right\n");

    // Announced twice, the second time by containerd.
    for n in 0..10 {
        let id = format!("twice-{n}");
        let wrong = bundle(&says(&node, &id, "wrong"), &id);
        announce(&node, &id, &wrong);
        let run = says(&node, &id, "right").run().await.unwrap();
        assert_eq!((run.exit, run.stdout.as_str()), (0, "right\n"), "{n}");
    }

    // A spec that cannot be: the request is told why.
    let container = node.container(Runtime::Ours, "bad").group(GROUP);
    let container = container.spec(|spec| spec["linux"]["namespaces"] = serde_json::json!([]));
    let bad = bundle(&container, "bad");
    announce(&node, "bad", &bad);
    let error = shim.create(&container, &bad, None).unwrap_err();
    assert!(
        format!("{error:#}").contains("linux.namespaces"),
        "{error:#}"
    );

    // Streams that cannot be: nothing is left of what was prepared.
    let container = says(&node, "mute", "here");
    let mute = bundle(&container, "mute");
    announce(&node, "mute", &mute);
    let prepared = process(&mute).await;
    let nowhere = mute.join("config.json/output");
    shim.create(&container, &mute, Some(&nowhere)).unwrap_err();
    assert!(!is_alive(prepared));

    // A process that ends before it has its plan has left a word why.
    let container = node
        .container(Runtime::Ours, "rootless")
        .group(GROUP)
        .spec(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(serde_json::json!({ "type": "user" }));
            let ids = serde_json::json!([{ "containerID": 1, "hostID": 1, "size": 1 }]);
            spec["linux"]["uidMappings"] = ids.clone();
            spec["linux"]["gidMappings"] = ids;
        });
    for n in 0..20 {
        let bundle = bundle(&container, &format!("rootless-{n}"));
        announce(&node, "rootless", &bundle);
        let error = shim.create(&container, &bundle, None).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("become the namespace's root"), "{n}: {text}");
    }
    keeper.remove().await.unwrap();
    node.end().await;
}

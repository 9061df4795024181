//! The end of a node: nothing is left, and nothing waits without a bound.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use opr_host::adapter::Adapter;

use crate::{
    node::{Node, is_able, sandbox},
    traces::{shim_socket, traces},
};

#[tokio::test(flavor = "multi_thread")]
async fn removes_all_of_a_node_with_its_running_sandboxes() {
    if !is_able() {
        return;
    }
    let mut node = Node::start().await;
    node.adapter.adopt().await.unwrap();
    for (id, class) in [("one", "function"), ("two", "runtime"), ("three", "build")] {
        let spec = sandbox(id, class, &["sleep", "1000"]);
        node.adapter.create(spec).await.unwrap();
    }
    // Those of an earlier process count as well.
    node.restart().await;
    let before = traces(&node.config);
    let kinds: Vec<_> = before.keys().copied().collect();
    let all = [
        "cgroups",
        "folders",
        "links",
        "mounts",
        "processes",
        "rules",
    ];
    assert_eq!(kinds, all);
    assert!(shim_socket(&node.config).exists());

    let config = node.config.clone();
    node.end().await;
    for link in &before["links"] {
        assert!(!Path::new("/sys/class/net").join(link).exists(), "{link}");
    }
    assert!(!shim_socket(&config).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_plugin_that_hangs_holds_up_no_stop() {
    if !is_able() {
        return;
    }
    let plugins = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/usr/lib/cni/host-local", plugins.path().join("host-local"))
        .unwrap();
    let plugin = plugins.path().join("bridge");
    fs::write(&plugin, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let node =
        Node::start_with(|config| config.sandbox.cni_dir = Some(plugins.path().into())).await;
    node.adapter.adopt().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    let error = node.adapter.release().await.unwrap_err();
    println!("{error:?} after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(8));
    // The plugin works again, and all of it can be removed.
    fs::write(&plugin, "#!/bin/sh\nexec /usr/lib/cni/bridge\n").unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while node.adapter.release().await.is_err() {
        assert!(Instant::now() < deadline);
    }
    node.end().await;
}

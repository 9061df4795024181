//! Limits that change while a container runs, what it uses, and what its cgroups say on the host.

use std::fs;

use containerd_shim::protos::{cgroups::metrics::Metrics, protobuf::Message};
use serde_json::json;

use crate::{
    container::Container,
    lifecycle::{FOREVER, running},
    node::{Node, is_able},
    same::{outcome, same},
    task::Task,
    traces,
};

/// A file of the container's cgroup on the host.
fn value(task: &Task<'_>, controller: &str, file: &str) -> String {
    let namespace = task.container.node.namespace(task.container.runtime);
    let path = format!(
        "/sys/fs/cgroup/{controller}/{namespace}/{}/{file}",
        task.container.id
    );
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| format!("{file}: {:?}", error.kind()));
    text.trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_and_statistics_are_the_same() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    same(&node, "updates", async |container| {
        let task = running(container, FOREVER).await?;
        let mut told = String::new();
        for resources in [
            json!({ "memory": { "limit": 64 << 20 } }),
            json!({ "memory": { "limit": 128 << 20, "reservation": 32 << 20 } }),
            json!({ "cpu": { "shares": 256 } }),
            json!({ "cpu": { "quota": 20_000, "period": 50_000 } }),
            json!({ "cpu": { "quota": -1 } }),
            json!({ "pids": { "limit": 33 } }),
            json!({ "pids": { "limit": -1 } }),
            json!({ "cpu": { "cpus": "0" } }),
            json!({}),
        ] {
            told += &format!("{resources} {}\n", outcome(&task.update(&resources).await));
            for (controller, file) in [
                ("memory", "memory.limit_in_bytes"),
                ("memory", "memory.soft_limit_in_bytes"),
                ("cpu", "cpu.shares"),
                ("cpu", "cpu.cfs_quota_us"),
                ("cpu", "cpu.cfs_period_us"),
                ("cpuset", "cpuset.cpus"),
                ("pids", "pids.max"),
            ] {
                told += &format!("{file} {}\n", value(&task, controller, file));
            }
        }
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "updates that are refused", async |container| {
        let task = running(container, FOREVER).await?;
        let mut told = String::new();
        for resources in [
            json!({ "memory": { "limit": 1 } }),
            json!({ "cpu": { "cpus": "4000" } }),
            json!({ "cpu": { "quota": "much" } }),
        ] {
            told += &format!("{}\n", outcome(&task.update(&resources).await));
        }
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "statistics", async |container| {
        let container = container.spec(|spec| {
            spec["linux"]["resources"]["memory"]["limit"] = (64 << 20).into();
            spec["linux"]["resources"]["pids"]["limit"] = 50.into();
        });
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; exec sleep 1000";
        let task = running(container, busy).await?;
        let any = task.metrics().await?;
        let metrics = Metrics::parse_from_bytes(&any.value).expect("it is of version 1");
        let memory = metrics.memory();
        let told = format!(
            "{}\ncpu {} {}\nmemory limit {} usage {} rss {} cache {}\npids {} of {}\nthrottling {}\n",
            any.type_url,
            metrics.cpu().usage().total() > 1_000_000,
            metrics.cpu().usage().per_cpu.len(),
            memory.usage().limit,
            (4096..64 << 20).contains(&memory.usage().usage),
            memory.total_rss > 0,
            memory.total_cache < 64 << 20,
            metrics.pids().current,
            metrics.pids().limit,
            metrics.cpu().throttling().throttled_time,
        );
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "values of the cgroup on the host", async |container| {
        let container = container.spec(|spec| {
            let device = json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" });
            crate::spec::add(spec, "linux/resources/devices", device);
            spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20, "reservation": 32 << 20 });
            spec["linux"]["resources"]["cpu"] = json!({ "shares": 333, "quota": 30_000, "period": 60_000,
                "cpus": "0-1", "mems": "0" });
            spec["linux"]["resources"]["pids"] = json!({ "limit": 44 });
        });
        let task = running(container, FOREVER).await?;
        let mut told = String::new();
        for (controller, file) in [
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.soft_limit_in_bytes"),
            ("memory", "memory.memsw.limit_in_bytes"),
            ("memory", "memory.oom_control"),
            ("memory", "memory.use_hierarchy"),
            ("memory", "memory.move_charge_at_immigrate"),
            ("cpu", "cpu.shares"),
            ("cpu", "cpu.cfs_quota_us"),
            ("cpu", "cpu.cfs_period_us"),
            ("cpuset", "cpuset.cpus"),
            ("cpuset", "cpuset.mems"),
            ("pids", "pids.max"),
            ("pids", "pids.current"),
            ("blkio", "notify_on_release"),
            ("freezer", "freezer.state"),
        ] {
            told += &format!("{file}: {}\n", value(&task, controller, file));
        }
        for root in traces::hierarchies() {
            let file = root.join(task.container.node.namespace(task.container.runtime));
            let file = file.join(&task.container.id).join("cgroup.procs");
            let procs = fs::read_to_string(file).unwrap_or_default();
            let has_it = procs.lines().any(|line| line == task.pid.to_string());
            told += &format!("{} {has_it} {}\n", root.display(), procs.lines().count());
        }
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(
        &node,
        "namespaces of another container",
        async |container| {
            let first = running(container.clone(), FOREVER).await?;
            let mut told = String::new();
            for kind in ["network", "ipc", "uts", "pid", "cgroup"] {
                let name = if kind == "network" { "net" } else { kind };
                let path = format!("/proc/{}/ns/{name}", first.pid);
                let inode = fs::read_link(&path).unwrap().display().to_string();
                let second =
                    Container::new(container.node, container.runtime, &format!("joins-{kind}"))
                        .spec(|spec| crate::spec::namespace(spec, kind, Some(&path)))
                        .sh(&format!(
                            "readlink /proc/self/ns/{name}; [ $$ = 1 ]; echo $?; hostname"
                        ));
                let run = second.run().await?;
                let is_joined = run.stdout.contains(&inode);
                told += &format!(
                    "{kind} {is_joined} {} {}\n",
                    run.exit,
                    run.stdout.replace(&inode, "INODE")
                );
            }
            first.remove().await?;
            Ok(told)
        },
    )
    .await;
    node.end().await;
}

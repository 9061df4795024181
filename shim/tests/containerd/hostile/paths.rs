//! Images and neighbours that put links where the shim makes, mounts or hides something.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use super::{TRIES, Target};
use crate::{
    rootfs::Kind,
    spec::{add, mount},
    traces,
};

/// `/dev` is what the host binds there, or what the image has.
fn without_dev(spec: &mut serde_json::Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
}

/// CVE-2025-31133: what hides a path is the host's null device, whatever the image calls so.
#[tokio::test(flavor = "multi_thread")]
async fn masked_paths_are_hidden_by_nothing_of_the_image() {
    let Some(target) = Target::start().await else {
        return;
    };
    for (n, link) in [
        "/etc/bait",
        "/proc/sys/kernel/core_pattern",
        "../../../../secret/file",
    ]
    .into_iter()
    .enumerate()
    {
        let container = target.container(&format!("null-{n}")).fill(|root| {
            fs::create_dir_all(root.join("dev")).unwrap();
            fs::create_dir_all(root.join("etc")).unwrap();
            fs::write(root.join("etc/bait"), "bait").unwrap();
            symlink(link, root.join("dev/null")).unwrap();
        });
        let container = container.spec(|spec| {
            without_dev(spec);
            spec["linux"]["maskedPaths"] = json!(["/etc/passwd"]);
        });
        let run = container
            .sh("stat -c '%F %t %T' /etc/passwd; cat /etc/passwd")
            .run()
            .await;
        target.assert_hidden(link, &run);
        if let Ok(run) = run {
            assert_eq!(run.stdout, "character special file 1 3\n", "{link}");
        }
    }
    target.end().await;
}

/// CVE-2025-31133 and 2026-41579: a neighbour that shares `/dev` swaps what is in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_swaps_devices_gains_nothing() {
    let Some(target) = Target::start().await else {
        return;
    };
    let shared = target.node.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    for name in ["null", "zero", "console"] {
        let made = Command::new("mknod")
            .arg(shared.join(name))
            .args(["c", "1", "3"])
            .status();
        assert!(made.unwrap().success());
    }
    let shm = ["pts", "shm", "mqueue"].map(|name| fs::create_dir(shared.join(name)));
    assert!(shm.iter().all(Result::is_ok));
    let shared = shared.to_str().unwrap().to_owned();
    let with_shared = |spec: &mut serde_json::Value| {
        without_dev(spec);
        mount(spec, "bind", &shared, "/dev", "rbind,rw");
        spec["linux"]["maskedPaths"] = json!(["/etc/passwd"]);
    };
    let swaps = "echo ready; cd /dev; while :; do for n in null console ptmx zero; do ln -sf /proc/sysrq-trigger x$n; \
        mv -f x$n $n; rm -f $n; mknod $n c 1 3; rm -rf $n; mkdir $n; rmdir $n; done; done";
    let calm = |spec: &mut serde_json::Value| {
        with_shared(spec);
        spec["linux"]["maskedPaths"] = json!([]);
    };
    let task = target
        .container("swapper")
        .spec(calm)
        .sh(swaps)
        .create()
        .await
        .unwrap();
    task.start().await.unwrap();
    task.stdio.read_until("ready").await;
    let sees = "cat /etc/passwd; grep -E ' /proc/[^ ]* .* - devpts' /proc/self/mountinfo; \
        grep sysrq-trigger /proc/self/mountinfo | grep -v '/sysrq-trigger /proc/sysrq-trigger'; true";
    for n in 0..TRIES {
        let container = target
            .container(&format!("victim-{n}"))
            .spec(with_shared)
            .sh(sees);
        let container = if n % 2 == 0 {
            container.terminal()
        } else {
            container
        };
        if let Ok(run) = container.run().await {
            assert_eq!(run.stdout, "", "try {n}");
        }
    }
    task.remove().await.unwrap();
    target.end().await;
}

/// CVE-2025-52565.
#[tokio::test(flavor = "multi_thread")]
async fn a_console_that_is_a_link_is_not_followed() {
    let Some(target) = Target::start().await else {
        return;
    };
    for (n, link) in [
        "/proc/sysrq-trigger",
        "/etc/passwd",
        "/proc/sys/kernel/core_pattern",
    ]
    .into_iter()
    .enumerate()
    {
        let container = target
            .container(&format!("console-{n}"))
            .terminal()
            .fill(|root| {
                fs::create_dir_all(root.join("dev")).unwrap();
                symlink(link, root.join("dev/console")).unwrap();
            });
        let script =
            format!("grep ' {link} .* devpts ' /proc/self/mountinfo; head -1 /etc/passwd; true");
        let run = container.clone().spec(without_dev).sh(&script).run().await;
        target.assert_hidden(link, &run);
        if let Ok(run) = run {
            assert_eq!(
                run.stdout.replace('\r', ""),
                "root:x:0:0:root:/root:/bin/sh\n",
                "{link}"
            );
        }
    }
    target.end().await;
}

/// CVE-2026-41579: devices and mounts whose way leads through links out of the root.
#[tokio::test(flavor = "multi_thread")]
async fn devices_are_made_beneath_the_root_alone() {
    let Some(target) = Target::start().await else {
        return;
    };
    let folder = target.secret.parent().unwrap().to_owned();
    let climbs = PathBuf::from("../../../../../../../..").join(folder.strip_prefix("/").unwrap());
    for (n, link) in [&folder, &climbs].into_iter().enumerate() {
        for (kind, name) in ["dev", "etc/in"].into_iter().enumerate() {
            let container = target
                .container(&format!("device-{n}-{kind}"))
                .fill(|root| {
                    fs::create_dir_all(root.join("etc")).unwrap();
                    symlink(link, root.join(name)).unwrap();
                });
            let container = container.spec(|spec| {
                let path = format!("/{name}/made");
                let device =
                    json!({ "path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 });
                add(spec, "linux/devices", device);
                if kind == 0 {
                    without_dev(spec);
                }
            });
            let run = container.sh("true").run().await;
            target.assert_hidden("a device's folder", &run);
        }
    }
    target.end().await;
}

/// CVE-2019-19921 and 2025-52881.
#[tokio::test(flavor = "multi_thread")]
async fn proc_is_the_kernels_or_nothing() {
    let Some(target) = Target::start().await else {
        return;
    };
    let fake = |root: &Path| {
        fs::create_dir_all(root.join("work/self/attr")).unwrap();
        fs::create_dir_all(root.join("work/sys/kernel")).unwrap();
        fs::write(root.join("work/self/attr/exec"), "").unwrap();
        fs::write(root.join("work/sys/kernel/domainname"), "").unwrap();
    };
    let linked = target.container("linked").fill(fake).fill(|root| {
        symlink("work", root.join("proc")).unwrap();
    });
    let sysctl = |spec: &mut serde_json::Value| {
        spec["linux"]["sysctl"]["kernel.domainname"] = json!("there")
    };
    let run = linked
        .spec(sysctl)
        .sh("cat /work/sys/kernel/domainname; mount | grep proc")
        .run()
        .await;
    if let Ok(run) = run {
        // Where the link is followed within the root, what is there is the kernel's.
        assert!(run.stdout.contains("proc on /work type proc"), "{run:?}");
    }

    for (n, (kind, source, destination)) in [
        ("tmpfs", "tmpfs", "/proc"),
        ("bind", "@run@", "/proc"),
        ("tmpfs", "tmpfs", "/proc/self/attr"),
        ("bind", "@run@", "/proc/sys"),
        ("bind", "/etc/passwd", "/proc/self/fd"),
        ("tmpfs", "tmpfs", "/proc/self"),
        ("bind", "@run@", "/link/sys"),
    ]
    .into_iter()
    .enumerate()
    {
        let container = target.container(&format!("over-{n}")).fill(|root| {
            symlink("proc", root.join("link")).unwrap();
        });
        let container = container.spec(|spec| {
            mount(
                spec,
                kind,
                source,
                destination,
                if kind == "bind" { "rbind" } else { "" },
            );
        });
        let run = container.sh("cat /proc/self/mountinfo").run().await;
        assert!(run.is_err(), "{kind} at {destination}: {run:?}");
    }
    target.end().await;
}

/// CVE-2021-30465 and 2023-27561.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_land_beneath_the_root_alone() {
    let Some(target) = Target::start().await else {
        return;
    };
    let folder = target.secret.parent().unwrap().to_owned();
    let climbs = PathBuf::from("../../../../../../../..").join(folder.strip_prefix("/").unwrap());
    let links = [
        folder.clone(),
        climbs,
        "/proc/1/root".into(),
        "/proc/self/root/../..".into(),
    ];
    for (n, link) in links.iter().enumerate() {
        for kind in [Kind::Overlay, Kind::Bind] {
            let container = target.container(&format!("mount-{n}-{kind:?}")).kind(kind);
            let container = container.fill(|root| symlink(link, root.join("target")).unwrap());
            let container = container.spec(|spec| {
                mount(spec, "tmpfs", "tmpfs", "/target", "size=4k");
                mount(spec, "tmpfs", "tmpfs", "/target/deep/er", "size=4k");
            });
            let before = traces::mounts(&[folder.to_str().unwrap()]);
            let run = container.sh(&target.looks()).run().await;
            target.assert_hidden("a mount's target", &run);
            assert_eq!(traces::mounts(&[folder.to_str().unwrap()]), before);
        }
    }

    let shared = target.node.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let shared = shared.to_str().unwrap().to_owned();
    let swaps = "echo ready; cd /vol; while :; do rm -rf t; mkdir t; rmdir t; ln -s / t; rm t; ln -s /../../../.. t; \
        rm t; ln -s /proc/1/root t; done";
    let with_shared =
        |spec: &mut serde_json::Value| mount(spec, "bind", &shared, "/vol", "rbind,rw");
    let task = target
        .container("swapper")
        .spec(with_shared)
        .sh(swaps)
        .create()
        .await
        .unwrap();
    task.start().await.unwrap();
    task.stdio.read_until("ready").await;
    let before: BTreeSet<_> = host_mounts();
    for n in 0..TRIES {
        let container = target.container(&format!("victim-{n}")).spec(with_shared);
        let container = container.spec(|spec| {
            mount(spec, "tmpfs", "tmpfs", "/vol/t", "size=4k");
            mount(spec, "bind", &shared, "/vol/t/host", "rbind");
        });
        let path = target.secret.display();
        let script = format!(
            "cat /vol/t{path} /vol/t/*{path} /vol/t/host{path} 2>/dev/null; {}",
            target.looks()
        );
        target.assert_hidden(
            "a target that is swapped",
            &container.sh(&script).run().await,
        );
    }
    task.remove().await.unwrap();
    assert_eq!(host_mounts(), before);
    target.end().await;
}

/// Where the host has something mounted, without what containers come and go with.
fn host_mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| !point.ends_with("/rootfs"))
        .map(ToOwned::to_owned)
        .collect()
}

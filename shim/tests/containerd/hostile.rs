//! Images, specs and neighbours that want out: one test for each published class of escapes.

mod paths;

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use serde_json::json;
use tonic::Status;

use crate::{
    container::{Container, Run},
    node::{Node, Runtime, is_able},
    rootfs::Kind,
    spec::{process, user_namespace},
    stdio::Wanted,
    traces,
};

const SECRET: &str = "only the host has this";
/// How often a race is tried.
const TRIES: usize = 25;

/// A node whose folder on the host has a file that no container may see.
struct Target {
    node: Node,
    secret: PathBuf,
}

impl Target {
    async fn start() -> Option<Self> {
        if !is_able() {
            return None;
        }
        let node = Node::start().await;
        let folder = node.dir.path().join("secret");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), SECRET).unwrap();
        Some(Self {
            secret: folder.join("file"),
            node,
        })
    }

    fn container(&self, id: &str) -> Container<'_> {
        self.node.container(Runtime::Ours, id)
    }

    /// A script that says what it sees of the secret from the working folder upwards and from the root.
    fn looks(&self) -> String {
        let path = self.secret.display();
        format!(
            "cat {path} 2>/dev/null; cd -P . 2>/dev/null; for up in . .. ../.. ../../.. ../../../.. ../../../../..; \
             do cat $up{path} $up/secret/file /proc/self/cwd/$up{path} 2>/dev/null; done; true"
        )
    }

    /// Nothing of the host came in, whether it ran or not.
    #[track_caller]
    fn assert_hidden(&self, what: &str, result: &Result<Run, Status>) {
        if let Ok(run) = result {
            let is_hidden = !run.stdout.contains(SECRET) && !run.stderr.contains(SECRET);
            assert!(is_hidden, "{what}: {run:?}");
        }
        assert_eq!(fs::read_to_string(&self.secret).unwrap(), SECRET, "{what}");
        let folder = fs::read_dir(self.secret.parent().unwrap()).unwrap();
        assert_eq!(
            folder.count(),
            1,
            "{what}: something was put beside the secret"
        );
    }

    async fn end(self) {
        self.node.end().await;
    }
}

/// CVE-2024-21626.
#[tokio::test(flavor = "multi_thread")]
async fn a_working_folder_behind_a_descriptor_leads_nowhere() {
    let Some(target) = Target::start().await else {
        return;
    };
    for n in 3..16 {
        let cwd = format!("/proc/self/fd/{n}");
        let direct = target.container(&format!("cwd-{n}"));
        let direct = direct
            .sh(&target.looks())
            .spec(|spec| spec["process"]["cwd"] = json!(cwd));
        target.assert_hidden(&cwd, &direct.run().await);
        let linked = target.container(&format!("link-{n}"));
        let linked = linked.fill(|root| symlink(&cwd, root.join("link")).unwrap());
        let linked = linked
            .sh(&target.looks())
            .spec(|spec| spec["process"]["cwd"] = json!("/link"));
        target.assert_hidden(&cwd, &linked.run().await);
    }
    let task = target
        .container("host")
        .sh("exec sleep 1000")
        .create()
        .await
        .unwrap();
    task.start().await.unwrap();
    for n in 3..16 {
        let mut process = process(&["sh", "-c", &target.looks()]);
        process["cwd"] = json!(format!("/proc/self/fd/{n}"));
        if let Ok(run) = task.run_exec(&format!("e{n}"), &process).await {
            assert!(
                !run.stdout.contains(SECRET),
                "exec in descriptor {n}: {run:?}"
            );
        }
    }
    task.remove().await.unwrap();
    target.end().await;
}

/// CVE-2024-21626: what leads out must not be there in the first place.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_no_descriptors_but_its_streams() {
    let Some(target) = Target::start().await else {
        return;
    };
    // The third one that the shell lists is of the list itself, and gone when it is read.
    let lists = "for f in /proc/$$/fd/*; do readlink $f > /dev/null && echo $f; done; ls -l /proc/$$/fd | grep -c -E 'containerd|shim|cgroup|/run/|ns:|anon_inode'";
    let wanted = "/proc/1/fd/0\n/proc/1/fd/1\n/proc/1/fd/2\n0\n";
    let run = target.container("plain").sh(lists).run().await.unwrap();
    assert_eq!(run.stdout, wanted);
    let container = target
        .container("user")
        .spec(|spec| user_namespace(spec, 100_000));
    assert_eq!(container.sh(lists).run().await.unwrap().stdout, wanted);
    let container = target.container("terminal").terminal();
    let run = container
        .sh(&lists.replace("/run/", "no"))
        .run()
        .await
        .unwrap();
    assert_eq!(run.stdout.replace('\r', ""), wanted);
    let task = target
        .container("host")
        .sh("exec sleep 1000")
        .create()
        .await
        .unwrap();
    task.start().await.unwrap();
    let run = task
        .run_exec("one", &process(&["sh", "-c", &lists.replace("$$", "self")]))
        .await
        .unwrap();
    assert_eq!(run.stdout, wanted.replace("/1/", "/self/"));
    task.remove().await.unwrap();
    target.end().await;
}

/// CVE-2019-5736.
#[tokio::test(flavor = "multi_thread")]
async fn the_shims_own_program_is_out_of_reach() {
    let Some(target) = Target::start().await else {
        return;
    };
    // The processes on the way to a container are copies of the daemon.
    let program = Path::new(env!("CARGO_BIN_EXE_containerd-shim-opr-v1-daemon"));
    let before = (
        fs::read(program).unwrap(),
        fs::metadata(program).unwrap().ino(),
    );
    let grabs = "echo ready; while :; do for e in /proc/[0-9]*/exe; do t=$(readlink $e) || continue; \
        case $t in /bin/busybox|'') ;; *) echo seen $t; (echo x >> $e) 2>/dev/null && echo hit;; esac; done; done";
    let task = target.container("thief").sh(grabs).create().await.unwrap();
    task.start().await.unwrap();
    task.stdio.read_until("ready").await;
    for n in 0..TRIES {
        let program = ["/proc/self/exe", "true", "/etc/evil"][n % 3];
        let _ = task.run_exec(&format!("e{n}"), &process(&[program])).await;
    }
    task.kill(9).await.unwrap();
    task.wait().await.unwrap();
    let mut task = task;
    let (seen, _) = task.stdio.finish().await;
    task.delete().await.unwrap();
    assert!(!seen.contains("hit"), "{seen}");
    assert!(!seen.contains("shim"), "{seen}");

    let evil = |root: &Path| {
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/evil"), "#!/proc/self/exe\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(root.join("etc/evil"), mode).unwrap();
    };
    for (n, program) in ["/proc/self/exe", "/etc/evil"].into_iter().enumerate() {
        let container = target
            .container(&format!("evil-{n}"))
            .fill(evil)
            .args(&[program]);
        if let Ok(run) = container.run().await {
            // A shim that runs itself in the container would say how it is used.
            assert!(
                !run.stdout.contains("shim") && !run.stderr.contains("shim"),
                "{run:?}"
            );
        }
    }
    let after = (
        fs::read(program).unwrap(),
        fs::metadata(program).unwrap().ino(),
    );
    assert!(before == after, "the shim's program was changed");
    target.end().await;
}

/// CVE-2020-15257: sockets have names in the file system, where modes hold.
#[tokio::test(flavor = "multi_thread")]
async fn the_shims_sockets_are_its_owners_alone() {
    let Some(target) = Target::start().await else {
        return;
    };
    let container = target.container("one").spec(|spec| {
        crate::spec::no_namespace(spec, "network");
    });
    let task = container
        .sh("echo ready; grep -c @ /proc/net/unix; exec sleep 1000")
        .create()
        .await
        .unwrap();
    task.start().await.unwrap();
    task.stdio.read_until("ready").await;
    let shims = traces::shims(&target.node.marks());
    assert!(!shims.is_empty(), "no shim was found");
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    for shim in shims {
        for inode in socket_inodes(shim) {
            let line = table
                .lines()
                .find(|line| line.split_whitespace().nth(6) == Some(&inode));
            let name = line
                .and_then(|line| line.split_whitespace().nth(7))
                .unwrap_or_default();
            assert!(
                !name.starts_with('@'),
                "shim {shim} has the abstract socket {name}"
            );
        }
    }
    for socket in target.node.sockets.lock().unwrap().iter() {
        let open = fs::metadata(socket).unwrap().mode() & 0o077;
        let folder = fs::metadata(socket.parent().unwrap()).unwrap();
        let is_closed = open == 0 || folder.mode() & 0o077 == 0;
        assert!(is_closed, "{} has the mode {open:o}", socket.display());
    }
    let bundle = target.node.bundle(Runtime::Ours, "one");
    for entry in fs::read_dir(&bundle).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        let mode = metadata.mode();
        assert!(
            metadata.is_symlink() || mode & 0o022 == 0,
            "{} has the mode {mode:o}",
            entry.path().display()
        );
    }
    assert_eq!(
        fs::metadata(&bundle).unwrap().mode() & 0o007,
        0,
        "the bundle is for all"
    );
    task.remove().await.unwrap();
    target.end().await;
}

fn socket_inodes(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| {
            let text = link.to_str()?.strip_prefix("socket:[")?;
            Some(text.trim_end_matches(']').to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_of_the_host_do_not_come_along() {
    let Some(target) = Target::start().await else {
        return;
    };
    let who = "grep Groups /proc/self/status; cat /proc/self/setgroups";
    for is_mapped in [false, true] {
        let container = target
            .container(&format!("groups-{is_mapped}"))
            .spec(|spec| {
                if is_mapped {
                    user_namespace(spec, 100_000);
                }
            });
        let run = container.sh(who).run().await.unwrap();
        assert_eq!(run.stdout, "Groups:\t \nallow\n");
    }
    target.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mount_of_the_host_is_left_in_sight() {
    let Some(target) = Target::start().await else {
        return;
    };
    let count = "wc -l < /proc/self/mountinfo; cut -d' ' -f5 /proc/self/mountinfo; ls /.. | wc -l; ls / | wc -l";
    for kind in [Kind::Overlay, Kind::Bind, Kind::Folder] {
        let container = target
            .container(&format!("sees-{kind:?}"))
            .kind(kind)
            .spec(|spec| {
                let mounts = spec["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| mount["destination"] == "/proc");
                spec["linux"]["maskedPaths"] = json!([]);
                spec["linux"]["readonlyPaths"] = json!([]);
            });
        let run = container.sh(count).run().await.unwrap();
        let lines: Vec<_> = run.stdout.lines().collect();
        assert_eq!(lines[..3], ["2", "/", "/proc"], "{kind:?}");
        assert_eq!(lines[3], lines[4], "{kind:?}");
    }
    target.end().await;
}

/// Output that nobody reads stops its writer, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn output_that_nobody_reads_blocks_no_neighbour() {
    let Some(target) = Target::start().await else {
        return;
    };
    let writer = target.container("writer").group("together").sh("exec yes");
    let writer = writer.create_unread().await.unwrap();
    writer.start().await.unwrap();
    for n in 0..3 {
        let container = target
            .container(&format!("neighbour-{n}"))
            .group("together");
        let run = container.sh("seq 5000 | tail -1").run().await.unwrap();
        assert_eq!((run.exit, run.stdout.as_str()), (0, "5000\n"));
    }
    let run = writer
        .run_exec("one", &process(&["echo", "fine"]))
        .await
        .unwrap();
    assert_eq!(run.stdout, "fine\n");
    let mut exec = writer
        .exec(
            "two",
            &process(&["cat"]),
            Wanted {
                stdin: true,
                ..Wanted::default()
            },
        )
        .await
        .unwrap();
    writer.start_process("two").await.unwrap();
    exec.stdio.write("words\n").await;
    exec.stdio.read_until("words").await;
    writer.remove().await.unwrap();
    target.end().await;
}

//! Further processes in a container.

use serde_json::{Value, json};
use tonic::Status;

use crate::{
    container::Container,
    node::{Node, is_able},
    same::{outcome, same},
    spec::{mount, namespace, process, user_namespace},
    stdio::Wanted,
    task::Task,
};

async fn idle<'n>(container: Container<'n>) -> Result<Task<'n>, Status> {
    let task = container.sh("echo ready; exec sleep 1000").create().await?;
    task.start().await?;
    task.stdio.read_until("ready").await;
    Ok(task)
}

fn sh(script: &str) -> Value {
    process(&["sh", "-c", script])
}

/// What a further process says, in a container of its own.
async fn said(
    container: Container<'_>,
    script: &str,
    change: impl Fn(&mut Value),
) -> Result<String, Status> {
    let task = idle(container).await?;
    let mut process = sh(script);
    change(&mut process);
    let run = task.run_exec("one", &process).await;
    task.remove().await?;
    Ok(match run {
        Ok(run) => format!("exit {}\n{}\n{}", run.exit, run.stdout, run.stderr),
        Err(status) => outcome(&Err::<(), _>(status)),
    })
}

type Change = fn(&mut Value);

/// Name, script, and what is changed of the process.
const CASES: [(&str, &str, Change); 19] = [
    (
        "exec default",
        "cat /proc/self/limits; grep -E '^(Cap|Uid|Gid|Groups|NoNew|Seccomp:|Umask)' /proc/self/status",
        |_| {},
    ),
    ("exec exit", "echo out; echo err >&2; exit 23", |_| {}),
    ("exec environment", "env | sort", |p| {
        p["env"] = json!(["PATH=/bin", "A=b c"])
    }),
    ("exec home", "echo $HOME", |p| {
        p["user"] = json!({ "uid": 0, "gid": 0 })
    }),
    (
        "exec user",
        "id -u; id -g; grep Groups /proc/self/status",
        |p| {
            p["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6] });
        },
    ),
    ("exec umask", "umask", |p| p["user"]["umask"] = json!(0o027)),
    ("exec cwd", "pwd", |p| p["cwd"] = json!("/tmp")),
    ("exec cwd missing", "pwd", |p| {
        p["cwd"] = json!("/not/there")
    }),
    ("exec capabilities", "grep ^Cap /proc/self/status", |p| {
        p["capabilities"] = json!({ "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"] });
    }),
    (
        "exec capabilities absent",
        "grep ^Cap /proc/self/status",
        |p| {
            p.as_object_mut().unwrap().remove("capabilities");
        },
    ),
    ("exec new privileges", "grep NoNew /proc/self/status", |p| {
        p["noNewPrivileges"] = json!(false)
    }),
    ("exec limits", "cat /proc/self/limits", |p| {
        p["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 1, "hard": 2 }]);
    }),
    ("exec oom score", "cat /proc/self/oom_score_adj", |p| {
        p["oomScoreAdj"] = json!(300)
    }),
    ("exec missing program", "", |p| {
        p["args"] = json!(["no-such-program"])
    }),
    ("exec of a plain file", "", |p| {
        p["args"] = json!(["/etc/plain"])
    }),
    ("exec without arguments", "", |p| p["args"] = json!([])),
    ("exec by a signal", "kill -9 $$", |_| {}),
    ("exec cgroup", "cat /proc/self/cgroup", |_| {}),
    (
        "exec namespaces",
        "for n in pid ipc uts mnt net cgroup user; do \
        [ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] && echo $n; done; ls /proc/self/fd",
        |_| {},
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn further_processes_see_the_same() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    for (name, script, change) in CASES {
        same(&node, name, async |container| {
            said(container, script, change).await
        })
        .await;
    }
    same(&node, "exec under seccomp", async |container| {
        let container = container.spec(|spec| {
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]
            });
        });
        said(container, "grep ^Seccomp: /proc/self/status; mkdir /tmp/x", |_| {}).await
    })
    .await;
    same(&node, "exec in a user namespace", async |container| {
        let container = container.spec(|spec| user_namespace(spec, 100_000));
        said(
            container,
            "id; cat /proc/self/uid_map; grep ^Cap /proc/self/status",
            |_| {},
        )
        .await
    })
    .await;
    same(&node, "exec in a cgroup namespace", async |container| {
        let container = container.spec(|spec| namespace(spec, "cgroup", None));
        said(container, "cat /proc/self/cgroup", |_| {}).await
    })
    .await;
    same(&node, "exec sees the mounts", async |container| {
        let container = container.spec(|spec| mount(spec, "tmpfs", "tmpfs", "/work", "size=4k"));
        said(container, "cat /proc/self/mountinfo", |_| {}).await
    })
    .await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_further_processes_are_answered_alike() {
    if !is_able() {
        return;
    }
    let node = Node::start().await;
    same(&node, "exec states", async |container| {
        let task = idle(container).await?;
        let exec = task
            .exec("one", &sh("echo here; exec sleep 1000"), Wanted::default())
            .await?;
        let mut told = format!("{:?}\n", task.state("one").await?);
        told += &outcome(&task.delete_process("two").await);
        told += &outcome(&task.start_process("two").await);
        task.start_process("one").await?;
        exec.stdio.read_until("here").await;
        told += &format!("{:?}\n", task.state("one").await?);
        told += &format!("{}\n", outcome(&task.start_process("one").await.map(drop)));
        told += &format!("{}\n", outcome(&task.delete_process("one").await));
        told += &format!("{}\n", task.pids().await?.len());
        told += &format!("{}\n", outcome(&task.kill_process("one", 15, false).await));
        told += &format!("{}\n", task.wait_process("one").await?);
        told += &format!("{:?}\n", task.state("one").await?);
        told += &format!("{}\n", outcome(&task.kill_process("one", 15, false).await));
        told += &format!("{}\n", outcome(&task.delete_process("one").await));
        told += &format!("{}\n", outcome(&task.delete_process("one").await));
        told += &format!("{}\n", outcome(&task.wait_process("one").await));
        task.remove().await?;
        Ok(told + &task.events_until("delete 137").await.join("\n"))
    })
    .await;
    same(&node, "exec with a name twice", async |container| {
        let task = idle(container).await?;
        let _first = task.exec("one", &sh("exit 1"), Wanted::default()).await?;
        let second = task.exec("one", &sh("exit 2"), Wanted::default()).await;
        let told = outcome(&second.map(drop));
        task.start_process("one").await?;
        let exit = task.wait_process("one").await?;
        task.delete_process("one").await?;
        let again = task.run_exec("one", &sh("exit 3")).await?.exit;
        task.remove().await?;
        Ok(format!("{told} {exit} {again}"))
    })
    .await;
    same(&node, "exec never started", async |container| {
        let task = idle(container).await?;
        let _exec = task.exec("one", &sh("exit 1"), Wanted::default()).await?;
        let told = outcome(&task.delete_process("one").await);
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "exec before the start", async |container| {
        let task = container.sh("exec sleep 1000").create().await?;
        let run = task.run_exec("one", &sh("echo early")).await;
        let told = outcome(&run.map(|run| (run.exit, run.stdout)));
        task.remove().await?;
        Ok(told)
    })
    .await;
    same(&node, "exec after the end", async |container| {
        let task = container.sh("exit 0").create().await?;
        task.start().await?;
        task.wait().await?;
        let run = task.run_exec("one", &sh("echo late")).await;
        task.delete().await?;
        Ok(format!("{}", run.is_err()))
    })
    .await;
    same(&node, "exec reads", async |container| {
        let task = idle(container).await?;
        let wanted = Wanted {
            stdin: true,
            ..Wanted::default()
        };
        let mut exec = task.exec("one", &sh("cat; exit 5"), wanted).await?;
        task.start_process("one").await?;
        exec.stdio.write("some words\n").await;
        exec.stdio.close_stdin();
        let closed = outcome(&task.close_io("one").await);
        let exit = task.wait_process("one").await?;
        let (stdout, _) = exec.stdio.finish().await;
        task.delete_process("one").await?;
        task.remove().await?;
        Ok(format!("{closed} {exit} {stdout}"))
    })
    .await;
    same(&node, "exec ends with the container", async |container| {
        let task = idle(container).await?;
        let exec = task
            .exec("one", &sh("echo here; exec sleep 1000"), Wanted::default())
            .await?;
        task.start_process("one").await?;
        exec.stdio.read_until("here").await;
        task.kill(9).await?;
        let exits = (task.wait_process("one").await?, task.wait().await?);
        let told = outcome(&task.delete_process("one").await);
        task.delete().await?;
        Ok(format!("{exits:?} {told}"))
    })
    .await;
    same(&node, "exec many at once", async |container| {
        let task = idle(container).await?;
        let run = async |n: u32| {
            let run = task
                .run_exec(&format!("e{n}"), &sh(&format!("echo {n}; exit {n}")))
                .await?;
            Ok::<_, Status>((run.exit, run.stdout))
        };
        let runs = tokio::join!(run(1), run(2), run(3), run(4), run(5), run(6));
        task.remove().await?;
        Ok(format!(
            "{:?} {:?} {:?} {:?} {:?} {:?}",
            runs.0?, runs.1?, runs.2?, runs.3?, runs.4?, runs.5?
        ))
    })
    .await;
    same(
        &node,
        "exec with an impossible process",
        async |container| {
            let task = idle(container).await?;
            let mut told = String::new();
            for (n, change) in IMPOSSIBLE.into_iter().enumerate() {
                let mut process = sh("true");
                change(&mut process);
                let run = task.run_exec(&format!("e{n}"), &process).await;
                told += &format!("{n} {}\n", run.is_err());
            }
            task.remove().await?;
            Ok(told)
        },
    )
    .await;
    node.end().await;
}

const IMPOSSIBLE: [Change; 4] = [
    |p| p["user"]["uid"] = json!(-1),
    |p| p["rlimits"] = json!([{ "type": "RLIMIT_JOY", "soft": 1, "hard": 1 }]),
    |p| p["cwd"] = json!("relative"),
    |p| p["args"] = json!("true"),
];

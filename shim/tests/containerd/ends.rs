//! How containers end, what they read and write, and what is refused.

use serde_json::{Value, json};

use crate::{
    same::{case, check, refused},
    spec::{add, mount, namespace, user_namespace},
};

fn args(spec: &mut Value, args: &[&str]) {
    spec["process"]["args"] = json!(args);
}

#[tokio::test(flavor = "multi_thread")]
async fn exits_are_the_same() {
    check(&[
        case("exit 0", "exit 0", |_| {}),
        case("exit 1", "exit 1", |_| {}).exits(1),
        case("exit 42", "exit 42", |_| {}).exits(42),
        case("exit 255", "exit 255", |_| {}).exits(255),
        case("exit by SIGTERM", "kill -TERM $$", |_| {}).exits(0),
        case(
            "exit of a child by SIGKILL",
            "sh -c 'kill -9 $$'; echo $?",
            |_| {},
        )
        .shows("137"),
        case("exit by SIGSEGV", "sh -c 'kill -SEGV $$'; exit $?", |_| {}).exits(139),
        case(
            "exit of the main process by SIGABRT",
            "trap - ABRT; kill -ABRT 1; exit 3",
            |_| {},
        )
        .exits(3),
        case("exit leaves no orphan", "sleep 1000 & exit 5", |s| {
            s["process"]["args"][2] = json!("sleep 1000 >/dev/null 2>&1 & exit 5")
        })
        .exits(5),
        refused("program missing", |s| args(s, &["no-such-program"])),
        refused("program missing by path", |s| {
            args(s, &["/no/such/program"])
        }),
        refused("program is a folder", |s| args(s, &["/etc"])),
        refused("program is not executable", |s| args(s, &["/etc/plain"])),
        case("program is no program", "", |s| args(s, &["/etc/broken"])).exits(1),
        case("program without its interpreter", "", |s| {
            args(s, &["/etc/lost"])
        })
        .exits(1),
        case("program that only capabilities show", "", |s| {
            s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            args(s, &["/private/sh"]);
        })
        .fill(|root| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::create_dir(root.join("private")).unwrap();
            std::fs::copy("/bin/busybox", root.join("private/sh")).unwrap();
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(root.join("private"), mode).unwrap();
        }),
        refused("program on a mount without exec", |s| {
            mount(s, "bind", "/bin", "/mnt", "rbind,noexec");
            args(s, &["/mnt/busybox", "true"]);
        }),
        refused("program without a path", |s| {
            s["process"]["env"] = json!([]);
            args(s, &["no-such-program"]);
        }),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_the_same() {
    check(&[
        case("stream to both", "echo out; echo err >&2", |_| {}),
        case("stream without input", "cat; echo $?", |_| {}).shows("0"),
        case("stream input kind", "stat -Lc %F /proc/self/fd/0", |_| {}),
        case("stream output kind", "stat -Lc %F /proc/self/fd/1", |_| {}),
        case("stream input", "cat", |_| {})
            .input("what is read\nis written\n")
            .shows("is written"),
        case("stream input of no use", "echo done", |_| {}).input("nobody reads this"),
        case("stream input counted", "wc -c", |_| {})
            .input("12345")
            .shows("5"),
        case(
            "stream of one megabyte",
            "head -c 1000000 /dev/zero | tr '\\0' x",
            |_| {},
        ),
        case("stream of many lines", "seq 20000; seq 10 >&2", |_| {}).shows("20000"),
        case(
            "stream after a background child",
            "(sleep 0.2; echo late) & echo early; wait",
            |_| {},
        )
        .shows("late"),
        case("stream of odd bytes", "printf '\\001\\377\\000x'", |_| {}),
        case("stream closed by the process", "exec >&-; exit 4", |_| {}).exits(4),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_specs_are_refused_as_well() {
    check(&[
        case("invalid capability", "", |s| {
            s["process"]["capabilities"]["bounding"] = json!(["CAP_FLY"])
        }),
        refused("invalid namespace", |s| namespace(s, "dream", None)),
        refused("invalid namespace twice", |s| {
            add(s, "linux/namespaces", json!({ "type": "pid" }))
        }),
        refused("invalid namespace's path", |s| {
            namespace(s, "network", Some("/no/such"))
        }),
        refused("invalid namespace of another type", |s| {
            namespace(s, "network", Some("/proc/@pid@/ns/uts"))
        }),
        refused("invalid namespace that is a file", |s| {
            namespace(s, "network", Some("/etc/passwd"))
        }),
        refused("invalid limit", |s| {
            s["process"]["rlimits"] = json!([{ "type": "RLIMIT_JOY", "soft": 1, "hard": 1 }]);
        }),
        refused("invalid limit below", |s| {
            s["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": -1, "hard": 1 }]);
        }),
        refused("invalid limit of soft above hard", |s| {
            s["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }]);
        }),
        refused("invalid args empty", |s| s["process"]["args"] = json!([])),
        refused("invalid args absent", |s| {
            s["process"].as_object_mut().unwrap().remove("args");
        }),
        refused("invalid args of the wrong type", |s| {
            s["process"]["args"] = json!("true")
        }),
        refused("invalid cwd relative", |s| {
            s["process"]["cwd"] = json!("tmp")
        }),
        refused("invalid cwd empty", |s| s["process"]["cwd"] = json!("")),
        refused("invalid cwd that is a file", |s| {
            s["process"]["cwd"] = json!("/etc/passwd")
        }),
        refused("invalid user", |s| s["process"]["user"]["uid"] = json!(-1)),
        refused("invalid user of the wrong type", |s| {
            s["process"]["user"]["uid"] = json!("root")
        }),
        refused("invalid group", |s| {
            s["process"]["user"]["additionalGids"] = json!([-1])
        }),
        refused("invalid root missing", |s| {
            s["root"]["path"] = json!("/no/such/root")
        }),
        refused("invalid root absent", |s| {
            s.as_object_mut().unwrap().remove("root");
        }),
        refused("invalid process absent", |s| {
            s.as_object_mut().unwrap().remove("process");
        }),
        refused("invalid device type", |s| {
            add(
                s,
                "linux/devices",
                json!({ "path": "/dev/x", "type": "q", "major": 1, "minor": 1 }),
            );
        }),
        refused("invalid mount of an unknown file system", |s| {
            mount(s, "nosuchfs", "none", "/mnt", "")
        }),
        refused("invalid mount's data", |s| {
            mount(s, "tmpfs", "tmpfs", "/mnt", "nosuchoption")
        }),
        refused("invalid mount of a missing source", |s| {
            mount(s, "bind", "/no/such", "/mnt", "rbind")
        }),
        refused("invalid mount of a folder onto a file", |s| {
            mount(s, "bind", "/usr/share", "/etc/passwd", "rbind");
        }),
        refused("invalid mount through a file", |s| {
            mount(s, "tmpfs", "tmpfs", "/etc/passwd/x", "")
        }),
        refused("invalid propagation", |s| {
            s["linux"]["rootfsPropagation"] = json!("sideways")
        }),
        refused("invalid oom score", |s| {
            s["process"]["oomScoreAdj"] = json!(2000)
        }),
        refused("invalid mapping missing", |s| namespace(s, "user", None)),
        case("invalid mapping without a namespace", "", |s| {
            user_namespace(s, 100_000);
            crate::spec::no_namespace(s, "user");
        }),
        refused("invalid mapping that overlaps", |s| {
            user_namespace(s, 100_000);
            let twice = json!([
                { "containerID": 0, "hostID": 1000, "size": 10 },
                { "containerID": 5, "hostID": 2000, "size": 10 }
            ]);
            s["linux"]["uidMappings"] = twice;
        }),
        refused("invalid host name without its namespace", |s| {
            crate::spec::no_namespace(s, "uts");
            s["hostname"] = json!("inside");
        }),
        refused("invalid masked path without its namespace", |s| {
            crate::spec::no_namespace(s, "mount");
        }),
        case("invalid read-only path that is relative", "", |s| {
            s["linux"]["readonlyPaths"] = json!(["proc/sys"]);
        }),
        refused("invalid hook missing", |s| {
            s["hooks"]["createRuntime"] = json!([{ "path": "/no/such/hook" }]);
        }),
        refused("invalid apparmor where absent", |s| {
            s["process"]["apparmorProfile"] = json!("no-such-profile")
        }),
        refused("invalid selinux where absent", |s| {
            s["process"]["selinuxLabel"] = json!("a:b:c:d")
        }),
        refused("invalid cgroup namespace's path", |s| {
            namespace(s, "cgroup", Some("/no/such"))
        }),
        case("invalid rdt where absent", "", |s| {
            s["linux"]["intelRdt"] = json!({ "closID": "x" })
        }),
        refused("invalid terminal size", |s| {
            s["process"]["consoleSize"] = json!({ "height": -1, "width": 1 })
        }),
        case("invalid args with a zero byte", "", |s| {
            s["process"]["args"] = json!(["echo", "a\0b"])
        })
        .exits(1),
        refused("invalid environment with a zero byte", |s| {
            add(s, "process/env", json!("A=a\0b"))
        }),
        refused("invalid cwd with a zero byte", |s| {
            s["process"]["cwd"] = json!("/tmp\0/x")
        }),
        refused("invalid version", |s| s["ociVersion"] = json!(7)),
        refused("invalid json types", |s| {
            s["linux"]["namespaces"] = json!("all")
        }),
    ])
    .await;
}

/// The state's fields in the order of their names.
const HOOK: &str = "echo \"$1 $(tr -d '{}' | tr ',' '\\n' | sort | tr '\\n' ' ')\" | \
    sed -E 's/\"pid\":[0-9]+/\"pid\":N/' >> $2/log";

/// A hook that notes its name and what it was told.
fn hook(name: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", HOOK, "sh", name, "@run@"], "env": ["PATH=/usr/bin:/bin"] }])
}

fn failing() -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] }])
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_the_same() {
    check(&[
        case("hooks of all kinds on the host", "echo ran", |s| {
            for kind in ["prestart", "createRuntime", "poststop"] {
                s["hooks"][kind] = hook(kind);
            }
        })
        .shows("createRuntime \""),
        case("hooks in the container's namespaces", "cat /tmp/log", |s| {
            let note = |name: &str| {
                json!([{ "path": "/bin/sh", "args": ["sh", "-c",
                    "echo \"$1 $(cat | tr ',' '\\n' | grep -E 'status|\"id\"' | tr '\\n' ' ') \
                    $(hostname) $(ls /etc/hostname /etc/plain 2>/dev/null)\" >> /tmp/log", "sh", name],
                    "env": ["PATH=/usr/bin:/bin"] }])
            };
            s["hostname"] = json!("inside");
            s["hooks"]["startContainer"] = note("startContainer");
        })
        .shows("startContainer"),
        case("hook poststart", "echo ran", |s| {
            s["hooks"]["poststart"] = hook("poststart");
        }),
        case("hook createContainer", "cat /run/log; true", |s| {
            s["hooks"]["createContainer"] = hook("createContainer");
        }),
        case("hooks in order", "echo ran", |s| {
            let mut two = hook("first");
            two.as_array_mut().unwrap().push(hook("second")[0].clone());
            s["hooks"]["createRuntime"] = two;
        }),
        case("hook's environment", "echo ran", |s| {
            s["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh",
                "args": ["sh", "-c", "env | grep -v PWD | sort >> $1/log", "sh", "@run@"], "env": ["A=1", "B=2"] }]);
        }),
        case("hook without arguments", "echo ran", |s| {
            s["hooks"]["createRuntime"] = json!([{ "path": "/bin/true" }]);
        }),
        case("hook in time", "echo ran", |s| {
            s["hooks"]["createRuntime"] = hook("quick");
            s["hooks"]["createRuntime"][0]["timeout"] = json!(10);
        }),
        case("hook's annotations", "echo ran", |s| {
            s["annotations"]["a.b/c"] = json!("d");
            s["hooks"]["createRuntime"] = hook("createRuntime");
        })
        .shows("a.b/c"),
        refused("hook prestart fails", |s| s["hooks"]["prestart"] = failing()),
        refused("hook createRuntime fails", |s| {
            s["hooks"]["createRuntime"] = failing();
            s["hooks"]["poststop"] = hook("poststop");
        }),
        refused("hook createContainer fails", |s| s["hooks"]["createContainer"] = failing()),
        case("hook startContainer fails", "echo ran", |s| s["hooks"]["startContainer"] = failing()).exits(1),
        refused("hook poststart fails", |s| s["hooks"]["poststart"] = failing()),
        case("hook poststop fails", "echo ran", |s| s["hooks"]["poststop"] = failing()),
        refused("hook late", |s| {
            s["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 100"],
                "timeout": 1 }]);
        }),
    ])
    .await;
}

//! What a process sees of itself.

use serde_json::{Value, json};

use crate::{
    same::{case, check},
    spec::{add, namespace, no_namespace, user_namespace},
};

const CAPS: &str = "grep ^Cap /proc/self/status";
const WHO: &str = "grep -E '^(Uid|Gid|Groups)' /proc/self/status";
const LIMITS: &str = "cat /proc/self/limits";

fn all_sets(spec: &mut Value, capabilities: &[&str]) {
    for set in [
        "bounding",
        "permitted",
        "effective",
        "inheritable",
        "ambient",
    ] {
        spec["process"]["capabilities"][set] = json!(capabilities);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_the_same() {
    check(&[
        case("caps default", CAPS, |_| {}).shows("CapEff:\t00000000a80425fb"),
        case("caps none", CAPS, |s| {
            s["process"]["capabilities"] = json!({});
        })
        .shows("CapBnd:\t0000000000000000"),
        case("caps absent", CAPS, |s| {
            s["process"].as_object_mut().unwrap().remove("capabilities");
        }),
        case("caps in all sets", CAPS, |s| {
            all_sets(s, &["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
        })
        .shows("CapAmb:\t0000000000000420"),
        case("caps ambient of a user", CAPS, |s| {
            all_sets(s, &["CAP_NET_BIND_SERVICE"]);
            s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        })
        .shows("CapEff:\t0000000000000400"),
        case("caps of a user without ambient", CAPS, |s| {
            s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        })
        .shows("CapEff:\t0000000000000000"),
        case("caps bounding only", CAPS, |s| {
            s["process"]["capabilities"] = json!({ "bounding": ["CAP_CHOWN"] });
        }),
        case("caps inheritable", CAPS, |s| {
            s["process"]["capabilities"]["inheritable"] = json!(["CAP_CHOWN"]);
        })
        .shows("CapInh:\t0000000000000001"),
        case("caps newest", CAPS, |s| {
            all_sets(
                s,
                &[
                    "CAP_CHECKPOINT_RESTORE",
                    "CAP_BPF",
                    "CAP_PERFMON",
                    "CAP_AUDIT_READ",
                ],
            );
        }),
        case(
            "caps stay across exec",
            "sh -c 'grep ^Cap /proc/self/status'",
            |_| {},
        ),
        case("caps forbid a mount", "mount -t tmpfs none /work", |_| {}).exits(1),
        case(
            "caps allow a mount",
            "mount -t tmpfs none /work && echo yes",
            |s| {
                all_sets(s, &["CAP_SYS_ADMIN"]);
            },
        )
        .shows("yes"),
        case("caps unknown ambient is dropped", CAPS, |s| {
            s["process"]["capabilities"]["ambient"] = json!(["CAP_CHOWN"]);
        }),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_the_same() {
    check(&[
        case("user root", WHO, |_| {}),
        case("user other", WHO, |s| {
            s["process"]["user"] = json!({ "uid": 1000, "gid": 2000 });
        })
        .shows("Uid:\t1000\t1000\t1000\t1000"),
        case("user with more groups", WHO, |s| {
            s["process"]["user"] =
                json!({ "uid": 1000, "gid": 2000, "additionalGids": [5, 10, 2000, 70000] });
        })
        .shows("Groups:\t5 10 2000 70000"),
        case("user root with more groups", WHO, |s| {
            s["process"]["user"]["additionalGids"] = json!([1, 2, 3]);
        })
        .shows("Groups:\t1 2 3"),
        case(
            "user cannot write root's files",
            "echo x > /etc/passwd",
            |s| {
                s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            },
        )
        .exits(1),
        case(
            "user owns what it makes",
            "touch /tmp/x; stat -c '%u %g %a' /tmp/x",
            |s| {
                s["process"]["user"] = json!({ "uid": 12, "gid": 13 });
            },
        )
        .shows("12 13 644"),
        case(
            "user owns its output",
            "ls -lnL /proc/self/fd/1 | cut -d' ' -f1-4",
            |s| {
                s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            },
        ),
        case(
            "user may open its output again",
            "echo x > /proc/self/fd/1; echo y > /dev/stderr",
            |s| {
                s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            },
        ),
        case(
            "umask default",
            "umask; grep Umask /proc/self/status",
            |_| {},
        ),
        case("umask 077", "umask; touch /tmp/x; stat -c %a /tmp/x", |s| {
            s["process"]["user"]["umask"] = json!(0o077);
        })
        .shows("600"),
        case("umask 0", "umask; touch /tmp/x; stat -c %a /tmp/x", |s| {
            s["process"]["user"]["umask"] = json!(0);
        }),
        case("user named only", WHO, |s| {
            s["process"]["user"]["username"] = json!("somebody");
        }),
        case("home of root", "echo $HOME", |_| {}),
        case("home of a stranger", "echo $HOME", |s| {
            s["process"]["user"] = json!({ "uid": 4321, "gid": 1 });
        }),
        case("home that is set", "echo $HOME", |s| {
            add(s, "process/env", json!("HOME=/elsewhere"));
        })
        .shows("/elsewhere"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_starts_with_is_the_same() {
    check(&[
        case("env default", "env | sort", |_| {}),
        case("env more", "env | sort", |s| {
            for item in ["A=1", "B=with space", "C=", "D=a=b", "E=\u{e4}\n"] {
                add(s, "process/env", json!(item));
            }
        })
        .shows("B=with space"),
        case("env twice", "env | sort", |s| {
            add(s, "process/env", json!("A=1"));
            add(s, "process/env", json!("A=2"));
        }),
        case("env without a sign", "env | sort", |s| {
            add(s, "process/env", json!("BARE"))
        })
        .refuses(),
        case("env path finds the program", "", |s| {
            s["process"]["env"] = json!(["PATH=/nowhere:/etc"]);
            s["process"]["args"] = json!(["script"]);
        })
        .exits(0),
        case("cwd root", "pwd", |_| {}),
        case("cwd tmp", "pwd; readlink /proc/self/cwd", |s| {
            s["process"]["cwd"] = json!("/tmp")
        })
        .shows("/tmp"),
        case("cwd missing is made", "pwd; stat -c '%u %a' .", |s| {
            s["process"]["cwd"] = json!("/a/b/c");
        })
        .shows("/a/b/c"),
        case("cwd through a link", "readlink /proc/self/cwd", |s| {
            s["process"]["cwd"] = json!("/link");
        })
        .fill(|root| std::os::unix::fs::symlink("/tmp", root.join("link")).unwrap())
        .shows("/tmp"),
        case("cwd of a user only", "pwd", |s| {
            s["process"]["cwd"] = json!("/mine");
            s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        })
        .fill(|root| {
            std::fs::create_dir(root.join("mine")).unwrap();
            std::os::unix::fs::chown(root.join("mine"), Some(1000), Some(1000)).unwrap();
        }),
        case("args with odd bytes", "", |s| {
            s["process"]["args"] = json!(["printf", "%s|", "", " a b ", "\u{e4}", "\"'", "\n"]);
        }),
        case("args long", "", |s| {
            s["process"]["args"] = json!(["sh", "-c", "echo ${#1}", "sh", "x".repeat(100_000)]);
        })
        .shows("100000"),
        case("arg zero of a script", "", |s| {
            s["process"]["args"] = json!(["/etc/script"])
        })
        .shows("scripted"),
        case(
            "no new privileges",
            "grep NoNewPrivs /proc/self/status",
            |_| {},
        )
        .shows("1"),
        case("new privileges", "grep NoNewPrivs /proc/self/status", |s| {
            s["process"]["noNewPrivileges"] = json!(false);
        })
        .shows("0"),
        case("seccomp absent", "grep ^Seccomp /proc/self/status", |_| {}).shows("Seccomp:\t0"),
        case("oom score", "cat /proc/self/oom_score_adj", |s| {
            s["process"]["oomScoreAdj"] = json!(500);
        })
        .shows("500"),
        case(
            "oom score below zero",
            "cat /proc/self/oom_score_adj",
            |s| {
                s["process"]["oomScoreAdj"] = json!(-100);
            },
        )
        .either(),
        case("oom score absent", "cat /proc/self/oom_score_adj", |_| {}),
        case(
            "signals",
            "grep -E '^Sig(Blk|Ign|Cgt)|^ShdPnd' /proc/self/status",
            |s| {
                s["process"]["args"] = json!([
                    "grep",
                    "-E",
                    "^Sig(Blk|Ign|Cgt)|^ShdPnd",
                    "/proc/self/status"
                ]);
            },
        ),
        case("descriptors", "", |s| {
            s["process"]["args"] = json!(["sh", "-c", "echo /proc/$$/fd/*"]);
        }),
        case(
            "parent and session",
            "cut -d' ' -f1,4-7 /proc/self/stat",
            |s| {
                s["process"]["args"] = json!(["cut", "-d ", "-f1,4-8", "/proc/self/stat"]);
            },
        ),
        case("personality", "cat /proc/self/personality", |_| {}),
        case(
            "scheduler",
            "grep -E '^(policy|prio)' /proc/self/sched",
            |_| {},
        ),
        case("threads alone", "grep Threads /proc/self/status", |_| {}),
        case(
            "dumpable",
            "ls -ln /proc/self/environ | cut -d' ' -f1-4",
            |s| {
                s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            },
        ),
        case(
            "death signal",
            "grep -c . /proc/self/status >/dev/null; echo alive",
            |_| {},
        ),
        case(
            "apparmor absent",
            "cat /proc/self/attr/current 2>/dev/null; echo $?",
            |_| {},
        ),
        case(
            "session keyring",
            "grep -q _ses.session-keyring /proc/keys && echo there",
            |s| s["linux"]["maskedPaths"] = json!([]),
        ),
    ])
    .await;
}

macro_rules! limit {
    ($name:literal, $soft:expr, $hard:expr) => {
        case(concat!("limit ", $name), LIMITS, |s| {
            let item = json!({ "type": concat!("RLIMIT_", $name), "soft": $soft, "hard": $hard });
            s["process"]["rlimits"] = json!([item]);
        })
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_the_same() {
    check(&[
        case("limits default", LIMITS, |_| {}),
        case("limits absent", LIMITS, |s| {
            s["process"].as_object_mut().unwrap().remove("rlimits");
        }),
        limit!("AS", 1u64 << 40, 1u64 << 41),
        limit!("CORE", 0, 1024),
        limit!("CPU", 100, 200),
        limit!("DATA", 1u64 << 30, 1u64 << 31),
        limit!("FSIZE", 4096, 8192),
        limit!("LOCKS", 10, 20),
        limit!("MEMLOCK", 1 << 20, 2 << 20),
        limit!("MSGQUEUE", 1000, 2000),
        limit!("NICE", 5, 10).either(),
        limit!("NOFILE", 64, 128),
        limit!("NPROC", 500, 600),
        limit!("RSS", 1 << 30, 1u64 << 33),
        limit!("RTPRIO", 5, 10).either(),
        limit!("RTTIME", 1000, 2000),
        limit!("SIGPENDING", 100, 200),
        limit!("STACK", 1 << 20, 2 << 20),
        case("limits without an end", LIMITS, |s| {
            s["process"]["rlimits"] =
                json!([{ "type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX }]);
        }),
    ])
    .await;
}

const NAMESPACES: &str = "for n in pid ipc uts mnt net cgroup user; do \
    [ \"$(readlink /proc/self/ns/$n)\" = \"$(cat /run/host-$n)\" ] && echo $n host || echo $n own; done";

/// Tells the container which namespaces are the host's.
fn tell_host(root: &std::path::Path) {
    for name in ["pid", "ipc", "uts", "mnt", "net", "cgroup", "user"] {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        std::fs::create_dir_all(root.join("run")).unwrap();
        let text = format!("{}\n", link.display());
        std::fs::write(root.join(format!("run/host-{name}")), text).unwrap();
    }
}

/// `/run` stays what the root file system has there.
fn keep_run(spec: &mut Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/run");
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_the_same() {
    check(&[
        case("namespaces default", NAMESPACES, keep_run)
            .fill(tell_host)
            .shows("net own"),
        case("namespaces with a cgroup one", NAMESPACES, |s| {
            keep_run(s);
            namespace(s, "cgroup", None);
        })
        .fill(tell_host)
        .shows("cgroup own"),
        case("network of the host", NAMESPACES, |s| {
            keep_run(s);
            no_namespace(s, "network");
        })
        .fill(tell_host)
        .shows("net host"),
        case("ipc of the host", NAMESPACES, |s| {
            keep_run(s);
            no_namespace(s, "ipc");
            s["mounts"]
                .as_array_mut()
                .unwrap()
                .retain(|m| m["type"] != "mqueue");
        })
        .fill(tell_host)
        .shows("ipc host"),
        case("uts of the host", NAMESPACES, |s| {
            keep_run(s);
            no_namespace(s, "uts");
        })
        .fill(tell_host)
        .shows("uts host"),
        case("pids of the host", NAMESPACES, |s| {
            keep_run(s);
            no_namespace(s, "pid");
        })
        .fill(tell_host)
        .shows("pid host"),
        case("network joined by path", NAMESPACES, |s| {
            keep_run(s);
            namespace(s, "network", Some("/proc/@pid@/ns/net"));
        })
        .fill(tell_host)
        .shows("net host"),
        case("ipc joined by path", NAMESPACES, |s| {
            keep_run(s);
            namespace(s, "ipc", Some("/proc/@pid@/ns/ipc"));
        })
        .fill(tell_host),
        case("uts joined by path", NAMESPACES, |s| {
            keep_run(s);
            namespace(s, "uts", Some("/proc/@pid@/ns/uts"));
        })
        .fill(tell_host)
        .shows("uts host"),
        case("pid joined by path", NAMESPACES, |s| {
            keep_run(s);
            namespace(s, "pid", Some("/proc/@pid@/ns/pid"));
        })
        .fill(tell_host)
        .shows("pid host"),
        case("first process", "echo $$; ps -o pid,comm | head -2", |_| {}).shows("1"),
        case(
            "network has only lo",
            "ip -o link | cut -d: -f2; cat /sys/class/net/lo/operstate",
            |_| {},
        ),
        case(
            "host name",
            "hostname; cat /proc/sys/kernel/hostname",
            |s| s["hostname"] = json!("inside"),
        )
        .shows("inside"),
        case("domain name", "cat /proc/sys/kernel/domainname", |s| {
            s["domainname"] = json!("example.org")
        }),
        case(
            "user namespace",
            "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id",
            |s| {
                user_namespace(s, 100_000);
            },
        )
        .shows("100000"),
        case("user namespace with a user", WHO, |s| {
            user_namespace(s, 100_000);
            s["process"]["user"] = json!({ "uid": 10, "gid": 20, "additionalGids": [30] });
        })
        .shows("Groups:\t30"),
        case(
            "user namespace of several ranges",
            "cat /proc/self/uid_map",
            |s| {
                namespace(s, "user", None);
                let ranges = json!([
                    { "containerID": 0, "hostID": 100_000, "size": 10 },
                    { "containerID": 10, "hostID": 200_000, "size": 20 }
                ]);
                s["linux"]["uidMappings"] = ranges.clone();
                s["linux"]["gidMappings"] = ranges;
            },
        ),
        case("user namespace's capabilities", CAPS, |s| {
            user_namespace(s, 100_000)
        }),
        case(
            "user namespace's files",
            "stat -c '%u %a %n' /proc/self /proc/1 /sys /dev /dev/null /dev/pts /dev/shm",
            |s| {
                user_namespace(s, 100_000);
            },
        ),
        case("user namespace's mounts", "cat /proc/self/mountinfo", |s| {
            user_namespace(s, 100_000)
        }),
        case("user namespace with a host name", "hostname", |s| {
            user_namespace(s, 100_000);
            s["hostname"] = json!("inside");
        }),
    ])
    .await;
}

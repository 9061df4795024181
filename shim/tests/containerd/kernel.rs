//! Sysctls, seccomp and the limits of cgroups.

use serde_json::{Value, json};

use crate::{
    same::{case, check, refused},
    spec::{add, no_namespace, user_namespace},
};

fn sysctl(spec: &mut Value, name: &str, value: &str) {
    spec["linux"]["sysctl"][name] = value.into();
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_are_the_same() {
    check(&[
        case(
            "sysctl of the network",
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            |s| {
                sysctl(s, "net.ipv4.ip_unprivileged_port_start", "80");
            },
        )
        .shows("80"),
        case(
            "sysctl with slashes",
            "cat /proc/sys/net/ipv4/ip_forward",
            |s| {
                sysctl(s, "net/ipv4/ip_forward", "1");
            },
        )
        .shows("1"),
        case(
            "sysctl of ipc",
            "cat /proc/sys/kernel/msgmax /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max",
            |s| {
                sysctl(s, "kernel.msgmax", "9000");
                sysctl(s, "kernel.shmmni", "100");
                sysctl(s, "fs.mqueue.msg_max", "7");
            },
        )
        .shows("9000"),
        case(
            "sysctl with several numbers",
            "cat /proc/sys/kernel/sem",
            |s| {
                sysctl(s, "kernel.sem", "250 32000 32 100");
            },
        )
        .shows("250\t32000\t32\t100"),
        case(
            "sysctl of the domain name",
            "cat /proc/sys/kernel/domainname",
            |s| {
                sysctl(s, "kernel.domainname", "example.org");
            },
        ),
        refused("sysctl of the host's kernel", |s| {
            sysctl(s, "kernel.panic", "1")
        }),
        refused("sysctl of the host's memory", |s| {
            sysctl(s, "vm.swappiness", "1")
        }),
        refused("sysctl of the host name", |s| {
            sysctl(s, "kernel.hostname", "x")
        }),
        refused("sysctl unknown", |s| sysctl(s, "net.no.such", "1")),
        refused("sysctl of a bad value", |s| {
            sysctl(s, "net.ipv4.ip_forward", "many")
        }),
        refused("sysctl of the host's network", |s| {
            no_namespace(s, "network");
            sysctl(s, "net.ipv4.ip_forward", "1");
        }),
        refused("sysctl with dots for a way out", |s| {
            sysctl(s, "net.ipv4/../../kernel/panic", "1")
        }),
    ])
    .await;
}

/// A filter that allows everything but what `rules` say.
fn filter(spec: &mut Value, rules: &Value) {
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules
    });
}

const MODE: &str = "grep ^Seccomp: /proc/self/status";

#[tokio::test(flavor = "multi_thread")]
async fn seccomp_is_the_same() {
    check(&[
        case("seccomp mode", MODE, |s| filter(s, &json!([]))),
        case("seccomp errno default", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]));
        })
        .shows("Operation not permitted"),
        case("seccomp errno of one's own", "mkdir /tmp/x; echo $?", |s| {
            let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 });
            filter(s, &json!([rule]));
        })
        .shows("No space left"),
        case("seccomp kill process", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" }]));
        })
        .shows("159"),
        case("seccomp kill thread", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_THREAD" }]));
        }),
        case("seccomp kill", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL" }]));
        }),
        case("seccomp kill of the main process", "", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" }]));
            s["process"]["args"] = json!(["mkdir", "/tmp/x"]);
        })
        .exits(159),
        case("seccomp trap", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_TRAP" }]));
        }),
        case("seccomp log", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_LOG" }]));
        })
        .shows("0"),
        case("seccomp trace", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_TRACE" }]));
        }),
        case("seccomp with equal arguments", "kill -0 1; echo $?; kill -WINCH $$; echo $?", |s| {
            let argument = json!({ "index": 1, "value": 28, "op": "SCMP_CMP_EQ" });
            filter(s, &json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument] }]));
        }),
        case("seccomp with other comparisons", "for n in 0 10 12 17 18 28; do kill -$n $$; echo $n $?; done", |s| {
            let rule = |op: &str, value: u64, errno: u32| {
                json!({ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
                    "args": [{ "index": 1, "value": value, "op": op }] })
            };
            s["process"]["args"] = json!(["sh", "-c", "trap '' USR1 USR2 CHLD CONT WINCH; \
                for n in 0 10 12 17 18 28; do kill -$n $$; echo $n $?; done"]);
            filter(s, &json!([rule("SCMP_CMP_GT", 20, 28), rule("SCMP_CMP_LT", 1, 17)]));
        }),
        case("seccomp masked comparison", "", |s| {
            s["process"]["args"] = json!(["sh", "-c", "trap '' USR1 USR2 CHLD; kill -10 $$; echo $?; kill -17 $$; echo $?"]);
            let argument = json!({ "index": 1, "value": 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ" });
            filter(s, &json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument] }]));
        }),
        case("seccomp of an unknown call", "echo fine", |s| {
            filter(s, &json!([{ "names": ["no_such_call"], "action": "SCMP_ACT_ERRNO" }]));
        })
        .shows("fine"),
        case("seccomp allow list", "mkdir /tmp/x; echo $?; cat /etc/passwd", |s| {
            filter(s, &json!([]));
            s["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_ERRNO");
            s["linux"]["seccomp"]["syscalls"] = json!([{ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }]);
        })
        .shows("root:x:0"),
        case("seccomp allow list's errno", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([]));
            s["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_ERRNO");
            s["linux"]["seccomp"]["defaultErrnoRet"] = json!(38);
            s["linux"]["seccomp"]["syscalls"] = json!([{ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }]);
        })
        .shows("Function not implemented"),
        case("seccomp with new privileges", "mkdir /tmp/x; grep -E '^(Seccomp:|NoNew)' /proc/self/status", |s| {
            s["process"]["noNewPrivileges"] = json!(false);
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]));
        })
        .shows("NoNewPrivs:\t0"),
        case("seccomp of a user", MODE, |s| {
            s["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            filter(s, &json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]));
        })
        .shows("Seccomp:\t2"),
        case("seccomp without architectures", "mkdir /tmp/x; echo $?", |s| {
            filter(s, &json!([{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]));
            s["linux"]["seccomp"].as_object_mut().unwrap().remove("architectures");
        })
        .shows("not permitted"),
        case("seccomp flags", "grep ^Seccomp: /proc/self/status", |s| {
            filter(s, &json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]));
            s["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG"]);
        })
        .refuses(),
        refused("seccomp unknown action", |s| {
            filter(s, &json!([{ "names": ["mkdir"], "action": "SCMP_ACT_FORGIVE" }]));
        }),
        refused("seccomp unknown architecture", |s| {
            filter(s, &json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]));
            s["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_ABACUS"]);
        }),
        refused("seccomp unknown comparison", |s| {
            let argument = json!({ "index": 1, "value": 28, "op": "SCMP_CMP_ABOUT" });
            filter(s, &json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument] }]));
        }),
        refused("seccomp argument out of range", |s| {
            let argument = json!({ "index": 6, "value": 28, "op": "SCMP_CMP_EQ" });
            filter(s, &json!([{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [argument] }]));
        }),
        refused("seccomp unknown flag", |s| {
            filter(s, &json!([{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }]));
            s["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_MAYBE"]);
        }),
        refused("seccomp notify without a listener", |s| {
            filter(s, &json!([{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]));
        }),
    ])
    .await;
}

/// What busybox's shell needs to run a program of busybox.
const ALLOWED: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clock_gettime",
    "clone",
    "clone3",
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "epoll_ctl",
    "epoll_pwait",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchdir",
    "fchown",
    "fcntl",
    "fork",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getsockopt",
    "gettid",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pipe",
    "pipe2",
    "poll",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "recvfrom",
    "recvmsg",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_yield",
    "seccomp",
    "sendfile",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "sigaltstack",
    "stat",
    "statfs",
    "statx",
    "tgkill",
    "umask",
    "uname",
    "vfork",
    "wait4",
    "write",
    "writev",
];

/// Values of the cgroup as the container sees them: it is given the files of version 1.
fn with_cgroups(spec: &mut Value) {
    crate::spec::mount(
        spec,
        "cgroup",
        "cgroup",
        "/sys/fs/cgroup",
        "nosuid,noexec,nodev,relatime,ro",
    );
    crate::spec::namespace(spec, "cgroup", None);
}

fn resources(spec: &mut Value, controller: &str, values: Value) {
    with_cgroups(spec);
    spec["linux"]["resources"][controller] = values;
}

const MEMORY: &str = "cd /sys/fs/cgroup/memory; for f in memory.limit_in_bytes memory.soft_limit_in_bytes \
    memory.memsw.limit_in_bytes memory.swappiness memory.oom_control memory.use_hierarchy memory.kmem.limit_in_bytes \
    memory.kmem.tcp.limit_in_bytes; do echo $f; [ -e $f ] && grep -v oom_kill $f; done; true";
const CPU: &str = "cd /sys/fs/cgroup/cpu; for f in cpu.shares cpu.cfs_quota_us cpu.cfs_period_us cpu.cfs_burst_us \
    cpu.idle; do echo $f; [ -e $f ] && cat $f; done; cd ../cpuset; cat cpuset.cpus cpuset.mems";

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_cgroups_are_the_same() {
    check(&[
        case("cgroup memory default", MEMORY, with_cgroups),
        case("cgroup memory limit", MEMORY, |s| {
            resources(s, "memory", json!({ "limit": 64 << 20 }))
        })
        .shows("67108864"),
        case("cgroup memory reservation", MEMORY, |s| {
            resources(
                s,
                "memory",
                json!({ "limit": 64 << 20, "reservation": 32 << 20 }),
            );
        })
        .shows("33554432"),
        case("cgroup memory unlimited", MEMORY, |s| {
            resources(s, "memory", json!({ "limit": -1 }))
        }),
        case(
            "cgroup memory limit kills",
            "head -c 200m /dev/zero | (echo 1000 >/proc/self/oom_score_adj; exec tail); echo $?",
            |s| {
                resources(s, "memory", json!({ "limit": 16 << 20 }));
            },
        )
        .shows("137"),
        case("cgroup cpu default", CPU, with_cgroups),
        case("cgroup cpu shares", CPU, |s| {
            resources(s, "cpu", json!({ "shares": 512 }))
        })
        .shows("512"),
        case("cgroup cpu quota", CPU, |s| {
            resources(s, "cpu", json!({ "quota": 50_000, "period": 100_000 }));
        })
        .shows("50000"),
        case("cgroup cpu period alone", CPU, |s| {
            resources(s, "cpu", json!({ "period": 50_000 }))
        }),
        case("cgroup cpu set", CPU, |s| {
            resources(s, "cpu", json!({ "cpus": "0", "mems": "0" }))
        }),
        case(
            "cgroup pids default",
            "cat /sys/fs/cgroup/pids/pids.max",
            with_cgroups,
        ),
        case(
            "cgroup pids limit",
            "cat /sys/fs/cgroup/pids/pids.max",
            |s| {
                resources(s, "pids", json!({ "limit": 17 }));
            },
        )
        .shows("17"),
        case(
            "cgroup pids unlimited",
            "cat /sys/fs/cgroup/pids/pids.max",
            |s| {
                resources(s, "pids", json!({ "limit": -1 }));
            },
        ),
        case(
            "cgroup pids limit holds",
            "for i in 1 2 3 4 5 6; do sleep 1 & done; wait",
            |s| {
                resources(s, "pids", json!({ "limit": 3 }));
            },
        )
        .exits(2),
        case(
            "cgroup devices list",
            "sort /sys/fs/cgroup/devices/devices.list",
            with_cgroups,
        )
        .shows("c 1:3 rwm"),
        case(
            "cgroup devices more",
            "sort /sys/fs/cgroup/devices/devices.list",
            |s| {
                with_cgroups(s);
                for (kind, minor) in [("c", 11), ("b", 12)] {
                    add(
                        s,
                        "linux/resources/devices",
                        json!({ "allow": true, "type": kind, "major": 1,
                    "minor": minor, "access": "r" }),
                    );
                }
            },
        )
        .shows("b 1:12 r"),
        case(
            "cgroup devices all",
            "sort /sys/fs/cgroup/devices/devices.list",
            |s| {
                with_cgroups(s);
                s["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
            },
        )
        .shows("a *:* rwm"),
        case(
            "cgroup devices absent",
            "sort /sys/fs/cgroup/devices/devices.list",
            |s| {
                with_cgroups(s);
                s["linux"]["resources"]
                    .as_object_mut()
                    .unwrap()
                    .remove("devices");
            },
        ),
        case(
            "cgroup block weight",
            "cat /sys/fs/cgroup/blkio/blkio.bfq.weight /sys/fs/cgroup/blkio/blkio.weight \
            2>/dev/null; true",
            |s| {
                resources(s, "blockIO", json!({ "weight": 300 }));
            },
        ),
        case(
            "cgroup block throttle",
            "cat /sys/fs/cgroup/blkio/blkio.throttle.read_bps_device 2>/dev/null; true",
            |s| {
                resources(
                    s,
                    "blockIO",
                    json!({ "throttleReadBpsDevice": [{ "major": 7, "minor": 0, "rate": 1024 }] }),
                );
            },
        ),
        case("cgroup huge pages", "echo ran", |s| {
            resources(s, "hugepageLimits", json!([]));
        }),
        case(
            "cgroup of a user namespace",
            "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids/pids.max",
            |s| {
                resources(s, "pids", json!({ "limit": 17 }));
                user_namespace(s, 100_000);
            },
        ),
        case(
            "cgroup without a path",
            "grep -c / /proc/self/cgroup",
            |s| {
                s["linux"].as_object_mut().unwrap().remove("cgroupsPath");
            },
        ),
        case(
            "cgroup below a relative path",
            "cat /proc/self/cgroup | wc -l",
            |s| {
                s["linux"]["cgroupsPath"] = json!("@namespace@/relative");
            },
        ),
        refused("cgroup memory limit too small", |s| {
            s["linux"]["resources"]["memory"] = json!({ "limit": -5 });
        }),
        refused("cgroup cpu set without such a cpu", |s| {
            s["linux"]["resources"]["cpu"] = json!({ "cpus": "4000" });
        }),
        refused("cgroup unknown huge page", |s| {
            s["linux"]["resources"]["hugepageLimits"] = json!([{ "pageSize": "3MB", "limit": 1 }]);
        }),
    ])
    .await;
}

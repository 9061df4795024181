//! What a process sees mounted, and what it may do there.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::json;

use crate::{
    rootfs::Kind,
    same::{case, check},
    spec::{add, mount, namespace, no_namespace, user_namespace},
};

const TABLE: &str = "cat /proc/self/mountinfo";
/// The last lines of the table: what a case added, and what hides it.
const LAST: &str = "grep -E ' /(mnt|work|tmp)' /proc/self/mountinfo";

#[tokio::test(flavor = "multi_thread")]
async fn the_mount_table_is_the_same() {
    check(&[
        case("table default", TABLE, |_| {}).shows(" /proc/sys "),
        case("table of a bound root", TABLE, |_| {}).kind(Kind::Bind),
        case("table of a folder", TABLE, |_| {}).kind(Kind::Folder),
        case("table with a read-only root", TABLE, |s| {
            s["root"]["readonly"] = json!(true)
        }),
        case("read-only root", "touch /x", |s| {
            s["root"]["readonly"] = json!(true)
        })
        .exits(1),
        case(
            "read-only root's tmpfs",
            "touch /run/x && echo written",
            |s| {
                s["root"]["readonly"] = json!(true);
            },
        )
        .shows("written"),
        case(
            "table without mounts",
            "cat /proc/self/mountinfo; ls -1 / /dev",
            |s| {
                let mounts = s["mounts"].as_array_mut().unwrap();
                mounts.retain(|mount| mount["destination"] == "/proc");
                s["linux"]["maskedPaths"] = json!([]);
                s["linux"]["readonlyPaths"] = json!([]);
            },
        ),
        case("root private", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("private")
        }),
        case("root rprivate", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("rprivate")
        }),
        case("root slave", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("slave")
        }),
        case("root rslave", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("rslave")
        }),
        case("root shared", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("shared")
        }),
        case("root rshared", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("rshared")
        }),
        case("root unbindable", TABLE, |s| {
            s["linux"]["rootfsPropagation"] = json!("unbindable")
        }),
        case(
            "masked paths",
            "cat /proc/kcore /proc/keys; ls /proc/acpi /sys/firmware; cat /proc/timer_list",
            |_| {},
        ),
        case("masked file reads as empty", "wc -c < /proc/keys", |_| {}).shows("0"),
        case(
            "masked paths of one's own",
            "cat /etc/passwd; ls -a /root; stat -c '%F %t %T %a %u' /etc/passwd",
            |s| {
                s["linux"]["maskedPaths"] = json!(["/etc/passwd", "/root", "/no/such"]);
            },
        )
        .exits(0),
        case("unmasked", "head -c1 /proc/keys | wc -c", |s| {
            s["linux"]["maskedPaths"] = json!([])
        }),
        case(
            "read-only paths",
            "for p in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/irq/x; do \
            echo x > $p && echo written; done; true",
            |_| {},
        ),
        case(
            "read-only paths of one's own",
            "touch /work/x; echo x > /etc/passwd; grep -E ' /(work|etc/passwd) ' \
            /proc/self/mountinfo",
            |s| {
                s["linux"]["readonlyPaths"] = json!(["/work", "/etc/passwd", "/no/such"]);
            },
        )
        .shows("Read-only"),
    ])
    .await;
}

macro_rules! tmpfs {
    ($options:literal) => {
        case(concat!("tmpfs ", $options), LAST, |s| {
            mount(s, "tmpfs", "tmpfs", "/mnt", $options)
        })
    };
}

macro_rules! bind {
    ($options:literal) => {
        case(concat!("bind ", $options), LAST, |s| {
            mount(s, "bind", "/usr/share", "/mnt", $options);
        })
        .shows(" /mnt ")
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_options_are_the_same() {
    check(&[
        tmpfs!(""),
        tmpfs!("ro"),
        tmpfs!("nosuid,nodev,noexec"),
        tmpfs!("noatime"),
        tmpfs!("nodiratime"),
        tmpfs!("relatime"),
        tmpfs!("strictatime"),
        tmpfs!("sync,dirsync"),
        tmpfs!("size=1m"),
        tmpfs!("mode=0700"),
        tmpfs!("mode=1777,size=64k,nr_inodes=100"),
        tmpfs!("uid=1000,gid=1001"),
        tmpfs!("private"),
        tmpfs!("rprivate"),
        tmpfs!("shared"),
        tmpfs!("rshared"),
        tmpfs!("slave"),
        tmpfs!("unbindable"),
        tmpfs!("ro,rw"),
        tmpfs!("noexec,exec,nosuid,suid,nodev,dev"),
        tmpfs!("async,atime,diratime"),
        tmpfs!("defaults").refuses(),
        bind!("bind"),
        bind!("rbind"),
        bind!("rbind,ro"),
        bind!("bind,ro,nosuid,nodev,noexec"),
        bind!("rbind,noatime"),
        bind!("rbind,nodiratime,relatime"),
        bind!("rbind,strictatime"),
        bind!("rbind,rprivate"),
        bind!("rbind,rslave"),
        bind!("rbind,rshared"),
        bind!("bind,shared"),
        bind!("bind,unbindable"),
        bind!("rbind,rw"),
        case("bind of the type none", LAST, |s| {
            mount(s, "none", "/usr/share", "/mnt", "rbind,ro")
        }),
        case("bind without the option", LAST, |s| {
            mount(s, "bind", "/usr/share", "/mnt", "ro")
        })
        .refuses(),
        case("tmpfs's mode", "stat -c '%a %u %g' /mnt", |s| {
            mount(s, "tmpfs", "tmpfs", "/mnt", "mode=0711")
        })
        .shows("711"),
        case("tmpfs takes the mode it covers", "stat -c '%a' /tmp", |s| {
            mount(s, "tmpfs", "tmpfs", "/tmp", "")
        }),
        case(
            "tmpfs copies up",
            "ls -lnR /etc | cut -c1-10,30-; cat /etc/passwd",
            |s| {
                mount(s, "tmpfs", "tmpfs", "/etc", "tmpcopyup");
            },
        ),
        case(
            "tmpfs is full at its size",
            "head -c 100000 /dev/zero > /mnt/x",
            |s| {
                mount(s, "tmpfs", "tmpfs", "/mnt", "size=64k");
            },
        )
        .exits(1),
        case("mount read-only", "touch /mnt/x", |s| {
            mount(s, "tmpfs", "tmpfs", "/mnt", "ro")
        })
        .exits(1),
        case("mount without exec", "/mnt/busybox true; echo $?", |s| {
            mount(s, "bind", "/bin", "/mnt", "rbind,noexec");
        })
        .shows("126"),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_kinds_and_targets_are_the_same() {
    check(&[
        case(
            "bind a file onto a missing file",
            "stat -c '%F' /new/file; grep -c . /new/file; cat /new/file | head -1",
            |s| {
                mount(s, "bind", "/usr/bin/ldd", "/new/file", "bind,ro");
            },
        )
        .shows("regular file"),
        case(
            "bind a folder onto a missing folder",
            "ls -d /new/folder/doc; stat -c '%a' /new",
            |s| {
                mount(s, "bind", "/usr/share", "/new/folder", "rbind,ro");
            },
        )
        .shows("/new/folder/doc"),
        case("bind a file onto a file", "head -1 /etc/passwd", |s| {
            mount(s, "bind", "/usr/bin/ldd", "/etc/passwd", "bind");
        })
        .shows("#!"),
        case("bind a device", "stat -c '%F %t %T' /mnt", |s| {
            mount(s, "bind", "/dev/null", "/mnt", "bind")
        })
        .shows("character special"),
        case("bind is written through", "echo inside > /mnt/log", |s| {
            mount(s, "bind", "@run@", "/mnt", "rbind,rw");
        }),
        case("bind over a mount", LAST, |s| {
            mount(s, "tmpfs", "tmpfs", "/mnt", "size=1m");
            mount(s, "tmpfs", "tmpfs", "/mnt/a", "size=2m");
            mount(s, "bind", "/usr/share", "/mnt/a/b", "rbind,ro");
        }),
        case(
            "target beneath a link",
            "cat /proc/self/mountinfo | grep tmpfs | grep work",
            |s| {
                mount(s, "tmpfs", "tmpfs", "/link/deep", "size=1m");
            },
        )
        .fill(|root| symlink("/work", root.join("link")).unwrap())
        .shows("/work/deep"),
        case(
            "target is a link",
            "grep size=4k /proc/self/mountinfo",
            |s| {
                mount(s, "tmpfs", "tmpfs", "/link", "size=4k");
            },
        )
        .fill(|root| symlink("work", root.join("link")).unwrap())
        .shows(" /work "),
        case(
            "target with dots",
            "grep size=4k /proc/self/mountinfo",
            |s| {
                mount(s, "tmpfs", "tmpfs", "/tmp/../work/./x", "size=4k");
            },
        )
        .shows(" /work/x "),
        case(
            "target above the root",
            "grep size=4k /proc/self/mountinfo",
            |s| {
                mount(s, "tmpfs", "tmpfs", "/../../work", "size=4k");
            },
        )
        .shows(" /work "),
        case(
            "proc at another place",
            "head -1 /mnt/1/status; grep ' /mnt ' /proc/self/mountinfo",
            |s| {
                mount(s, "proc", "proc", "/mnt", "nosuid");
            },
        ),
        case(
            "sysfs writable",
            "grep ' /sys ' /proc/self/mountinfo",
            |s| {
                s["mounts"][5]["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
            },
        ),
        case(
            "sysfs of the host's network",
            "grep ' /sys ' /proc/self/mountinfo",
            |s| {
                no_namespace(s, "network");
            },
        ),
        case(
            "cgroups",
            "grep /sys/fs/cgroup /proc/self/mountinfo; ls -l /sys/fs/cgroup | cut -d' ' -f1,9-",
            |s| {
                mount(
                    s,
                    "cgroup",
                    "cgroup",
                    "/sys/fs/cgroup",
                    "nosuid,noexec,nodev,relatime,ro",
                );
            },
        )
        .shows("memory"),
        case(
            "cgroups writable",
            "grep /sys/fs/cgroup /proc/self/mountinfo",
            |s| {
                mount(
                    s,
                    "cgroup",
                    "cgroup",
                    "/sys/fs/cgroup",
                    "nosuid,noexec,nodev,relatime,rw",
                );
            },
        ),
        case(
            "cgroups in a namespace",
            "grep /sys/fs/cgroup /proc/self/mountinfo; cat /proc/self/cgroup; ls -R \
            /sys/fs/cgroup/pids",
            |s| {
                mount(
                    s,
                    "cgroup",
                    "cgroup",
                    "/sys/fs/cgroup",
                    "nosuid,noexec,nodev,relatime,ro",
                );
                namespace(s, "cgroup", None);
            },
        )
        .shows("pids:/\n"),
        case("cgroup of oneself", "cat /proc/self/cgroup", |_| {}).shows("memory"),
        case(
            "overlay",
            "cat /mnt/passwd | head -1; touch /mnt/new && echo written",
            |s| {
                mount(s, "overlay", "overlay", "/mnt", "lowerdir=/etc:/usr/share");
            },
        )
        .exits(1),
        case(
            "devpts",
            "ls -ln /dev/pts /dev/ptmx; grep devpts /proc/self/mountinfo",
            |_| {},
        ),
        case(
            "mqueue",
            "grep mqueue /proc/self/mountinfo; ls -ld /dev/mqueue | cut -c1-10",
            |_| {},
        ),
        case(
            "shm",
            "stat -c '%a' /dev/shm; df -k /dev/shm | tail -1 | awk '{print $2}'",
            |_| {},
        ),
        case("label of a mount is ignored where absent", LAST, |s| {
            s["linux"]["mountLabel"] = json!("");
            mount(s, "tmpfs", "tmpfs", "/mnt", "");
        }),
        case(
            "user namespace bind",
            "ls -lnd /work | cut -d' ' -f1-4; ls /work/doc > /dev/null && touch /work/x",
            |s| {
                user_namespace(s, 100_000);
                mount(s, "bind", "/usr/share", "/work", "rbind,ro");
            },
        )
        .exits(1),
        case("user namespace tmpfs", LAST, |s| {
            user_namespace(s, 100_000);
            mount(s, "tmpfs", "tmpfs", "/work", "size=1m,mode=0755");
        }),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_the_same() {
    let list = "ls -ln /dev /dev/pts | sed -E 's/[A-Z][a-z]{2} +[0-9]+ +[0-9:]+//'";
    check(&[
        case("devices default", list, |_| {}).shows("urandom"),
        case(
            "device links",
            "for l in fd stdin stdout stderr ptmx core; do echo $l $(readlink /dev/$l); done",
            |_| {},
        ),
        case(
            "devices work",
            "echo x > /dev/null; head -c3 /dev/zero | wc -c; head -c3 /dev/urandom | wc -c; \
            echo x > /dev/full",
            |_| {},
        )
        .exits(1),
        case(
            "device of one's own",
            "stat -c '%F %t %T %a %u %g' /dev/own",
            |s| {
                add(
                    s,
                    "linux/devices",
                    json!({ "path": "/dev/own", "type": "c", "major": 1, "minor": 3,
                "fileMode": 0o640, "uid": 7, "gid": 8 }),
                );
            },
        )
        .shows("character special file 1 3 640 7 8"),
        case("device block", "stat -c '%F %t %T %a' /dev/disk", |s| {
            add(
                s,
                "linux/devices",
                json!({ "path": "/dev/disk", "type": "b", "major": 7, "minor": 0,
                "fileMode": 0o600 }),
            );
        })
        .shows("block special"),
        case("device fifo", "stat -c '%F %a' /dev/pipe", |s| {
            add(
                s,
                "linux/devices",
                json!({ "path": "/dev/pipe", "type": "p", "fileMode": 0o666 }),
            );
        })
        .shows("fifo"),
        case("device of the type u", "stat -c '%F %t %T' /dev/un", |s| {
            add(
                s,
                "linux/devices",
                json!({ "path": "/dev/un", "type": "u", "major": 1, "minor": 5 }),
            );
        }),
        case(
            "device elsewhere",
            "stat -c '%F %t %T %a' /work/a/null; stat -c %a /work/a",
            |s| {
                add(
                    s,
                    "linux/devices",
                    json!({ "path": "/work/a/null", "type": "c", "major": 1, "minor": 3,
                "fileMode": 0o666 }),
                );
            },
        )
        .shows("character"),
        case("device without a mode", "stat -c '%a' /dev/own", |s| {
            add(
                s,
                "linux/devices",
                json!({ "path": "/dev/own", "type": "c", "major": 1, "minor": 3 }),
            );
        }),
        case(
            "device that is a default one",
            "stat -c '%t %T %a %u' /dev/null",
            |s| {
                add(
                    s,
                    "linux/devices",
                    json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 3,
                "fileMode": 0o600, "uid": 3 }),
                );
            },
        )
        .refuses(),
        case("device that is denied", "head -c1 /dev/own", |s| {
            add(
                s,
                "linux/devices",
                json!({ "path": "/dev/own", "type": "c", "major": 1, "minor": 1,
                "fileMode": 0o666 }),
            );
        })
        .exits(1),
        case(
            "device made and denied",
            "mknod /work/mem c 1 1 && head -c1 /work/mem",
            |_| {},
        )
        .exits(1),
        case(
            "device that is allowed",
            "mknod /work/fuse c 10 229 && : < /work/fuse && echo opened",
            |s| {
                add(
                    s,
                    "linux/resources/devices",
                    json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }),
                );
            },
        )
        .shows("opened"),
        case(
            "device that is allowed to read only",
            "mknod /work/fuse c 10 229 && : > /work/fuse",
            |s| {
                add(
                    s,
                    "linux/resources/devices",
                    json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rm" }),
                );
            },
        )
        .exits(1),
        case("devices of a user namespace", list, |s| {
            user_namespace(s, 100_000)
        }),
        case(
            "devices over what the image has",
            "ls -ln /dev/null | cut -c1; cat /dev/null",
            |_| {},
        )
        .fill(image_dev),
        case(
            "dev of the host",
            "stat -c '%F' /dev/null; ls /dev/pts >/dev/null && echo yes",
            |s| {
                s["mounts"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
                mount(s, "bind", "/dev", "/dev", "rbind,rslave");
            },
        )
        .shows("yes"),
    ])
    .await;
}

fn image_dev(root: &Path) {
    fs::create_dir_all(root.join("dev")).unwrap();
    fs::write(root.join("dev/null"), "from the image").unwrap();
    fs::write(root.join("dev/console"), "from the image").unwrap();
}

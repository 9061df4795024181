//! What each finding means. Pure: what was found is an argument.

use std::{net::SocketAddr, path::Path};

use super::{Check, version};
use crate::config::{Admission, Limits};

/// `mount_setattr` with id-mapped mounts, and of overlay layers.
///
/// Source: mount_setattr(2); overlayfs takes id-mapped layers since Linux 5.19.
const KERNEL: (u32, u32) = (5, 19);
const FREE_MIB: u64 = 2048;

pub(super) fn kernel(release: &str) -> Check {
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= KERNEL {
        Check::ok("kernel", release)
    } else {
        let (major, minor) = KERNEL;
        let remedy = format!("id-mapped layers need Linux {major}.{minor} or newer");
        Check::fail("kernel", release, remedy)
    }
}

pub(super) fn user_namespaces(max: Option<u64>) -> Check {
    match max {
        Some(0) => {
            let remedy = "sysctl -w user.max_user_namespaces=65536";
            Check::fail("user namespaces", "switched off", remedy)
        }
        Some(max) => Check::ok("user namespaces", format!("up to {max}")),
        None => Check::fail(
            "user namespaces",
            "not in this kernel",
            "CONFIG_USER_NS=y is needed",
        ),
    }
}

pub(super) fn overlay(filesystems: &str) -> Check {
    if filesystems.split_whitespace().any(|name| name == "overlay") {
        Check::ok("overlay", "in the kernel")
    } else {
        Check::fail("overlay", "not in the kernel", "modprobe overlay")
    }
}

pub(super) fn cgroups(mounts: &str) -> Check {
    let fields = |line: &str| -> Option<(String, String)> {
        let mut fields = line.split_whitespace().skip(2);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    let mounted: Vec<_> = mounts.lines().filter_map(fields).collect();
    let has = |controller: &str| {
        mounted.iter().any(|(kind, options)| {
            kind == "cgroup" && options.split(',').any(|option| option == controller)
        })
    };
    let is_unified = mounted.iter().any(|(kind, _)| kind == "cgroup2");
    let is_split = mounted.iter().any(|(kind, _)| kind == "cgroup");
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|controller| !has(controller))
        .collect();
    match (is_unified, is_split) {
        (true, false) => Check::ok("cgroups", "version 2"),
        (_, true) if missing.is_empty() => Check::ok("cgroups", "version 1 controllers"),
        (_, true) => {
            let detail = format!("version 1 without {}", missing.join(", "));
            Check::warn(
                "cgroups",
                detail,
                "limits of those do not hold: mount them, or boot with version 2",
            )
        }
        (false, false) => Check::fail(
            "cgroups",
            "not mounted",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

pub(super) fn program(name: &'static str, argument: &str, path: Option<&Path>) -> Check {
    match path {
        Some(path) => Check::ok(
            name,
            version(path, argument).unwrap_or_else(|| path.display().to_string()),
        ),
        None => Check::fail(name, "missing", format!("apt-get install {name}")),
    }
}

/// The program that containerd starts for a runtime; None where it is no name of a runtime.
///
/// Source: containerd, `runtime/v2/shim/util.go`: the last two parts of the name, or a path.
pub(super) fn shim_of(runtime: &str) -> Option<String> {
    if runtime.starts_with('/') {
        return Some(runtime.to_owned());
    }
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(format!("containerd-shim-{name}-{version}"))
}

pub(super) fn runtime(name: &str, shim: Option<&Path>) -> Check {
    match shim {
        Some(shim) => Check::ok("runtime", format!("{name}: {}", shim.display())),
        None => {
            let remedy = "install its shim where PATH finds it, set containerd.shim_dir, or choose another \
                          runtime for the class";
            Check::fail("runtime", format!("{name}: no shim"), remedy)
        }
    }
}

/// The node's own shim.
pub(super) const SHIM: &str = "containerd-shim-opr-v1";

/// The programs that the node's own shim executes, in the same folder.
pub(super) fn rest_of(shim: &Path) -> Check {
    let rest = ["bootstrap", "daemon"].map(|end| shim.with_file_name(format!("{SHIM}-{end}")));
    match rest.iter().find(|program| !program.is_file()) {
        None => Check::ok("shim", format!("{} is whole", shim.display())),
        Some(missing) => {
            let remedy = "install all programs of the shim in one folder; scripts/build makes them";
            Check::fail("shim", format!("{}: missing", missing.display()), remedy)
        }
    }
}

pub(super) fn foreign_containerd(socket: &Path, answers: bool) -> Check {
    let shown = socket.display();
    if answers {
        Check::ok("containerd", format!("answers on {shown}"))
    } else {
        let remedy = "start it, or leave containerd.address out to use the node's own";
        Check::fail("containerd", format!("does not answer on {shown}"), remedy)
    }
}

pub(super) fn cni(folder: Option<&Path>) -> Check {
    let remedy =
        "apt-get install containernetworking-plugins, or outbound = 'none' for all classes";
    let Some(folder) = folder else {
        return Check::fail("CNI plugins", "missing", remedy);
    };
    let missing: Vec<_> = ["bridge", "host-local"]
        .into_iter()
        .filter(|plugin| !folder.join(plugin).is_file())
        .collect();
    if missing.is_empty() {
        Check::ok("CNI plugins", folder.display().to_string())
    } else {
        let detail = format!("{} without {}", folder.display(), missing.join(", "));
        Check::fail("CNI plugins", detail, remedy)
    }
}

pub(super) fn forwarding(value: Option<u64>) -> Check {
    match value {
        Some(1) => Check::ok("forwarding", "on"),
        // The bridge plugin switches it on where it may.
        _ => Check::warn("forwarding", "off", "sysctl -w net.ipv4.ip_forward=1"),
    }
}

pub(super) fn resolvers(text: &str) -> Check {
    let servers: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .map(str::trim)
        .collect();
    if servers.is_empty() {
        Check::warn(
            "resolvers",
            "none",
            "functions find no names: add a nameserver to /etc/resolv.conf",
        )
    } else {
        Check::ok("resolvers", servers.join(", "))
    }
}

/// What a root on disk with a size is made of.
pub(super) fn loop_devices(are_there: bool) -> Check {
    if are_there {
        Check::ok("loop devices", "in the kernel")
    } else {
        let remedy = "modprobe loop, or set disk_mib = 0 for the classes with root = \"disk\"";
        Check::fail("loop devices", "not in the kernel", remedy)
    }
}

pub(super) fn disk(folder: &Path, free_mib: Option<u64>) -> Check {
    let shown = folder.display();
    match free_mib {
        Some(mib) if mib >= FREE_MIB => Check::ok("disk", format!("{mib} MiB free for {shown}")),
        Some(mib) => {
            let remedy = "builds and images need more: free some, or set state_dir";
            Check::warn("disk", format!("{mib} MiB free for {shown}"), remedy)
        }
        None => Check::fail(
            "disk",
            format!("{shown} cannot be looked at"),
            "set state_dir",
        ),
    }
}

/// What instances may have of the memory, where that is limited.
pub(super) fn budget(settings: &Admission, machine: u64) -> Option<Check> {
    let budget = settings.memory_budget?.bytes(machine);
    let mib = |bytes: u64| bytes >> 20;
    let detail = format!("{} of {} MiB", mib(budget), mib(machine));
    let name = "memory budget";
    Some(if budget < Limits::default().memory_bytes {
        let remedy = "a function with the default limit does not fit: raise \"memory.budget\" of [admission]";
        Check::warn(name, detail, remedy)
    } else {
        Check::ok(name, detail)
    })
}

/// Whether the thresholds that are set hold.
pub(super) fn pressure(settings: &Admission, lacking: &[String]) -> Option<Check> {
    let limits = settings.thresholds().into_iter();
    let lines = limits.flat_map(|(resource, limits)| {
        let lines = limits.lines();
        lines.map(move |(line, limit)| format!("{resource} {line} {limit} %"))
    });
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        return None;
    }
    Some(if lacking.is_empty() {
        Check::ok("pressure", lines.join(", "))
    } else {
        let folder = settings.pressure_dir.display();
        let detail = format!("{folder} has no figures for {}", lacking.join(", "));
        let remedy = "boot with psi=1 (the kernel needs CONFIG_PSI=y), set pressure_dir, or remove these thresholds \
                      from [admission]";
        Check::fail("pressure", detail, remedy)
    })
}

pub(super) fn secret(secret: &str) -> Check {
    if secret.is_empty() {
        let remedy =
            "its clients are all refused: set OPR_EXECUTOR_SECRET, or executor.secret in opr.toml";
        Check::warn("executor secret", "not set", remedy)
    } else {
        Check::ok("executor secret", "set")
    }
}

pub(super) fn port(name: &'static str, address: SocketAddr, is_free: bool, is_up: bool) -> Check {
    match (is_free, is_up) {
        (true, _) => Check::ok(name, format!("{address} is free")),
        (false, true) => Check::ok(name, format!("{address} is the node's")),
        (false, false) => {
            let remedy = "end the process that has it, or set another in opr.toml";
            Check::fail(name, format!("{address} cannot be had"), remedy)
        }
    }
}

pub(super) fn node(is_up: bool) -> Check {
    if is_up {
        Check::ok("node", "answers")
    } else {
        Check::warn("node", "does not run", "opr up")
    }
}

pub(super) fn images(listed: Option<&[String]>, wanted: &[String]) -> Check {
    let Some(listed) = listed else {
        return Check::warn("images", "containerd does not answer", "opr up");
    };
    let missing: Vec<_> = wanted
        .iter()
        .filter(|image| !listed.contains(image))
        .collect();
    if missing.is_empty() {
        return Check::ok("images", format!("{} of the catalogue", wanted.len()));
    }
    let shown: Vec<_> = missing.iter().map(|image| image.as_str()).collect();
    let remedy = "they are pulled when first needed; or build them: opr images build runtimes/node";
    Check::warn("images", format!("missing {}", shown.join(", ")), remedy)
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[track_caller]
    fn check(found: &Check, status: Status) {
        assert_eq!(found.status, status, "{found:?}");
        assert_eq!(found.remedy.is_some(), status != Status::Ok, "{found:?}");
    }

    #[test]
    fn the_kernel_must_have_id_mapped_layers() {
        check(&kernel("6.1.0-18-amd64"), Status::Ok);
        check(&kernel("5.19.0"), Status::Ok);
        check(&kernel("5.10.0-8"), Status::Fail);
        check(&kernel("odd"), Status::Fail);
    }

    #[test]
    fn cgroups_may_be_of_either_version() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let v1 = "cgroup /c/m cgroup rw,memory 0 0\ncgroup /c/c cgroup rw,cpu,cpuacct 0 0\ncgroup /c/p cgroup rw,pids 0 0\n";
        check(&cgroups(v2), Status::Ok);
        check(&cgroups(v1), Status::Ok);
        check(&cgroups(&format!("{v1}{v2}")), Status::Ok);
        check(&cgroups("cgroup /c/m cgroup rw,memory 0 0\n"), Status::Warn);
        check(&cgroups(""), Status::Fail);
    }

    #[test]
    fn a_shim_needs_its_other_programs_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let shim = folder.path().join(SHIM);
        for end in ["bootstrap", "daemon"] {
            check(&rest_of(&shim), Status::Fail);
            let program = format!("containerd-shim-opr-v1-{end}");
            std::fs::write(folder.path().join(program), "").unwrap();
        }
        check(&rest_of(&shim), Status::Ok);
    }

    #[test]
    fn a_runtime_is_named_after_its_shim() {
        let check = |runtime, expected: Option<&str>| {
            assert_eq!(shim_of(runtime).as_deref(), expected, "{runtime}");
        };
        check("io.containerd.opr.v1", Some("containerd-shim-opr-v1"));
        check("io.containerd.runc.v2", Some("containerd-shim-runc-v2"));
        check("/opt/shim", Some("/opt/shim"));
        check("runc", None);
    }

    #[test]
    fn a_port_of_a_running_node_is_no_failure() {
        let address = ([127, 0, 0, 1], 1).into();
        check(&port("p", address, true, false), Status::Ok);
        check(&port("p", address, false, true), Status::Ok);
        check(&port("p", address, false, false), Status::Fail);
    }

    #[test]
    fn what_admission_looks_at_must_be_there() {
        let settings = |text: &str| toml::from_str::<Admission>(text).unwrap();
        let budget = |text: &str| budget(&settings(text), 8 << 30);
        assert_eq!(budget(""), None);
        check(&budget("'memory.budget' = '50%'").unwrap(), Status::Ok);
        let small = budget("'memory.budget' = 128").unwrap();
        check(&small, Status::Warn);
        assert_eq!(small.detail, "128 of 8192 MiB");
        assert_eq!(pressure(&Admission::default(), &[]), None);
        let set = settings("'cpu.pressure' = { some = 90, full = 5.5 }");
        let found = pressure(&set, &[]).unwrap();
        check(&found, Status::Ok);
        assert_eq!(found.detail, "cpu some 90 %, cpu full 5.5 %");
        let lacking = ["cpu.pressure".to_owned()];
        check(&pressure(&set, &lacking).unwrap(), Status::Fail);
    }

    #[test]
    fn what_is_missing_is_named() {
        check(&user_namespaces(Some(0)), Status::Fail);
        check(&overlay("nodev\tproc\n"), Status::Fail);
        check(&loop_devices(false), Status::Fail);
        check(&program("runc", "--version", None), Status::Fail);
        check(&runtime("io.containerd.none.v1", None), Status::Fail);
        check(&secret(""), Status::Warn);
        check(&disk(Path::new("/"), Some(10)), Status::Warn);
        let found = images(Some(&["a".into()]), &["a".into(), "b".into()]);
        check(&found, Status::Warn);
        assert_eq!(found.detail, "missing b");
    }
}

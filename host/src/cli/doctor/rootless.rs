//! What root has to do once for a node without root.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User};

use super::{Check, checks, find};
use crate::rootless::Ids;

/// The user of a node without root: who runs this, or who owns the folder of the node that runs.
pub(super) fn user(run_dir: &Path) -> Option<User> {
    let own = Uid::effective();
    let uid = if own.is_root() {
        Uid::from_raw(fs::metadata(run_dir).ok()?.uid())
    } else {
        own
    };
    if uid.is_root() {
        return None;
    }
    User::from_uid(uid).ok().flatten()
}

/// What such a node needs.
pub(super) fn look(user: &User) -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut found = vec![
        Check::ok("user", user.name.clone()),
        unprivileged(
            &read("/proc/sys/kernel/unprivileged_userns_clone"),
            &read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        ),
        ids(Ids::of(&user.name, user.uid.as_raw())
            .map(Ids::sandboxes)
            .map_err(|error| error.to_string())),
        checks::program("uidmap", "--help", find("newuidmap").as_deref()),
        checks::program("passt", "--version", find("pasta").as_deref()),
        tun(fs::metadata("/dev/net/tun").ok().map(|about| about.mode())),
        shims(Path::new("/run/containerd").is_dir()),
    ];
    // The machine's own service has its delegation in its unit.
    if Uid::effective() == user.uid {
        let service = PathBuf::from(format!(
            "/sys/fs/cgroup/user.slice/user-{0}.slice/user@{0}.service/cgroup.controllers",
            user.uid
        ));
        found.push(delegation(&fs::read_to_string(service).unwrap_or_default()));
        let lingers = Path::new("/var/lib/systemd/linger")
            .join(&user.name)
            .exists();
        found.push(linger(&user.name, lingers));
    }
    found
}

fn unprivileged(debian: &str, apparmor: &str) -> Check {
    let name = "namespaces of users";
    if debian.trim() == "0" {
        return Check::fail(
            name,
            "switched off",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1",
        );
    }
    if apparmor.trim() == "1" {
        let remedy = "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give /usr/bin/opr a profile \
                      with `userns`";
        return Check::fail(name, "refused by AppArmor", remedy);
    }
    Check::ok(name, "allowed")
}

fn ids(sandboxes: Result<u32, String>) -> Check {
    let name = "subordinate ids";
    match sandboxes {
        Ok(count) => Check::ok(name, format!("for {count} sandboxes at once")),
        Err(error) => {
            let (what, remedy) = error
                .split_once("; ")
                .unwrap_or((&error, "add some to /etc/subuid"));
            Check::fail(name, what, remedy)
        }
    }
}

fn tun(mode: Option<u32>) -> Check {
    let name = "/dev/net/tun";
    match mode {
        Some(mode) if mode & 0o006 == 0o006 => Check::ok(name, "open to all"),
        Some(_) => Check::fail(
            name,
            "closed to this user",
            "as root: chmod 666 /dev/net/tun",
        ),
        None => Check::fail(name, "missing", "as root: modprobe tun"),
    }
}

fn shims(is_there: bool) -> Check {
    let name = "/run/containerd";
    if is_there {
        Check::ok(name, "is there")
    } else {
        Check::fail(
            name,
            "missing",
            "as root: systemd-tmpfiles --create opr.conf",
        )
    }
}

fn delegation(controllers: &str) -> Check {
    let has = |name: &&str| controllers.split_whitespace().any(|has| has == *name);
    let missing: Vec<_> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    if missing.is_empty() {
        return Check::ok("delegation", controllers.trim().to_owned());
    }
    let remedy = "as root: systemctl edit user@.service, and in [Service] Delegate=cpu cpuset io memory pids";
    Check::fail(
        "delegation",
        format!("without {}", missing.join(", ")),
        remedy,
    )
}

fn linger(user: &str, lingers: bool) -> Check {
    if lingers {
        Check::ok("linger", "the node runs without a login")
    } else {
        let remedy = format!("as root: loginctl enable-linger {user}");
        Check::warn("linger", "the node ends with the last login", remedy)
    }
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
    fn each_missing_prerequisite_has_its_remedy() {
        check(&unprivileged("", ""), Status::Ok);
        check(&unprivileged("1\n", "0\n"), Status::Ok);
        check(&unprivileged("0\n", ""), Status::Fail);
        check(&unprivileged("1\n", "1\n"), Status::Fail);
        check(&ids(Ok(12)), Status::Ok);
        check(&ids(Err("too few; do this".into())), Status::Fail);
        check(&tun(Some(0o20_666)), Status::Ok);
        check(&tun(Some(0o20_600)), Status::Fail);
        check(&tun(None), Status::Fail);
        check(&shims(false), Status::Fail);
        check(&delegation("cpu io memory pids\n"), Status::Ok);
        check(&delegation("memory pids\n"), Status::Fail);
        check(&linger("alice", false), Status::Warn);
    }
}

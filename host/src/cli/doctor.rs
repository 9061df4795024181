//! `opr doctor`: whether this machine can run functions, and how to fix what cannot.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use serde::Serialize;

use super::{Session, client::Client, output::table};
use crate::{
    config::{Class, Config, Outbound, Root},
    executor::admission,
};

mod checks;
mod rootless;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Something works less well than it could.
    Warn,
    /// Functions do not run.
    Fail,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warn,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, detail, remedy)
        }
    }
}

pub(super) async fn run(session: &Session) -> anyhow::Result<ExitCode> {
    let config = &session.config;
    let is_up = Client::new(config).node().await.is_ok();
    let mut found = vec![
        checks::kernel(&rustix::system::uname().release().to_string_lossy()),
        checks::user_namespaces(read_number("/proc/sys/user/max_user_namespaces")),
        checks::overlay(&fs::read_to_string("/proc/filesystems").unwrap_or_default()),
        checks::cgroups(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
    ];
    let user = rootless::user(&config.run_dir);
    found.extend(user.iter().flat_map(rootless::look));
    found.extend(containerd(config));
    found.extend(runtimes(config));
    if config
        .class
        .values()
        .any(|class| class.outbound == Outbound::Nat)
    {
        found.extend(outbound(config, user.is_some()));
    }
    let is_bounded = |class: &Class| class.root == Root::Disk && class.disk_mib > 0;
    if user.is_none() && config.class.values().any(is_bounded) {
        found.push(checks::program(
            "e2fsprogs",
            "-V",
            find("mke2fs").as_deref(),
        ));
        found.push(checks::loop_devices(
            Path::new("/dev/loop-control").exists(),
        ));
    }
    found.extend(checks::budget(&config.admission, memory()));
    let lacking = admission::lacking(&config.admission);
    found.extend(checks::pressure(&config.admission, &lacking));
    found.push(checks::disk(&config.state_dir, free_mib(&config.state_dir)));
    found.push(checks::secret(&config.executor.secret));
    found.extend(ports(config, is_up));
    found.push(checks::node(is_up));
    found.push(images(config).await);
    session.output.result(&found, |found| render(found));
    let has_failed = found.iter().any(|check| check.status == Status::Fail);
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn render(found: &[Check]) -> String {
    let row = |check: &Check| {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        [check.name.to_owned(), mark.to_owned(), check.detail.clone()]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    let mut text = table(["CHECK", "", "FOUND"], &rows);
    for check in found {
        if let Some(remedy) = &check.remedy {
            text += &format!("{}: {remedy}\n", check.name);
        }
    }
    text
}

fn containerd(config: &Config) -> Vec<Check> {
    if let Some(socket) = &config.containerd.address {
        let answers = std::os::unix::net::UnixStream::connect(socket).is_ok();
        return vec![checks::foreign_containerd(socket, answers)];
    }
    let program = &config.containerd.program;
    let found = find(&program.to_string_lossy());
    vec![checks::program("containerd", "--version", found.as_deref())]
}

/// What the runtimes of all classes need.
fn runtimes(config: &Config) -> Vec<Check> {
    let names: BTreeSet<_> = config.class.values().map(|class| &*class.runtime).collect();
    let mut found = Vec::new();
    for name in names {
        let Some(shim) = checks::shim_of(name) else {
            found.push(checks::runtime(name, None));
            continue;
        };
        let beside = config.shim_dir().map(|folder| folder.join(&shim));
        let file = beside.filter(|file| file.is_file()).or_else(|| find(&shim));
        found.push(checks::runtime(name, file.as_deref()));
        if let Some(shim) = file.filter(|file| file.ends_with(checks::SHIM)) {
            found.push(checks::rest_of(&shim));
        }
        if name == "io.containerd.runc.v2" {
            found.push(checks::program(
                "runc",
                "--version",
                find("runc").as_deref(),
            ));
        }
    }
    found
}

fn outbound(config: &Config, is_rootless: bool) -> Vec<Check> {
    let folders = [PathBuf::from("/usr/lib/cni"), PathBuf::from("/opt/cni/bin")];
    let folders: Vec<_> = config
        .sandbox
        .cni_dir
        .iter()
        .cloned()
        .chain(folders)
        .collect();
    let folder = folders.into_iter().find(|folder| folder.is_dir());
    // An unprivileged node forwards in a network namespace of its own.
    let forwards = is_rootless.then_some(1);
    let forwards = forwards.or_else(|| read_number("/proc/sys/net/ipv4/ip_forward"));
    vec![
        checks::cni(folder.as_deref()),
        checks::program("iptables", "--version", find("iptables").as_deref()),
        checks::forwarding(forwards),
        checks::resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
    ]
}

fn ports(config: &Config, is_up: bool) -> Vec<Check> {
    [
        ("gateway port", config.gateway_listen),
        ("executor port", config.executor_listen),
    ]
    .map(|(name, address)| {
        let is_free = std::net::TcpListener::bind(address).is_ok();
        checks::port(name, address, is_free, is_up)
    })
    .into()
}

async fn images(config: &Config) -> Check {
    let names = &config.containerd;
    let socket = config.containerd_socket();
    let images = opr_images::Images::connect(&socket, &names.namespace, &names.snapshotter).await;
    let listed = match images {
        Ok(images) => images.list().await.ok(),
        Err(_) => None,
    };
    let listed = listed.map(|images| {
        let references = images.into_iter().map(|image| image.reference.to_string());
        references.collect::<Vec<_>>()
    });
    let catalog = crate::function::Catalog::load(None);
    let wanted = catalog.map(|catalog| {
        let images = catalog
            .list()
            .iter()
            .map(|runtime| runtime.image.to_string());
        images.collect::<Vec<_>>()
    });
    checks::images(listed.as_deref(), &wanted.unwrap_or_default())
}

/// Where a program is, of what would be executed.
fn find(name: &str) -> Option<PathBuf> {
    if Path::new(name).is_absolute() {
        return Path::new(name).is_file().then(|| name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The first line of what a program says of its version.
fn version(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

/// The machine's. Bytes.
fn memory() -> u64 {
    let about = rustix::system::sysinfo();
    about.totalram as u64 * u64::from(about.mem_unit)
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Free space of the file system that `path` is or will be on.
fn free_mib(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let about = rustix::fs::statvfs(existing).ok()?;
    Some((about.f_bavail * about.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn findings_are_a_table_and_what_to_do() {
        let found = [
            Check::ok("kernel", "6.1"),
            Check::fail("runc", "missing", "apt-get install runc"),
        ];
        expect![[r"
            CHECK         FOUND
            kernel  ok    6.1
            runc    FAIL  missing
            runc: apt-get install runc
        "]]
        .assert_eq(&render(&found));
    }

    #[test]
    fn looks_at_the_real_machine() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program").is_none());
        assert!(free_mib(Path::new("/no/such/folder")).is_some());
        assert!(read_number("/proc/sys/user/max_user_namespaces").is_some());
    }
}

//! Makes a container: its cgroup, its streams, its main process. What fails halfway is undone.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_shim::protos::events::task::{TaskCreate, TaskIO};
use containerd_shim::protos::{protobuf::MessageField, types::mount::Mount};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Container, Node, Record, TaskError, blocking, process::Process};
use crate::{
    cgroup::{Cgroup, CgroupConfig},
    launch::{CreateRequest, RootfsMount},
    reaper::{Child, Launch},
    stdio::{Owner, StdioConfig, Streams},
};

/// A spec is never larger: it is bounded before it is parsed.
const MAX_SPEC: u64 = 16 << 20;

/// A container to be made.
#[derive(Debug)]
pub struct Create {
    /// Its name.
    pub id: String,
    /// Its OCI bundle.
    pub bundle: PathBuf,
    /// As containerd tells them.
    pub rootfs: Vec<Mount>,
    /// What its main process reads and writes.
    pub stdio: StdioConfig,
    /// Keeps the session keyring.
    pub no_new_keyring: bool,
    /// The cgroup is systemd's.
    pub systemd_cgroup: bool,
    /// Who owns the pipes of its processes.
    pub io_ids: (u32, u32),
}

impl Container {
    pub(super) async fn create(node: Arc<Node>, create: Create) -> Result<Arc<Self>, TaskError> {
        crate::log::attach(&create.bundle);
        let spec = read_spec(&create.bundle)?;
        let cgroup = UndoCgroup::make(cgroup_config(&node, &create, &spec)).await?;
        let nature = Nature::of(&spec);
        let launch = node.reaper.launch();
        let main = Process::new("", create.stdio.clone());
        let (child, pidfd) = launch_main(&node, (&create, spec), &launch, (&main, &cgroup)).await?;
        drop(launch);
        cgroup.0.settle();
        let record = Record::of(main.pid(), create.systemd_cgroup);
        let written = record.and_then(|record| record.write(&create.bundle));
        written.map_err(|source| TaskError::Kernel {
            what: "note the process in the bundle",
            source,
        })?;
        tell(&node, &create, main.pid());
        let container = Arc::new(Self::new(node, create, main, (cgroup.keep(), nature)));
        container.watch_main(child, pidfd);
        container.watch_memory();
        Ok(container)
    }
}

async fn launch_main(
    node: &Node,
    (create, spec): (&Create, Spec),
    launch: &Launch,
    (main, cgroup): (&Process, &UndoCgroup),
) -> Result<(Child, Arc<std::os::fd::OwnedFd>), TaskError> {
    let owner = Owner {
        id: &create.id,
        namespace: &node.namespace,
        ids: create.io_ids,
    };
    let (stdio, streams) = Streams::open(&create.stdio, owner, launch).await?;
    let request = CreateRequest {
        id: create.id.clone(),
        bundle: create.bundle.clone(),
        spec,
        rootfs: create.rootfs.iter().map(rootfs_mount).collect(),
        stdio,
        cgroup: entry(&cgroup.0)?,
        no_new_keyring: create.no_new_keyring,
    };
    let created = node.launcher.create(request).await?;
    let child = launch.made(created.pid);
    let pidfd = main.made(created, streams).map_err(no_streams)?;
    Ok((child, pidfd))
}

pub(super) fn no_streams(source: io::Error) -> TaskError {
    TaskError::Kernel {
        what: "watch the streams",
        source,
    }
}

pub(super) fn entry(cgroup: &Cgroup) -> Result<crate::cgroup::Entry, TaskError> {
    cgroup.entry().map_err(|source| TaskError::Kernel {
        what: "enter the cgroup",
        source,
    })
}

/// Reads `config.json`.
pub(super) fn read_spec(bundle: &Path) -> Result<Spec, TaskError> {
    let path = bundle.join("config.json");
    let read = || {
        let mut text = Vec::new();
        fs::File::open(&path)?
            .take(MAX_SPEC)
            .read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().map_err(|source| TaskError::Bundle {
        path: path.clone(),
        source,
    })
}

fn cgroup_config(node: &Node, create: &Create, spec: &Spec) -> CgroupConfig {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
    CgroupConfig {
        path: path.map(|path| path.to_string_lossy().into_owned()),
        id: create.id.clone(),
        namespace: node.namespace.clone(),
        systemd: create.systemd_cgroup,
        resources: linux.and_then(|linux| linux.resources().clone()),
    }
}

/// What stays of the spec in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nature {
    /// It has a pid namespace of its own, which ends with its main process.
    pub(super) owns_pids: bool,
    /// Something is to be run after its end.
    pub(super) has_poststop: bool,
}

impl Nature {
    fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        let hooks = spec.hooks().as_ref();
        Self {
            owns_pids: namespaces.into_iter().flatten().any(|namespace| {
                namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none()
            }),
            has_poststop: hooks.is_some_and(|hooks| hooks.poststop().is_some()),
        }
    }
}

fn rootfs_mount(mount: &Mount) -> RootfsMount {
    RootfsMount {
        kind: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}

fn tell(node: &Node, create: &Create, pid: u32) {
    node.publisher.publish(TaskCreate {
        container_id: create.id.clone(),
        bundle: create.bundle.to_string_lossy().into_owned(),
        rootfs: create.rootfs.clone(),
        io: MessageField::some(TaskIO {
            stdin: create.stdio.stdin.clone(),
            stdout: create.stdio.stdout.clone(),
            stderr: create.stdio.stderr.clone(),
            terminal: create.stdio.terminal,
            ..TaskIO::default()
        }),
        pid,
        ..TaskCreate::default()
    });
}

/// A cgroup that is removed again unless it is kept.
struct UndoCgroup(Arc<Cgroup>, bool);

impl UndoCgroup {
    async fn make(config: CgroupConfig) -> Result<Self, TaskError> {
        let made = blocking(move || Cgroup::create(&config)).await?;
        let cgroup = made.map_err(|source| TaskError::Cgroup {
            what: "create",
            source,
        })?;
        Ok(Self(Arc::new(cgroup), false))
    }

    fn keep(mut self) -> Arc<Cgroup> {
        self.1 = true;
        self.0.clone()
    }
}

impl Drop for UndoCgroup {
    fn drop(&mut self) {
        if self.1 {
            return;
        }
        let cgroup = self.0.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(e) = cgroup.kill().and_then(|()| cgroup.delete()) {
                log::warn!("cannot undo a cgroup: {e}");
            }
        });
    }
}

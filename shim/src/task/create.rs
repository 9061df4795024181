//! Makes a container: its cgroup, its streams, its main process. What fails halfway is undone.

use std::{
    fs,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_shim::protos::events::task::{TaskCreate, TaskIO};
use containerd_shim::protos::{protobuf::MessageField, types::mount::Mount};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{Container, Node, Record, TaskError, blocking, process::Process};
use crate::{
    cgroup::{Begun, Cgroup, CgroupConfig, CgroupError, Entry},
    launch::{CreateRequest, Created, RootfsMount},
    reaper::Launch,
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
        let nature = Nature::of(&spec);
        let launch = node.reaper.launch();
        let main = Process::new("", create.stdio.clone());
        let (created, streams, mut cgroup) = make_main(&node, (&create, spec), &launch).await?;
        let child = launch.made(created.pid);
        drop(launch);
        cgroup.begun().cgroup().settle();
        let pidfd = main.made(created, streams).map_err(no_streams)?;
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

/// Makes the main process and its cgroup, each while the other is made.
async fn make_main(
    node: &Node,
    (create, spec): (&Create, Spec),
    launch: &Launch,
) -> Result<(Created, Streams, UndoCgroup), TaskError> {
    let owner = Owner {
        id: &create.id,
        namespace: &node.namespace,
        ids: create.io_ids,
    };
    let (stdio, streams) = Streams::open(&create.stdio, owner, launch).await?;
    let config = cgroup_config(node, create, &spec);
    let mut request = CreateRequest {
        id: create.id.clone(),
        bundle: create.bundle.clone(),
        spec,
        rootfs: create.rootfs.iter().map(rootfs_mount).collect(),
        stdio,
        birthplace: None,
        no_new_keyring: create.no_new_keyring,
    };
    let launcher = node.launcher.clone();
    let make = move || {
        let mut cgroup = UndoCgroup(Some(Cgroup::begin(&config).map_err(no_cgroup)?));
        request.birthplace = birthplace(cgroup.begun().cgroup())?;
        let created = launcher.create(request, || {
            let begun = cgroup.begun();
            begun.complete().map_err(no_cgroup)?;
            entry(begun.cgroup())
        })?;
        Ok::<_, TaskError>((created, cgroup))
    };
    let (created, cgroup) = blocking(make).await??;
    Ok((created, streams, cgroup))
}

fn no_cgroup(source: CgroupError) -> TaskError {
    TaskError::Cgroup {
        what: "create",
        source,
    }
}

pub(super) fn no_streams(source: io::Error) -> TaskError {
    TaskError::Kernel {
        what: "watch the streams",
        source,
    }
}

pub(super) fn entry(cgroup: &Cgroup) -> Result<Entry, TaskError> {
    cgroup.entry().map_err(not_entered)
}

pub(super) fn birthplace(cgroup: &Cgroup) -> Result<Option<OwnedFd>, TaskError> {
    cgroup.birthplace().map_err(not_entered)
}

fn not_entered(source: io::Error) -> TaskError {
    TaskError::Kernel {
        what: "enter the cgroup",
        source,
    }
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
struct UndoCgroup(Option<Begun>);

impl UndoCgroup {
    fn begun(&mut self) -> &mut Begun {
        self.0.as_mut().expect("it is there until it is kept")
    }

    fn keep(mut self) -> Arc<Cgroup> {
        let begun = self.0.take().expect("it is kept once");
        Arc::new(begun.keep())
    }
}

impl Drop for UndoCgroup {
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            tokio::task::spawn_blocking(move || {
                if let Err(e) = begun.undo() {
                    log::warn!("cannot undo a cgroup: {e}");
                }
            });
        }
    }
}

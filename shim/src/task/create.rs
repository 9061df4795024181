//! Makes a container: its cgroup and its main process by the bundle, then its root file system and its streams by the
//! request. What fails halfway is undone.

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
    launch::{self, CompleteRequest, CreateRequest, RootfsMount},
    reaper::Child,
    stdio::{Owner, StdioConfig, Streams},
};

/// A spec is never larger: it is bounded before it is parsed.
const MAX_SPEC: u64 = 16 << 20;
const SPEC: &str = "config.json";

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

/// A container as far as its bundle tells it: its cgroup, and its process, which waits for the rest.
#[derive(Debug)]
pub(super) struct Prepared {
    process: launch::Prepared,
    cgroup: UndoCgroup,
    child: Child,
    nature: Nature,
    origin: Origin,
}

/// What a prepared container was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    id: String,
    bundle: PathBuf,
    /// `config.json`.
    spec: Vec<u8>,
    systemd_cgroup: bool,
}

impl Origin {
    /// # Errors
    /// [`TaskError::Bundle`].
    pub(super) fn read(id: &str, bundle: &Path, systemd_cgroup: bool) -> Result<Self, TaskError> {
        Ok(Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            spec: read_spec_text(bundle)?,
            systemd_cgroup,
        })
    }
}

impl Prepared {
    /// Makes the main process and its cgroup, each while the other is made. Blocks.
    pub(super) fn make(node: &Node, origin: Origin) -> Result<Self, TaskError> {
        let spec = parse_spec(&origin.bundle, &origin.spec)?;
        let nature = Nature::of(&spec);
        let config = cgroup_config(node, &origin, &spec);
        let mut cgroup = UndoCgroup(Some(Cgroup::begin(&config).map_err(no_cgroup)?));
        let request = CreateRequest {
            id: origin.id.clone(),
            bundle: origin.bundle.clone(),
            spec,
            birthplace: birthplace(cgroup.begun().cgroup())?,
        };
        let launch = node.reaper.launch();
        let process = node.launcher.prepare(request, || {
            let begun = cgroup.begun();
            begun.complete().map_err(no_cgroup)?;
            entry(begun.cgroup())
        })?;
        let child = launch.made(process.pid());
        let record = Record::of(process.pid(), origin.systemd_cgroup);
        let written = record.and_then(|record| record.write(&origin.bundle));
        written.map_err(|source| TaskError::Kernel {
            what: "note the process in the bundle",
            source,
        })?;
        Ok(Self {
            process,
            cgroup,
            child,
            nature,
            origin,
        })
    }

    /// Ends the process and removes the cgroup. Blocks.
    pub(super) fn undo(self) {
        drop(self.process);
        self.cgroup.undo();
    }
}

impl Container {
    /// Makes a container, of what was prepared for it where that is of the same origin. What was prepared
    /// is still there after a failure that came before it was needed.
    pub(super) async fn create(
        node: Arc<Node>,
        create: Create,
        prepared: &mut Option<Prepared>,
    ) -> Result<Arc<Self>, TaskError> {
        crate::log::attach(&create.bundle);
        let origin = Origin::read(&create.id, &create.bundle, create.systemd_cgroup)?;
        let owner = Owner {
            id: &create.id,
            namespace: &node.namespace,
            ids: create.io_ids,
        };
        // Loggers and hooks are children too.
        let launch = node.reaper.launch();
        let (stdio, streams) = Streams::open(&create.stdio, owner, &launch).await?;
        let request = CompleteRequest {
            rootfs: create.rootfs.iter().map(rootfs_mount).collect(),
            stdio,
            no_new_keyring: create.no_new_keyring,
        };
        let maker = node.clone();
        let prepared = prepared.take();
        let make = move || {
            let prepared = match prepared {
                Some(prepared) if prepared.origin == origin => prepared,
                Some(other) => {
                    other.undo();
                    Prepared::make(&maker, origin)?
                }
                None => Prepared::make(&maker, origin)?,
            };
            let Prepared {
                process,
                mut cgroup,
                child,
                nature,
                ..
            } = prepared;
            let created = process.complete(request)?;
            cgroup.begun().cgroup().settle();
            Ok::<_, TaskError>((created, child, cgroup, nature))
        };
        let (mut created, child, cgroup, nature) = blocking(make).await??;
        drop(launch);
        let root = created.root.take();
        let main = Process::new("", create.stdio.clone());
        let pidfd = main.made(created, streams).map_err(no_streams)?;
        tell(&node, &create, main.pid());
        let kept = (cgroup.keep(), nature);
        let container = Arc::new(Self::new(node, create, main, root, kept));
        container.watch_main(child, pidfd);
        container.watch_memory();
        Ok(container)
    }
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
    parse_spec(bundle, &read_spec_text(bundle)?)
}

fn read_spec_text(bundle: &Path) -> Result<Vec<u8>, TaskError> {
    let path = bundle.join(SPEC);
    let read = || {
        let mut text = Vec::new();
        fs::File::open(&path)?
            .take(MAX_SPEC)
            .read_to_end(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| TaskError::Bundle {
        path: path.clone(),
        source,
    })
}

fn parse_spec(bundle: &Path, text: &[u8]) -> Result<Spec, TaskError> {
    serde_json::from_slice(text).map_err(|e| TaskError::Bundle {
        path: bundle.join(SPEC),
        source: e.into(),
    })
}

fn cgroup_config(node: &Node, origin: &Origin, spec: &Spec) -> CgroupConfig {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
    CgroupConfig {
        path: path.map(|path| path.to_string_lossy().into_owned()),
        id: origin.id.clone(),
        namespace: node.namespace.clone(),
        systemd: origin.systemd_cgroup,
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
#[derive(Debug)]
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

impl UndoCgroup {
    /// Blocks.
    fn undo(mut self) {
        if let Some(begun) = self.0.take() {
            undo(begun);
        }
    }
}

impl Drop for UndoCgroup {
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            tokio::task::spawn_blocking(|| undo(begun));
        }
    }
}

fn undo(begun: Begun) {
    if let Err(e) = begun.undo() {
        log::warn!("cannot undo a cgroup: {e}");
    }
}

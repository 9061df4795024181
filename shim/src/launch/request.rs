//! From a request to a plan with its descriptors.

use std::{
    collections::HashMap,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::libc;
use oci_spec::runtime::{Mount, Spec};

use super::{
    CompleteRequest, CreateRequest, ExecRequest, LaunchError, Launcher, ProcessStdio, hooks, step,
    tree,
};
use crate::{
    cgroup::Entry,
    plan::{
        self, Birth, Change, Completion, ContainerPlan, ExecPlan, HookPlan, IdMaps, Joined,
        MountOptions, NamespacePlan, Plan, ProcessPlan, Propagation, Rlimit, RootPlan, SpecError,
    },
    sys::{self, MountAttributes, attribute},
};

/// What the spawner needs to make a process, and the shim's end of its control channel.
pub(super) struct Bearing {
    pub(super) birth: Birth,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) control: UnixStream,
}

/// What the process needs then, and what the shim keeps.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) process: Surroundings,
}

/// What the shim does for a process while it is made.
#[derive(Debug)]
pub(super) struct Surroundings {
    id: String,
    pub(super) bundle: PathBuf,
    /// As the spec has it; empty for a further process.
    root: PathBuf,
    annotations: HashMap<String, String>,
    oci_version: String,
    pub(super) before_pivot: Vec<HookPlan>,
    pub(super) poststart: Vec<HookPlan>,
    pub(super) poststop: Vec<HookPlan>,
    pub(super) oom_score_adj: Option<i32>,
}

impl Surroundings {
    pub(super) fn new(id: &str, bundle: &Path, spec: &Spec) -> Result<Self, SpecError> {
        Ok(Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            root: PathBuf::new(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            oci_version: spec.version().clone(),
            before_pivot: Vec::new(),
            poststart: Vec::new(),
            poststop: Hooks(spec).plan("poststop")?,
            oom_score_adj: None,
        })
    }

    fn of(mut self, process: &ProcessPlan) -> Self {
        self.oom_score_adj = process.oom_score_adj;
        self
    }

    /// The container's state as hooks take it, OCI runtime spec 1.2.
    pub(super) fn state(&self, pid: u32, status: &str) -> String {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status,
        });
        if pid != 0 {
            state["pid"] = pid.into();
        }
        state["bundle"] = serde_json::json!(self.bundle);
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state.to_string()
    }
}

/// The descriptors that go with a plan, which names them by their places.
#[derive(Default)]
struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    fn keep(&mut self, descriptor: impl Into<OwnedFd>) -> usize {
        self.0.push(descriptor.into());
        self.0.len() - 1
    }

    fn streams(&mut self, stdio: ProcessStdio) -> Option<[usize; 3]> {
        match stdio {
            ProcessStdio::Streams(streams) => Some(streams.map(|stream| self.keep(stream))),
            ProcessStdio::Terminal => None,
        }
    }

    fn tasks(&mut self, tasks: Vec<OwnedFd>) -> Vec<usize> {
        tasks.into_iter().map(|tasks| self.keep(tasks)).collect()
    }

    fn bearing(
        mut self,
        namespaces: NamespacePlan,
        cgroup: Option<OwnedFd>,
        rlimits: Vec<Rlimit>,
    ) -> Result<Bearing, LaunchError> {
        let (control, its) = UnixStream::pair().map_err(step("make a socket"))?;
        let birth = Birth {
            control: self.keep(its),
            cgroup: cgroup.map(|folder| self.keep(folder)),
            namespaces,
            rlimits,
        };
        Ok(Bearing {
            birth,
            descriptors: self.0,
            control,
        })
    }
}

/// How the main process of a container is born.
pub(super) fn container_birth(request: &mut CreateRequest) -> Result<Bearing, LaunchError> {
    let rlimits = plan::rlimits(main_process(&request.spec)?, &request.spec)?;
    let mut kept = Descriptors::default();
    let namespaces = plan::namespaces(&request.spec, |namespace| kept.keep(namespace))?;
    kept.bearing(namespaces, request.birthplace.take(), rlimits)
}

/// How a further process of a container is born: in the namespaces of the main one.
pub(super) fn exec_birth(request: &mut ExecRequest) -> Result<Bearing, LaunchError> {
    let rlimits = plan::rlimits(&request.process, &request.spec)?;
    // Their descriptors are not needed: the main process is in them.
    let kind = plan::namespaces(&request.spec, |_| 0)?.all();
    let mut kept = Descriptors::default();
    let init = request
        .init
        .try_clone()
        .map_err(step("copy a descriptor"))?;
    let joined = vec![Joined {
        kind,
        descriptor: kept.keep(init),
    }];
    let namespaces = NamespacePlan {
        joined,
        ..NamespacePlan::default()
    };
    kept.bearing(namespaces, request.birthplace.take(), rlimits)
}

fn main_process(spec: &Spec) -> Result<&oci_spec::runtime::Process, SpecError> {
    let process = spec.process().as_ref();
    process.ok_or_else(|| SpecError::new("process", "is missing"))
}

/// The plan of a new container, as far as its bundle tells it.
pub(super) fn container(
    request: CreateRequest,
    cgroup: Entry,
    bearing: &Bearing,
    launcher: &Launcher,
) -> Result<Planned, LaunchError> {
    let CreateRequest {
        id, bundle, spec, ..
    } = request;
    let process = plan::process(main_process(&spec)?, &spec)?;
    let namespaces = &bearing.birth.namespaces;
    let mut kept = Descriptors::default();
    let (root_path, root) = root(&spec)?;
    let binds = Binds {
        bundle: &bundle,
        bearing,
        launcher,
    };
    let mounts = binds.all(&spec, &cgroup, &mut kept)?;
    let mut around = Surroundings::new(&id, &bundle, &spec)?.of(&process);
    around.root = root_path;
    let of = |kind| Hooks(&spec).plan(kind);
    around.before_pivot = [of("prestart")?, of("createRuntime")?].concat();
    around.poststart = of("poststart")?;
    let (create_hooks, start_hooks) = (of("createContainer")?, of("startContainer")?);
    let linux = spec.linux().as_ref();
    let plan = ContainerPlan {
        sysctls: plan::sysctls(&spec, namespaces)?,
        root,
        mounts,
        devices: plan::is_dev_made(&spec)
            .then(|| plan::devices(&spec))
            .transpose()?,
        masked: paths(linux.and_then(|linux| linux.masked_paths().as_ref())),
        read_only: paths(linux.and_then(|linux| linux.readonly_paths().as_ref())),
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
        has_hooks: !around.before_pivot.is_empty() || !create_hooks.is_empty(),
        create_hooks,
        start_hooks,
        process,
        tasks: kept.tasks(cgroup.tasks),
    };
    Ok(Planned {
        plan: Plan::Container(Box::new(plan)),
        descriptors: kept.0,
        process: around,
    })
}

fn paths(paths: Option<&Vec<String>>) -> Vec<PathBuf> {
    let all = paths.into_iter().flatten();
    all.map(|path| plan::clean(path.as_ref())).collect()
}

/// The rest of a container's plan, with its descriptors, of which the first is the root file system.
pub(super) fn completion(
    request: CompleteRequest,
    process: &Surroundings,
) -> Result<(Completion, Vec<OwnedFd>), LaunchError> {
    let CompleteRequest {
        rootfs,
        stdio,
        no_new_keyring,
    } = request;
    let mut kept = Descriptors::default();
    let completion = Completion {
        root: kept.keep(tree::root(&rootfs, &process.bundle, &process.root)?),
        streams: kept.streams(stdio),
        keyring: (!no_new_keyring)
            .then(|| keyring(&process.id))
            .transpose()?,
    };
    Ok((completion, kept.0))
}

/// The plan of a further process of a container.
pub(super) fn exec(request: ExecRequest) -> Result<Planned, LaunchError> {
    let ExecRequest {
        id,
        bundle,
        spec,
        process,
        stdio,
        cgroup,
        ..
    } = request;
    let process = plan::process(&process, &spec)?;
    let mut kept = Descriptors::default();
    let mut around = Surroundings::new(&id, &bundle, &spec)?.of(&process);
    around.poststop.clear();
    Ok(Planned {
        plan: Plan::Exec(Box::new(ExecPlan {
            process,
            streams: kept.streams(stdio),
            tasks: kept.tasks(cgroup.tasks),
        })),
        descriptors: kept.0,
        process: around,
    })
}

fn keyring(id: &str) -> Result<std::ffi::CString, SpecError> {
    plan::c_string("id", &format!("_ses.{id}"))
}

/// Where the root file system is, and what it becomes.
fn root(spec: &Spec) -> Result<(PathBuf, RootPlan), SpecError> {
    let root = spec.root().as_ref();
    let root = root.ok_or_else(|| SpecError::new("root", "is missing"))?;
    let linux = spec.linux().as_ref();
    let propagation = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
    let propagation = match propagation.filter(|name| !name.is_empty()) {
        None => None,
        Some(name) => {
            let options = plan::mount_options(&[name.to_owned()])?;
            let known = options.propagation.first().copied();
            let wrong =
                || SpecError::new("linux.rootfsPropagation", format!("{name:?} is unknown"));
            Some(known.ok_or_else(wrong)?)
        }
    };
    let plan = RootPlan {
        is_read_only: root.readonly().unwrap_or(false),
        propagation: propagation.filter(|Propagation { kind, .. }| *kind != libc::MS_PRIVATE),
    };
    Ok((root.path().clone(), plan))
}

/// The container's own cgroup in one hierarchy, for a container that sees those of the host.
fn cgroup_tree(path: &Path, attributes: MountAttributes) -> Result<OwnedFd, LaunchError> {
    let make = || {
        let tree = tree::copy(path, false)?;
        sys::mount_setattr(tree.as_fd(), attributes, false, None)?;
        Ok(tree)
    };
    make().map_err(step(format!("bind {}", path.display())))
}

/// Makes what is bound into a container.
struct Binds<'a> {
    bundle: &'a Path,
    bearing: &'a Bearing,
    launcher: &'a Launcher,
}

impl Binds<'_> {
    /// The mounts of a container, with what is bound into it.
    fn all(
        &self,
        spec: &Spec,
        cgroup: &Entry,
        kept: &mut Descriptors,
    ) -> Result<Vec<plan::MountPlan>, LaunchError> {
        let has_namespace = self.bearing.birth.namespaces.has(libc::CLONE_NEWCGROUP);
        let kept = std::cell::RefCell::new(kept);
        plan::mounts(
            spec,
            |mount, options| {
                let (bind, is_folder) = self.make(mount, options)?;
                Ok((kept.borrow_mut().keep(bind), is_folder))
            },
            |attributes| {
                let shown = cgroup.folders.iter().map(|(controllers, path)| {
                    let tree = (!has_namespace).then(|| cgroup_tree(path, attributes));
                    Ok(plan::Hierarchy {
                        controllers: controllers.clone(),
                        tree: tree.transpose()?.map(|tree| kept.borrow_mut().keep(tree)),
                    })
                });
                shown.collect()
            },
        )
    }

    fn make(&self, mount: &Mount, options: &MountOptions) -> Result<(OwnedFd, bool), LaunchError> {
        let target = mount.destination().display();
        let source = mount
            .source()
            .as_deref()
            .filter(|source| *source != Path::new(""));
        let source = source.ok_or_else(|| {
            SpecError::new("mounts", format!("{target}: a bind mount without a source"))
        })?;
        let failed = || step(format!("bind {} at {target}", source.display()));
        let is_recursive = options.bind.unwrap_or(true);
        let bind = tree::copy(&self.bundle.join(source), is_recursive).map_err(failed())?;
        let change = Change {
            attributes: options.of_bind(),
            recursive: options.recursive,
            propagation: options.propagation.clone(),
        };
        tree::change(bind.as_fd(), &change).map_err(failed())?;
        if let Some(userns) = self.ids(mount, options)? {
            let mapped = MountAttributes {
                set: attribute::IDMAP,
                ..MountAttributes::default()
            };
            let is_recursive = options.id_map == Some(true);
            sys::mount_setattr(bind.as_fd(), mapped, is_recursive, Some(userns.as_fd()))
                .map_err(failed())?;
        }
        let is_folder = tree::is_folder(bind.as_fd()).map_err(failed())?;
        Ok((bind, is_folder))
    }

    /// The user namespace whose ids a mount is to show: of its own mappings, or of the container.
    fn ids(&self, mount: &Mount, options: &MountOptions) -> Result<Option<OwnedFd>, LaunchError> {
        let own = |mappings: &Option<Vec<_>>| mappings.clone().unwrap_or_default();
        let (uids, gids) = (own(mount.uid_mappings()), own(mount.gid_mappings()));
        if !uids.is_empty() && !gids.is_empty() {
            return self
                .launcher
                .user_namespace(IdMaps::new(&uids, &gids)?)
                .map(Some);
        }
        if options.id_map.is_none() && uids.is_empty() && gids.is_empty() {
            return Ok(None);
        }
        if let Some(maps) = &self.bearing.birth.namespaces.id_maps {
            return self.launcher.user_namespace(maps.clone()).map(Some);
        }
        let joined = &self.bearing.birth.namespaces.joined;
        match joined
            .iter()
            .find(|joined| joined.kind == libc::CLONE_NEWUSER)
        {
            Some(joined) => {
                let namespace = self.bearing.descriptors[joined.descriptor].try_clone();
                Ok(Some(namespace.map_err(step("copy a descriptor"))?))
            }
            None => {
                let reason = "an id-mapped mount needs uidMappings and gidMappings";
                Err(SpecError::new("mounts", reason).into())
            }
        }
    }
}

struct Hooks<'a>(&'a Spec);

impl Hooks<'_> {
    fn plan(&self, kind: &str) -> Result<Vec<HookPlan>, SpecError> {
        let Some(all) = self.0.hooks().as_ref() else {
            return Ok(Vec::new());
        };
        let own = match kind {
            "prestart" => all.prestart(),
            "createRuntime" => all.create_runtime(),
            "createContainer" => all.create_container(),
            "startContainer" => all.start_container(),
            "poststart" => all.poststart(),
            _ => all.poststop(),
        };
        hooks::plan(kind, own.as_ref())
    }
}

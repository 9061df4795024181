//! The cgroup of a container: made, limited, watched, frozen, removed. Version 2, version 1 and hybrid.
//!
//! Where each hierarchy is mounted is read once; a container then costs a folder in each and a write for each
//! limit that its spec has. A controller is used where it is: on version 1 if it has a hierarchy there, else on
//! version 2. What the spec asks for and this machine cannot do is an error that names the field.
//!
//! ```text
//! begin ──▶ complete, while a process is born into it ──▶ entry ──▶ settle
//!       ──▶ update, freeze, kill, pids, stats, oom ──▶ delete
//! ```

mod control;
mod create;
mod device;
mod error;
mod folder;
mod hierarchy;
mod limits;
mod oom;
mod place;
mod stats;
mod sys;
mod systemd;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use containerd_shim::protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::LinuxResources;

use create::Made;
use hierarchy::{Hierarchies, Hierarchy};
use limits::Version;

pub use error::CgroupError;
pub use oom::OomWatch;

/// How long a cgroup whose processes were killed may stay busy.
const REMOVE_WITHIN: Duration = Duration::from_secs(2);

/// How a process enters the cgroup in version 1's hierarchies; it is born into that of version 2.
#[derive(Debug, Default)]
pub struct Entry {
    /// The `tasks` files of version 1's hierarchies: the child writes `0` into each before it has a second
    /// thread. That takes none of the kernel's locks on whole thread groups, which cost milliseconds.
    pub tasks: Vec<OwnedFd>,
    /// The cgroup's folder in each of version 1's hierarchies, by the hierarchy's controllers, as in `cpu,cpuacct`.
    pub folders: Vec<(String, PathBuf)>,
}

/// What a container's cgroup is to be.
#[derive(Debug, Clone, Default)]
pub struct CgroupConfig {
    /// `linux.cgroupsPath`.
    pub path: Option<String>,
    /// The container's name.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Whether systemd makes it, as a scope: the path is `slice:prefix:name` then.
    pub systemd: bool,
    /// `linux.resources`.
    pub resources: Option<LinuxResources>,
}

/// The cgroup of one container.
#[derive(Debug)]
pub struct Cgroup {
    v1: Vec<Branch>,
    unified: Option<PathBuf>,
    scope: Option<systemd::Scope>,
    /// Freezing, thawing and killing take turns.
    turn: Mutex<()>,
}

/// A cgroup that is being made. What was made is gone again where it is dropped; a process in it must have ended.
#[derive(Debug)]
pub struct Begun {
    cgroup: Cgroup,
    made: Made,
    rest: create::Rest,
    is_complete: bool,
}

impl Begun {
    /// The cgroup, as far as it is made.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes the folders of version 1 and sets the limits.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn complete(&mut self) -> Result<(), CgroupError> {
        self.rest.make(&mut self.cgroup, &mut self.made)?;
        self.is_complete = true;
        Ok(())
    }

    /// The cgroup, complete.
    #[must_use]
    pub fn keep(mut self) -> Cgroup {
        self.made.keep();
        self.cgroup
    }

    /// Kills what is in it, and removes it. One that is not complete may have been found in use: nothing but what
    /// was made goes then.
    ///
    /// # Errors
    /// See [`Cgroup::kill`] and [`Cgroup::delete`].
    pub fn undo(self) -> Result<(), CgroupError> {
        if self.is_complete {
            self.cgroup.kill()?;
            return self.cgroup.delete();
        }
        self.cgroup.stop_scope();
        Ok(())
    }
}

/// A folder in one of version 1's hierarchies.
#[derive(Debug)]
struct Branch {
    hierarchy: &'static Hierarchy,
    path: PathBuf,
}

impl Cgroup {
    /// Makes what a process is born into.
    ///
    /// # Errors
    /// See [`CgroupError`]; a cgroup that has processes is [`CgroupError::Busy`].
    pub fn begin(config: &CgroupConfig) -> Result<Begun, CgroupError> {
        create::begin(config)
    }

    /// The cgroup that a container of this process or of an earlier one may have left.
    ///
    /// # Errors
    /// [`CgroupError::Path`], and [`CgroupError::Read`] where the machine has no cgroups.
    pub fn open(config: &CgroupConfig) -> Result<Self, CgroupError> {
        let place = place::Place::of(config)?;
        let mut cgroup = Self::at(hierarchy::get()?, &place);
        cgroup.scope = systemd::Scope::of(&place);
        Ok(cgroup)
    }

    fn at(hierarchies: &'static Hierarchies, place: &place::Place) -> Self {
        let branch = |hierarchy| Branch {
            path: place.within(hierarchy),
            hierarchy,
        };
        let is_hybrid = !hierarchies.v1.is_empty();
        let unified = hierarchies.unified.as_ref().map(|unified| match is_hybrid {
            true => place.within(unified),
            false => place.within_unified(unified),
        });
        Self {
            v1: hierarchies.v1.iter().map(branch).collect(),
            unified,
            scope: None,
            turn: Mutex::new(()),
        }
    }

    /// The folder of version 2, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// `ENOENT` where the cgroup is gone; `EMFILE`.
    pub fn birthplace(&self) -> io::Result<Option<OwnedFd>> {
        self.unified.as_deref().map(folder::open).transpose()
    }

    /// How a process gets in. Each call opens descriptors of its own.
    ///
    /// # Errors
    /// `ENOENT` where the cgroup is gone; `EMFILE`.
    pub fn entry(&self) -> io::Result<Entry> {
        let tasks = self
            .v1
            .iter()
            .map(|branch| folder::open_to_write(&branch.path, "tasks"));
        let folder = |branch: &Branch| {
            let controllers = branch.hierarchy.controllers.join(",");
            (controllers, branch.path.clone())
        };
        Ok(Entry {
            folders: self.v1.iter().map(folder).collect(),
            tasks: tasks.collect::<io::Result<_>>()?,
        })
    }

    /// Says that the container's first process is in. Until then a scope of systemd has a process of this one's,
    /// since it would end when empty; elsewhere this does nothing.
    pub fn settle(&self) {
        if let Some(scope) = &self.scope {
            scope.settle();
        }
    }

    /// Its own error would hide the failure that ends it.
    fn stop_scope(&self) {
        if let Some(scope) = &self.scope {
            let _ = scope.stop();
        }
    }

    /// Sets limits anew. What is not given stays as it is; device rules too, where there are none.
    ///
    /// # Errors
    /// See [`CgroupError`]. What comes before a value that the kernel refuses has been set.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        create::check_devices(resources)?;
        create::limit(self, resources)?;
        match resources.devices() {
            Some(rules) if !rules.is_empty() => create::rule_devices(self, rules),
            Some(_) | None => Ok(()),
        }
    }

    /// Stops all processes, and waits until they stand still.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] where some do not; all run on then.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        control::freeze(self)
    }

    /// Lets all processes run on.
    ///
    /// # Errors
    /// [`CgroupError::Write`]; [`CgroupError::Timeout`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        control::thaw(self)
    }

    /// Kills all processes, those of cgroups below and frozen ones too. They may take a moment to end.
    ///
    /// # Errors
    /// [`CgroupError::Write`]; [`CgroupError::Read`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        control::kill(self)
    }

    /// The processes, those of cgroups below too, by their numbers.
    ///
    /// # Errors
    /// [`CgroupError::Read`]. A cgroup that is gone has none.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut found = BTreeSet::new();
        if let Some(path) = self.main() {
            folder::pids(path, &mut found)?;
        }
        if let Some(idle) = self.scope.as_ref().and_then(systemd::Scope::idle_pid) {
            found.remove(&idle);
        }
        Ok(found.into_iter().collect())
    }

    /// What the container uses, as containerd's `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`.
    ///
    /// # Errors
    /// [`CgroupError::Read`], also where a file says what is not understood.
    pub fn stats(&self) -> Result<Any, CgroupError> {
        stats::collect(self)
    }

    /// Watches for processes that are killed for want of memory. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] without memory controller; [`CgroupError::Read`] where the cgroup is gone.
    pub fn oom(&self) -> Result<OomWatch, CgroupError> {
        OomWatch::new(self)
    }

    /// Removes the cgroup with all below; waits a while for processes that are ending. One that is gone is fine.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] with all that could not be removed.
    pub fn delete(&self) -> Result<(), CgroupError> {
        let mut failures = Vec::new();
        if let Some(scope) = &self.scope
            && let Err(error) = scope.stop()
        {
            failures.push((scope.unit().into(), io::Error::other(error)));
        }
        let deadline = Instant::now() + REMOVE_WITHIN;
        let branches = self.v1.iter().map(|branch| &branch.path);
        for path in branches.chain(&self.unified) {
            if let Err(error) = folder::remove(path, deadline) {
                failures.push((path.clone(), error));
            }
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(CgroupError::Remove { failures }),
        }
    }

    /// Which version has a controller; version 1 comes first. The names are version 1's.
    fn version(&self, controller: &str) -> Option<Version> {
        if self
            .v1
            .iter()
            .any(|branch| branch.hierarchy.has(controller))
        {
            return Some(Version::V1);
        }
        let name = match controller {
            "blkio" => "io",
            name => name,
        };
        let unified = hierarchy::get().ok()?.unified.as_ref()?;
        let has = self.unified.is_some() && (name == "cgroup" || unified.has(name));
        has.then_some(Version::V2)
    }

    /// The folder that has a controller.
    fn folder(&self, controller: &str) -> Option<&Path> {
        let branch = self
            .v1
            .iter()
            .find(|branch| branch.hierarchy.has(controller));
        match branch {
            Some(branch) => Some(&branch.path),
            None => self.unified.as_deref(),
        }
    }

    /// The folder that tells the processes: that of version 2, or on a hybrid machine, where containers with
    /// cgroups of their own use version 1, that of the freezer or else of any.
    fn main(&self) -> Option<&Path> {
        let first = self.v1.first().map(|branch| &*branch.path);
        match self.version("freezer") {
            Some(Version::V1) => self.folder("freezer"),
            Some(Version::V2) | None => first.or(self.unified.as_deref()),
        }
    }
}

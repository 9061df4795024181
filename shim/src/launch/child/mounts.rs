//! The mounts of a container, and what of them is hidden or made read-only.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, fstat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use super::{
    Held, copy_up,
    root::{PROCFS, Root},
};
use crate::{
    launch::{
        failure::{Failure, Step},
        tree,
    },
    plan::{Change, FileSystem, Hierarchy, MountPlan, MountSource},
    sys::{self, MountAttributes, attribute},
};

const DEV: &str = "/dev";

/// Makes the new file systems, a place for each mount: they need no root file system. Their mounts are made later, so
/// that the root is the first that the container sees.
pub(super) fn make(plans: &[MountPlan]) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let made = plans.iter().map(|plan| match &plan.source {
        MountSource::New(system) => Some(
            new(system).step_with(|| format!("mount {} at {}", system.kind, plan.target.display())),
        )
        .transpose(),
        _ => Ok(None),
    });
    made.collect()
}

/// Makes one mount, of what was made for it.
pub(super) fn mount(
    root: &Root,
    plan: &MountPlan,
    made: Option<OwnedFd>,
    held: &Held,
) -> Result<(), Failure> {
    let target = &plan.target;
    let named = |what: &str| format!("{what} at {}", target.display());
    match &plan.source {
        MountSource::Tree {
            descriptor,
            is_folder,
        } => {
            let at = if *is_folder {
                root.make_folder(target)?
            } else {
                root.make_file(target)?
            };
            refuse_procfs(at.as_fd(), target)?;
            tree::attach(held.get(*descriptor), at.as_fd()).step_with(|| named("mount a bind"))
        }
        MountSource::New(system) => {
            let at = root.make_folder(target)?;
            if matches!(&*system.kind, "proc" | "sysfs") {
                root.open_plain(target)
                    .step_with(|| named(&format!("mount {} on a link", system.kind)))?;
            } else {
                refuse_procfs(at.as_fd(), target)?;
            }
            let made = made.expect("a new file system is made for each mount of one");
            let is_dev = target == Path::new(DEV);
            place(system, made.as_fd(), at.as_fd(), is_dev)
                .step_with(|| named(&format!("mount {}", system.kind)))
        }
        MountSource::Hierarchies {
            attributes,
            folders,
            links,
        } => hierarchies(root, target, (*attributes, folders, links), held),
        MountSource::Remount(change) => {
            let at = root.open(target).step_with(|| named("remount what is"))?;
            remount(at.as_fd(), change).step_with(|| named("remount what is"))
        }
    }
}

/// Makes `/dev` read-only where its mount asks for it.
pub(super) fn close_dev(root: &Root, plans: &[MountPlan]) -> Result<(), Failure> {
    let own = plans
        .iter()
        .rev()
        .find(|plan| plan.target == Path::new(DEV));
    let Some(MountSource::New(system)) = own.map(|plan| &plan.source) else {
        return Ok(());
    };
    if system.change.attributes.set & attribute::RDONLY == 0 {
        return Ok(());
    }
    let read_only = MountAttributes {
        set: attribute::RDONLY,
        ..MountAttributes::default()
    };
    let at = root.open(DEV.as_ref()).step("open /dev")?;
    sys::mount_setattr(at.as_fd(), read_only, false, None).step("make /dev read-only")
}

/// A link may lead to where a mount would hide what the kernel says. The few files that may be replaced are
/// told by their path.
fn refuse_procfs(at: BorrowedFd, target: &Path) -> Result<(), Failure> {
    let found = rustix::fs::fstatfs(at).step_with(|| format!("look at {}", target.display()))?;
    if found.f_type != PROCFS || target.starts_with("/proc") {
        return Ok(());
    }
    let error = io::Error::other("it leads into a procfs");
    Err(Failure::new(
        format!("mount at {}", target.display()),
        error,
    ))
}

fn remount(at: BorrowedFd, change: &Change) -> io::Result<()> {
    let mut all = change.attributes;
    all.clear |=
        (attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC) & !all.set;
    let change = Change {
        attributes: all,
        recursive: change.recursive,
        propagation: change.propagation.clone(),
    };
    tree::change(at, &change)
}

const TMPFS: &str = "tmpfs";

fn new(system: &FileSystem) -> io::Result<OwnedFd> {
    let (kind, source, data) = (&system.kind, &system.source, &system.data);
    tree::make_file_system(kind, source, data, first_attributes(system))
}

/// A tmpfs is filled before it is made read-only.
fn first_attributes(system: &FileSystem) -> MountAttributes {
    let mut attributes = system.change.attributes;
    if system.kind == TMPFS {
        attributes.set &= !attribute::RDONLY;
    }
    attributes
}

/// `/dev` is made read-only last of all: devices come into it first.
fn place(system: &FileSystem, made: BorrowedFd, at: BorrowedFd, is_dev: bool) -> io::Result<()> {
    let mount = tree::mount_file_system(made, first_attributes(system))?;
    if system.copies_up {
        copy_up::copy(at, mount.as_fd())?;
    }
    tree::attach(mount.as_fd(), at)?;
    let change = &system.change;
    let mut later = MountAttributes::default();
    if system.kind == TMPFS && !is_dev {
        later.set = change.attributes.set & attribute::RDONLY;
    }
    let later = Change {
        attributes: later,
        recursive: change.recursive,
        propagation: change.propagation.clone(),
    };
    tree::change(mount.as_fd(), &later)
}

/// `/sys/fs/cgroup` of version 1: a folder for each hierarchy, and links by the names of controllers.
fn hierarchies(
    root: &Root,
    target: &Path,
    (attributes, folders, links): (MountAttributes, &[Hierarchy], &[(String, String)]),
    held: &Held,
) -> Result<(), Failure> {
    let named = |what: &str| format!("mount {what} at {}", target.display());
    let at = root.make_folder(target)?;
    let open = MountAttributes {
        set: attributes.set & !attribute::RDONLY,
        ..attributes
    };
    let top = tree::new_file_system("tmpfs", "tmpfs", &["mode=755".into()], open)
        .step_with(|| named("tmpfs"))?;
    tree::attach(top.as_fd(), at.as_fd()).step_with(|| named("tmpfs"))?;
    for hierarchy in folders {
        let controllers = &hierarchy.controllers;
        let is_named = controllers.starts_with("name=");
        let source = if is_named {
            hierarchy.folder()
        } else {
            "cgroup"
        };
        let at = root.make_folder(&target.join(hierarchy.folder()))?;
        let attached = match hierarchy.tree {
            Some(tree) => tree::attach(held.get(tree), at.as_fd()),
            None => tree::new_file_system(
                "cgroup",
                source,
                std::slice::from_ref(controllers),
                attributes,
            )
            .and_then(|made| tree::attach(made.as_fd(), at.as_fd())),
        };
        attached.step_with(|| named(controllers))?;
    }
    for (name, folder) in links {
        rustix::fs::symlinkat(&**folder, &top, &**name).step_with(|| named("links"))?;
    }
    Ok(())
}

/// Makes paths read-only, and hides others: files behind the host's `/dev/null`, folders behind an empty one.
/// What is not there needs neither.
pub(super) fn protect(
    root: &Root,
    read_only: &[PathBuf],
    masked: &[PathBuf],
) -> Result<(), Failure> {
    for path in read_only {
        let named = || format!("make {} read-only", path.display());
        if let Some(at) = root.find(path).step_with(named)? {
            write_protect(at.as_fd()).step_with(named)?;
        }
    }
    let mut empty: Option<OwnedFd> = None;
    for path in masked {
        let named = || format!("hide {}", path.display());
        let Some(at) = root.find(path).step_with(named)? else {
            continue;
        };
        let stat = fstat(&at).step_with(named)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            let folder = hide_folder(at.as_fd(), empty.as_ref()).step_with(named)?;
            empty.get_or_insert(folder);
        } else {
            let null = super::devices::bind_of("/dev/null".as_ref(), (1, 3)).step_with(named)?;
            tree::attach(null.as_fd(), at.as_fd()).step_with(named)?;
        }
    }
    Ok(())
}

impl Root {
    fn find(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.open(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            found => Ok(Some(found?)),
        }
    }
}

fn write_protect(at: BorrowedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(at, "", flags)?;
    let read_only = MountAttributes {
        set: attribute::RDONLY,
        ..MountAttributes::default()
    };
    sys::mount_setattr(copy.as_fd(), read_only, true, None)?;
    tree::attach(copy.as_fd(), at)
}

/// Hides a folder behind an empty one; all hidden folders share one file system.
fn hide_folder(at: BorrowedFd, shared: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let empty = match shared {
        Some(mounted) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            open_tree(mounted, "", flags)?
        }
        None => {
            let attributes = MountAttributes {
                set: attribute::RDONLY,
                ..MountAttributes::default()
            };
            tree::new_file_system("tmpfs", "tmpfs", &[], attributes)?
        }
    };
    tree::attach(empty.as_fd(), at)?;
    Ok(empty)
}

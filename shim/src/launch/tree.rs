//! Detached mount trees, made with the host's rights before the container's process exists: the root file
//! system, and what is bound into it. No host mount table ever shows them, so that nothing can leak.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
        open_tree, unmount,
    },
};

use super::{LaunchError, RootfsMount, step};
use crate::{
    plan::{Change, Propagation, SpecError, mount_options},
    sys::{self, MountAttributes, attribute},
};

/// A string longer than this is not taken by fsconfig(2). Bytes.
const MAX_VALUE: usize = 255;

/// A copy of what is mounted at `path`: with all that is mounted below where `is_recursive`.
pub(crate) fn copy(path: &Path, is_recursive: bool) -> io::Result<OwnedFd> {
    let recursive = if is_recursive {
        OpenTreeFlags::AT_RECURSIVE
    } else {
        OpenTreeFlags::empty()
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
    Ok(open_tree(CWD, path, flags)?)
}

/// Changes a mount that is detached, or one in the caller's namespace.
pub(super) fn change(mount: BorrowedFd, change: &Change) -> io::Result<()> {
    for (attributes, is_recursive) in [(change.attributes, false), (change.recursive, true)] {
        if !attributes.is_empty() {
            set(mount, attributes, is_recursive)?;
        }
    }
    for &Propagation { kind, is_recursive } in &change.propagation {
        let attributes = MountAttributes {
            propagation: kind,
            ..MountAttributes::default()
        };
        sys::mount_setattr(mount, attributes, is_recursive, None)?;
    }
    Ok(())
}

/// In a user namespace the host's flags are locked: they stay, and what was asked for is added.
fn set(mount: BorrowedFd, attributes: MountAttributes, is_recursive: bool) -> io::Result<()> {
    match sys::mount_setattr(mount, attributes, is_recursive, None) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) && attributes.clear != 0 => {
            let clear = if attributes.set & attribute::ATIME != 0 {
                attribute::ATIME
            } else {
                0
            };
            sys::mount_setattr(
                mount,
                MountAttributes {
                    clear,
                    ..attributes
                },
                is_recursive,
                None,
            )
        }
        outcome => outcome,
    }
}

/// A new file system with its own `data`, mounted nowhere yet. What the kernel says about a failure is told.
pub(crate) fn new_file_system(
    kind: &str,
    source: &str,
    data: &[String],
    attributes: MountAttributes,
) -> io::Result<OwnedFd> {
    let context = make_file_system(kind, source, data, attributes)?;
    mount_file_system(context.as_fd(), attributes)
}

/// The same up to its mount, for which [`mount_file_system`] takes the answer.
pub(super) fn make_file_system(
    kind: &str,
    source: &str,
    data: &[String],
    attributes: MountAttributes,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = configure(context.as_fd(), source, data, attributes);
    configured.map_err(|error| explain(context.as_fd(), error))?;
    Ok(context)
}

/// Makes the detached mount of a file system.
pub(super) fn mount_file_system(
    context: BorrowedFd,
    attributes: MountAttributes,
) -> io::Result<OwnedFd> {
    let flags = MountAttrFlags::from_bits_retain(
        u32::try_from(attributes.set).map_err(|_| io::ErrorKind::InvalidInput)?,
    );
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(|error| explain(context, error))
}

fn configure(
    context: BorrowedFd,
    source: &str,
    data: &[String],
    attributes: MountAttributes,
) -> rustix::io::Result<()> {
    if !source.is_empty() {
        fsconfig_set_string(context, "source", source)?;
    }
    if attributes.set & attribute::RDONLY != 0 {
        fsconfig_set_flag(context, "ro")?;
    }
    for option in data.iter().flat_map(|option| option.split(',')) {
        match option.split_once('=') {
            Some(("lowerdir", layers)) if layers.len() > MAX_VALUE => {
                for layer in layers.split(':') {
                    fsconfig_set_string(context, "lowerdir+", layer)?;
                }
            }
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None if option.is_empty() => {}
            None => fsconfig_set_flag(context, option)?,
        }
    }
    fsconfig_create(context)
}

/// The kernel's own words, where it has left some.
fn explain(context: BorrowedFd, error: rustix::io::Errno) -> io::Error {
    let mut words = vec![0; 512];
    match rustix::io::read(context, &mut words) {
        Ok(n) if n > 2 => {
            let text = String::from_utf8_lossy(&words[2..n]).trim().to_owned();
            let kind = io::Error::from(error);
            io::Error::new(kind.kind(), format!("{kind}: {text}"))
        }
        _ => error.into(),
    }
}

/// The root file system of a container, from what containerd says of it, or from what is in the bundle.
pub(super) fn root(
    rootfs: &[RootfsMount],
    bundle: &Path,
    spec_root: &Path,
) -> Result<OwnedFd, LaunchError> {
    if rootfs.is_empty() {
        let path = bundle.join(spec_root);
        return copy(&path, true).map_err(step(format!("open the root {}", path.display())));
    }
    // The spec's own word is held to, though it is where the mounts go that counts.
    let path = bundle.join(spec_root);
    if !path.is_dir() {
        let reason = format!("{} is no folder", path.display());
        return Err(SpecError::new("root.path", reason).into());
    }
    let mut root: Option<OwnedFd> = None;
    for mount in rootfs {
        let text = || format!("mount {} as the root", mount.source);
        let tree = rootfs_tree(mount, bundle)?;
        match &root {
            None => root = Some(tree),
            Some(root) => {
                let target =
                    open_below(root.as_fd(), Path::new(&mount.target)).map_err(step(text()))?;
                attach(tree.as_fd(), target.as_fd()).map_err(step(text()))?;
            }
        }
    }
    Ok(root.expect("there is one mount at least"))
}

fn rootfs_tree(mount: &RootfsMount, bundle: &Path) -> Result<OwnedFd, LaunchError> {
    let options = mount_options(&mount.options)?;
    let failed = || {
        step(format!(
            "mount {} of type {} as the root",
            mount.source, mount.kind
        ))
    };
    let is_recursive = match (options.bind, mount.kind.as_str()) {
        (None, "bind") => Some(false),
        (bind, _) => bind,
    };
    let tree = match is_recursive {
        Some(is_recursive) => copy(Path::new(&mount.source), is_recursive),
        None => new_file_system(
            &mount.kind,
            &mount.source,
            &options.data,
            options.attributes,
        )
        .or_else(|error| via_mount(mount, bundle, error)),
    };
    let tree = tree.map_err(failed())?;
    if is_recursive.is_some() {
        change(tree.as_fd(), &options.into()).map_err(failed())?;
    }
    Ok(tree)
}

/// Kernels before 6.8 do not take an overlay of many layers by fsconfig(2), but mount(2) does: the mount is
/// in the host's table for the time of three system calls.
fn via_mount(mount: &RootfsMount, bundle: &Path, error: io::Error) -> io::Result<OwnedFd> {
    let is_long = |option: &String| option.len() > MAX_VALUE;
    if mount.kind != "overlay" || !mount.options.iter().any(is_long) {
        return Err(error);
    }
    let target = bundle.join("rootfs");
    let options = mount_options(&mount.options).map_err(io::Error::other)?;
    let data = std::ffi::CString::new(options.data.join(","))?;
    let mut flags = rustix::mount::MountFlags::empty();
    flags.set(
        rustix::mount::MountFlags::RDONLY,
        options.attributes.set & attribute::RDONLY != 0,
    );
    rustix::mount::mount(&*mount.source, &target, "overlay", flags, data.as_c_str())?;
    let tree = copy(&target, false);
    unmount(&target, UnmountFlags::DETACH)?;
    tree
}

/// What `path` names below `root`, which links do not lead out of.
pub(super) fn open_below(root: BorrowedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

/// Puts a detached tree where `target` is.
pub(super) fn attach(tree: BorrowedFd, target: BorrowedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// Whether what is mounted is a folder.
pub(super) fn is_folder(tree: BorrowedFd) -> io::Result<bool> {
    let stat = rustix::fs::statat(tree, "", AtFlags::EMPTY_PATH)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

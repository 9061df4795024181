//! One root filesystem out of layer directories: an overlay whose layers are id-mapped.
//!
//! Each layer is cloned as a private mount, id-mapped through the sandbox's user namespace, and
//! handed to overlayfs, which keeps clones of its own; nothing but the overlay stays. So the layers
//! on disk belong to root once, and every sandbox sees them as its own root's.
//!
//! Overlayfs takes layers that are descriptors of detached mounts since Linux 6.15. Before, they are
//! attached for a moment under a private directory and named by path. Id-mapped layers need Linux
//! 5.19 in either case.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
        UnmountFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen, mount, move_mount, open_tree, unmount,
    },
};

use crate::sys::mount_setattr;

/// mount(2) takes one page of options.
const MAX_OPTIONS: usize = 4095;

/// Where an overlay's changes go. Both directories are on one filesystem and `work` is empty.
///
/// They are not id-mapped: the caller gives `upper` to the user who is root in the sandbox, since
/// owner and mode of `upper` are those of the new `/`.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// Receives changed and new files.
    pub upper: &'a Path,
    /// Overlayfs's own.
    pub work: &'a Path,
}

/// A root filesystem could not be mounted; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is nothing to mount.
    #[error("an image without layers has no root filesystem")]
    NoLayers,
    /// The kernel lacks a call.
    #[error("this kernel cannot id-map the layers of an overlay; Linux 5.19 can")]
    Kernel {
        /// What it said.
        source: io::Error,
    },
    /// A layer cannot be cloned.
    #[error("cannot clone layer {layer}")]
    Clone {
        /// Its directory.
        layer: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A layer cannot be id-mapped.
    #[error("cannot id-map layer {layer}")]
    IdMap {
        /// Its directory.
        layer: PathBuf,
        /// Why: `EINVAL` where its filesystem does not support it.
        source: io::Error,
    },
    /// A cloned layer cannot be attached where overlayfs finds it.
    #[error("cannot attach layer {layer} for a moment")]
    Attach {
        /// Its directory.
        layer: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Option strings cannot carry so many layers.
    #[error("{layers} layers are too many for this kernel; Linux 6.15 takes up to 500")]
    TooMany {
        /// How many there are.
        layers: usize,
    },
    /// Overlayfs refuses.
    #[error("cannot mount an overlay at {target}")]
    Overlay {
        /// Where it should go.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// One overlay at `target`: `layers` (topmost first) id-mapped through `userns`, with `upper`
/// writable or read-only without.
///
/// Without `userns` the layers keep their owners. In a user namespace that is not the first one, overlayfs keeps its
/// marks in attributes of users, as it may not use others there.
///
/// Device files in it are dead (`nodev`). One layer without `upper` needs no overlay and is mounted
/// itself. `unmount(2)` of `target` undoes all.
///
/// # Errors
/// Needs `CAP_SYS_ADMIN`. When it fails nothing stays mounted.
pub fn mount_rootfs(
    target: &Path,
    layers: &[PathBuf],
    upper: Option<Upper<'_>>,
    userns: Option<BorrowedFd<'_>>,
) -> Result<(), MountError> {
    let failed = |source: Errno| MountError::Overlay {
        target: target.to_owned(),
        source: source.into(),
    };
    let clones: Vec<OwnedFd> = layers
        .iter()
        .map(|layer| clone_layer(layer, userns))
        .collect::<Result<_, _>>()?;
    match (clones.as_slice(), upper) {
        ([], _) => Err(MountError::NoLayers),
        ([one], None) => attach(one, target).map_err(failed),
        (many, upper) => match overlay_of_descriptors(many, upper) {
            Ok(overlay) => attach(&overlay, target).map_err(failed),
            // Descriptors, or those of detached mounts, are news to this kernel: Linux 6.12 answers EBADF.
            Err(Errno::INVAL | Errno::BADF | Errno::NOSYS | Errno::OPNOTSUPP) => {
                overlay_of_paths(target, Attached::all(&clones, layers)?, upper)
            }
            Err(errno) => Err(failed(errno)),
        },
    }
}

/// A detached, read-only, id-mapped clone of the mount of `layer`, rooted there.
fn clone_layer(layer: &Path, userns: Option<BorrowedFd<'_>>) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, layer, flags).map_err(|errno| match errno {
        Errno::NOSYS => MountError::Kernel {
            source: errno.into(),
        },
        _ => MountError::Clone {
            layer: layer.to_owned(),
            source: errno.into(),
        },
    })?;
    let set = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    mount_setattr(clone.as_fd(), set, userns).map_err(|source| match source.raw_os_error() {
        Some(errno) if errno == Errno::NOSYS.raw_os_error() => MountError::Kernel { source },
        _ => MountError::IdMap {
            layer: layer.to_owned(),
            source,
        },
    })?;
    Ok(clone)
}

/// An overlay not yet attached, made of descriptors.
fn overlay_of_descriptors(layers: &[OwnedFd], upper: Option<Upper<'_>>) -> Result<OwnedFd, Errno> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(overlay.as_fd(), "source", "opr")?;
    if is_in_user_namespace() {
        fsconfig_set_flag(overlay.as_fd(), "userxattr")?;
    }
    for layer in layers {
        fsconfig_set_fd(overlay.as_fd(), "lowerdir+", layer.as_fd())?;
    }
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    match upper {
        Some(Upper { upper, work }) => {
            // By descriptor as well, since fsconfig(2) takes strings of at most 255 bytes.
            let open = |path: &Path| {
                let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
                rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            };
            fsconfig_set_fd(overlay.as_fd(), "upperdir", open(upper)?.as_fd())?;
            fsconfig_set_fd(overlay.as_fd(), "workdir", open(work)?.as_fd())?;
        }
        None => {
            fsconfig_set_flag(overlay.as_fd(), "ro")?;
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
    }
    fsconfig_create(overlay.as_fd())?;
    fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// An overlay at `target`, made of paths in one option string.
fn overlay_of_paths(
    target: &Path,
    layers: Attached,
    upper: Option<Upper<'_>>,
) -> Result<(), MountError> {
    let paths: Vec<String> = layers.paths().map(|path| escape(&path)).collect();
    let mut options = format!("lowerdir={}", paths.join(":"));
    if is_in_user_namespace() {
        options.push_str(",userxattr");
    }
    let mut flags = MountFlags::NODEV;
    match upper {
        Some(Upper { upper, work }) => {
            options.push_str(&format!(
                ",upperdir={},workdir={}",
                escape(upper),
                escape(work)
            ));
        }
        None => flags |= MountFlags::RDONLY,
    }
    if options.len() > MAX_OPTIONS {
        return Err(MountError::TooMany {
            layers: paths.len(),
        });
    }
    let options = std::ffi::CString::new(options).expect("paths have no NUL");
    mount("opr", target, "overlay", flags, options.as_c_str()).map_err(|errno| {
        MountError::Overlay {
            target: target.to_owned(),
            source: errno.into(),
        }
    })
}

/// Whether this process has not all ids of the machine.
///
/// Source: user_namespaces(7), `/proc/<pid>/uid_map`.
pub fn is_in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<_> = map.split_whitespace().collect();
    numbers != ["0", "0", "4294967295"]
}

/// Puts a detached mount at `target`.
fn attach(mount: &OwnedFd, target: &Path) -> Result<(), Errno> {
    move_mount(
        mount.as_fd(),
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Backslashes what separates in an option string.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if matches!(c, '\\' | ',' | ':') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// Layers attached under a private directory, detached again when dropped.
struct Attached {
    dir: tempfile::TempDir,
    count: usize,
}

impl Attached {
    fn all(clones: &[OwnedFd], layers: &[PathBuf]) -> Result<Self, MountError> {
        let failed = |index: usize, source| {
            let layer = layers.get(index).cloned().unwrap_or_default();
            MountError::Attach { layer, source }
        };
        // A short name, since all of them share one page of options.
        let dir = tempfile::Builder::new().prefix("l").rand_bytes(6).tempdir();
        let mut attached = Self {
            dir: dir.map_err(|source| failed(0, source))?,
            count: 0,
        };
        for (index, clone) in clones.iter().enumerate() {
            let path = attached.path(index);
            fs::create_dir(&path).map_err(|source| failed(index, source))?;
            attach(clone, &path).map_err(|errno| failed(index, errno.into()))?;
            attached.count += 1;
        }
        Ok(attached)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.path().join(index.to_string())
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        (0..self.count).map(|index| self.path(index))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for path in self.paths() {
            if let Err(error) = unmount(&path, UnmountFlags::DETACH) {
                tracing::warn!(path = %path.display(), %error, "layer not detached");
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What is in `/dev`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::libc;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, mknodat, statat, symlinkat},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use super::root::Root;
use crate::{
    launch::{
        failure::{Failure, Step},
        tree,
    },
    plan::Device,
};

/// Links that programs expect.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes devices and links. In a user namespace nodes cannot be made: the host's are bound.
pub(super) fn make(root: &Root, devices: &[Device], has_user: bool) -> Result<(), Failure> {
    for device in devices {
        let named = || format!("make the device {}", device.path.display());
        if has_user && device.kind != libc::S_IFIFO {
            let node = bind_of(&device.path, (device.major, device.minor)).step_with(named)?;
            let at = root.make_file(&device.path)?;
            tree::attach(node.as_fd(), at.as_fd()).step_with(named)?;
        } else {
            node(root, device).step_with(named)?;
        }
    }
    let dev = root.make_folder("/dev".as_ref())?;
    for (name, target) in LINKS {
        let is_ptmx = name == "ptmx";
        link(dev.as_fd(), name, target, is_ptmx)
            .step_with(|| format!("make the link /dev/{name}"))?;
    }
    Ok(())
}

/// An image's own `/dev/ptmx` may be a node; the others are left as the image has them.
fn link(
    dev: std::os::fd::BorrowedFd,
    name: &str,
    target: &str,
    replaces: bool,
) -> rustix::io::Result<()> {
    if replaces {
        match rustix::fs::unlinkat(dev, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    match symlinkat(target, dev, name) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn node(root: &Root, device: &Device) -> io::Result<()> {
    let (parent, name) = root.parent(&device.path)?;
    let kind = FileType::from_raw_mode(device.kind);
    let mode = Mode::from_raw_mode(device.mode);
    let number = rustix::fs::makedev(device.major, device.minor);
    match mknodat(&parent, &name, kind, mode, number) {
        Err(Errno::EXIST) => {
            let found = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_same = FileType::from_raw_mode(found.st_mode) == kind
                && (kind == FileType::Fifo || found.st_rdev == number);
            if !is_same {
                return Err(io::Error::other("something else is there"));
            }
        }
        made => made?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    Ok(chownat(
        &parent,
        &name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// A detached copy of a device of the host, which is looked at: a path is no proof.
pub(super) fn bind_of(path: &Path, (major, minor): (u32, u32)) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let node = open_tree(CWD, path, flags | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)?;
    let found = rustix::fs::fstat(&node)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let is_device = kind == FileType::CharacterDevice || kind == FileType::BlockDevice;
    if is_device && found.st_rdev == rustix::fs::makedev(major, minor) {
        return Ok(node);
    }
    Err(io::Error::other(format!(
        "the host's is not {major}:{minor}"
    )))
}

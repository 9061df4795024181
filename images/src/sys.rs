//! System calls that `rustix` does not have.
#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper in rustix")]

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::mount::MountAttrFlags;

/// Sets attributes of the mount that `mount` is, and id-maps it through `userns` where given.
///
/// An id-map can be set once, while the mount is detached.
///
/// # Errors
/// `EINVAL` where the filesystem does not support id-mapped mounts or `mount` is attached already;
/// `EPERM` without `CAP_SYS_ADMIN`; `ENOSYS` before Linux 5.12.
///
/// Source: `mount_setattr(2)`.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: MountAttrFlags,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let idmap = if userns.is_some() {
        MountAttrFlags::MOUNT_ATTR_IDMAP
    } else {
        set
    };
    let attr = libc::mount_attr {
        attr_set: u64::from((set | idmap).bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into()),
    };
    // SAFETY: the path is an empty NUL-terminated string, which AT_EMPTY_PATH permits; `attr` is a
    // `struct mount_attr` that lives on this stack for the call, its size is given beside it, and
    // the kernel only reads it. Both descriptors are open because they are borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            mem::size_of_val(&attr),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::mount::{OpenTreeFlags, open_tree};

    use super::*;

    #[test]
    fn makes_a_private_clone_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let Ok(mount) = open_tree(rustix::fs::CWD, dir.path(), flags) else {
            assert!(
                std::env::var_os("REQUIRE_ALL").is_none(),
                "cloning a mount needs root"
            );
            eprintln!("skipped 1: cloning a mount needs root");
            return;
        };
        mount_setattr(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, None).unwrap();
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let error = rustix::fs::openat(&mount, "file", flags, 0o600.into()).unwrap_err();
        assert_eq!(error, rustix::io::Errno::ROFS);
    }

    #[test]
    fn tells_when_a_descriptor_is_no_mount() {
        let file = tempfile::tempfile().unwrap();
        let error = mount_setattr(file.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, None);
        assert!(error.is_err());
    }
}

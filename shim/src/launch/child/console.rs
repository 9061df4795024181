//! The terminal of a process: made in the container's own devpts.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::OFlags,
    mount::{OpenTreeFlags, open_tree},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::root::Root;
use crate::launch::{
    failure::{Failure, Step},
    tree,
};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: u64 = 0x1cd1;

/// Both sides of a terminal.
pub(super) struct Console {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Console {
    /// Makes a terminal. The slave is had from the master itself: no name in the container is trusted.
    pub(super) fn open(root: &Root, size: Option<(u16, u16)>) -> Result<Self, Failure> {
        let make = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY;
            let master = root
                .open_file(Path::new("/dev/pts/ptmx"), flags)
                .or_else(|_| root.open_file(Path::new("/dev/ptmx"), flags))?;
            let found = rustix::fs::fstatfs(&master)?;
            if u64::try_from(found.f_type) != Ok(DEVPTS) {
                return Err(io::Error::other("/dev/ptmx is not on a devpts"));
            }
            unlockpt(&master)?;
            let slave = ioctl_tiocgptpeer(
                &master,
                OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
            )?;
            if let Some((ws_row, ws_col)) = size {
                let size = Winsize {
                    ws_row,
                    ws_col,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                tcsetwinsize(&master, size)?;
            }
            Ok(Self { master, slave })
        };
        make().step("make a terminal")
    }

    /// Shows the slave as `/dev/console`: the descriptor itself is mounted, on a file that is no link.
    pub(super) fn mount(&self, root: &Root) -> Result<(), Failure> {
        let path = Path::new("/dev/console");
        root.make_file(path)?;
        let at = root.open_plain(path).step("open /dev/console")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let copy = open_tree(&self.slave, "", flags).step("copy the terminal")?;
        tree::attach(copy.as_fd(), at.as_fd()).step("mount /dev/console")
    }

    /// Makes it the terminal of the calling process's session, and of its user.
    pub(super) fn take(&self, uid: u32) -> io::Result<()> {
        rustix::process::ioctl_tiocsctty(&self.slave)?;
        let owner = rustix::fs::Uid::from_raw(uid);
        Ok(rustix::fs::fchown(&self.slave, Some(owner), None)?)
    }

    pub(super) fn streams(&self) -> [BorrowedFd<'_>; 3] {
        [self.slave.as_fd(); 3]
    }
}

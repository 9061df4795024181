//! Root file systems of busybox: one that all containers share, and what each of them puts over it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use containerd_client::types::Mount;

pub(crate) const BUSYBOX: &str = "/bin/busybox";
const DIRS: [&str; 9] = [
    "bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "work",
];

/// Makes the shared tree below `dir`.
pub(crate) fn prepare(dir: &Path) {
    let root = tree(dir);
    for name in DIRS {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).unwrap();
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let list = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    write("etc/group", "root:x:0:\nwheel:x:10:\n");
    write("etc/plain", "not a program\n");
    write("etc/script", "#!/bin/sh\necho scripted\n");
    write("etc/broken", "\x7fELFbut not really\n");
    write("etc/lost", "#!/no/such/interpreter\n");
    for name in ["etc/script", "etc/broken", "etc/lost"] {
        fs::set_permissions(root.join(name), Permissions::from_mode(0o755)).unwrap();
    }
}

/// The shared tree.
pub(crate) fn tree(dir: &Path) -> PathBuf {
    dir.join("tree")
}

/// How a container gets its root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Over the shared tree, with a writable layer of its own.
    Overlay,
    /// A folder of its own, bound.
    Bind,
    /// A folder that is in the bundle's spec, without any mount.
    Folder,
}

/// Where the files of one container are that are not in the shared tree.
pub(crate) fn own(kind: Kind, folder: &Path) -> PathBuf {
    let name = match kind {
        Kind::Overlay => "upper",
        Kind::Bind | Kind::Folder => "root",
    };
    folder.join(name)
}

/// Makes the root file system's folders in `folder`.
pub(crate) fn make(kind: Kind, dir: &Path, folder: &Path) {
    fs::create_dir_all(own(kind, folder)).unwrap();
    match kind {
        Kind::Overlay => fs::create_dir_all(folder.join("upperwork")).unwrap(),
        Kind::Bind | Kind::Folder => {
            let status = Command::new("cp")
                .arg("-a")
                .arg(tree(dir).join("."))
                .arg(own(kind, folder))
                .status();
            assert!(status.unwrap().success());
        }
    }
}

/// What containerd is told to mount.
pub(crate) fn mounts(kind: Kind, dir: &Path, folder: &Path) -> Vec<Mount> {
    let own = own(kind, folder);
    match kind {
        Kind::Overlay => vec![Mount {
            r#type: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", tree(dir).display()),
                format!("upperdir={}", own.display()),
                format!("workdir={}", folder.join("upperwork").display()),
            ],
            ..Default::default()
        }],
        Kind::Bind => vec![Mount {
            r#type: "bind".into(),
            source: own.display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        }],
        Kind::Folder => Vec::new(),
    }
}

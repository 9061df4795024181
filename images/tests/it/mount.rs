//! Root filesystems against the real kernel.

use std::{
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use opr_images::mount::{MountError, Upper, mount_rootfs};
use rustix::mount::{UnmountFlags, unmount};

use crate::{can_run, image::scratch, mounts_below};

/// A user namespace in which 65,536 ids begin at `first` outside.
struct UserNamespace {
    process: Child,
    file: File,
}

impl UserNamespace {
    fn new(first: u32) -> Self {
        let mut process = Command::new("unshare")
            .args(["--user", "cat"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let path = PathBuf::from(format!("/proc/{}", process.id()));
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        while fs::read_link(path.join("ns/user")).unwrap() == own {
            assert_eq!(process.try_wait().unwrap(), None);
            std::thread::yield_now();
        }
        fs::write(path.join("uid_map"), format!("0 {first} 65536")).unwrap();
        fs::write(path.join("gid_map"), format!("0 {first} 65536")).unwrap();
        let file = File::open(path.join("ns/user")).unwrap();
        Self { process, file }
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Two layers: `a` in both, `b` only below, owned by 5:6.
fn layers(dir: &Path) -> Vec<PathBuf> {
    for (layer, file, text) in [
        ("top", "a", "top"),
        ("low", "a", "low"),
        ("low", "b", "below"),
    ] {
        fs::create_dir_all(dir.join(layer)).unwrap();
        fs::write(dir.join(layer).join(file), text).unwrap();
    }
    std::os::unix::fs::chown(dir.join("low/b"), Some(5), Some(6)).unwrap();
    vec![dir.join("top"), dir.join("low")]
}

fn check_nothing_left(dir: &Path) {
    assert_eq!(mounts_below(dir), [] as [String; 0]);
}

#[test]
fn ids_are_mapped_and_writes_go_to_upper() {
    if !can_run(&["unshare"]) {
        return;
    }
    let (_dir, dir) = scratch();
    let layers = layers(&dir);
    let userns = UserNamespace::new(300_000);
    for sub in ["upper", "work", "root"] {
        fs::create_dir(dir.join(sub)).unwrap();
    }
    std::os::unix::fs::chown(dir.join("upper"), Some(300_000), Some(300_000)).unwrap();
    let upper = Upper {
        upper: &dir.join("upper"),
        work: &dir.join("work"),
    };
    let root = dir.join("root");
    mount_rootfs(&root, &layers, Some(upper), Some(userns.file.as_fd())).unwrap();

    let owner = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
    assert_eq!(owner(&root), (300_000, 300_000));
    assert_eq!(owner(&root.join("a")), (300_000, 300_000));
    assert_eq!(owner(&root.join("b")), (300_005, 300_006));
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "top");
    fs::write(root.join("b"), "changed").unwrap();
    assert_eq!(fs::read_to_string(dir.join("upper/b")).unwrap(), "changed");
    assert_eq!(owner(&dir.join("upper/b")), (300_005, 300_006));
    assert_eq!(fs::read_to_string(dir.join("low/b")).unwrap(), "below");
    assert_eq!(owner(&dir.join("low/b")), (5, 6));
    assert_eq!(mounts_below(&dir), [root.to_str().unwrap()]);
    unmount(&root, UnmountFlags::empty()).unwrap();
    check_nothing_left(&dir);
}

#[test]
fn two_sandboxes_share_layers_under_their_own_ids() {
    if !can_run(&["unshare"]) {
        return;
    }
    let (_dir, dir) = scratch();
    let layers = layers(&dir);
    for (name, first) in [("one", 300_000), ("two", 400_000)] {
        let userns = UserNamespace::new(first);
        fs::create_dir(dir.join(name)).unwrap();
        mount_rootfs(&dir.join(name), &layers, None, Some(userns.file.as_fd())).unwrap();
    }
    assert_eq!(fs::metadata(dir.join("one/b")).unwrap().uid(), 300_005);
    assert_eq!(fs::metadata(dir.join("two/b")).unwrap().uid(), 400_005);
    unmount(dir.join("one"), UnmountFlags::empty()).unwrap();
    unmount(dir.join("two"), UnmountFlags::empty()).unwrap();
    check_nothing_left(&dir);
}

#[test]
fn without_upper_nothing_can_be_written() {
    if !can_run(&[]) {
        return;
    }
    let (_dir, dir) = scratch();
    let layers = layers(&dir);
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    for layers in [&layers[..], &layers[..1]] {
        mount_rootfs(&root, layers, None, None).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "top");
        let error = fs::write(root.join("a"), "x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        unmount(&root, UnmountFlags::empty()).unwrap();
    }
    assert_eq!(fs::read_to_string(dir.join("top/a")).unwrap(), "top");
    check_nothing_left(&dir);
}

#[test]
fn takes_a_hundred_layers() {
    if !can_run(&[]) {
        return;
    }
    let (_dir, dir) = scratch();
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    let layers: Vec<PathBuf> = (0..100)
        .map(|i| {
            let layer = dir.join(format!("layer-{i}-{}", "x".repeat(100)));
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join(i.to_string()), "").unwrap();
            layer
        })
        .collect();
    mount_rootfs(&root, &layers, None, None).unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 100);
    unmount(&root, UnmountFlags::empty()).unwrap();
    check_nothing_left(&dir);
}

#[test]
fn a_failure_leaves_nothing() {
    if !can_run(&[]) {
        return;
    }
    let (_dir, dir) = scratch();
    let mut layers = layers(&dir);
    let absent = mount_rootfs(&dir.join("absent"), &layers, None, None).unwrap_err();
    assert!(matches!(absent, MountError::Overlay { .. }), "{absent}");
    fs::create_dir(dir.join("root")).unwrap();
    let none = mount_rootfs(&dir.join("root"), &[], None, None).unwrap_err();
    assert!(matches!(none, MountError::NoLayers), "{none}");
    let upper = Upper {
        upper: &dir.join("no-upper"),
        work: &dir.join("no-work"),
    };
    let no_upper = mount_rootfs(&dir.join("root"), &layers, Some(upper), None).unwrap_err();
    assert!(matches!(no_upper, MountError::Overlay { .. }), "{no_upper}");
    layers.push(dir.join("gone"));
    let gone = mount_rootfs(&dir.join("root"), &layers, None, None).unwrap_err();
    assert!(matches!(gone, MountError::Clone { .. }), "{gone}");
    check_nothing_left(&dir);
}

//! The folders of an image, owned by other ids than the image's: a layer above its own.
//!
//! Where layers cannot be id-mapped (only who owns a file system's user namespace may do that), their files belong to
//! nobody in a sandbox with ids of its own. It reads and executes what all may. With this layer on top it can also make,
//! replace and remove files in the image's folders, as their owners can. It cannot write into the image's files where
//! they are, or read those that the image keeps from others.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rustix::mount::{UnmountFlags, unmount};

use crate::mount::mount_rootfs;

/// Ids that an image's files may have.
const IDS: u32 = 65_536;

/// Makes `target`, a copy of all folders of `layers` (topmost first), whose owners are moved up by `first_id`.
/// Does nothing where it is there. Blocks; its parent is there.
///
/// # Errors
/// Needs `CAP_SYS_ADMIN` and `CAP_CHOWN`. When it fails, `target` is not there.
pub fn make_skeleton(target: &Path, layers: &[PathBuf], first_id: u32) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    let view = tempfile::tempdir_in(parent)?;
    let half = tempfile::tempdir_in(parent)?;
    mount_rootfs(view.path(), layers, None, None).map_err(io::Error::other)?;
    let copied = copy_folders(view.path(), half.path(), first_id);
    unmount(view.path(), UnmountFlags::DETACH)?;
    copied?;
    fs::rename(half.keep(), target)
}

fn copy_folders(from: &Path, to: &Path, first_id: u32) -> io::Result<()> {
    let about = fs::symlink_metadata(from)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let to = to.join(entry.file_name());
            fs::create_dir(&to)?;
            copy_folders(&entry.path(), &to, first_id)?;
        }
    }
    let moved = |id: u32| (id < IDS).then_some(first_id + id);
    chown(to, moved(about.uid()), moved(about.gid()))?;
    // Without the bit that hands a folder's group down: a hardened service may not set it.
    fs::set_permissions(to, fs::Permissions::from_mode(about.mode() & 0o1777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_all_layers_get_other_owners_and_keep_their_modes() {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("REQUIRE_ALL").is_none(),
                "mounting needs root"
            );
            eprintln!("skipped 1: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("top/root")).unwrap();
        fs::create_dir_all(path("low/root/.cache")).unwrap();
        fs::create_dir_all(path("low/home/user")).unwrap();
        fs::write(path("low/root/file"), "").unwrap();
        fs::set_permissions(path("top/root"), fs::Permissions::from_mode(0o700)).unwrap();
        chown(path("low/home/user"), Some(1000), Some(1001)).unwrap();
        let layers = [path("top"), path("low")];
        let target = path("skeleton");
        make_skeleton(&target, &layers, 200_000).unwrap();
        let about = |name: &str| {
            let about = fs::symlink_metadata(target.join(name)).unwrap();
            (about.uid(), about.gid(), about.mode() & 0o7777)
        };
        assert_eq!(about("root"), (200_000, 200_000, 0o700));
        assert_eq!(about("root/.cache"), (200_000, 200_000, 0o755));
        assert_eq!(about("home/user"), (201_000, 201_001, 0o755));
        assert!(!target.join("root/file").exists());
        make_skeleton(&target, &layers, 200_000).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }
}

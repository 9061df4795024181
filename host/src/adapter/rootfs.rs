//! The folders and file systems of one sandbox.
//!
//! ```text
//! <run_dir>/sandboxes/<id>/rootfs    overlay of the image's layers
//! <run_dir>/sandboxes/<id>/scratch   bounded tmpfs: what the sandbox may write, and the overlays' uppers
//! <run_dir>/sandboxes/<id>/overlays  further overlays, each of one directory, by their place among the mounts
//! <run_dir>/sandboxes/<id>/etc       resolv.conf, hosts, hostname
//! <run_dir>/sandboxes/<id>/stdout    FIFO, and stderr
//! <state_dir>/skeletons/<slot>       folders of images, owned by the slot's ids, where layers cannot be id-mapped
//! <state_dir>/sandboxes/<id>/volume  bounded part of the disk: takes the place of the tmpfs where the root is on disk
//! ```

use std::{
    fs::{self, Permissions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use opr_images::{
    make_skeleton,
    mount::{Upper, is_in_user_namespace, mount_rootfs},
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
};

use super::{
    SandboxSpec, Source, disk,
    slots::{Slot, detach, remove_dir},
    stdio::Stdio,
};
use crate::config::{Class, Config, Outbound, Root};
use crate::id::SandboxId;

/// The folder of a sandbox's further overlays.
pub(super) const OVERLAYS: &str = "overlays";

/// Where a sandbox's folders are.
#[derive(Debug, Clone)]
pub(super) struct Folders {
    pub(super) dir: PathBuf,
    disk: PathBuf,
    skeletons: PathBuf,
}

impl Folders {
    pub(super) fn new(config: &Config, id: &SandboxId) -> Self {
        Self {
            dir: config.run_dir.join("sandboxes").join(id.as_str()),
            disk: config.state_dir.join("sandboxes").join(id.as_str()),
            skeletons: skeletons(&config.state_dir),
        }
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    fn volume(&self) -> PathBuf {
        self.disk.join("volume")
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// Makes folders and file systems; answers uid and gid of the image's `user`.
    pub(super) fn make(
        &self,
        spec: &SandboxSpec,
        class: &Class,
        image: (&[PathBuf], &str),
        slot: &Slot,
    ) -> io::Result<(u32, u32)> {
        let (layers, user) = image;
        make_dir(&self.dir, 0o711)?;
        self.make_etc(spec, class.outbound)?;
        Stdio::new(&self.dir, spec.terminal).create()?;
        make_dir(&self.scratch(), 0o711)?;
        let writable = match class.root {
            Root::Disk => {
                self.mount_volume(class)?;
                self.volume()
            }
            Root::ReadOnly | Root::Tmpfs => {
                self.mount_scratch(class)?;
                self.scratch()
            }
        };
        let (upper, work) = make_upper(&writable, "root", slot)?;
        make_dir(&self.rootfs(), 0o755)?;
        let changes = Some(Upper {
            upper: &upper,
            work: &work,
        });
        self.mount_root(layers, changes, slot)?;
        for (n, mount) in spec.mounts.iter().enumerate() {
            if let Source::Overlay(directory) = &mount.source {
                self.mount_overlay(&n.to_string(), directory, &writable, slot)?;
            }
        }
        let (uid, gid) = find_user(&self.rootfs(), user)?;
        self.make_shared(spec, (slot.first_id + uid, slot.first_id + gid))?;
        Ok((uid, gid))
    }

    fn mount_root(
        &self,
        layers: &[PathBuf],
        changes: Option<Upper<'_>>,
        slot: &Slot,
    ) -> io::Result<()> {
        if !is_in_user_namespace() {
            let userns = fs::File::open(&slot.user)?;
            return mount_rootfs(&self.rootfs(), layers, changes, Some(userns.as_fd()))
                .map_err(io::Error::other);
        }
        // Nobody but the machine's root may id-map its file systems.
        let mut hash = DefaultHasher::new();
        layers.hash(&mut hash);
        let folder = self.skeletons.join(slot.index.to_string());
        make_dir(&folder, 0o711)?;
        let skeleton = folder.join(format!("{:016x}", hash.finish()));
        make_skeleton(&skeleton, layers, slot.first_id)?;
        let all = [&[skeleton], layers].concat();
        mount_rootfs(&self.rootfs(), &all, changes, None).map_err(io::Error::other)
    }

    fn mount_overlay(
        &self,
        name: &str,
        directory: &PathBuf,
        writable: &Path,
        slot: &Slot,
    ) -> io::Result<()> {
        let target = self.dir.join(OVERLAYS).join(name);
        let (upper, work) = make_upper(writable, name, slot)?;
        make_dir(&target, 0o755)?;
        if is_in_user_namespace() {
            // Nothing can be id-mapped: only a copy can be the sandbox's own.
            copy_tree(directory, &upper, slot.first_id)?;
            mount_bind(&upper, &target)?;
            return Ok(mount_change(&target, MountPropagationFlags::PRIVATE)?);
        }
        let changes = Some(Upper {
            upper: &upper,
            work: &work,
        });
        let userns = fs::File::open(&slot.user)?;
        let layers = std::slice::from_ref(directory);
        mount_rootfs(&target, layers, changes, Some(userns.as_fd())).map_err(io::Error::other)
    }

    /// Gives back all of it. Succeeds where a part of it is gone.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::read_dir(self.dir.join(OVERLAYS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            overlays => {
                for overlay in overlays? {
                    detach(&overlay?.path())?;
                }
            }
        }
        detach(&self.rootfs())?;
        detach(&self.scratch())?;
        detach(&self.volume())?;
        remove_dir(&self.dir)?;
        remove_dir(&self.disk)
    }

    /// The sandbox's part of the disk, and the scratch in it: what is written costs no memory.
    fn mount_volume(&self, class: &Class) -> io::Result<()> {
        let (volume, scratch) = (self.volume(), self.scratch());
        make_dir(&self.disk, 0o711)?;
        make_dir(&volume, 0o711)?;
        // Without rights a file system in a file cannot be mounted: what the sandbox writes has no bound but the disk's.
        if class.disk_mib > 0 && !is_in_user_namespace() {
            disk::mount(&self.disk, &volume, class.disk_mib)?;
            mount_change(&volume, MountPropagationFlags::PRIVATE)?;
        }
        let inside = volume.join(".scratch");
        make_dir(&inside, 0o711)?;
        mount_bind(&inside, &scratch)?;
        Ok(mount_change(&scratch, MountPropagationFlags::PRIVATE)?)
    }

    fn mount_scratch(&self, class: &Class) -> io::Result<()> {
        let scratch = self.scratch();
        // One file for every 4 KiB, the size of its first page: small files hit both bounds alike.
        let options = format!(
            "mode=0711,size={}m,nr_inodes={}",
            class.scratch_mib,
            class.scratch_mib * 256 + 1024
        );
        let options = std::ffi::CString::new(options)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("opr", &scratch, "tmpfs", flags, options.as_c_str())?;
        Ok(mount_change(&scratch, MountPropagationFlags::PRIVATE)?)
    }

    /// The folders in the sandbox's scratch that it has mounted, its main user's own.
    fn make_shared(&self, spec: &SandboxSpec, owner: (u32, u32)) -> io::Result<()> {
        let mut folders = vec![(".shm", 0o1777)];
        for mount in &spec.mounts {
            let Source::Scratch(name) = &mount.source else {
                continue;
            };
            if name.is_empty() || name.starts_with('.') || name.contains('/') {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not a folder's name",
                ));
            }
            folders.push((
                name,
                if mount.target == Path::new("/tmp") {
                    0o1777
                } else {
                    0o700
                },
            ));
        }
        for (name, mode) in folders {
            let path = self.scratch().join(name);
            if make_dir(&path, mode)? {
                chown(&path, Some(owner.0), Some(owner.1))?;
            }
        }
        Ok(())
    }

    fn make_etc(&self, spec: &SandboxSpec, outbound: Outbound) -> io::Result<()> {
        let etc = self.dir.join("etc");
        make_dir(&etc, 0o755)?;
        let name = &spec.hostname;
        let write = |file: &str, text: String| {
            let path = etc.join(file);
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o644))
        };
        write(
            "hosts",
            format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost\n"),
        )?;
        write("hostname", format!("{name}\n"))?;
        write(
            "resolv.conf",
            if outbound == Outbound::None {
                String::new()
            } else {
                resolvers(outbound)
            },
        )
    }
}

/// Where an unprivileged node keeps the folders of images, by slot: a slot's ids are always the same.
fn skeletons(state_dir: &Path) -> PathBuf {
    state_dir.join("skeletons")
}

/// Removes the folders of images of all slots but these: the images may be gone.
pub(super) fn remove_skeletons(state_dir: &Path, is_used: impl Fn(u32) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(skeletons(state_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let slot = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if !slot.is_some_and(&is_used) {
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

/// The host's resolvers. One on the host's loopback is out of reach from another network namespace:
/// systemd's own list is taken then.
fn resolvers(outbound: Outbound) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let text = read("/etc/resolv.conf");
    let is_local = |line: &str| {
        line.strip_prefix("nameserver")
            .is_some_and(|rest| rest.trim_start().starts_with("127."))
    };
    if outbound == Outbound::Host || !text.lines().any(is_local) {
        return text;
    }
    let known = read("/run/systemd/resolve/resolv.conf");
    let text = if known.is_empty() { text } else { known };
    text.lines()
        .filter(|line| !is_local(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Upper and work of an overlay, in what the sandbox may fill.
fn make_upper(writable: &Path, name: &str, slot: &Slot) -> io::Result<(PathBuf, PathBuf)> {
    let upper = writable.join(format!(".upper-{name}"));
    let work = writable.join(format!(".work-{name}"));
    make_dir(&upper, 0o755)?;
    chown(&upper, Some(slot.first_id), Some(slot.first_id))?;
    make_dir(&work, 0o700)?;
    Ok((upper, work))
}

/// Copies directories, files and links, with their modes and the times of files, for another owner.
fn copy_tree(from: &Path, to: &Path, owner: u32) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let (entry, meta) = entry.and_then(|entry| entry.metadata().map(|meta| (entry, meta)))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if meta.is_dir() {
            make_dir(&target, meta.permissions().mode() & 0o777)?;
            copy_tree(&source, &target, owner)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target)?;
            let copy = fs::File::options().write(true).open(&target)?;
            copy.set_modified(meta.modified()?)?;
        }
        lchown(&target, Some(owner), Some(owner))?;
    }
    Ok(())
}

/// Says whether it was made now.
fn make_dir(path: &Path, mode: u32) -> io::Result<bool> {
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        made => made?,
    }
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(true)
}

/// Uid and gid of an image's `user`: `name`, `uid`, `name:group` or `uid:gid`; empty is root.
fn find_user(rootfs: &Path, text: &str) -> io::Result<(u32, u32)> {
    let unknown = || {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("the image has no user {text}"),
        )
    };
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let (uid, own_gid) = if user.is_empty() {
        (0, 0)
    } else {
        let passwd = read_inside(rootfs, "etc/passwd").unwrap_or_default();
        let line = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() > 3 && (fields[0] == user || fields[2] == user));
        match (line, user.parse()) {
            (Some(fields), _) => (
                fields[2].parse().map_err(|_| unknown())?,
                fields[3].parse().map_err(|_| unknown())?,
            ),
            (None, Ok(uid)) => (uid, 0),
            (None, Err(_)) => return Err(unknown()),
        }
    };
    let gid = match group.map(|group| (group, group.parse())) {
        None => own_gid,
        Some((_, Ok(gid))) => gid,
        Some((name, Err(_))) => {
            let groups = read_inside(rootfs, "etc/group").unwrap_or_default();
            let fields = groups
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>());
            let found = fields
                .into_iter()
                .find(|fields| fields.len() > 2 && fields[0] == name);
            found
                .and_then(|fields| fields[2].parse().ok())
                .ok_or_else(unknown)?
        }
    };
    if uid >= crate::sys::IDS || gid >= crate::sys::IDS {
        return Err(unknown());
    }
    Ok((uid, gid))
}

/// Reads a regular file of a file system that its author may have filled with links out of it.
fn read_inside(rootfs: &Path, path: &str) -> io::Result<String> {
    const MAX: u64 = 1024 * 1024;
    let flags = OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::PATH;
    let root = openat(CWD, rootfs, flags, Mode::empty())?;
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::RDONLY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = fs::File::from(openat2(root, path, flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = String::new();
    file.take(MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_images_user_as_engines_do() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let write = |name, text| fs::write(root.path().join("etc").join(name), text).unwrap();
        write(
            "passwd",
            "root:x:0:0::/:/bin/sh\nnode:x:1000:1001::/:/bin/sh\n",
        );
        write("group", "staff:x:50:\n");
        let check = |text: &str, expected| {
            assert_eq!(find_user(root.path(), text).ok(), expected, "{text}");
        };
        check("", Some((0, 0)));
        check("node", Some((1000, 1001)));
        check("1000", Some((1000, 1001)));
        check("7", Some((7, 0)));
        check("7:8", Some((7, 8)));
        check("node:staff", Some((1000, 50)));
        check("nobody", None);
        check("7:nogroup", None);
        check("70000", None);
    }

    #[test]
    fn a_copied_tree_is_what_it_was() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        let tool = from.path().join("a/b/tool");
        fs::write(&tool, "#!").unwrap();
        fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let file = fs::File::options().write(true).open(&tool).unwrap();
        file.set_modified(time).unwrap();
        symlink("b/tool", from.path().join("a/link")).unwrap();
        let owner = rustix::process::geteuid().as_raw();
        copy_tree(from.path(), to.path(), owner).unwrap();
        let copy = to.path().join("a/b/tool").metadata().unwrap();
        assert_eq!(copy.permissions().mode() & 0o777, 0o755);
        assert_eq!(copy.modified().unwrap(), time);
        assert_eq!(fs::read(to.path().join("a/link")).unwrap(), b"#!");
    }
}

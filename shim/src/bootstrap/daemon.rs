//! `start`: finds the daemon of the container's group, or spawns it.

use std::{
    env, fs,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use containerd_shim::{Flags, StartOpts, api::Options};

use super::{BootstrapError, group, params, print};
use crate::{
    announce,
    launch::tree,
    socket,
    sys::{self, MountAttributes, attribute},
};

const DAEMON: &str = "containerd-shim-opr-v1-daemon";
const MAX_SPEC: u64 = 16 << 20;
/// Source: linux/oom.h.
const OOM_SCORE_ADJ_MAX: i32 = 1000;

pub(super) fn start(flags: &Flags) -> Result<(), BootstrapError> {
    let (options, form) = params::read(flags)?;
    let bundle = Path::new(".");
    let address = options.socket_address(&group_of(bundle, &options.id)?);
    let path = socket::path(&address);
    let folder = socket::Folder::ask(path)?;
    folder.own(path)?;
    // Another start may have been faster.
    if !announce_at(path, &options.id) {
        spawn(&options, &address)?;
    }
    drop(folder);
    write(bundle, "address", &address)?;
    print(&form.write(&address)?)
}

fn group_of(bundle: &Path, id: &str) -> Result<String, BootstrapError> {
    let path = bundle.join("config.json");
    let read = || {
        let mut text = Vec::new();
        fs::File::open(&path)?
            .take(MAX_SPEC)
            .read_to_end(&mut text)?;
        Ok(group::of(&text, id)?)
    };
    read().map_err(|source| BootstrapError::File {
        what: "read",
        path: path.clone(),
        source,
    })
}

/// Tells the daemon of the container, whose bundle is the working directory. Answers whether there is a daemon.
fn announce_at(socket: &Path, id: &str) -> bool {
    let Ok(daemon) = UnixStream::connect(socket) else {
        return false;
    };
    // What it does not hear it does later.
    if let Some(bundle) = env::current_dir().ok().as_deref().and_then(Path::to_str) {
        let _ = announce::send(&daemon, id, bundle);
    }
    true
}

fn spawn(options: &StartOpts, address: &str) -> Result<(), BootstrapError> {
    let path = socket::path(address);
    let listener = socket::listen_on(path)?;
    let spawned = confine(options).and_then(|()| execute(options, address, listener));
    match spawned {
        Ok(pid) => write(Path::new("."), "shim.pid", &pid.to_string()),
        Err(e) => {
            // Nobody serves it; the next start would replace it anyway.
            let _ = fs::remove_file(path);
            Err(e)
        }
    }
}

/// The daemon gets the socket as standard input and none of containerd's pipes, whose end containerd waits for.
fn execute(
    options: &StartOpts,
    address: &str,
    listener: UnixListener,
) -> Result<u32, BootstrapError> {
    let path = program();
    let failed = |source| BootstrapError::Spawn {
        program: path.clone(),
        source,
    };
    let program = read_only(&path).map_err(failed)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command
        .arg0(DAEMON)
        .args(["-namespace", &options.namespace, "-id", &options.id])
        .args(["-address", &options.address, "-socket", address])
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if options.debug {
        command.arg("-debug");
    }
    if !options.ttrpc_address.is_empty() {
        command.env("TTRPC_ADDRESS", &options.ttrpc_address);
    }
    // Each arena of glibc's allocator keeps what its threads once used.
    command.env("MALLOC_ARENA_MAX", "2");
    let child = command.spawn().map_err(failed)?;
    Ok(child.id())
}

/// Where the daemon's program is: beside this one.
fn program() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    own.with_file_name(DAEMON)
}

/// A program on a read-only mount that nothing else has: whoever gets hold of `/proc/<pid>/exe` of the daemon, or
/// of a container's process before its program, cannot write through it.
fn read_only(program: &Path) -> io::Result<OwnedFd> {
    let tree = tree::copy(program, false)?;
    let attributes = MountAttributes {
        set: attribute::RDONLY | attribute::NODEV,
        ..MountAttributes::default()
    };
    sys::mount_setattr(tree.as_fd(), attributes, false, None)?;
    Ok(tree)
}

/// Puts this process where its child, the daemon, is to be: into the cgroup that the options name, and before
/// containerd in the order in which the kernel kills for memory.
fn confine(options: &StartOpts) -> Result<(), BootstrapError> {
    let bad = |e: containerd_shim::Error| BootstrapError::Request(e.to_string());
    let runtime: Option<Options> = options.extension().map_err(bad)?;
    let cgroup = runtime.map(|runtime| runtime.shim_cgroup);
    if let Some(cgroup) = cgroup.filter(|cgroup| !cgroup.is_empty()) {
        containerd_shim::cgroup::add_task_to_cgroup(&cgroup, std::process::id()).map_err(bad)?;
    }
    let file = "/proc/self/oom_score_adj";
    let raise = || {
        let score: i32 = fs::read_to_string(file)?
            .trim()
            .parse()
            .map_err(io::Error::other)?;
        match score < OOM_SCORE_ADJ_MAX {
            true => fs::write(file, (score + 1).to_string()),
            false => Ok(()),
        }
    };
    raise().map_err(|source| BootstrapError::File {
        what: "raise",
        path: file.into(),
        source,
    })
}

/// containerd may read it at any time: it is whole or not there.
fn write(bundle: &Path, name: &str, text: &str) -> Result<(), BootstrapError> {
    let (new, path): (PathBuf, PathBuf) = (bundle.join(format!(".{name}")), bundle.join(name));
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
    written.map_err(|source| BootstrapError::File {
        what: "write",
        path,
        source,
    })
}

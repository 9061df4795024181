//! The last part of every process: it becomes its user, gives up what it is not to have, waits for the word,
//! and executes its program.

use std::{
    convert::Infallible,
    ffi::{CStr, CString, OsStr},
    io::{self, Read},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::libc;
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    process::{Gid, Uid},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{Control, Held, Report, console::Console, run_hooks};
use crate::{
    launch::failure::{Failure, Step},
    plan::{CapabilityPlan, HookPlan, ProcessPlan},
    sys,
};

/// What a process has beside its plan.
pub(super) struct Surroundings<'a> {
    pub(super) control: &'a Control,
    pub(super) streams: Option<[usize; 3]>,
    pub(super) console: Option<Console>,
    pub(super) start_hooks: &'a [HookPlan],
}

/// Executes the program of `plan`; comes back only where that fails.
pub(super) fn finish(
    plan: &ProcessPlan,
    held: &Held,
    around: Surroundings,
) -> Result<Infallible, Failure> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(plan.umask));
    take_streams(plan, held, &around)?;
    set_priorities(plan)?;
    if let Some(text) = &plan.confinement {
        std::fs::write("/proc/thread-self/attr/exec", text).step("confine the program")?;
    }
    let env = environment(plan);
    if plan.no_new_privs {
        rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
    } else {
        install_seccomp(plan)?;
    }
    for &limit in &plan.rlimits {
        sys::set_rlimit(0, limit).step_with(|| format!("set the limit {}", limit.0))?;
    }
    // As root first: the folder may be one that its user cannot reach from above.
    let entered = rustix::process::chdir(&*plan.cwd);
    become_user(plan)?;
    if entered.is_err() {
        rustix::process::chdir(&*plan.cwd)
            .step_with(|| format!("enter the folder {}", plan.cwd.to_string_lossy()))?;
    }
    stay_inside()?;
    let program = find_program(&plan.args[0], &env)?;
    sys::close_on_exec_from(3).step("close descriptors")?;
    let master: Vec<_> = around
        .console
        .iter()
        .map(|console| console.master.as_fd())
        .collect();
    around
        .control
        .report(&Report::Created, &master)
        .step("report to the shim")?;
    let order = around.control.wait()?;
    sys::reset_signals().step("set signals to their defaults")?;
    run_hooks(around.start_hooks, "startContainer", &order.state)?;
    if plan.no_new_privs {
        install_seccomp(plan)?;
    }
    let Err(error) = nix::unistd::execve(&program, &plan.args, &env);
    Err(Failure::program(
        &plan.args[0].to_string_lossy(),
        error.desc(),
    ))
}

fn take_streams(plan: &ProcessPlan, held: &Held, around: &Surroundings) -> Result<(), Failure> {
    let streams = match (&around.console, around.streams) {
        (Some(console), _) => {
            console.take(plan.uid).step("take the terminal")?;
            console.streams()
        }
        (None, Some(streams)) => streams.map(|at| held.get(at)),
        (None, None) => return Ok(()),
    };
    for (number, stream) in (0..).zip(streams) {
        sys::dup_onto(stream, number).step("take the standard streams")?;
        if around.console.is_none() {
            give_to_user(stream, plan.uid);
        }
    }
    Ok(())
}

/// The user may open its streams by name, as in `/dev/stdout`. What cannot be given is left as it is.
fn give_to_user(stream: std::os::fd::BorrowedFd, uid: u32) {
    if let Ok(found) = rustix::fs::fstat(stream)
        && rustix::fs::FileType::from_raw_mode(found.st_mode).is_fifo()
        && found.st_uid != uid
    {
        let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None);
    }
}

fn set_priorities(plan: &ProcessPlan) -> Result<(), Failure> {
    if let Some(domain) = plan.personality {
        sys::set_personality(domain).step("set the execution domain")?;
    }
    if let Some((class, priority)) = plan.io_priority {
        sys::set_io_priority(class, priority).step("set the priority of input and output")?;
    }
    if let Some(attributes) = &plan.scheduler {
        sys::set_scheduler(attributes).step("set the scheduler")?;
    }
    Ok(())
}

fn install_seccomp(plan: &ProcessPlan) -> Result<(), Failure> {
    let Some(seccomp) = &plan.seccomp else {
        return Ok(());
    };
    sys::set_seccomp(&seccomp.filter(), seccomp.flags).step("install the seccomp filter")
}

fn become_user(plan: &ProcessPlan) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    let groups: Vec<_> = plan
        .groups
        .iter()
        .map(|&group| Gid::from_raw(group))
        .collect();
    drop_bounding(plan.capabilities.bounding).step("drop capabilities for good")?;
    rustix::thread::set_keep_capabilities(true).step("keep capabilities")?;
    match rustix::thread::set_thread_groups(&groups) {
        // A user namespace made without rights cannot: nothing is lost where none was asked for.
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        set => set.step("set the groups")?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid).step("set the group")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step("set the user")?;
    rustix::thread::set_keep_capabilities(false).step("keep capabilities no longer")?;
    set_capabilities(&plan.capabilities).step("set the capabilities")
}

fn drop_bounding(kept: u64) -> rustix::io::Result<()> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept & one.bits() != 0 {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // Beyond the last that this kernel knows.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            dropped => dropped?,
        }
    }
    Ok(())
}

fn set_capabilities(plan: &CapabilityPlan) -> rustix::io::Result<()> {
    let set = CapabilitySet::from_bits_retain;
    let sets = CapabilitySets {
        effective: set(plan.effective),
        permitted: set(plan.permitted),
        inheritable: set(plan.inheritable),
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    for number in (0..64).filter(|number| plan.ambient & (1 << number) != 0) {
        rustix::thread::configure_capability_in_ambient_set(set(1 << number), true)?;
    }
    Ok(())
}

/// The current folder has to be one that the container's root leads to: a descriptor of the host's, named by
/// the working directory, would not be.
fn stay_inside() -> Result<(), Failure> {
    let folder = rustix::process::getcwd(Vec::new()).step("look where the process is")?;
    if folder.as_bytes().starts_with(b"/") {
        return Ok(());
    }
    let error = io::Error::other("it is outside of the container");
    Err(Failure::new("enter the working directory", error))
}

/// The plan's, with a `HOME` where it has none.
fn environment(plan: &ProcessPlan) -> Vec<CString> {
    let mut env = plan.env.clone();
    if !env.iter().any(|line| line.as_bytes().starts_with(b"HOME=")) {
        let home = CString::new(format!("HOME={}", home(plan.uid)));
        env.push(home.unwrap_or_else(|_| c"HOME=/".into()));
    }
    env
}

/// As the container's `/etc/passwd` has it, which may be anything.
fn home(uid: u32) -> String {
    const MAX: u64 = 1024 * 1024;
    let mut text = Vec::new();
    let flags =
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    if let Ok(file) = rustix::fs::open("/etc/passwd", flags, rustix::fs::Mode::empty()) {
        let _ = std::fs::File::from(file).take(MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut own = fields.filter(|fields| fields.len() > 5 && fields[2].parse() == Ok(uid));
    let home = own.next().map(|fields| fields[5].to_owned());
    home.filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".into())
}

/// The file of a program, sought where the environment's `PATH` says.
fn find_program(name: &CStr, env: &[CString]) -> Result<CString, Failure> {
    let text = name.to_string_lossy();
    let failed = |reason: &str| Failure::program(&text, reason);
    if name.to_bytes().contains(&b'/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error == rustix::io::Errno::NOENT => {
                Err(failed(&format!("stat {text}: no such file or directory")))
            }
            Err(_) => Err(failed("permission denied")),
        };
    }
    let paths = env
        .iter()
        .find_map(|line| line.as_bytes().strip_prefix(b"PATH="));
    for folder in paths.unwrap_or_default().split(|byte| *byte == b':') {
        let folder = if folder.is_empty() { b"." } else { folder };
        let path = Path::new(OsStr::from_bytes(folder)).join(OsStr::from_bytes(name.to_bytes()));
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            continue;
        };
        if executable(&path).is_ok() {
            return Ok(path);
        }
    }
    Err(failed("executable file not found in $PATH"))
}

fn executable(path: &CStr) -> rustix::io::Result<()> {
    let found = rustix::fs::stat(path)?;
    if found.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(rustix::io::Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

//! The least that such a container costs: the bare system calls, made by a small process with one thread.

use std::{
    ffi::CString,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::CloneFlags,
    sys::wait::{WaitStatus, waitpid},
    unistd::{Pid, chdir, execve, pivot_root},
};

use crate::{rootfs, sys};

/// The first argument of this program where it is to be that process.
pub(crate) const COMMAND: &str = "--baseline";
const NONE: Option<&str> = None;

/// The process, which makes one life for each line that it reads.
pub(crate) struct Baseline {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Baseline {
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let ask = process.stdin.take().context("it has an input")?;
        let answers = BufReader::new(process.stdout.take().context("it has an output")?);
        Ok(Self {
            process,
            ask,
            answers,
        })
    }

    /// The time from the clone to the end of the program.
    pub(crate) fn life(&mut self) -> Result<Duration> {
        writeln!(self.ask)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(Duration::from_nanos(line.trim().parse()?))
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the process does.
pub(crate) fn serve(args: &[String]) -> Result<()> {
    let dir = Path::new(args.first().context("the folder is missing")?);
    let own = dir.join("baseline");
    for name in ["upper", "work", "root"] {
        fs::create_dir_all(own.join(name))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        rootfs::tree(dir).display(),
        own.join("upper").display(),
        own.join("work").display()
    );
    let root = own.join("root");
    for line in std::io::stdin().lines() {
        line?;
        let began = Instant::now();
        match sys::clone3(namespaces())? {
            None => {
                let _ = enter(&root, &options);
                std::process::exit(1);
            }
            Some(pid) => {
                let status = waitpid(Pid::from_raw(pid), None)?;
                ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
            }
        }
        println!("{}", began.elapsed().as_nanos());
    }
    Ok(())
}

/// Those of the container that it is compared with.
fn namespaces() -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP
}

/// Never comes back where it succeeds.
fn enter(root: &Path, options: &str) -> Result<()> {
    let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NONE, "/", NONE, all, NONE)?;
    mount(
        Some("overlay"),
        root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options),
    )?;
    chdir(root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    let program = CString::new("/bin/busybox")?;
    let args = [program.clone(), CString::new("true")?];
    execve(&program, &args, &[] as &[CString])?;
    Ok(())
}

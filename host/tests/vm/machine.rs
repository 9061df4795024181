//! A virtual machine of a test's own, spoken to by ssh.

use std::{
    env, fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

#[path = "../support/image.rs"]
mod image;

/// The folder that `scripts/vm` has filled: `base.img`, `vmlinuz`, `initrd`, `key`, `opr.deb`.
const FOLDER: &str = "OPR_VM_FOLDER";
/// Without virtualisation by the processor a start takes half a minute.
const START: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(200);

/// A running machine. Dropping it is a power cut.
pub(crate) struct Machine {
    qemu: Child,
    port: u16,
    dir: tempfile::TempDir,
}

pub(crate) fn folder() -> PathBuf {
    env::var_os(FOLDER)
        .map(PathBuf::from)
        .expect("scripts/vm runs these tests")
}

/// A machine with the package installed, the node runtime's image imported and functions deployed, at one moment.
pub(crate) struct Installed {
    pub(crate) disk: PathBuf,
    memory: PathBuf,
}

impl Installed {
    /// Made once for each package.
    pub(crate) fn get() -> Result<Self> {
        let folder = folder();
        let installed = Self {
            disk: folder.join("installed.img"),
            memory: folder.join("installed.memory"),
        };
        let lock = fs::File::create(folder.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        if !installed.disk.exists() {
            installed.make()?;
        }
        Ok(installed)
    }

    fn make(&self) -> Result<()> {
        let folder = folder();
        let half = folder.join("installed.half");
        copy(&folder.join("base.img"), &half)?;
        let machine = Machine::boot(&half, Disk::Written)?;
        machine.put(&folder.join("opr.deb"), "/root/opr.deb")?;
        machine.put(&node_image()?, "/root/node.oci.tar")?;
        machine.put_folder(&functions().join("probe"), "/root/probe")?;
        machine.run("dpkg --install /root/opr.deb && opr images import /root/node.oci.tar && rm /root/node.oci.tar")?;
        for name in ["hello", "other"] {
            machine.run(&format!(
                "opr deploy /root/probe --name {name} --timeout 60"
            ))?;
        }
        machine.save(&self.memory)?;
        fs::rename(&half, &self.disk)?;
        Ok(())
    }
}

/// The archive of the node runtime's image.
pub(crate) fn node_image() -> Result<PathBuf> {
    image::runtime_archive("node")
}

fn functions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/functions")
}

/// Holes stay holes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([from, to])
        .status()?;
    ensure!(status.success(), "cp {} failed", from.display());
    Ok(())
}

/// What becomes of a machine's writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Written,
    /// They are gone with the machine.
    Unchanged,
}

impl Machine {
    /// One that goes on where the installed one was left: no test waits for a start that is none of its matter.
    pub(crate) fn installed() -> Result<Self> {
        let Installed { disk, memory } = Installed::get()?;
        let incoming = format!("exec:cat '{}'", memory.display());
        Self::start(&disk, Disk::Unchanged, &["-incoming", &incoming])
    }

    /// Powers on.
    pub(crate) fn boot(disk: &Path, writes: Disk) -> Result<Self> {
        Self::start(disk, writes, &[])
    }

    /// Waits until it lets one in.
    fn start(disk: &Path, writes: Disk, more: &[&str]) -> Result<Self> {
        let folder = folder();
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let path = |folder: &Path, name: &str| folder.join(name).display().to_string();
        let snapshot = if writes == Disk::Unchanged {
            "on"
        } else {
            "off"
        };
        let arguments = [
            // With a thread for each of its processors, one has executed what another had half patched.
            ("-accel", "tcg,thread=single"),
            // What it lacks would be emulated at a price, as in the kernel's command line.
            ("-cpu", "Nehalem-v1"),
            ("-smp", "2"),
            ("-m", "3072"),
            ("-kernel", &path(&folder, "vmlinuz")),
            ("-initrd", &path(&folder, "initrd")),
            (
                "-append",
                "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off",
            ),
            (
                "-drive",
                &format!(
                    "file={},format=raw,if=virtio,cache=writeback,snapshot={snapshot}",
                    disk.display()
                ),
            ),
            (
                "-nic",
                &format!("user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22"),
            ),
            ("-device", "virtio-rng-pci"),
            ("-display", "none"),
            (
                "-monitor",
                &format!("unix:{},server=on,wait=off", path(dir.path(), "monitor")),
            ),
            ("-serial", &format!("file:{}", path(dir.path(), "console"))),
        ];
        let qemu = Command::new("qemu-system-x86_64")
            .args(arguments.iter().flat_map(|(name, value)| [*name, *value]))
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let machine = Self { qemu, port, dir };
        machine.wait_for("true")?;
        Ok(machine)
    }

    /// Ends it and leaves its memory in `file`; with its disk it is what others go on from.
    fn save(mut self, file: &Path) -> Result<()> {
        self.run("sync")?;
        let mut monitor = UnixStream::connect(self.dir.path().join("monitor"))?;
        let target = file.display();
        let commands = format!(
            "migrate_set_parameter max-bandwidth 100G\nmigrate \"exec:cat > '{target}'\"\nquit\n"
        );
        monitor.write_all(commands.as_bytes())?;
        let mut told = String::new();
        monitor.read_to_string(&mut told)?;
        self.qemu.wait()?;
        ensure!(!told.contains("Error"), "the memory was not kept: {told}");
        Ok(())
    }

    /// Runs a shell script as root; its output, where it succeeds.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        let output = self.ssh(script, "set -eu\n")?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{script:?} failed: {told}{errors}");
        }
        Ok(told)
    }

    /// As [`Machine::run`], until it succeeds.
    pub(crate) fn wait_for(&self, script: &str) -> Result<String> {
        let deadline = Instant::now() + START;
        loop {
            match self.run(script) {
                Err(error) if Instant::now() > deadline => {
                    let console =
                        fs::read_to_string(self.dir.path().join("console")).unwrap_or_default();
                    let tail: Vec<_> = console.lines().rev().take(15).collect();
                    return Err(error.context(format!("the console said {tail:#?}")));
                }
                Err(_) => thread::sleep(PAUSE),
                Ok(told) => return Ok(told),
            }
        }
    }

    pub(crate) fn put(&self, file: &Path, target: &str) -> Result<()> {
        let input = fs::File::open(file).with_context(|| file.display().to_string())?;
        let output = self
            .client(&format!("cat > {target}"))
            .stdin(input)
            .output()?;
        ensure!(output.status.success(), "{} was not sent", file.display());
        Ok(())
    }

    pub(crate) fn put_folder(&self, folder: &Path, target: &str) -> Result<()> {
        let pack = Command::new("tar")
            .arg("--create")
            .arg("--directory")
            .args([folder, Path::new(".")])
            .stdout(Stdio::piped())
            .spawn()?;
        let unpack = format!("mkdir -p {target} && tar --extract --directory {target}");
        let output = self
            .client(&unpack)
            .stdin(pack.stdout.context("a pipe")?)
            .output()?;
        ensure!(output.status.success(), "{} was not sent", folder.display());
        Ok(())
    }

    fn ssh(&self, script: &str, first: &str) -> Result<Output> {
        let mut child = self
            .client("bash -s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("a pipe")?;
        input.write_all(format!("{first}{script}\n").as_bytes())?;
        drop(input);
        Ok(child.wait_with_output()?)
    }

    /// One connection carries all sessions: each further one is quick.
    fn client(&self, command: &str) -> Command {
        let control = self.dir.path().join("ssh");
        let mut ssh = Command::new("ssh");
        ssh.args(["-p", &self.port.to_string(), "-i"])
            .arg(folder().join("key"))
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "LogLevel=ERROR",
            ])
            .args([
                "-o",
                "ConnectTimeout=20",
                "-o",
                "ControlMaster=auto",
                "-o",
                "ControlPersist=600",
                "-o",
            ])
            .arg(format!("ControlPath={}", control.display()))
            .args(["root@127.0.0.1", command]);
        ssh
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let journal = self.ssh("journalctl --boot --output short-precise", "");
            let text = journal.map(|output| output.stdout).unwrap_or_default();
            let name = thread::current()
                .name()
                .unwrap_or("test")
                .replace("::", "-");
            let file = folder().join(format!("{name}.journal"));
            let _ = fs::write(&file, &text);
            eprintln!("the machine's journal is in {}", file.display());
            let text = String::from_utf8_lossy(&text);
            let own: Vec<_> = text.lines().filter(|line| line.contains("opr")).collect();
            for line in &own[own.len().saturating_sub(40)..] {
                eprintln!("{}", line.get(..400).unwrap_or(line));
            }
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

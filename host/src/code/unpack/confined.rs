//! Unpacking in a child process without rights: this program again, as `opr unpack-confined`.
//!
//! The parent opens the archive, makes the target, and moves it to its place when all of it is there. The
//! child gets the archive as standard input and the target as working directory, gives up all else, and
//! answers by exit code (65: the archive is refused, 74: the host failed) and a line on standard error.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use rustix::{fs::syncfs, process::Signal};
use tokio::{io::AsyncReadExt as _, process::Command};

use super::{super::blocking, Limits, UnpackError, restrict, unpack};
use crate::telemetry::chain;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "unpack-confined";

const REFUSED: u8 = 65;
const FAILED: u8 = 74;
const TIMEOUT: Duration = Duration::from_secs(180);
const MAX_MESSAGE_BYTES: u64 = 4096;

/// Starts the children that unpack.
#[derive(Debug, Clone)]
pub struct Unpacker {
    program: PathBuf,
    args: Vec<OsString>,
}

/// Why an archive did not become a directory.
#[derive(Debug, thiserror::Error)]
pub enum ConfinedError {
    /// The archive is damaged, hostile or too large.
    #[error("the archive is refused: {reason}")]
    Refused {
        /// In words; names the entry.
        reason: String,
    },
    /// The child failed for the host's reasons: the disk is full.
    #[error("cannot unpack into {target}: {reason}")]
    Failed {
        /// The directory.
        target: PathBuf,
        /// In words.
        reason: String,
    },
    /// A limit of the kernel ended the child, or its time was over.
    #[error("unpacking into {target} was stopped: {reason}")]
    Stopped {
        /// The directory.
        target: PathBuf,
        /// By what.
        reason: String,
    },
    /// The parent's part failed.
    #[error("cannot {what} {path}")]
    Host {
        /// What.
        what: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Default for Unpacker {
    /// Children are the running program, even where its file was replaced since.
    fn default() -> Self {
        #[cfg(not(test))]
        let args = [SUBCOMMAND];
        #[cfg(test)]
        let args = tests::CHILD;
        Self {
            program: "/proc/self/exe".into(),
            args: args.map(Into::into).to_vec(),
        }
    }
}

impl Unpacker {
    /// Unpacks `archive` into `target`, which must not be there yet. It is there as a whole, on disk, or not at all.
    ///
    /// # Errors
    /// See [`ConfinedError`]; nothing is left then.
    pub async fn unpack(&self, archive: &Path, target: &Path) -> Result<(), ConfinedError> {
        let (archive, target) = (archive.to_owned(), target.to_owned());
        let (input, half) = blocking({
            let target = target.clone();
            move || prepare(&archive, &target)
        })
        .await?;
        self.run(input, half.path()).await?;
        blocking(move || settle(half, &target)).await
    }

    /// Runs the child in `directory`.
    async fn run(&self, archive: File, directory: &Path) -> Result<(), ConfinedError> {
        let host = |source| ConfinedError::Host {
            what: "unpack into",
            path: directory.to_owned(),
            source,
        };
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .current_dir(directory)
            .stdin(archive)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(host)?;
        let stderr = child.stderr.take().expect("it was asked for above");
        let work = async {
            let mut message = Vec::new();
            let mut stderr = stderr.take(MAX_MESSAGE_BYTES);
            stderr.read_to_end(&mut message).await?;
            Ok((child.wait().await?, message))
        };
        let Ok(ended) = tokio::time::timeout(TIMEOUT, work).await else {
            // So that it writes no more while its directory is removed.
            child.kill().await.map_err(host)?;
            return Err(ConfinedError::Stopped {
                target: directory.to_owned(),
                reason: format!("it took longer than {} s", TIMEOUT.as_secs()),
            });
        };
        let (status, message) = ended.map_err(host)?;
        verdict(status, &message, directory)
    }
}

/// What the hidden subcommand does: confines this process, then unpacks standard input into the working directory.
///
/// Call it before any thread is made.
pub fn confined_main() -> ExitCode {
    ExitCode::from(child())
}

fn child() -> u8 {
    let limits = Limits::default();
    let (lacking, outcome) = match enter(&limits) {
        Ok((directory, lacking)) => {
            let outcome = unpack(io::stdin().lock(), directory.as_fd(), &limits);
            (lacking, outcome.map(drop))
        }
        Err(source) => {
            let entry = ".".to_owned();
            (Vec::new(), Err(UnpackError::Write { entry, source }))
        }
    };
    match outcome {
        Ok(()) => {
            // The parent logs it.
            eprint!("{}", lacking.join(", "));
            0
        }
        Err(error) => {
            let code = if error.is_archives_fault() {
                REFUSED
            } else {
                FAILED
            };
            eprint!("{}", chain(&error));
            code
        }
    }
}

/// The working directory, and what this kernel cannot confine.
fn enter(limits: &Limits) -> io::Result<(File, Vec<&'static str>)> {
    let directory = File::open(".")?;
    let lacking = restrict::restrict(directory.as_fd(), limits)?;
    Ok((directory, lacking))
}

/// What the child's end means.
fn verdict(
    status: std::process::ExitStatus,
    message: &[u8],
    directory: &Path,
) -> Result<(), ConfinedError> {
    use std::os::unix::process::ExitStatusExt as _;
    let reason = String::from_utf8_lossy(message).trim().to_owned();
    let target = directory.to_owned();
    match (status.code().map(u8::try_from), status.signal()) {
        (Some(Ok(0)), _) => {
            if !reason.is_empty() {
                tracing::warn!(lacking = reason, "unpacked with less confinement");
            }
            Ok(())
        }
        (Some(Ok(REFUSED)), _) => Err(ConfinedError::Refused { reason }),
        (Some(Ok(FAILED)), _) => Err(ConfinedError::Failed { target, reason }),
        (_, Some(signal)) if signal == Signal::XCPU.as_raw() => Err(ConfinedError::Refused {
            reason: "it takes too long to unpack".into(),
        }),
        (_, Some(signal)) if signal == Signal::ABORT.as_raw() => Err(ConfinedError::Refused {
            reason: "it takes too much memory to unpack".into(),
        }),
        _ => Err(ConfinedError::Stopped {
            target,
            reason: format!("{status} {reason}"),
        }),
    }
}

/// A directory that goes away unless it is moved to its place.
struct Half(Option<PathBuf>);

impl Half {
    fn path(&self) -> &Path {
        self.0.as_deref().expect("it is taken by `settle` only")
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else {
            return;
        };
        // Where the caller went away, the killed child may still write for an instant.
        for is_last in [false, false, false, true] {
            match fs::remove_dir_all(&path) {
                Ok(()) => return,
                Err(error) if is_last => {
                    tracing::warn!(path = %path.display(), %error, "could not remove what was half unpacked");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn prepare(archive: &Path, target: &Path) -> Result<(File, Half), ConfinedError> {
    let host = |what, path: &Path| {
        let path = path.to_owned();
        move |source| ConfinedError::Host { what, path, source }
    };
    let input = File::open(archive).map_err(host("open", archive))?;
    let half = PathBuf::from(format!(
        "{}.tmp-{:016x}",
        target.display(),
        rand::random::<u64>()
    ));
    fs::create_dir(&half).map_err(host("make", &half))?;
    let guard = Half(Some(half.clone()));
    // Whatever this process's mask: sandboxes read it.
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&half, mode).map_err(host("make", &half))?;
    Ok((input, guard))
}

/// Brings all to the disk, then gives it its name.
fn settle(mut half: Half, target: &Path) -> Result<(), ConfinedError> {
    let host = |source| ConfinedError::Host {
        what: "move into place",
        path: target.to_owned(),
        source,
    };
    // One call instead of one for each of many small files.
    syncfs(File::open(half.path()).map_err(host)?).map_err(|e| host(e.into()))?;
    fs::rename(half.path(), target).map_err(host)?;
    half.0 = None;
    let parent = target.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(host)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{Item, gzip, tar},
        *,
    };
    use tar::EntryType;

    /// The child is this test program again, running the one test below.
    pub(super) const CHILD: [&str; 4] = [
        "code::unpack::confined::tests::child_process",
        "--exact",
        "--ignored",
        "--nocapture",
    ];

    #[test]
    #[ignore = "a child process of the other tests"]
    fn child_process() {
        std::process::exit(child().into());
    }

    async fn unpack_items(items: &[Item<'_>], dir: &Path) -> Result<(), ConfinedError> {
        let archive = dir.join("archive");
        fs::write(&archive, gzip(&tar(items))).unwrap();
        let outcome = Unpacker::default()
            .unpack(&archive, &dir.join("code"))
            .await;
        fs::remove_file(&archive).unwrap();
        outcome
    }

    #[tokio::test]
    async fn a_child_unpacks_and_the_directory_appears_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let items: [Item; 4] = [
            (EntryType::Regular, "src/a.js", "", b"1"),
            (EntryType::Symlink, "b", "src/a.js", b""),
            (EntryType::Link, "lib/c.js", "src/a.js", b""),
            (EntryType::Regular, "b", "", b"2"),
        ];
        unpack_items(&items, dir.path()).await.unwrap();
        let code = dir.path().join("code");
        assert_eq!(fs::read(code.join("lib/c.js")).unwrap(), b"1");
        assert_eq!(fs::read(code.join("b")).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_refused_archive_leaves_nothing_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let items: [Item; 2] = [
            (EntryType::Regular, "a", "", b"1"),
            (EntryType::Regular, "../b", "", b"2"),
        ];
        let error = unpack_items(&items, dir.path()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the archive is refused: entry \"../b\" has a name that points out of the archive"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// A file system of one MiB in a mount namespace that this test's thread has for itself.
    fn with_small_disk(dir: &Path) -> bool {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok()
            && mount_change("/", private).is_ok()
            && mount("tmpfs", dir, "tmpfs", MountFlags::empty(), c"size=1m").is_ok()
    }

    #[test]
    fn a_full_disk_leaves_nothing_and_is_the_hosts_fault() {
        let dir = tempfile::tempdir().unwrap();
        if !with_small_disk(dir.path()) {
            eprintln!("skipped: this process may not mount");
            return;
        }
        let archive = tempfile::NamedTempFile::new().unwrap();
        let noise: Vec<u8> = (0..3_000_000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        fs::write(&archive, tar(&[(EntryType::Regular, "a", "", &noise)])).unwrap();
        // Only this thread sees the file system, so the work must not go to another one.
        let (input, half) = prepare(archive.path(), &dir.path().join("code")).unwrap();
        let child = std::process::Command::new("/proc/self/exe")
            .args(Unpacker::default().args)
            .current_dir(half.path())
            .stdin(input)
            .output()
            .unwrap();
        let error = verdict(child.status, &child.stderr, half.path()).unwrap_err();
        assert!(matches!(error, ConfinedError::Failed { .. }), "{error}");
        assert!(
            error.to_string().contains("No space left on device"),
            "{error}"
        );
        drop(half);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let names: Vec<_> = (0..20_000).map(|n| format!("d{}/{n}", n % 100)).collect();
        let items: Vec<Item> = names
            .iter()
            .map(|n| (EntryType::Regular, n.as_str(), "", b"".as_slice()))
            .collect();
        fs::write(&archive, tar(&items)).unwrap();
        let (unpacker, target) = (Unpacker::default(), dir.path().join("code"));
        let work = unpacker.unpack(&archive, &target);
        let outcome = tokio::time::timeout(Duration::from_millis(60), work).await;
        assert!(outcome.is_err(), "it ended before it was given up");
        fs::remove_file(&archive).unwrap();
        let is_empty = || fs::read_dir(dir.path()).unwrap().count() == 0;
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !is_empty() && std::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(is_empty());
    }

    #[tokio::test]
    async fn a_directory_that_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("code")).unwrap();
        fs::write(dir.path().join("code/kept"), "").unwrap();
        let error = unpack_items(&[], dir.path()).await.unwrap_err();
        assert!(matches!(error, ConfinedError::Host { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(dir.path().join("code/kept").exists());
    }
}

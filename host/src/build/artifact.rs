//! Takes what a build made out of a directory that the build could write to, and looks into its code.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};

/// The archive that `helpers/build.sh` writes, whatever its compression.
pub(super) const ARCHIVE: &str = "code.tar.gz";
/// How many names a message shows.
const SHOWN: usize = 20;

/// Why there is no artifact to take.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The build wrote none.
    #[error("the build ended well, but wrote no {file}")]
    Missing {
        /// The file's name.
        file: &'static str,
    },
    /// It is a link, a FIFO, a directory or the like.
    #[error("the build wrote a {file} that is no regular file")]
    Special {
        /// The file's name.
        file: &'static str,
    },
    /// It is too large.
    #[error("the build's {file} has {size} bytes, more than the {limit} that are accepted")]
    TooLarge {
        /// The file's name.
        file: &'static str,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The host could not read it.
    #[error("cannot read the build's {file}")]
    Read {
        /// The file's name.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Opens a file of `directory`, which is hostile: no link is followed, and nothing waits for a writer.
pub(super) fn open(
    directory: &Path,
    file: &'static str,
    limit: u64,
) -> Result<File, ArtifactError> {
    let read = |error: Errno| ArtifactError::Read {
        file,
        source: error.into(),
    };
    let root = open_directory(directory).map_err(read)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let opened =
        openat2(&root, file, flags, Mode::empty(), resolve).map_err(|error| match error {
            Errno::NOENT => ArtifactError::Missing { file },
            Errno::LOOP | Errno::XDEV | Errno::NXIO => ArtifactError::Special { file },
            error => read(error),
        })?;
    let stat = fstat(&opened).map_err(read)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(ArtifactError::Special { file });
    }
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > limit {
        return Err(ArtifactError::TooLarge { file, size, limit });
    }
    Ok(opened.into())
}

/// Makes a file in `directory`, which is hostile, of what `content` holds. It belongs to the directory's owner.
pub(super) fn write(directory: &Path, file: &str, content: &mut impl io::Read) -> io::Result<()> {
    let root = open_directory(directory)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut made = File::from(openat2(&root, file, flags, mode, resolve)?);
    let owner = fstat(&root)?;
    std::os::unix::fs::fchown(&made, Some(owner.st_uid), Some(owner.st_gid))?;
    io::copy(content, &mut made).map(drop)
}

/// Whether `entrypoint` is a file of the unpacked code, also by way of a link that stays in it.
pub(super) fn has_entrypoint(code: &Path, entrypoint: &str) -> io::Result<bool> {
    let root = open_directory(code)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match openat2(&root, entrypoint, flags, Mode::empty(), resolve) {
        Ok(file) => Ok(FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile),
        Err(_) => Ok(false),
    }
}

/// The first names in the root of the code, for a message.
pub(super) fn names(code: &Path) -> String {
    let Ok(entries) = fs::read_dir(code) else {
        return "nothing".to_owned();
    };
    let shown = |name: &OsStr| name.to_string_lossy().into_owned();
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| shown(&entry.file_name()))
        .collect();
    names.sort();
    let n_more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match (names.is_empty(), n_more) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => names.join(", "),
        (false, n) => format!("{} and {n} more", names.join(", ")),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::unix::{fs::symlink, net::UnixListener},
    };

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[track_caller]
    fn check(dir: &Path, expected: &str) {
        let error = open(dir, ARCHIVE, 100).unwrap_err().to_string();
        assert_eq!(error, expected);
    }

    #[test]
    fn takes_a_regular_file() {
        let dir = dir();
        fs::write(dir.path().join(ARCHIVE), "content").unwrap();
        let mut text = String::new();
        let mut file = open(dir.path(), ARCHIVE, 100).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
    }

    #[test]
    fn a_hostile_directory_gives_an_error_at_once() {
        const SPECIAL: &str = "the build wrote a code.tar.gz that is no regular file";
        check(
            dir().path(),
            "the build ended well, but wrote no code.tar.gz",
        );

        let linked = dir();
        symlink("/etc/passwd", linked.path().join(ARCHIVE)).unwrap();
        check(linked.path(), SPECIAL);

        let fifo = dir();
        rustix::fs::mknodat(
            CWD,
            fifo.path().join(ARCHIVE),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        check(fifo.path(), SPECIAL);

        let directory = dir();
        fs::create_dir(directory.path().join(ARCHIVE)).unwrap();
        check(directory.path(), SPECIAL);

        let socket = dir();
        let _listener = UnixListener::bind(socket.path().join(ARCHIVE)).unwrap();
        check(socket.path(), SPECIAL);

        let huge = dir();
        let file = File::create(huge.path().join(ARCHIVE)).unwrap();
        file.set_len(1 << 40).unwrap();
        check(
            huge.path(),
            "the build's code.tar.gz has 1099511627776 bytes, more than the 100 that are accepted",
        );

        let replaced = dir();
        symlink("/etc", replaced.path().join("code")).unwrap();
        check(
            &replaced.path().join("code"),
            "cannot read the build's code.tar.gz",
        );
    }

    #[test]
    fn a_file_is_made_within_a_hostile_directory_only() {
        let dir = dir();
        write(dir.path(), "stores.sqfs", &mut "cache".as_bytes()).unwrap();
        assert_eq!(fs::read(dir.path().join("stores.sqfs")).unwrap(), b"cache");
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("file");
        symlink(&target, dir.path().join("link")).unwrap();
        assert!(write(dir.path(), "link", &mut "cache".as_bytes()).is_err());
        assert!(!target.exists());
        symlink(outside.path(), dir.path().join("folder")).unwrap();
        let folder = dir.path().join("folder");
        assert!(write(&folder, "file", &mut "cache".as_bytes()).is_err());
        assert!(!target.exists());
    }

    #[test]
    fn finds_the_entrypoint_within_the_code_only() {
        let dir = dir();
        let code = dir.path().join("code");
        fs::create_dir_all(code.join("src")).unwrap();
        fs::write(code.join("src/main.js"), "").unwrap();
        fs::write(dir.path().join("outside.js"), "").unwrap();
        symlink("src/main.js", code.join("index.js")).unwrap();
        symlink("../outside.js", code.join("out.js")).unwrap();
        let check = |name, expected| {
            assert_eq!(has_entrypoint(&code, name).unwrap(), expected, "{name}");
        };
        check("src/main.js", true);
        check("index.js", true);
        check("src", false);
        check("main.js", false);
        check("", false);
        check("out.js", false);
        check("../outside.js", false);
        check("/etc/passwd", false);
    }

    #[test]
    fn a_message_shows_the_first_names() {
        let dir = dir();
        assert_eq!(names(dir.path()), "nothing");
        for name in ["b", "a"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(names(dir.path()), "a, b");
        for n in 0..30 {
            fs::write(dir.path().join(format!("c{n}")), "").unwrap();
        }
        assert!(names(dir.path()).ends_with("and 12 more"));
    }
}

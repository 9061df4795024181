//! What package managers keep between the builds of one function: one file, which the image's helpers pack and unpack.
//! A build works on a copy of the kept one, on its own disk; what it leaves there takes its place.

use std::{
    fs::{self, Permissions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{ArtifactError, MAX_ARCHIVE_BYTES, artifact};
use crate::id::FunctionName;

/// The folder's name in a sandbox's scratch, and the file in it.
pub(super) const FOLDER: &str = "cache";
pub(super) const FILE: &str = "stores.sqfs";

/// The caches of functions, each in a file of its own.
#[derive(Debug, Clone)]
pub(super) struct Caches {
    directory: PathBuf,
}

impl Caches {
    /// Those in `directory`, which is made, and rid of what a crash left. Blocks: called once, at start.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        // Sandboxes' ids pass through, but cannot list.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(&directory)?;
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "sqfs") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { directory })
    }

    /// The cache of a function, where one was kept.
    pub(super) fn get(&self, function: &FunctionName) -> Option<PathBuf> {
        Some(self.path(function)).filter(|path| path.exists())
    }

    /// Keeps what a build has left in `folder`, which is hostile. It leaving none is no failure. Blocks.
    pub(super) fn keep(&self, function: &FunctionName, folder: &Path) -> Result<(), ArtifactError> {
        let content = match artifact::open(folder, FILE, MAX_ARCHIVE_BYTES) {
            Err(ArtifactError::Missing { .. }) => return Ok(()),
            opened => opened?,
        };
        let replace = || {
            let mut new = tempfile::NamedTempFile::new_in(&self.directory)?;
            io::copy(&mut content.take(MAX_ARCHIVE_BYTES), &mut new)?;
            new.as_file()
                .set_permissions(Permissions::from_mode(0o644))?;
            new.persist(self.path(function))?;
            Ok(())
        };
        replace().map_err(|source| ArtifactError::Read { file: FILE, source })
    }

    /// Forgets the cache of a function.
    pub(super) fn remove(&self, function: &FunctionName) -> io::Result<()> {
        match fs::remove_file(self.path(function)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn path(&self, function: &FunctionName) -> PathBuf {
        self.directory.join(format!("{function}.sqfs"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_last_build_counts_and_a_hostile_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (left, state) = (dir.path().join("left"), dir.path().join("state/caches"));
        fs::create_dir(&left).unwrap();
        let caches = Caches::open(state.clone()).unwrap();
        let name: FunctionName = "hello.v2".parse().unwrap();
        caches.keep(&name, &left).unwrap();
        assert_eq!(caches.get(&name), None);
        for content in ["first", "second"] {
            fs::write(left.join(FILE), content).unwrap();
            caches.keep(&name, &left).unwrap();
        }
        fs::remove_file(left.join(FILE)).unwrap();
        symlink("/etc/passwd", left.join(FILE)).unwrap();
        caches.keep(&name, &left).unwrap_err();

        fs::write(state.join(".tmpAbCdEf"), "").unwrap();
        let caches = Caches::open(state.clone()).unwrap();
        let kept = caches.get(&name).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "second");
        let mode = fs::metadata(&kept).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        for _ in 0..2 {
            caches.remove(&name).unwrap();
        }
        assert_eq!(fs::read_dir(state).unwrap().count(), 0);
    }
}

//! Archives that clients of the executor API bring as an instance's code: each instance gets a copy of its own.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::id::SandboxId;

/// The copies: `<state_dir>/sources/<sandbox id>`.
#[derive(Debug, Clone)]
pub(super) struct Sources(PathBuf);

impl Sources {
    pub(super) fn new(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("sources");
        DirBuilder::new().recursive(true).mode(0o711).create(&dir)?;
        Ok(Self(dir))
    }

    /// Copies a regular file, readable for every id. Blocks.
    pub(super) fn copy(&self, id: &SandboxId, from: &Path) -> io::Result<PathBuf> {
        // Without NONBLOCK, opening a FIFO would wait for its writer.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut source = File::options().read(true).custom_flags(flags).open(from)?;
        if !source.metadata()?.is_file() {
            let message = format!("{} is no regular file", from.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let path = self.0.join(id.as_str());
        let copied = File::create(&path).and_then(|mut copy| {
            io::copy(&mut source, &mut copy)?;
            copy.set_permissions(Permissions::from_mode(0o444))
        });
        match copied {
            Ok(()) => Ok(path),
            Err(error) => {
                // The error that counts is the first.
                let _ = self.remove(id);
                Err(error)
            }
        }
    }

    /// Removes a copy. Succeeds where there is none.
    pub(super) fn remove(&self, id: &SandboxId) -> io::Result<()> {
        match fs::remove_file(self.0.join(id.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes all copies but these.
    pub(super) fn sweep(&self, kept: &BTreeSet<SandboxId>) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let id = entry.file_name().into_string().ok();
            let id = id.and_then(|name| SandboxId::try_new(name).ok());
            if !id.is_some_and(|id| kept.contains(&id)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_readable_and_go_with_their_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources::new(dir.path()).unwrap();
        let id = |name| SandboxId::try_new(name).unwrap();
        let from = dir.path().join("code.tar.gz");
        fs::write(&from, "code").unwrap();
        fs::set_permissions(&from, Permissions::from_mode(0o600)).unwrap();
        let copy = sources.copy(&id("a"), &from).unwrap();
        sources.copy(&id("b"), &from).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"code");
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o444);
        sources.sweep(&BTreeSet::from([id("b")])).unwrap();
        assert!(!copy.exists());
        sources.remove(&id("b")).unwrap();
        sources.remove(&id("b")).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("sources")).unwrap().count(), 0);
    }

    #[test]
    fn only_regular_files_are_code() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources::new(dir.path()).unwrap();
        let id = SandboxId::try_new("a").unwrap();
        let copy = |path: &Path| sources.copy(&id, path).map_err(|error| error.kind());
        assert_eq!(copy(dir.path()), Err(io::ErrorKind::InvalidInput));
        let missing = dir.path().join("none");
        assert_eq!(copy(&missing), Err(io::ErrorKind::NotFound));
        assert_eq!(fs::read_dir(dir.path().join("sources")).unwrap().count(), 0);
    }
}

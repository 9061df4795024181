//! What goes into a build, as one digest: the Dockerfile, the build arguments and the files that it copies.
//!
//! What a step downloads is none of it, nor is the base image. Where a Dockerfile says what it copies in a way
//! that only its builder understands (patterns, variables, bind mounts), the whole context counts.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::{BuildContext, BuildError};
use crate::document::digest_of;

/// The label of an image that has the digest of what it was built of.
pub const LABEL: &str = "opr.inputs";

impl BuildContext {
    /// The digest of what goes into the build, as in `sha256:…`. The image's name is none of it.
    ///
    /// # Errors
    /// [`BuildError::File`] where the Dockerfile or a file of the context cannot be read.
    pub fn inputs(&self) -> Result<String, BuildError> {
        let dockerfile = read(&self.dockerfile)?;
        let mut list = Parts(Vec::new());
        list.add(&dockerfile);
        for (name, value) in &self.build_args {
            list.add(name.as_bytes());
            list.add(value.as_bytes());
        }
        let ignored = ignored(&self.context_dir)?;
        let mut files = BTreeSet::new();
        for source in sources(&String::from_utf8_lossy(&dockerfile)) {
            find(
                &self.context_dir.join(source),
                &self.context_dir,
                &ignored,
                &mut files,
            )?;
        }
        for file in files {
            let name = file.strip_prefix(&self.context_dir);
            list.add(
                name.expect("it is below the context")
                    .as_os_str()
                    .as_bytes(),
            );
            list.add_file(&file)?;
        }
        Ok(digest_of(&list.0))
    }
}

/// Parts with their lengths, so that no two lists of parts are alike.
struct Parts(Vec<u8>);

impl Parts {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend((bytes.len() as u64).to_le_bytes());
        self.0.extend(bytes);
    }

    fn add_file(&mut self, path: &Path) -> Result<(), BuildError> {
        let kind = fs::symlink_metadata(path).map_err(failed(path))?;
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed(path))?;
            self.add(b"link");
            self.add(target.as_os_str().as_bytes());
        } else if kind.is_file() {
            self.add(&kind.permissions().mode().to_le_bytes());
            self.add(digest_of(&read(path)?).as_bytes());
        }
        Ok(())
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    |source| BuildError::File { path, source }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(failed(path))
}

/// The paths below the context that a Dockerfile copies; `.` is all of it.
fn sources(dockerfile: &str) -> BTreeSet<PathBuf> {
    let mut sources = BTreeSet::new();
    let all = || BTreeSet::from([PathBuf::from(".")]);
    for line in logical_lines(dockerfile) {
        let mut words = line.split_whitespace();
        let instruction = words.next().unwrap_or_default().to_ascii_uppercase();
        let (flags, words): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("--"));
        let is_elsewhere = flags.iter().any(|flag| flag.contains("from="));
        let is_mounted = flags.iter().any(|flag| flag.contains("type=bind"));
        match &*instruction {
            "RUN" if is_mounted && !is_elsewhere => return all(),
            "COPY" | "ADD" if !is_elsewhere => {
                let paths = words.split_last().map_or(&[][..], |(_, paths)| paths);
                for path in paths {
                    let path = path.trim_start_matches('/').trim_start_matches("./");
                    let is_plain =
                        |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
                    if matches!(path, "" | ".")
                        || !path.bytes().all(is_plain)
                        || path.contains("..")
                    {
                        return all();
                    }
                    sources.insert(PathBuf::from(path));
                }
            }
            _ => {}
        }
    }
    sources
}

/// Lines without comments, those that go on put together.
fn logical_lines(dockerfile: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for line in dockerfile
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        let last = lines.last_mut().expect("there is one at least");
        match line.trim_end().strip_suffix('\\') {
            Some(part) => last.extend([part, " "]),
            None => {
                last.push_str(line);
                lines.push(String::new());
            }
        }
    }
    lines
}

/// What `.dockerignore` leaves out: patterns stand at the context's root.
fn ignored(context_dir: &Path) -> Result<Gitignore, BuildError> {
    let path = context_dir.join(".dockerignore");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(failed(&path))?,
    };
    let mut patterns = GitignoreBuilder::new(context_dir);
    let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    for line in text.lines().map(str::trim) {
        let (not, pattern) = match line.strip_prefix('!') {
            Some(pattern) => ("!", pattern),
            None => ("", line),
        };
        if !pattern.is_empty() && !pattern.starts_with('#') {
            let line = format!("{not}/{}", pattern.trim_matches('/'));
            let added = patterns.add_line(None, &line).map(drop);
            added.map_err(wrong).map_err(failed(&path))?;
        }
    }
    patterns.build().map_err(wrong).map_err(failed(&path))
}

/// Files and links at or below `path` that are not left out. One that is not there is the builder's to tell.
fn find(
    path: &Path,
    root: &Path,
    ignored: &Gitignore,
    files: &mut BTreeSet<PathBuf>,
) -> Result<(), BuildError> {
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(failed(path))?,
    };
    let name = path.strip_prefix(root).unwrap_or(path);
    if ignored
        .matched_path_or_any_parents(name, kind.is_dir())
        .is_ignore()
    {
        return Ok(());
    }
    if !kind.is_dir() {
        files.insert(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(failed(path))? {
        find(&entry.map_err(failed(path))?.path(), root, ignored, files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(dockerfile: &str, expected: &str) {
        let found = sources(dockerfile);
        let found: Vec<_> = found
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        assert_eq!(found.join(" "), expected, "{dockerfile}");
    }

    #[test]
    fn copied_paths_are_read_out_of_a_dockerfile() {
        check(
            "FROM x\nCOPY go/src/ src/\ncopy helpers ./b c/\n# COPY d e",
            "b go/src/ helpers",
        );
        check(
            "COPY --chmod=755 a \\\n  # why\n  b \\\n  /c\nRUN COPY d e",
            "a b",
        );
        check(
            "COPY --from=tools /x /y\nRUN --mount=type=cache,target=/z cat",
            "",
        );
    }

    #[test]
    fn the_whole_context_counts_where_only_the_builder_knows() {
        for line in [
            "COPY . .",
            "COPY / /srv",
            "COPY a*.txt b/",
            "ADD $NAME/x y",
            "COPY [\"a b\", \"c\"]",
            "COPY a/../b c",
            "RUN --mount=type=bind,source=a,target=/a cat /a/b",
        ] {
            check(&format!("COPY a b\n{line}\n"), ".");
        }
    }

    /// A context of two languages with a folder that they share.
    fn context() -> (tempfile::TempDir, BuildContext) {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".dockerignore", "**/test\nREADME.md\n!b/src/test/kept\n");
        write("a/Dockerfile", "FROM x\nCOPY shared a/src /srv/\n");
        write("a/src/main", "1");
        write("a/src/test/main", "1");
        write("b/src/main", "1");
        write("shared/run", "1");
        let context = BuildContext {
            dockerfile: dir.path().join("a/Dockerfile"),
            context_dir: dir.path().to_owned(),
            tag: "a:1".parse().unwrap(),
            build_args: [("VERSION".to_owned(), "1".to_owned())].into(),
        };
        (dir, context)
    }

    #[test]
    fn inputs_change_with_what_is_built_of_and_with_nothing_else() {
        let (dir, mut context) = context();
        let mut before = context.inputs().unwrap();
        let mut check = |context: &BuildContext, changes: bool| {
            let now = context.inputs().unwrap();
            assert_eq!(now != before, changes);
            before = now;
        };
        let write = |name: &str| fs::write(dir.path().join(name), "2").unwrap();
        write("b/src/main");
        write("a/src/test/main");
        write("README.md");
        context.tag = "a:2".parse().unwrap();
        check(&context, false);
        write("a/src/main");
        check(&context, true);
        write("a/src/more");
        check(&context, true);
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path().join("shared/run"), executable).unwrap();
        check(&context, true);
        fs::rename(dir.path().join("a/src/more"), dir.path().join("a/src/less")).unwrap();
        check(&context, true);
        context.build_args.insert("VERSION".into(), "2".into());
        check(&context, true);
        fs::write(&context.dockerfile, "FROM y\nCOPY shared a/src /srv/\n").unwrap();
        check(&context, true);
    }

    #[test]
    fn a_missing_dockerfile_is_named() {
        let (dir, context) = context();
        fs::remove_file(dir.path().join("a/Dockerfile")).unwrap();
        let error = context.inputs().unwrap_err().to_string();
        assert!(error.ends_with("a/Dockerfile"), "{error}");
    }
}

//! A function's folder as an archive, without what is not its source, and a guess at its runtime.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use flate2::{Compression, write::GzEncoder};
use ignore::WalkBuilder;

/// Folders that are made from the source, or are no part of it.
const LEFT_OUT: &[&str] = &[".git", "node_modules", "__pycache__", ".venv"];

/// Packs `folder` into `archive`. What `.gitignore` and `.oprignore` name is left out; links stay links.
pub(super) fn pack(folder: &Path, archive: File) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(archive, Compression::fast()));
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Deterministic);
    let mut n_files = 0;
    for path in files(folder)? {
        let name = path.strip_prefix(folder).expect("found below the folder");
        let read = || format!("cannot read {}", path.display());
        check_link(folder, &path)?;
        tar.append_path_with_name(&path, name).with_context(read)?;
        n_files += 1;
    }
    if n_files == 0 {
        bail!("{} has no files to deploy", folder.display());
    }
    tar.into_inner()
        .and_then(GzEncoder::finish)
        .context("cannot write the archive")?;
    Ok(())
}

/// Files and links below `folder`, by name.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut walk = WalkBuilder::new(folder);
    walk.standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .parents(false)
        .add_custom_ignore_filename(".oprignore")
        .filter_entry(|entry| {
            let name = entry.file_name().to_str();
            !name.is_some_and(|name| LEFT_OUT.contains(&name))
        })
        .sort_by_file_name(std::ffi::OsStr::cmp);
    let mut files = Vec::new();
    for entry in walk.build() {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let kind = entry.file_type();
        if kind.is_some_and(|kind| kind.is_file() || kind.is_symlink()) {
            files.push(entry.into_path());
        } else if kind.is_some_and(|kind| !kind.is_dir()) {
            bail!("{} is no file, folder or link", entry.path().display());
        }
    }
    Ok(files)
}

/// A link out of the folder would not be there after the build: better said now.
fn check_link(folder: &Path, path: &Path) -> anyhow::Result<()> {
    if !path.is_symlink() {
        return Ok(());
    }
    let leads = |error: io::Error| format!("the link {} leads nowhere: {error}", path.display());
    let target = path
        .canonicalize()
        .map_err(|error| anyhow::anyhow!(leads(error)))?;
    if !target.starts_with(folder.canonicalize()?) {
        bail!(
            "the link {} leads out of {}",
            path.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Families of runtimes and the files that speak of them. The first that has one is meant: what is more particular comes first.
const SIGNS: [(&str, &[&str]); 14] = [
    ("bun", &["bun.lock", "bun.lockb", "bunfig.toml"]),
    ("deno", &["deno.json", "deno.jsonc", "deno.lock", "mod.ts"]),
    (
        "node",
        &["package.json", "index.js", "index.mjs", "main.js"],
    ),
    ("python", &["requirements.txt", "main.py", "index.py"]),
    ("php", &["composer.json", "index.php"]),
    ("ruby", &["Gemfile", "index.rb"]),
    ("go", &["go.mod", "main.go"]),
    ("rust", &["Cargo.toml", "main.rs"]),
    ("java", &["Index.java"]),
    ("kotlin", &["Index.kt"]),
    ("cpp", &["index.cc"]),
    ("swift", &["Package.swift", "Index.swift"]),
    ("bun", &["index.ts"]),
    ("static", &["index.html"]),
];

/// The family of runtimes that a folder's files speak of.
pub(super) fn guess_runtime(folder: &Path) -> Option<&'static str> {
    let has = |names: &[&str]| names.iter().any(|name| folder.join(name).is_file());
    let found = SIGNS.iter().find(|(_, names)| has(names));
    found.map(|(family, _)| *family)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    fn names(archive: &Path) -> Vec<String> {
        let file = File::open(archive).unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let entries = tar.entries().unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| entry.path().unwrap().display().to_string())
            .collect()
    }

    fn packed(folder: &Path) -> anyhow::Result<Vec<String>> {
        let archive = tempfile::NamedTempFile::new()?;
        pack(folder, archive.reopen()?)?;
        Ok(names(archive.path()))
    }

    #[test]
    fn packs_sources_alone() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        for name in [
            "index.js",
            ".env.example",
            "lib/a.js",
            "node_modules/x/index.js",
            ".git/config",
            "secret.txt",
            "dist/out.js",
        ] {
            write(name);
        }
        fs::write(dir.path().join(".gitignore"), "dist/\n").unwrap();
        fs::write(dir.path().join(".oprignore"), "secret.txt\n").unwrap();
        symlink("index.js", dir.path().join("main.js")).unwrap();
        let expected = [
            ".env.example",
            ".gitignore",
            ".oprignore",
            "index.js",
            "lib/a.js",
            "main.js",
        ];
        assert_eq!(packed(dir.path()).unwrap(), expected);
    }

    #[test]
    fn the_same_folder_gives_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("index.js"), "x").unwrap();
        let bytes = || {
            let archive = tempfile::NamedTempFile::new().unwrap();
            pack(dir.path(), archive.reopen().unwrap()).unwrap();
            let mut bytes = Vec::new();
            archive.reopen().unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn links_that_lead_away_and_empty_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = |dir: &Path| packed(dir).unwrap_err().to_string();
        assert!(message(dir.path()).contains("has no files"));
        symlink("/etc/passwd", dir.path().join("a")).unwrap();
        assert!(message(dir.path()).contains("leads out of"));
        fs::remove_file(dir.path().join("a")).unwrap();
        symlink("absent", dir.path().join("a")).unwrap();
        assert!(message(dir.path()).contains("leads nowhere"));
    }

    #[test]
    fn guesses_a_runtime_by_the_files() {
        let check = |files: &str, expected| {
            let dir = tempfile::tempdir().unwrap();
            for file in files.split(' ') {
                fs::write(dir.path().join(file), "").unwrap();
            }
            assert_eq!(guess_runtime(dir.path()), expected, "{files}");
        };
        check("package.json", Some("node"));
        check("package.json bun.lock index.ts", Some("bun"));
        check("deno.json package.json", Some("deno"));
        check("main.py", Some("python"));
        check("composer.json index.php", Some("php"));
        check("index.rb index.html", Some("ruby"));
        check("go.mod main.go index.html", Some("go"));
        check("Cargo.toml main.rs", Some("rust"));
        check("build.gradle Index.java", Some("java"));
        check("build.gradle.kts Index.kt Other.java", Some("kotlin"));
        check("CMakeLists.txt index.cc", Some("cpp"));
        check("Index.swift", Some("swift"));
        check("index.ts", Some("bun"));
        check("index.html", Some("static"));
        check("README.md", None);
    }
}

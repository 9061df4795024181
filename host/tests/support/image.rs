//! Images of runtimes, built once for each content.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The archive of a runtime's image, built once per content of its sources and kept in the cache folder.
pub(crate) fn runtime_archive(runtime: &str) -> Result<PathBuf> {
    let runtimes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes");
    let mut sum = Sha256::new();
    // What the image is made of: its own folder, and what it copies of others.
    let dockerfile = fs::read_to_string(runtimes.join(runtime).join("Dockerfile"))?;
    let folders = dockerfile
        .split_whitespace()
        .filter_map(|word| word.split_once('/'));
    let folders = folders.map(|(folder, _)| folder).filter(|f| !f.is_empty());
    let folders: BTreeSet<_> = folders
        .filter(|folder| runtimes.join(folder).is_dir())
        .collect();
    for part in folders.into_iter().chain(["catalog.toml", runtime]) {
        add(&runtimes.join(part), &mut sum)?;
    }
    let key: String = sum
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let cache = std::env::var_os("OPR_CACHE_DIR").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/opr"),
        PathBuf::from,
    );
    let archive = cache.join(format!("images/{runtime}-{key}.oci.tar"));
    if !archive.exists() {
        fs::create_dir_all(cache.join("images"))?;
        let unfinished = archive.with_extension("unfinished");
        let output = Command::new(env!("CARGO_BIN_EXE_opr"))
            .args(["images", "build", "--output"])
            .arg(&unfinished)
            .arg(runtimes.join(runtime))
            .output()?;
        ensure!(
            output.status.success(),
            "cannot build the image: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::rename(unfinished, &archive)?;
    }
    Ok(archive)
}

/// Adds the names and contents of all files below `path`, except what never gets into an image.
fn add(path: &Path, sum: &mut Sha256) -> Result<()> {
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        let left_out = [
            "node_modules",
            "test",
            "example",
            "README.md",
            "docker-compose.yml",
        ];
        let is_used = |entry: &&PathBuf| !left_out.iter().any(|name| entry.ends_with(name));
        for entry in entries.iter().filter(is_used) {
            add(entry, sum)?;
        }
    } else {
        sum.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        sum.update(fs::read(path).with_context(|| path.display().to_string())?);
    }
    Ok(())
}

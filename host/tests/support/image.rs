//! Images of runtimes, built once for each content.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use opr_host::function::{Catalog, Runtime};
use opr_images::build::BuildContext;
use rustix::fs::{FlockOperation, flock};

/// The archive of a runtime's image, built once per content of its sources and kept in the cache folder.
pub(crate) fn runtime_archive(runtime: &str) -> Result<PathBuf> {
    let archive = archive_path(runtime)?;
    fs::create_dir_all(archive.parent().context("a folder")?)?;
    // Other tests may want it now.
    let lock = fs::File::create(archive.with_extension("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if !archive.exists() {
        let known = find(runtime)?;
        let unfinished = archive.with_extension("unfinished");
        let output = Command::new(env!("CARGO_BIN_EXE_opr"))
            .args(["images", "build", "--version", known.version(), "--output"])
            .arg(&unfinished)
            .arg(folder().join(&known.family))
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

/// Where the archive is, once it has been built of what the sources are now.
pub(crate) fn archive_path(runtime: &str) -> Result<PathBuf> {
    let known = find(runtime)?;
    let context = BuildContext {
        dockerfile: folder().join(&known.family).join("Dockerfile"),
        context_dir: folder(),
        tag: known.image.clone(),
        build_args: BTreeMap::from([("VERSION".to_owned(), known.version().to_owned())]),
    };
    let inputs = context.inputs()?;
    let key = &inputs.trim_start_matches("sha256:")[..16];
    let cache = std::env::var_os("OPR_CACHE_DIR").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/opr"),
        PathBuf::from,
    );
    // The archive says its image's name.
    let name = known.image.to_string().replace(['/', ':'], "-");
    Ok(cache.join(format!("images/{name}-{key}.oci.tar")))
}

fn find(runtime: &str) -> Result<Arc<Runtime>> {
    let catalog = Catalog::load(Some(&folder().join("catalog.toml")))?;
    Ok(catalog.find(runtime)?)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes")
}

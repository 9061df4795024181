//! The base of all images of ours, `debian:trixie-slim`, in the builder's storage.
//!
//! It comes from its registry. Where no registry answers, mmdebstrap assembles it of Debian's
//! packages, under the same name and once: the archive is kept, named after its recipe. The same
//! packages make the same archive.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    build::{BuildContext, BuildError, Builder, apt_settings, process},
    document::{architecture, digest_of},
    progress::Progress,
};

/// The name by which Dockerfiles ask for it, without registry.
const SHORT_NAME: &str = "debian:trixie-slim";
const NAME: &str = "docker.io/library/debian:trixie-slim";
const SUITE: &str = "trixie";
/// Where Debian is, when this machine's own sources do not lead to it.
const MIRROR: &str = "http://deb.debian.org/debian";
/// The release of Debian 13 (2025-08-09): no file of the image is younger.
const EPOCH: &str = "1754697600";
const CREATED: &str = "2025-08-09T00:00:00Z";
/// Whether Docker's registry can be reached is known by then.
const PROBE: Duration = Duration::from_secs(5);

/// What Debian's own slim images leave out.
const LEFT_OUT: [&str; 7] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
];

/// No service starts when a package is installed, and nothing of this machine's apt stays.
const FINISH: &str = r#"printf '#!/bin/sh\nexit 101\n' > "$1/usr/sbin/policy-rc.d"
chmod 755 "$1/usr/sbin/policy-rc.d"
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/hostname" "$1/etc/resolv.conf""#;

/// The base image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The Dockerfile or the cache cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No source of packages works.
    #[error("no registry has {NAME}, and it cannot be assembled of Debian's packages")]
    Assemble {
        /// Why the last source failed.
        source: Box<BuildError>,
    },
    /// The builder does not take it.
    #[error("the builder does not take the assembled {NAME}")]
    Load {
        /// Why.
        source: Box<BuildError>,
    },
}

/// Sees to it that the builder has the base image, if the Dockerfile asks for it.
pub(crate) async fn ensure(
    builder: &Builder,
    context: &BuildContext,
    progress: &dyn Progress,
) -> Result<(), BaseError> {
    let dockerfile = &context.dockerfile;
    let text = fs::read_to_string(dockerfile).map_err(|source| BaseError::File {
        path: dockerfile.clone(),
        source,
    })?;
    let mut places = context
        .build_args
        .values()
        .map(String::as_str)
        .chain([text.as_str()]);
    if !places.any(|text| text.contains(SHORT_NAME)) || builder.has(NAME).await {
        return Ok(());
    }
    if registry_answers().await {
        match builder.run(builder.tool.pull(NAME), progress).await {
            Ok(()) => return Ok(()),
            Err(error) => progress.line(&format!("{error}; assembling {SHORT_NAME} instead")),
        }
    }
    let archive = assemble(&builder.cache_dir, progress).await?;
    let loaded = builder.run(builder.tool.load(&archive), progress).await;
    loaded.map_err(|source| BaseError::Load {
        source: Box::new(source),
    })
}

/// Whether Docker's registry is there: it lets nobody in at this address, but it answers.
async fn registry_answers() -> bool {
    let client = reqwest::Client::builder().timeout(PROBE).build();
    let Ok(client) = client else { return false };
    let answer = client.get("https://registry-1.docker.io/v2/").send().await;
    answer.is_ok_and(|answer| answer.headers().contains_key("www-authenticate"))
}

/// The image as an archive in the form of `docker save`, made unless it is there.
async fn assemble(cache_dir: &Path, progress: &dyn Progress) -> Result<PathBuf, BaseError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| BaseError::File { path, source }
    };
    let recipe = digest_of([FINISH, EPOCH, &LEFT_OUT.concat()].concat().as_bytes());
    let name = format!(
        "debian-{SUITE}-slim-{}-{}.tar",
        architecture(),
        &recipe[7..19]
    );
    let archive = cache_dir.join(name);
    if archive.is_file() {
        return Ok(archive);
    }
    fs::create_dir_all(cache_dir).map_err(file(cache_dir))?;
    let work = tempfile::Builder::new()
        .prefix(".base-")
        .tempdir_in(cache_dir);
    let work = work.map_err(file(cache_dir))?;
    let (layer, partial) = (work.path().join("layer.tar"), work.path().join("image.tar"));
    debootstrap(&layer, progress).await?;
    let written = tokio::task::spawn_blocking({
        let partial = partial.clone();
        move || write_archive(&layer, &partial)
    });
    written
        .await
        .expect("writing does not panic")
        .map_err(file(&partial))?;
    fs::rename(&partial, &archive).map_err(file(&archive))?;
    Ok(archive)
}

/// Makes the root file system as a tar, from the first source of packages that works.
async fn debootstrap(layer: &Path, progress: &dyn Progress) -> Result<(), BaseError> {
    let settings = apt_settings().await;
    let mut last = None;
    for mirror in mirrors() {
        progress.line(&format!(
            "assembling {SHORT_NAME} of packages from {mirror}"
        ));
        let arguments = arguments(&mirror, &settings, layer);
        let epoch = [("SOURCE_DATE_EPOCH", EPOCH)];
        match process::run("mmdebstrap", &arguments, &epoch, progress).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    let source = Box::new(last.expect("there is at least one mirror"));
    Err(BaseError::Assemble { source })
}

fn arguments(mirror: &str, settings: &[String], layer: &Path) -> Vec<String> {
    let mut arguments = vec!["--variant=minbase".to_owned(), "--format=tar".to_owned()];
    arguments.extend(LEFT_OUT.iter().map(|option| format!("--dpkgopt={option}")));
    // mmdebstrap ends the line of an option by itself.
    let settings = settings.iter().map(|line| line.trim_end_matches(';'));
    arguments.extend(settings.map(|option| format!("--aptopt={option}")));
    arguments.push(format!("--customize-hook={FINISH}"));
    arguments.extend([SUITE.to_owned(), layer.display().to_string()]);
    let security = mirror
        .strip_suffix("/debian")
        .map(|host| format!("{host}/debian-security"));
    let lines = [
        Some(format!("deb {mirror} {SUITE} main")),
        Some(format!("deb {mirror} {SUITE}-updates main")),
        security.map(|security| format!("deb {security} {SUITE}-security main")),
    ];
    arguments.extend(lines.into_iter().flatten());
    arguments
}

/// This machine's own sources of Debian packages, then Debian's.
fn mirrors() -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    files.extend(parts.map(|entry| entry.path()).filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == "list" || extension == "sources")
    }));
    files.sort();
    let texts: Vec<String> = files
        .iter()
        .filter_map(|f| fs::read_to_string(f).ok())
        .collect();
    mirrors_in(texts.iter().flat_map(|text| text.lines()))
}

fn mirrors_in<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut known = BTreeSet::new();
    let words = lines
        .map(str::trim)
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace);
    let mirrors = words.map(|word| word.trim_end_matches('/')).filter(|word| {
        (word.starts_with("http://") || word.starts_with("https://")) && word.ends_with("/debian")
    });
    let all = mirrors.chain([MIRROR]).map(str::to_owned);
    all.filter(|mirror| known.insert(mirror.clone())).collect()
}

/// Writes an archive as `docker save` does, of one layer.
fn write_archive(layer: &Path, archive: &Path) -> io::Result<()> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    let mut file = File::open(layer)?;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let hex: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = json!({
        "architecture": architecture(), "os": "linux", "created": CREATED,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["bash"],
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hex}")]},
        "history": [{"created": CREATED, "created_by": "mmdebstrap --variant=minbase trixie"}],
    });
    let manifest = json!([{
        "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer/layer.tar"],
    }]);
    let mut tar = tar::Builder::new(io::BufWriter::new(File::create(archive)?));
    for (name, text) in [("config.json", config), ("manifest.json", manifest)] {
        let text = text.to_string();
        append(&mut tar, name, text.len() as u64, text.as_bytes())?;
    }
    append(
        &mut tar,
        "layer/layer.tar",
        fs::metadata(layer)?.len(),
        File::open(layer)?,
    )?;
    tar.into_inner()?.flush()
}

fn append<W: io::Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    bytes: impl io::Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sources: &str, expected: &[&str]) {
        assert_eq!(mirrors_in(sources.lines()), expected);
    }

    #[test]
    fn this_machines_sources_come_first() {
        check("", &[MIRROR]);
        check(
            "deb [trusted=yes] https://a.example/debian/ bookworm main\n# deb http://b/debian x",
            &["https://a.example/debian", MIRROR],
        );
        check(
            "Types: deb\nURIs: http://deb.debian.org/debian http://c.example/debian\n",
            &[MIRROR, "http://c.example/debian"],
        );
        check(
            "deb https://packages.example/apt x main\ndeb http://d/debian-security x main",
            &[MIRROR],
        );
    }

    #[test]
    fn security_updates_come_from_beside_the_mirror() {
        let settings = ["Acquire::Check-Date \"false\";".to_owned()];
        let arguments = arguments(MIRROR, &settings, Path::new("out.tar"));
        let last: Vec<&str> = arguments
            .iter()
            .rev()
            .take(4)
            .rev()
            .map(String::as_str)
            .collect();
        let expected = [
            "out.tar",
            "deb http://deb.debian.org/debian trixie main",
            "deb http://deb.debian.org/debian trixie-updates main",
            "deb http://deb.debian.org/debian-security trixie-security main",
        ];
        assert_eq!(last, expected);
        assert!(arguments.contains(&"--aptopt=Acquire::Check-Date \"false\"".to_owned()));
    }
}

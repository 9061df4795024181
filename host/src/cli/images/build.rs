//! `opr images build`: one image of a Dockerfile.

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use opr_images::{
    Reference,
    build::{self, BuildContext, Builder},
};

use super::{Session, all, bars, connect, show};
use crate::{
    config::env,
    function::{Catalog, Runtime},
};

/// The argument of a runtime's Dockerfile that says which version is built.
const VERSION: &str = "VERSION";
/// Stands in the folder of all runtimes.
pub(super) const CATALOG: &str = "catalog.toml";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder with a Dockerfile; below a folder with `catalog.toml`, that one is the context. With --all, the folder
    /// with `catalog.toml` [default: runtimes].
    #[arg(required_unless_present = "all")]
    pub(super) folder: Option<PathBuf>,
    /// Build every version of every runtime in the catalogue, but those whose images are of the same files already.
    #[arg(long, conflicts_with_all = ["tag", "version", "output"])]
    all: bool,
    /// How many to build at once [default: half of the processors].
    #[arg(long, value_name = "N", requires = "all")]
    pub(super) jobs: Option<NonZero<usize>>,
    /// Its name [default: the catalogue's].
    #[arg(long)]
    tag: Option<Reference>,
    /// Its version, of those in the catalogue; the Dockerfile's argument VERSION [default: the first].
    #[arg(long)]
    version: Option<String>,
    /// An argument of the Dockerfile; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) build_arg: Vec<String>,
    /// Write an OCI archive instead of importing it: no node is needed.
    #[arg(long, value_name = "ARCHIVE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    if args.all {
        return all::run(session, args).await;
    }
    let context = context(&args)?;
    let cache = cache_dir()?;
    let builder = Builder::find(&cache).await?;
    session.output.note(&format!(
        "building {} with {}",
        context.tag,
        builder.tool().program()
    ));
    let progress = bars(session);
    if let Some(output) = args.output {
        let archive = build::build(&builder, &context, &progress).await?;
        std::fs::copy(&archive, &output)
            .with_context(|| format!("cannot write {}", output.display()))?;
        let written = serde_json::json!({ "archive": output });
        session
            .output
            .result(&written, |_| format!("{}\n", output.display()));
        return Ok(());
    }
    let images = connect(session).await?;
    let image = images.build(&builder, &context, &progress).await?;
    show(session, &[image]);
    Ok(())
}

/// A runtime's folder stands below the catalogue, which says its name and version.
fn context(args: &Args) -> anyhow::Result<BuildContext> {
    let given = args.folder.as_deref().unwrap_or(Path::new("."));
    let folder = given.canonicalize();
    let folder = folder.with_context(|| format!("cannot read {}", given.display()))?;
    let catalog = folder.parent().map(|root| root.join(CATALOG));
    let catalog = catalog.filter(|file| file.is_file());
    if let (None, Some(catalog)) = (&args.tag, &catalog) {
        let family = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = match &args.version {
            Some(version) => format!("{family}-{version}"),
            None => family.into_owned(),
        };
        let runtime = Catalog::load(Some(catalog))?.find(&name)?;
        return of_runtime(catalog, &runtime, &args.build_arg);
    }
    let Some(tag) = args.tag.clone() else {
        dockerfile(&folder)?;
        bail!("give the image a name with --tag");
    };
    let mut build_args = named(&args.build_arg)?;
    if let Some(version) = &args.version {
        let argument = build_args.entry(VERSION.to_owned());
        argument.or_insert_with(|| version.clone());
    }
    Ok(BuildContext {
        dockerfile: dockerfile(&folder)?,
        context_dir: match catalog {
            Some(catalog) => catalog.parent().unwrap_or(&folder).to_owned(),
            None => folder,
        },
        tag,
        build_args,
    })
}

/// What a runtime's image is built of, which shares with others what stands beside its folder.
pub(super) fn of_runtime(
    catalog: &Path,
    runtime: &Runtime,
    build_args: &[String],
) -> anyhow::Result<BuildContext> {
    let root = catalog.parent().unwrap_or(Path::new("."));
    let mut build_args = named(build_args)?;
    let version = build_args.entry(VERSION.to_owned());
    version.or_insert_with(|| runtime.version().to_owned());
    Ok(BuildContext {
        dockerfile: dockerfile(&root.join(&runtime.family))?,
        context_dir: root.to_owned(),
        tag: runtime.image.clone(),
        build_args,
    })
}

fn dockerfile(folder: &Path) -> anyhow::Result<PathBuf> {
    let dockerfile = folder.join("Dockerfile");
    if !dockerfile.is_file() {
        bail!("{} has no Dockerfile", folder.display());
    }
    Ok(dockerfile)
}

fn named(build_args: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let pairs = build_args.iter().map(|arg| {
        let pair = arg.split_once('=');
        let (name, value) = pair.with_context(|| format!("{arg:?} is not NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

/// Where downloads for builds are kept.
pub(super) fn cache_dir() -> anyhow::Result<PathBuf> {
    let given = std::env::var_os(env::CACHE_DIR).map(PathBuf::from);
    let home = || std::env::home_dir().map(|home| home.join(".cache/opr"));
    let dir = given.or_else(home).context("HOME is not set")?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(folder: &Path, line: &[&str]) -> Args {
        let folder = folder.display().to_string();
        Line::parse_from([&["build", &folder], line].concat()).args
    }

    #[test]
    fn a_runtimes_folder_is_built_in_its_parent_under_the_catalogues_name() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes/node");
        let context = context(&parse(&folder, &["--build-arg", "A=b"])).unwrap();
        assert_eq!(context.tag.to_string(), "docker.io/openruntimes/node:v5-22");
        assert!(context.context_dir.ends_with("runtimes"));
        assert_eq!(context.build_args["A"], "b");
        assert_eq!(context.build_args["VERSION"], "22");
    }

    #[test]
    fn another_version_is_built_as_that_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtimes/php");
        let context = context(&parse(&folder, &["--version", "8.2"])).unwrap();
        assert_eq!(context.tag.to_string(), "docker.io/openruntimes/php:v5-8.2");
        assert_eq!(context.build_args["VERSION"], "8.2");
    }

    #[test]
    fn a_folder_without_a_dockerfile_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let message = || {
            let refused = context(&parse(dir.path(), &[])).unwrap_err();
            refused.to_string()
        };
        assert!(message().contains("has no Dockerfile"));
        std::fs::write(dir.path().join("Dockerfile"), "FROM scratch").unwrap();
        assert!(message().contains("--tag"));
    }

    #[test]
    fn all_have_names_and_versions_already() {
        let line = |words: &[&str]| Line::try_parse_from([&["build"], words].concat());
        assert!(line(&["--all"]).is_ok_and(|line| line.args.folder.is_none()));
        assert!(line(&["--all", "--jobs", "2", "there"]).is_ok());
        for wrong in [
            "",
            "--all --tag a:1",
            "--all --output a",
            "--all --jobs 0",
            "--jobs 2 a",
        ] {
            let words: Vec<_> = wrong.split_whitespace().collect();
            assert!(line(&words).is_err(), "{wrong}");
        }
    }
}

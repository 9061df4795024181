//! Images from Dockerfiles, by whichever builder is there, and into containerd.
//!
//! The builder gets what the operator has set up for this machine and a build needs as well: the
//! bundle of certificate authorities (secret `ca-certificates`), apt's proxies and checks, and the
//! proxy variables. None of their content stays in the image.

pub mod inputs;
pub(crate) mod process;
mod tool;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use tool::Tool;

use crate::{
    Image, Images, ImportError, Reference, StoreError,
    base::{self, BaseError},
    progress::Progress,
};

/// What to build: `docker build --file DOCKERFILE --tag TAG CONTEXT_DIR`.
#[derive(Clone, Debug)]
pub struct BuildContext {
    /// The Dockerfile.
    pub dockerfile: PathBuf,
    /// The folder whose files the Dockerfile may copy.
    pub context_dir: PathBuf,
    /// The image's name.
    pub tag: Reference,
    /// Values of the Dockerfile's `ARG`s.
    pub build_args: BTreeMap<String, String>,
}

/// A build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No builder is installed, or none works.
    #[error("no image builder works here; install buildah, podman, docker or nerdctl")]
    NoTool,
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{command} failed ({status}): {tail}")]
    Failed {
        /// The program and its first words.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        tail: String,
    },
    /// A file of the build cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The base image cannot be had.
    #[error("no base image")]
    Base(#[from] Box<BaseError>),
    /// The built image cannot be imported.
    #[error("cannot import what was built")]
    Import(#[from] ImportError),
    /// containerd does not tell whether the image is there.
    #[error("cannot look for the image")]
    Look(#[from] StoreError),
}

/// A builder and where it keeps its images.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) tool: Tool,
    root: Option<PathBuf>,
    pub(crate) cache_dir: PathBuf,
    /// Builds at the same time have one base, and make it once.
    base: Arc<tokio::sync::Mutex<()>>,
}

impl Builder {
    /// The first of buildah, podman, docker and nerdctl that works here.
    ///
    /// `cache_dir` keeps base images assembled on this machine.
    ///
    /// # Errors
    /// [`BuildError::NoTool`].
    pub async fn find(cache_dir: &Path) -> Result<Self, BuildError> {
        for tool in Tool::ALL {
            // The ones that need a daemon ask it for its version.
            if process::quiet(tool.program(), &["version".to_owned()]).await {
                return Ok(Self::new(tool, cache_dir));
            }
        }
        Err(BuildError::NoTool)
    }

    /// The builder `tool`, whether it works or not.
    pub fn new(tool: Tool, cache_dir: &Path) -> Self {
        Self {
            tool,
            root: None,
            cache_dir: cache_dir.to_owned(),
            base: Arc::default(),
        }
    }

    /// Keeps images and layers of builds in `root`, where the tool has storage of its own (buildah
    /// and podman). Without it they are in the tool's usual place.
    pub fn with_root(self, root: &Path) -> Self {
        Self {
            root: Some(root.to_owned()),
            ..self
        }
    }

    /// Which tool it is.
    pub fn tool(&self) -> Tool {
        self.tool
    }

    /// Runs the tool and tells its lines.
    pub(crate) async fn run(
        &self,
        arguments: Vec<String>,
        progress: &dyn Progress,
    ) -> Result<(), BuildError> {
        let arguments = [self.tool.storage(self.root.as_deref()), arguments].concat();
        process::run(
            self.tool.program(),
            &arguments,
            &[("DOCKER_BUILDKIT", "1")],
            progress,
        )
        .await
    }

    async fn ensure_base(
        &self,
        context: &BuildContext,
        progress: &dyn Progress,
    ) -> Result<(), BuildError> {
        let _turn = self.base.lock().await;
        let ensured = base::ensure(self, context, progress).await;
        Ok(ensured.map_err(Box::new)?)
    }

    /// Whether the tool's storage has an image of that name.
    pub(crate) async fn has(&self, name: &str) -> bool {
        let storage = self.tool.storage(self.root.as_deref());
        process::quiet(
            self.tool.program(),
            &[storage, self.tool.inspect(name)].concat(),
        )
        .await
    }
}

impl Images {
    /// The image, if it is here and was built of what the context has now.
    ///
    /// # Errors
    /// When a file of the context cannot be read, or containerd fails.
    pub async fn built(&self, context: &BuildContext) -> Result<Option<Image>, BuildError> {
        let inputs = context.inputs()?;
        let image = self.get(&context.tag).await?;
        Ok(image.filter(|image| image.config.labels.get(inputs::LABEL) == Some(&inputs)))
    }

    /// Builds the image and imports it.
    ///
    /// # Errors
    /// When there is no base image, a step of the Dockerfile fails, or containerd does.
    pub async fn build(
        &self,
        builder: &Builder,
        context: &BuildContext,
        progress: &dyn Progress,
    ) -> Result<Image, BuildError> {
        let archive = build(builder, context, progress).await?;
        let imported = self.import(&archive, Some(&context.tag), progress).await?;
        Ok(imported
            .into_iter()
            .next()
            .expect("an import answers at least one image"))
    }
}

/// Builds the image into an archive, which is removed when dropped.
///
/// # Errors
/// When there is no base image or a step of the Dockerfile fails.
pub async fn build(
    builder: &Builder,
    context: &BuildContext,
    progress: &dyn Progress,
) -> Result<tempfile::TempPath, BuildError> {
    // Before the build: what changes meanwhile is not in the image, or it is built again.
    let inputs = context.inputs()?;
    builder.ensure_base(context, progress).await?;
    let file = |source| BuildError::File {
        path: std::env::temp_dir(),
        source,
    };
    let work = tempfile::Builder::new()
        .prefix("opr-build-")
        .tempdir()
        .map_err(file)?;
    let apt = work.path().join("apt.conf");
    let settings = apt_settings().await;
    std::fs::write(&apt, settings.join("\n") + "\n").map_err(file)?;
    let surroundings = tool::Surroundings {
        certificates: certificates(),
        apt: (!settings.is_empty()).then_some(apt),
        proxies: proxies(|name| std::env::var(name).ok()),
    };
    let label = (inputs::LABEL, &*inputs);
    let arguments = builder.tool.build(context, label, &surroundings);
    builder.run(arguments, progress).await?;
    let archive = tempfile::Builder::new()
        .prefix("opr-build-")
        .suffix(".tar")
        .tempfile();
    let archive = archive.map_err(file)?.into_temp_path();
    // The tools write a new file and do not like to find one.
    std::fs::remove_file(&archive).map_err(file)?;
    builder
        .run(
            builder.tool.export(&context.tag.to_string(), &archive),
            progress,
        )
        .await?;
    Ok(archive)
}

/// The bundle of certificate authorities that this machine trusts.
fn certificates() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ];
    named
        .into_iter()
        .chain(usual.map(PathBuf::from))
        .find(|path| path.is_file())
}

/// The proxy variables that are set, which builders know as build arguments.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let names = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy"];
    let names = names
        .into_iter()
        .flat_map(|name| [name.to_owned(), name.to_uppercase()]);
    names
        .filter_map(|name| Some((name.clone(), variable(&name)?)))
        .collect()
}

/// What apt on this machine has been told of proxies, certificates and dates, a line each.
pub(crate) async fn apt_settings() -> Vec<String> {
    let dump = process::capture("apt-config", &["dump", "--no-empty"])
        .await
        .unwrap_or_default();
    apt_settings_in(&dump)
}

fn apt_settings_in(dump: &str) -> Vec<String> {
    let prefixes = [
        "http::",
        "https::",
        "Check-Date",
        "Check-Valid-Until",
        "Retries",
        "ForceIPv",
    ];
    let is_passed = |line: &&str| {
        let rest = line.strip_prefix("Acquire::");
        rest.is_some_and(|rest| prefixes.iter().any(|prefix| rest.starts_with(prefix)))
    };
    dump.lines().filter(is_passed).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_fetching_is_passed_on() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::cdrom::mount \"/media/cdrom/\";\n\
            Acquire::http::Proxy \"http://proxy:3128\";\nAcquire::Check-Date \"false\";\n";
        let expected = [
            "Acquire::http::Proxy \"http://proxy:3128\";",
            "Acquire::Check-Date \"false\";",
        ];
        assert_eq!(apt_settings_in(dump), expected);
    }

    #[test]
    fn proxies_are_those_that_are_set() {
        let set = |name: &str| (name == "HTTPS_PROXY").then(|| "http://proxy:3128".to_owned());
        let expected = [("HTTPS_PROXY".to_owned(), "http://proxy:3128".to_owned())];
        assert_eq!(proxies(set), expected);
    }
}

//! `opr images`: the images of the node's containerd.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use opr_images::{Credentials, Image, Images, LayerState, Progress, Reference};

use super::{
    Session,
    client::{Client, Missing, Unreachable},
    output::{megabytes, table},
};
use crate::{api::node::wire::InstanceEntry, config::env, function::Catalog};

mod all;
mod build;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List images.
    #[command(alias = "list")]
    Ls,
    /// Pull an image from its registry.
    Pull {
        /// As in openruntimes/node:v5-22.
        image: Reference,
        /// User of the registry; the password is read from OPR_REGISTRY_PASSWORD.
        #[arg(long)]
        user: Option<String>,
        /// Speak plain HTTP to the registry.
        #[arg(long)]
        insecure: bool,
    },
    /// Import an OCI layout, or an OCI or Docker archive.
    Import {
        /// Folder or file.
        path: PathBuf,
        /// The name it gets [default: the one it brings].
        #[arg(long)]
        name: Option<Reference>,
    },
    /// Build a Dockerfile, or those of all runtimes, and import what came of it.
    Build(build::Args),
    /// Show all that is known of an image.
    Inspect {
        /// Which.
        image: Reference,
    },
    /// Remove images.
    Rm {
        /// Which.
        #[arg(required = true)]
        images: Vec<Reference>,
    },
    /// Remove images that no instance and no runtime uses.
    Prune,
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls => list(session).await,
        Command::Pull {
            image,
            user,
            insecure,
        } => {
            let images = connect(session).await?;
            let images =
                images.with_insecure_registries(insecure.then(|| image.registry().to_owned()));
            let credentials = credentials(user)?;
            let progress = bars(session);
            let image = images.pull(&image, &credentials, &progress).await?;
            show(session, &[image]);
            Ok(())
        }
        Command::Import { path, name } => {
            let images = connect(session).await?;
            let imported = images.import(&path, name.as_ref(), &bars(session)).await?;
            show(session, &imported);
            Ok(())
        }
        Command::Build(args) => build::run(session, args).await,
        Command::Inspect { image } => inspect(session, &image).await,
        Command::Rm { images: names } => {
            let images = connect(session).await?;
            for name in names {
                find(&images, &name).await?;
                images.remove(&name).await?;
                let removed = serde_json::json!({ "removed": name.to_string() });
                session.output.result(&removed, |_| format!("{name}\n"));
            }
            Ok(())
        }
        Command::Prune => prune(session).await,
    }
}

/// The images of the containerd that the node uses; its own runs as long as the node has been up.
async fn connect(session: &Session) -> anyhow::Result<Images> {
    let config = &session.config;
    let socket = config.containerd_socket();
    let names = &config.containerd;
    let images = Images::connect(&socket, &names.namespace, &names.snapshotter).await;
    images.map_err(|error| match config.containerd.address {
        Some(_) => error.into(),
        None => Unreachable { socket }.into(),
    })
}

fn credentials(user: Option<String>) -> anyhow::Result<Credentials> {
    let Some(user) = user else {
        return Ok(Credentials::Anonymous);
    };
    let password = std::env::var(env::REGISTRY_PASSWORD);
    let password = password.context("put the password into OPR_REGISTRY_PASSWORD")?;
    Ok(Credentials::Basic {
        username: user,
        password,
    })
}

async fn find(images: &Images, name: &Reference) -> anyhow::Result<Image> {
    let image = images.get(name).await?;
    image.ok_or_else(|| Missing(format!("there is no image {name}")).into())
}

async fn list(session: &Session) -> anyhow::Result<()> {
    let mut images = connect(session).await?.list().await?;
    images.sort_by_key(|image| image.reference.to_string());
    show(session, &images);
    Ok(())
}

fn show(session: &Session, images: &[Image]) {
    let documents: Vec<_> = images.iter().map(document).collect();
    session.output.result(&documents, |_| {
        let row = |image: &Image| {
            [
                image.reference.to_string(),
                image.digest.get(..19).unwrap_or(&image.digest).to_owned(),
                megabytes(image.size_bytes),
                image.created.clone().unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = images.iter().map(row).collect();
        table(["IMAGE", "DIGEST", "SIZE", "CREATED"], &rows)
    });
}

fn document(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "image": image.reference.to_string(),
        "digest": image.digest,
        "size_bytes": image.size_bytes,
        "created": image.created,
    })
}

async fn inspect(session: &Session, name: &Reference) -> anyhow::Result<()> {
    let image = find(&connect(session).await?, name).await?;
    let mut document = document(&image);
    let config = &image.config;
    document["config"] = serde_json::json!({
        "env": config.env, "entrypoint": config.entrypoint, "cmd": config.cmd,
        "working_dir": config.working_dir, "user": config.user, "labels": config.labels,
    });
    session.output.result(&document, |document| {
        serde_json::to_string_pretty(document).expect("plain values") + "\n"
    });
    Ok(())
}

async fn prune(session: &Session) -> anyhow::Result<()> {
    let instances: Vec<InstanceEntry> = Client::new(&session.config).get("/v1/instances").await?;
    let mut in_use: BTreeSet<_> = instances.into_iter().map(|entry| entry.image).collect();
    let catalog = Catalog::load(None)?;
    in_use.extend(
        catalog
            .list()
            .iter()
            .map(|runtime| runtime.image.to_string()),
    );
    let removed = connect(session).await?.prune(&in_use).await?;
    session.output.result(&removed, |removed| {
        removed.iter().map(|name| format!("{name}\n")).collect()
    });
    Ok(())
}

/// One bar a layer, and the lines of a build above them.
#[derive(Debug)]
struct Bars {
    bars: MultiProgress,
    layers: std::sync::Mutex<BTreeMap<String, ProgressBar>>,
    has_lines: bool,
}

fn bars(session: &Session) -> Bars {
    let bars = MultiProgress::new();
    if !session.output.is_watched() {
        bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    Bars {
        bars,
        layers: std::sync::Mutex::default(),
        has_lines: !session.output.is_json(),
    }
}

impl Progress for Bars {
    fn layer(&self, digest: &str, state: LayerState) {
        let mut layers = self.layers.lock().expect("no holder panics");
        let bar = layers.entry(digest.to_owned()).or_insert_with(|| {
            let style =
                ProgressStyle::with_template("{prefix:12} {msg:11} {bar:32} {bytes}/{total_bytes}");
            let name = digest.trim_start_matches("sha256:");
            self.bars
                .add(ProgressBar::new(0))
                .with_style(style.expect("a constant that is valid"))
                .with_prefix(name.get(..12).unwrap_or(name).to_owned())
        });
        match state {
            LayerState::Waiting => bar.set_message("waiting"),
            LayerState::Downloading { done, total } => {
                bar.set_message("downloading");
                bar.set_length(total);
                bar.set_position(done);
            }
            LayerState::Unpacking => bar.set_message("unpacking"),
            LayerState::Done => bar.finish_with_message("done"),
        }
    }

    fn line(&self, text: &str) {
        if self.has_lines {
            self.bars.suspend(|| eprintln!("{text}"));
        }
    }
}

//! Builds from Dockerfiles by the tools that are here.

use std::{fs, path::Path, sync::Mutex};

use opr_images::{
    LayerState, Progress,
    build::{BuildContext, BuildError, Builder, Tool},
};

use crate::{
    can_run,
    containerd::Containerd,
    image::{TestImage, scratch, tar},
    mounts_below, run,
};

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Progress for Lines {
    fn layer(&self, _digest: &str, _state: LayerState) {}
    fn line(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// A context with a Dockerfile.
fn context(dir: &Path, dockerfile: &str) -> BuildContext {
    fs::create_dir_all(dir.join("app")).unwrap();
    fs::write(dir.join("app/Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("shared"), "of the context").unwrap();
    BuildContext {
        dockerfile: dir.join("app/Dockerfile"),
        context_dir: dir.to_owned(),
        tag: "openruntimes/app:v5-1".parse().unwrap(),
        build_args: [("VERSION".to_owned(), "7".to_owned())].into(),
    }
}

/// Ends what a builder mounted below its storage.
struct Storage<'a>(&'a Path);

impl Drop for Storage<'_> {
    fn drop(&mut self) {
        for point in mounts_below(self.0).iter().rev() {
            let _ = rustix::mount::unmount(point.as_str(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[tokio::test]
async fn builds_without_a_daemon_and_imports() {
    if !can_run(&["containerd", "buildah"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let storage = dir.join("storage");
    let _storage = Storage(&storage);
    let builder = Builder::new(Tool::Buildah, &dir.join("cache")).with_root(&storage);
    let context = context(
        &dir,
        "FROM scratch\nARG VERSION\nCOPY shared /etc/\nENV V=$VERSION\nCMD [\"/x\"]\n",
    );
    let lines = Lines::default();
    let image = images.build(&builder, &context, &lines).await.unwrap();
    assert_eq!(
        image.reference.to_string(),
        "docker.io/openruntimes/app:v5-1"
    );
    assert!(
        image.config.env.contains(&"V=7".to_owned()),
        "{:?}",
        image.config.env
    );
    assert_eq!(image.config.cmd, ["/x"]);
    let layers = images.layers(&image).await.unwrap();
    assert_eq!(
        fs::read_to_string(layers[0].join("etc/shared")).unwrap(),
        "of the context"
    );
    let lines = lines.0.into_inner().unwrap();
    assert!(
        lines.iter().any(|line| line.contains("COPY shared /etc/")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_failing_step_is_shown() {
    if !can_run(&["containerd", "buildah"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let storage = dir.join("storage");
    let _storage = Storage(&storage);
    let builder = Builder::new(Tool::Buildah, &dir.join("cache")).with_root(&storage);
    let broken = context(&dir, "FROM scratch\nCOPY absent /etc/\n");
    let error = images.build(&builder, &broken, &()).await.unwrap_err();
    assert!(matches!(error, BuildError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("absent"), "{error}");
    assert_eq!(images.list().await.unwrap(), []);
    let mut missing = broken;
    missing.dockerfile = dir.join("none");
    assert!(images.build(&builder, &missing, &()).await.is_err());
}

/// A base that is in the builder's storage is used as it is, without a look at any registry.
#[tokio::test]
async fn a_base_that_is_there_is_used() {
    if !can_run(&["containerd", "buildah"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let storage = dir.join("storage");
    let _storage = Storage(&storage);
    let base = TestImage::of(vec![tar(&[("base", b"here")])]);
    base.write_archive(
        &dir.join("base.tar"),
        "docker.io/library/debian:trixie-slim",
    );
    let (root, run_root) = (storage.display(), storage.join("run"));
    run(
        "buildah",
        &[
            "--root",
            &root.to_string(),
            "--runroot",
            run_root.to_str().unwrap(),
            "pull",
            &format!("oci-archive:{}", dir.join("base.tar").display()),
        ],
    );
    let builder = Builder::new(Tool::Buildah, &dir.join("cache")).with_root(&storage);
    let context = context(
        &dir,
        "ARG BASE=debian:trixie-slim\nFROM $BASE\nCOPY shared /etc/\n",
    );
    let image = images.build(&builder, &context, &()).await.unwrap();
    let layers = images.layers(&image).await.unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(fs::read_to_string(layers[1].join("base")).unwrap(), "here");
}

/// Takes most of a minute where Docker's registry does not answer.
#[tokio::test]
async fn the_base_is_pulled_or_assembled() {
    if !can_run(&["containerd", "buildah", "mmdebstrap"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let storage = dir.join("storage");
    let _storage = Storage(&storage);
    let builder = Builder::new(Tool::Buildah, &dir.join("cache")).with_root(&storage);
    let text = "FROM docker.io/library/debian:trixie-slim\n\
        RUN apt-get update && apt-get install --yes --no-install-recommends jq && jq --version\n\
        RUN --mount=type=secret,id=ca-certificates,target=/ca test -s /ca\n";
    let context = context(&dir, text);
    let lines = Lines::default();
    let built = images.build(&builder, &context, &lines).await;
    let lines = lines.0.into_inner().unwrap();
    let image = built.unwrap_or_else(|error| panic!("{error}: {lines:#?}"));
    let layers = images.layers(&image).await.unwrap();
    assert!(layers.iter().any(|layer| layer.join("usr/bin/jq").exists()));
    let base = layers.last().unwrap();
    assert!(!base.join("etc/apt/apt.conf.d/99mmdebstrap").exists());
    if lines.iter().any(|line| line.starts_with("assembling")) {
        let names = fs::read_dir(dir.join("cache"))
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        assert!(matches!(names.as_slice(), [one] if one.starts_with("debian-trixie-slim-")));
    }
}

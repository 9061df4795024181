//! Pulls from a real registry, directly and through a proxy that does wrong.

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use opr_images::{Credentials, Image, Images, LayerState, Progress, PullError, Reference};

use crate::{
    can_run,
    containerd::Containerd,
    image::{Blob, DOCKER_MANIFEST, TestImage, check_files, scratch},
    proxy::{Fault, Proxy},
    registry::Registry,
};

const NEEDED: &[&str] = &["containerd", "docker-registry"];

/// A containerd, a registry with one image, and a proxy between them.
struct World {
    containerd: Containerd,
    images: Images,
    registry: Registry,
    proxy: Proxy,
    image: TestImage,
}

impl World {
    /// `padding` makes the first layer larger.
    async fn new(seed: &str, padding: usize) -> Self {
        let containerd = Containerd::start();
        let images = containerd.images().await;
        let registry = Registry::start().await;
        let image = TestImage::new(seed, padding);
        registry.push(&image, "team/app", "1").await;
        let proxy = Proxy::start(registry.address()).await;
        Self {
            containerd,
            images,
            registry,
            proxy,
            image,
        }
    }

    fn name(&self) -> Reference {
        name(self.proxy.address)
    }

    async fn pull(&self) -> Result<Image, PullError> {
        self.images
            .pull(&self.name(), &Credentials::Anonymous, &())
            .await
    }

    /// Checks that the image is whole and nothing of the pull stays behind.
    async fn check(&self, image: &Image) {
        let layers = self.images.layers(image).await.unwrap();
        let (_dir, root) = scratch();
        opr_images::mount::mount_rootfs(&root, &layers, None, None).unwrap();
        check_files(&root);
        rustix::mount::unmount(&root, rustix::mount::UnmountFlags::empty()).unwrap();
        let check = self.containerd.ctr(&["images", "check"]);
        assert!(
            check.contains("complete") && check.trim_end().ends_with("true"),
            "{check}"
        );
        assert_eq!(self.containerd.ctr(&["leases", "ls", "-q"]).trim(), "");
        let active = self.containerd.ctr(&["content", "active"]);
        assert_eq!(active.lines().count(), 1, "{active}");
    }

    /// The failed pull left no image, no lease, and no half-unpacked snapshot.
    async fn check_nothing(&self) {
        assert_eq!(self.images.list().await.unwrap(), []);
        for _ in 0..100 {
            if self
                .containerd
                .ctr(&["leases", "ls", "-q"])
                .trim()
                .is_empty()
            {
                let snapshots = self.containerd.ctr(&["snapshots", "ls"]);
                assert!(!snapshots.contains("extract-"), "{snapshots}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("a lease stays");
    }
}

fn name(address: SocketAddr) -> Reference {
    format!("{address}/team/app:1").parse().unwrap()
}

#[derive(Default)]
struct Told(Mutex<Vec<(String, LayerState)>>);

impl Progress for Told {
    fn layer(&self, digest: &str, state: LayerState) {
        self.0.lock().unwrap().push((digest.to_owned(), state));
    }
}

#[tokio::test]
async fn pulls_unpacks_and_tells() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("pull", 900_000).await;
    let told = Told::default();
    let auth = Credentials::Anonymous;
    let image = world
        .images
        .ensure(&world.name(), &auth, &told)
        .await
        .unwrap();
    assert_eq!(image.digest, world.image.manifest.digest);
    assert_eq!(
        world.images.list().await.unwrap(),
        std::slice::from_ref(&image)
    );
    world.check(&image).await;
    let told = told.0.into_inner().unwrap();
    for layer in &world.image.layers {
        let states: Vec<_> = told
            .iter()
            .filter(|(d, _)| *d == layer.digest)
            .map(|t| t.1)
            .collect();
        let total = layer.bytes.len() as u64;
        assert_eq!(states[0], LayerState::Waiting);
        assert!(
            states.contains(&LayerState::Downloading { done: total, total }),
            "{states:?}"
        );
        assert_eq!(
            states[states.len() - 2..],
            [LayerState::Unpacking, LayerState::Done]
        );
    }
    // A second time nothing is fetched.
    let before = world.proxy.seen("").len();
    assert_eq!(
        world
            .images
            .ensure(&world.name(), &auth, &())
            .await
            .unwrap(),
        image
    );
    assert_eq!(world.proxy.seen("").len(), before);
    world.pull().await.unwrap();
    assert_eq!(world.proxy.seen("/blobs/").len(), 4);
}

#[tokio::test]
async fn chooses_this_machine_from_an_index() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("index", 0).await;
    let index = world
        .registry
        .push_index(&world.image, "team/app", "1")
        .await;
    let image = world.pull().await.unwrap();
    assert_eq!(image.digest, world.image.manifest.digest);
    world.check(&image).await;
    // By digest, of the index and of the manifest.
    for digest in [&index.digest, &world.image.manifest.digest] {
        let name = format!("{}/team/app@{digest}", world.proxy.address)
            .parse()
            .unwrap();
        let pulled = world
            .images
            .pull(&name, &Credentials::Anonymous, &())
            .await
            .unwrap();
        assert_eq!(pulled.digest, world.image.manifest.digest);
        assert_eq!(pulled.reference, name);
    }
}

#[tokio::test]
async fn takes_dockers_media_types() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("docker", 0).await;
    let mut text = String::from_utf8(world.image.manifest.bytes.clone()).unwrap();
    for (oci, docker) in [
        (crate::image::OCI_MANIFEST, DOCKER_MANIFEST),
        ("oci.image.config.v1+json", "docker.container.image.v1+json"),
        (
            "oci.image.layer.v1.tar+gzip",
            "docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        text = text.replace(oci, docker);
    }
    let manifest = Blob::new(text.into_bytes(), DOCKER_MANIFEST);
    world
        .registry
        .push_manifest(&manifest, "team/app", "1")
        .await;
    let image = world.pull().await.unwrap();
    assert_eq!(image.digest, manifest.digest);
    world.check(&image).await;
}

#[tokio::test]
async fn simultaneous_pulls_fetch_once() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("many", 500_000).await;
    let pulls = futures_util::future::join_all((0..8).map(|_| world.pull())).await;
    for image in pulls {
        assert_eq!(image.unwrap().digest, world.image.manifest.digest);
    }
    for layer in &world.image.layers {
        assert_eq!(world.proxy.seen(&layer.digest).len(), 1);
    }
    world
        .check(&world.images.get(&world.name()).await.unwrap().unwrap())
        .await;
}

#[tokio::test]
async fn a_truncated_blob_goes_on_where_it_ended() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("truncated", 900_000).await;
    let layer = &world.image.layers[0].digest;
    world
        .proxy
        .fault(layer, [Fault::Cut(300_000), Fault::Cut(300_000)]);
    let image = world.pull().await.unwrap();
    world.check(&image).await;
    let ranges: Vec<_> = world
        .proxy
        .seen(layer)
        .into_iter()
        .map(|seen| seen.range)
        .collect();
    let [None, Some(second), Some(third)] = ranges.as_slice() else {
        panic!("{ranges:?}")
    };
    let offset = |range: &str| -> u64 {
        range
            .strip_prefix("bytes=")
            .unwrap()
            .strip_suffix('-')
            .unwrap()
            .parse()
            .unwrap()
    };
    assert!(
        offset(second) > 200_000 && offset(third) > 500_000,
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_registry_without_ranges_starts_over_and_succeeds() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("ranges", 900_000).await;
    let layer = &world.image.layers[0].digest;
    world
        .proxy
        .fault(layer, [Fault::Cut(300_000), Fault::IgnoreRange]);
    let image = world.pull().await.unwrap();
    world.check(&image).await;
    assert_eq!(world.proxy.seen(layer).len(), 2);
}

#[tokio::test]
async fn a_blob_that_never_gets_further_is_given_up() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("stuck", 0).await;
    world
        .proxy
        .fault(&world.image.layers[0].digest, vec![Fault::Cut(0); 20]);
    let error = world.pull().await.unwrap_err();
    assert!(matches!(error, PullError::Connection { .. }), "{error}");
    world.check_nothing().await;
}

#[tokio::test]
async fn wrong_bytes_are_refused() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("flipped", 100_000).await;
    let layer = &world.image.layers[0].digest;
    for fault in [Fault::Flip, Fault::Longer] {
        world.proxy.fault(layer, [fault]);
        let error = world.pull().await.unwrap_err();
        let PullError::Mismatch { expected, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(expected, layer);
        world.check_nothing().await;
    }
    for path in ["/manifests/", world.image.config.digest.as_str()] {
        world.proxy.fault(path, [Fault::Flip]);
        let error = world.pull().await.unwrap_err();
        assert!(matches!(error, PullError::Mismatch { .. }), "{error}");
        world.check_nothing().await;
    }
    // Nothing of the wrong bytes was kept.
    let image = world.pull().await.unwrap();
    world.check(&image).await;
}

/// A first half of other bytes is found out at the end, and the blob fetched anew.
#[tokio::test]
async fn a_spoilt_half_is_fetched_again() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("spoilt", 900_000).await;
    let layer = &world.image.layers[0].digest;
    world.proxy.fault(layer, [Fault::FlipAndCut(300_000)]);
    let image = world.pull().await.unwrap();
    world.check(&image).await;
    let ranges: Vec<_> = world
        .proxy
        .seen(layer)
        .into_iter()
        .map(|seen| seen.range)
        .collect();
    assert!(
        matches!(ranges.as_slice(), [None, Some(_), None]),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_when_it_says() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("busy", 0).await;
    world
        .proxy
        .fault("/manifests/", [Fault::Status(429, Some(1))]);
    world
        .proxy
        .fault(&world.image.layers[1].digest, [Fault::Status(503, None)]);
    let image = world.pull().await.unwrap();
    world.check(&image).await;
    let manifests = world.proxy.seen("/manifests/");
    let waited = manifests[1].at - manifests[0].at;
    assert!(waited >= Duration::from_secs(1), "{waited:?}");

    world.images.remove(&world.name()).await.unwrap();
    world
        .proxy
        .fault("/manifests/", vec![Fault::Status(429, None); 20]);
    let error = world.pull().await.unwrap_err();
    assert!(
        matches!(error, PullError::Status { status: 429, .. }),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        format!("the registry answers 429 for {}: try later", world.name())
    );
    world.check_nothing().await;
}

#[tokio::test]
async fn a_registry_that_dies_midway_and_comes_back_is_waited_for() {
    if !can_run(NEEDED) {
        return;
    }
    let mut world = World::new("dies", 900_000).await;
    let layer = world.image.layers[0].digest.clone();
    world.proxy.fault(&layer, [Fault::Cut(300_000)]);
    let (images, name) = (world.images.clone(), world.name());
    let started = Instant::now();
    let pull = tokio::spawn(async move { images.pull(&name, &Credentials::Anonymous, &()).await });
    world.proxy.has_answer(&layer).await;
    world.registry.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.registry.start_again();
    let image = pull.await.unwrap().unwrap();
    assert!(started.elapsed() > Duration::from_secs(1));
    world.check(&image).await;
    let last = world.proxy.seen(&layer).pop().unwrap();
    assert!(last.range.is_some(), "it goes on where it ended");
}

#[tokio::test]
async fn says_what_the_registry_lacks() {
    if !can_run(NEEDED) {
        return;
    }
    let mut world = World::new("absent", 0).await;
    let absent = format!("{}/team/other:1", world.proxy.address)
        .parse()
        .unwrap();
    let error = world
        .images
        .pull(&absent, &Credentials::Anonymous, &())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the registry has no manifests/1 of {absent}")
    );
    world.registry.stop();
    let direct = name(world.registry.address());
    let error = world
        .images
        .pull(&direct, &Credentials::Anonymous, &())
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Connection { .. }), "{error}");
    world.check_nothing().await;
}

#[tokio::test]
async fn a_password_opens_the_registry() {
    if !can_run(NEEDED) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let registry = Registry::start_with(true).await;
    let image = TestImage::new("password", 0);
    registry.push(&image, "team/app", "1").await;
    let name = name(registry.address());
    let basic = |password: &str| Credentials::Basic {
        username: "ann".to_owned(),
        password: password.to_owned(),
    };
    for wrong in [
        Credentials::Anonymous,
        basic("guess"),
        Credentials::Bearer("x".to_owned()),
    ] {
        let error = images.pull(&name, &wrong, &()).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
        assert_eq!(error.to_string(), format!("not authorized to pull {name}"));
    }
    let pulled = images.pull(&name, &basic("sesame"), &()).await.unwrap();
    assert_eq!(pulled.digest, image.manifest.digest);
}

#[tokio::test]
async fn a_token_opens_the_registry() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("token", 0).await;
    world.proxy.ask_for_token("ann", "sesame");
    let error = world.pull().await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    let basic = Credentials::Basic {
        username: "ann".to_owned(),
        password: "sesame".to_owned(),
    };
    let image = world.images.pull(&world.name(), &basic, &()).await.unwrap();
    world.check(&image).await;
    assert_eq!(world.proxy.seen("/token").len(), 2, "one for each pull");
    world.images.remove(&world.name()).await.unwrap();
    let bearer = Credentials::Bearer("a-token-of-the-test".to_owned());
    world
        .images
        .pull(&world.name(), &bearer, &())
        .await
        .unwrap();
}

#[tokio::test]
async fn documents_are_bounded() {
    if !can_run(NEEDED) {
        return;
    }
    let world = World::new("bounded", 0).await;
    for path in ["/manifests/", world.image.config.digest.as_str()] {
        world.proxy.fault(path, [Fault::Huge]);
        let error = world.pull().await.unwrap_err();
        assert!(matches!(error, PullError::TooLarge { .. }), "{error}");
        world.check_nothing().await;
    }
}

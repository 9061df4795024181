//! The images that are here: list, remove, views, and a containerd that restarts.

use std::collections::BTreeSet;

use opr_images::{ConnectError, Credentials, Images, StoreError};

use crate::{
    can_run,
    containerd::Containerd,
    image::{TestImage, check_files, scratch},
};

#[tokio::test]
async fn removing_the_last_name_removes_the_layers() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    TestImage::new("one", 0).write_layout(&dir.join("one"), "a:1");
    let (one, two) = ("a:1".parse().unwrap(), "a:2".parse().unwrap());
    images
        .import(&dir.join("one"), Some(&one), &())
        .await
        .unwrap();
    let image = images
        .import(&dir.join("one"), Some(&two), &())
        .await
        .unwrap()
        .remove(0);
    let names = |list: Vec<opr_images::Image>| {
        list.iter()
            .map(|i| i.reference.to_string())
            .collect::<Vec<_>>()
    };
    let expected = ["docker.io/library/a:1", "docker.io/library/a:2"];
    assert_eq!(names(images.list().await.unwrap()), expected);
    let layers = images.layers(&image).await.unwrap();
    assert_eq!(layers, images.layers(&image).await.unwrap());
    assert_eq!(
        layers,
        containerd.images().await.layers(&image).await.unwrap()
    );

    images.remove(&one).await.unwrap();
    assert!(
        layers.iter().all(|dir| dir.is_dir()),
        "the other name still has them"
    );
    let absent = images.remove(&one).await.unwrap_err();
    assert!(matches!(absent, StoreError::Absent { .. }), "{absent}");
    images.remove(&two).await.unwrap();
    assert_eq!(images.list().await.unwrap(), []);
    assert_eq!(images.get(&two).await.unwrap(), None);
    assert!(
        layers.iter().all(|dir| !dir.exists()),
        "nothing is left of the layers"
    );
    let count = |text: String| text.lines().count() - 1;
    assert_eq!(count(containerd.ctr(&["snapshots", "ls"])), 0);
    assert_eq!(count(containerd.ctr(&["content", "ls"])), 0);
}

#[tokio::test]
async fn layers_in_use_outlive_their_name() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let name = "a:1".parse().unwrap();
    TestImage::new("old", 0).write_layout(&dir.join("old"), "a:1");
    TestImage::new("new", 0).write_layout(&dir.join("new"), "a:1");
    let old = images
        .import(&dir.join("old"), None, &())
        .await
        .unwrap()
        .remove(0);
    let layers = images.layers(&old).await.unwrap();
    let new = images
        .import(&dir.join("new"), None, &())
        .await
        .unwrap()
        .remove(0);
    assert_eq!(images.get(&name).await.unwrap().unwrap().digest, new.digest);
    assert_ne!(images.layers(&new).await.unwrap(), layers);

    let in_use = BTreeSet::from([old.chain_id.clone()]);
    assert_eq!(images.prune(&in_use).await.unwrap(), [] as [String; 0]);
    assert!(layers.iter().all(|dir| dir.is_dir()));
    assert_eq!(
        images.prune(&BTreeSet::new()).await.unwrap(),
        [old.chain_id]
    );
    // The next removal collects what is free now.
    images.remove(&name).await.unwrap();
    assert!(layers.iter().all(|dir| !dir.exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_a_containerd_that_is_killed() {
    if !can_run(&["containerd"]) {
        return;
    }
    let mut containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    TestImage::new("restart", 0).write_layout(&dir.join("a"), "a:1");
    let image = images
        .import(&dir.join("a"), None, &())
        .await
        .unwrap()
        .remove(0);
    let layers = images.layers(&image).await.unwrap();
    containerd.restart();
    assert_eq!(images.list().await.unwrap(), std::slice::from_ref(&image));
    assert_eq!(images.layers(&image).await.unwrap(), layers);
    let ensured = images
        .ensure(&image.reference, &Credentials::Anonymous, &())
        .await
        .unwrap();
    assert_eq!(ensured, image);
    let (_root, root) = scratch();
    opr_images::mount::mount_rootfs(&root, &layers, None, None).unwrap();
    check_files(&root);
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::empty()).unwrap();
}

#[tokio::test]
async fn says_where_no_containerd_answers() {
    let (_dir, dir) = scratch();
    let error = Images::connect(&dir.join("no.sock"), "test", "overlayfs")
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Socket { .. }), "{error}");
}

/// A host drives these from its own tasks.
#[test]
fn every_call_can_be_spawned() {
    fn check<T: Send>(_: impl FnOnce(&'static Images, &'static opr_images::Image) -> T) {}
    check(|images, image| images.pull(&image.reference, &Credentials::Anonymous, &()));
    check(|images, image| images.ensure(&image.reference, &Credentials::Anonymous, &()));
    check(|images, image| images.import("x".as_ref(), Some(&image.reference), &()));
    check(|images, image| images.get(&image.reference));
    check(|images, image| images.remove(&image.reference));
    check(|images, image| images.layers(image));
    check(|images, _| images.list());
}

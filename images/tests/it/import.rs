//! Import of layouts and archives, good and hostile.

use std::{fs, io::Write as _, path::Path};

use opr_images::{Images, ImportError};
use serde_json::json;

use crate::{
    can_run,
    containerd::Containerd,
    image::{TestImage, append, check_files, digest, scratch, tar},
    mounts_below,
};

/// Imports, mounts and reads the one image in `file`.
async fn check(images: &Images, file: &Path, name: Option<&str>, expected: &str) {
    let name = name.map(|name| name.parse().unwrap());
    let imported = images.import(file, name.as_ref(), &()).await.unwrap();
    let [image] = imported.as_slice() else {
        panic!("{} images", imported.len())
    };
    assert_eq!(image.reference.to_string(), expected);
    assert_eq!(
        images.get(&image.reference).await.unwrap().as_ref(),
        Some(image)
    );
    let layers = images.layers(image).await.unwrap();
    assert_eq!(layers.len(), 3);
    let (_dir, root) = scratch();
    opr_images::mount::mount_rootfs(&root, &layers, None, None).unwrap();
    check_files(&root);
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::empty()).unwrap();
}

#[tokio::test]
async fn imports_every_form_of_an_image() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let full = "docker.io/library/a:1";

    TestImage::new("layout", 0).write_layout(&dir.join("layout"), "a:1");
    check(&images, &dir.join("layout"), None, full).await;

    let image = TestImage::new("archive", 700_000);
    let archive = dir.join("archive.tar");
    image.write_archive(&archive, "latest");
    check(&images, &archive, Some("a:1"), full).await;

    let bytes = fs::read(&archive).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    fs::write(dir.join("a.tgz"), gzip.finish().unwrap()).unwrap();
    check(
        &images,
        &dir.join("a.tgz"),
        Some("b"),
        "docker.io/library/b:latest",
    )
    .await;
    fs::write(
        dir.join("a.tzst"),
        zstd::encode_all(bytes.as_slice(), 1).unwrap(),
    )
    .unwrap();
    check(
        &images,
        &dir.join("a.tzst"),
        Some("b"),
        "docker.io/library/b:latest",
    )
    .await;

    let saved = dir.join("saved.tar");
    TestImage::new("saved", 0).write_saved(&saved, &["x/y:z"]);
    check(&images, &saved, None, "docker.io/x/y:z").await;
    assert!(mounts_below(&dir).is_empty());
}

#[tokio::test]
async fn reads_the_config_and_satisfies_other_clients() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let made = TestImage::new("config", 0);
    made.write_archive(&dir.join("a.tar"), "a:1");
    let image = images
        .import(&dir.join("a.tar"), None, &())
        .await
        .unwrap()
        .remove(0);
    assert_eq!(image.digest, made.manifest.digest);
    assert_eq!(image.config.env, ["PATH=/bin", "A=b"]);
    assert_eq!(image.config.entrypoint, ["/bin/run"]);
    assert_eq!(image.config.cmd, ["x"]);
    assert_eq!(image.config.working_dir, "/work");
    assert_eq!(image.config.user, "7:8");
    assert_eq!(image.config.labels["k"], "v");
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(image.created.as_deref(), Some("2026-01-02T03:04:05Z"));
    // `ctr` says whether all content and the snapshots are there.
    let check = containerd.ctr(&["images", "check"]);
    assert!(
        check.contains("complete (4/4)") && check.trim_end().ends_with("true"),
        "{check}"
    );
    let listed = containerd.ctr(&["images", "ls"]);
    assert!(listed.contains("docker.io/library/a:1"), "{listed}");
    assert_eq!(containerd.ctr(&["leases", "ls", "-q"]).trim(), "");
}

#[track_caller]
fn refused(result: Result<Vec<opr_images::Image>, ImportError>, expected: &str) {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(text.contains(expected), "{text}");
}

#[tokio::test]
async fn refuses_entries_that_lead_outside() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let file = dir.join("x.tar");
    let raw_entry = |name: &[u8], kind: tar::EntryType, link: &[u8]| {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(2048, 0);
        fs::write(&file, bytes).unwrap();
    };

    raw_entry(b"../../etc/passwd", tar::EntryType::Regular, b"");
    refused(
        images.import(&file, None, &()).await,
        "points outside its root",
    );
    raw_entry(b"/etc/passwd", tar::EntryType::Regular, b"");
    refused(
        images.import(&file, None, &()).await,
        "points outside its root",
    );
    raw_entry(
        b"layer/layer.tar",
        tar::EntryType::Symlink,
        b"../../etc/passwd",
    );
    refused(
        images.import(&file, None, &()).await,
        "points outside its root",
    );
    raw_entry(b"dev", tar::EntryType::Char, b"");
    refused(
        images.import(&file, None, &()).await,
        "is no file, link or directory",
    );

    assert_eq!(images.list().await.unwrap(), []);
}

#[tokio::test]
async fn refuses_damaged_and_endless_archives() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let file = dir.join("x.tar");
    let try_entries = async |entries: &[(&str, &[u8])]| {
        fs::write(&file, tar(entries)).unwrap();
        images.import(&file, None, &()).await
    };
    refused(try_entries(&[]).await, "empty archive");
    refused(try_entries(&[("a.txt", b"x")]).await, "neither oci-layout");
    let huge = vec![b' '; 5 << 20];
    refused(
        try_entries(&[("index.json", &huge)]).await,
        "index.json has 5242880 bytes",
    );
    let entries = vec![("a", b"".as_slice()); 20_001];
    refused(try_entries(&entries).await, "more than 20000 entries");
    let blob = format!("blobs/sha256/{}", "a".repeat(64));
    refused(
        try_entries(&[(&blob, b"other")]).await,
        "does not match its digest",
    );
    let layout = (("oci-layout"), b"{}".as_slice());
    refused(
        try_entries(&[layout, ("index.json", b"{")]).await,
        "index.json",
    );
    let many = json!({"manifests": vec![json!({"digest": digest(b""), "size": 1}); 1001]});
    let many = many.to_string();
    refused(
        try_entries(&[layout, ("index.json", many.as_bytes())]).await,
        "1001 manifests",
    );
    let index = json!({"manifests": [{"digest": "sha256:../../x", "size": 1}]}).to_string();
    refused(
        try_entries(&[layout, ("index.json", index.as_bytes())]).await,
        "no sha256 digest",
    );

    // Cut off in the middle of a blob.
    TestImage::new("cut", 100_000).write_archive(&file, "a:1");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..60_000]).unwrap();
    refused(images.import(&file, None, &()).await, "cannot read");
    fs::write(&file, b"plain text, not an archive at all").unwrap();
    refused(images.import(&file, None, &()).await, "cannot read");

    assert_eq!(images.list().await.unwrap(), []);
    // The node is as before.
    TestImage::new("good", 0).write_archive(&file, "a:1");
    images.import(&file, None, &()).await.unwrap();
}

#[tokio::test]
async fn imports_what_another_namespace_has() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let (_dir, dir) = scratch();
    let file = dir.join("x.tar");
    TestImage::new("shared", 0).write_archive(&file, "a:1");
    let mut imported = Vec::new();
    for namespace in ["one", "two"] {
        let images = containerd.images_in(namespace).await;
        imported.push(images.import(&file, None, &()).await.unwrap());
        assert_eq!(images.list().await.unwrap().len(), 1);
    }
    assert_eq!(imported[0], imported[1]);
}

#[tokio::test]
async fn refuses_images_that_contradict_themselves() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let file = dir.join("x.tar");

    // A layer that is not in the file.
    let image = TestImage::new("missing", 0);
    let mut archive = tar::Builder::new(fs::File::create(&file).unwrap());
    for blob in image.blobs().skip(1) {
        append(
            &mut archive,
            &format!("blobs/sha256/{}", blob.hex()),
            &blob.bytes,
        );
    }
    append(&mut archive, "oci-layout", b"{}");
    append(&mut archive, "index.json", image.index("a:1").as_bytes());
    archive.finish().unwrap();
    refused(
        images.import(&file, None, &()).await,
        &format!("lacks {}", image.layers[0].digest),
    );

    // A layer other than the config names.
    let mut image = TestImage::new("swapped", 0);
    image.layers.swap(0, 2);
    image.remake_manifest();
    image.write_archive(&file, "a:1");
    refused(
        images.import(&file, None, &()).await,
        "but the config names",
    );

    // A layer more than the config names.
    let mut image = TestImage::new("more", 0);
    image.layers.push(image.layers[0].clone());
    image.remake_manifest();
    image.write_archive(&file, "a:1");
    refused(
        images.import(&file, None, &()).await,
        "has 4 layers, but its config names 3",
    );
    assert_eq!(images.list().await.unwrap(), []);
    let snapshots = containerd.ctr(&["snapshots", "ls"]);
    assert!(!snapshots.contains("extract-"), "{snapshots}");
}

#[tokio::test]
async fn a_layout_is_read_beneath_its_directory() {
    if !can_run(&["containerd"]) {
        return;
    }
    let containerd = Containerd::start();
    let images = containerd.images().await;
    let (_dir, dir) = scratch();
    let image = TestImage::new("links", 0);
    image.write_layout(&dir.join("a"), "a:1");
    let blob = dir.join("a/blobs/sha256").join(image.layers[0].hex());
    fs::rename(&blob, dir.join("outside")).unwrap();
    std::os::unix::fs::symlink(dir.join("outside"), &blob).unwrap();
    refused(images.import(&dir.join("a"), None, &()).await, "is a link");
    fs::remove_file(&blob).unwrap();
    refused(
        images.import(&dir.join("a"), None, &()).await,
        "lacks sha256:",
    );
    fs::write(&blob, b"short").unwrap();
    refused(
        images.import(&dir.join("a"), None, &()).await,
        "does not match its digest",
    );
    let mut bytes = image.layers[0].bytes.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    refused(
        images.import(&dir.join("a"), None, &()).await,
        "does not match its digest",
    );
    refused(
        images.import(&dir.join("absent"), None, &()).await,
        "cannot read",
    );
    fs::create_dir(dir.join("empty")).unwrap();
    refused(
        images.import(&dir.join("empty"), None, &()).await,
        "no oci-layout",
    );
}

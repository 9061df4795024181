use super::*;

#[test]
fn separators_in_paths_are_escaped() {
    assert_eq!(escape(Path::new("/a:b,c\\d")), "/a\\:b\\,c\\\\d");
    assert_eq!(escape(Path::new("/plain")), "/plain");
}

/// Kernels before 6.15 take this way; it has to go on working where the other one does.
#[test]
fn older_kernels_get_their_layers_by_path() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("REQUIRE_ALL").is_none(),
            "mounting needs root"
        );
        eprintln!("skipped 1: mounting needs root");
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("opr, images:")
        .tempdir()
        .unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["top", "low", "upper", "work", "root"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("top/a"), "top").unwrap();
    fs::write(path("low/b"), "low").unwrap();
    let layers = [path("top"), path("low")];
    let uppers = [None, Some((path("upper"), path("work")))];
    for upper in &uppers {
        let upper = upper.as_ref().map(|(upper, work)| Upper { upper, work });
        let clones = layers.iter().map(|layer| clone_layer(layer, None));
        let clones: Vec<OwnedFd> = clones.collect::<Result<_, _>>().unwrap();
        let attached = Attached::all(&clones, &layers).unwrap();
        let temporary = attached.dir.path().to_owned();
        overlay_of_paths(&path("root"), attached, upper).unwrap();
        assert!(!temporary.exists(), "the layers are detached again");
        assert_eq!(fs::read_to_string(path("root/a")).unwrap(), "top");
        assert_eq!(fs::read_to_string(path("root/b")).unwrap(), "low");
        assert_eq!(fs::write(path("root/c"), "new").is_ok(), upper.is_some());
        unmount(path("root"), UnmountFlags::empty()).unwrap();
    }
    assert_eq!(fs::read_to_string(path("upper/c")).unwrap(), "new");
}

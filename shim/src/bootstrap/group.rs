//! Which containers share a daemon.

use std::{collections::HashMap, fs::File, io, io::Read, path::Path};

use serde::Deserialize;

use super::BootstrapError;

/// The first that the container's spec has names its group.
///
/// Source: containerd's runc shim, `cmd/containerd-shim-runc-v2/manager`.
const ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];
const MAX_SPEC: u64 = 16 << 20;

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// The group of the container in `bundle`; a container without one is alone.
pub(super) fn of(bundle: &Path, id: &str) -> Result<String, BootstrapError> {
    let path = bundle.join("config.json");
    let annotations = read(&path).map_err(|source| BootstrapError::File {
        what: "read",
        path,
        source,
    })?;
    let mut groups = ANNOTATIONS.iter().filter_map(|name| annotations.get(*name));
    Ok(groups.next().map_or(id, String::as_str).to_owned())
}

fn read(path: &Path) -> io::Result<HashMap<String, String>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_SPEC).read_to_end(&mut text)?;
    let spec: Spec = serde_json::from_slice(&text)?;
    Ok(spec.annotations.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, expected: Option<&str>) {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), spec).unwrap();
        assert_eq!(of(bundle.path(), "c1").ok().as_deref(), expected);
    }

    #[test]
    fn takes_the_first_annotation_that_is_there() {
        check(r#"{"ociVersion":"1.0.2"}"#, Some("c1"));
        check(r#"{"annotations":null}"#, Some("c1"));
        check(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
            Some("pod"),
        );
        check(
            r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"node"}}"#,
            Some("node"),
        );
        check("{", None);
    }
}

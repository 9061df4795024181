//! Which containers share a daemon. The program of `shim/start` has this file too, and no standard library.

use alloc::{borrow::ToOwned, collections::BTreeMap, string::String};

use serde::Deserialize;

/// The first that the container's spec has names its group.
///
/// Source: containerd's runc shim, `cmd/containerd-shim-runc-v2/manager`.
const ANNOTATIONS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The group of the container with this `config.json`; a container without one is alone.
pub(crate) fn of(spec: &[u8], id: &str) -> serde_json::Result<String> {
    let spec: Spec = serde_json::from_slice(spec)?;
    let annotations = spec.annotations.unwrap_or_default();
    let mut groups = ANNOTATIONS.iter().filter_map(|name| annotations.get(*name));
    Ok(groups.next().map_or(id, String::as_str).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, expected: Option<&str>) {
        assert_eq!(of(spec.as_bytes(), "c1").ok().as_deref(), expected);
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

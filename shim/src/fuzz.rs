//! Doors for the fuzz targets: what comes from clients and bundles, up to where the kernel is asked.

use containerd_shim::{
    api::{CreateTaskRequest, ExecProcessRequest, UpdateTaskRequest},
    protos::protobuf::Message,
};
use oci_spec::runtime::Spec;

use crate::{
    plan::{self, SpecError},
    service::request,
};

/// Bytes of a spec.
pub fn spec(bytes: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(bytes) else {
        return;
    };
    if let Some(process) = spec.process() {
        let _ = plan::process(process, &spec);
    }
    let _ = plan::devices(&spec);
    let _ = plan::is_dev_made(&spec);
    let (tree, hierarchies) = (|_: &_, _: &_| Ok((0, true)), |_| Ok(Vec::new()));
    let _ = plan::mounts::<SpecError>(&spec, tree, hierarchies);
    // A namespace's path is opened, and could be anything.
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    if namespaces
        .into_iter()
        .flatten()
        .all(|namespace| namespace.path().is_none())
        && let Ok(namespaces) = plan::namespaces(&spec, |_| 0)
    {
        let _ = plan::sysctls(&spec, &namespaces);
    }
}

/// Bytes of requests, as ttrpc hands them over.
pub fn request(bytes: &[u8]) {
    if let Ok(create) = CreateTaskRequest::parse_from_bytes(bytes) {
        let _ = request::create(create);
    }
    if let Ok(exec) = ExecProcessRequest::parse_from_bytes(bytes) {
        let _ = request::process(exec.spec.as_ref());
    }
    if let Ok(update) = UpdateTaskRequest::parse_from_bytes(bytes) {
        let _ = request::resources(update.resources.as_ref());
    }
}

//! What requests carry inside: options, processes, limits.

use std::path::{Component, Path};

use containerd_shim::{
    api::{CreateTaskRequest, Options},
    bootstrap::any_is,
    protos::protobuf::{Message, well_known_types::any::Any},
};
use oci_spec::runtime::{LinuxResources, Process};
use serde::de::DeserializeOwned;

use crate::{
    stdio::StdioConfig,
    task::{Create, TaskError},
};

pub(crate) fn create(request: CreateTaskRequest) -> Result<Create, TaskError> {
    if !request.checkpoint.is_empty() {
        return Err(TaskError::Unsupported("restoring a checkpoint"));
    }
    if !is_name(&request.id) {
        return Err(invalid("id", "it is empty or no file name"));
    }
    if !Path::new(&request.bundle).is_absolute() {
        return Err(invalid("bundle", "the path is not absolute"));
    }
    let options = options(request.options.as_ref())?;
    Ok(Create {
        id: request.id,
        bundle: request.bundle.into(),
        rootfs: request.rootfs,
        stdio: StdioConfig {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        no_new_keyring: options.no_new_keyring,
        systemd_cgroup: options.systemd_cgroup,
        io_ids: (options.io_uid, options.io_gid),
    })
}

pub(crate) fn process(spec: Option<&Any>) -> Result<Process, TaskError> {
    json("spec", spec)
}

pub(crate) fn resources(resources: Option<&Any>) -> Result<LinuxResources, TaskError> {
    json("resources", resources)
}

/// The names of the runc shim's options are honoured where they mean something here; other runtimes' are not ours.
fn options(options: Option<&Any>) -> Result<Options, TaskError> {
    match options {
        Some(options) if any_is::<Options>(options) => Options::parse_from_bytes(&options.value)
            .map_err(|e| invalid("options", &e.to_string())),
        _ => Ok(Options::default()),
    }
}

/// containerd packs the OCI's types as JSON.
fn json<T: DeserializeOwned>(field: &'static str, any: Option<&Any>) -> Result<T, TaskError> {
    let any = any.ok_or_else(|| invalid(field, "it is missing"))?;
    serde_json::from_slice(&any.value).map_err(|e| invalid(field, &e.to_string()))
}

fn invalid(field: &'static str, reason: &str) -> TaskError {
    TaskError::Invalid {
        field,
        reason: reason.to_owned(),
    }
}

/// It becomes a part of cgroup paths.
fn is_name(id: &str) -> bool {
    let mut parts = Path::new(id).components();
    let is_one = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    is_one && !id.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use containerd_shim::util::convert_to_any;

    use super::*;

    fn request(id: &str, bundle: &str) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            ..CreateTaskRequest::default()
        }
    }

    #[track_caller]
    fn check(request: CreateTaskRequest, expected: &str) {
        assert_eq!(create(request).unwrap_err().to_string(), expected);
    }

    #[test]
    fn refuses_what_is_no_container() {
        for id in ["", ".", "..", "a/b", "/a", "a/", "a\0b"] {
            check(request(id, "/b"), "id: it is empty or no file name");
        }
        check(request("a", "b"), "bundle: the path is not absolute");
        let mut restore = request("a", "/b");
        restore.checkpoint = "/c".to_owned();
        check(restore, "restoring a checkpoint is not implemented");
    }

    #[test]
    fn reads_runc_options_and_passes_over_others() {
        let options = Options {
            systemd_cgroup: true,
            io_uid: 7,
            ..Options::default()
        };
        let mut with = request("a", "/b");
        with.options = Some(convert_to_any(Box::new(options)).unwrap()).into();
        let read = create(with.clone()).unwrap();
        assert_eq!((read.systemd_cgroup, read.io_ids), (true, (7, 0)));
        let mut other = with.options.unwrap();
        other.type_url = "runtimeoptions.v1.Options".to_owned();
        with.options = Some(other).into();
        assert!(!create(with).unwrap().systemd_cgroup);
    }

    #[test]
    fn reads_json_and_says_what_is_wrong_with_it() {
        let mut any = Any::new();
        any.value = br#"{"pids":{"limit":7}}"#.to_vec();
        let read: LinuxResources = json("resources", Some(&any)).unwrap();
        assert_eq!(read.pids().as_ref().unwrap().limit(), 7);
        any.value = b"{".to_vec();
        let error = json::<LinuxResources>("resources", Some(&any)).unwrap_err();
        assert!(error.to_string().starts_with("resources: EOF"), "{error}");
    }
}

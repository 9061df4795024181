//! The shim's own socket: what it does without containerd in between.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use containerd_shim::protos::{
    api::{CreateTaskRequest, DeleteRequest, Mount, StartRequest, WaitRequest, WaitResponse},
    protobuf::Message,
    shim_sync::Client,
    ttrpc::{Request, context},
};

use crate::{
    container::Container,
    node::{Node, Runtime},
};

/// What containerd 1.x calls; later ones call v3, which is the same under another name.
const SERVICE: &str = "containerd.task.v2.Task";
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a shim.
pub(crate) struct Inside {
    client: Client,
    namespace: String,
}

impl Inside {
    /// To the shim that serves a container.
    pub(crate) fn connect(node: &Node, served: &str) -> Result<Self> {
        let file = node.bundle(Runtime::Ours, served).join("address");
        let address = fs::read_to_string(file).context("the shim tells no address")?;
        let client = Client::connect(address.trim()).context("the shim does not listen")?;
        Ok(Self {
            client,
            namespace: node.namespace(Runtime::Ours),
        })
    }

    /// Makes the container of a bundle, which has its spec; what it prints goes to the file.
    pub(crate) fn create(
        &self,
        container: &Container<'_>,
        bundle: &Path,
        stdout: Option<&Path>,
    ) -> Result<()> {
        let mounts = container.mounts().into_iter().map(|mount| Mount {
            type_: mount.r#type,
            source: mount.source,
            target: mount.target,
            options: mount.options,
            ..Default::default()
        });
        let create = CreateTaskRequest {
            id: container.id.clone(),
            bundle: bundle.display().to_string(),
            rootfs: mounts.collect(),
            stdout: stdout.map_or_else(String::new, |file| format!("file://{}", file.display())),
            ..Default::default()
        };
        self.call("Create", &create).map(drop)
    }

    pub(crate) fn start(&self, id: &str) -> Result<()> {
        let start = StartRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.call("Start", &start).map(drop)
    }

    /// Answers how it has ended.
    pub(crate) fn wait(&self, id: &str) -> Result<u32> {
        let wait = WaitRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let waited = self.call("Wait", &wait)?;
        Ok(WaitResponse::parse_from_bytes(&waited)?.exit_status)
    }

    pub(crate) fn delete(&self, id: &str) -> Result<()> {
        let delete = DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.call("Delete", &delete).map(drop)
    }

    fn call(&self, method: &str, body: &impl Message) -> Result<Vec<u8>> {
        let name = "containerd-namespace-ttrpc".to_owned();
        let metadata = HashMap::from([(name, vec![self.namespace.clone()])]);
        let request = Request {
            service: SERVICE.into(),
            method: method.into(),
            timeout_nano: i64::try_from(TIMEOUT.as_nanos())?,
            metadata: context::to_pb(metadata),
            payload: body.write_to_bytes()?,
            ..Default::default()
        };
        let answer = self.client.request(request);
        Ok(answer.with_context(|| method.to_owned())?.payload)
    }
}

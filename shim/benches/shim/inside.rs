//! The shim's own socket: what it does without containerd in between.

use std::{
    collections::HashMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use containerd_shim::protos::{
    api::{CreateTaskRequest, DeleteRequest, Mount, StartRequest, WaitRequest, WaitResponse},
    protobuf::Message,
    shim_sync::Client,
    ttrpc::{Request, context},
};

use crate::{
    container::Container,
    rootfs::{self, Kind},
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
    pub(crate) fn connect(address: &str, namespace: &str) -> Result<Self> {
        let client = Client::connect(address.trim()).context("the shim does not listen")?;
        Ok(Self {
            client,
            namespace: namespace.to_owned(),
        })
    }

    /// From a create to the answer of a wait; deleted outside of the time.
    pub(crate) fn life(&self, container: &Container<'_>) -> Result<Duration> {
        let id = container.id.clone();
        let dir = container.node.dir.path();
        let bundle = dir.join("inside").join(&id);
        container.prepare();
        fs::create_dir_all(bundle.join("rootfs"))?;
        fs::write(bundle.join("config.json"), container.spec_text())?;
        let mounts = rootfs::mounts(Kind::Overlay, dir, &container.folder());
        let mounts = mounts.into_iter().map(|mount| Mount {
            type_: mount.r#type,
            source: mount.source,
            target: mount.target,
            options: mount.options,
            ..Default::default()
        });
        let create = CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            rootfs: mounts.collect(),
            ..Default::default()
        };
        let start = StartRequest {
            id: id.clone(),
            ..Default::default()
        };
        let wait = WaitRequest {
            id: id.clone(),
            ..Default::default()
        };
        let began = Instant::now();
        self.call("Create", &create)?;
        self.call("Start", &start)?;
        let waited = self.call("Wait", &wait)?;
        let took = began.elapsed();
        let delete = DeleteRequest {
            id,
            ..Default::default()
        };
        self.call("Delete", &delete)?;
        let exit = WaitResponse::parse_from_bytes(&waited)?.exit_status;
        ensure!(exit == 0, "the program ended with {exit}");
        fs::remove_dir_all(bundle)?;
        fs::remove_dir_all(container.folder())?;
        Ok(took)
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

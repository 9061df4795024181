//! A container that is to be made: its spec, root file system and streams.

use std::{
    fs,
    path::{Path, PathBuf},
};

use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    container,
};
use containerd_client::types::Mount;
use prost_types::Any;
use serde_json::Value;
use tonic::Status;

use super::{
    node::{Node, Runtime},
    rootfs::{self, Kind},
    spec,
    stdio::{Stdio, Wanted},
    task::Task,
};

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Says what a container is; `create` and `run` make it.
#[derive(Clone)]
pub(crate) struct Container<'n> {
    pub(crate) node: &'n Node,
    pub(crate) runtime: Runtime,
    pub(crate) id: String,
    spec: Value,
    kind: Kind,
    wanted: Wanted,
    input: Option<String>,
}

/// What became of a container that has run and is deleted.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) exit: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) events: Vec<String>,
}

impl<'n> Container<'n> {
    pub(crate) fn new(node: &'n Node, runtime: Runtime, id: &str) -> Self {
        Self {
            spec: spec::default(&format!("/{}/{id}", node.namespace(runtime))),
            node,
            runtime,
            id: id.to_owned(),
            kind: Kind::Overlay,
            wanted: Wanted::default(),
            input: None,
        }
    }

    pub(crate) fn args(self, args: &[&str]) -> Self {
        self.spec(|spec| spec["process"]["args"] = args.into())
    }

    pub(crate) fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// Changes the spec. `@run@` in it becomes the container's own folder on the host, `@id@` its name.
    pub(crate) fn spec(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    pub(crate) fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Changes the root file system before it is mounted.
    pub(crate) fn fill(self, fill: impl FnOnce(&Path)) -> Self {
        self.prepare();
        fill(&rootfs::own(self.kind, &self.folder()));
        self
    }

    /// What the process reads.
    pub(crate) fn input(mut self, text: &str) -> Self {
        self.input = Some(text.to_owned());
        self.stdin()
    }

    pub(crate) fn stdin(mut self) -> Self {
        self.wanted.stdin = true;
        self
    }

    pub(crate) fn silent(mut self) -> Self {
        self.wanted.silent = true;
        self
    }

    pub(crate) fn terminal(mut self) -> Self {
        self.wanted.terminal = true;
        self.spec(|spec| spec["process"]["terminal"] = true.into())
    }

    /// Shares a shim with all others of the group.
    pub(crate) fn group(self, name: &str) -> Self {
        self.spec(|spec| spec["annotations"]["io.containerd.runc.v2.group"] = name.into())
    }

    /// Where the files of this container are on the host.
    pub(crate) fn folder(&self) -> PathBuf {
        let namespace = self.node.namespace(self.runtime);
        self.node
            .dir
            .path()
            .join("c")
            .join(namespace)
            .join(&self.id)
    }

    /// The folder that is `@run@` in the spec.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder().join("run")
    }

    /// Makes the files that are there before the container.
    pub(crate) fn prepare(&self) {
        let folder = self.folder();
        if !folder.exists() {
            fs::create_dir_all(self.run_dir()).unwrap();
            rootfs::make(self.kind, self.node.dir.path(), &folder);
        }
    }

    /// Makes the container and its task; nothing of it is left where that fails.
    pub(crate) async fn create(&self) -> Result<Task<'n>, Status> {
        self.prepare();
        self.record().await?;
        match self.create_task().await {
            Ok(task) => {
                self.note_socket();
                Ok(task)
            }
            Err(status) => {
                self.forget().await;
                Err(status)
            }
        }
    }

    /// The task of a container that was made before, without its streams.
    pub(crate) fn adopt(&self) -> Task<'n> {
        let wanted = Wanted {
            silent: true,
            ..Wanted::default()
        };
        Task::new(self, 0, Stdio::make(&self.fresh("adopted"), wanted))
    }

    /// The same, with output that nobody reads.
    pub(crate) async fn create_unread(mut self) -> Result<Task<'n>, Status> {
        self.wanted.unread = true;
        self.create().await
    }

    /// Makes the task of a container that containerd knows.
    pub(crate) async fn create_task(&self) -> Result<Task<'n>, Status> {
        let stdio = Stdio::make(&self.fresh("io"), self.wanted);
        let [stdin, stdout, stderr] = stdio.paths();
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.mounts(),
            terminal: stdio.terminal(),
            stdin,
            stdout,
            stderr,
            ..Default::default()
        };
        let request = self.node.request(self.runtime, request);
        let answer = self.node.tasks().create(request).await?;
        Ok(Task::new(self, answer.into_inner().pid, stdio))
    }

    /// Its root file system, as containerd tells it.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        rootfs::mounts(self.kind, self.node.dir.path(), &self.folder())
    }

    /// Makes it, runs it to its end, and deletes it.
    pub(crate) async fn run(&self) -> Result<Run, Status> {
        let mut task = self.create().await?;
        if let Err(status) = task.start().await {
            task.delete().await?;
            return Err(status);
        }
        if let Some(text) = &self.input {
            task.stdio.write(text).await;
            task.stdio.close_stdin();
            task.close_io("").await?;
        }
        let exit = task.wait().await?;
        let (stdout, stderr) = task.stdio.finish().await;
        task.delete().await?;
        let namespace = self.node.namespace(self.runtime);
        let events = self.node.events.until(&namespace, &self.id, "delete").await;
        Ok(Run {
            exit,
            stdout,
            stderr,
            events,
        })
    }

    /// Tells containerd of the container.
    pub(crate) async fn record(&self) -> Result<(), Status> {
        let record = Record {
            id: self.id.clone(),
            runtime: Some(container::Runtime {
                name: self.runtime.name(),
                options: None,
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE.into(),
                value: self.spec_text().into_bytes(),
            }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            container: Some(record),
        };
        let request = self.node.request(self.runtime, request);
        self.node.containers().create(request).await.map(drop)
    }

    /// Has containerd forget the container.
    pub(crate) async fn forget(&self) {
        let request = DeleteContainerRequest {
            id: self.id.clone(),
        };
        let request = self.node.request(self.runtime, request);
        let _ = self.node.containers().delete(request).await;
    }

    pub(crate) fn spec_text(&self) -> String {
        let mut spec = self.spec.clone();
        if self.kind == Kind::Folder {
            let root = rootfs::own(self.kind, &self.folder());
            spec["root"]["path"] = root.to_str().unwrap().into();
        }
        self.resolve(&spec.to_string())
    }

    pub(crate) fn resolve(&self, text: &str) -> String {
        let run_dir = self.run_dir().display().to_string();
        text.replace("@run@", &run_dir)
            .replace("@pid@", &std::process::id().to_string())
            .replace("@id@", &self.id)
            .replace("@namespace@", &self.node.namespace(self.runtime))
    }

    /// A folder's name that was not used yet.
    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        let names = (0..).map(|n| self.folder().join(format!("{name}-{n}")));
        names.into_iter().find(|path| !path.exists()).unwrap()
    }

    fn note_socket(&self) {
        let file = self.node.bundle(self.runtime, &self.id).join("address");
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(path) = text.strip_prefix("unix://") {
            let path = Path::new("/").join(path.trim_start_matches('/'));
            self.node.sockets.lock().unwrap().insert(path);
        }
    }
}

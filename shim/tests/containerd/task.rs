//! A container that was made: the calls of containerd's Tasks service.

use containerd_client::{
    services::v1::{
        CheckpointTaskRequest, CloseIoRequest, DeleteProcessRequest, DeleteTaskRequest,
        ExecProcessRequest, GetRequest, KillRequest, ListPidsRequest, MetricsRequest,
        PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest,
        WaitRequest,
    },
    types::v1::{Process, Status as State},
};
use prost_types::Any;
use serde_json::Value;
use tokio::time;
use tonic::Status;

use super::{
    container::Container,
    node::DEADLINE,
    stdio::{Stdio, Wanted},
};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A task, with the streams of its main process.
pub(crate) struct Task<'n> {
    pub(crate) container: Container<'n>,
    pub(crate) pid: u32,
    pub(crate) stdio: Stdio,
}

/// A further process of a task.
pub(crate) struct Exec {
    pub(crate) id: String,
    pub(crate) stdio: Stdio,
}

/// What became of a further process that is deleted.
#[derive(Debug)]
pub(crate) struct ExecRun {
    pub(crate) exit: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl<'n> Task<'n> {
    pub(crate) fn new(container: &Container<'n>, pid: u32, stdio: Stdio) -> Self {
        Self {
            container: container.clone(),
            pid,
            stdio,
        }
    }

    fn id(&self) -> String {
        self.container.id.clone()
    }

    fn request<T>(&self, body: T) -> tonic::Request<T> {
        let mut request = self.container.node.request(self.container.runtime, body);
        request.set_timeout(DEADLINE);
        request
    }

    pub(crate) async fn start(&self) -> Result<u32, Status> {
        self.start_process("").await
    }

    pub(crate) async fn start_process(&self, exec_id: &str) -> Result<u32, Status> {
        let request = self.request(StartRequest {
            container_id: self.id(),
            exec_id: exec_id.into(),
        });
        let answer = self.container.node.tasks().start(request).await?;
        Ok(answer.into_inner().pid)
    }

    pub(crate) async fn wait(&self) -> Result<u32, Status> {
        self.wait_process("").await
    }

    pub(crate) async fn wait_process(&self, exec_id: &str) -> Result<u32, Status> {
        let request = self.request(WaitRequest {
            container_id: self.id(),
            exec_id: exec_id.into(),
        });
        let mut tasks = self.container.node.tasks();
        let wait = time::timeout(DEADLINE, tasks.wait(request));
        let answer = wait
            .await
            .unwrap_or_else(|_| panic!("{} does not end", self.id()));
        Ok(answer?.into_inner().exit_status)
    }

    pub(crate) async fn kill(&self, signal: u32) -> Result<(), Status> {
        self.kill_process("", signal, false).await
    }

    pub(crate) async fn kill_process(
        &self,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), Status> {
        let request = self.request(KillRequest {
            container_id: self.id(),
            exec_id: exec_id.into(),
            signal,
            all,
        });
        self.container.node.tasks().kill(request).await.map(drop)
    }

    /// Deletes the task only; the container stays known to containerd.
    pub(crate) async fn delete_task(&self) -> Result<u32, Status> {
        let request = self.request(DeleteTaskRequest {
            container_id: self.id(),
        });
        let answer = self.container.node.tasks().delete(request).await?;
        Ok(answer.into_inner().exit_status)
    }

    /// Deletes the task and the container.
    pub(crate) async fn delete(&self) -> Result<u32, Status> {
        let exit = self.delete_task().await?;
        self.container.forget().await;
        Ok(exit)
    }

    /// Ends whatever runs, and deletes it.
    pub(crate) async fn remove(&self) -> Result<(), Status> {
        // It may have ended on its own.
        let _ = self.kill_process("", 9, true).await;
        self.wait().await?;
        self.delete().await.map(drop)
    }

    pub(crate) async fn process(&self, exec_id: &str) -> Result<Process, Status> {
        let request = self.request(GetRequest {
            container_id: self.id(),
            exec_id: exec_id.into(),
        });
        let answer = self.container.node.tasks().get(request).await?;
        Ok(answer.into_inner().process.unwrap())
    }

    /// As in `Running`.
    pub(crate) async fn state(&self, exec_id: &str) -> Result<State, Status> {
        Ok(self.process(exec_id).await?.status())
    }

    pub(crate) async fn pause(&self) -> Result<(), Status> {
        let request = self.request(PauseTaskRequest {
            container_id: self.id(),
        });
        self.container.node.tasks().pause(request).await.map(drop)
    }

    pub(crate) async fn resume(&self) -> Result<(), Status> {
        let request = self.request(ResumeTaskRequest {
            container_id: self.id(),
        });
        self.container.node.tasks().resume(request).await.map(drop)
    }

    pub(crate) async fn checkpoint(&self) -> Result<(), Status> {
        let request = self.request(CheckpointTaskRequest {
            container_id: self.id(),
            ..Default::default()
        });
        let answer = self.container.node.tasks().checkpoint(request).await;
        answer.map(drop)
    }

    pub(crate) async fn pids(&self) -> Result<Vec<u32>, Status> {
        let request = self.request(ListPidsRequest {
            container_id: self.id(),
        });
        let answer = self.container.node.tasks().list_pids(request).await?;
        let processes = answer.into_inner().processes;
        Ok(processes.iter().map(|process| process.pid).collect())
    }

    pub(crate) async fn update(&self, resources: &Value) -> Result<(), Status> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources.to_string().into_bytes(),
        };
        let request = self.request(UpdateTaskRequest {
            container_id: self.id(),
            resources: Some(resources),
            ..Default::default()
        });
        self.container.node.tasks().update(request).await.map(drop)
    }

    /// The statistics, as the shim sent them.
    pub(crate) async fn metrics(&self) -> Result<Any, Status> {
        let request = self.request(MetricsRequest {
            filters: vec![format!("id=={}", self.id())],
        });
        let answer = self.container.node.tasks().metrics(request).await?;
        let metrics = answer.into_inner().metrics;
        let first = metrics.into_iter().next().and_then(|metric| metric.data);
        first.ok_or_else(|| Status::not_found("no metrics"))
    }

    pub(crate) async fn close_io(&self, exec_id: &str) -> Result<(), Status> {
        let request = self.request(CloseIoRequest {
            container_id: self.id(),
            exec_id: exec_id.into(),
            stdin: true,
        });
        self.container
            .node
            .tasks()
            .close_io(request)
            .await
            .map(drop)
    }

    pub(crate) async fn resize(&self, width: u32, height: u32) -> Result<(), Status> {
        let request = self.request(ResizePtyRequest {
            container_id: self.id(),
            width,
            height,
            ..Default::default()
        });
        self.container
            .node
            .tasks()
            .resize_pty(request)
            .await
            .map(drop)
    }

    /// Adds a further process; `start_process` starts it.
    pub(crate) async fn exec(
        &self,
        exec_id: &str,
        process: &Value,
        wanted: Wanted,
    ) -> Result<Exec, Status> {
        let stdio = Stdio::make(&self.container.fresh(&format!("exec-{exec_id}")), wanted);
        let [stdin, stdout, stderr] = stdio.paths();
        let request = self.request(ExecProcessRequest {
            container_id: self.id(),
            stdin,
            stdout,
            stderr,
            terminal: stdio.terminal(),
            spec: Some(Any {
                type_url: PROCESS_TYPE.into(),
                value: process.to_string().into_bytes(),
            }),
            exec_id: exec_id.into(),
        });
        self.container.node.tasks().exec(request).await?;
        Ok(Exec {
            id: exec_id.into(),
            stdio,
        })
    }

    pub(crate) async fn delete_process(&self, exec_id: &str) -> Result<u32, Status> {
        let request = self.request(DeleteProcessRequest {
            container_id: self.id(),
            exec_id: exec_id.into(),
        });
        let answer = self.container.node.tasks().delete_process(request).await?;
        Ok(answer.into_inner().exit_status)
    }

    /// Runs a further process to its end, and deletes it.
    pub(crate) async fn run_exec(&self, exec_id: &str, process: &Value) -> Result<ExecRun, Status> {
        let mut exec = self.exec(exec_id, process, Wanted::default()).await?;
        if let Err(status) = self.start_process(exec_id).await {
            self.delete_process(exec_id).await?;
            return Err(status);
        }
        let exit = self.wait_process(exec_id).await?;
        let (stdout, stderr) = exec.stdio.finish().await;
        self.delete_process(exec_id).await?;
        Ok(ExecRun {
            exit,
            stdout,
            stderr,
        })
    }

    /// The events so far, at least until `last`.
    pub(crate) async fn events_until(&self, last: &str) -> Vec<String> {
        let node = self.container.node;
        let namespace = node.namespace(self.container.runtime);
        node.events
            .until(&namespace, &self.container.id, last)
            .await
    }
}

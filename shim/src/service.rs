//! containerd's Task API over ttrpc: requests become operations on tasks, failures become codes.
//!
//! Each request that changes something runs in a task of its own: a connection that breaks leaves nothing half done,
//! and a panic is the failure of one request.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim::{
    Task, TtrpcContext, TtrpcResult,
    api::{self, CreateTaskResponse, DeleteResponse, Empty, StartResponse, StateResponse},
    protos::{protobuf::MessageField, shim::oci::ProcessDetails, types::task::ProcessInfo},
    util::convert_to_any,
};
use log::{info, warn};

use crate::{
    events::timestamp,
    stdio::StdioConfig,
    task::{Container, TaskError, Tasks, exit_or_none},
};

mod code;
pub(crate) mod request;

use code::answer;

/// The Task API.
#[derive(Debug, Clone)]
pub struct Service {
    tasks: Arc<Tasks>,
    /// Told when containerd wants this process to end.
    shutdown: Arc<tokio::sync::Notify>,
}

impl Service {
    /// Serves these tasks.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>, shutdown: Arc<tokio::sync::Notify>) -> Self {
        Self { tasks, shutdown }
    }

    /// Runs an operation to its end, whatever becomes of the caller.
    async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        id: &str,
        operation: impl Future<Output = Result<T, TaskError>> + Send + 'static,
    ) -> TtrpcResult<T> {
        let done = tokio::spawn(operation).await;
        done.unwrap_or_else(|e| {
            warn!("{what} {id} broke off: {e}");
            Err(TaskError::Broken)
        })
        .map_err(|e| answer(what, id, &e))
    }

    /// Runs an operation on a container.
    async fn on<T, F>(
        &self,
        what: &'static str,
        id: &str,
        operation: impl FnOnce(Arc<Container>) -> F + Send,
    ) -> TtrpcResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, TaskError>> + Send + 'static,
    {
        match self.tasks.get(id) {
            Ok(container) => self.run(what, id, operation(container)).await,
            Err(e) => Err(answer(what, id, &e)),
        }
    }
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, r: api::StateRequest) -> TtrpcResult<StateResponse> {
        let found = self.tasks.get(&r.id).and_then(|c| c.state(&r.exec_id));
        let state = found.map_err(|e| answer("state", &r.id, &e))?;
        let (status, at) = exit_or_none(state.exit);
        Ok(StateResponse {
            id: r.id,
            exec_id: r.exec_id,
            bundle: state.bundle.to_string_lossy().into_owned(),
            pid: state.pid,
            status: state.state.status().into(),
            stdin: state.stdio.stdin,
            stdout: state.stdio.stdout,
            stderr: state.stdio.stderr,
            terminal: state.stdio.terminal,
            exit_status: status,
            exited_at: MessageField::some(timestamp(at)),
            ..StateResponse::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        r: api::CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        let (tasks, id) = (self.tasks.clone(), r.id.clone());
        let create = async move { tasks.create(request::create(r)?).await };
        Ok(CreateTaskResponse {
            pid: self.run("create", &id, create).await?,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, r: api::StartRequest) -> TtrpcResult<StartResponse> {
        let start = |c: Arc<Container>| async move { c.start(&r.exec_id).await };
        Ok(StartResponse {
            pid: self.on("start", &r.id, start).await?,
            ..StartResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, r: api::DeleteRequest) -> TtrpcResult<DeleteResponse> {
        let (tasks, id) = (self.tasks.clone(), r.id.clone());
        let delete = async move { tasks.delete(&r.id, &r.exec_id).await };
        let last = self.run("delete", &id, delete).await?;
        let (status, at) = exit_or_none(last.exit);
        Ok(DeleteResponse {
            pid: last.pid,
            exit_status: status,
            exited_at: MessageField::some(timestamp(at)),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, r: api::PidsRequest) -> TtrpcResult<api::PidsResponse> {
        let pids = |c: Arc<Container>| async move { c.pids().await };
        let pids = self.on("pids", &r.id, pids).await?;
        let processes = pids.into_iter().map(|(pid, name)| process_info(pid, name));
        Ok(api::PidsResponse {
            processes: processes.collect(),
            ..api::PidsResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, r: api::PauseRequest) -> TtrpcResult<Empty> {
        let pause = |c: Arc<Container>| async move { c.pause().await };
        self.on("pause", &r.id, pause).await.map(|()| Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, r: api::ResumeRequest) -> TtrpcResult<Empty> {
        let resume = |c: Arc<Container>| async move { c.resume().await };
        self.on("resume", &r.id, resume)
            .await
            .map(|()| Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        r: api::CheckpointTaskRequest,
    ) -> TtrpcResult<Empty> {
        Err(answer(
            "checkpoint",
            &r.id,
            &TaskError::Unsupported("checkpoint"),
        ))
    }

    async fn kill(&self, _: &TtrpcContext, r: api::KillRequest) -> TtrpcResult<Empty> {
        let kill = |c: Arc<Container>| async move { c.kill(&r.exec_id, r.signal, r.all).await };
        self.on("kill", &r.id, kill).await.map(|()| Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> TtrpcResult<Empty> {
        let id = r.id.clone();
        let exec = |c: Arc<Container>| async move {
            let stdio = StdioConfig {
                stdin: r.stdin,
                stdout: r.stdout,
                stderr: r.stderr,
                terminal: r.terminal,
            };
            c.add_exec(&r.exec_id, request::process(r.spec.as_ref())?, stdio)
        };
        self.on("exec", &id, exec).await.map(|()| Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: api::ResizePtyRequest) -> TtrpcResult<Empty> {
        let resize = |c: Arc<Container>| async move { c.resize(&r.exec_id, r.width, r.height) };
        self.on("resize_pty", &r.id, resize)
            .await
            .map(|()| Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, r: api::CloseIORequest) -> TtrpcResult<Empty> {
        let close = |c: Arc<Container>| async move {
            match r.stdin {
                true => c.close_stdin(&r.exec_id),
                false => c.state(&r.exec_id).map(drop),
            }
        };
        self.on("close_io", &r.id, close)
            .await
            .map(|()| Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: api::UpdateTaskRequest) -> TtrpcResult<Empty> {
        let update = |c: Arc<Container>| async move {
            c.update(request::resources(r.resources.as_ref())?).await
        };
        self.on("update", &r.id, update)
            .await
            .map(|()| Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: api::WaitRequest) -> TtrpcResult<api::WaitResponse> {
        let container = self
            .tasks
            .get(&r.id)
            .map_err(|e| answer("wait", &r.id, &e))?;
        let exit = container.wait(&r.exec_id).await;
        let exit = exit.map_err(|e| answer("wait", &r.id, &e))?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..api::WaitResponse::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        r: api::StatsRequest,
    ) -> TtrpcResult<api::StatsResponse> {
        let stats = |c: Arc<Container>| async move { c.stats().await };
        Ok(api::StatsResponse {
            stats: MessageField::some(self.on("stats", &r.id, stats).await?),
            ..api::StatsResponse::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        r: api::ConnectRequest,
    ) -> TtrpcResult<api::ConnectResponse> {
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.tasks.get(&r.id).map_or(0, |c| c.pid()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..api::ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, r: api::ShutdownRequest) -> TtrpcResult<Empty> {
        info!("containerd asked to end, for {}", r.id);
        self.shutdown.notify_one();
        Ok(Empty::new())
    }
}

fn process_info(pid: u32, exec_id: Option<String>) -> ProcessInfo {
    let details = exec_id.map(|exec_id| ProcessDetails {
        exec_id,
        ..ProcessDetails::default()
    });
    let info = details.and_then(|details| convert_to_any(Box::new(details)).ok());
    ProcessInfo {
        pid,
        info: info.into(),
        ..ProcessInfo::default()
    }
}

//! containerd's containers and tasks over gRPC (API of 1.6 to 2.x), in one containerd namespace.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use containerd_client::{
    services::v1::{
        Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
        DeleteProcessRequest, DeleteTaskRequest, ExecProcessRequest, GetContainerRequest,
        KillRequest, ListContainersRequest, ListTasksRequest, StartRequest, UpdateContainerRequest,
        UpdateTaskRequest, WaitRequest, containers_client::ContainersClient,
        tasks_client::TasksClient,
    },
    types::v1::Process,
};
use prost_types::{Any, FieldMask};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue, transport::Channel};

use super::{EngineError, process::KILLED};

/// Lists carry each container's whole spec.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// A task that was killed ends within this, or is stuck in the kernel.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls in one containerd namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) channel: Channel,
    pub(super) namespace: MetadataValue<tonic::metadata::Ascii>,
}

impl Client {
    pub(super) fn request<T>(&self, body: T) -> Request<T> {
        let mut request = Request::new(body);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub(super) async fn create_container(&self, container: Container) -> Result<(), EngineError> {
        let request = self.request(CreateContainerRequest {
            container: Some(container),
        });
        done(
            "create the container",
            self.containers().create(request).await,
        )
        .map(drop)
    }

    /// Sets these labels of a container; its others stay.
    pub(super) async fn label_container(
        &self,
        id: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), EngineError> {
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let container = Container {
            id: id.to_owned(),
            labels: labels.into_iter().collect(),
            ..Default::default()
        };
        let request = self.request(UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(FieldMask { paths }),
        });
        let answer = self.containers().update(request).await;
        done("label the container", answer).map(drop)
    }

    pub(super) async fn delete_container(&self, id: &str) -> Result<(), EngineError> {
        let request = self.request(DeleteContainerRequest { id: id.to_owned() });
        found(
            "delete the container",
            self.containers().delete(request).await,
        )
        .map(drop)
    }

    pub(super) async fn containers_here(&self) -> Result<Vec<Container>, EngineError> {
        let request = self.request(ListContainersRequest::default());
        let answer = self.containers().list(request).await;
        Ok(done("list containers", answer)?.containers)
    }

    /// The runtime spec that a container was made of.
    pub(super) async fn container_spec(&self, id: &str) -> Result<Vec<u8>, EngineError> {
        let request = self.request(GetContainerRequest { id: id.to_owned() });
        let answer = done("find the container", self.containers().get(request).await)?;
        let spec = answer.container.and_then(|container| container.spec);
        Ok(spec.unwrap_or_default().value)
    }

    pub(super) async fn tasks_here(&self) -> Result<HashMap<String, Process>, EngineError> {
        let answer = self
            .tasks()
            .list(self.request(ListTasksRequest::default()))
            .await;
        let tasks = done("list tasks", answer)?.tasks;
        // A task's process carries the container's name as its own.
        Ok(tasks
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect())
    }

    pub(super) async fn create_task(&self, task: CreateTaskRequest) -> Result<(), EngineError> {
        done(
            "create the task",
            self.tasks().create(self.request(task)).await,
        )
        .map(drop)
    }

    pub(super) async fn start_task(&self, id: &str) -> Result<(), EngineError> {
        let request = StartRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        done(
            "start the task",
            self.tasks().start(self.request(request)).await,
        )
        .map(drop)
    }

    pub(super) async fn add_process(&self, process: ExecProcessRequest) -> Result<(), EngineError> {
        let answer = self.tasks().exec(self.request(process)).await;
        done("add a process to the task", answer).map(drop)
    }

    /// Answers its process id on this machine.
    pub(super) async fn start_process(&self, id: &str, process: &str) -> Result<u32, EngineError> {
        let request = StartRequest {
            container_id: id.to_owned(),
            exec_id: process.to_owned(),
        };
        let answer = self.tasks().start(self.request(request)).await;
        Ok(done("start a process in the task", answer)?.pid)
    }

    /// Waits for its end; answers its exit code, 137 where it is gone.
    pub(super) async fn wait_process(&self, id: &str, process: &str) -> Result<u32, EngineError> {
        let request = WaitRequest {
            container_id: id.to_owned(),
            exec_id: process.to_owned(),
        };
        let answer = self.tasks().wait(self.request(request)).await;
        let exit = found("wait for a process of the task", answer)?;
        Ok(exit.map_or(KILLED, |exit| exit.exit_status))
    }

    pub(super) async fn kill_process(&self, id: &str, process: &str) -> Result<(), EngineError> {
        let request = KillRequest {
            container_id: id.to_owned(),
            exec_id: process.to_owned(),
            signal: 9,
            all: false,
        };
        match self.tasks().kill(self.request(request)).await {
            Err(status) if is_over(&status) => Ok(()),
            answer => done("kill a process of the task", answer).map(drop),
        }
    }

    pub(super) async fn delete_process(&self, id: &str, process: &str) -> Result<(), EngineError> {
        let request = DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: process.to_owned(),
        };
        let answer = self.tasks().delete_process(self.request(request)).await;
        found("delete a process of the task", answer).map(drop)
    }

    pub(super) async fn update_task(&self, id: &str, resources: Any) -> Result<(), EngineError> {
        let request = UpdateTaskRequest {
            container_id: id.to_owned(),
            resources: Some(resources),
            ..Default::default()
        };
        done(
            "update the task",
            self.tasks().update(self.request(request)).await,
        )
        .map(drop)
    }

    /// Kills the task, waits until it has ended, and removes it. Its pid namespace ends all else in it.
    /// Answers its exit code; 137 where it was gone.
    pub(super) async fn remove_task(&self, id: &str) -> Result<u32, EngineError> {
        let container_id = id.to_owned();
        let kill = KillRequest {
            container_id: container_id.clone(),
            signal: 9,
            ..Default::default()
        };
        match self.tasks().kill(self.request(kill)).await {
            Err(status) if is_over(&status) => {}
            answer => {
                done("kill the task", answer)?;
            }
        }
        let wait = WaitRequest {
            container_id: container_id.clone(),
            ..Default::default()
        };
        let mut tasks = self.tasks();
        let ended = tasks.wait(self.request(wait));
        let exit = match tokio::time::timeout(EXIT_TIMEOUT, ended).await {
            Ok(answer) => found("wait for the task", answer)?,
            Err(_) => {
                let message = format!("it still runs {EXIT_TIMEOUT:?} after SIGKILL");
                return Err(EngineError::Refused {
                    what: "end the task",
                    message,
                });
            }
        };
        let request = DeleteTaskRequest { container_id };
        found(
            "delete the task",
            self.tasks().delete(self.request(request)).await,
        )?;
        Ok(exit.map_or(KILLED, |exit| exit.exit_status))
    }

    fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }
}

/// Whether the status says that the task has ended or was never there.
fn is_over(status: &Status) -> bool {
    match status.code() {
        Code::NotFound => true,
        Code::FailedPrecondition | Code::Unknown => {
            status.message().contains("not running")
                || status.message().contains("already finished")
        }
        _ => false,
    }
}

fn done<T>(what: &'static str, answer: Result<Response<T>, Status>) -> Result<T, EngineError> {
    answer
        .map(Response::into_inner)
        .map_err(|status| EngineError::Refused {
            what,
            message: status.message().to_owned(),
        })
}

/// As [`done`], but there being nothing is fine.
fn found<T>(
    what: &'static str,
    answer: Result<Response<T>, Status>,
) -> Result<Option<T>, EngineError> {
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        answer => done(what, answer).map(Some),
    }
}

//! The node API, on the daemon's own unix socket: what the command line asks of it.
//!
//! Whoever may open the socket may ask everything: its file belongs to the daemon's user alone.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

pub mod tuning;
mod upload;
pub mod wire;

use self::tuning::{Tuning, TuningError};
use self::wire::{
    AdmissionInfo, DeployEvent, DeployRequest, ErrorAnswer, FunctionInfo, InstanceEntry, LogEntry,
    NodeInfo,
};
use crate::{
    build::{BuildEvent, Builds, Deployment},
    config::{Config, Limits},
    executor::{Executor, execution::Body, instance::InstanceInfo},
    function::{Function, Store},
    id::{FunctionName, InstanceId},
    telemetry::chain,
};

/// Build events that may wait for a slow reader.
const EVENTS: usize = 1024;
/// Lines of a log that are answered where none are asked for.
const LINES: usize = 100;

/// Answers the node API's requests.
#[derive(Debug, Clone)]
pub struct NodeApi {
    /// The settings.
    pub config: Arc<Config>,
    /// What is told of the node.
    pub info: NodeInfo,
    /// The instances.
    pub executor: Arc<Executor>,
    /// The builds.
    pub builds: Builds,
    /// The functions.
    pub store: Store,
    /// The classes.
    pub tuning: Tuning,
    /// Cancelled by `POST /v1/stop`: the node ends and removes all that it made at run time.
    pub removal: CancellationToken,
}

/// A failure on its way to the client.
#[derive(Debug)]
struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl NodeApi {
    /// Answers one request. Never fails: a failure is an answer.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        self.call(request).await.unwrap_or_else(|error| {
            let answer = ErrorAnswer {
                kind: error.kind.to_owned(),
                message: error.message,
                code: error.status.as_u16(),
            };
            json(error.status, &answer)
        })
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let path = request.uri().path().to_owned();
        let segments: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        match (request.method(), segments.as_slice()) {
            (&Method::GET, ["v1", "node"]) => Ok(json(StatusCode::OK, &self.info)),
            (&Method::GET, ["v1", "functions"]) => Ok(json(StatusCode::OK, &self.functions())),
            (&Method::POST, ["v1", "functions"]) => self.deploy(request).await,
            (&Method::GET, ["v1", "functions", name]) => self.function(name),
            (&Method::DELETE, ["v1", "functions", name]) => self.remove(name).await,
            (&Method::GET, ["v1", "functions", name, "logs"]) => {
                self.logs(name, request.uri().query().unwrap_or_default())
            }
            (&Method::GET, ["v1", "instances"]) => {
                let infos = self.executor.list().into_iter();
                let entry = |info: InstanceInfo| {
                    let usage = self.executor.usage(&info.id);
                    InstanceEntry::new(info, usage)
                };
                let entries: Vec<_> = infos.map(entry).collect();
                Ok(json(StatusCode::OK, &entries))
            }
            (&Method::DELETE, ["v1", "instances", id]) => self.delete_instance(id).await,
            (&Method::GET, ["v1", "admission"]) => {
                let info = AdmissionInfo::from(self.executor.reserved());
                Ok(json(StatusCode::OK, &info))
            }
            (&Method::GET, ["v1", "classes"]) => Ok(json(StatusCode::OK, &self.tuning.list())),
            (&Method::PATCH, ["v1", "classes", name]) => {
                let changes = upload::document(request).await?;
                self.tuning.try_out(name, changes)?;
                Ok(empty())
            }
            (&Method::POST, ["v1", "reload"]) => Ok(json(StatusCode::OK, &self.tuning.reload()?)),
            (&Method::POST, ["v1", "stop"]) => {
                self.removal.cancel();
                Ok(empty())
            }
            (method, _) => Err(ApiError {
                status: StatusCode::NOT_FOUND,
                kind: "route_not_found",
                message: format!("the node API has no {method} {path}"),
            }),
        }
    }

    fn functions(&self) -> Vec<FunctionInfo> {
        let functions = self.store.list();
        functions
            .iter()
            .map(|function| self.describe(function))
            .collect()
    }

    fn describe(&self, function: &Function) -> FunctionInfo {
        let instances = self.executor.list();
        let is_its = |name: &Option<FunctionName>| name.as_ref() == Some(&function.name);
        let n = instances
            .iter()
            .filter(|info| is_its(&info.function))
            .count();
        FunctionInfo::new(function, n)
    }

    fn find(&self, name: &str) -> Result<Arc<Function>, ApiError> {
        let found = FunctionName::try_new(name).ok();
        let found = found.and_then(|name| self.store.get(&name));
        found.ok_or_else(|| ApiError::no_function(name))
    }

    fn function(&self, name: &str) -> Result<Response<Body>, ApiError> {
        let function = self.find(name)?;
        Ok(json(StatusCode::OK, &self.describe(&function)))
    }

    async fn remove(&self, name: &str) -> Result<Response<Body>, ApiError> {
        let function = self.find(name)?;
        let was_there = self.builds.remove(&function.name).await;
        let was_there = was_there.map_err(|error| ApiError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: error.kind(),
            message: chain(&error),
        })?;
        self.executor.journal().remove(name);
        if was_there {
            Ok(empty())
        } else {
            Err(ApiError::no_function(name))
        }
    }

    async fn delete_instance(&self, id: &str) -> Result<Response<Body>, ApiError> {
        let was_there = match InstanceId::try_new(id) {
            Ok(id) => self.executor.delete(&id).await,
            Err(_) => false,
        };
        if was_there {
            return Ok(empty());
        }
        Err(ApiError {
            status: StatusCode::NOT_FOUND,
            kind: "instance_not_found",
            message: format!("there is no instance {id}"),
        })
    }

    /// Answers at once; the build's events follow as lines, and the last of them says how it ended.
    async fn deploy(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let upload = upload::receive(request).await?;
        let deployment = deployment(upload.request, upload.source.path().to_owned());
        let (progress, events) = mpsc::channel(EVENTS);
        let (lines, answer) = mpsc::channel(EVENTS);
        let api = self.clone();
        tokio::spawn(async move {
            let forward = forward(events, lines.clone());
            let (deployed, ()) = tokio::join!(api.builds.deploy(deployment, progress), forward);
            drop(upload.source);
            let last = match deployed {
                Ok(function) => DeployEvent::Deployed {
                    function: api.describe(&function),
                },
                Err(error) => DeployEvent::Failed {
                    kind: error.kind().to_owned(),
                    message: chain(&error),
                },
            };
            // A client that went away is not an error.
            let _ = lines.send(last).await;
        });
        Ok(ndjson(ReceiverStream::new(answer)))
    }

    fn logs(&self, name: &str, query: &str) -> Result<Response<Body>, ApiError> {
        let instance = || self.executor.get(&InstanceId::try_new(name).ok()?);
        let name = match (self.find(name), instance()) {
            (Ok(function), _) => function.name.to_string(),
            (Err(_), Some(instance)) => instance.id.to_string(),
            (Err(error), None) => return Err(error),
        };
        let value = |key: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.into_iter().find_map(|(k, v)| (k == key).then_some(v))
        };
        let lines = value("lines").and_then(|text| text.parse().ok());
        let journal = self.executor.journal();
        let (held, feed) = journal.follow(&name, lines.unwrap_or(LINES));
        let held: Vec<_> = held.iter().map(|line| LogEntry::from(&**line)).collect();
        let held = stream::iter(held);
        if value("follow") != Some("1") {
            return Ok(ndjson(held));
        }
        let rest = stream::unfold(feed, async |mut feed| {
            loop {
                match feed.recv().await {
                    Ok(line) => return Some((LogEntry::from(&*line), feed)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Ok(ndjson(held.chain(rest)))
    }
}

impl From<TuningError> for ApiError {
    fn from(error: TuningError) -> Self {
        let (status, kind) = match &error {
            TuningError::Unknown { .. } => (StatusCode::NOT_FOUND, "class_not_found"),
            TuningError::Value { .. } | TuningError::Lacking { .. } => {
                (StatusCode::BAD_REQUEST, "class_invalid")
            }
            TuningError::Config(_) => (StatusCode::BAD_REQUEST, "settings_invalid"),
            TuningError::Engine(_) => (StatusCode::INTERNAL_SERVER_ERROR, "host_failed"),
        };
        Self {
            status,
            kind,
            message: chain(&error),
        }
    }
}

impl ApiError {
    fn no_function(name: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "function_not_found",
            message: format!("there is no function {name}"),
        }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "request_invalid",
            message: message.into(),
        }
    }

    fn disk(source: &io::Error) -> Self {
        Self {
            status: StatusCode::INSUFFICIENT_STORAGE,
            kind: "host_failed",
            message: format!("cannot keep the source: {source}"),
        }
    }
}

fn deployment(request: DeployRequest, source: std::path::PathBuf) -> Deployment {
    let function = Function {
        name: request.name,
        runtime: request.runtime,
        entrypoint: request.entrypoint.unwrap_or_default(),
        variables: request.variables,
        limits: Limits {
            cpus: request.cpus,
            memory_bytes: request.memory_mb.saturating_mul(1_000_000),
        },
        timeout: std::time::Duration::from_secs(request.timeout_s),
        class: request.class,
        logging: request.logging,
        artifact: None,
    };
    Deployment {
        function,
        source,
        command: request.command,
    }
}

async fn forward(mut events: mpsc::Receiver<BuildEvent>, lines: mpsc::Sender<DeployEvent>) {
    while let Some(event) = events.recv().await {
        let event = match event {
            BuildEvent::Queued => DeployEvent::Queued,
            BuildEvent::Started { build } => DeployEvent::Started { build },
            BuildEvent::Output(bytes) => DeployEvent::Output {
                text: String::from_utf8_lossy(&bytes).into_owned(),
            },
            BuildEvent::Stored {
                artifact,
                size_bytes,
            } => DeployEvent::Stored {
                artifact: artifact.to_string(),
                size_bytes,
            },
        };
        // The build goes on where the client went away.
        let _ = lines.send(event).await;
    }
}

fn json(status: StatusCode, document: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_vec(document).expect("the documents are plain values");
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(full(text))
        .expect("constants that are valid")
}

fn empty() -> Response<Body> {
    Response::builder()
        .status(StatusCode::NO_CONTENT)
        .body(full(Vec::new()))
        .expect("constants that are valid")
}

fn full(bytes: Vec<u8>) -> Body {
    Full::from(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// One JSON document a line, each sent as soon as it is there.
fn ndjson<T: Serialize + Send + 'static>(
    documents: impl Stream<Item = T> + Send + 'static,
) -> Response<Body> {
    let frames = documents.map(|document| {
        let mut line = serde_json::to_vec(&document)?;
        line.push(b'\n');
        Ok(Frame::data(Bytes::from(line)))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(StreamBody::new(frames).boxed_unsync())
        .expect("constants that are valid")
}

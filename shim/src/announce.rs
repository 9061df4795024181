//! `start` tells the daemon which container comes next. While containerd reads what `start` has answered, and until it
//! asks for the container, the daemon makes what the bundle alone tells.
//!
//! It is a request of ttrpc as containerd's are, to a service of our own. Nobody waits for its answer: a container that
//! nothing was prepared for is made all the same.

use std::{
    collections::HashMap,
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use async_trait::async_trait;
use containerd_shim::{
    api::CreateTaskRequest,
    protos::{
        protobuf::Message,
        ttrpc::{
            self, MessageHeader, Request, Response,
            r#async::{MethodHandler, Service, TtrpcContext},
        },
    },
};

use crate::{service::request, task::Tasks};

const SERVICE: &str = "opr.shim.v1.Start";
const METHOD: &str = "Announce";

/// Tells the daemon at the other end of a new connection, which takes so little without waiting.
pub(crate) fn send(mut daemon: &UnixStream, id: &str, bundle: &str) -> io::Result<()> {
    let create = CreateTaskRequest {
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        ..CreateTaskRequest::default()
    };
    let request = Request {
        service: SERVICE.to_owned(),
        method: METHOD.to_owned(),
        payload: create.write_to_bytes().map_err(io::Error::other)?,
        ..Request::default()
    };
    let request = request.write_to_bytes().map_err(io::Error::other)?;
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    let mut frame = Vec::from(MessageHeader::new_request(1, length));
    frame.extend(request);
    daemon.write_all(&frame)
}

/// The daemon's side.
pub(crate) fn service(tasks: Arc<Tasks>) -> HashMap<String, Service> {
    let method: Box<dyn MethodHandler + Send + Sync> = Box::new(Announced(tasks));
    let service = Service {
        methods: HashMap::from([(METHOD.to_owned(), method)]),
        streams: HashMap::new(),
    };
    HashMap::from([(SERVICE.to_owned(), service)])
}

struct Announced(Arc<Tasks>);

#[async_trait]
impl MethodHandler for Announced {
    /// Done before the first wait: `start` has gone, and with it whoever would keep this call alive.
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let create = CreateTaskRequest::parse_from_bytes(&request.payload);
        let create = create.map_err(|e| ttrpc::Error::Others(e.to_string()))?;
        match request::create(create) {
            Ok(create) => self.0.expect(create.id, create.bundle),
            Err(e) => log::debug!("passed over an announcement: {e}"),
        }
        Ok(Response::default())
    }
}

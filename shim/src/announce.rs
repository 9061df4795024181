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
            self, Request, Response,
            r#async::{MethodHandler, Service, TtrpcContext},
        },
    },
};

use crate::{service::request, task::Tasks};

mod frame;

use frame::{METHOD, SERVICE};

/// Tells the daemon at the other end of a new connection, which takes so little without waiting.
pub(crate) fn send(mut daemon: &UnixStream, id: &str, bundle: &str) -> io::Result<()> {
    daemon.write_all(&frame::of(id, bundle))
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

#[cfg(test)]
mod tests {
    use containerd_shim::protos::ttrpc::MessageHeader;

    use super::*;

    #[track_caller]
    fn check(id: &str, bundle: &str) {
        let frame = frame::of(id, bundle);
        let (head, body) = frame.split_at(10);
        let length = u32::try_from(body.len()).unwrap();
        assert_eq!(head, Vec::from(MessageHeader::new_request(1, length)));
        let request = Request::parse_from_bytes(body).unwrap();
        assert_eq!(
            (request.service.as_str(), request.method.as_str()),
            (SERVICE, METHOD)
        );
        let create = CreateTaskRequest::parse_from_bytes(&request.payload).unwrap();
        let expected = CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            ..CreateTaskRequest::default()
        };
        assert_eq!(create, expected);
    }

    #[test]
    fn an_announcement_is_a_request() {
        check("c1", "/run/b");
        check("", "");
        check(&"i".repeat(127), &"b".repeat(128));
        check(&"i".repeat(300), &"b".repeat(20_000));
    }
}

//! An execution: the request that the client describes, and the result once the function has answered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};

use super::{
    answer::Outcome,
    cold::{Cold, given_text, keep_alive, restart_policy, version},
    create::unix_seconds,
    error::ApiError,
    memory::{Held, WholeError},
    params::{self, Params, boolean_loose, float_loose, int_loose, one_of, text},
    v2,
    value::Value,
};
use crate::{
    api::{Instances, headers::is_hop_by_hop},
    config::Config,
    executor::{
        execution::{Answer, Body, ExecuteError, Execution},
        instance::Protocol,
    },
    id::InstanceId,
};

/// Body for the function, at most. Bytes.
const MAX_BODY: usize = 20 * 1024 * 1024;
/// The function's answer, at most. Bytes.
const MAX_ANSWER: usize = 128 * 1024 * 1024;
const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"];
/// A read call.
#[derive(Debug)]
pub(super) struct Execute {
    body: Vec<u8>,
    path: String,
    method: String,
    headers: BTreeMap<String, Value>,
    timeout: i32,
    logging: bool,
    cold: Cold,
}

impl Execute {
    pub(super) fn read(params: &mut Params, config: &Config) -> Result<Self, ApiError> {
        let body = params.optional("body", params::bytes(MAX_BODY, 1))?;
        let path = params.optional("path", text(2048, 1))?;
        let method = params.optional("method", one_of(METHODS))?;
        let headers = params.object_or_text("headers")?;
        let timeout = params.optional("timeout", int_loose)?.unwrap_or(15);
        let mut cold = Cold {
            image: given_text(params, "image", text(128, 1))?,
            source: given_text(params, "source", text(0, 1))?,
            entrypoint: params
                .optional("entrypoint", text(256, 0))?
                .unwrap_or_default(),
            variables: params.object_or_text("variables")?,
            cpus: params.optional("cpus", float_loose)?.unwrap_or(1.0),
            memory: params.optional("memory", int_loose)?.unwrap_or(512),
            protocol: version(params, config)?,
            ..Cold::default()
        };
        cold.runtime_entrypoint = given_text(params, "runtimeEntrypoint", text(1024, 0))?;
        let logging = params.optional("logging", boolean_loose)?.unwrap_or(true);
        cold.restart = restart_policy(params)?;
        cold.keep_alive = keep_alive(params)?;
        Ok(Self {
            body: body.unwrap_or_default(),
            path: path.unwrap_or_else(|| "/".into()),
            method: method.unwrap_or_else(|| "GET".into()),
            headers,
            timeout,
            logging,
            cold,
        })
    }

    /// Runs it to its end.
    pub(super) async fn run(
        self,
        id: InstanceId,
        config: &Config,
        instances: &dyn Instances,
        held: &mut Held,
    ) -> Result<Outcome, ApiError> {
        let execution = self.execution(id, config, instances)?;
        let protocol = execution.protocol;
        let answer = instances.execute(execution).await;
        let outcome = finish(answer.map_err(|error| ApiError::execute(&error))?, held).await?;
        Ok(match protocol {
            Protocol::V2 => v2::outcome(outcome),
            Protocol::V4 | Protocol::V5 => outcome,
        })
    }

    fn execution(
        self,
        id: InstanceId,
        config: &Config,
        instances: &dyn Instances,
    ) -> Result<Execution, ApiError> {
        let timeout = u64::try_from(self.timeout)
            .ok()
            .filter(|seconds| *seconds > 0);
        let Some(timeout) = timeout.map(Duration::from_secs) else {
            let is_running = false;
            return Err(ApiError::execute(&ExecuteError::StartTimeout {
                id,
                is_running,
            }));
        };
        let is_startable = self.cold.image.is_some() && self.cold.source.is_some();
        let there = instances.get(&id);
        let protocol = self.cold.protocol;
        let protocol = protocol.or(there.as_ref().map(|info| info.protocol));
        let protocol = protocol.unwrap_or(Protocol::V5);
        let own = [
            ("CI", "true"),
            ("INERNAL_EXECUTOR_HOSTNAME", config.hostname.as_str()),
        ];
        let spec = match is_startable.then(|| self.cold.spec(id.clone(), &own)) {
            None => None,
            Some(Ok(spec)) => Some(spec),
            // An instance that is there needs nothing of it.
            Some(Err(_)) if there.is_some() => None,
            Some(Err(error)) => return Err(error),
        };
        Ok(Execution {
            instance: id,
            spec: spec.map(Arc::new),
            timeout,
            start_timeout: None,
            logging: self.logging,
            protocol,
            request: match protocol {
                Protocol::V2 => v2::request(&self.body, &self.cold.variables()?, &config.hostname),
                Protocol::V4 | Protocol::V5 => self.request()?,
            },
        })
    }

    fn request(self) -> Result<Request<Body>, ApiError> {
        let method = Method::from_bytes(self.method.as_bytes())
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let mut request = Request::builder()
            .method(method)
            .uri(target(&self.path))
            .body(())
            .map_err(|error| ApiError::bad_request(format!("path: {error}")))?;
        let headers = request.headers_mut();
        *headers = request_headers(&self.headers)?;
        let mut default = |name, value| {
            headers
                .entry(name)
                .or_insert(HeaderValue::from_static(value));
        };
        default(header::ACCEPT, "*/*");
        if !self.body.is_empty() {
            default(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        Ok(request.map(|()| whole(self.body)))
    }
}

/// A body that is there already.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The path with a `/` before it, and with what a request line cannot hold percent-encoded.
fn target(path: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut target = slash.to_owned();
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !b"<>\\^`".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target += &format!("%{byte:02X}");
        }
    }
    target
}

/// The host's own connection to the function has its own framing.
fn request_headers(given: &BTreeMap<String, Value>) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let invalid = || ApiError::bad_request(format!("Header {name:?} is no valid header."));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
        let text = value.to_text().ok_or_else(invalid)?;
        let value = HeaderValue::from_bytes(text.trim_ascii()).map_err(|_| invalid())?;
        let is_framing = [header::CONTENT_LENGTH, header::EXPECT].contains(&name);
        if !is_framing && !is_hop_by_hop(&name) {
            headers.try_append(name, value).map_err(|_| invalid())?;
        }
    }
    Ok(headers)
}

/// Reads the answer whole; then the logs are there.
async fn finish(answer: Answer, held: &mut Held) -> Result<Outcome, ApiError> {
    let (head, body) = answer.response.into_parts();
    let body = held.whole(body, MAX_ANSWER).await.map_err(not_whole)?;
    let duration = answer.began.elapsed().as_secs_f64();
    let logs = answer.logs.await.unwrap_or_default();
    Ok(Outcome {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
        logs: logs.logs,
        errors: logs.errors,
        duration,
        start_time: unix_seconds(answer.start_time),
    })
}

fn not_whole(error: WholeError) -> ApiError {
    let (kind, message) = match error {
        WholeError::Full => return ApiError::overloaded(),
        WholeError::TooLarge => (
            "execution_answer_too_large",
            "The function's answer is larger than 128 MiB.".to_owned(),
        ),
        WholeError::Broken(error) => match error.downcast_ref::<ExecuteError>() {
            Some(error) => return ApiError::execute(error),
            None => (
                "execution_broken",
                format!("The function's answer broke off: {error}"),
            ),
        },
    };
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_target() {
        #[track_caller]
        fn check(path: &str, expected: &str) {
            assert_eq!(target(path), expected);
            assert!(target(path).parse::<http::Uri>().is_ok(), "{path}");
        }
        check("v1/users", "/v1/users");
        check("/a?b=c&d=%20", "/a?b=c&d=%20");
        check("?a=b", "/?a=b");
        check("//a", "//a");
        check("http://a/b", "/http://a/b");
        check("/a b\r\nx: y", "/a%20b%0D%0Ax:%20y");
        check("/ä<>\\^`{}|\"", "/%C3%A4%3C%3E%5C%5E%60{}|\"");
    }

    #[test]
    fn headers_are_checked_and_those_of_a_connection_dropped() {
        #[track_caller]
        fn check(json: &str, expected: Result<&str, &str>) {
            let parsed = serde_json::from_str::<serde_json::Value>(json).unwrap();
            let Value::Map(map) = Value::from(parsed) else {
                panic!("no map")
            };
            let read = request_headers(&map)
                .map(|headers| format!("{headers:?}"))
                .map_err(|error| error.message);
            assert_eq!(
                read,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{json}"
            );
        }
        check(
            r#"{"Host":"a","x-n":1}"#,
            Ok(r#"{"host": "a", "x-n": "1"}"#),
        );
        check(
            r#"{"Content-Length":"5","Transfer-Encoding":"chunked","connection":"x"}"#,
            Ok("{}"),
        );
        check(
            r#"{"a":"b\r\nc: d"}"#,
            Err("Header \"a\" is no valid header."),
        );
        check(r#"{"a b":""}"#, Err("Header \"a b\" is no valid header."));
        check(r#"{"":""}"#, Err("Header \"\" is no valid header."));
        check(r#"{"a":["b"]}"#, Err("Header \"a\" is no valid header."));
    }
}

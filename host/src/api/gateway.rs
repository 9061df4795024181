//! The gateway: `/<function>/<path>` is `/<path>` of that function's server. Bodies stream both ways.
//!
//! Which functions there are is asked for each request; how one runs is `executor`'s.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};

mod error;
mod forward;

use self::error::GatewayError;
use super::{Instances, headers::strip_hop_by_hop, server::Peer};
use crate::{
    executor::{
        execution::{Answer, Body, Execution},
        instance::InstanceSpec,
    },
    id::FunctionName,
};

/// How long the start of an instance may take, on top of the function's own time. Long enough to pull an image.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A deployed function, as far as the gateway has to know it.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// How to make its instance.
    pub spec: Arc<InstanceSpec>,
    /// How long an execution may take.
    pub timeout: Duration,
    /// Whether its logs are collected.
    pub logging: bool,
}

/// Why a function that exists cannot be executed.
pub type LookupError = Box<dyn std::error::Error + Send + Sync>;
/// Finds a function by its name.
pub type Lookup = Arc<
    dyn Fn(FunctionName) -> BoxFuture<'static, Result<Option<Target>, LookupError>> + Send + Sync,
>;

/// Answers requests to functions.
#[derive(Clone)]
pub struct Gateway {
    lookup: Lookup,
    instances: Arc<dyn Instances>,
}

impl Gateway {
    /// A gateway to the functions that `lookup` finds.
    pub fn new(lookup: Lookup, executor: Arc<dyn Instances>) -> Self {
        Self {
            lookup,
            instances: executor,
        }
    }

    /// Answers one request. Never fails: a failure is an answer. Dropping the call ends the execution.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let answered = match self.execution(request).await {
            Ok(execution) => self.run(execution).await,
            Err(error) => Err(error),
        };
        answered.unwrap_or_else(|error| error.response())
    }

    async fn run(&self, execution: Execution) -> Result<Response<Body>, GatewayError> {
        let answer = self.instances.execute(execution).await.map_err(|error| {
            tracing::warn!(
                kind = error.kind(),
                error = crate::telemetry::chain(&error),
                "an execution failed"
            );
            GatewayError::from(&error)
        })?;
        respond(answer)
    }

    async fn execution(&self, request: Request<Body>) -> Result<Execution, GatewayError> {
        let (name, path) = split(request.uri()).ok_or(GatewayError::NotFound)?;
        let found = (self.lookup)(name).await.map_err(|error| {
            tracing::error!(
                error = crate::telemetry::chain(&*error),
                "function cannot be executed"
            );
            GatewayError::Lookup
        })?;
        let target = found.ok_or(GatewayError::NotFound)?;
        if is_websocket(request.headers()) {
            return Err(GatewayError::Upgrade);
        }
        let peer = request.extensions().get::<Peer>();
        let peer = peer.and_then(|Peer(address)| address.as_ref().map(SocketAddr::ip));
        let (mut head, body) = request.into_parts();
        forward::prepare(&mut head.headers, head.uri.authority(), peer);
        head.uri = Uri::from(path);
        head.extensions.clear();
        head.version = http::Version::HTTP_11;
        let protocol = target.spec.protocol;
        Ok(Execution {
            instance: target.spec.id.clone(),
            spec: Some(target.spec),
            request: Request::from_parts(head, body),
            timeout: target.timeout,
            start_timeout: Some(START_TIMEOUT),
            logging: target.logging,
            protocol,
        })
    }
}

/// The function's name, and the path and query that it sees.
fn split(uri: &Uri) -> Option<(FunctionName, PathAndQuery)> {
    let path = uri.path().strip_prefix('/')?;
    let (name, rest) = path.split_once('/').unwrap_or((path, ""));
    let name = FunctionName::try_new(name).ok()?;
    let target = match uri.query() {
        Some(query) => format!("/{rest}?{query}"),
        None => format!("/{rest}"),
    };
    Some((name, PathAndQuery::try_from(target).ok()?))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim().eq_ignore_ascii_case("websocket"))
}

/// What the function sent, and how long its start took by phase.
fn respond(answer: Answer) -> Result<Response<Body>, GatewayError> {
    if answer.response.status().is_informational() {
        return Err(GatewayError::Informational);
    }
    let timing = timing(&answer);
    let mut response = answer.response;
    *response.version_mut() = http::Version::HTTP_11;
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    headers.append("server-timing", timing);
    Ok(response)
}

/// `cold;desc="start", sandbox;dur=1.250, first_byte;dur=3.001`: phases that happened, in milliseconds.
fn timing(answer: &Answer) -> HeaderValue {
    let mut text = format!("{};desc=\"start\"", answer.start.as_str());
    for (name, took) in answer.phases.named() {
        if !took.is_zero() {
            text += &format!(", {name};dur={:.3}", took.as_secs_f64() * 1000.0);
        }
    }
    HeaderValue::try_from(text).expect("names and numbers")
}

#[cfg(test)]
mod tests;

//! The executor API, `/v1/…`: instances made, told of and deleted by their id, and executions in them.
//!
//! Its words are older than this project's: a `runtime` on the wire is an instance.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use subtle::ConstantTimeEq;

mod answer;
mod body;
mod cold;
mod create;
mod error;
mod execute;
mod form;
mod health;
mod memory;
mod params;
mod route;
mod v2;
mod value;

use self::{
    answer::Format,
    cold::instance_id,
    create::{Create, Created, Runtime},
    error::ApiError,
    execute::Execute,
    health::{Health, HostCpu},
    memory::{Held, Memory},
    params::{ParamError, Params},
    route::Route,
};
use super::{
    Instances,
    reply::{empty, json, text},
};
use crate::{config::Config, executor::execution::Body, id::InstanceId};

/// The text of `/metrics`.
type Metrics = Box<dyn Fn() -> String + Send + Sync>;
/// Processor usage of an instance in percent, where it is known.
type Usage = Box<dyn Fn(&InstanceId) -> Option<f64> + Send + Sync>;

/// Answers the executor API's requests.
pub struct ExecutorApi {
    config: Arc<Config>,
    instances: Arc<dyn Instances>,
    metrics: Metrics,
    usage: Usage,
    cpu: HostCpu,
    memory: Memory,
}

impl ExecutorApi {
    /// An API over these instances; `metrics` writes what `/metrics` answers.
    pub fn new(
        config: Arc<Config>,
        executor: Arc<dyn Instances>,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            memory: Memory::new(config.executor.buffer_mib),
            config,
            instances: executor,
            metrics: Box::new(metrics),
            usage: Box::new(|_| None),
            cpu: HostCpu::new(),
        }
    }

    /// The same API, whose health answer tells each instance's processor usage in percent where `usage` knows it.
    #[must_use]
    pub fn with_usage(
        self,
        usage: impl Fn(&InstanceId) -> Option<f64> + Send + Sync + 'static,
    ) -> Self {
        Self {
            usage: Box::new(usage),
            ..self
        }
    }

    /// Answers one request. Never fails: a failure is an answer.
    pub async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let answered = if request.method() == Method::OPTIONS {
            Ok(empty(StatusCode::OK))
        } else {
            self.call(request).await
        };
        let mut response = answered.unwrap_or_else(|error| {
            if error.status.is_server_error() {
                let (kind, status) = (error.kind, error.status.as_u16());
                tracing::warn!(kind, status, message = error.message, causes = ?error.trace, "a call failed");
            }
            error.response(&self.config.executor)
        });
        let server = HeaderValue::from_static("Executor");
        response.headers_mut().insert(header::SERVER, server);
        response
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, ApiError> {
        let (head, body) = request.into_parts();
        let Some(route) = Route::find(&head.method, head.uri.path()) else {
            let kind = "general_route_not_found";
            return Err(ApiError::new(StatusCode::NOT_FOUND, kind, "Not Found"));
        };
        let has_key = is_authorized(&head.headers, &self.config.executor.secret);
        if !has_key && !route.is_open() {
            let kind = "general_unauthorized";
            return Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                kind,
                "Missing executor key",
            ));
        }
        match route {
            Route::Health => Ok(self.health(has_key)),
            Route::Metrics => Ok(text(StatusCode::OK, (self.metrics)())),
            Route::List => Ok(self.list()),
            Route::Get(id) => self.get(id),
            Route::Delete(id) => self.delete(id).await,
            Route::Create => self.create(&head.headers, body).await,
            Route::Execute(id) => self.execute(id, &head.headers, body).await,
            Route::Logs(id) => not_yet(id, "Log streams"),
            Route::Commands(id) => not_yet(id, "Commands"),
        }
    }

    fn health(&self, has_key: bool) -> Response<Body> {
        if !has_key {
            return text(StatusCode::OK, "OK");
        }
        let health = Health::new(self.cpu.usage(), self.instances.list(), &self.usage);
        json(StatusCode::OK, &health)
    }

    fn list(&self) -> Response<Body> {
        let infos = self.instances.list().into_iter();
        let runtimes: Vec<_> = infos.map(|info| Runtime::new(info, &self.config)).collect();
        json(StatusCode::OK, &runtimes)
    }

    fn get(&self, id: String) -> Result<Response<Body>, ApiError> {
        let info = self.instances.get(&path_id(id)?);
        let runtime = Runtime::new(info.ok_or_else(ApiError::not_found)?, &self.config);
        Ok(json(StatusCode::OK, &runtime))
    }

    async fn delete(&self, id: String) -> Result<Response<Body>, ApiError> {
        if self.instances.delete(&path_id(id)?).await {
            Ok(empty(StatusCode::OK))
        } else {
            Err(ApiError::not_found())
        }
    }

    async fn create(&self, headers: &HeaderMap, body: Body) -> Result<Response<Body>, ApiError> {
        let (began, clock) = (SystemTime::now(), Instant::now());
        let mut held = self.memory.hold();
        let mut params = parameters(headers, body, &mut held).await?;
        let Create { spec, is_removed } = Create::read(&mut params, &self.config)?;
        let id = spec.id.clone();
        let created = self.instances.create(spec).await;
        created.map_err(|error| ApiError::create(&error))?;
        let answer = Created::new(began, clock.elapsed());
        if is_removed {
            self.instances.delete(&id).await;
        }
        Ok(json(StatusCode::CREATED, &answer))
    }

    async fn execute(
        &self,
        id: String,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let mut held = self.memory.hold();
        let mut params = parameters(headers, body, &mut held).await?;
        let id = path_id(id)?;
        let call = Execute::read(&mut params, &self.config)?;
        let outcome = call
            .run(id, &self.config, &*self.instances, &mut held)
            .await?;
        outcome.response(Format::of(headers), rand::random())
    }
}

async fn parameters(headers: &HeaderMap, body: Body, held: &mut Held) -> Result<Params, ApiError> {
    let body = body::read(headers, body, held).await?;
    Ok(body::decode(headers, body).await)
}

/// The id of a path: held to the rules of a parameter first, then to those of a file name.
fn path_id(id: String) -> Result<InstanceId, ApiError> {
    let name = "runtimeId";
    let text = params::text(64, 1)(value::Value::Text(id.into_bytes()))
        .map_err(|description| ParamError::Invalid { name, description })?;
    instance_id(&text)
}

fn not_yet(id: String, what: &str) -> Result<Response<Body>, ApiError> {
    path_id(id)?;
    Err(ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "general_not_implemented",
        format!("{what} are not offered by this node yet."),
    ))
}

/// The key is the second word of the header, whatever the first; words are split at single spaces.
fn is_authorized(headers: &HeaderMap, secret: &str) -> bool {
    let value = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let key = value.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    !key.is_empty() && key != b"0" && key.ct_eq(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests;

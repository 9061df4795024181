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
mod logs;
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
use crate::{
    build::client::ClientBuilds,
    config::Config,
    executor::{
        command::Written,
        execution::Body,
        setup::{Creation, Setup},
    },
    id::InstanceId,
};

/// The text of `/metrics`.
type Metrics = Box<dyn Fn() -> String + Send + Sync>;
/// Processor usage of an instance in percent, where it is known.
type Usage = Box<dyn Fn(&InstanceId) -> Option<f64> + Send + Sync>;

/// Answers the executor API's requests.
pub struct ExecutorApi {
    config: Arc<Config>,
    instances: Arc<dyn Instances>,
    builds: ClientBuilds,
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
        builds: ClientBuilds,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            memory: Memory::new(config.executor.buffer_mib),
            config,
            instances: executor,
            builds,
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
            Route::Logs(id) => self.logs(id, head.uri.query()).await,
            Route::Commands(id) => self.command(id, &head.headers, body).await,
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
        let mut params = parameters(headers, body, &mut self.memory.hold()).await?;
        let Create {
            spec,
            order,
            is_removed,
        } = Create::read(&mut params, &self.config)?;
        let build = order.map(|order| self.builds.build(order));
        let creation = Creation {
            spec,
            setup: build.clone().map(|build| build as Arc<dyn Setup>),
            is_removed,
        };
        let created = self.instances.create(creation).await;
        created.map_err(|error| match build {
            Some(_) => ApiError::build(&error),
            None => ApiError::create(&error),
        })?;
        let outcome = build.as_ref().and_then(|build| build.outcome());
        let answer = Created::new(began, clock.elapsed(), outcome);
        Ok(json(StatusCode::CREATED, &answer))
    }

    async fn logs(&self, id: String, query: Option<&str>) -> Result<Response<Body>, ApiError> {
        let id = path_id(id)?;
        let mut params = Params(form::urlencoded(query.unwrap_or_default().as_bytes()));
        let limit = logs::limit(&mut params)?;
        let reader = self.instances.follow(&id).await;
        let reader = reader.ok_or_else(|| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let message = "Runtime not ready. Container not found.";
            ApiError::new(status, "general_unknown", message)
        })?;
        logs::stream(reader, limit).await
    }

    async fn command(
        &self,
        id: String,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, ApiError> {
        let mut params = parameters(headers, body, &mut self.memory.hold()).await?;
        let id = path_id(id)?;
        let line = params.required("command", params::text(1024, 1))?;
        let limit = create::seconds(params.optional("timeout", params::int)?);
        let line = cold::no_nul("command", &line)?;
        let written = self.instances.command(&id, line, limit).await;
        let Written { stdout, stderr } = written.map_err(|error| ApiError::command(&error))?;
        let output = [stdout, stderr].concat();
        let output = String::from_utf8_lossy(&output);
        Ok(json(
            StatusCode::OK,
            &serde_json::json!({ "output": output }),
        ))
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

//! One request to the server in a sandbox, over a kept-alive connection, and the way of its answer back.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{self, Sleep},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    Executor,
    connection::{Connection, SendError},
    execution::{Answer, Body, BodyError, ExecuteError, Logs, Phases, Start},
    instance::Protocol,
    journal::Stream,
    logs::{LOG_ID, LogId},
    make::PORT,
    pool::Instance,
    state::End,
};

/// What the server in a sandbox may take beyond the function's time, so that its own answer about that arrives.
const GRACE: Duration = Duration::from_secs(5);
/// How long after a broken connection the word of the main process's end may come.
const EXIT_PATIENCE: Duration = Duration::from_millis(500);
const PROTOCOL_HEADERS: &str = "x-open-runtimes-";

/// An execution that was let into an instance, and its place there. Dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) executor: Arc<Executor>,
    pub(super) instance: Arc<Instance>,
    /// Lets a stop wait for the execution.
    pub(super) _token: TaskTrackerToken,
    pub(super) admitted: Instant,
    pub(super) start: Start,
    /// For log lines.
    pub(super) execution: String,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.executor.metrics.executions_in_flight.dec();
        let now = Instant::now();
        let is_done = self.instance.load(|state| {
            state.release(now);
            state.is_reapable(now, Duration::MAX)
        });
        if is_done {
            self.executor.end_if(&self.instance, End::Deleted, |state| {
                state.is_reapable(now, Duration::MAX)
            });
        }
        self.executor.admission.nudge();
    }
}

/// A request that failed, and the request itself where the function cannot have seen it.
pub(super) struct Failure {
    pub(super) error: ExecuteError,
    pub(super) unsent: Option<Box<Request<Body>>>,
    pub(super) ticket: Ticket,
}

impl Failure {
    pub(super) fn unsent(error: ExecuteError, request: Request<Body>, ticket: Ticket) -> Box<Self> {
        let unsent = Some(Box::new(request));
        Box::new(Self {
            error,
            unsent,
            ticket,
        })
    }
}

/// How an execution is put to the function's server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) protocol: Protocol,
    /// Whether the function's logs are collected.
    pub(super) logging: bool,
}

/// Why a request has no answer, and the request itself where the function cannot have seen it.
type Unanswered = (ExecuteError, Option<Box<Request<Body>>>);

impl Ticket {
    /// Sends the request; `seconds` is what the function is told to have.
    pub(super) async fn dispatch(
        self,
        mut request: Request<Body>,
        permit: OwnedSemaphorePermit,
        seconds: u64,
        manner: Manner,
    ) -> Result<Answer, Box<Failure>> {
        let instance = self.instance.clone();
        let grace = self.address(request.headers_mut(), seconds, manner);
        let (start_time, began) = (SystemTime::now(), Instant::now());
        let deadline = time::Instant::now() + Duration::from_secs(seconds) + grace;
        let sent = time::timeout_at(deadline, self.send(Box::new(request), seconds)).await;
        let sent = sent.unwrap_or_else(|_| {
            let id = instance.facts.id.clone();
            Err((ExecuteError::Timeout { id, seconds }, None))
        });
        let (response, connection) = match sent {
            Ok(sent) => sent,
            Err((error, unsent)) => {
                let ticket = self;
                return Err(Box::new(Failure {
                    error,
                    unsent,
                    ticket,
                }));
            }
        };
        let phases = self.phases(began.elapsed());
        let (mut head, body) = response.into_parts();
        let log_id = head.headers.get(LOG_ID);
        let log_id = log_id.and_then(|value| LogId::parse(value.as_bytes()));
        remove_protocol_headers(&mut head.headers);
        let (logs_sender, logs) = oneshot::channel();
        let start = self.start;
        let close = Close {
            ticket: self,
            permit,
            connection,
            log_id: log_id.filter(|_| manner.logging),
            logs: logs_sender,
            status: head.status.as_u16(),
            phases,
        };
        let tracked = Tracked {
            body,
            deadline: Box::pin(time::sleep_until(deadline)),
            close: Some(close),
        };
        Ok(Answer {
            response: Response::from_parts(head, BodyExt::boxed_unsync(tracked)),
            start,
            phases,
            start_time,
            began,
            logs,
        })
    }

    /// Sets the headers by which the server knows the host; answers for how long its answer may be late.
    fn address(&self, headers: &mut HeaderMap, seconds: u64, manner: Manner) -> Duration {
        let Instance {
            credentials, facts, ..
        } = &*self.instance;
        match manner.protocol {
            Protocol::V2 => {
                credentials.challenge(headers);
                Duration::ZERO
            }
            Protocol::V4 | Protocol::V5 => {
                set_headers(headers, credentials, seconds, manner.logging);
                headers
                    .entry(header::HOST)
                    .or_insert_with(|| host(&facts.hostname));
                GRACE
            }
        }
    }

    /// Sends until the server takes it: an idle connection may have been closed a moment ago,
    /// and a main process that ends refuses new ones before its end is known.
    async fn send(
        &self,
        mut request: Box<Request<Body>>,
        seconds: u64,
    ) -> Result<(Response<Incoming>, Connection), Unanswered> {
        let settings = &self.executor.config.executor;
        let (mut attempts, began) = (0, Instant::now());
        loop {
            let connection = match self.instance.connections.take() {
                Some(connection) => Some(connection),
                None => {
                    attempts += 1;
                    self.connect().await
                }
            };
            if let Some(mut connection) = connection {
                let sent = tokio::select! {
                    sent = connection.send(*request) => sent,
                    end = self.ended_for_good() => return Err((end, None)),
                };
                match sent {
                    Ok(response) => return Ok((response, connection)),
                    Err(SendError::Unsent(unsent)) => request = unsent,
                    Err(SendError::Broken(error)) => return Err((self.broken(&error).await, None)),
                }
                continue;
            }
            let pause = Duration::from_millis(settings.retry_delay_ms);
            let is_late = began.elapsed() > Duration::from_secs(seconds);
            tokio::select! {
                end = self.instance.ended() => {
                    return Err((self.instance.end_error(end), Some(request)));
                }
                () = time::sleep(pause) => {}
            }
            if attempts >= settings.retry_attempts && is_late {
                let id = self.instance.facts.id.clone();
                let error = ExecuteError::StartTimeout {
                    id,
                    is_running: true,
                };
                return Err((error, Some(request)));
            }
        }
    }

    async fn connect(&self) -> Option<Connection> {
        let dial = self.executor.adapter.dial(&self.instance.sandbox_id, PORT);
        Connection::new(dial.await.ok()?).await.ok()
    }

    /// The instance has ended, and an answer that it may have sent before has had time to arrive.
    async fn ended_for_good(&self) -> ExecuteError {
        let end = self.instance.ended().await;
        time::sleep(EXIT_PATIENCE).await;
        self.instance.end_error(end)
    }

    /// Why a connection broke: mostly because the main process has ended.
    async fn broken(&self, error: &hyper::Error) -> ExecuteError {
        match time::timeout(EXIT_PATIENCE, self.instance.ended()).await {
            Ok(end) => self.instance.end_error(end),
            Err(_) => ExecuteError::Broken {
                id: self.instance.facts.id.clone(),
                reason: crate::telemetry::chain(error),
            },
        }
    }

    fn phases(&self, first_byte: Duration) -> Phases {
        self.executor.metrics.phase("first_byte", first_byte);
        let mut phases = Phases {
            first_byte,
            ..Phases::default()
        };
        if self.start == Start::Cold
            && let Some(made) = self.instance.made.get()
        {
            phases.code = made.code;
            phases.sandbox = made.sandbox.phases.sandbox;
            phases.create = made.sandbox.phases.create;
            phases.start = made.sandbox.phases.start;
            phases.boot = self.instance.boot.get().copied().unwrap_or_default();
        }
        phases
    }
}

impl Instance {
    /// What an execution is told whose instance has ended.
    pub(super) fn end_error(&self, end: End) -> ExecuteError {
        let id = self.facts.id.clone();
        match end {
            End::Failed(error) => ExecuteError::Start(error),
            End::Exited(exit) => ExecuteError::Exited { id, exit },
            End::Deleted | End::Evicted => ExecuteError::Deleted { id },
        }
    }
}

/// The protocol's headers replace the caller's; the caller's own `authorization` stays.
fn set_headers(headers: &mut HeaderMap, credentials: &Credentials, seconds: u64, logging: bool) {
    remove_protocol_headers(headers);
    headers
        .entry(header::AUTHORIZATION)
        .or_insert_with(|| credentials.basic.clone());
    headers.insert("x-open-runtimes-secret", credentials.secret.clone());
    headers.insert("x-open-runtimes-timeout", seconds.into());
    let logging = if logging { "enabled" } else { "disabled" };
    headers.insert("x-open-runtimes-logging", HeaderValue::from_static(logging));
    headers
        .entry(header::ACCEPT)
        .or_insert(HeaderValue::from_static("*/*"));
}

/// What the server in a sandbox knows the host by, ready to be sent.
#[derive(Debug)]
pub(super) struct Credentials {
    secret: HeaderValue,
    basic: HeaderValue,
}

impl Credentials {
    /// From an instance's key.
    pub(super) fn new(key: &str) -> Self {
        let basic = format!("Basic {}", STANDARD.encode(format!("opr:{key}")));
        Self {
            secret: HeaderValue::from_str(key).expect("hexadecimal digits"),
            basic: HeaderValue::from_str(&basic).expect("base 64"),
        }
    }

    /// What a server of the old protocol knows the host by.
    fn challenge(&self, headers: &mut HeaderMap) {
        headers.insert("x-internal-challenge", self.secret.clone());
    }
}

fn remove_protocol_headers(headers: &mut HeaderMap) {
    let own: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(PROTOCOL_HEADERS))
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
}

fn host(hostname: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("{hostname}:{PORT}")).expect("hexadecimal digits and a port")
}

/// The body of an answer: the execution lasts as long as it does.
struct Tracked {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    close: Option<Close>,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, close, .. } = &mut *self;
        let Some(running) = close else {
            return Poll::Ready(None);
        };
        let frame = running
            .connection
            .poll_body(context, |context| Pin::new(&mut *body).poll_frame(context));
        let (item, result) = match frame {
            Poll::Ready(Some(Ok(frame))) if !self.body.is_end_stream() => {
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Ok(frame))) => (Some(Ok(frame)), "ok"),
            Poll::Ready(None) => (None, "ok"),
            Poll::Ready(Some(Err(error))) => (Some(Err(error.into())), "execution_broken"),
            Poll::Pending => match self.deadline.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => {
                    let message = "the function's time was over before its answer was";
                    (Some(Err(message.into())), "execution_timeout")
                }
            },
        };
        if let Some(close) = self.close.take() {
            close.run(result);
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(close) = self.close.take() {
            let is_whole = self.body.is_end_stream();
            close.run(if is_whole { "ok" } else { "caller_gone" });
        }
    }
}

/// What is to do when an answer's body has ended.
struct Close {
    ticket: Ticket,
    permit: OwnedSemaphorePermit,
    connection: Connection,
    log_id: Option<LogId>,
    logs: oneshot::Sender<Logs>,
    status: u16,
    phases: Phases,
}

impl Close {
    fn run(self, result: &'static str) {
        let Self {
            ticket,
            permit,
            connection,
            log_id,
            logs,
            ..
        } = self;
        if result == "ok" {
            ticket.instance.connections.put(connection);
        }
        drop(permit);
        ticket.close(result, Some(self.status), Some(&self.phases));
        let tasks = ticket.executor.tasks.clone();
        let (Some(log_id), Some(files)) = (log_id, ticket.instance.log_files()) else {
            // Nobody waiting for them is not an error.
            let _ = logs.send(Logs::default());
            return;
        };
        let taken = files.take(&log_id);
        let is_small = taken.is_small();
        let read = move || {
            let taken = taken.read();
            let journal = &ticket.executor.journal;
            let name = ticket.instance.facts.journal_name();
            journal.write(name, Stream::Log, &taken.logs);
            journal.write(name, Stream::Error, &taken.errors);
            let _ = logs.send(taken);
        };
        // Most executions log nothing or little, in files that are in memory.
        if is_small {
            read();
        } else {
            tasks.spawn_blocking(read);
        }
    }
}

impl Ticket {
    /// The one line that closes an execution, and its figures.
    pub(super) fn close(&self, result: &str, status: Option<u16>, phases: Option<&Phases>) {
        let duration = self.admitted.elapsed();
        let facts = &self.instance.facts;
        self.executor
            .metrics
            .execution(self.start.as_str(), result, duration);
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        // Phases that were none are not told.
        let phase = |of: fn(&Phases) -> Duration| {
            let took = phases.map(of).filter(|took| !took.is_zero());
            took.map(ms)
        };
        tracing::info!(
            execution = %self.execution,
            instance = %facts.id,
            function = facts.function.as_ref().map(tracing::field::display),
            sandbox = %self.instance.sandbox_id,
            start = self.start.as_str(),
            result,
            status,
            duration_ms = ms(duration),
            code_ms = phase(|phases| phases.code),
            sandbox_ms = phase(|phases| phases.sandbox),
            create_ms = phase(|phases| phases.create),
            start_ms = phase(|phases| phases.start),
            boot_ms = phase(|phases| phases.boot),
            first_byte_ms = phase(|phases| phases.first_byte),
            "execution closed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocols_headers_are_the_hosts_alone() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-open-runtimes-secret",
            "x-open-runtimes-anything",
            "x-own",
        ] {
            headers.insert(name, HeaderValue::from_static("forged"));
        }
        set_headers(&mut headers, &Credentials::new("key"), 15, false);
        let get = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(get("x-open-runtimes-secret"), Some("key"));
        assert_eq!(get("x-open-runtimes-timeout"), Some("15"));
        assert_eq!(get("x-open-runtimes-logging"), Some("disabled"));
        assert_eq!(get("x-open-runtimes-anything"), None);
        assert_eq!(get("x-own"), Some("forged"));
        assert_eq!(get("authorization"), Some("Basic b3ByOmtleQ=="));
    }

    #[test]
    fn the_callers_own_authorization_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        set_headers(&mut headers, &Credentials::new("key"), 15, true);
        assert_eq!(headers[header::AUTHORIZATION], "Bearer x");
    }
}

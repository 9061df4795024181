//! One request from its head to its answer, in the protocol's order: special paths, authentication, timeout, log, body,
//! function, response.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    cell::RefCell,
    fs,
    hint::black_box,
    io::{self, Write},
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use openruntimes::{Context, Logger, Response};

use crate::{
    http::{Answer, Connection, Message, ReadError},
    logger::{ExecutionLog, log_id},
    native::Native,
    request::new_request,
    response::{plain, render},
    settings::Settings,
};

const MAX_TIMEOUT_S: u64 = 2_147_483;
const UNAUTHORIZED: &str = "Unauthorized. Provide correct \"x-open-runtimes-secret\" header.";
const BAD_TIMEOUT: &str = "Header \"x-open-runtimes-timeout\" must be an integer greater than 0.";
const TIMED_OUT: &str = "Execution timed out.";
/// A function's stack is as deep as a program's.
const STACK_SIZE: usize = 8 << 20;

/// What a function's crate exports as `main`.
pub type Function = fn(Context) -> Response;

thread_local! {
    /// The log of the execution whose function runs on this thread.
    static CURRENT: RefCell<Option<Arc<ExecutionLog>>> = const { RefCell::new(None) };
}

/// All executions of this process.
pub(crate) struct Executions {
    settings: Settings,
    main: Function,
    native: &'static Native,
    n_active: AtomicUsize,
}

impl Executions {
    pub(crate) fn new(settings: Settings, main: Function, native: &'static Native) -> Self {
        log_panics();
        Self {
            settings,
            main,
            native,
            n_active: AtomicUsize::new(0),
        }
    }

    pub(crate) fn handle(
        &self,
        connection: &mut Connection,
        message: &mut Message,
    ) -> io::Result<()> {
        let settings = &self.settings;
        match message.target.split('?').next() {
            Some("/__opr/health") => return connection.answer(message, &plain(200, "OK")),
            Some("/__opr/timings") => {
                let timings = fs::read(&settings.timings_file).unwrap_or_default();
                return connection.answer(message, &plain(200, timings));
            }
            _ => {}
        }
        if !settings.secret.is_empty()
            && !is_equal(message.header("x-open-runtimes-secret"), &settings.secret)
        {
            return connection.answer(message, &plain(401, UNAUTHORIZED));
        }
        let Ok(timeout) = parse_timeout(message.header("x-open-runtimes-timeout")) else {
            return connection.answer(message, &plain(500, BAD_TIMEOUT));
        };
        let id = log_id(&message.headers, settings.is_development);
        let log = Arc::new(ExecutionLog::new(&settings.logs_dir, id));
        self.n_active.fetch_add(1, Ordering::SeqCst);
        let mut answer = self.execute(connection, message, &log, timeout);
        log.close();
        answer
            .headers
            .push(("x-open-runtimes-log-id".to_owned(), log.id.clone()));
        let sent = connection.answer(message, &answer);
        self.n_active.fetch_sub(1, Ordering::SeqCst);
        sent
    }

    pub(crate) fn are_idle(&self) -> bool {
        self.n_active.load(Ordering::SeqCst) == 0
    }

    /// Answers in the function's place when its time is over. A thread cannot be ended: the function's goes on, unheard.
    fn execute(
        &self,
        connection: &mut Connection,
        message: &mut Message,
        log: &Arc<ExecutionLog>,
        timeout: Option<Duration>,
    ) -> Answer {
        let body = match connection.read_body(message) {
            Ok(body) => body,
            Err(ReadError::TooLarge) => return plain(413, ""),
            Err(ReadError::Bad(status)) => {
                message.keeps_alive = false;
                return plain(status, "");
            }
            Err(ReadError::Closed) => {
                message.keeps_alive = false;
                log.error("The caller has gone before the end of its request.");
                return plain(500, "");
            }
        };
        let request = new_request(message, body, &self.settings);
        let context = Context::new(request, Arc::clone(log) as Arc<dyn Logger>);
        self.native.begin(log);
        let result = self.run(context, log, timeout);
        self.native.end(log);
        result.unwrap_or_else(|reason| {
            log.error(&reason);
            plain(500, "")
        })
    }

    fn run(
        &self,
        context: Context,
        log: &Arc<ExecutionLog>,
        timeout: Option<Duration>,
    ) -> Result<Answer, String> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (main, log) = (self.main, Arc::clone(log));
        let function = thread::Builder::new()
            .name("function".to_owned())
            .stack_size(STACK_SIZE);
        let started = function.spawn(move || drop(sender.send(call(main, context, log))));
        started.map_err(|error| format!("Cannot start a thread: {error}"))?;
        let result = match timeout {
            Some(timeout) => receiver.recv_timeout(timeout),
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match result {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(TIMED_OUT.to_owned()),
            Err(RecvTimeoutError::Disconnected) => {
                Err("The function has ended its thread.".to_owned())
            }
        }
    }
}

/// Runs the function on this thread. A panic has told its reason already.
fn call(main: Function, context: Context, log: Arc<ExecutionLog>) -> Result<Answer, String> {
    CURRENT.set(Some(log));
    let response = panic::catch_unwind(AssertUnwindSafe(|| main(context)));
    // What has been printed without a line's end.
    drop(io::stdout().flush());
    match response {
        Ok(response) => render(response),
        Err(_) => Ok(plain(500, "")),
    }
}

/// A function's panic is its error; those of threads that it has started are printed.
fn log_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let log = CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten();
        match log {
            Some(log) => log.error(&describe(info)),
            None => print(info),
        }
    }));
}

/// Message and place, and the way there where `RUST_BACKTRACE` asks for it.
fn describe(info: &PanicHookInfo<'_>) -> String {
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("{info}\n{backtrace}"),
        _ => info.to_string(),
    }
}

/// Takes as long for every text of the same length.
fn is_equal(given: &str, secret: &str) -> bool {
    let pairs = given.bytes().zip(secret.bytes());
    let difference = pairs.fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
    given.len() == secret.len() && difference == 0
}

/// Whole seconds; none where none are asked for.
fn parse_timeout(text: &str) -> Result<Option<Duration>, ()> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    // Digits that do not fit are many seconds.
    match text.parse().unwrap_or(MAX_TIMEOUT_S).min(MAX_TIMEOUT_S) {
        0 => Err(()),
        seconds => Ok(Some(Duration::from_secs(seconds))),
    }
}

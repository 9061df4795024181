//! Owns the listening socket, the signals and the life of the process; what a request means is `execution`'s matter.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    mem::MaybeUninit,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process, ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    execution::{Executions, Function},
    http::Connection,
    native::capture_output,
    settings::Settings,
};

const BACKLOG: i32 = 4096;
/// How long a stopping server waits for executions that are under way.
const DRAIN: Duration = Duration::from_secs(5);
/// How often it looks whether they have ended, and how long it leaves others to finish where there is no room.
const PAUSE: Duration = Duration::from_millis(10);

/// Binds, announces readiness, and serves until a signal.
pub fn serve(settings: Settings, main: Function) {
    // As PID 1 a signal is ignored unless somebody waits for it.
    let stop = block_signals();
    match start(settings, main) {
        Ok(executions) => {
            wait_for(&stop);
            drain(&executions);
        }
        Err(error) => {
            eprintln!("HTTP server failed: {error}");
            process::exit(1);
        }
    }
}

fn start(settings: Settings, main: Function) -> io::Result<Arc<Executions>> {
    let listener = bind(settings.port)?;
    println!("HTTP server successfully started!");
    note_startup(&settings);
    let executions = Arc::new(Executions::new(settings, main, capture_output()?));
    let shared = Arc::clone(&executions);
    thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || accept(&listener, &shared))?;
    Ok(executions)
}

/// All interfaces, both families where there are both.
fn bind(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    // The library's own backlog is short: a caller that finds it full tries again a second later.
    // SAFETY: listen takes two integers and touches no memory; the descriptor is open because it is borrowed.
    unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    Ok(listener)
}

/// Every connection has a thread.
fn accept(listener: &TcpListener, executions: &Arc<Executions>) -> ! {
    loop {
        let attended = listener
            .accept()
            .and_then(|(stream, _)| attend(stream, Arc::clone(executions)));
        if attended.is_err() {
            thread::sleep(PAUSE);
        }
    }
}

fn attend(stream: TcpStream, executions: Arc<Executions>) -> io::Result<()> {
    let mut connection = Connection::new(stream)?;
    let serve =
        move || connection.serve(|connection, message| executions.handle(connection, message));
    thread::Builder::new()
        .name("connection".to_owned())
        .spawn(serve)
        .map(drop)
}

fn drain(executions: &Executions) {
    let deadline = Instant::now() + DRAIN;
    while !executions.are_idle() && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
}

/// The signals that end a process softly. They wait, for all threads that are made after this.
fn block_signals() -> libc::sigset_t {
    let mut signals = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set before it is read, and all three write to nothing else.
    unsafe {
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGINT);
        let signals = signals.assume_init();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut());
        signals
    }
}

fn wait_for(signals: &libc::sigset_t) {
    let mut signal = 0;
    // SAFETY: the set is initialised, and the signal's number is written to this stack.
    unsafe { libc::sigwait(signals, &raw mut signal) };
}

/// The `startup` metric, where the start lifecycle told when it began. Timings are a help, not a need.
fn note_startup(settings: &Settings) {
    let Some(seconds) = settings
        .startup_began
        .and_then(|began| began.elapsed().ok())
    else {
        return;
    };
    if let Ok(mut file) = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&settings.timings_file)
    {
        drop(writeln!(file, "startup={:.3}", seconds.as_secs_f64()));
    }
}

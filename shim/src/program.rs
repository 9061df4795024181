//! What `bootstrap` and the daemon have in common: their flags, which are containerd's, and how they end.

use std::{
    env,
    error::Error,
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use containerd_shim::Flags;

/// The version of both.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs a program as its command line says.
pub(crate) fn main<E: Error>(
    name: &str,
    help: &str,
    run: impl FnOnce(&Flags) -> Result<(), E>,
) -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let is_help = |argument: &OsString| ["-h", "-help", "--help"].iter().any(|h| argument == h);
    if arguments.iter().any(is_help) {
        return end(name, print(help.as_bytes()));
    }
    match containerd_shim::parse(&arguments) {
        Err(e) => end(name, Err(e)),
        Ok(flags) if flags.version => {
            let text = format!("{name}:\n  Version:  {VERSION}\n");
            end(name, print(text.as_bytes()))
        }
        Ok(flags) => end(name, run(&flags)),
    }
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

fn end<E: Error>(name: &str, result: Result<(), E>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let mut text = format!("{name}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    log::error!("{text}");
    eprintln!("{text}");
    ExitCode::FAILURE
}

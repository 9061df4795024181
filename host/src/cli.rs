//! The command line: one file a subcommand. It asks the daemon over its unix socket and shows what comes back.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    adapter, code,
    config::{Config, ConfigError, env},
    rootless,
};

mod class;
mod client;
mod containerd;
mod deploy;
mod doctor;
mod functions;
mod images;
mod init;
mod invoke;
mod logs;
mod node;
mod output;
mod pack;
mod ps;
mod serve;
mod top;
mod user;

use client::{Missing, Unreachable};
use output::Output;

/// Where settings are read from when no file is named.
const DEFAULT_FILE: &str = "/etc/opr/opr.toml";

const CODES: &str = "\
Exit codes:
  0  done
  1  it failed
  2  the command line is wrong
  3  what was named does not exist
  4  the node does not answer";

/// A serverless node: takes functions, runs each in a container of its own, answers HTTP.
#[derive(Debug, Parser)]
#[command(name = "opr", version, after_help = CODES, max_term_width = 100)]
struct Args {
    /// Settings of the node [default: ~/.config/opr/opr.toml of a user's own node, /etc/opr/opr.toml].
    #[arg(long, global = true, value_name = "FILE", env = env::CONFIG)]
    config: Option<PathBuf>,
    /// Print JSON: one document, or one a line where the output goes on.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node in the foreground.
    Serve,
    /// Keep the node's own containerd alive, in the foreground; without root, in namespaces that it makes.
    Containerd,
    /// Start a node in the background and wait until it is ready.
    Up,
    /// Stop the node and remove all that it made at run time; functions and images stay.
    Down,
    /// Say whether this machine can run functions, and how to fix what cannot.
    Doctor,
    /// Pull, import, build, list and remove images.
    Images(images::Args),
    /// Make a new function's folder, of its language's example.
    Init(init::Args),
    /// Build a folder and serve it as a function.
    Deploy(deploy::Args),
    /// Send a request to a function.
    Invoke(invoke::Args),
    /// List functions.
    Functions,
    /// Show what a function wrote.
    Logs(logs::Args),
    /// List instances.
    Ps,
    /// Show what instances use, again and again.
    Top(top::Args),
    /// List classes, their limits and what they use, and try other limits.
    Class(class::Args),
    /// Have the node read its settings anew: limits of classes and of admission hold at once, for what runs too.
    Reload,
    /// Remove functions.
    Rm(functions::RmArgs),
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages into a folder.
    #[command(hide = true)]
    Man { folder: PathBuf },
    #[command(name = code::SUBCOMMAND, hide = true)]
    Unpack,
    #[command(name = rootless::MAP_SUBCOMMAND, hide = true)]
    MapIds { pid: String },
}

/// What every subcommand is given.
#[derive(Debug)]
struct Session {
    config: Config,
    /// Where the settings came from.
    file: Option<PathBuf>,
    output: Output,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let output = Output::new(args.json);
    match run(args, output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            exit_code(&error)
        }
    }
}

/// See [`CODES`].
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Missing>() {
        ExitCode::from(3)
    } else if error.is::<Unreachable>() {
        ExitCode::from(4)
    } else {
        ExitCode::FAILURE
    }
}

fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Init(args) => {
            init::run(output, &args)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Unpack => return Ok(code::confined_main()),
        Command::Man { folder } => {
            std::fs::create_dir_all(&folder)?;
            clap_mangen::generate_to(Args::command(), &folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::MapIds { pid } => return Ok(rootless::map_ids(&pid)),
        Command::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(shell, &mut command, "opr", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let file = args.config.or_else(|| {
        let own = user::Node::of_process().map(|own| own.file);
        let all = own.into_iter().chain([PathBuf::from(DEFAULT_FILE)]);
        all.into_iter().find(|file| Config::exists(file))
    });
    let mut config = load(file.as_deref())?;
    // Now, as a process with threads may not move to another user namespace.
    if rootless::is_needed() {
        match args.command {
            Command::Serve => {
                let keeper = adapter::containerd_keeper(&config);
                rootless::join(&mut config, keeper)?;
            }
            Command::Containerd => rootless::make(&mut config)?,
            _ => {}
        }
    }
    let session = Session {
        config,
        file,
        output,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(n_threads())
        .on_thread_park(crate::telemetry::log::flush)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(dispatch(args.command, session))
}

/// The settings of `file`, and of this process's environment.
fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    let own = user::Node::of_process();
    let var = |name: &str| std::env::var(name).ok().or_else(|| own.as_ref()?.var(name));
    Config::load(file, &var)
}

/// Half of the processors: the others are the instances'. On two, a second thread made each execution
/// slower, as every wake-up crossed from one to the other.
fn n_threads() -> usize {
    let processors = std::thread::available_parallelism();
    processors.map_or(1, |n| n.get().div_ceil(2))
}

async fn dispatch(command: Command, session: Session) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve => serve::run(session).await?,
        Command::Containerd => containerd::run(session).await?,
        Command::Up => node::up(&session).await?,
        Command::Down => node::down(&session).await?,
        Command::Doctor => return doctor::run(&session).await,
        Command::Images(args) => images::run(&session, args).await?,
        Command::Deploy(args) => deploy::run(&session, args).await?,
        Command::Invoke(args) => invoke::run(&session, args).await?,
        Command::Functions => functions::list(&session).await?,
        Command::Logs(args) => logs::run(&session, args).await?,
        Command::Ps => ps::run(&session).await?,
        Command::Top(args) => top::run(&session, args).await?,
        Command::Class(args) => class::run(&session, args).await?,
        Command::Reload => class::reload(&session).await?,
        Command::Rm(args) => functions::remove(&session, args).await?,
        Command::Init(_)
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Unpack
        | Command::MapIds { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn failures_have_codes_that_tell_them_apart() {
        let missing = anyhow::Error::new(Missing("there is no function a".into()));
        let unreachable = anyhow::Error::new(Unreachable {
            socket: "/run/opr/opr.sock".into(),
        });
        assert_eq!(exit_code(&missing.context("outer")), ExitCode::from(3));
        assert_eq!(exit_code(&unreachable), ExitCode::from(4));
        assert_eq!(exit_code(&anyhow::anyhow!("other")), ExitCode::FAILURE);
    }
}

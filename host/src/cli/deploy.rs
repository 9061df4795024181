//! `opr deploy`: a folder becomes a function.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use indicatif::ProgressBar;
use tokio_util::io::ReaderStream;

use super::{
    Session,
    client::{Client, Lines, request},
    output::megabytes,
    pack,
};
use crate::{
    api::node::wire::{DeployEvent, DeployRequest, FunctionInfo},
    executor::execution::{Body, BodyError},
    id::{ClassName, FunctionName},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The function's folder.
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Its name [default: the folder's].
    #[arg(long)]
    name: Option<FunctionName>,
    /// Its runtime, as in node-22 or node [default: by the folder's files].
    #[arg(long)]
    runtime: Option<String>,
    /// The function's file [default: the runtime's].
    #[arg(long, value_name = "FILE")]
    entrypoint: Option<String>,
    /// The install command [default: the runtime's].
    #[arg(long)]
    command: Option<String>,
    /// A variable of its environment; may be repeated.
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file of such lines.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Memory of an instance in megabytes; 0 is no limit.
    #[arg(long, value_name = "MB", default_value_t = 512)]
    memory: u64,
    /// Processors of an instance; 0 is no limit.
    #[arg(long, value_name = "CORES", default_value_t = 1.0, value_parser = cores)]
    cpus: f64,
    /// How long an execution may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Class of its instances.
    #[arg(long, default_value = "function")]
    class: ClassName,
    /// Keep nothing of what it logs.
    #[arg(long)]
    no_logging: bool,
}

fn cores(text: &str) -> Result<f64, String> {
    let cores = text.parse::<f64>().ok();
    cores
        .filter(|cores| (0.0..=1024.0).contains(cores))
        .ok_or_else(|| "a number from 0 to 1024".into())
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    let deployment = deployment(&args)?;
    let client = Client::new(&session.config);
    // Before the folder is packed: nothing is done for a node that is not there.
    let node = client.node().await?;
    let archive = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    pack::pack(&args.folder, archive.reopen()?)?;
    let answer = client.send(upload(&deployment, archive.path())?).await?;
    let mut events = Lines::new(answer);
    let progress = progress(session);
    while let Some(event) = events.next::<DeployEvent>().await? {
        match event {
            DeployEvent::Deployed { function } => {
                progress.finish_and_clear();
                show(session, &function, &node.gateway);
                return Ok(());
            }
            DeployEvent::Failed { kind, message } => {
                progress.finish_and_clear();
                bail!("{} was not deployed: {message} ({kind})", deployment.name);
            }
            event => tell(session, &progress, event),
        }
    }
    bail!("the node ended before {} was deployed", deployment.name)
}

fn deployment(args: &Args) -> anyhow::Result<DeployRequest> {
    let folder = &args.folder;
    let path = folder.canonicalize();
    let path = path.with_context(|| format!("cannot read {}", folder.display()))?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            FunctionName::try_new(name).context("give it a name with --name")?
        }
    };
    let runtime = match (&args.runtime, pack::guess_runtime(folder)) {
        (Some(runtime), _) => runtime.clone(),
        (None, Some(runtime)) => runtime.to_owned(),
        (None, None) => bail!(
            "{} does not tell its runtime: name it with --runtime",
            folder.display()
        ),
    };
    Ok(DeployRequest {
        name,
        runtime,
        entrypoint: args.entrypoint.clone(),
        command: args.command.clone(),
        variables: variables(args)?,
        cpus: args.cpus,
        memory_mb: args.memory,
        timeout_s: args.timeout,
        class: args.class.clone(),
        logging: !args.no_logging,
    })
}

/// Those of the file, then those of the command line, which win.
fn variables(args: &Args) -> anyhow::Result<BTreeMap<String, String>> {
    let text = match &args.env_file {
        Some(file) => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?,
        None => String::new(),
    };
    let is_comment = |line: &&str| line.trim().is_empty() || line.starts_with('#');
    let lines = text.lines().filter(|line| !is_comment(line));
    lines
        .chain(args.env.iter().map(String::as_str))
        .map(|line| {
            let pair = line.split_once('=');
            let (name, value) = pair.with_context(|| format!("{line:?} is not NAME=VALUE"))?;
            Ok((name.trim().to_owned(), value.to_owned()))
        })
        .collect()
}

/// The request, whose archive is read while it is sent.
fn upload(deployment: &DeployRequest, archive: &Path) -> anyhow::Result<http::Request<Body>> {
    let mut boundary = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut boundary)?;
    let boundary = format!("opr-{:032x}", u128::from_ne_bytes(boundary));
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"function\"\r\n\
         content-type: application/json\r\n\r\n{}\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"source\"; filename=\"source.tar.gz\"\r\n\
         content-type: application/gzip\r\n\r\n",
        serde_json::to_string(deployment)?
    );
    let tail = format!("\r\n--{boundary}--\r\n");
    let file = tokio::fs::File::from_std(File::open(archive)?);
    let edge = |text: String| stream::iter([Ok::<_, std::io::Error>(Bytes::from(text))]);
    let body = edge(head).chain(ReaderStream::new(file)).chain(edge(tail));
    let frames = body.map(|chunk| chunk.map(Frame::data).map_err(BodyError::from));
    let mut request = request(
        Method::POST,
        "/v1/functions",
        StreamBody::new(frames).boxed_unsync(),
    );
    let kind = format!("multipart/form-data; boundary={boundary}");
    request
        .headers_mut()
        .insert(header::CONTENT_TYPE, kind.parse()?);
    Ok(request)
}

fn progress(session: &Session) -> ProgressBar {
    if !session.output.is_watched() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message("uploading");
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner
}

/// What happens, as it happens.
fn tell(session: &Session, progress: &ProgressBar, event: DeployEvent) {
    if session.output.is_json() {
        session.output.result(&event, |_| String::new());
        return;
    }
    match event {
        DeployEvent::Queued => progress.set_message("waiting for other builds"),
        DeployEvent::Started { build } => progress.set_message(format!("build {build} runs")),
        DeployEvent::Output { text } => progress.suspend(|| eprint!("{text}")),
        DeployEvent::Stored { size_bytes, .. } => {
            progress.set_message(format!("unpacking {}", megabytes(size_bytes)));
        }
        DeployEvent::Deployed { .. } | DeployEvent::Failed { .. } => {}
    }
}

fn show(session: &Session, function: &FunctionInfo, gateway: &str) {
    let event = DeployEvent::Deployed {
        function: function.clone(),
    };
    let gateway = gateway
        .replace("0.0.0.0", "127.0.0.1")
        .replace("[::]", "[::1]");
    session.output.result(&event, |_| {
        format!(
            "{} is served on http://{gateway}{}\n",
            function.name, function.path
        )
    });
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Args {
        Line::parse_from([&["deploy"], line].concat()).args
    }

    #[test]
    fn name_and_runtime_come_from_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("hello");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("index.js"), "").unwrap();
        let folder = folder.display().to_string();
        let request = deployment(&parse(&[&folder])).unwrap();
        assert_eq!(
            (request.name.as_str(), request.runtime.as_str()),
            ("hello", "node")
        );
        let request = deployment(&parse(&[&folder, "--name", "a", "--runtime", "python"])).unwrap();
        assert_eq!(
            (request.name.as_str(), request.runtime.as_str()),
            ("a", "python")
        );
    }

    #[test]
    fn variables_of_the_command_line_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\nA=file\n\nB=b=c\n").unwrap();
        let path = file.path().display().to_string();
        let read = variables(&parse(&["--env-file", &path, "-e", "A=line"])).unwrap();
        let expected = [("A", "line"), ("B", "b=c")];
        assert_eq!(read, expected.map(|(k, v)| (k.into(), v.into())).into());
        let error = variables(&parse(&["-e", "A"])).unwrap_err();
        assert_eq!(error.to_string(), "\"A\" is not NAME=VALUE");
    }
}

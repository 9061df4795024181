//! `opr invoke`: one request to a function, through the gateway.

use std::{io::Read, net::SocketAddr};

use anyhow::{Context, bail};
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::BodyExt;
use tokio::net::TcpStream;

use super::{
    Session,
    client::{Client, Missing, exchange, full},
    output::print,
};
use crate::{api::node::wire::FunctionInfo, id::FunctionName};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which.
    function: FunctionName,
    /// Path and query.
    #[arg(default_value = "/")]
    path: String,
    /// [default: GET, or POST where there are data]
    #[arg(long, short = 'X', value_name = "METHOD")]
    request: Option<Method>,
    /// A header; may be repeated.
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header_line)]
    header: Vec<(HeaderName, HeaderValue)>,
    /// The body: text, `@FILE`, or `-` for standard input.
    #[arg(long, short)]
    data: Option<String>,
    /// Show the answer's head as well, with the phases of the start.
    #[arg(long, short)]
    include: bool,
}

fn header_line(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    let name = name
        .trim()
        .parse()
        .map_err(|_| "that is no header's name")?;
    let value = value
        .trim()
        .parse()
        .map_err(|_| "that is no header's value")?;
    Ok((name, value))
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    // A function that does not exist has a code of its own.
    let path = format!("/v1/functions/{}", args.function);
    client.get::<FunctionInfo>(&path).await?;
    let info = client.node().await?;
    let request = request(&args, &info.gateway)?;
    let stream = TcpStream::connect(reachable(info.gateway.parse()?))
        .await
        .with_context(|| format!("cannot reach the gateway on {}", info.gateway))?;
    let answer = exchange(stream, request).await;
    let answer = answer.context("the gateway broke off")?;
    let status = answer.status();
    if args.include {
        let mut head = format!("HTTP/1.1 {status}\n");
        for (name, value) in answer.headers() {
            head += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        print((head + "\n").as_bytes());
    }
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the function's answer broke off")?;
        if let Ok(data) = frame.into_data() {
            print(&data);
        }
    }
    match status.as_u16() {
        404 if !args.include => Err(Missing(format!("{} answered {status}", args.function)).into()),
        400.. => bail!("{} answered {status}", args.function),
        _ => Ok(()),
    }
}

fn request(args: &Args, host: &str) -> anyhow::Result<Request<crate::executor::execution::Body>> {
    let body = match args.data.as_deref() {
        None => Vec::new(),
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            bytes
        }
        Some(data) => match data.strip_prefix('@') {
            Some(file) => std::fs::read(file).with_context(|| format!("cannot read {file}"))?,
            None => data.as_bytes().to_vec(),
        },
    };
    let default = if args.data.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let path = args.path.trim_start_matches('/');
    let mut request = Request::builder()
        .method(args.request.clone().unwrap_or(default))
        .uri(format!("/{}/{path}", args.function))
        .header(header::HOST, host)
        .body(full(body))
        .with_context(|| format!("{:?} is no path", args.path))?;
    for (name, value) in &args.header {
        request.headers_mut().insert(name, value.clone());
    }
    Ok(request)
}

/// An address to connect to, for one to listen on.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, v6.port()).into()
        }
        other => other,
    }
}

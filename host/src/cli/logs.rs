//! `opr logs`: what a function, or an instance of the executor API, wrote.

use http::Method;

use super::{
    Session,
    client::{Client, Lines, empty, request},
};
use crate::{api::node::wire::LogEntry, executor::journal::Stream, id::InstanceId};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A function, or an instance of the executor API.
    name: InstanceId,
    /// Go on with what is written from now on.
    #[arg(long, short)]
    follow: bool,
    /// Lines of what was written before.
    #[arg(long, short = 'n', default_value_t = 100)]
    lines: usize,
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    let follow = u8::from(args.follow);
    let path = format!(
        "/v1/functions/{}/logs?follow={follow}&lines={}",
        args.name, args.lines
    );
    let client = Client::new(&session.config);
    let answer = client.send(request(Method::GET, &path, empty())).await?;
    let mut lines = Lines::new(answer);
    while let Some(entry) = lines.next::<LogEntry>().await? {
        session.output.result(&entry, |entry| {
            let mark = match entry.stream {
                Stream::Log => "log",
                Stream::Error => "err",
                Stream::Output => "out",
                Stream::Host => "opr",
            };
            let time = entry.time.get(..19).unwrap_or(&entry.time);
            format!("{time}Z {mark} {}\n", entry.text)
        });
    }
    Ok(())
}

//! `opr functions` and `opr rm`.

use http::Method;

use super::{
    Session,
    client::{Client, Missing, empty, request},
    output::table,
};
use crate::{api::node::wire::FunctionInfo, id::FunctionName};

pub(super) async fn list(session: &Session) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    let functions: Vec<FunctionInfo> = client.get("/v1/functions").await?;
    session.output.result(&functions, |functions| {
        let row = |f: &FunctionInfo| {
            [
                f.name.to_string(),
                f.runtime.clone(),
                f.path.clone(),
                f.class.to_string(),
                format!("{} MB", f.memory_mb),
                format!("{} s", f.timeout_s),
                f.n_instances.to_string(),
            ]
        };
        let rows: Vec<_> = functions.iter().map(row).collect();
        let titles = [
            "FUNCTION",
            "RUNTIME",
            "PATH",
            "CLASS",
            "MEMORY",
            "TIMEOUT",
            "INSTANCES",
        ];
        table(titles, &rows)
    });
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(super) struct RmArgs {
    /// Their names.
    #[arg(required = true, value_name = "FUNCTION")]
    names: Vec<FunctionName>,
    /// Succeed where one does not exist.
    #[arg(long, short)]
    force: bool,
}

pub(super) async fn remove(session: &Session, args: RmArgs) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    let mut missing = None;
    for name in args.names {
        let path = format!("/v1/functions/{name}");
        match client.send(request(Method::DELETE, &path, empty())).await {
            Ok(_) => {
                let removed = serde_json::json!({ "removed": name });
                session.output.result(&removed, |_| format!("{name}\n"));
            }
            Err(error) if error.is::<Missing>() && args.force => {}
            // The others are removed all the same.
            Err(error) if error.is::<Missing>() => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    missing.map_or(Ok(()), Err)
}

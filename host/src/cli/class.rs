//! `opr class` and `opr reload`: the limits of classes while the node runs.

use anyhow::Context;
use clap::Subcommand;
use http::Method;
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::{
    Session,
    client::{Client, Missing, empty, full, request},
    output::table,
};
use crate::{
    api::node::wire::{ClassChange, ClassInfo},
    id::ClassName,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List classes: what was asked for, and what they use.
    Ls,
    /// Show a class: its settings, and what the kernel says.
    Show {
        /// Its name.
        name: ClassName,
    },
    /// Change a class at once, until the settings are read again.
    Try {
        /// Its name.
        name: ClassName,
        /// Keys and values as in opr.toml: cpu.weight=50 memory.max=2048.
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = change)]
        changes: Vec<(String, Value)>,
    },
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Ls => list(session).await,
        Command::Show { name } => show(session, &name).await,
        Command::Try { name, changes } => try_out(session, &name, changes).await,
    }
}

pub(super) async fn reload(session: &Session) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    let answer = client
        .send(request(Method::POST, "/v1/reload", empty()))
        .await?;
    let bytes = answer.into_body().collect().await?.to_bytes();
    let change: ClassChange =
        serde_json::from_slice(&bytes).context("the node's answer is not understood")?;
    session.output.result(&change, |change| {
        let mut text = "settings were read anew\n".to_owned();
        if !change.lacking.is_empty() {
            text += &format!("this kernel lacks {}\n", change.lacking.join(", "));
        }
        if !change.restart.is_empty() {
            text += &format!("from the next start on: {}\n", change.restart.join(", "));
        }
        text
    });
    Ok(())
}

async fn list(session: &Session) -> anyhow::Result<()> {
    let classes = classes(session).await?;
    session.output.result(&classes, |classes| {
        let rows: Vec<_> = classes.iter().map(row).collect();
        table(
            [
                "CLASS",
                "SANDBOXES",
                "CPU.WEIGHT",
                "CPU.MAX",
                "MEMORY",
                "MEMORY.MAX",
                "IO.WEIGHT",
                "PIDS.MAX",
            ],
            &rows,
        )
    });
    Ok(())
}

fn row(class: &ClassInfo) -> [String; 8] {
    let settings = &class.settings;
    let used = ["memory.current", "memory.usage_in_bytes"]
        .iter()
        .find_map(|name| class.kernel.get(*name));
    let used = used.and_then(|bytes| bytes.parse::<u64>().ok());
    let none = || "max".to_owned();
    [
        class.name.to_string(),
        class.n_sandboxes.to_string(),
        settings.cpu_weight.to_string(),
        settings
            .cpu_max
            .map_or_else(none, |cores| cores.get().to_string()),
        used.map_or_else(|| "-".into(), |bytes| format!("{} MiB", bytes >> 20)),
        settings
            .memory_max_mib
            .map_or_else(none, |mib| format!("{mib} MiB")),
        settings.io_weight.to_string(),
        settings.pids_max.to_string(),
    ]
}

async fn show(session: &Session, name: &ClassName) -> anyhow::Result<()> {
    let classes = classes(session).await?;
    let known: Vec<_> = classes.iter().map(|class| class.name.to_string()).collect();
    let missing = || {
        Missing(format!(
            "there is no class {name}; the settings have {}",
            known.join(", ")
        ))
    };
    let class = classes
        .iter()
        .find(|class| class.name == *name)
        .ok_or_else(missing)?;
    session.output.result(class, |class| {
        let settings = toml::to_string(&class.settings).unwrap_or_default();
        let kernel = class
            .kernel
            .iter()
            .map(|(file, value)| [file.clone(), value.clone()]);
        format!(
            "[class.{name}]\n{settings}\n{}",
            table(["FILE", "VALUE"], &kernel.collect::<Vec<_>>())
        )
    });
    Ok(())
}

async fn try_out(
    session: &Session,
    name: &ClassName,
    changes: Vec<(String, Value)>,
) -> anyhow::Result<()> {
    let lines: Vec<_> = changes
        .iter()
        .map(|(key, value)| format!("{key:?} = {value}"))
        .collect();
    let changes: Map<_, _> = changes.into_iter().collect();
    let body = full(serde_json::to_vec(&changes)?);
    let path = format!("/v1/classes/{name}");
    Client::new(&session.config)
        .send(request(Method::PATCH, &path, body))
        .await?;
    let file = session
        .file
        .as_ref()
        .map_or("/etc/opr/opr.toml".into(), |file| {
            file.display().to_string()
        });
    session.output.result(&changes, |_| {
        format!("until the settings are read again; to keep it, write into {file}.d/{name}.toml:\n\n[class.{name}]\n{}\n", lines.join("\n"))
    });
    Ok(())
}

async fn classes(session: &Session) -> anyhow::Result<Vec<ClassInfo>> {
    Client::new(&session.config).get("/v1/classes").await
}

/// A value is a number, a list or `true` where it reads as one, and text otherwise.
fn change(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("it must be KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.trim().to_owned(), value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_is_a_key_and_a_value() {
        assert_eq!(change("cpu.max=1.5"), Ok(("cpu.max".into(), json!(1.5))));
        assert_eq!(
            change("outbound=none"),
            Ok(("outbound".into(), json!("none")))
        );
        assert_eq!(
            change("io.max=[\"8:0 rbps=1\"]"),
            Ok(("io.max".into(), json!(["8:0 rbps=1"])))
        );
        assert!(change("cpu.max").is_err());
    }
}

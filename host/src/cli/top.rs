//! `opr top`: what instances use, again and again.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use super::{Session, client::Client, output::table};
use crate::api::node::wire::{AdmissionInfo, InstanceEntry};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds between two looks.
    #[arg(short, long, default_value_t = 1.0, value_parser = seconds)]
    delay: f64,
    /// How often to look [default: without end on a terminal, once elsewhere].
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
}

/// Moves to the first column of the first line, and clears what follows.
const REDRAW: &str = "\x1b[H\x1b[J";

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    let client = Client::new(&session.config);
    let is_watched = std::io::stdout().is_terminal() && !session.output.is_json();
    let count = args.count.unwrap_or(if is_watched { u64::MAX } else { 1 });
    let mut looks = Looks::default();
    // Shares are of the time between two looks.
    looks.take(client.get("/v1/instances").await?);
    for _ in 0..count {
        tokio::time::sleep(Duration::from_secs_f64(args.delay)).await;
        let rows = looks.take(client.get("/v1/instances").await?);
        if is_watched {
            print!("{REDRAW}");
            std::io::stdout().flush()?;
        }
        let admission: AdmissionInfo = client.get("/v1/admission").await?;
        session
            .output
            .result(&rows, |rows| render(rows) + &reserved(&admission));
    }
    Ok(())
}

/// An instance, and its share of the processors.
#[derive(Debug, serde::Serialize)]
struct Row {
    #[serde(flatten)]
    instance: InstanceEntry,
    /// Of one processor.
    cpu_percent: Option<f64>,
}

/// Processor time at the latest look.
#[derive(Debug, Default)]
struct Looks(HashMap<String, (Instant, f64)>);

impl Looks {
    /// The busiest first.
    fn take(&mut self, instances: Vec<InstanceEntry>) -> Vec<Row> {
        let now = Instant::now();
        let before = std::mem::take(&mut self.0);
        let row = |instance: InstanceEntry| {
            let used = instance.cpu_s;
            self.0
                .extend(used.map(|used| (instance.id.clone(), (now, used))));
            let before = before.get(&instance.id);
            let share = |(at, then): &(Instant, f64)| {
                Some((used? - then) / (now - *at).as_secs_f64() * 100.0)
            };
            let cpu_percent = before.and_then(share);
            Row {
                instance,
                cpu_percent,
            }
        };
        let mut rows: Vec<_> = instances.into_iter().map(row).collect();
        rows.sort_by(|a, b| {
            let busier = b
                .cpu_percent
                .unwrap_or(0.0)
                .total_cmp(&a.cpu_percent.unwrap_or(0.0));
            busier.then_with(|| a.instance.id.cmp(&b.instance.id))
        });
        rows
    }
}

fn render(rows: &[Row]) -> String {
    let none = || "-".to_owned();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let cells = |row: &Row| {
        let instance = &row.instance;
        // Who made an instance start is its one cold execution.
        let cold = instance.n_executions_total.min(1);
        [
            instance.id.clone(),
            instance
                .function
                .as_ref()
                .map_or_else(none, ToString::to_string),
            instance.class.to_string(),
            row.cpu_percent
                .map_or_else(none, |share| format!("{share:.1}")),
            instance.memory_bytes.map_or_else(none, mib),
            instance.memory_max_bytes.map_or_else(none, mib),
            instance
                .memory_pressure
                .map_or_else(none, |share| format!("{share:.2}")),
            instance.n_executions.to_string(),
            cold.to_string(),
            (instance.n_executions_total - cold).to_string(),
            instance
                .start_ms
                .map_or_else(none, |took| format!("{took} ms")),
            instance.state.clone(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let titles = [
        "INSTANCE",
        "FUNCTION",
        "CLASS",
        "CPU%",
        "MEMORY",
        "LIMIT",
        "PRESSURE%",
        "NOW",
        "COLD",
        "WARM",
        "START",
        "STATE",
    ];
    table(titles, &rows)
}

/// What is reserved of the node's memory, where that is limited.
fn reserved(admission: &AdmissionInfo) -> String {
    let (reserved, n) = (admission.memory_reserved_bytes, admission.n_waiting);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let Some(budget) = admission.memory_budget_bytes else {
        return match n {
            0 => String::new(),
            n => format!("{n} instances wait\n"),
        };
    };
    let (reserved, budget) = (mib(reserved), mib(budget));
    format!("{reserved} of {budget} MiB are reserved, {n} instances wait\n")
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text
        .parse::<f64>()
        .ok()
        .filter(|number| (0.1..=3600.0).contains(number));
    number.ok_or_else(|| "it must be from 0.1 to 3600".into())
}

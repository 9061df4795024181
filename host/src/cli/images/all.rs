//! `opr images build --all`: the images of all runtimes in a catalogue. Those that are of the same files already stay.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use opr_images::{Image, Images, LayerState, Progress, build::Builder};
use serde::Serialize;

use super::{
    Session,
    build::{Args, CATALOG, cache_dir, of_runtime},
    connect,
};
use crate::{
    cli::output::{Output, megabytes, table},
    function::{Catalog, Runtime},
};

/// Where runtimes are, as in a checkout.
const FOLDER: &str = "runtimes";

/// What became of one image.
#[derive(Debug, Serialize)]
struct Outcome {
    runtime: String,
    image: String,
    state: State,
    digest: Option<String>,
    size_bytes: Option<u64>,
    seconds: f64,
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Built,
    /// It was there, of the same files.
    Unchanged,
    Failed,
}

pub(super) async fn run(session: &Session, args: Args) -> anyhow::Result<()> {
    let folder = args.folder.unwrap_or_else(|| PathBuf::from(FOLDER));
    let catalog = folder.join(CATALOG).canonicalize();
    let catalog = catalog.with_context(|| format!("{} has no {CATALOG}", folder.display()))?;
    let runtimes = Catalog::load(Some(&catalog))?.list().to_vec();
    let work = Work {
        images: connect(session).await?,
        builder: Builder::find(&cache_dir()?).await?,
        catalog: &catalog,
        build_args: &args.build_arg,
        display: Display::new(session.output, runtimes.len()),
    };
    let jobs = args.jobs.map_or_else(half_of_the_processors, NonZero::get);
    let outcomes = stream::iter(&runtimes)
        .map(|runtime| work.one(runtime))
        .buffer_unordered(jobs);
    let mut outcomes: Vec<_> = outcomes.collect().await;
    work.display.bars.clear()?;
    // As the catalogue has them, whichever was ready first.
    let place = |outcome: &Outcome| runtimes.iter().position(|r| r.name == outcome.runtime);
    outcomes.sort_by_key(place);
    if !session.output.is_json() {
        session
            .output
            .result(&outcomes, |outcomes| summary(outcomes));
    }
    let failed = outcomes
        .iter()
        .filter(|outcome| outcome.state == State::Failed);
    let failed: Vec<_> = failed.map(|outcome| outcome.runtime.as_str()).collect();
    if !failed.is_empty() {
        let n = outcomes.len();
        bail!(
            "{} of {n} images were not built: {}",
            failed.len(),
            failed.join(", ")
        );
    }
    Ok(())
}

/// The others are for what runs meanwhile.
fn half_of_the_processors() -> usize {
    let processors = std::thread::available_parallelism();
    processors.map_or(1, |n| n.get().div_ceil(2))
}

/// What all builds share.
struct Work<'a> {
    images: Images,
    builder: Builder,
    catalog: &'a Path,
    build_args: &'a [String],
    display: Display,
}

impl Work<'_> {
    /// Fails with nobody else.
    async fn one(&self, runtime: &Arc<Runtime>) -> Outcome {
        let began = Instant::now();
        let line = self.display.line(&runtime.name);
        let done = self.ensure(runtime, &line).await;
        let taken = began.elapsed();
        let (state, image, error) = match done {
            Ok((state, image)) => (state, Some(image), None),
            Err(error) => (State::Failed, None, Some(format!("{error:#}"))),
        };
        let outcome = Outcome {
            runtime: runtime.name.clone(),
            image: runtime.image.to_string(),
            state,
            size_bytes: image.as_ref().map(|image| image.size_bytes),
            digest: image.map(|image| image.digest),
            seconds: (taken.as_secs_f64() * 1e3).round() / 1e3,
            error,
        };
        self.display.finished(&line, &outcome);
        outcome
    }

    async fn ensure(&self, runtime: &Runtime, line: &Line) -> anyhow::Result<(State, Image)> {
        let context = of_runtime(self.catalog, runtime, self.build_args)?;
        if let Some(image) = self.images.built(&context).await? {
            return Ok((State::Unchanged, image));
        }
        let image = self.images.build(&self.builder, &context, line).await?;
        Ok((State::Built, image))
    }
}

fn summary(outcomes: &[Outcome]) -> String {
    let row = |outcome: &Outcome| {
        let state = match outcome.state {
            State::Built => "built",
            State::Unchanged => "unchanged",
            State::Failed => "FAILED",
        };
        let size = outcome.size_bytes.map_or_else(|| "-".to_owned(), megabytes);
        let time = match outcome.state {
            State::Unchanged => "-".to_owned(),
            State::Built | State::Failed => format!("{:.0} s", outcome.seconds),
        };
        [
            outcome.runtime.clone(),
            state.to_owned(),
            size,
            time,
            outcome.image.clone(),
        ]
    };
    let rows: Vec<_> = outcomes.iter().map(row).collect();
    table(["RUNTIME", "STATE", "SIZE", "TIME", "IMAGE"], &rows)
}

/// A line for each build that goes on, below what has been told, and how many are done.
struct Display {
    output: Output,
    bars: MultiProgress,
    total: ProgressBar,
}

impl Display {
    fn new(output: Output, n_images: usize) -> Self {
        let bars = MultiProgress::new();
        if !output.is_watched() {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        let total = bars.add(ProgressBar::new(n_images as u64));
        total.set_style(style("{pos} of {len} images {bar:32} {elapsed}"));
        total.enable_steady_tick(Duration::from_secs(1));
        Self {
            output,
            bars,
            total,
        }
    }

    fn line(&self, runtime: &str) -> Line {
        let bar = self
            .bars
            .insert_before(&self.total, ProgressBar::new_spinner());
        bar.set_style(style("{spinner} {prefix:12} {elapsed:>4} {wide_msg}"));
        bar.set_prefix(runtime.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Line {
            bar,
            output: self.output,
        }
    }

    fn finished(&self, line: &Line, outcome: &Outcome) {
        line.bar.finish_and_clear();
        self.total.inc(1);
        if self.output.is_json() {
            self.output.result(outcome, |_| String::new());
            return;
        }
        let name = &outcome.runtime;
        let text = match (&outcome.error, outcome.state) {
            (Some(error), _) => format!("{name}: failed: {error}"),
            (None, State::Unchanged) => format!("{name}: unchanged"),
            (None, _) => format!("{name}: built in {:.0} s", outcome.seconds),
        };
        self.bars.suspend(|| self.output.note(&text));
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.expect("a constant that is valid")
}

/// One build's lines: the latest where somebody looks on, all of them in a log.
struct Line {
    bar: ProgressBar,
    output: Output,
}

impl Progress for Line {
    fn layer(&self, _digest: &str, state: LayerState) {
        match state {
            LayerState::Waiting | LayerState::Downloading { .. } | LayerState::Done => {}
            LayerState::Unpacking => self.bar.set_message("unpacking"),
        }
    }

    fn line(&self, text: &str) {
        if self.output.is_watched() {
            self.bar.set_message(text.to_owned());
        } else {
            self.output.note(&format!("{}: {text}", self.bar.prefix()));
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_summary_says_what_became_of_each() {
        let outcome = |runtime: &str, state, size_bytes| Outcome {
            runtime: runtime.into(),
            image: format!("docker.io/openruntimes/{runtime}"),
            state,
            digest: None,
            size_bytes,
            seconds: 61.4,
            error: None,
        };
        let outcomes = [
            outcome("node-22", State::Built, Some(159_000_000)),
            outcome("go-1.24", State::Unchanged, Some(90_000_000)),
            outcome("c", State::Failed, None),
        ];
        expect![[r#"
            RUNTIME  STATE      SIZE      TIME  IMAGE
            node-22  built      159.0 MB  61 s  docker.io/openruntimes/node-22
            go-1.24  unchanged  90.0 MB   -     docker.io/openruntimes/go-1.24
            c        FAILED     -         61 s  docker.io/openruntimes/c
        "#]]
        .assert_eq(&summary(&outcomes));
    }
}

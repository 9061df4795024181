//! Making an instance, and what is told of one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

use super::{
    cold::{Cold, given_text, idle, instance_id, keep_alive, no_nul, restart_policy, version},
    error::ApiError,
    params::{Params, boolean, float_loose, int, object, text},
};
use crate::{
    build::client::{Order, Outcome},
    config::Config,
    executor::{
        instance::{InstanceInfo, InstanceSpec},
        transcript::Part,
    },
    id::{CacheKey, ClassName},
};

/// Times in what a build wrote, as in `2026-11-26T02:13:38.123+00:00`.
const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]+00:00");

/// A read call.
#[derive(Debug)]
pub(super) struct Create {
    pub(super) spec: InstanceSpec,
    /// What is built in it.
    pub(super) order: Option<Order>,
    /// Whether the instance is deleted again when the call ends.
    pub(super) is_removed: bool,
}

impl Create {
    pub(super) fn read(params: &mut Params, config: &Config) -> Result<Self, ApiError> {
        let id = params.required("runtimeId", text(64, 1))?;
        let mut cold = Cold {
            image: Some(params.required("image", text(128, 1))?),
            entrypoint: params
                .optional("entrypoint", text(256, 0))?
                .unwrap_or_default(),
            source: given_text(params, "source", text(0, 0))?,
            ..Cold::default()
        };
        let destination = given_text(params, "destination", text(0, 0))?;
        let output_directory = given_text(params, "outputDirectory", text(0, 0))?;
        cold.variables = params.optional("variables", object)?.unwrap_or_default();
        cold.runtime_entrypoint = given_text(params, "runtimeEntrypoint", text(1024, 0))?;
        let command = given_text(params, "command", text(1024, 0))?;
        let cache_key = params
            .optional("cacheKey", text(128, 0))?
            .unwrap_or_default();
        let timeout = params.optional("timeout", int)?;
        let is_removed = params.optional("remove", boolean)?.unwrap_or(false);
        cold.cpus = params.optional("cpus", float_loose)?.unwrap_or(1.0);
        cold.memory = params.optional("memory", int)?.unwrap_or(512);
        cold.protocol = version(params, config)?;
        cold.restart = restart_policy(params)?;
        cold.keep_alive = keep_alive(params)?;

        let cache_key = read_cache_key(cache_key)?;
        let mut own = vec![("CI", "true")];
        if let Some(directory) = &output_directory {
            own.push((
                "OPEN_RUNTIMES_OUTPUT_DIRECTORY",
                no_nul("outputDirectory", directory)?,
            ));
        }
        if let Some(command) = &command {
            no_nul("command", command)?;
        }
        let mut spec = cold.spec(instance_id(&id)?, &own)?;
        let is_build = command.is_some() || destination.is_some();
        if is_build {
            spec.class = ClassName::try_new("build").expect("a constant that is a name");
        }
        if command.is_some() {
            // Also where the image has a server of its own.
            spec.command.get_or_insert_with(idle);
        }
        let order = is_build.then(|| Order {
            protocol: spec.protocol,
            command,
            timeout: seconds(timeout),
            destination,
            cache_key,
        });
        Ok(Self {
            spec,
            order,
            is_removed,
        })
    }
}

/// A limit in seconds, 600 where none is given; 0 or less is no limit.
pub(super) fn seconds(timeout: Option<i32>) -> Option<Duration> {
    let seconds = u64::try_from(timeout.unwrap_or(600)).unwrap_or(0);
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// What a creation answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Created {
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    output: Vec<Element>,
    start_time: f64,
    duration: f64,
}

/// A part of what a build wrote.
#[derive(Debug, Serialize)]
struct Element {
    timestamp: String,
    content: String,
}

impl Created {
    pub(super) fn new(began: SystemTime, took: Duration, outcome: Option<&Outcome>) -> Self {
        let artifact = outcome.and_then(|outcome| outcome.artifact.as_ref());
        let output = outcome.map_or(&[][..], |outcome| &outcome.output);
        let element = |part: &Part| Element {
            timestamp: timestamp(part.at),
            content: part.content.clone(),
        };
        Self {
            size: artifact.map(|artifact| artifact.size_bytes),
            path: artifact.map(|artifact| artifact.path.clone()),
            output: output.iter().map(element).collect(),
            start_time: unix_seconds(began),
            duration: took.as_secs_f64(),
        }
    }
}

/// A time as in what a build wrote, in milliseconds of UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.format(TIMESTAMP)
        .expect("the format has all that it needs")
}

/// An instance as list and get tell it.
#[derive(Debug, Serialize)]
pub(super) struct Runtime {
    version: String,
    created: f64,
    updated: f64,
    name: String,
    hostname: String,
    status: String,
    key: String,
    listening: u8,
    image: String,
    initialised: u8,
}

impl Runtime {
    pub(super) fn new(info: InstanceInfo, config: &Config) -> Self {
        Self {
            version: info.protocol.to_string(),
            created: unix_seconds(info.created),
            updated: unix_seconds(info.updated),
            name: format!("{}-{}", config.hostname, info.id),
            hostname: info.hostname,
            status: status(info.start_duration),
            key: if config.executor.show_keys {
                info.key
            } else {
                String::new()
            },
            listening: info.is_listening.into(),
            image: short(&info.image).to_owned(),
            initialised: info.start_duration.is_some().into(),
        }
    }
}

/// An image as clients name it: without the registry that is meant where none is named.
fn short(image: &str) -> &str {
    let name = image.strip_prefix("docker.io/").unwrap_or(image);
    name.strip_prefix("library/").unwrap_or(name)
}

/// Seconds since 1970.
pub(super) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

fn status(start_duration: Option<Duration>) -> String {
    match start_duration {
        None => "pending".into(),
        Some(took) => format!("Up {}s", (took.as_secs_f64() * 100.0).round() / 100.0),
    }
}

fn read_cache_key(key: String) -> Result<Option<CacheKey>, ApiError> {
    let wrong = |_| {
        ApiError::bad_request(
            "Cache key must start with a letter or number and may only contain letters, numbers, dots, underscores, and hyphens.",
        )
    };
    if key.is_empty() {
        return Ok(None);
    }
    CacheKey::try_new(key).map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_how_long_the_start_took() {
        assert_eq!(status(None), "pending");
        assert_eq!(status(Some(Duration::from_millis(1234))), "Up 1.23s");
        assert_eq!(status(Some(Duration::from_secs(2))), "Up 2s");
    }

    #[test]
    fn times_are_told_with_a_fraction() {
        let created = Created::new(
            UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            Duration::ZERO,
            None,
        );
        let text = serde_json::to_string(&created).unwrap();
        assert_eq!(
            text,
            r#"{"output":[],"startTime":1700000000.0,"duration":0.0}"#
        );
    }

    #[test]
    fn a_build_tells_its_artifact_and_what_it_wrote() {
        let outcome = Outcome {
            artifact: Some(crate::build::client::Artifact {
                path: "/builds/0123456789abc.gz".into(),
                size_bytes: 5,
            }),
            output: vec![Part {
                at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_007),
                content: "one\r\n".into(),
            }],
        };
        let created = Created::new(UNIX_EPOCH, Duration::from_millis(1500), Some(&outcome));
        assert_eq!(
            serde_json::to_string(&created).unwrap(),
            r#"{"size":5,"path":"/builds/0123456789abc.gz","output":[{"timestamp":"2023-11-14T22:13:20.007+00:00","content":"one\r\n"}],"startTime":0.0,"duration":1.5}"#
        );
    }

    #[test]
    fn a_limit_of_no_time_is_none() {
        assert_eq!(seconds(None), Some(Duration::from_secs(600)));
        assert_eq!(seconds(Some(7)), Some(Duration::from_secs(7)));
        assert_eq!(seconds(Some(0)), None);
        assert_eq!(seconds(Some(-1)), None);
    }

    #[test]
    fn c99_cache_keys_are_plain_names() {
        #[track_caller]
        fn check(key: &str, expected: bool) {
            let key = key.to_owned();
            assert_eq!(read_cache_key(key.clone()).is_ok(), expected, "{key:?}");
        }
        check("", true);
        check("a.B_1-", true);
        check("0", true);
        check("..", false);
        check("a/b", false);
    }
}

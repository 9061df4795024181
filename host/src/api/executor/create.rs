//! Making an instance, and what is told of one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde::Serialize;

use super::{
    cold::{Cold, given_text, instance_id, keep_alive, restart_policy, version},
    error::ApiError,
    params::{Params, boolean, float_loose, int, object, text},
};
use crate::{
    config::Config,
    executor::instance::{InstanceInfo, InstanceSpec},
};

/// A read call.
#[derive(Debug)]
pub(super) struct Create {
    pub(super) spec: InstanceSpec,
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
        let _build_timeout = params.optional("timeout", int)?;
        let is_removed = params.optional("remove", boolean)?.unwrap_or(false);
        cold.cpus = params.optional("cpus", float_loose)?.unwrap_or(1.0);
        cold.memory = params.optional("memory", int)?.unwrap_or(512);
        cold.protocol = version(params, config)?;
        cold.restart = restart_policy(params)?;
        cold.keep_alive = keep_alive(params)?;

        check_cache_key(&cache_key)?;
        if command.is_some() || destination.is_some() {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "runtime_failed",
                "This node does not build yet: create the runtime without `command` and `destination`.",
            ));
        }
        let mut own = vec![("CI", "true")];
        if let Some(directory) = &output_directory {
            own.push(("OPEN_RUNTIMES_OUTPUT_DIRECTORY", directory));
        }
        Ok(Self {
            spec: cold.spec(instance_id(&id)?, &own)?,
            is_removed,
        })
    }
}

/// What a creation answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Created {
    output: [(); 0],
    start_time: f64,
    duration: f64,
}

impl Created {
    pub(super) fn new(began: SystemTime, took: Duration) -> Self {
        Self {
            output: [],
            start_time: unix_seconds(began),
            duration: took.as_secs_f64(),
        }
    }
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

fn check_cache_key(key: &str) -> Result<(), ApiError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if key.is_empty() || key.bytes().all(is_plain) && key.as_bytes()[0].is_ascii_alphanumeric() {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "Cache key must start with a letter or number and may only contain letters, numbers, dots, underscores, and hyphens.",
    ))
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
        );
        let text = serde_json::to_string(&created).unwrap();
        assert_eq!(
            text,
            r#"{"output":[],"startTime":1700000000.0,"duration":0.0}"#
        );
    }

    #[test]
    fn cache_keys_are_plain_names() {
        #[track_caller]
        fn check(key: &str, expected: bool) {
            assert_eq!(check_cache_key(key).is_ok(), expected, "{key:?}");
        }
        check("", true);
        check("a.B_1-", true);
        check("0", true);
        check("..", false);
        check("a/b", false);
    }
}

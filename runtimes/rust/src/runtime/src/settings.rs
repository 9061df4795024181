//! What the server is told by its environment, read once at start. The paths and the port are the protocol's own.

use std::{
    collections::HashMap,
    env,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};

pub struct Settings {
    pub(crate) port: u16,
    pub(crate) logs_dir: PathBuf,
    pub(crate) timings_file: PathBuf,
    /// When the start lifecycle began, where it told.
    pub(crate) startup_began: Option<SystemTime>,
    pub(crate) secret: String,
    /// The caller's credential with that secret, which is not the function's to see.
    pub(crate) own_credential: String,
    pub(crate) is_development: bool,
    pub(crate) enforced_headers: HashMap<String, String>,
}

impl Settings {
    pub fn from_environment() -> Self {
        let variable = |name: &str| {
            let value = env::var_os(name).unwrap_or_default();
            value.to_string_lossy().into_owned()
        };
        let secret = variable("OPEN_RUNTIMES_SECRET");
        let began = variable("OPEN_RUNTIMES_STARTUP_BEGAN").parse().ok();
        let began = began.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Self {
            port: 3000,
            logs_dir: "/mnt/logs".into(),
            timings_file: "/mnt/telemetry/timings.txt".into(),
            startup_began: began.and_then(|began| SystemTime::UNIX_EPOCH.checked_add(began)),
            own_credential: format!("Basic {}", base64(format!("opr:{secret}").as_bytes())),
            secret,
            is_development: variable("OPEN_RUNTIMES_ENV") == "development",
            enforced_headers: parse_enforced_headers(&variable("OPEN_RUNTIMES_HEADERS")),
        }
    }
}

/// Lower-cased names with text values; anything that is no JSON object means none.
fn parse_enforced_headers(text: &str) -> HashMap<String, String> {
    let parsed: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let headers = parsed.into_iter();
    headers
        .map(|(name, value)| (name.to_lowercase(), text(value)))
        .collect()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index)) as usize & 63];
            text.push(if index > group.len() {
                '='
            } else {
                digit.into()
            });
        }
    }
    text
}

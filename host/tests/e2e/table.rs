//! The tables in `runtimes/test`, whose fields `README.md` explains there, against one server.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    direct::{Request, Server},
    node::Answer,
};

#[derive(Debug, Deserialize)]
struct Table {
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Check {
    pub(crate) id: String,
    #[serde(default = "main_server")]
    pub(crate) server: String,
    #[serde(default)]
    only: Vec<String>,
    request: Wanted,
    expect: Expected,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Wanted {
    method: Option<String>,
    path: Option<String>,
    headers: Map<String, Value>,
    body: String,
    body_hex: Option<String>,
    body_size: usize,
    chunked: bool,
    /// Another text than the server's; null is none.
    #[serde(deserialize_with = "given")]
    secret: Option<Option<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Expected {
    status: Vec<u16>,
    body: Option<String>,
    body_hex: Option<String>,
    body_hex_prefix: Option<String>,
    json: Option<Value>,
    body_contains: Vec<String>,
    body_lacks: Vec<String>,
    json_contains: Map<String, Value>,
    body_is_md5_of_request: bool,
    headers: Map<String, Value>,
    header_contains: Map<String, Value>,
    log_id: Option<String>,
    logs: Option<Log>,
    errors: Option<Log>,
    no_files: bool,
    max_seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Log {
    contains: Vec<String>,
    contains_any_case: Vec<String>,
    lacks: Vec<String>,
    equals: Option<String>,
    min_lines: usize,
    empty: bool,
}

fn main_server() -> String {
    "main".into()
}

fn given<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// The checks of a table that hold for a language.
pub(crate) fn checks(table: &str, language: &str) -> Result<Vec<Check>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../runtimes/test")
        .join(table);
    let table: Table = serde_json::from_slice(&std::fs::read(path)?)?;
    let holds = |check: &Check| check.only.is_empty() || check.only.iter().any(|l| l == language);
    Ok(table.checks.into_iter().filter(holds).collect())
}

impl Check {
    /// What is wrong, a line each; `entrypoint` is the function's file and `secret` the server's.
    pub(crate) fn run(
        &self,
        server: &Server,
        secret: &str,
        entrypoint: &str,
    ) -> Result<Vec<String>> {
        server.clear_logs()?;
        let body = self.request.bytes()?;
        let request = Request {
            method: self.request.method.as_deref().unwrap_or("POST"),
            path: self.request.path.as_deref().unwrap_or("/"),
            headers: self.request.headers(secret),
            body: &body,
            is_chunked: self.request.chunked,
        };
        let began = Instant::now();
        let answer = server.send(&request)?;
        let mut wrong = Wrong(Vec::new());
        let limit = self.expect.max_seconds.map(Duration::from_secs_f64);
        wrong.unless(
            limit.is_none_or(|limit| began.elapsed() < limit),
            "it is late",
        );
        self.expect.compare_answer(&answer, &body, &mut wrong);
        self.compare_log_id(&answer, &mut wrong);
        let id = answer
            .header("x-open-runtimes-log-id")
            .filter(|id| !id.is_empty());
        let id = id.unwrap_or("dev");
        let stem = entrypoint
            .rsplit_once('.')
            .map_or(entrypoint, |(stem, _)| stem);
        for (log, stream) in [(&self.expect.logs, "logs"), (&self.expect.errors, "errors")] {
            if let Some(log) = log {
                log.compare(
                    &server.read_log(&format!("{id}_{stream}.log")),
                    stem,
                    &mut wrong,
                );
            }
        }
        let files = server.log_files();
        wrong.unless(
            !self.expect.no_files || files.is_empty(),
            &format!("there are {files:?}"),
        );
        Ok(wrong.0)
    }

    fn compare_log_id(&self, answer: &Answer, wrong: &mut Wrong) {
        let id = answer.header("x-open-runtimes-log-id").unwrap_or_default();
        let asked = self.request.headers.get("x-open-runtimes-log-id");
        let is_right = match self.expect.log_id.as_deref() {
            None => true,
            Some("generated") => id.len() == 20 && asked.and_then(Value::as_str) != Some(id),
            Some(expected) => id == expected,
        };
        wrong.unless(is_right, &format!("the log id is {id:?}"));
    }
}

impl Wanted {
    fn bytes(&self) -> Result<Vec<u8>> {
        if self.body_size > 0 {
            return Ok(vec![b'a'; self.body_size]);
        }
        let Some(hex) = &self.body_hex else {
            return Ok(self.body.clone().into_bytes());
        };
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16);
        Ok((0..hex.len())
            .step_by(2)
            .map(byte)
            .collect::<Result<_, _>>()?)
    }

    fn headers(&self, server_secret: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let given = self
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), text(value)));
        let mut headers: Vec<_> = given.collect();
        let secret = match &self.secret {
            Some(secret) => secret.clone().unwrap_or_default(),
            None => server_secret.to_owned(),
        };
        let mut add = |name: &str, value: String| {
            if !headers
                .iter()
                .any(|(given, _)| given.eq_ignore_ascii_case(name))
            {
                headers.push((name.to_owned(), value));
            }
        };
        add("content-type", "text/plain".into());
        if !secret.is_empty() {
            let credential = BASE64_STANDARD.encode(format!("opr:{secret}"));
            add("authorization", format!("Basic {credential}"));
            add("x-open-runtimes-secret", secret);
        }
        headers
    }
}

impl Expected {
    fn compare_answer(&self, answer: &Answer, sent: &[u8], wrong: &mut Wrong) {
        let text = answer.text();
        let shown: String = text.chars().take(300).collect();
        let hex: String = answer
            .body
            .iter()
            .take(1000)
            .map(|b| format!("{b:02x}"))
            .collect();
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let is_right = [
            self.status.contains(&answer.status),
            self.body.as_ref().is_none_or(|body| text == *body),
            self.body_hex.as_ref().is_none_or(|body| hex == *body),
            self.body_hex_prefix
                .as_ref()
                .is_none_or(|prefix| hex.starts_with(prefix)),
            self.json.as_ref().is_none_or(|expected| json == *expected),
            self.body_contains.iter().all(|part| text.contains(part)),
            !self.body_lacks.iter().any(|part| text.contains(part)),
            self.json_contains
                .iter()
                .all(|(key, value)| json[key] == *value),
            !self.body_is_md5_of_request || text == md5(sent),
        ];
        let is_right = is_right.into_iter().all(|is_right| is_right);
        wrong.unless(
            is_right,
            &format!("the answer is {} {shown:?}", answer.status),
        );
        for (name, value) in &self.headers {
            let values: Vec<_> = answer.headers.iter().filter(|(n, _)| n == name).collect();
            let values: Vec<_> = values
                .iter()
                .map(|(_, v)| Value::from(v.as_str()))
                .collect();
            let expected = match value {
                Value::Null => vec![],
                Value::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            wrong.unless(values == expected, &format!("{name} is {values:?}"));
        }
        for (name, part) in &self.header_contains {
            let value = answer.header(name).unwrap_or_default();
            let has_part = value.contains(part.as_str().unwrap_or_default());
            wrong.unless(has_part, &format!("{name} is {value:?}"));
        }
    }
}

impl Log {
    fn compare(&self, text: &str, entrypoint: &str, wrong: &mut Wrong) {
        let contains = |part: &String| text.contains(&part.replace("{entrypoint}", entrypoint));
        let lower = text.to_lowercase();
        let is_right = self.contains.iter().all(contains)
            && self
                .contains_any_case
                .iter()
                .all(|part| lower.contains(&part.to_lowercase()))
            && !self.lacks.iter().any(|part| text.contains(part))
            && self.equals.as_ref().is_none_or(|expected| text == expected)
            && text.split('\n').count() >= self.min_lines
            && (!self.empty || text.is_empty());
        let shown: String = text.chars().take(600).collect();
        wrong.unless(is_right, &format!("a log is {shown:?}"));
    }
}

/// What is wrong.
struct Wrong(Vec<String>);

impl Wrong {
    fn unless(&mut self, is_right: bool, what: &str) {
        if !is_right {
            self.0.push(what.to_owned());
        }
    }
}

/// The machine's own `md5sum`: nothing else in the project needs this digest.
fn md5(bytes: &[u8]) -> String {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };
    let (input, output) = (Stdio::piped(), Stdio::piped());
    let mut sum = Command::new("md5sum")
        .stdin(input)
        .stdout(output)
        .spawn()
        .unwrap();
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = sum.wait_with_output().unwrap().stdout;
    String::from_utf8_lossy(&output[..32]).into_owned()
}

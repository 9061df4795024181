//! An execution's result on the wire: JSON or multipart, as the client asked.
//!
//! ```text
//! {"statusCode":200,"headers":{"x-key":"a"},"body":"…","logs":"","errors":"","duration":0.012,"startTime":1700000000.5}
//! ```

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{error::ApiError, value::escaped};
use crate::{api::reply::whole, executor::execution::Body};

mod format;

pub(super) use format::Format;

const PLAIN_JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: &str = "Execution resulted in binary response, but JSON response does not allow binaries. Use \"Accept: multipart/form-data\" header to support binaries.";

/// What became of an execution.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) logs: Vec<u8>,
    pub(super) errors: Vec<u8>,
    /// Seconds.
    pub(super) duration: f64,
    /// Seconds since 1970.
    pub(super) start_time: f64,
}

impl Outcome {
    /// The answer in the format that was asked for. `random` makes the boundary, which no content can foresee.
    pub(super) fn response(&self, format: Format, random: u64) -> Result<Response<Body>, ApiError> {
        if format.is_json {
            return self.as_json(format);
        }
        let boundary = format!("{:->29}{:013x}", "", random >> 12);
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let content_type = HeaderValue::try_from(content_type).expect("hyphens and digits");
        Ok(whole(
            StatusCode::OK,
            content_type,
            self.multipart(format, &boundary),
        ))
    }

    fn as_json(&self, format: Format) -> Result<Response<Body>, ApiError> {
        let binary = |_| ApiError::new(StatusCode::BAD_REQUEST, "execution_bad_json", BINARY);
        let result = JsonOutcome {
            status: self.status,
            headers: headers(&self.headers, format, |value| {
                std::str::from_utf8(value).map(Cow::Borrowed)
            })
            .map_err(binary)?,
            body: std::str::from_utf8(&self.body).map_err(binary)?,
            logs: std::str::from_utf8(&self.logs).map_err(binary)?,
            errors: std::str::from_utf8(&self.errors).map_err(binary)?,
            duration: self.duration,
            start_time: self.start_time,
        };
        let body = serde_json::to_vec(&result).expect("wire types are JSON");
        Ok(whole(StatusCode::OK, PLAIN_JSON, body))
    }

    fn multipart(&self, format: Format, boundary: &str) -> Vec<u8> {
        let lossy = |value| Ok::<_, std::convert::Infallible>(String::from_utf8_lossy(value));
        let Ok(headers) = headers(&self.headers, format, lossy);
        let parts: [(&str, Cow<'_, [u8]>); 7] = [
            ("statusCode", Cow::Owned(self.status.to_string().into())),
            ("headers", Cow::Owned(escaped(&headers).into())),
            ("body", Cow::Borrowed(&self.body)),
            ("logs", Cow::Borrowed(&self.logs)),
            ("errors", Cow::Borrowed(&self.errors)),
            ("duration", Cow::Owned(decimal(self.duration).into())),
            ("startTime", Cow::Owned(decimal(self.start_time).into())),
        ];
        let content: usize = parts.iter().map(|(_, value)| value.len() + 160).sum();
        let mut body = Vec::with_capacity(content);
        for (name, value) in parts {
            let kind = match name {
                "headers" => "Content-Type: application/json\r\n",
                _ => "",
            };
            let head = format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n{kind}\r\n"
            );
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(&value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        body
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutcome<'a> {
    #[serde(rename = "statusCode")]
    status: u16,
    headers: Value,
    body: &'a str,
    logs: &'a str,
    errors: &'a str,
    duration: f64,
    start_time: f64,
}

/// Names to values; a name that came more than once to a list, or its last value in older formats; `[]` where empty.
fn headers<'a, E>(
    headers: &'a HeaderMap,
    format: Format,
    text: impl Fn(&'a [u8]) -> Result<Cow<'a, str>, E>,
) -> Result<Value, E> {
    let mut map = Map::new();
    for name in headers.keys() {
        if name.as_str().starts_with("x-open-runtimes-") {
            continue;
        }
        let mut values = Vec::new();
        for value in headers.get_all(name) {
            values.push(Value::from(text(value.as_bytes().trim_ascii())?));
        }
        let is_list = values.len() > 1 && format.keeps_lists;
        let value = if is_list {
            Value::Array(values)
        } else {
            values.pop().unwrap_or_default()
        };
        map.insert(name.as_str().to_owned(), value);
    }
    Ok(if map.is_empty() {
        Value::Array(Vec::new())
    } else {
        Value::Object(map)
    })
}

/// At most 14 significant digits.
fn decimal(number: f64) -> String {
    let rounded = format!("{number:.13e}").parse().unwrap_or(number);
    f64::to_string(&rounded)
}

#[cfg(test)]
mod tests;

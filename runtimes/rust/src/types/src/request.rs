//! The HTTP request as the function sees it.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// One request. Header names are lower-cased; path and query are as they came.
#[derive(Clone, Debug, Default)]
pub struct ContextRequest {
    pub headers: HashMap<String, String>,
    pub method: String,
    pub url: String,
    pub scheme: String,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub query_string: String,
    pub query: HashMap<String, String>,
    body: Vec<u8>,
}

impl ContextRequest {
    /// A request with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the request its body.
    pub fn set_body_binary(&mut self, data: Vec<u8>) {
        self.body = data;
    }

    /// The body as it came.
    pub fn body_binary(&self) -> Vec<u8> {
        self.body.clone()
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body parsed, whatever its content type.
    ///
    /// # Errors
    /// Where it is no JSON, or none of the wanted form.
    pub fn body_json<T: DeserializeOwned>(&mut self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// Parsed JSON where the content type says so, an empty object where there is none to parse; text otherwise.
    pub fn body(&mut self) -> Value {
        const JSON: &str = "application/json";
        let start = self
            .headers
            .get("content-type")
            .and_then(|value| value.get(..JSON.len()));
        if !start.is_some_and(|start| start.eq_ignore_ascii_case(JSON)) {
            return Value::String(self.body_text());
        }
        self.body_json()
            .unwrap_or_else(|_| Value::Object(Map::new()))
    }

    #[deprecated(note = "it is called body_binary() now")]
    pub fn body_raw(&self) -> Vec<u8> {
        self.body_binary()
    }
}

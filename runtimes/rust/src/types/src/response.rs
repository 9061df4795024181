//! What a function returns.

use std::collections::HashMap;

use serde::Serialize;

/// A response. A status of 0 means 200. Cookies of `set-cookie` are separated by line ends.
#[derive(Clone, Debug)]
pub struct Response {
    pub status_code: u16,
    pub body: Vec<u8>,
    pub headers: HashMap<String, String>,
}

impl Response {
    /// Status 200 and nothing.
    pub fn new() -> Self {
        Self {
            status_code: 200,
            body: Vec::new(),
            headers: HashMap::new(),
        }
    }
}

impl Default for Response {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes responses and sends nothing: the one that is returned counts.
#[derive(Clone, Debug, Default)]
pub struct ContextResponse;

type Headers = Option<HashMap<String, String>>;

impl ContextResponse {
    pub fn new() -> Self {
        Self
    }

    /// Answers with a text.
    pub fn text<S: Into<String>>(
        &self,
        text: S,
        status_code: Option<u16>,
        headers: Headers,
    ) -> Response {
        response(text.into().into_bytes(), status_code, headers, None)
    }

    /// Answers with a value as JSON.
    pub fn json<T: Serialize>(
        &self,
        data: T,
        status_code: Option<u16>,
        headers: Headers,
    ) -> Response {
        match serde_json::to_vec(&data) {
            Ok(body) => response(body, status_code, headers, Some("application/json")),
            Err(_) => self.text("Error encoding JSON.", Some(500), None),
        }
    }

    /// Answers with bytes.
    pub fn binary(&self, data: Vec<u8>, status_code: Option<u16>, headers: Headers) -> Response {
        response(data, status_code, headers, Some("application/octet-stream"))
    }

    /// Answers with status 204 and nothing.
    pub fn empty(&self) -> Response {
        Response {
            status_code: 204,
            ..Response::new()
        }
    }

    /// Sends the caller elsewhere.
    pub fn redirect<S: Into<String>>(
        &self,
        url: S,
        status_code: Option<u16>,
        headers: Headers,
    ) -> Response {
        let mut response = response(Vec::new(), status_code.or(Some(301)), headers, None);
        response.headers.insert("location".to_owned(), url.into());
        response
    }

    #[deprecated(note = "use text(), json() or binary()")]
    pub fn send<S: Into<String>>(&self, data: S) -> Response {
        self.text(data, None, None)
    }
}

/// The content type is the function's, if it names one.
fn response(
    body: Vec<u8>,
    status_code: Option<u16>,
    headers: Headers,
    content_type: Option<&str>,
) -> Response {
    let mut headers = headers.unwrap_or_default();
    let is_named = headers
        .keys()
        .any(|name| name.eq_ignore_ascii_case("content-type"));
    if let (Some(content_type), false) = (content_type, is_named) {
        headers.insert("content-type".to_owned(), content_type.to_owned());
    }
    Response {
        status_code: status_code.unwrap_or(200),
        body,
        headers,
    }
}

//! The old protocol: one JSON document to the server in a sandbox, and one back.
//!
//! ```text
//! POST /   {"variables":{"A":"1"},"payload":"body","headers":{}}
//! 200      {"response":"text, list or object","stdout":"log","stderr":"error log"}
//! ```

use std::collections::BTreeMap;

use http::{HeaderMap, Method, Request, header};
use serde_json::{Value, json};

use super::{answer::Outcome, execute::whole};
use crate::executor::execution::Body;

/// Bytes of a log, at most.
const MAX_LOG: usize = 1_000_000;

/// The request for a body and variables. Path, method and headers have no place in this protocol.
pub(super) fn request(
    body: &[u8],
    variables: &BTreeMap<String, String>,
    host: &str,
) -> Request<Body> {
    let mut document = json!({
        "variables": variables,
        "payload": String::from_utf8_lossy(body),
        "headers": {},
    });
    document["variables"]["INERNAL_EXECUTOR_HOSTNAME"] = host.into();
    Request::builder()
        .method(Method::POST)
        .uri("/")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::HOST, "null")
        .body(whole(document.to_string()))
        .expect("constants that are valid")
}

/// What the document in an answer says. One that cannot be understood says nothing.
pub(super) fn outcome(answer: Outcome) -> Outcome {
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    let body = match &document["response"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        // A slash in JSON stands in texts only.
        other => other.to_string().replace('/', "\\/"),
    };
    Outcome {
        headers: HeaderMap::new(),
        body: body.into(),
        logs: cut(text("stdout")).into(),
        errors: cut(text("stderr")).into(),
        ..answer
    }
}

/// At most [`MAX_LOG`] bytes, whole characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_LOG);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn a_request_is_one_document() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let request = request("pay\"load".as_bytes(), &variables, "executor");
        let (head, body) = request.into_parts();
        let line = format!("{} {} {:?}", head.method, head.uri, head.headers);
        assert_eq!(
            line,
            r#"POST / {"content-type": "application/json", "host": "null"}"#
        );
        let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        assert_eq!(
            String::from_utf8_lossy(&body),
            r#"{"variables":{"A":"1","INERNAL_EXECUTOR_HOSTNAME":"executor"},"payload":"pay\"load","headers":{}}"#
        );
    }

    /// Compares `body|logs|errors`.
    #[track_caller]
    fn check(body: &str, expected: &str) {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "b".parse().unwrap());
        let told = outcome(Outcome {
            status: 200,
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            logs: Vec::new(),
            errors: Vec::new(),
            duration: 1.0,
            start_time: 1.0,
        });
        assert!(told.headers.is_empty());
        let parts = [&told.body[..], &told.logs, &told.errors];
        let shown = parts.map(String::from_utf8_lossy).join("|");
        assert_eq!(shown, expected);
    }

    #[test]
    fn c65_an_answer_is_what_its_document_says() {
        check(
            r#"{"response":"a/b","stdout":"out","stderr":"err"}"#,
            "a/b|out|err",
        );
        check(
            r#"{"response":{"message":"Hello 👋","url":"a/b"},"stdout":"","stderr":""}"#,
            r#"{"message":"Hello 👋","url":"a\/b"}||"#,
        );
        check("no JSON", "||");
        check("[]", "||");
    }

    #[test]
    fn logs_are_cut_between_characters() {
        let text = "ä".repeat(MAX_LOG / 2) + "a";
        assert_eq!(cut(&text).len(), MAX_LOG);
        assert_eq!(cut(&format!("a{text}")).len(), MAX_LOG - 1);
    }
}

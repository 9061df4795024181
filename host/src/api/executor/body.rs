//! A request's body: read whole up to a limit, then decoded by its content type.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::{
    error::ApiError,
    form,
    memory::{Held, WholeError},
    params::Params,
    value::Value,
};
use crate::executor::execution::Body;

/// A request's body, at most. Bytes.
pub(super) const MAX_REQUEST: usize = 22 * 1024 * 1024;

/// Reads a body whole. One that says it is too large is refused before a byte of it is read.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > MAX_REQUEST as u64) {
        return Err(too_large());
    }
    held.whole(body, MAX_REQUEST)
        .await
        .map_err(|error| match error {
            WholeError::TooLarge => too_large(),
            WholeError::Full => ApiError::overloaded(),
            WholeError::Broken(error) => {
                ApiError::bad_request(format!("The request's body broke off: {error}"))
            }
        })
}

fn too_large() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "general_payload_too_large",
        "The request is larger than 22 MiB.",
    )
}

/// Decodes a body. What cannot be understood gives no parameters: the first required one is then missed by name.
pub(super) async fn decode(headers: &HeaderMap, body: Bytes) -> Params {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    Params(match media_type {
        "application/json" => json(&body),
        "application/x-www-form-urlencoded" => form::urlencoded(&body),
        "multipart/form-data" => form::multipart(content_type, body).await,
        _ => BTreeMap::new(),
    })
}

fn json(body: &[u8]) -> BTreeMap<String, Value> {
    match Value::from_json(body) {
        Some(Value::Map(map)) => map,
        Some(_) | None => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::{BodyExt, Full};
    use proptest::prelude::*;

    use super::*;
    use crate::{api::executor::memory::Memory, executor::execution::BodyError};

    fn typed(content_type: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(content_type.as_bytes()) {
            headers.insert(header::CONTENT_TYPE, value);
        }
        headers
    }

    fn decoded(content_type: &str, body: impl Into<Bytes>) -> BTreeMap<String, Value> {
        let headers = typed(content_type);
        let decoding = decode(&headers, body.into());
        futures_util::FutureExt::now_or_never(decoding)
            .expect("a whole body is decoded at once")
            .0
    }

    #[test]
    fn the_media_type_chooses_the_decoder() {
        #[track_caller]
        fn check(content_type: &str, body: &str, expected: bool) {
            let read = decoded(content_type, body.to_owned());
            let is_found = read.get("a") == Some(&Value::Text(b"b".to_vec()));
            assert_eq!(is_found, expected, "{content_type}: {body} -> {read:?}");
        }
        const PART: &str =
            "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n";
        check("application/json", r#"{"a":"b"}"#, true);
        check("application/json; charset=utf-8", r#"{"a":"b"}"#, true);
        check("Application/JSON", r#"{"a":"b"}"#, false);
        check("application/json", r#"{"a":"b""#, false);
        check("application/json", r#"[{"a":"b"}]"#, false);
        check("application/json", "", false);
        check("application/x-www-form-urlencoded", "a=b", true);
        check("multipart/form-data; boundary=x", PART, true);
        check("multipart/form-data; boundary=\"x\"", PART, true);
        check("multipart/form-data", PART, false);
        check("text/plain", "a=b", false);
        check("", "a=b", false);
    }

    #[test]
    fn json_that_is_too_deep_is_no_json() {
        let deep = "[".repeat(1_000_000);
        assert!(decoded("application/json", format!("{{\"a\":{deep}")).is_empty());
    }

    async fn read_status(declared: Option<usize>, length: usize) -> Option<u16> {
        let mut headers = HeaderMap::new();
        if let Some(declared) = declared {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(declared));
        }
        let body = Full::new(Bytes::from(vec![b'a'; length])).map_err(|never| match never {});
        let body: Body = body
            .map_err(|never: std::convert::Infallible| -> BodyError { match never {} })
            .boxed_unsync();
        let mut held = Memory::new(100).hold();
        read(&headers, body, &mut held)
            .await
            .err()
            .map(|error| error.status.as_u16())
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused() {
        assert_eq!(read_status(Some(MAX_REQUEST), 1).await, None);
        assert_eq!(read_status(Some(MAX_REQUEST + 1), 0).await, Some(413));
        assert_eq!(read_status(None, MAX_REQUEST).await, None);
        assert_eq!(read_status(None, MAX_REQUEST + 1).await, Some(413));
    }

    /// Any bytes, often with pieces of a boundary and line ends among them.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            Just(b"\r\n".to_vec()),
            Just(b"--".to_vec()),
            Just(b"\r\n--".to_vec()),
            Just(b"\r\n--bound".to_vec()),
            Just(b"\r\n--boundar".to_vec()),
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    fn multipart_of(fields: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, text) in fields {
            let head =
                format!("--boundary1\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(text);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--boundary1--\r\n");
        body
    }

    fn urlencoded_of(fields: &BTreeMap<String, Vec<u8>>) -> String {
        let text = |text: &[u8]| {
            text.iter()
                .map(|byte| format!("%{byte:02X}"))
                .collect::<String>()
        };
        let pair = |(name, value): (&String, &Vec<u8>)| format!("{name}={}", text(value));
        fields.iter().map(pair).collect::<Vec<_>>().join("&")
    }

    proptest! {
        #[test]
        fn forms_keep_every_byte(
            fields in proptest::collection::btree_map("[a-z]{1,8}", content(), 0..6)
        ) {
            let expected: BTreeMap<_, _> = fields
                .iter()
                .map(|(name, text)| (name.clone(), Value::Text(text.clone())))
                .collect();
            let read = decoded("multipart/form-data; boundary=boundary1", multipart_of(&fields));
            prop_assert_eq!(&read, &expected);
            let read = decoded("application/x-www-form-urlencoded", urlencoded_of(&fields));
            prop_assert_eq!(&read, &expected);
        }

        #[test]
        fn no_bytes_of_any_type_panic(
            content_type in prop_oneof![
                Just("application/json".to_owned()),
                Just("application/x-www-form-urlencoded".to_owned()),
                "multipart/form-data; boundary=.{0,80}",
                Just("multipart/form-data; boundary=bound".to_owned()),
                ".*",
            ],
            body in prop_oneof![content(), "[a-z=&%+\\[\\]{}:,\"0-9]{0,80}".prop_map(String::into_bytes)],
        ) {
            decoded(&content_type, body);
        }
    }
}

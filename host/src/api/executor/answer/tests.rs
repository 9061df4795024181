use expect_test::expect;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use proptest::prelude::*;

use http::header;

use super::*;

const OLD: Format = Format {
    is_json: false,
    keeps_lists: false,
};
const MULTIPART: Format = Format {
    is_json: false,
    keeps_lists: true,
};
const AS_JSON: Format = Format {
    is_json: true,
    keeps_lists: true,
};

fn outcome(body: &[u8], header_lines: &[(&'static str, &'static str)]) -> Outcome {
    let mut headers = HeaderMap::new();
    for (name, value) in header_lines {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    Outcome {
        status: 200,
        headers,
        body: Bytes::copy_from_slice(body),
        logs: b"log\n".to_vec(),
        errors: Vec::new(),
        duration: 1.0,
        start_time: 1_700_000_000.123_456_7,
    }
}

/// Content type and body.
fn sent(outcome: &Outcome, format: Format) -> Result<(String, Vec<u8>), ApiError> {
    let response = outcome.response(format, 0xfedc_ba98_7654_3210)?;
    let content_type = response.headers()[header::CONTENT_TYPE]
        .to_str()
        .unwrap()
        .to_owned();
    let body = response
        .into_body()
        .collect()
        .now_or_never()
        .unwrap()
        .unwrap();
    Ok((content_type, body.to_bytes().to_vec()))
}

fn shown(outcome: &Outcome, format: Format) -> String {
    let (content_type, body) = sent(outcome, format).unwrap();
    format!(
        "{content_type}\n{}",
        String::from_utf8_lossy(&body).replace('\r', "␍")
    )
}

#[test]
fn json_has_the_fields_in_order() {
    let full = outcome(
        b"\"\xc3\xa4/",
        &[("x-key", "a"), ("set-cookie", "1"), ("set-cookie", "2")],
    );
    expect![[r#"
        application/json
        {"statusCode":200,"headers":{"x-key":"a","set-cookie":["1","2"]},"body":"\"ä/","logs":"log\n","errors":"","duration":1.0,"startTime":1700000000.1234567}"#]]
    .assert_eq(&shown(&full, AS_JSON));
    let bare = outcome(b"", &[("x-open-runtimes-log-id", "a")]);
    let old = Format {
        is_json: true,
        ..OLD
    };
    expect![[r#"
        application/json
        {"statusCode":200,"headers":[],"body":"","logs":"log\n","errors":"","duration":1.0,"startTime":1700000000.1234567}"#]]
    .assert_eq(&shown(&bare, old));
}

#[test]
fn multipart_has_the_fields_in_order() {
    let full = outcome(b"a\r\nb", &[("set-cookie", "1/ä"), ("set-cookie", "2")]);
    expect![[r#"
        multipart/form-data; boundary=-----------------------------fedcba9876543
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="statusCode"␍
        ␍
        200␍
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="headers"␍
        Content-Type: application/json␍
        ␍
        {"set-cookie":["1\/\u00e4","2"]}␍
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="body"␍
        ␍
        a␍
        b␍
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="logs"␍
        ␍
        log
        ␍
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="errors"␍
        ␍
        ␍
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="duration"␍
        ␍
        1␍
        -------------------------------fedcba9876543␍
        Content-Disposition: form-data; name="startTime"␍
        ␍
        1700000000.1235␍
        -------------------------------fedcba9876543--␍
    "#]]
    .assert_eq(&shown(&full, MULTIPART));
    assert!(shown(&full, OLD).contains("{\"set-cookie\":\"2\"}"));
    assert!(shown(&outcome(b"", &[]), MULTIPART).contains("\n[]␍\n"));
}

#[test]
fn json_refuses_binaries_wherever_they_are() {
    #[track_caller]
    fn check(outcome: Outcome) {
        let error = sent(&outcome, AS_JSON).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.kind),
            (400, "execution_bad_json")
        );
        assert!(sent(&outcome, MULTIPART).is_ok());
    }
    let plain = || outcome(b"", &[]);
    check(outcome(&[0, 10, 255], &[]));
    check(Outcome {
        logs: vec![255],
        ..plain()
    });
    check(Outcome {
        errors: vec![255],
        ..plain()
    });
    let mut odd = plain();
    odd.headers
        .insert("x", HeaderValue::from_bytes(&[0xe4]).unwrap());
    check(odd);
}

#[test]
fn decimals_have_14_digits() {
    assert_eq!(decimal(0.0), "0");
    assert_eq!(decimal(12.5), "12.5");
    assert_eq!(decimal(0.1 + 0.2), "0.3");
    assert_eq!(decimal(1_753_000_000.987_654_3), "1753000000.9877");
}

/// Takes an answer apart as known clients do: by splitting at the boundary.
fn split(content_type: &str, body: &[u8]) -> Vec<(String, Vec<u8>)> {
    let boundary = format!("--{}", content_type.split_once("boundary=").unwrap().1);
    let mut parts = Vec::new();
    let mut rest = body;
    while let Some(at) = rest
        .windows(boundary.len())
        .position(|window| window == boundary.as_bytes())
    {
        parts.push(&rest[..at]);
        rest = &rest[at + boundary.len()..];
    }
    assert_eq!(rest, b"--\r\n");
    parts[1..]
        .iter()
        .map(|part| {
            let end = part
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
                .unwrap();
            let head = String::from_utf8(part[..end].to_vec()).unwrap();
            let name = head.split('"').nth(1).unwrap().to_owned();
            (name, part[end + 4..part.len() - 2].to_vec())
        })
        .collect()
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        Just(b"\r\n".to_vec()),
        Just(b"\r\n-------------------------------fedcba987654x".to_vec()),
        Just(b"--\r\n".to_vec()),
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn multipart_keeps_every_byte(body in content(), logs in content(), errors in content()) {
        let whole = Outcome { logs, errors, ..outcome(&body, &[]) };
        let (content_type, sent) = sent(&whole, MULTIPART).unwrap();
        let parts = split(&content_type, &sent);
        prop_assert_eq!(&parts[2], &("body".to_owned(), body));
        prop_assert_eq!(&parts[3], &("logs".to_owned(), whole.logs));
        prop_assert_eq!(&parts[4], &("errors".to_owned(), whole.errors));
    }

    #[test]
    fn json_keeps_every_text(body in ".*", logs in ".*") {
        let whole = Outcome { logs: logs.clone().into_bytes(), ..outcome(body.as_bytes(), &[]) };
        let (_, sent) = sent(&whole, AS_JSON).unwrap();
        let read: Value = serde_json::from_slice(&sent).unwrap();
        prop_assert_eq!(read["body"].as_str(), Some(body.as_str()));
        prop_assert_eq!(read["logs"].as_str(), Some(logs.as_str()));
    }
}

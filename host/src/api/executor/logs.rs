//! What a build or a server writes, told as it happens: `text/event-stream` by name, of one line a part.
//!
//! ```text
//! 2026-11-26T02:13:38.123+00:00 Step: 1\r\\n
//! ```
//!
//! A line feed in a part is the two characters `\` and `n`; carriage returns and escape sequences stay.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    create::timestamp,
    error::ApiError,
    params::{ParamError, Params, text},
};
use crate::{
    api::reply::whole,
    executor::{
        execution::{Body, BodyError},
        transcript::{Part, Reader},
    },
};

const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Reads `timeout`: the digits that the text begins with, in seconds; none are 0.
pub(super) fn limit(params: &mut Params) -> Result<Duration, ParamError> {
    let text = params.optional("timeout", text(16, 1))?;
    let text = text.unwrap_or_else(|| "600".into());
    let n_digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Ok(Duration::from_secs(text[..n_digits].parse().unwrap_or(0)))
}

/// Waits up to `limit` for the first part, then tells all that follow, for as long again.
pub(super) async fn stream(
    mut reader: Reader,
    limit: Duration,
) -> Result<Response<Body>, ApiError> {
    let first = timeout(limit, reader.next()).await.map_err(|_| {
        let (status, kind) = (StatusCode::GATEWAY_TIMEOUT, "logs_timeout");
        ApiError::new(status, kind, "Timed out waiting for logs.")
    })?;
    let mut response = whole(StatusCode::OK, EVENT_STREAM, Bytes::new());
    let no_cache = HeaderValue::from_static("no-cache");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_cache);
    if let Some(first) = first {
        let rest = stream::unfold(reader, |mut reader| async move {
            let parts = reader.next().await?;
            Some((parts, reader))
        });
        let end = sleep_until(Instant::now() + limit);
        let parts = stream::iter([first]).chain(rest.take_until(end));
        let frames = parts.map(|parts| Ok::<_, BodyError>(Frame::data(lines(&parts))));
        *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    }
    Ok(response)
}

fn lines(parts: &[Part]) -> Bytes {
    let line = |part: &Part| {
        let content = part.content.replace('\n', "\\n");
        format!("{} {content}\n", timestamp(part.at))
    };
    parts.iter().map(line).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::{api::executor::value::Value, executor::transcript::Transcript};

    const LIMIT: Duration = Duration::from_millis(50);

    #[test]
    fn the_limit_is_the_digits_at_the_beginning() {
        #[track_caller]
        fn check(text: &str, expected: u64) {
            let value = Value::Text(text.as_bytes().to_vec());
            let mut params = Params(BTreeMap::from([("timeout".to_owned(), value)]));
            assert_eq!(limit(&mut params).unwrap().as_secs(), expected, "{text}");
        }
        check("12", 12);
        check("12s", 12);
        check("1.9", 1);
        check("soon", 0);
        check("-1", 0);
        assert_eq!(limit(&mut Params::default()).unwrap().as_secs(), 600);
    }

    async fn told(
        transcript: &Arc<Transcript>,
        limit: Duration,
    ) -> Result<(String, String), ApiError> {
        let response = stream(transcript.follow(), limit).await?;
        let kind = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Ok((kind, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[tokio::test]
    async fn a_line_is_a_time_and_what_was_written_then() {
        let transcript = Arc::new(Transcript::of_command());
        transcript.push(b"one\r\ntwo\r\n");
        transcript.close();
        let (kind, text) = told(&transcript, LIMIT).await.unwrap();
        assert_eq!(kind, "text/event-stream");
        let (time, content) = text.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-11-26T02:13:38.123+00:00".len());
        assert_eq!(content, "one\r\\ntwo\r\\n\n");
    }

    #[tokio::test]
    async fn without_a_word_it_waits_until_the_limit_or_the_end() {
        let transcript = Arc::new(Transcript::of_command());
        let error = told(&transcript, LIMIT).await.unwrap_err();
        assert_eq!((error.status.as_u16(), error.kind), (504, "logs_timeout"));
        assert_eq!(error.message, "Timed out waiting for logs.");
        transcript.close();
        let (_, text) = told(&transcript, LIMIT).await.unwrap();
        assert_eq!(text, "");
    }

    #[tokio::test]
    async fn a_stream_ends_at_its_limit() {
        let transcript = Arc::new(Transcript::of_command());
        transcript.push(b"one");
        let (_, text) = told(&transcript, LIMIT).await.unwrap();
        assert!(text.ends_with(" one\n"), "{text}");
    }
}

//! What a function returned, ready to send.

use openruntimes::Response;

use crate::{
    http::{Answer, is_token},
    request::CONTROL,
};

const PLAIN: &str = "text/plain; charset=utf-8";
/// The framing of the message is the server's.
const FRAMING: [&str; 6] = [
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "trailer",
];

/// An answer of plain text.
pub(crate) fn plain(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    let headers = vec![("content-type".to_owned(), PLAIN.to_owned())];
    Answer {
        status,
        headers,
        body: body.into(),
    }
}

/// Fails for what cannot be sent, and says why.
pub(crate) fn render(response: Response) -> Result<Answer, String> {
    let status = if response.status_code == 0 {
        200
    } else {
        response.status_code
    };
    if !(200..=999).contains(&status) {
        return Err(format!("Invalid status code: {status}"));
    }
    let mut content_type = PLAIN.to_owned();
    let mut headers = Vec::new();
    for (name, value) in response.headers {
        let name = name.to_ascii_lowercase();
        if name.starts_with(CONTROL) || FRAMING.contains(&&*name) {
            continue;
        }
        if !is_token(&name) {
            return Err(format!("Invalid header name: {name:?}."));
        }
        let values = if name == "set-cookie" {
            value.split('\n').collect()
        } else {
            vec![&*value]
        };
        if values
            .iter()
            .any(|value| value.contains(['\r', '\n', '\0']))
        {
            return Err(format!("Invalid value of header {name}."));
        }
        if name == "content-type" {
            content_type = with_charset(&value);
            continue;
        }
        headers.extend(
            values
                .into_iter()
                .map(|value| (name.clone(), value.to_owned())),
        );
    }
    headers.push(("content-type".to_owned(), content_type));
    Ok(Answer {
        status,
        headers,
        body: response.body,
    })
}

fn with_charset(value: &str) -> String {
    let lower = value.to_ascii_lowercase();
    if lower.starts_with("multipart/") || lower.contains("charset=") {
        return value.to_owned();
    }
    format!("{lower}; charset=utf-8")
}

//! Which headers belong to one connection only.

use http::{HeaderMap, HeaderName, header};

/// Whether a header tells of the connection and not of the message.
///
/// Source: RFC 9110 section 7.6.1, and the names that were in use before it.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 6] = [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
    ];
    NAMES.contains(name) || name.as_str().starts_with("proxy-")
}

/// Takes away the headers of the connection: those that always are, and those that `connection` names.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed = headers.get_all(header::CONNECTION).iter();
    let mut gone: Vec<HeaderName> = listed
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    gone.extend(headers.keys().filter(|name| is_hop_by_hop(name)).cloned());
    for name in gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn takes_away_what_connection_names() {
        let mut headers = HeaderMap::new();
        let lines = [
            ("connection", "close, X-Hop,,"),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("x-stays", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "a"),
            ("keep-alive", "1"),
            ("upgrade", "h2c"),
            ("host", "a"),
        ];
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-stays", "host"]);
    }
}

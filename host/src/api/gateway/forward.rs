//! The headers of a request on its way to a function.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header, uri::Authority};

use crate::api::headers::strip_hop_by_hop;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Leaves what is meant for the function, and tells it who asked.
///
/// `x-forwarded-for` is extended by `peer`, so that its last entry is true; host and protocol are what the first
/// proxy said, if one did. `authority` is there where the request line named a host, which then is the host.
pub(super) fn prepare(
    headers: &mut HeaderMap,
    authority: Option<&Authority>,
    peer: Option<IpAddr>,
) {
    // A body in chunks has no length, whatever else is said of it.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let named = authority.and_then(|authority| authority.as_str().rsplit('@').next());
    let named = named.and_then(|host| HeaderValue::from_str(host).ok());
    let host = named.or_else(|| headers.get(header::HOST).cloned());
    strip_hop_by_hop(headers);
    headers.remove(header::EXPECT);
    if let Some(peer) = peer {
        extend_forwarded_for(headers, peer);
    }
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host.clone());
        headers.insert(header::HOST, host);
    }
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
}

fn extend_forwarded_for(headers: &mut HeaderMap, peer: IpAddr) {
    let mut list = Vec::new();
    for value in headers.get_all(FORWARDED_FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.to_canonical().to_string().as_bytes());
    let list = HeaderValue::from_bytes(&list).expect("header values and an address");
    headers.insert(FORWARDED_FOR, list);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lines: &[(&'static str, &'static str)], authority: Option<&str>, expected: &str) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let authority = authority.map(|text| text.parse().unwrap());
        prepare(&mut headers, authority.as_ref(), Some([10, 0, 0, 9].into()));
        let mut shown: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        shown.sort();
        assert_eq!(shown.join("\n"), expected);
    }

    #[test]
    fn tells_who_asked() {
        check(
            &[("host", "a.example")],
            None,
            "host: a.example\nx-forwarded-for: 10.0.0.9\nx-forwarded-host: a.example\nx-forwarded-proto: http",
        );
        check(
            &[
                ("host", "inner"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-for", "2.2.2.2"),
                ("x-forwarded-host", "outer"),
                ("x-forwarded-proto", "https"),
            ],
            None,
            "host: inner\nx-forwarded-for: 1.1.1.1, 2.2.2.2, 10.0.0.9\nx-forwarded-host: outer\nx-forwarded-proto: https",
        );
        check(
            &[("host", "wrong")],
            Some("me@right:80"),
            "host: right:80\nx-forwarded-for: 10.0.0.9\nx-forwarded-host: right:80\nx-forwarded-proto: http",
        );
    }

    #[test]
    fn keeps_what_is_not_the_functions_to_see() {
        check(
            &[
                ("connection", "x-forwarded-for, host, x-a"),
                ("host", "h"),
                ("x-a", "1"),
                ("x-forwarded-for", "1.1.1.1"),
                ("expect", "100-continue"),
                ("transfer-encoding", "chunked"),
                ("content-length", "5"),
                ("cookie", "c"),
            ],
            None,
            "cookie: c\nhost: h\nx-forwarded-for: 10.0.0.9\nx-forwarded-host: h\nx-forwarded-proto: http",
        );
    }
}

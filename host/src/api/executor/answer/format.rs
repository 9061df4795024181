//! Which format of the result a client asked for.

use http::{HeaderMap, header};

/// Versions below this one know one value a header only.
const LISTS_SINCE: &str = "0.11.0";
/// The version of a client that names none.
const DEFAULT_VERSION: &str = "0.10.0";

/// The format of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Format {
    /// JSON; multipart otherwise.
    pub(in super::super) is_json: bool,
    /// A header that came more than once is a list; its last value otherwise.
    pub(in super::super) keeps_lists: bool,
}

impl Format {
    /// Reads `accept` and `x-executor-response-format`.
    pub(in super::super) fn of(headers: &HeaderMap) -> Self {
        let accepts_json = |value: &str| {
            value.split(',').map(str::trim_start).any(|kind| {
                kind.starts_with("application/json") || kind.starts_with("application/*")
            })
        };
        let version = headers
            .get("x-executor-response-format")
            .map_or(Ok(DEFAULT_VERSION), |value| value.to_str())
            .unwrap_or_default();
        Self {
            is_json: headers
                .get_all(header::ACCEPT)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .any(accepts_json),
            keeps_lists: !is_below(version, LISTS_SINCE),
        }
    }
}

/// Compares part by part: numbers as numbers, words below numbers, and what is missing below what is there.
fn is_below(version: &str, other: &str) -> bool {
    ranks(version) < ranks(other)
}

/// A number's rank is above a word's, and above that of no part at all is only a number's.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Word(String),
    End,
    Number(u64),
}

fn ranks(version: &str) -> Vec<Rank> {
    let mut parts: Vec<Rank> = Vec::new();
    for piece in version.split(['.', '-', '_', '+']) {
        let mut rest = piece;
        while let Some(first) = rest.chars().next() {
            let is_digit = first.is_ascii_digit();
            let end = rest
                .find(|c: char| c.is_ascii_digit() != is_digit)
                .unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            parts.push(if is_digit {
                Rank::Number(part.parse().unwrap_or(u64::MAX))
            } else {
                Rank::Word(part.to_owned())
            });
            rest = after;
        }
    }
    parts.push(Rank::End);
    parts
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn accept_chooses_between_json_and_multipart() {
        #[track_caller]
        fn check(accept: &[&str], expected: bool) {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(Format::of(&headers).is_json, expected, "{accept:?}");
        }
        check(&[], false);
        check(&["*/*"], false);
        check(&["text/plain"], false);
        check(&["application/xml"], false);
        check(&["application/json"], true);
        check(&["application/json;q=0.5"], true);
        check(&["application/*"], true);
        check(&["text/plain, application/json"], true);
        check(&["text/plain,application/json"], true);
        check(&["text/plain", "application/json"], true);
    }

    #[test]
    fn lists_are_kept_since_0_11_0() {
        #[track_caller]
        fn check(version: &str, expected: bool) {
            let mut headers = HeaderMap::new();
            headers.insert(
                "x-executor-response-format",
                HeaderValue::from_str(version).unwrap(),
            );
            assert_eq!(Format::of(&headers).keeps_lists, expected, "{version}");
        }
        assert!(!Format::of(&HeaderMap::new()).keeps_lists);
        check("0.10.0", false);
        check("0.9.99", false);
        check("0.11.0", true);
        check("0.11.0.1", true);
        check("0.11", false);
        check("0.11.0-beta", false);
        check("0.11.0rc1", false);
        check("0.11.1-beta", true);
        check("1", true);
        check("99999999999999999999999", true);
        check("", false);
        check("new", false);
    }
}

//! Forms as PHP reads them: `a[b]=c` is a map, every value a text, a part with a file name no parameter.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;
use futures_util::stream;

use super::value::Value;

/// Parameters that are read of one form; what follows is ignored.
const MAX_FIELDS: usize = 1000;
/// Levels of `[…]` in a name; deeper ones are ignored with their value.
const MAX_DEPTH: usize = 64;

/// Reads `a=b&c[d]=e`.
pub(super) fn urlencoded(body: &[u8]) -> BTreeMap<String, Value> {
    let mut form = BTreeMap::new();
    let pairs = body
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty());
    for pair in pairs.take(MAX_FIELDS) {
        let (name, text) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        let name = percent_decoded(name);
        insert(
            &mut form,
            &String::from_utf8_lossy(&name),
            percent_decoded(text),
        );
    }
    form
}

/// Reads `multipart/form-data`, up to where it breaks off or stops making sense.
pub(super) async fn multipart(content_type: &str, body: Bytes) -> BTreeMap<String, Value> {
    let mut form = BTreeMap::new();
    let Ok(boundary) = multer::parse_boundary(content_type) else {
        return form;
    };
    let whole = stream::once(async { Ok::<_, std::convert::Infallible>(body) });
    let mut parts = multer::Multipart::new(whole, boundary);
    for _ in 0..MAX_FIELDS {
        let Ok(Some(part)) = parts.next_field().await else {
            break;
        };
        let name = match (part.name(), part.file_name()) {
            (Some(name), None) => name.to_owned(),
            _ => continue,
        };
        let Ok(text) = part.bytes().await else { break };
        insert(&mut form, &name, text.into());
    }
    form
}

/// Puts a text where its name says: `a`, `a[b]`, `a[]`.
fn insert(form: &mut BTreeMap<String, Value>, name: &str, text: Vec<u8>) {
    let (first, keys) = split_name(name);
    if first.is_empty() || keys.len() > MAX_DEPTH {
        return;
    }
    let mut place = form.entry(first.to_owned()).or_insert(Value::Null);
    for key in keys {
        place = child(place, key);
    }
    *place = Value::Text(text);
}

/// `a[b][]` is `a` and `b`, ``; brackets that do not pair are part of the name.
fn split_name(name: &str) -> (&str, Vec<&str>) {
    let Some(open) = name.find('[').filter(|at| *at > 0) else {
        return (name, Vec::new());
    };
    let mut keys = Vec::new();
    let mut rest = &name[open..];
    while let Some((key, after)) = rest
        .strip_prefix('[')
        .and_then(|inner| inner.split_once(']'))
    {
        keys.push(key);
        rest = after;
    }
    if keys.is_empty() {
        (name, keys)
    } else {
        (&name[..open], keys)
    }
}

/// The place of `key` in what becomes a map, or the next place of a list where the key is empty.
fn child<'a>(place: &'a mut Value, key: &str) -> &'a mut Value {
    match place {
        Value::List(_) if key.is_empty() => {}
        Value::List(list) => {
            let numbered = std::mem::take(list).into_iter().enumerate();
            *place = Value::Map(
                numbered
                    .map(|(index, value)| (index.to_string(), value))
                    .collect(),
            );
        }
        Value::Map(_) => {}
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {
            *place = if key.is_empty() {
                Value::List(Vec::new())
            } else {
                Value::Map(BTreeMap::new())
            };
        }
    }
    match place {
        Value::List(list) => {
            list.push(Value::Null);
            list.last_mut().expect("just pushed")
        }
        Value::Map(map) => {
            let key = if key.is_empty() {
                next_index(map)
            } else {
                key.to_owned()
            };
            match map.entry(key) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Value::Null),
            }
        }
        scalar => scalar,
    }
}

fn next_index(map: &BTreeMap<String, Value>) -> String {
    let taken = map.keys().filter_map(|key| key.parse::<u64>().ok()).max();
    taken.map_or(0, |index| index.saturating_add(1)).to_string()
}

/// `+` is a space, `%41` is `A`; a `%` without two hexadecimal digits stands for itself.
fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match (byte, digit(text.get(at)), digit(text.get(at + 1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(
                    u8::try_from(high * 16 + low).expect("two hexadecimal digits are a byte"),
                );
                at += 2;
            }
            (b'+', ..) => decoded.push(b' '),
            _ => decoded.push(*byte),
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &Value) -> serde_json::Value {
        match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(flag) => (*flag).into(),
            Value::Number(number) => number.clone().into(),
            Value::Text(text) => String::from_utf8_lossy(text).into(),
            Value::List(list) => list.iter().map(json).collect(),
            Value::Map(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), json(value)))
                .collect(),
        }
    }

    #[track_caller]
    fn check(form: &str, expected: &str) {
        let read = json(&Value::Map(urlencoded(form.as_bytes())));
        assert_eq!(read.to_string(), expected, "{form}");
    }

    #[test]
    fn reads_urlencoded_forms() {
        check("", "{}");
        check("a=b&c=d", r#"{"a":"b","c":"d"}"#);
        check("a=1&a=2", r#"{"a":"2"}"#);
        check("a&b=&&c==", r#"{"a":"","b":"","c":"="}"#);
        check("a=%41+%e4%b8%ad%4&%62=%zz", r#"{"a":"A 中%4","b":"%zz"}"#);
        check("=x&[a]=y", r#"{"[a]":"y"}"#);
    }

    #[test]
    fn reads_brackets_as_maps_and_lists() {
        check("a[b]=c&a[d][e]=f", r#"{"a":{"b":"c","d":{"e":"f"}}}"#);
        check("a[]=1&a[]=2", r#"{"a":["1","2"]}"#);
        check("a[]=1&a[x]=2&a[]=3", r#"{"a":{"0":"1","1":"3","x":"2"}}"#);
        check("a=1&a[b]=2", r#"{"a":{"b":"2"}}"#);
        check("a[b=1&a]b=2", r#"{"a[b":"1","a]b":"2"}"#);
        check("a%5Bb%5D=c", r#"{"a":{"b":"c"}}"#);
    }

    #[test]
    fn bounds_fields_and_depth() {
        let many: String = (0..2000).map(|index| format!("a{index}=1&")).collect();
        assert_eq!(urlencoded(many.as_bytes()).len(), MAX_FIELDS);
        let deep = format!("a{}=1", "[x]".repeat(100_000));
        check(&deep, "{}");
    }

    #[tokio::test]
    async fn a_part_with_a_file_name_is_no_parameter() {
        let body = concat!(
            "--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"f\"\r\n\r\n1\r\n",
            "--x\r\nContent-Disposition: form-data; name=\"b\"\r\nContent-Type: application/json\r\n\r\n{\"c\":1}\r\n",
            "--x\r\nContent-Disposition: form-data; name=\"d[e]\"\r\n\r\n\r\n--x--\r\n",
        );
        let form = multipart("multipart/form-data; boundary=x", body.into()).await;
        assert_eq!(
            json(&Value::Map(form)).to_string(),
            r#"{"b":"{\"c\":1}","d":{"e":""}}"#
        );
    }
}

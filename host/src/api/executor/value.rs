//! What a request body holds once decoded: JSON's shapes, with texts that may be any bytes.

use std::{borrow::Cow, collections::BTreeMap, io};

use serde::Serialize;
use serde_json::{Number, ser::Formatter};

/// A decoded value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    Text(Vec<u8>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(flag) => Self::Bool(flag),
            serde_json::Value::Number(number) => Self::Number(number),
            serde_json::Value::String(text) => Self::Text(text.into_bytes()),
            serde_json::Value::Array(list) => {
                Self::List(list.into_iter().map(Self::from).collect())
            }
            serde_json::Value::Object(map) => Self::Map(
                map.into_iter()
                    .map(|(name, value)| (name, Self::from(value)))
                    .collect(),
            ),
        }
    }
}

impl Value {
    /// Reads JSON text; none where it is no JSON.
    pub(super) fn from_json(text: &[u8]) -> Option<Self> {
        let json: serde_json::Value = serde_json::from_slice(text).ok()?;
        Some(json.into())
    }

    /// How long the value is as JSON with everything but ASCII escaped. Bytes.
    pub(super) fn json_len(&self) -> usize {
        match self {
            Self::Null => 4,
            Self::Bool(flag) => flag.to_string().len(),
            Self::Number(number) => number.to_string().len(),
            Self::Text(text) => escaped(&String::from_utf8_lossy(text)).len(),
            Self::List(list) => {
                1 + list
                    .iter()
                    .map(|value| value.json_len() + 1)
                    .sum::<usize>()
                    .max(1)
            }
            Self::Map(map) => {
                let entry =
                    |(name, value): (&String, &Self)| escaped(name).len() + value.json_len() + 2;
                1 + map.iter().map(entry).sum::<usize>().max(1)
            }
        }
    }

    /// A scalar as text: true is `1`, false and null are empty, numbers are in their shortest decimal form.
    /// None for a list or a map.
    pub(super) fn to_text(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Self::Null | Self::Bool(false) => Some(Cow::Borrowed(b"")),
            Self::Bool(true) => Some(Cow::Borrowed(b"1")),
            Self::Number(number) => Some(Cow::Owned(decimal(number).into_bytes())),
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::List(_) | Self::Map(_) => None,
        }
    }
}

fn decimal(number: &Number) -> String {
    match (number.is_f64(), number.as_f64()) {
        (true, Some(float)) => float.to_string(),
        _ => number.to_string(),
    }
}

/// `value` as JSON text with everything but ASCII, and `/`, escaped.
pub(super) fn escaped(value: &(impl Serialize + ?Sized)) -> String {
    let mut text = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut text, AsciiOnly);
    value
        .serialize(&mut writer)
        .expect("texts, lists and maps of texts are JSON");
    String::from_utf8(text).expect("the formatter writes ASCII")
}

struct AsciiOnly;

impl Formatter for AsciiOnly {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        to: &mut W,
        text: &str,
    ) -> io::Result<()> {
        let mut units = [0; 2];
        for character in text.chars() {
            match character {
                '/' => to.write_all(b"\\/")?,
                _ if character.is_ascii() => to.write_all(&[character as u8])?,
                _ => {
                    for unit in character.encode_utf16(&mut units) {
                        write!(to, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_json_as_it_would_be_written() {
        #[track_caller]
        fn check(json: &str) {
            let parsed: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(Value::from(parsed).json_len(), json.len(), "{json}");
        }
        check("{}");
        check("[]");
        check(r#"{"a":"b\/\u00e4\ud83d\ude00\"","n":[1,2.5,true,null,{}]}"#);
    }

    #[test]
    fn writes_scalars_as_environment_text() {
        #[track_caller]
        fn check(json: &str, expected: Option<&str>) {
            let value = Value::from(serde_json::from_str::<serde_json::Value>(json).unwrap());
            let text = value.to_text();
            assert_eq!(text.as_deref(), expected.map(str::as_bytes), "{json}");
        }
        check("true", Some("1"));
        check("false", Some(""));
        check("null", Some(""));
        check("1", Some("1"));
        check("1.0", Some("1"));
        check("2.50", Some("2.5"));
        check("\"ä\"", Some("ä"));
        check("[]", None);
        check("{}", None);
    }
}

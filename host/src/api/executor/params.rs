//! Parameters of a request: where they are, what each may be, and in which words a wrong one is refused.
//!
//! A validator is a function from a decoded value to a typed one; its error is the description that clients know.

use std::collections::BTreeMap;

use super::value::Value;

/// Longest `object`, as JSON text. Bytes.
const MAX_OBJECT: usize = 65_535;
const OBJECT: &str = "Value must be a valid object.";
const INTEGER: &str =
    "Value must be a valid signed 32-bit integer between -2,147,483,648 and 2,147,483,647";
const FLOAT: &str = "Value must be a valid float";
const BOOLEAN: &str = "Value must be a valid boolean";

/// Why a parameter was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ParamError {
    #[error("Param \"{name}\" is not optional.")]
    Missing { name: &'static str },
    #[error("Invalid `{name}` param: {description}")]
    Invalid {
        name: &'static str,
        description: String,
    },
    #[error("Value must be a valid object.")]
    Shape,
}

/// The parameters of one request.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Params(pub(super) BTreeMap<String, Value>);

impl Params {
    /// A parameter that must be there, and not null.
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value) -> Result<T, String>,
    ) -> Result<T, ParamError> {
        let value = self.0.remove(name).filter(|value| *value != Value::Null);
        let value = value.ok_or(ParamError::Missing { name })?;
        read(value).map_err(|description| ParamError::Invalid { name, description })
    }

    /// A parameter that may be absent or null.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value) -> Result<T, String>,
    ) -> Result<Option<T>, ParamError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .map_err(|description| ParamError::Invalid { name, description }),
        }
    }

    /// An object, or a text that holds one as JSON; a text that is no JSON counts as an empty one.
    pub(super) fn object_or_text(
        &mut self,
        name: &'static str,
    ) -> Result<BTreeMap<String, Value>, ParamError> {
        let invalid = |description| ParamError::Invalid { name, description };
        match self.0.remove(name) {
            None => Ok(BTreeMap::new()),
            Some(Value::Null) => Err(ParamError::Shape),
            Some(Value::Text(text)) => {
                if !(1..=MAX_OBJECT).contains(&count(&text)) {
                    return Err(invalid(OBJECT.into()));
                }
                match Value::from_json(&text) {
                    None | Some(Value::Null) => Ok(BTreeMap::new()),
                    Some(value) => object(value).map_err(|_| ParamError::Shape),
                }
            }
            Some(value) => object(value).map_err(invalid),
        }
    }
}

/// None for the texts that count as not given: the empty one and `0`.
pub(super) fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty() && text != "0")
}

/// A text of so many characters, as bytes; `max` 0 is no limit.
pub(super) fn bytes(max: usize, min: usize) -> impl Fn(Value) -> Result<Vec<u8>, String> {
    move |value| match value {
        Value::Text(text) => {
            let length = count(&text);
            if length >= min && (max == 0 || length <= max) {
                Ok(text)
            } else {
                Err(length_description(max, min))
            }
        }
        _ => Err(length_description(max, min)),
    }
}

/// A text of so many characters; `max` 0 is no limit.
pub(super) fn text(max: usize, min: usize) -> impl Fn(Value) -> Result<String, String> {
    move |value| {
        String::from_utf8(bytes(max, min)(value)?).map_err(|_| length_description(max, min))
    }
}

/// A whole number of 32 bits.
pub(super) fn int(value: Value) -> Result<i32, String> {
    let number = match value {
        Value::Number(number) => number.as_i64().and_then(|wide| i32::try_from(wide).ok()),
        _ => None,
    };
    number.ok_or_else(|| INTEGER.into())
}

/// As [`int`], or the same as text.
pub(super) fn int_loose(value: Value) -> Result<i32, String> {
    match &value {
        Value::Text(text) => ascii(text)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| INTEGER.into()),
        _ => int(value),
    }
}

/// A number, or the same as text.
pub(super) fn float_loose(value: Value) -> Result<f64, String> {
    let is_digits = |text: &&str| text.bytes().all(|byte| b"0123456789+-.eE".contains(&byte));
    let number = match &value {
        Value::Number(number) => number.as_f64(),
        Value::Text(text) => ascii(text)
            .filter(is_digits)
            .and_then(|text| text.parse().ok()),
        _ => None,
    };
    number
        .filter(|number: &f64| number.is_finite())
        .ok_or_else(|| FLOAT.into())
}

/// A boolean.
pub(super) fn boolean(value: Value) -> Result<bool, String> {
    match value {
        Value::Bool(flag) => Ok(flag),
        _ => Err(BOOLEAN.into()),
    }
}

/// A boolean, or 1, 0, `true` or `false` as text.
pub(super) fn boolean_loose(value: Value) -> Result<bool, String> {
    match &value {
        Value::Number(number) => match number.as_i64() {
            Some(1) => Ok(true),
            Some(0) => Ok(false),
            _ => Err(BOOLEAN.into()),
        },
        Value::Text(text) => match text.to_ascii_lowercase().as_slice() {
            b"1" | b"true" => Ok(true),
            b"0" | b"false" => Ok(false),
            _ => Err(BOOLEAN.into()),
        },
        _ => boolean(value),
    }
}

/// A map, or an empty list.
pub(super) fn object(value: Value) -> Result<BTreeMap<String, Value>, String> {
    if value.json_len() > MAX_OBJECT {
        return Err(OBJECT.into());
    }
    match value {
        Value::Map(map) => Ok(map),
        Value::List(list) if list.is_empty() => Ok(BTreeMap::new()),
        _ => Err(OBJECT.into()),
    }
}

/// One of these texts, exactly.
pub(super) fn one_of(list: &[&str]) -> impl Fn(Value) -> Result<String, String> {
    let list: Vec<String> = list.iter().map(|item| (*item).to_owned()).collect();
    move |value| {
        let found = match value {
            Value::Text(text) => list.iter().find(|item| item.as_bytes() == text).cloned(),
            _ => None,
        };
        found.ok_or_else(|| format!("Value must be one of ({})", list.join(", ")))
    }
}

/// One of these texts in any case, told in lower case.
pub(super) fn one_of_loose(list: &[String]) -> impl Fn(Value) -> Result<String, String> {
    let list: Vec<String> = list.iter().map(|item| item.to_lowercase()).collect();
    move |value| {
        let text = value
            .to_text()
            .map(|text| String::from_utf8_lossy(&text).to_lowercase());
        text.filter(|text| list.contains(text))
            .ok_or_else(|| format!("Value must be one of ({})", list.join(", ")))
    }
}

/// A number's text: white space around it does not count.
fn ascii(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text.trim_ascii()).ok()
}

/// Characters, a byte that belongs to none counting as one.
fn count(text: &[u8]) -> usize {
    text.utf8_chunks()
        .map(|chunk| chunk.valid().chars().count() + chunk.invalid().len())
        .sum()
}

fn length_description(max: usize, min: usize) -> String {
    let mut text = "Value must be a valid string".to_owned();
    if min == max && min != 0 {
        return text + &format!(" and exactly {min} chars");
    }
    if min != 0 {
        text += &format!(" and at least {min} chars");
    }
    if max != 0 {
        text += &format!(" and no longer than {max} chars");
    }
    text
}

#[cfg(test)]
mod tests;

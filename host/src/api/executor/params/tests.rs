use std::fmt::Debug;

use super::*;

fn value(json: &str) -> Value {
    serde_json::from_str::<serde_json::Value>(json)
        .unwrap()
        .into()
}

/// Compares what `read` makes of a JSON value; an error is shown with `!` before it.
#[track_caller]
fn check<T: Debug>(read: impl Fn(Value) -> Result<T, String>, json: &str, expected: &str) {
    let shown = match read(value(json)) {
        Ok(read) => format!("{read:?}"),
        Err(description) => format!("!{description}"),
    };
    assert_eq!(shown, expected, "{json}");
}

#[test]
fn texts_count_characters() {
    const OF_64: &str =
        "!Value must be a valid string and at least 1 chars and no longer than 64 chars";
    check(text(64, 1), "\"a\"", "\"a\"");
    check(text(64, 1), "\"\"", OF_64);
    check(text(64, 1), "5", OF_64);
    check(text(64, 1), "true", OF_64);
    check(
        text(64, 1),
        &format!("\"{}\"", "ä".repeat(64)),
        &format!("{:?}", "ä".repeat(64)),
    );
    check(text(64, 1), &format!("\"{}\"", "a".repeat(65)), OF_64);
    check(
        text(2, 0),
        "\"abc\"",
        "!Value must be a valid string and no longer than 2 chars",
    );
    check(text(0, 0), "1", "!Value must be a valid string");
    check(
        text(0, 1),
        "\"\"",
        "!Value must be a valid string and at least 1 chars",
    );
    check(
        text(3, 3),
        "\"\"",
        "!Value must be a valid string and exactly 3 chars",
    );
    assert_eq!(bytes(3, 1)(Value::Text(vec![0xff; 3])), Ok(vec![0xff; 3]));
    assert!(bytes(3, 1)(Value::Text(vec![0xff; 4])).is_err());
}

#[test]
fn integers_are_of_32_bits() {
    let no = format!("!{INTEGER}");
    check(int, "45", "45");
    check(int, "-2147483648", "-2147483648");
    check(int, "2147483648", &no);
    check(int, "4.0", &no);
    check(int, "\"45\"", &no);
    check(int_loose, "\"45\"", "45");
    check(int_loose, "\" -3\"", "-3");
    check(int_loose, "45", "45");
    check(int_loose, "\"4.5\"", &no);
    check(int_loose, "\"5e2\"", &no);
    check(int_loose, "\"\"", &no);
    check(int_loose, "true", &no);
}

#[test]
fn floats_may_be_texts() {
    let no = format!("!{FLOAT}");
    check(float_loose, "1", "1.0");
    check(float_loose, "\"2.5\"", "2.5");
    check(float_loose, "\"5e2\"", "500.0");
    check(float_loose, "\"inf\"", &no);
    check(float_loose, "\"nan\"", &no);
    check(float_loose, "\"1e999\"", &no);
    check(float_loose, "\"\"", &no);
    check(float_loose, "[]", &no);
}

#[test]
fn booleans_may_be_texts_where_that_is_said() {
    let no = format!("!{BOOLEAN}");
    check(boolean, "true", "true");
    check(boolean, "1", &no);
    check(boolean_loose, "1", "true");
    check(boolean_loose, "0", "false");
    check(boolean_loose, "2", &no);
    check(boolean_loose, "\"1\"", "true");
    check(boolean_loose, "\"false\"", "false");
    check(boolean_loose, "\"\"", &no);
    check(boolean_loose, "false", "false");
}

#[test]
fn objects_are_maps_of_bounded_size() {
    let no = format!("!{OBJECT}");
    check(object, "{}", "{}");
    check(object, "[]", "{}");
    check(object, "[1]", &no);
    check(object, "\"{}\"", &no);
    check(
        object,
        &format!("{{\"a\":\"{}\"}}", "b".repeat(65_535)),
        &no,
    );
}

#[test]
fn choices_are_listed() {
    let list = ["v2".to_owned(), "V5".to_owned()];
    check(one_of(&["no", "always"]), "\"no\"", "\"no\"");
    check(
        one_of(&["no", "always"]),
        "\"No\"",
        "!Value must be one of (no, always)",
    );
    check(one_of_loose(&list), "\"V2\"", "\"v2\"");
    check(one_of_loose(&list), "2", "!Value must be one of (v2, v5)");
}

#[test]
fn absent_null_and_empty_are_told_apart() {
    #[track_caller]
    fn check(json: &str, expected: &str) {
        let Value::Map(map) = value(json) else {
            panic!("no map")
        };
        let mut params = Params(map);
        let shown = match params.optional("a", text(8, 1)) {
            Ok(read) => format!("{read:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{json}");
    }
    check("{}", "None");
    check(r#"{"a":null}"#, "None");
    check(r#"{"a":"x"}"#, r#"Some("x")"#);
    check(
        r#"{"a":""}"#,
        "Invalid `a` param: Value must be a valid string and at least 1 chars and no longer than 8 chars",
    );
    let missing = Params::default().required("a", text(8, 1)).unwrap_err();
    assert_eq!(missing.to_string(), "Param \"a\" is not optional.");
    assert_eq!(given(Some("0".into())), None);
    assert_eq!(given(Some("00".into())), Some("00".into()));
}

#[test]
fn objects_may_come_as_json_text() {
    #[track_caller]
    fn check(json: &str, expected: Result<usize, &str>) {
        let mut params = Params(BTreeMap::from([("a".to_owned(), value(json))]));
        let read = params.object_or_text("a").map(|map| map.len());
        let shown = read.map_err(|error| error.to_string());
        assert_eq!(shown, expected.map_err(str::to_owned), "{json}");
    }
    check(r#"{"x":1}"#, Ok(1));
    check(r#""{\"x\":1}""#, Ok(1));
    check(r#""[]""#, Ok(0));
    check(r#""null""#, Ok(0));
    check(r#""no json""#, Ok(0));
    check(r#""[1]""#, Err(OBJECT));
    check(r#""5""#, Err(OBJECT));
    check("null", Err(OBJECT));
    check(
        "[1]",
        Err("Invalid `a` param: Value must be a valid object."),
    );
    check(
        "\"\"",
        Err("Invalid `a` param: Value must be a valid object."),
    );
}

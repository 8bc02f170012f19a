//! JSON files into values, with the error texts of Go's decoder, which operators and their tools know.
//!
//! Not here: HCL (`hcl`), the meaning of keys (`schema`).

use super::value::Value;
use quorate_http_api::json_syntax;

/// Reads one JSON object. An empty text is an empty object.
pub fn parse(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Ok(Value::default());
    }
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|err| json_syntax::describe(text).unwrap_or_else(|| err.to_string()))?;
    let kind = match &json {
        serde_json::Value::Object(_) | serde_json::Value::Null => {
            return Ok(match convert(json) {
                Value::Null => Value::default(),
                map => map,
            });
        }
        serde_json::Value::Array(_) => "array",
        serde_json::Value::String(_) => "string",
        serde_json::Value::Number(_) => "number",
        serde_json::Value::Bool(_) => "bool",
    };
    Err(format!(
        "json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
    ))
}

fn convert(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(value) => Value::Int(value),
            None => Value::Float(number.as_f64().unwrap_or(f64::MAX)),
        },
        serde_json::Value::String(text) => Value::String(text),
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(convert).collect()),
        serde_json::Value::Object(map) => {
            Value::Map(map.into_iter().map(|(key, value)| (key, convert(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn syntax_errors_read_as_gos() {
        for (text, want) in [
            (
                r#"{"data_dir":"data",}"#,
                "invalid character '}' looking for beginning of object key string",
            ),
            ("{\"a\"", "unexpected end of JSON input"),
            (
                "[]",
                "json: cannot unmarshal array into Go value of type map[string]interface {}",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn an_empty_file_and_null_are_an_empty_object() {
        assert_eq!(parse(" \n").unwrap(), Value::default());
        assert_eq!(parse("null").unwrap(), Value::default());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }
    }
}

//! JSON files into values, with the error texts of Go's decoder, which operators and their tools know.
//!
//! Not here: HCL (`hcl`), the meaning of keys (`schema`).

use super::value::Value;

/// Reads one JSON object. An empty text is an empty object.
pub fn parse(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Ok(Value::default());
    }
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|err| describe(text).unwrap_or_else(|| err.to_string()))?;
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

/// What the scanner expects next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    AfterValue,
}

/// The first syntax error in the words of Go's `encoding/json`; `None` when this scanner finds none.
fn describe(text: &str) -> Option<String> {
    let mut open: Vec<char> = Vec::new();
    let mut expect = Expect::Value;
    let mut chars = text.chars().peekable();
    let wrong = |c: char, context: &str| {
        let quoted = match c {
            '\'' => r"'\''".to_owned(),
            '"' => "'\"'".to_owned(),
            c if c.is_control() => format!("'{}'", c.escape_default()),
            c => format!("'{c}'"),
        };
        Some(format!("invalid character {quoted} {context}"))
    };
    let end = || Some("unexpected end of JSON input".to_owned());
    loop {
        let Some(c) = chars.next() else {
            return if open.is_empty() && expect == Expect::AfterValue {
                None
            } else {
                end()
            };
        };
        if matches!(c, ' ' | '\t' | '\r' | '\n') {
            continue;
        }
        match expect {
            Expect::ValueOrEnd if c == ']' => {
                open.pop();
                expect = Expect::AfterValue;
            }
            Expect::KeyOrEnd if c == '}' => {
                open.pop();
                expect = Expect::AfterValue;
            }
            Expect::Value | Expect::ValueOrEnd => match c {
                '{' => {
                    open.push('{');
                    expect = Expect::KeyOrEnd;
                }
                '[' => {
                    open.push('[');
                    expect = Expect::ValueOrEnd;
                }
                '"' => {
                    if let Some(bad) = skip_string(&mut chars) {
                        return bad.map_or_else(end, |(c, context)| wrong(c, context));
                    }
                    expect = Expect::AfterValue;
                }
                't' | 'f' | 'n' => {
                    let word = match c {
                        't' => "true",
                        'f' => "false",
                        _ => "null",
                    };
                    for expected in word.chars().skip(1) {
                        match chars.next() {
                            None => return end(),
                            Some(c) if c == expected => {}
                            Some(c) => return wrong(c, &format!("in literal {word} (expecting '{expected}')")),
                        }
                    }
                    expect = Expect::AfterValue;
                }
                '-' | '0'..='9' => {
                    if c == '-' && !chars.peek().is_some_and(char::is_ascii_digit) {
                        return chars.next().map_or_else(end, |c| wrong(c, "in numeric literal"));
                    }
                    let more = |c: &char| matches!(c, '0'..='9' | '.' | 'e' | 'E' | '+' | '-');
                    while chars.next_if(more).is_some() {}
                    expect = Expect::AfterValue;
                }
                c => return wrong(c, "looking for beginning of value"),
            },
            Expect::Key | Expect::KeyOrEnd => {
                if c != '"' {
                    return wrong(c, "looking for beginning of object key string");
                }
                if let Some(bad) = skip_string(&mut chars) {
                    return bad.map_or_else(end, |(c, context)| wrong(c, context));
                }
                expect = Expect::Colon;
            }
            Expect::Colon => {
                if c != ':' {
                    return wrong(c, "after object key");
                }
                expect = Expect::Value;
            }
            Expect::AfterValue => match (open.last(), c) {
                (Some('{'), ',') => expect = Expect::Key,
                (Some('['), ',') => expect = Expect::Value,
                (Some('{'), '}') | (Some('['), ']') => {
                    open.pop();
                }
                (Some('{'), c) => return wrong(c, "after object key:value pair"),
                (Some(_), c) => return wrong(c, "after array element"),
                (None, c) => return wrong(c, "after top-level value"),
            },
        }
    }
}

/// Skips the rest of a string. `Some(None)`: the text ended within it; `Some(Some(..))`: a character is wrong in it.
fn skip_string(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Option<(char, &'static str)>> {
    loop {
        match chars.next() {
            None => return Some(None),
            Some('"') => return None,
            Some('\\') => match chars.next() {
                None => return Some(None),
                Some('"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {}
                Some('u') => {
                    for _ in 0..4 {
                        match chars.next() {
                            None => return Some(None),
                            Some(c) if c.is_ascii_hexdigit() => {}
                            Some(c) => return Some(Some((c, "in \\u hexadecimal character escape"))),
                        }
                    }
                }
                Some(c) => return Some(Some((c, "in string escape code"))),
            },
            Some(c) if c < ' ' => return Some(Some((c, "in string literal"))),
            Some(_) => {}
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
            (
                r#"{"data_dir":"data" "a":1}"#,
                "invalid character '\"' after object key:value pair",
            ),
            ("[1 2]", "invalid character '2' after array element"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{\"a\"", "unexpected end of JSON input"),
            ("{\"a\":tru}", "invalid character '}' in literal true (expecting 'e')"),
            ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
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

        #[test]
        fn what_serde_refuses_gets_a_reason(text in r#"[\{\}\[\]",:a-f0-9\\ ]{1,24}"#) {
            if let Err(reason) = parse(&text) {
                prop_assert!(!reason.is_empty());
            }
        }
    }
}

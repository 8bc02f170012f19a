//! What is wrong with a text that should be JSON, in the words of Go's `encoding/json`: operators and clients know them.
//!
//! In: a text that serde_json refused. Out: a sentence that names the character and what was expected.
//! Not here: values of the wrong type (`decode`, the agent's configuration), and reading JSON that is sound.

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

/// The first syntax error in the words of Go's `encoding/json`; `None` when there is none. One pass, and no recursion: the
/// text may be any stranger's.
pub fn describe(text: &str) -> Option<String> {
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
                    if let Err(context) = skip_number(c, &mut chars) {
                        return chars.next().map_or_else(end, |c| wrong(c, context));
                    }
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

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Skips the rest of a number that begins with `first`. `Err`: the character that comes next, or the end, is wrong there.
fn skip_number(first: char, chars: &mut Chars<'_>) -> Result<(), &'static str> {
    fn digits(chars: &mut Chars<'_>, context: &'static str) -> Result<(), &'static str> {
        chars.next_if(char::is_ascii_digit).ok_or(context)?;
        while chars.next_if(char::is_ascii_digit).is_some() {}
        Ok(())
    }
    let leading = match first {
        '-' => chars.next_if(char::is_ascii_digit).ok_or("in numeric literal")?,
        digit => digit,
    };
    // What follows a leading zero is not part of the number.
    if leading != '0' {
        while chars.next_if(char::is_ascii_digit).is_some() {}
    }
    if chars.next_if_eq(&'.').is_some() {
        digits(chars, "after decimal point in numeric literal")?;
    }
    if chars.next_if(|c| matches!(c, 'e' | 'E')).is_some() {
        chars.next_if(|c| matches!(c, '+' | '-'));
        digits(chars, "in exponent of numeric literal")?;
    }
    Ok(())
}

/// Skips the rest of a string. `Some(None)`: the text ended within it; `Some(Some(..))`: a character is wrong in it.
fn skip_string(chars: &mut Chars<'_>) -> Option<Option<(char, &'static str)>> {
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
            ("}", "invalid character '}' looking for beginning of value"),
            (
                r#"{"a":"data",}"#,
                "invalid character '}' looking for beginning of object key string",
            ),
            (
                "{a:1}",
                "invalid character 'a' looking for beginning of object key string",
            ),
            (
                "{'a':1}",
                r"invalid character '\'' looking for beginning of object key string",
            ),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (
                r#"{"a":"d" "b":1}"#,
                "invalid character '\"' after object key:value pair",
            ),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("{\"a\"", "unexpected end of JSON input"),
            ("{\"a\":tru}", "invalid character '}' in literal true (expecting 'e')"),
            ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
            (r#"{"a":"\x"}"#, "invalid character 'x' in string escape code"),
            (
                r#"{"a":"\u00g0"}"#,
                "invalid character 'g' in \\u hexadecimal character escape",
            ),
            ("[-]", "invalid character ']' in numeric literal"),
            ("[01]", "invalid character '1' after array element"),
            ("[1.]", "invalid character ']' after decimal point in numeric literal"),
            ("[1.2.3]", "invalid character '.' after array element"),
            ("[1e]", "invalid character ']' in exponent of numeric literal"),
            ("[1e+", "unexpected end of JSON input"),
        ] {
            assert_eq!(describe(text).as_deref(), Some(want), "{text}");
        }
        for text in ["null", "[-0.5e+3, 10, 0]", r#"{"a":[{}, "\u00e9"]}"#] {
            assert_eq!(describe(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_reason_is_found_exactly_where_serde_refuses(text in r#"[\{\}\[\]",:a-f0-9\\ .+-]{0,16}"#) {
            let refused = serde_json::from_str::<serde_json::Value>(&text).err().map(|err| err.to_string());
            // A number that no float holds is no mistake of syntax.
            let is_refused = refused.is_some_and(|reason| !reason.contains("out of range"));
            prop_assert_eq!(describe(&text).is_some(), is_refused, "{}", text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = describe(&text);
        }
    }
}

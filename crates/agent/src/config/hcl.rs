//! HCL 1 files into values.
//!
//! HCL 1 is what Consul's files are written in, and it is not HCL 2: keys may be quoted anywhere
//! (`service_ttl { "*" = "5s" }`), a newline ends nothing (`ports { http = 1 dns = 2 }`), a block's labels are map keys,
//! and `${...}` in a string is text. So this small parser exists beside the HCL 2 crates, which refuse such files.
//! A key that occurs again adds its block to a list; a scalar that occurs again replaces the former one.
//! In: a text. Out: a tree, or the first error with its line and column.
//! Invariant: no input panics, and nesting is bounded by `DEPTH_MAX`.

use super::value::{DEPTH_MAX, Value};
use std::collections::BTreeMap;

/// Labels of one block. No key of a configuration needs more than one.
const LABEL_COUNT_MAX: usize = 8;

/// Reads a file of HCL 1.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser {
        chars: text.strip_prefix('\u{feff}').unwrap_or(text).chars().collect(),
        at: 0,
    };
    let map = parser.items(0)?;
    Ok(Value::Map(map))
}

struct Parser {
    chars: Vec<char>,
    at: usize,
}

impl Parser {
    fn fail<T>(&self, at: usize, what: &str) -> Result<T, String> {
        let before = &self.chars[..at.min(self.chars.len())];
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
        Err(format!("At {line}:{column}: {what}"))
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars()
            .enumerate()
            .all(|(offset, c)| self.chars.get(self.at + offset) == Some(&c))
    }

    fn skip_space(&mut self) -> Result<(), String> {
        while let Some(c) = self.peek() {
            if c.is_whitespace() {
                self.at += 1;
            } else if c == '#' || self.starts_with("//") {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if self.starts_with("/*") {
                let start = self.at;
                self.at += 2;
                while !self.starts_with("*/") {
                    if self.peek().is_none() {
                        return self.fail(start, "comment not terminated");
                    }
                    self.at += 1;
                }
                self.at += 2;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Items up to the closing brace (which is consumed), or to the end of the file at depth 0.
    fn items(&mut self, depth: usize) -> Result<BTreeMap<String, Value>, String> {
        if depth > DEPTH_MAX {
            return self.fail(self.at, "blocks are nested too deeply");
        }
        let mut map = BTreeMap::new();
        loop {
            self.skip_space()?;
            match self.peek() {
                None if depth == 0 => return Ok(map),
                None => return self.fail(self.at, "object expected closing RBRACE got: EOF"),
                Some('}') if depth > 0 => {
                    self.at += 1;
                    return Ok(map);
                }
                Some(',') if depth > 0 => self.at += 1,
                Some(_) => self.item(&mut map, depth)?,
            }
        }
    }

    fn item(&mut self, map: &mut BTreeMap<String, Value>, depth: usize) -> Result<(), String> {
        let start = self.at;
        let mut keys = Vec::new();
        let value = loop {
            self.skip_space()?;
            match self.peek() {
                Some('=') => {
                    if keys.len() != 1 {
                        return self.fail(start, "an assignment needs one key before '='");
                    }
                    self.at += 1;
                    break self.value(depth)?;
                }
                Some('{') => {
                    if keys.is_empty() {
                        return self.fail(start, "expected: IDENT | STRING got: LBRACE");
                    }
                    self.at += 1;
                    break Value::Map(self.items(depth + 1)?);
                }
                Some('"') => keys.push(self.string()?),
                Some(c) if c.is_alphabetic() || c == '_' => keys.push(self.identifier()),
                Some(c) => return self.fail(self.at, &format!("illegal character {c:?} where a key is expected")),
                None => {
                    let key = keys.last().map_or("", String::as_str);
                    return self.fail(
                        start,
                        &format!("key '{key}' expected start of object ('{{') or assignment ('=')"),
                    );
                }
            }
            if keys.len() > LABEL_COUNT_MAX {
                return self.fail(start, "a block has too many labels");
            }
        };
        // `a "b" "c" { .. }` is `a { b { c { .. } } }`.
        let mut labels = keys.into_iter();
        let key = labels.next().expect("a value follows at least one key, checked above");
        let value = labels
            .rev()
            .fold(value, |inner, label| Value::Map(BTreeMap::from([(label, inner)])));
        add(map, key, value);
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return self.fail(self.at, "values are nested too deeply");
        }
        self.skip_space()?;
        let start = self.at;
        match self.peek() {
            None => self.fail(start, "a value is missing at the end of the file"),
            Some('"') => self.string().map(Value::String),
            Some('{') => {
                self.at += 1;
                self.items(depth + 1).map(Value::Map)
            }
            Some('[') => {
                self.at += 1;
                self.list(depth + 1)
            }
            Some('<') => self.heredoc().map(Value::String),
            Some(c) if c.is_ascii_digit() || c == '-' || c == '.' => self.number(),
            Some(c) if c.is_alphabetic() || c == '_' => match self.identifier().as_str() {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                word => self.fail(
                    start,
                    &format!("unknown word '{word}' where a value is expected; quote it"),
                ),
            },
            Some(c) => self.fail(start, &format!("illegal character {c:?} where a value is expected")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        loop {
            self.skip_space()?;
            match self.peek() {
                None => return self.fail(self.at, "list not terminated"),
                Some(']') => {
                    self.at += 1;
                    return Ok(Value::List(items));
                }
                Some(_) => items.push(self.value(depth)?),
            }
            self.skip_space()?;
            match self.peek() {
                Some(',') => self.at += 1,
                Some(']') => {}
                _ => return self.fail(self.at, "error parsing list, expected comma or list end"),
            }
        }
    }

    fn identifier(&mut self) -> String {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
        {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'))
        {
            self.at += 1;
        }
        let text: String = self.chars[start..self.at].iter().collect();
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text.as_str()),
        };
        let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
        let int = if let Some(hexadecimal) = hexadecimal {
            i64::from_str_radix(hexadecimal, 16).ok()
        } else if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) {
            i64::from_str_radix(digits, 8).ok()
        } else {
            digits.parse::<i64>().ok()
        };
        if let Some(int) = int {
            return Ok(Value::Int(sign * int));
        }
        match text.parse::<f64>() {
            Ok(float) if float.is_finite() => Ok(Value::Float(float)),
            _ => self.fail(start, &format!("'{text}' is not a number")),
        }
    }

    /// A quoted string. Within `${...}` quotes and braces nest and nothing is unescaped.
    fn string(&mut self) -> Result<String, String> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else {
                return self.fail(start, "literal not terminated");
            };
            self.at += 1;
            match c {
                '"' => return Ok(out),
                '\n' => return self.fail(start, "literal not terminated"),
                '\\' => self.escape(&mut out)?,
                '$' if self.peek() == Some('{') => {
                    out.push('$');
                    let mut braces = 0usize;
                    while let Some(c) = self.peek() {
                        self.at += 1;
                        out.push(c);
                        match c {
                            '{' => braces += 1,
                            '}' => braces -= 1,
                            _ => {}
                        }
                        if braces == 0 {
                            break;
                        }
                    }
                    if braces != 0 {
                        return self.fail(start, "expected terminating braces");
                    }
                }
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), String> {
        let start = self.at;
        let Some(c) = self.peek() else {
            return self.fail(start, "literal not terminated");
        };
        self.at += 1;
        let mut code = |parser: &mut Self, len: usize, radix: u32| {
            let digits: String = parser.chars.iter().skip(parser.at).take(len).collect();
            let code = if digits.chars().count() == len && digits.chars().all(|c| c.is_digit(radix)) {
                u32::from_str_radix(&digits, radix).ok().and_then(char::from_u32)
            } else {
                None
            };
            match code {
                Some(c) => {
                    parser.at += len;
                    out.push(c);
                    Ok(())
                }
                None => parser.fail(start, "illegal char escape"),
            }
        };
        match c {
            'x' => code(self, 2, 16),
            'u' => code(self, 4, 16),
            'U' => code(self, 8, 16),
            '0'..='7' => {
                self.at -= 1;
                code(self, 3, 8)
            }
            c => {
                out.push(match c {
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\u{b}',
                    '\\' | '"' => c,
                    _ => return self.fail(start, "illegal char escape"),
                });
                Ok(())
            }
        }
    }

    /// `<<MARK` up to a line with only the mark; `<<-MARK` also takes away the smallest common indentation.
    fn heredoc(&mut self) -> Result<String, String> {
        let start = self.at;
        if !self.starts_with("<<") {
            return self.fail(start, "heredoc expected second '<', didn't see it");
        }
        self.at += 2;
        let indented = self.peek() == Some('-');
        if indented {
            self.at += 1;
        }
        let mark: String = self.line().trim_end().to_owned();
        if mark.is_empty() || !mark.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return self.fail(start, "zero-length heredoc anchor");
        }
        let mut lines = Vec::new();
        loop {
            if self.peek().is_none() {
                return self.fail(start, "heredoc not terminated");
            }
            let line = self.line();
            if line.trim() == mark {
                break;
            }
            lines.push(line);
        }
        if indented {
            let blanks = |line: &String| line.chars().take_while(|c| *c == ' ' || *c == '\t').count();
            let common = lines.iter().filter(|line| !line.trim().is_empty()).map(blanks).min();
            for line in &mut lines {
                *line = line.chars().skip(common.unwrap_or(0).min(blanks(line))).collect();
            }
        }
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }

    /// The rest of the line, without its end, which is consumed.
    fn line(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(|c| c != '\n') {
            self.at += 1;
        }
        let end = self.at;
        self.at = (self.at + 1).min(self.chars.len());
        let line: String = self.chars[start..end].iter().collect();
        line.strip_suffix('\r').map_or(line.clone(), str::to_owned)
    }
}

fn add(map: &mut BTreeMap<String, Value>, key: String, value: Value) {
    match map.get_mut(&key) {
        Some(Value::List(blocks)) if matches!((blocks.last(), &value), (Some(Value::Map(_)), Value::Map(_))) => {
            blocks.push(value);
        }
        Some(first @ Value::Map(_)) if matches!(value, Value::Map(_)) => {
            let former = std::mem::replace(first, Value::Null);
            *first = Value::List(vec![former, value]);
        }
        Some(former) => *former = value,
        None => {
            map.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_maps_lists_comments_and_heredocs_are_read() {
        let tree = parse(
            r#"
            # a comment
            data_dir = "/tmp/\"x\"" // another
            ports { http = 1 dns = -1, }
            dns_config { service_ttl { "*" = "5s" "web" = "10s" } /* c */ }
            recursors = ["8.8.8.8", "1.1.1.1",]
            node_meta = { a = "${b {"c"} }" }
            mode = 0644
            rate = 1.5
            text = <<-EOF
                two
                  lines
            EOF
            "#,
        )
        .unwrap();
        assert_eq!(tree.get("data_dir").unwrap().as_str(), Some("/tmp/\"x\""));
        assert_eq!(tree.get("ports.dns"), Some(&Value::Int(-1)));
        let Some(Value::Map(ttl)) = tree.get("dns_config.service_ttl") else {
            panic!("service_ttl is a map")
        };
        assert_eq!(ttl["*"].as_str(), Some("5s"));
        assert!(matches!(tree.get("recursors"), Some(Value::List(items)) if items.len() == 2));
        assert_eq!(tree.get("node_meta.a").unwrap().as_str(), Some("${b {\"c\"} }"));
        assert_eq!(tree.get("mode"), Some(&Value::Int(0o644)));
        assert_eq!(tree.get("rate"), Some(&Value::Float(1.5)));
        assert_eq!(tree.get("text").unwrap().as_str(), Some("two\n  lines\n"));
    }

    #[test]
    fn labels_are_map_keys_and_blocks_add_up() {
        let tree = parse(r#"service "web" { port = 80 } check {} check { ttl = "1s" } check {} a = 1 a = 2"#).unwrap();
        assert_eq!(tree.get("service.web.port"), Some(&Value::Int(80)));
        assert!(matches!(tree.get("check"), Some(Value::List(items)) if items.len() == 3));
        assert_eq!(tree.get("a"), Some(&Value::Int(2)));
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, want) in [
            ("data_dir = ", "At 1:12: a value is missing at the end of the file"),
            ("a = 1\nb = \"x", "At 2:5: literal not terminated"),
            (
                "a = yes",
                "At 1:5: unknown word 'yes' where a value is expected; quote it",
            ),
            ("a {", "At 1:4: object expected closing RBRACE got: EOF"),
            ("}", "At 1:1: illegal character '}' where a key is expected"),
            ("a = [1 2]", "At 1:8: error parsing list, expected comma or list end"),
            ("a b = 1", "At 1:1: an assignment needs one key before '='"),
        ] {
            assert_eq!(parse(text).unwrap_err(), want, "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(parse(&"a {".repeat(100_000)).unwrap_err().contains("nested too deeply"));
        assert!(
            parse(&format!("a = {}", "[".repeat(100_000)))
                .unwrap_err()
                .contains("nested too deeply")
        );
        assert!(parse(&"a ".repeat(100_000)).unwrap_err().contains("too many labels"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in r#"[a-c="{}\[\],\$<E \n\\0-9#/*.-]{0,60}"#) {
            let _ = parse(&text);
        }
    }
}

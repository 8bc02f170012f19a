//! `?filter=`: Consul's boolean expressions over the fields of a record (the language of hashicorp/go-bexpr).
//!
//! ```text
//! or    := and ("or" and)*            and := not ("and" not)*
//! not   := "not" not | "(" or ")" | match
//! match := sel "==" val | sel "!=" val | sel "is" ["not"] "empty" | val ["not"] "in" sel
//!        | sel ["not"] "contains" val | sel ["not"] "matches" val
//! ```
//! In: a text and the [`Schema`] of the records, then records. Out: whether each matches. All that can be wrong with an
//! expression is found when it is parsed; evaluation cannot fail.
//! Invariants: no text panics; nesting, length, and the number and size of regular expressions are bounded.
//!
//! Not here: which fields a record has (`records`).

use regex::{Regex, RegexBuilder};
use std::borrow::Cow;
use thiserror::Error;

/// Longest expression: far above what is written by hand, far below a request head.
pub const FILTER_LEN_BYTES_MAX: usize = 64 * 1024;
/// Deepest nesting of parentheses and `not`: parser and evaluator recurse.
pub const FILTER_DEPTH_MAX: usize = 64;
/// Regular expressions in one filter, and the compiled size of each.
pub const FILTER_REGEX_COUNT_MAX: usize = 32;
pub const FILTER_REGEX_LEN_BYTES_MAX: usize = 1024 * 1024;

/// Fields by type: which selectors are valid, and which operators each takes.
#[derive(Debug)]
pub enum Schema {
    Text,
    Int,
    Bool,
    TextList,
    /// Text to text.
    TextMap,
    /// Text to a struct.
    Map(&'static Schema),
    Struct(&'static [(&'static str, Schema)]),
    /// A list of structs: a match on a field of theirs holds when it holds for any of them.
    List(&'static Schema),
    /// A struct whose fields are never set here (the service mesh's): every selector beneath it is a missing text.
    Unset,
}

/// A field of one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    Text(Cow<'a, str>),
    Int(i64),
    Bool(bool),
    /// The elements of a list of texts, or the keys of a map.
    List(Vec<&'a str>),
    /// The number of structs in a list.
    Count(usize),
    /// The field in each struct of a list.
    Many(Vec<Value<'a>>),
    /// A key the map does not have.
    Missing,
}

/// Something with fields. `path` is valid in the schema the filter was parsed with.
pub trait Record {
    fn value<'a>(&'a self, path: &[String]) -> Value<'a>;
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    #[error("{line}:{column} ({offset}): no match found, expected: {expected}")]
    Parse {
        line: usize,
        column: usize,
        offset: usize,
        expected: &'static str,
    },
    #[error("Selector {0:?} is not valid")]
    Selector(String),
    #[error("Invalid match operator {operator:?} for selector {selector:?}")]
    Operator { operator: &'static str, selector: String },
    #[error(
        "Failed to coerce value {value:?} for selector {selector:?}: strconv.{function}: parsing {value:?}: invalid syntax"
    )]
    Coerce {
        value: String,
        selector: String,
        function: &'static str,
    },
    #[error("Failed to compile regular expression {expression:?}: {reason}")]
    Regex { expression: String, reason: String },
    #[error("expression is longer than {FILTER_LEN_BYTES_MAX} bytes")]
    TooLong,
    #[error("expression is nested deeper than {FILTER_DEPTH_MAX} levels")]
    TooDeep,
    #[error("expression has more than {FILTER_REGEX_COUNT_MAX} regular expressions")]
    TooManyRegexes,
}

/// A parsed expression, checked against a schema.
#[derive(Clone, Debug)]
pub struct Filter {
    root: Expression,
}

#[derive(Clone, Debug)]
enum Expression {
    Or(Vec<Expression>),
    And(Vec<Expression>),
    Not(Box<Expression>),
    Match { path: Vec<String>, test: Test },
}

#[derive(Clone, Debug)]
enum Test {
    Equal(Literal),
    NotEqual(Literal),
    In(String),
    NotIn(String),
    IsEmpty,
    IsNotEmpty,
    Matches(Regex),
    NotMatches(Regex),
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Text(String),
    Int(i64),
    Bool(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    In,
    NotIn,
    IsEmpty,
    IsNotEmpty,
    Matches,
    NotMatches,
}

impl Operator {
    /// go-bexpr's name.
    const fn name(self) -> &'static str {
        match self {
            Self::Equal => "Equal",
            Self::NotEqual => "Not Equal",
            Self::In => "In",
            Self::NotIn => "Not In",
            Self::IsEmpty => "Is Empty",
            Self::IsNotEmpty => "Is Not Empty",
            Self::Matches => "Matches",
            Self::NotMatches => "Not Matches",
        }
    }
}

impl Schema {
    fn find(&self, path: &[String]) -> Option<&Schema> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        match self {
            Self::Text | Self::Int | Self::Bool | Self::TextList => None,
            Self::TextMap => rest.is_empty().then_some(&Self::Text),
            Self::Map(of) => of.find(rest),
            Self::List(of) => of.find(path),
            Self::Struct(fields) => fields.iter().find(|(name, _)| name == first)?.1.find(rest),
            Self::Unset => Some(&Self::Text),
        }
    }

    fn takes(&self, operator: Operator) -> bool {
        use Operator::{Equal, In, IsEmpty, IsNotEmpty, Matches, NotEqual, NotIn, NotMatches};
        match self {
            Self::Text => matches!(operator, Equal | NotEqual | In | NotIn | Matches | NotMatches),
            Self::Int | Self::Bool => matches!(operator, Equal | NotEqual),
            Self::TextList | Self::TextMap | Self::Map(_) => matches!(operator, In | NotIn | IsEmpty | IsNotEmpty),
            Self::List(_) => matches!(operator, IsEmpty | IsNotEmpty),
            Self::Struct(_) | Self::Unset => false,
        }
    }
}

impl Filter {
    pub fn parse(text: &str, schema: &'static Schema) -> Result<Self, FilterError> {
        if text.len() > FILTER_LEN_BYTES_MAX {
            return Err(FilterError::TooLong);
        }
        let mut parser = Parser {
            text,
            at: 0,
            depth: 0,
            regex_count: 0,
            schema,
        };
        let root = parser.or()?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.error("\"and\", \"or\" or the end of the expression"));
        }
        Ok(Self { root })
    }

    pub fn matches(&self, record: &impl Record) -> bool {
        self.root.holds(record)
    }
}

impl Expression {
    fn holds(&self, record: &impl Record) -> bool {
        match self {
            Self::Or(parts) => parts.iter().any(|part| part.holds(record)),
            Self::And(parts) => parts.iter().all(|part| part.holds(record)),
            Self::Not(part) => !part.holds(record),
            Self::Match { path, test } => test.holds(&record.value(path)),
        }
    }
}

impl Test {
    fn holds(&self, value: &Value<'_>) -> bool {
        if let Value::Many(values) = value {
            // Of a negated test too (go-bexpr): `Checks.Status != passing` finds what has any other check.
            return values.iter().any(|value| self.holds(value));
        }
        match self {
            Self::Equal(literal) => literal.equals(value),
            Self::NotEqual(literal) => !literal.equals(value),
            Self::In(part) => contains(value, part),
            Self::NotIn(part) => !contains(value, part),
            Self::IsEmpty => is_empty(value),
            Self::IsNotEmpty => !is_empty(value),
            Self::Matches(regex) => matches!(value, Value::Text(text) if regex.is_match(text)),
            Self::NotMatches(regex) => !matches!(value, Value::Text(text) if regex.is_match(text)),
        }
    }
}

impl Literal {
    fn equals(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(mine), Value::Text(theirs)) => mine == theirs,
            (Self::Int(mine), Value::Int(theirs)) => mine == theirs,
            (Self::Bool(mine), Value::Bool(theirs)) => mine == theirs,
            _ => false,
        }
    }
}

fn contains(value: &Value<'_>, part: &str) -> bool {
    match value {
        Value::Text(text) => text.contains(part),
        Value::List(elements) => elements.contains(&part),
        _ => false,
    }
}

fn is_empty(value: &Value<'_>) -> bool {
    match value {
        Value::List(elements) => elements.is_empty(),
        Value::Count(count) => *count == 0,
        Value::Text(text) => text.is_empty(),
        Value::Missing => true,
        Value::Int(_) | Value::Bool(_) | Value::Many(_) => false,
    }
}

/// A word or literal at the start of a match: bare words may turn out as either.
enum Operand {
    Selector(Vec<String>),
    Literal(String),
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    regex_count: usize,
    schema: &'static Schema,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error(&self, expected: &'static str) -> FilterError {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        FilterError::Parse {
            line,
            column,
            offset: self.at,
            expected,
        }
    }

    fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = self.rest().starts_with(symbol);
        if found {
            self.at += symbol.len();
        }
        found
    }

    /// A keyword, and not the beginning of a longer word.
    fn keyword(&mut self, word: &str) -> bool {
        self.space();
        let is_whole = self.rest().strip_prefix(word).is_some_and(|after| {
            !after.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '['))
        });
        if is_whole {
            self.at += word.len();
        }
        is_whole
    }

    fn or(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.and()?];
        while self.keyword("or") {
            parts.push(self.and()?);
        }
        Ok(if parts.len() == 1 {
            parts.remove(0)
        } else {
            Expression::Or(parts)
        })
    }

    fn and(&mut self) -> Result<Expression, FilterError> {
        let mut parts = vec![self.not()?];
        while self.keyword("and") {
            parts.push(self.not()?);
        }
        Ok(if parts.len() == 1 {
            parts.remove(0)
        } else {
            Expression::And(parts)
        })
    }

    fn not(&mut self) -> Result<Expression, FilterError> {
        if self.depth == FILTER_DEPTH_MAX {
            return Err(FilterError::TooDeep);
        }
        self.depth += 1;
        let expression = if self.keyword("not") {
            Expression::Not(Box::new(self.not()?))
        } else if self.symbol("(") {
            let inner = self.or()?;
            self.space();
            if !self.symbol(")") {
                return Err(self.error("\")\""));
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn comparison(&mut self) -> Result<Expression, FilterError> {
        let operand = self.operand()?;
        self.space();
        if self.symbol("==") {
            return self.selector_first(operand, Operator::Equal);
        }
        if self.symbol("!=") {
            return self.selector_first(operand, Operator::NotEqual);
        }
        if self.keyword("is") {
            let operator = if self.keyword("not") {
                Operator::IsNotEmpty
            } else {
                Operator::IsEmpty
            };
            if !self.keyword("empty") {
                return Err(self.error("\"empty\""));
            }
            return self.selector_first(operand, operator);
        }
        let negated = self.keyword("not");
        if self.keyword("in") {
            let literal = match operand {
                Operand::Literal(text) => text,
                Operand::Selector(path) => path.join("."),
            };
            self.space();
            let Operand::Selector(path) = self.operand()? else {
                return Err(self.error("a selector"));
            };
            return self.checked(path, if negated { Operator::NotIn } else { Operator::In }, literal);
        }
        if self.keyword("contains") {
            return self.selector_first(operand, if negated { Operator::NotIn } else { Operator::In });
        }
        if self.keyword("matches") {
            return self.selector_first(
                operand,
                if negated {
                    Operator::NotMatches
                } else {
                    Operator::Matches
                },
            );
        }
        Err(self.error("an operator"))
    }

    fn selector_first(&mut self, operand: Operand, operator: Operator) -> Result<Expression, FilterError> {
        let Operand::Selector(path) = operand else {
            return Err(self.error("\"in\" or \"not in\" after a value"));
        };
        let literal = match operator {
            Operator::IsEmpty | Operator::IsNotEmpty => String::new(),
            _ => {
                self.space();
                match self.operand()? {
                    Operand::Literal(text) => text,
                    Operand::Selector(path) => path.join("."),
                }
            }
        };
        self.checked(path, operator, literal)
    }

    /// Checks selector, operator and value, in the order in which go-bexpr complains.
    fn checked(&mut self, path: Vec<String>, operator: Operator, literal: String) -> Result<Expression, FilterError> {
        let field = self
            .schema
            .find(&path)
            .ok_or_else(|| FilterError::Selector(path.join(".")))?;
        if !field.takes(operator) {
            return Err(FilterError::Operator {
                operator: operator.name(),
                selector: path.join("."),
            });
        }
        let coerce = |literal: String| {
            let error = |function| FilterError::Coerce {
                value: literal.clone(),
                selector: path.join("."),
                function,
            };
            match field {
                Schema::Int => literal.parse().map(Literal::Int).map_err(|_| error("ParseInt")),
                Schema::Bool => crate::go::parse_bool(&literal)
                    .map(Literal::Bool)
                    .ok_or_else(|| error("ParseBool")),
                _ => Ok(Literal::Text(literal)),
            }
        };
        let test = match operator {
            Operator::Equal => Test::Equal(coerce(literal)?),
            Operator::NotEqual => Test::NotEqual(coerce(literal)?),
            Operator::In => Test::In(literal),
            Operator::NotIn => Test::NotIn(literal),
            Operator::IsEmpty => Test::IsEmpty,
            Operator::IsNotEmpty => Test::IsNotEmpty,
            Operator::Matches => Test::Matches(self.regex(&literal)?),
            Operator::NotMatches => Test::NotMatches(self.regex(&literal)?),
        };
        Ok(Expression::Match { path, test })
    }

    fn regex(&mut self, expression: &str) -> Result<Regex, FilterError> {
        if self.regex_count == FILTER_REGEX_COUNT_MAX {
            return Err(FilterError::TooManyRegexes);
        }
        self.regex_count += 1;
        RegexBuilder::new(expression)
            .size_limit(FILTER_REGEX_LEN_BYTES_MAX)
            .dfa_size_limit(FILTER_REGEX_LEN_BYTES_MAX)
            .build()
            .map_err(|error| FilterError::Regex {
                expression: expression.to_owned(),
                reason: error.to_string(),
            })
    }

    fn operand(&mut self) -> Result<Operand, FilterError> {
        match self.rest().as_bytes().first() {
            Some(b'"') | Some(b'`') => self.quoted().map(Operand::Literal),
            Some(b'-' | b'0'..=b'9') => self.number().map(Operand::Literal),
            Some(byte) if byte.is_ascii_alphabetic() => self.selector().map(Operand::Selector),
            _ => Err(self.error("a selector or a value")),
        }
    }

    /// Escapes are not interpreted: regular expressions need their backslashes.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let quote = self.rest().chars().next().expect("the caller saw a quote");
        let inside = &self.rest()[1..];
        let Some(len) = inside.find(quote) else {
            return Err(self.error("a closing quote"));
        };
        let text = inside[..len].to_owned();
        self.at += len + 2;
        Ok(text)
    }

    /// `-?(0|[1-9][0-9]*)(\.[0-9]+)?`
    fn number(&mut self) -> Result<String, FilterError> {
        let bytes = self.rest().as_bytes();
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let sign = usize::from(bytes[0] == b'-');
        let whole = match bytes.get(sign) {
            Some(b'0') => 1,
            Some(b'1'..=b'9') => digits(sign),
            _ => return Err(self.error("a number")),
        };
        let mut len = sign + whole;
        if bytes.get(len) == Some(&b'.') {
            match digits(len + 1) {
                0 => {}
                fraction => len += 1 + fraction,
            }
        }
        let text = self.rest()[..len].to_owned();
        self.at += len;
        if self
            .rest()
            .starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
        {
            return Err(self.error("the end of the number"));
        }
        Ok(text)
    }

    fn identifier(&mut self) -> Result<String, FilterError> {
        let rest = self.rest();
        if !rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(self.error("an identifier"));
        }
        let len = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(rest.len());
        let text = rest[..len].to_owned();
        self.at += len;
        Ok(text)
    }

    fn selector(&mut self) -> Result<Vec<String>, FilterError> {
        let mut path = vec![self.identifier()?];
        loop {
            if self.symbol(".") {
                path.push(self.identifier()?);
            } else if self.symbol("[") {
                self.space();
                if !self.rest().starts_with(['"', '`']) {
                    return Err(self.error("a quoted key"));
                }
                path.push(self.quoted()?);
                self.space();
                if !self.symbol("]") {
                    return Err(self.error("\"]\""));
                }
            } else {
                return Ok(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHECK: Schema = Schema::Struct(&[("Status", Schema::Text)]);
    const SCHEMA: Schema = Schema::Struct(&[
        ("Name", Schema::Text),
        ("Port", Schema::Int),
        ("Up", Schema::Bool),
        ("Tags", Schema::TextList),
        ("Meta", Schema::TextMap),
        ("Checks", Schema::List(&CHECK)),
        ("Proxy", Schema::Unset),
        ("Node", Schema::Struct(&[("ID", Schema::Text)])),
    ]);

    struct Thing;

    impl Record for Thing {
        fn value<'a>(&'a self, path: &[String]) -> Value<'a> {
            let text = |text| Value::Text(Cow::Borrowed(text));
            match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["Name"] => text("web-1"),
                ["Port"] => Value::Int(80),
                ["Up"] => Value::Bool(true),
                ["Tags"] => Value::List(vec!["a", "b"]),
                ["Meta"] => Value::List(vec!["v", "a-b"]),
                ["Meta", "v"] => text("1"),
                ["Meta", "a-b"] => text("x"),
                ["Checks"] => Value::Count(2),
                ["Checks", "Status"] => Value::Many(vec![text("passing"), text("critical")]),
                _ => Value::Missing,
            }
        }
    }

    #[track_caller]
    fn check(text: &str, wanted: bool) {
        let filter = Filter::parse(text, &SCHEMA).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(filter.matches(&Thing), wanted, "{text}");
    }

    #[track_caller]
    fn check_error(text: &str, wanted: &str) {
        let error = Filter::parse(text, &SCHEMA).expect_err(text).to_string();
        assert!(error.starts_with(wanted), "{text}: {error}");
    }

    #[test]
    fn each_operator_holds_where_the_contract_says() {
        check("Name == `web-1`", true);
        check("Name==\"web-1\"", true);
        check("Name != web", true);
        check("web in Name", true);
        check("\"db\" not in Name", true);
        check("Name contains web", true);
        check("Name not contains web", false);
        check("Name matches `^w.b-[0-9]$`", true);
        check("Name not matches \"^db\"", true);
        check("Name matches `(?i)WEB`", true);
        check("Port == 80", true);
        check("Port != 80", false);
        check("Port == \"80\"", true);
        check("Up == true", true);
        check("Up != 0", true);
        check("a in Tags", true);
        check("Tags contains c", false);
        check("Tags is not empty", true);
        check("Tags is empty", false);
        check("v in Meta", true);
        check("Meta contains x", false);
        check("Meta.v == 1", true);
        check("Meta[\"a-b\"] == x", true);
        check("Meta.none == 1", false);
        check("Meta.none != 1", true);
        check("Meta.none matches `.*`", false);
        check("Checks is not empty", true);
        check("Checks.Status == critical", true);
        check("Checks.Status != critical", true);
        check("Checks.Status == warning", false);
        check("Proxy.DestinationServiceName == x", false);
    }

    #[test]
    fn not_binds_tighter_than_and_and_and_than_or() {
        check("Port == 81 and Port == 80 or Port == 80", true);
        check("Port == 80 or Port == 80 and Port == 81", true);
        check("(Port == 80 or Port == 80) and Port == 81", false);
        check("not Port == 81 and Port == 80", true);
        check("not (Port == 81 and Port == 80)", true);
        check("not not Port == 80", true);
        check("  ( not(Port==81) )  ", true);
    }

    #[test]
    fn errors_have_consuls_words() {
        check_error("Bogus==1", "Selector \"Bogus\" is not valid");
        check_error("Meta.a.b==1", "Selector \"Meta.a.b\" is not valid");
        check_error("Tags==a", "Invalid match operator \"Equal\" for selector \"Tags\"");
        check_error("Node==x", "Invalid match operator \"Equal\" for selector \"Node\"");
        check_error(
            "Name is empty",
            "Invalid match operator \"Is Empty\" for selector \"Name\"",
        );
        check_error(
            "Port==abc",
            "Failed to coerce value \"abc\" for selector \"Port\": strconv.ParseInt: parsing \"abc\": invalid syntax",
        );
        check_error("Name matches `(`", "Failed to compile regular expression \"(\": ");
        check_error("Name = x", "1:6 (5): no match found, expected: ");
        check_error("Name", "1:5 (4): no match found, expected: ");
        check_error("", "1:1 (0): no match found");
        for text in [
            "Name == 'x'",
            "Port > 1",
            "true",
            "Name == \"f\\\"1\"",
            "Name == 10.0.0.1",
            "(Port == 1",
            "Name AND Name",
        ] {
            check_error(text, "1:");
        }
    }

    #[test]
    fn an_expression_nested_too_deep_is_refused_not_followed() {
        let nested = |levels: usize| format!("{}Port == 80{}", "(".repeat(levels), ")".repeat(levels));
        check(&nested(FILTER_DEPTH_MAX - 1), true);
        assert_eq!(
            Filter::parse(&nested(FILTER_DEPTH_MAX), &SCHEMA).unwrap_err(),
            FilterError::TooDeep
        );
        let nots = "not ".repeat(10_000) + "Port == 80";
        assert_eq!(Filter::parse(&nots, &SCHEMA).unwrap_err(), FilterError::TooDeep);
        let long = "Port == 80 or ".repeat(10_000) + "Port == 80";
        assert_eq!(Filter::parse(&long, &SCHEMA).unwrap_err(), FilterError::TooLong);
        let regexes = "Name matches a or ".repeat(FILTER_REGEX_COUNT_MAX) + "Name matches a";
        assert_eq!(
            Filter::parse(&regexes, &SCHEMA).unwrap_err(),
            FilterError::TooManyRegexes
        );
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(vec![
                "Name", "Port", "Tags", "Meta", ".", "[", "]", "(", ")", "not", "and", "or", "in", "is", "empty",
                "contains", "matches", "==", "!=", "\"", "`", "a", "1", "-1.5", " ", "é", "\n",
            ])
            .prop_map(str::to_owned),
            "\\PC{0,3}",
        ]
    }

    proptest! {
        #[test]
        fn no_text_breaks_parser_or_evaluator(pieces in prop::collection::vec(piece(), 0..24), spaced in any::<bool>()) {
            let text = pieces.join(if spaced { " " } else { "" });
            if let Ok(filter) = Filter::parse(&text, &SCHEMA) {
                filter.matches(&Thing);
            }
        }

        #[test]
        fn a_negated_filter_is_its_complement(names in prop::collection::vec("[a-z]{1,3}", 1..4)) {
            let plain = names.iter().map(|name| format!("{name} in Tags")).collect::<Vec<_>>().join(" or ");
            let filter = Filter::parse(&plain, &SCHEMA).unwrap();
            let negated = Filter::parse(&format!("not ({plain})"), &SCHEMA).unwrap();
            prop_assert_ne!(filter.matches(&Thing), negated.matches(&Thing));
        }
    }
}

//! Command-line flags the way Go's `flag` package takes them, which scripts written for Consul rely on.
//!
//! `-name value`, `-name=value` and `--name` are one; a boolean takes a value only after `=`; the first argument that is no
//! flag ends them, as does `--`. In: the declared flags and the arguments. Out: typed values, or the text Go would print.
//! Not here: what a flag means, and the environment.

use std::collections::BTreeMap;

/// What a flag's value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that may be given more than once.
    Texts,
    /// `-x`, `-x=false`.
    Boolean,
    Integer,
    /// Accepted so that scripts for Consul run; it changes nothing.
    Ignored,
}

/// A declared flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

pub const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, help }
}

/// Why arguments were not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlagError {
    /// `-h` or `-help` was asked for.
    Help,
    /// Go's sentence.
    Mistake(String),
}

/// The values given, and the arguments after the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    values: BTreeMap<&'static str, Vec<String>>,
    pub arguments: Vec<String>,
}

impl Flags {
    /// Whether the flag was given at all.
    pub fn is_given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }
    /// The last value given, or the empty text.
    pub fn text(&self, name: &str) -> &str {
        self.texts(name).last().map_or("", String::as_str)
    }
    pub fn texts(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }
    pub fn boolean(&self, name: &str) -> bool {
        self.values
            .get(name)
            .is_some_and(|values| values.last().is_some_and(|value| value == "true"))
    }
    pub fn integer(&self, name: &str) -> u64 {
        let text = self.texts(name).last().map_or("0", String::as_str);
        text.parse().expect("an integer flag was checked when it was taken")
    }
}

/// Takes the declared flags from the front of `arguments`.
pub fn parse<'a>(declared: impl Iterator<Item = &'a Flag> + Clone, arguments: &[String]) -> Result<Flags, FlagError> {
    let mut flags = Flags::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.as_slice().first() {
        let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
            break;
        };
        rest.next();
        if text == "-" {
            break;
        }
        let text = text.strip_prefix('-').unwrap_or(text);
        if text.is_empty() || text.starts_with(['-', '=']) {
            return Err(FlagError::Mistake(format!("bad flag syntax: {argument}")));
        }
        let (name, given) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let Some(flag) = declared.clone().find(|flag| flag.name == name) else {
            if name == "h" || name == "help" {
                return Err(FlagError::Help);
            }
            return Err(FlagError::Mistake(format!("flag provided but not defined: -{name}")));
        };
        let value = match (flag.kind, given) {
            (Kind::Boolean, given) => boolean_value(name, given.as_deref())?,
            (_, Some(given)) => given,
            (_, None) => match rest.next() {
                Some(next) => next.clone(),
                None => return Err(FlagError::Mistake(format!("flag needs an argument: -{name}"))),
            },
        };
        if flag.kind == Kind::Integer && value.parse::<u64>().is_err() {
            return Err(FlagError::Mistake(format!(
                "invalid value {value:?} for flag -{name}: parse error"
            )));
        }
        flags.values.entry(flag.name).or_default().push(value);
    }
    flags.arguments = rest.cloned().collect();
    Ok(flags)
}

/// The values Go's `strconv.ParseBool` takes.
pub fn parse_boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn boolean_value(name: &str, given: Option<&str>) -> Result<String, FlagError> {
    let Some(text) = given else {
        return Ok("true".to_owned());
    };
    match parse_boolean(text) {
        Some(value) => Ok(value.to_string()),
        None => Err(FlagError::Mistake(format!(
            "invalid boolean value {text:?} for -{name}: parse error"
        ))),
    }
}

/// One line a flag, for a command's help.
pub fn help<'a>(declared: impl Iterator<Item = &'a Flag>) -> String {
    let mut text = String::new();
    for flag in declared {
        let value = match flag.kind {
            Kind::Boolean => "",
            Kind::Integer => "=<int>",
            Kind::Text | Kind::Texts | Kind::Ignored => "=<string>",
        };
        text.push_str(&format!("  -{}{value}\n      {}\n", flag.name, flag.help));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECLARED: &[Flag] = &[
        flag("cas", Kind::Boolean, ""),
        flag("flags", Kind::Integer, ""),
        flag("tag", Kind::Texts, ""),
        flag("session", Kind::Text, ""),
    ];

    fn take(line: &str) -> Result<Flags, FlagError> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(DECLARED.iter(), &arguments)
    }

    #[track_caller]
    fn check_mistake(line: &str, text: &str) {
        assert_eq!(take(line), Err(FlagError::Mistake(text.to_owned())));
    }

    #[test]
    fn one_dash_or_two_and_a_space_or_an_equals_sign_are_one() {
        for line in [
            "-session x -flags 7 k",
            "--session=x --flags=7 k",
            "-session=x --flags 7 k",
        ] {
            let flags = take(line).unwrap();
            assert_eq!((flags.text("session"), flags.integer("flags")), ("x", 7));
            assert_eq!(flags.arguments, ["k"]);
        }
    }

    #[test]
    fn a_boolean_takes_no_value_from_the_next_argument() {
        let flags = take("-cas false").unwrap();
        assert!(flags.boolean("cas"));
        assert_eq!(flags.arguments, ["false"]);
        assert!(!take("-cas=false").unwrap().boolean("cas"));
        assert!(take("-cas=false").unwrap().is_given("cas"));
        assert!(!take("").unwrap().is_given("cas"));
    }

    #[test]
    fn flags_end_at_the_first_argument_or_two_dashes() {
        assert_eq!(take("k -cas").unwrap().arguments, ["k", "-cas"]);
        assert_eq!(take("-cas -- -cas").unwrap().arguments, ["-cas"]);
        assert_eq!(take("-cas -").unwrap().arguments, ["-"]);
    }

    #[test]
    fn a_repeated_flag_keeps_all_its_values() {
        assert_eq!(take("-tag a -tag=b").unwrap().texts("tag"), ["a", "b"]);
        assert_eq!(take("-session a -session=b").unwrap().text("session"), "b");
    }

    #[test]
    fn mistakes_read_as_gos() {
        check_mistake("-bogus", "flag provided but not defined: -bogus");
        check_mistake("-flags abc", "invalid value \"abc\" for flag -flags: parse error");
        check_mistake("-cas=maybe", "invalid boolean value \"maybe\" for -cas: parse error");
        check_mistake("-session", "flag needs an argument: -session");
        check_mistake("---session", "bad flag syntax: ---session");
        check_mistake("-=x", "bad flag syntax: -=x");
        assert_eq!(take("-cas -h"), Err(FlagError::Help));
        assert_eq!(take("--help"), Err(FlagError::Help));
    }
}

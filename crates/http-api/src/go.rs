//! What clients of a Go server rely on: durations, integers, quoted texts and form encoding as Go's standard library
//! reads and writes them.
//!
//! Not here: where they occur (`params`, `decode`, `json`).

use std::time::Duration;
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DurationError {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit { text: String, unit: String },
}

/// `time.ParseDuration`: a sequence of decimal numbers with units, `1h5m`, `1.5h`, `300ms`. Signed nanoseconds.
pub fn parse_duration_nanos(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let whole_text = &rest[..digits];
        rest = &rest[digits..];
        let mut fraction_text = "";
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            fraction_text = &after[..digits];
            rest = &after[digits..];
        }
        if whole_text.is_empty() && fraction_text.is_empty() {
            return Err(invalid());
        }
        let unit_len = rest
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (unit, after) = rest.split_at(unit_len);
        rest = after;
        let unit_nanos: i128 = match unit {
            "" => return Err(DurationError::MissingUnit(text.to_owned())),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(DurationError::UnknownUnit {
                    text: text.to_owned(),
                    unit: unit.to_owned(),
                });
            }
        };
        let whole: i128 = if whole_text.is_empty() {
            0
        } else {
            i128::from(whole_text.parse::<u64>().map_err(|_| invalid())?)
        };
        // Beyond 18 digits a fraction of an hour is below a nanosecond.
        let fraction_text = &fraction_text[..fraction_text.len().min(18)];
        let mut fraction: i128 = 0;
        let mut scale: i128 = 1;
        for digit in fraction_text.bytes() {
            fraction = fraction * 10 + i128::from(digit - b'0');
            scale *= 10;
        }
        total += whole * unit_nanos + fraction * unit_nanos / scale;
        if total > i128::from(i64::MAX) {
            return Err(invalid());
        }
    }
    let nanos = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if negative { -nanos } else { nanos })
}

/// `Duration.String`: `0s`, `1.5s`, `1h0m0s`, `100ms`.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let with_fraction = |nanos: u128, unit: u128, suffix: &str| {
        let whole = nanos / unit;
        let rest = nanos % unit;
        if rest == 0 {
            return format!("{whole}{suffix}");
        }
        let width = unit.ilog10() as usize;
        let fraction = format!("{rest:0width$}");
        format!("{whole}.{}{suffix}", fraction.trim_end_matches('0'))
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_fraction(nanos, 1_000, "µs"),
        1_000_000..1_000_000_000 => with_fraction(nanos, 1_000_000, "ms"),
        _ => {
            let hours = nanos / 3_600_000_000_000;
            let minutes = nanos / 60_000_000_000 % 60;
            let seconds = with_fraction(nanos % 60_000_000_000, 1_000_000_000, "s");
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, _) => format!("{minutes}m{seconds}"),
                _ => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UintError {
    #[error("strconv.ParseUint: parsing {0:?}: invalid syntax")]
    Syntax(String),
    #[error("strconv.ParseUint: parsing {0:?}: value out of range")]
    Range(String),
}

/// `strconv.ParseUint(text, 10, 64)`.
pub fn parse_uint(text: &str) -> Result<u64, UintError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UintError::Syntax(text.to_owned()));
    }
    text.parse().map_err(|_| UintError::Range(text.to_owned()))
}

/// A number as `encoding/json` writes it: the shortest that reads back as the same, with an exponent only far from 1.
pub fn format_float(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{value:e}");
        return match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent}"),
            _ => text,
        };
    }
    format!("{value}")
}

/// `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `url.QueryUnescape`: `+` is a space; `None` for a broken escape or what is not UTF-8.
pub fn query_unescape(text: &str) -> Option<String> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(text.to_owned());
    }
    unescape(text, true)
}

/// `url.PathUnescape`.
pub fn path_unescape(text: &str) -> Option<String> {
    unescape(text, false)
}

fn unescape(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte")
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// `url.Values.Encode`: pairs sorted by key, escaped for a form.
pub fn encode_form(pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<&(String, String)> = pairs.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0)); // Stable: values of one key keep their order.
    let mut text = String::new();
    for (key, value) in sorted {
        if !text.is_empty() {
            text.push('&');
        }
        escape_form_into(&mut text, key);
        text.push('=');
        escape_form_into(&mut text, value);
    }
    text
}

fn escape_form_into(text: &mut String, part: &str) {
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(byte as char),
            b' ' => text.push('+'),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// A path as `url.URL.EscapedPath` writes it.
pub fn escape_path(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => text.push(byte as char),
            b'-' | b'_' | b'.' | b'~' | b'/' | b'$' | b'&' | b'+' | b',' | b':' | b';' | b'=' | b'@' => {
                text.push(byte as char);
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_go_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (1.5, "1.5"),
            (0.00001, "0.00001"),
            (0.000001, "0.000001"),
            (1.25e-7, "1.25e-7"),
            (-0.25, "-0.25"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
        ] {
            assert_eq!(format_float(value), text);
        }
    }

    #[test]
    fn durations_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("10s", 10_000_000_000),
            ("1h5m", 3_900_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("-3ms", -3_000_000),
            ("2us", 2_000),
            ("2µs", 2_000),
            ("7ns", 7),
        ] {
            assert_eq!(parse_duration_nanos(text), Ok(nanos), "{text}");
        }
        let error = |text| parse_duration_nanos(text).unwrap_err().to_string();
        assert_eq!(error("abc"), "time: invalid duration \"abc\"");
        assert_eq!(error(""), "time: invalid duration \"\"");
        assert_eq!(error("."), "time: invalid duration \".\"");
        assert_eq!(error("10"), "time: missing unit in duration \"10\"");
        assert_eq!(error("10d"), "time: unknown unit \"d\" in duration \"10d\"");
        assert_eq!(error("99999999999h"), "time: invalid duration \"99999999999h\"");
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (duration, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(7), "7ns"),
            (Duration::from_nanos(1_500), "1.5µs"),
            (Duration::from_millis(100), "100ms"),
            (Duration::from_millis(1_500), "1.5s"),
            (Duration::from_secs(60), "1m0s"),
            (Duration::from_secs(3_600), "1h0m0s"),
            (Duration::from_millis(86_400_250), "24h0m0.25s"),
        ] {
            assert_eq!(format_duration(duration), text);
        }
    }

    #[test]
    fn integers_fail_with_gos_words() {
        assert_eq!(parse_uint("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(
            parse_uint("abc").unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"abc\": invalid syntax"
        );
        assert_eq!(
            parse_uint("18446744073709551616").unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"18446744073709551616\": value out of range"
        );
        assert!(parse_uint("+1").is_err());
    }

    #[test]
    fn forms_are_sorted_and_escaped() {
        let pairs = [("recurse", ""), ("cas", "1"), ("b", "x y&z")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(encode_form(&pairs), "b=x+y%26z&cas=1&recurse=");
        assert_eq!(query_unescape("x+y%26z").unwrap(), "x y&z");
        assert_eq!(query_unescape("%zz"), None);
        assert_eq!(path_unescape("a+b%2Fc").unwrap(), "a+b/c");
    }

    proptest::proptest! {
        #[test]
        fn a_written_duration_reads_back(nanos in 0..i64::MAX) {
            let duration = Duration::from_nanos(nanos.unsigned_abs());
            proptest::prop_assert_eq!(parse_duration_nanos(&format_duration(duration)), Ok(nanos));
        }

        #[test]
        fn no_text_breaks_the_duration_parser(text in "\\PC{0,40}") {
            let _ = parse_duration_nanos(&text);
        }
    }
}

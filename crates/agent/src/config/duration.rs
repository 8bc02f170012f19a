//! Durations in Go's notation (`1h15m30.918s`), with Go's error texts.

use std::time::Duration;

/// Reads a duration. Negative ones are errors: no key means anything by one.
pub fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration \"{text}\"");
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let (negative, mut rest) = match unsigned.strip_prefix('-') {
        Some(rest) if unsigned.len() == text.len() => (true, rest),
        _ => (false, unsigned),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits_end = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, after) = rest.split_at(digits_end(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits_end(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit_nanos: u128 = match unit {
            "" => return Err(format!("time: missing unit in duration \"{text}\"")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            unit => return Err(format!("time: unknown unit \"{unit}\" in duration \"{text}\"")),
        };
        let whole: u128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| invalid())?
        };
        nanos = whole
            .checked_mul(unit_nanos)
            .and_then(|part| part.checked_add(nanos))
            .ok_or_else(invalid)?;
        // Digits beyond the 18th are below a nanosecond of an hour.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let digits: u128 = fraction.parse().map_err(|_| invalid())?;
            nanos = nanos.saturating_add(digits * unit_nanos / 10u128.pow(fraction.len() as u32));
        }
        rest = after;
    }
    // Go's durations are 63 bits of nanoseconds.
    let nanos = i64::try_from(nanos).map_err(|_| invalid())?;
    if negative && nanos > 0 {
        return Err(format!("duration \"{text}\" is negative"));
    }
    Ok(Duration::from_nanos(nanos.unsigned_abs()))
}

/// A duration as Go prints it.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let with_fraction = |value: u128, unit: u128, width: usize, suffix: &str| {
        let (whole, fraction) = (value / unit, value % unit);
        if fraction == 0 {
            return format!("{whole}{suffix}");
        }
        let digits = format!("{fraction:0width$}");
        format!("{whole}.{}{suffix}", digits.trim_end_matches('0'))
    };
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_fraction(nanos, 1_000, 3, "µs"),
        1_000_000..1_000_000_000 => with_fraction(nanos, 1_000_000, 6, "ms"),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = with_fraction(nanos % 60_000_000_000, 1_000_000_000, 9, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gos_notation_is_read() {
        for (text, nanos) in [
            ("0", 0u64),
            ("10s", 10_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("1h15m30.5s", 4_530_500_000_000),
            (".5s", 500_000_000),
            ("250ms", 250_000_000),
            ("3us", 3_000),
            ("+1m", 60_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_in_gos_words() {
        for (text, want) in [
            ("5", "time: missing unit in duration \"5\""),
            ("bad", "time: invalid duration \"bad\""),
            ("", "time: invalid duration \"\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("+-5s", "time: invalid duration \"+-5s\""),
            ("-5s", "duration \"-5s\" is negative"),
            ("9999999h", "time: invalid duration \"9999999h\""),
            (
                "99999999999999999999999999999999999999999s",
                "time: invalid duration \"99999999999999999999999999999999999999999s\"",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_duration_reads_back(nanos in 0u64..(1 << 62)) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in r"[0-9.hmsnuµ+-]{0,50}") {
            let _ = parse(&text);
        }
    }
}

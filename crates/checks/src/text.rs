//! Texts of outputs, as Consul 1.8.7 words them.

use std::time::Duration;

/// The first bytes of a text that is too long, with what was left out.
pub fn cut_head(text: &str, len_bytes_max: usize) -> String {
    if text.len() <= len_bytes_max {
        return text.to_owned();
    }
    let mut end = len_bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} ... (captured {end} of {} bytes)", &text[..end], text.len())
}

/// The output of a TTL check that expired.
pub fn ttl_expired(output_before: &str) -> String {
    match output_before {
        "" => "TTL expired".to_owned(),
        // It expired before, and was started again from what was shown then.
        output if output.starts_with("TTL expired") => output.to_owned(),
        output => format!("TTL expired (last output before timeout follows): {output}"),
    }
}

/// A duration as Go prints it, to the millisecond.
pub fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let seconds = match millis % 1000 {
        0 => format!("{}s", millis / 1000),
        fraction => format!("{}.{}s", millis / 1000, format!("{fraction:03}").trim_end_matches('0')),
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(cut_head("abc", 3), "abc");
        assert_eq!(cut_head("abcd", 3), "abc ... (captured 3 of 4 bytes)");
        assert_eq!(cut_head("aé", 2), "a ... (captured 1 of 3 bytes)");
        assert_eq!(cut_head("é", 0), " ... (captured 0 of 2 bytes)");
    }

    #[test]
    fn an_expired_ttl_shows_what_was_told_last() {
        assert_eq!(ttl_expired(""), "TTL expired");
        assert_eq!(
            ttl_expired("fine"),
            "TTL expired (last output before timeout follows): fine"
        );
        assert_eq!(ttl_expired(&ttl_expired("fine")), ttl_expired("fine"));
    }

    #[test]
    fn durations_read_as_gos() {
        for (millis, want) in [
            (1, "1ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (60_000, "1m0s"),
            (3_723_004, "1h2m3.004s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), want);
        }
    }
}

//! `reachability`: who cannot reach whom.

use super::Context;
use crate::report::Report;
use crate::table::{aligned, row};
use quorate_api_client::shapes::Reachability;
use std::fmt::Write as _;

/// Exit code 0: everybody answered and every link is sound; 2: somebody or some link is named.
pub async fn run(context: &Context) -> Result<Report, Report> {
    let timeout = context.flags.text("timeout");
    let found = context.client().await?.reachability(timeout).await;
    let found = found.map_err(|error| format!("Error asking for reachability: {error}"))?;
    Ok(Report {
        code: if found.silent.is_empty() && found.links.is_empty() {
            0
        } else {
            2
        },
        ..Report::text(text_of(&found))
    })
}

fn text_of(found: &Reachability) -> String {
    let answered = found.members.saturating_sub(found.silent.len() as u64);
    let mut text = format!("{answered} of {} members answered.\n", found.members);
    if !found.silent.is_empty() {
        let _ = writeln!(text, "No answer in time: {}", found.silent.join(", "));
    }
    if found.links.is_empty() {
        text.push_str("No faulty link is known.\n");
        return text;
    }
    let mut rows = vec![row(["From", "To", "Fault"])];
    for link in &found.links {
        let fault = match (link.lost, link.sent) {
            (Some(lost), Some(sent)) => format!("{}: {lost} of {sent} pings lost", link.fault),
            _ => link.fault.clone(),
        };
        rows.push(row([&link.from, &link.to, &fault]));
    }
    text.push_str(&aligned(&rows, 2));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if found.cut_off {
        text.push_str("Some members know of more faulty links than their answers hold.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Reachability {
        serde_json::from_str(json).expect("the shape of the endpoint")
    }

    #[test]
    fn sound_pools_need_two_lines() {
        let found = found(r#"{"Members":3,"Silent":[],"Links":[],"CutOff":false}"#);
        assert_eq!(text_of(&found), "3 of 3 members answered.\nNo faulty link is known.\n");
    }

    #[test]
    fn who_is_silent_and_which_links_fail_is_told() {
        let found = found(
            r#"{"Members":4,"Silent":["d"],"CutOff":true,"Links":[
                {"From":"a","To":"b","Fault":"one-way","Lost":null,"Sent":null},
                {"From":"b","To":"c","Fault":"lossy","Lost":2,"Sent":5}]}"#,
        );
        let text = text_of(&found);
        assert!(
            text.starts_with("3 of 4 members answered.\nNo answer in time: d\n"),
            "{text}"
        );
        assert!(text.contains("a     b   one-way\n"), "{text}");
        assert!(text.contains("b     c   lossy: 2 of 5 pings lost\n"), "{text}");
        assert!(text.ends_with("than their answers hold.\n"), "{text}");
    }
}

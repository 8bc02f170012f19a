//! Commands to the local agent that take nothing: `info`, `leave`, `reload`.

use super::Context;
use crate::report::Report;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentSelf {
    stats: BTreeMap<String, BTreeMap<String, String>>,
}

pub async fn info(context: &Context) -> Result<Report, Report> {
    let agent = context.client().await?.agent_self().await;
    let agent = agent.map_err(|error| format!("Error querying agent: {error}"))?;
    let agent = AgentSelf::deserialize(agent).map_err(|error| format!("Error querying agent: {error}"))?;
    Ok(Report::text(stats_text(&agent.stats)))
}

fn stats_text(stats: &BTreeMap<String, BTreeMap<String, String>>) -> String {
    let mut text = String::new();
    for (section, values) in stats {
        text.push_str(&format!("{section}:\n"));
        for (key, value) in values {
            text.push_str(format!("\t{key} = {value}").trim_end());
            text.push('\n');
        }
    }
    text
}

pub async fn leave(context: &Context) -> Result<Report, Report> {
    context
        .client()
        .await?
        .leave()
        .await
        .map_err(|error| format!("Error leaving: {error}"))?;
    Ok(Report::line("Graceful leave complete"))
}

pub async fn reload(context: &Context) -> Result<Report, Report> {
    context
        .client()
        .await?
        .reload()
        .await
        .map_err(|error| format!("Error reloading: {error}"))?;
    Ok(Report::line("Configuration reload triggered"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_sorted_below_their_sections() {
        let json = r#"{"Config":{},"Stats":{"consul":{"server":"true","acl":"disabled"},"build":{"version":"1","prerelease":""}}}"#;
        let agent: AgentSelf = serde_json::from_str(json).unwrap();
        let text = "build:\n\tprerelease =\n\tversion = 1\nconsul:\n\tacl = disabled\n\tserver = true\n";
        assert_eq!(stats_text(&agent.stats), text);
    }
}

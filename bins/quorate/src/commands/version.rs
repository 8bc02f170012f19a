//! `version`.

use super::Context;
use crate::report::Report;

/// Clients read what the agent can do out of this.
const API_VERSION: &str = "1.20";
/// Consul's Serf protocol versions, which tools read out of this text.
const PROTOCOL: (u8, u8, u8) = (2, 2, 3);

pub async fn run(context: &Context) -> Result<Report, Report> {
    let version = env!("CARGO_PKG_VERSION");
    let (default, min, max) = PROTOCOL;
    match context.flags.text("format") {
        "" | "pretty" => {
            // Tools that call `consul` look for its name on the first line.
            let is_consul = std::env::args()
                .next()
                .is_some_and(|path| path.rsplit('/').next() == Some("consul"));
            let first = if is_consul {
                format!("Consul v{API_VERSION}.0\n")
            } else {
                String::new()
            };
            Ok(Report::text(format!(
                "{first}Quorate v{version}\nConsul API v{API_VERSION} compatible\nProtocol {default} spoken by default, \
                 understands {min} to {max} (agent will automatically use protocol >{default} when speaking to \
                 compatible agents)\n\n"
            )))
        }
        "json" => Ok(Report::line(format!(
            "{{\n   \"Version\": \"{version}\",\n   \"Revision\": \"\",\n   \"Prerelease\": \"\",\n   \"RPC\": {{\n      \
             \"Default\": {default},\n      \"Min\": {min},\n      \"Max\": {max}\n   }}\n}}"
        ))),
        other => Err(Report::failure(format!(
            "Invalid format, valid formats are [pretty json], not {other}"
        ))),
    }
}

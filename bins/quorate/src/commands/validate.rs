//! `validate`.

use super::Context;
use crate::report::Report;
use quorate_agent::config::{Flags, Format, load};

pub async fn run(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    if context.arguments().is_empty() {
        return Err(Report::failure("Must specify at least one config file or directory"));
    }
    let config_format = match flags.text("config-format") {
        "" => None,
        "json" => Some(Format::Json),
        "hcl" => Some(Format::Hcl),
        other => {
            let mistake = format!("-config-format must be either 'hcl' or 'json', not '{other}'");
            return Err(Report::failure(format!("Config validation failed: {mistake}")));
        }
    };
    let sources = Flags {
        config_paths: context.arguments().to_vec(),
        config_format,
        ..Flags::default()
    };
    let config = load(&context.rt, &sources)
        .await
        .map_err(|error| format!("Config validation failed: {error}"))?;
    let mut report = Report::default();
    if !flags.boolean("quiet") {
        for warning in &config.warnings {
            report.add_line(warning);
        }
        // Consul says nothing of these and its agent does not start: the exit code is kept, the reason is told.
        for refusal in quorate_agent::refusals(&config) {
            report.add_line(format!("An agent will not start with this: {refusal}"));
        }
        report.add_line("Configuration is valid!");
    }
    Ok(report)
}

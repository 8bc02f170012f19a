//! `event`: tells all agents of a datacenter.

use super::{Context, misused};
use crate::report::Report;
use quorate_api_client::EventOptions;

pub async fn run(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let name = flags.text("name");
    if name.is_empty() {
        return Err(misused("event", "Event name must be specified"));
    }
    for filter in ["node", "service", "tag"] {
        let expression = flags.text(filter);
        if let Err(error) = regex::Regex::new(expression) {
            let reason = super::members::regexp_reason(&error, expression);
            return Err(Report::failure(format!(
                "Failed to compile {filter} filter regexp: {reason}"
            )));
        }
    }
    if !flags.text("tag").is_empty() && flags.text("service").is_empty() {
        return Err(Report::failure("Cannot provide tag filter without service filter."));
    }
    let payload = match context.arguments() {
        [] => "",
        [payload] => payload,
        _ => return Err(misused("event", "Too many command line arguments.")),
    };
    let options = EventOptions {
        node: flags.text("node").to_owned(),
        service: flags.text("service").to_owned(),
        tag: flags.text("tag").to_owned(),
    };
    let client = context.client().await?;
    let fired = client.fire_event(name, payload.to_owned(), &options).await;
    let id = fired.map_err(|error| format!("Error firing event: {error}"))?;
    Ok(Report::line(format!("Event ID: {id}")))
}

//! `maint`.

use super::Context;
use crate::report::Report;
use quorate_api_client::shapes::HealthCheck;

pub async fn run(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let (is_on, is_off, reason, service) = (
        flags.boolean("enable"),
        flags.boolean("disable"),
        flags.text("reason"),
        flags.text("service"),
    );
    if is_on && is_off {
        return Err(Report::failure("Only one of -enable or -disable may be provided"));
    }
    if !is_on && !reason.is_empty() {
        return Err(Report::failure("Reason may only be provided with -enable"));
    }
    if !is_on && !is_off && !service.is_empty() {
        return Err(Report::failure("Service requires either -enable or -disable"));
    }
    let client = context.client().await?;
    if !is_on && !is_off {
        let checks = client
            .agent_checks()
            .await
            .map_err(|error| format!("Error getting checks: {error}"))?;
        return Ok(Report::text(list(checks.values())));
    }
    let change = if is_on { "enabling" } else { "disabling" };
    let state = if is_on { "enabled" } else { "disabled" };
    let (whose, target, suffix) = match service {
        "" => ("Node", None, String::new()),
        id => ("Service", Some(id), format!(" for {id:?}")),
    };
    let failed = |error| format!("Error {change} {} maintenance: {error}", whose.to_lowercase());
    client.maintenance(target, is_on, reason).await.map_err(failed)?;
    Ok(Report::line(format!("{whose} maintenance is now {state}{suffix}")))
}

fn list<'a>(checks: impl Iterator<Item = &'a HealthCheck>) -> String {
    let mut text = String::new();
    for check in checks {
        if check.check_id == "_node_maintenance" {
            text.push_str(&format!(
                "Node:\n  Name:   {}\n  Reason: {}\n\n",
                check.node, check.notes
            ));
        } else if check.check_id.starts_with("_service_maintenance:") {
            text.push_str(&format!(
                "Service:\n  ID:     {}\n  Reason: {}\n\n",
                check.service_id, check.notes
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_is_listed_as_consul_lists_it() {
        let check = |id: &str, service: &str, notes: &str| HealthCheck {
            node: "c1".to_owned(),
            check_id: id.to_owned(),
            name: String::new(),
            status: "critical".to_owned(),
            notes: notes.to_owned(),
            output: String::new(),
            service_id: service.to_owned(),
            service_name: String::new(),
        };
        let checks = [
            check("mem", "", "x"),
            check("_node_maintenance", "", "why"),
            check("_service_maintenance:api1", "api1", "svc"),
        ];
        let text = "Node:\n  Name:   c1\n  Reason: why\n\nService:\n  ID:     api1\n  Reason: svc\n\n";
        assert_eq!(list(checks.iter()), text);
        assert_eq!(list(checks[..1].iter()), "");
    }
}

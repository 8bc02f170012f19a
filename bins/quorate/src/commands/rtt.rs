//! `rtt`: how far two nodes are from one another, by their coordinates.

use super::{Context, misused};
use crate::report::Report;
use quorate_api_client::CoordinateEntry;

fn find<'a>(entries: &'a [CoordinateEntry], node: &str) -> Option<&'a CoordinateEntry> {
    entries.iter().find(|entry| entry.node == node)
}

fn estimate(nodes: [&str; 2], found: [Option<&CoordinateEntry>; 2], pool: &str) -> Result<Report, Report> {
    let missing = |node: &str| Report::failure(format!("Could not find a coordinate for node \"{node}\""));
    let first = found[0].ok_or_else(|| missing(nodes[0]))?;
    let second = found[1].ok_or_else(|| missing(nodes[1]))?;
    let rtt_ms = first.coordinate().distance_secs(&second.coordinate()) * 1000.0;
    Ok(Report::line(format!(
        "Estimated {} <-> {} rtt: {rtt_ms:.3} ms (using {pool} coordinates)",
        nodes[0], nodes[1]
    )))
}

pub async fn run(context: &Context) -> Result<Report, Report> {
    let arguments = context.arguments();
    if !(1..=2).contains(&arguments.len()) {
        return Err(misused("rtt", "One or two node names must be specified"));
    }
    let client = context.client().await?;
    let is_wan = context.flags.boolean("wan");
    let second = match arguments.get(1) {
        Some(second) => second.clone(),
        None => {
            let agent = client.agent_self().await;
            let agent = agent.map_err(|error| format!("Unable to look up agent info: {error}"))?;
            let text = |key: &str| agent["Config"][key].as_str().unwrap_or_default().to_owned();
            if is_wan {
                format!("{}.{}", text("NodeName"), text("Datacenter"))
            } else {
                text("NodeName")
            }
        }
    };
    let nodes = [arguments[0].as_str(), second.as_str()];
    if !is_wan {
        let entries = client.coordinate_nodes().await;
        let entries = entries.map_err(|error| format!("Error getting coordinates: {error}"))?;
        return estimate(nodes, nodes.map(|node| find(&entries, node)), "LAN");
    }
    let split = nodes.map(|node| node.split_once('.').filter(|(_, datacenter)| !datacenter.contains('.')));
    let [Some(first), Some(second)] = split else {
        return Err(Report::failure(
            "Node names must be specified as <node name>.<datacenter> with -wan",
        ));
    };
    let datacenters = client.coordinate_datacenters().await;
    let datacenters = datacenters.map_err(|error| format!("Error getting coordinates: {error}"))?;
    let found = [first, second].map(|(node, datacenter)| {
        let maps = datacenters.iter().filter(|map| map.datacenter == datacenter);
        maps.filter_map(|map| find(&map.coordinates, node)).next()
    });
    estimate(nodes, found, "WAN")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: &str, x: f64) -> CoordinateEntry {
        let json = format!(
            r#"{{"Node":"{node}","Segment":"","Coord":{{"Vec":[{x},0,0,0,0,0,0,0],"Error":1.5,"Adjustment":0,"Height":0.00001}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn estimates_and_unknown_nodes_read_as_consuls() {
        let entries = [entry("c1", 0.0), entry("s1", 0.000_407)];
        let run = |a, b| estimate([a, b], [a, b].map(|node| find(&entries, node)), "LAN");
        assert_eq!(
            run("c1", "s1").unwrap(),
            Report::line("Estimated c1 <-> s1 rtt: 0.427 ms (using LAN coordinates)")
        );
        assert_eq!(
            run("c1", "nope").unwrap_err(),
            Report::failure("Could not find a coordinate for node \"nope\"")
        );
    }
}

//! The catalog: `catalog datacenters`, `catalog nodes`, `catalog services`.

use super::Context;
use crate::report::Report;
use crate::table::{aligned, row};
use quorate_api_client::calls::CatalogOptions;
use quorate_api_client::{CatalogNode, CatalogService};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Characters of a node's id in the short table.
const ID_CHARS_SHOWN: usize = 8;
/// Blanks between names and tags.
const TAGS_GAP: usize = 6;

#[derive(Deserialize)]
struct NodeServices {
    #[serde(rename = "Services", default)]
    services: Option<BTreeMap<String, NodeService>>,
}

#[derive(Deserialize)]
struct NodeService {
    #[serde(rename = "Service")]
    service: String,
    #[serde(rename = "Tags", default)]
    tags: Option<Vec<String>>,
}

pub async fn datacenters(context: &Context) -> Result<Report, Report> {
    let names = context.client().await?.datacenters().await;
    Ok(Report::text(lines(
        &names.map_err(|error| format!("Error listing datacenters: {error}"))?,
    )))
}

fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn options(context: &Context) -> CatalogOptions {
    let node_meta = context.flags.texts("node-meta").iter();
    CatalogOptions {
        near: context.flags.text("near").to_owned(),
        filter: context.flags.text("filter").to_owned(),
        // `key=value` here, `key:value` in the API.
        node_meta: node_meta.map(|pair| pair.replacen('=', ":", 1)).collect(),
    }
}

pub async fn nodes(context: &Context) -> Result<Report, Report> {
    let (client, options) = (context.client().await?, options(context));
    let failed = |error| format!("Error listing nodes: {error}");
    let nodes = match context.flags.text("service") {
        "" => client.catalog_nodes(&options).await.map_err(failed)?,
        service => {
            let instances = client.catalog_service(service, &options).await.map_err(failed)?;
            instances.into_iter().map(node_of).collect()
        }
    };
    if nodes.is_empty() {
        return Ok(Report::line(
            "No nodes match the given query - try expanding your search.",
        ));
    }
    Ok(Report::text(if context.flags.boolean("detailed") {
        detailed(&nodes)
    } else {
        standard(&nodes)
    }))
}

/// The node that an instance runs on.
fn node_of(instance: CatalogService) -> CatalogNode {
    CatalogNode {
        id: instance.id,
        node: instance.node,
        address: instance.address,
        datacenter: instance.datacenter,
        tagged_addresses: instance.tagged_addresses,
        meta: instance.node_meta,
    }
}

fn standard(nodes: &[CatalogNode]) -> String {
    let mut rows = vec![row(["Node", "ID", "Address", "DC"])];
    for node in nodes {
        let id: String = node.id.chars().take(ID_CHARS_SHOWN).collect();
        rows.push(row([&node.node, &id, &node.address, &node.datacenter]));
    }
    aligned(&rows, 2)
}

fn detailed(nodes: &[CatalogNode]) -> String {
    let pairs = |map: &BTreeMap<String, String>| {
        let pairs = map.iter().map(|(key, value)| format!("{key}={value}"));
        pairs.collect::<Vec<_>>().join(", ")
    };
    let mut rows = vec![row(["Node", "ID", "Address", "DC", "TaggedAddresses", "Meta"])];
    for node in nodes {
        let (addresses, meta) = (pairs(&node.tagged_addresses), pairs(&node.meta));
        rows.push(row([
            &node.node,
            &node.id,
            &node.address,
            &node.datacenter,
            &addresses,
            &meta,
        ]));
    }
    aligned(&rows, 2)
}

pub async fn services(context: &Context) -> Result<Report, Report> {
    let failed = |error| format!("Error listing services: {error}");
    let client = context.client().await?;
    let services: BTreeMap<String, BTreeSet<String>> = match context.flags.text("node") {
        "" => {
            let services = client.catalog_services(&options(context)).await.map_err(failed)?;
            services
                .into_iter()
                .map(|(name, tags)| (name, tags.into_iter().collect()))
                .collect()
        }
        node => match client.catalog_node(node).await.map_err(failed)? {
            None => BTreeMap::new(),
            Some(node) => {
                let node = NodeServices::deserialize(node);
                names_and_tags(node.map_err(|error| format!("Error listing services: {error}"))?)
            }
        },
    };
    if services.is_empty() {
        return Ok(Report::line(
            "No services match the given query - try expanding your search.",
        ));
    }
    Ok(Report::text(if context.flags.boolean("tags") {
        let rows = services.iter().map(|(name, tags)| {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            row([name, &tags.join(",")])
        });
        aligned(&rows.collect::<Vec<_>>(), TAGS_GAP)
    } else {
        lines(&services.into_keys().collect::<Vec<_>>())
    }))
}

/// A node's instances by the name of their service.
fn names_and_tags(node: NodeServices) -> BTreeMap<String, BTreeSet<String>> {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in node.services.unwrap_or_default().into_values() {
        names
            .entry(service.service)
            .or_default()
            .extend(service.tags.unwrap_or_default());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = r#"[
        {"ID":"ccbac0e4-91d2-6d32-31d4-6898d8eeace4","Node":"c1","Address":"127.0.0.14","Datacenter":"dc1",
         "TaggedAddresses":{"wan":"127.0.0.14","lan":"127.0.0.14"},"Meta":{"rack":"r9","consul-network-segment":""}},
        {"ID":"","Node":"host.example.com-n6","Address":"host.example.com","Datacenter":"dc1","TaggedAddresses":null,"Meta":null}]"#;

    #[test]
    fn nodes_look_as_consul_shows_them() {
        // From `consul catalog nodes` of 1.8.7.
        let nodes: Vec<CatalogNode> = serde_json::from_str(NODES).unwrap();
        let text = "\
Node                 ID        Address           DC
c1                   ccbac0e4  127.0.0.14        dc1
host.example.com-n6            host.example.com  dc1
";
        assert_eq!(standard(&nodes), text);
    }

    #[test]
    fn detailed_nodes_show_the_whole_id_addresses_and_metadata() {
        let nodes: Vec<CatalogNode> = serde_json::from_str(NODES).unwrap();
        let text = "\
Node                 ID                                    Address           DC   TaggedAddresses                 Meta
c1                   ccbac0e4-91d2-6d32-31d4-6898d8eeace4  127.0.0.14        dc1  lan=127.0.0.14, wan=127.0.0.14  consul-network-segment=, rack=r9
host.example.com-n6                                        host.example.com  dc1
";
        assert_eq!(detailed(&nodes), text);
    }

    #[test]
    fn instances_of_a_service_read_as_nodes() {
        let json = r#"[{"ID":"","Node":"n1","Address":"10.0.0.1","Datacenter":"dc1","TaggedAddresses":null,
            "NodeMeta":{"a":"b"},"ServiceID":"x","ServiceName":"x","ServiceAddress":"","ServicePort":1}]"#;
        let instances: Vec<CatalogService> = serde_json::from_str(json).unwrap();
        let nodes: Vec<CatalogNode> = instances.into_iter().map(node_of).collect();
        assert!(detailed(&nodes).contains("a=b"));
    }

    #[test]
    fn instances_of_one_service_on_a_node_are_one_line_with_all_tags() {
        let json =
            r#"{"Node":{},"Services":{"w1":{"Service":"web","Tags":["b"]},"w2":{"Service":"web","Tags":["a"]}}}"#;
        let names = names_and_tags(serde_json::from_str(json).unwrap());
        assert_eq!(names.len(), 1);
        assert_eq!(names["web"].iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert!(names_and_tags(serde_json::from_str("{}").unwrap()).is_empty());
    }
}

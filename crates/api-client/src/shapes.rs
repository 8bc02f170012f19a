//! Answers as the API's clients see them. Unknown fields are ignored: a newer agent may say more.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_types::Coordinate;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One of `agent/members`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Member {
    pub name: String,
    pub addr: String,
    pub port: u16,
    #[serde(deserialize_with = "or_default")]
    pub tags: BTreeMap<String, String>,
    /// 1 alive, 2 leaving, 3 left, 4 failed.
    pub status: u8,
    #[serde(default)]
    pub protocol_cur: u8,
}

impl Member {
    pub const fn status_word(&self) -> &'static str {
        match self.status {
            1 => "alive",
            2 => "leaving",
            3 => "left",
            4 => "failed",
            _ => "none",
        }
    }
    pub fn is_server(&self) -> bool {
        self.tags.get("role").is_some_and(|role| role == "consul")
    }
}

/// One key of `kv`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KvEntry {
    pub key: String,
    #[serde(deserialize_with = "bytes")]
    pub value: Vec<u8>,
    pub flags: u64,
    pub lock_index: u64,
    /// Empty: not locked.
    #[serde(default)]
    pub session: String,
    pub create_index: u64,
    pub modify_index: u64,
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        None => Ok(Vec::new()),
        Some(text) => STANDARD.decode(text).map_err(D::Error::custom),
    }
}

/// What `session/create` answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Created {
    #[serde(rename = "ID")]
    pub id: String,
}

/// One of `catalog/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogNode {
    #[serde(rename = "ID")]
    pub id: String,
    pub node: String,
    pub address: String,
    pub datacenter: String,
    #[serde(default, deserialize_with = "or_default")]
    pub tagged_addresses: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub meta: BTreeMap<String, String>,
}

/// One of `catalog/service`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogService {
    #[serde(rename = "ID")]
    pub id: String,
    pub node: String,
    pub address: String,
    pub datacenter: String,
    #[serde(default, deserialize_with = "or_default")]
    pub tagged_addresses: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub node_meta: BTreeMap<String, String>,
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    pub service_name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub service_tags: Vec<String>,
    pub service_address: String,
    pub service_port: i64,
}

/// One of `event/list`, and what `event/fire` answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UserEvent {
    #[serde(rename = "ID")]
    pub id: String,
    pub name: String,
    #[serde(deserialize_with = "bytes")]
    pub payload: Vec<u8>,
    #[serde(rename = "LTime")]
    pub ltime: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Place {
    vec: Vec<f64>,
    error: f64,
    adjustment: f64,
    height: f64,
}

/// One of `coordinate/nodes`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CoordinateEntry {
    pub node: String,
    coord: Place,
}

impl CoordinateEntry {
    /// Dimensions that the answer leaves out are 0.
    pub fn coordinate(&self) -> Coordinate {
        let mut coordinate = Coordinate {
            error: self.coord.error,
            adjustment: self.coord.adjustment,
            height: self.coord.height,
            ..Coordinate::default()
        };
        for (place, component) in coordinate.vector.iter_mut().zip(&self.coord.vec) {
            *place = *component;
        }
        coordinate
    }
}

/// One of `coordinate/datacenters`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DatacenterMap {
    pub datacenter: String,
    #[serde(default, deserialize_with = "or_default")]
    pub coordinates: Vec<CoordinateEntry>,
}

/// One check of `agent/checks` or `health/...`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck {
    pub node: String,
    #[serde(rename = "CheckID")]
    pub check_id: String,
    pub name: String,
    pub status: String,
    pub notes: String,
    pub output: String,
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    pub service_name: String,
}

/// `operator/raft/configuration`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RaftConfiguration {
    pub servers: Vec<RaftServer>,
    pub index: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RaftServer {
    #[serde(rename = "ID")]
    pub id: String,
    pub node: String,
    pub address: String,
    pub leader: bool,
    pub protocol_version: String,
    pub voter: bool,
}

/// `agent/reachability`: who cannot reach whom.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Reachability {
    /// Live ones: all were asked.
    pub members: u64,
    pub silent: Vec<String>,
    pub links: Vec<FaultyLink>,
    /// Members had more to tell than their answers hold.
    pub cut_off: bool,
}

/// A link that loses datagrams though both its ends live.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FaultyLink {
    pub from: String,
    pub to: String,
    /// `cut`, `one-way` or `lossy`.
    pub fault: String,
    pub lost: Option<u32>,
    pub sent: Option<u32>,
}

/// One pool of `operator/keyring`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyringPool {
    #[serde(rename = "WAN")]
    pub wan: bool,
    pub datacenter: String,
    #[serde(default)]
    pub segment: String,
    #[serde(default, deserialize_with = "or_default")]
    pub messages: BTreeMap<String, String>,
    /// Keys in base64, with how many members have them.
    #[serde(default, deserialize_with = "or_default")]
    pub keys: BTreeMap<String, u64>,
    #[serde(default, deserialize_with = "or_default")]
    pub primary_keys: BTreeMap<String, u64>,
    pub num_nodes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kv_entry_reads_with_and_without_value_and_session() {
        let text = r#"[{"LockIndex":0,"Key":"foo","Flags":18446744073709551615,"Value":"YmFy","CreateIndex":8,"ModifyIndex":9},
            {"LockIndex":1,"Key":"e","Flags":0,"Value":null,"Session":"s","CreateIndex":8,"ModifyIndex":9,"New":{}}]"#;
        let entries: Vec<KvEntry> = serde_json::from_str(text).unwrap();
        assert_eq!(
            (entries[0].value.as_slice(), entries[0].flags),
            (b"bar".as_slice(), u64::MAX)
        );
        assert_eq!((entries[1].value.len(), entries[1].session.as_str()), (0, "s"));
    }
}

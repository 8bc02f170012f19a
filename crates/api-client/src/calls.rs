//! The calls of the command line, one method each.

use crate::shapes::{
    CoordinateEntry, Created, DatacenterMap, HealthCheck, KeyringPool, RaftConfiguration, Reachability, UserEvent,
};
use crate::{Answer, CatalogNode, CatalogService, Client, ClientError, KvEntry, Member, Target};
use bytes::Bytes;
use http::{Method, StatusCode};
use quorate_rt::Rt;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Consul's client does not send a factor of 0.
fn relay_text(factor: u64) -> String {
    match factor {
        0 => String::new(),
        factor => factor.to_string(),
    }
}

/// How a key is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvPutOptions {
    pub flags: u64,
    pub cas: Option<u64>,
    /// Session to lock the key with.
    pub acquire: Option<String>,
    pub release: Option<String>,
}

/// How a key or prefix is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Wait until the read's index exceeds this one. 0: answer at once.
    pub index: u64,
    /// The longest wait; `None`: the agent's.
    pub wait: Option<Duration>,
    pub is_consistent: bool,
}

impl ReadOptions {
    fn add_to(&self, target: Target) -> Target {
        let target = match self.index {
            0 => target,
            index => target.query("index", &index.to_string()),
        };
        let target = match self.wait {
            // Below a millisecond the agent's own default would apply.
            Some(wait) => target.query("wait", &format!("{}ms", wait.as_millis().max(1))),
            None => target,
        };
        target.flag_if("consistent", self.is_consistent)
    }
}

/// Which nodes or services of the catalog are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CatalogOptions {
    pub near: String,
    pub filter: String,
    /// Pairs `key:value`.
    pub node_meta: Vec<String>,
}

/// Whom an event is for: regular expressions, empty for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventOptions {
    pub node: String,
    pub service: String,
    pub tag: String,
}

impl CatalogOptions {
    fn add_to(&self, target: Target) -> Target {
        let target = target.query_if("near", &self.near).query_if("filter", &self.filter);
        self.node_meta
            .iter()
            .fold(target, |target, pair| target.query("node-meta", pair))
    }
}

impl<R: Rt> Client<R> {
    async fn get_json<T: serde::de::DeserializeOwned>(&self, target: Target) -> Result<T, ClientError> {
        self.get(target).await?.ok()?.json()
    }

    async fn put_empty(&self, target: Target) -> Result<(), ClientError> {
        self.put(target, Bytes::new()).await?.ok().map(drop)
    }

    /// `agent/self`, free of form.
    pub async fn agent_self(&self) -> Result<Value, ClientError> {
        self.get_json(Target::new("/v1/agent/self")).await
    }
    pub async fn members(&self, wan: bool, segment: &str, filter: &str) -> Result<Vec<Member>, ClientError> {
        let target = Target::new("/v1/agent/members")
            .query_if("segment", segment)
            .query_if("filter", filter);
        let target = if wan { target.query("wan", "1") } else { target };
        // A client agent has no WAN members: `null`.
        Ok(self.get_json::<Option<Vec<Member>>>(target).await?.unwrap_or_default())
    }
    pub async fn join(&self, address: &str, wan: bool) -> Result<(), ClientError> {
        let target = Target::new("/v1/agent/join/").rest(address);
        self.put_empty(if wan { target.query("wan", "1") } else { target })
            .await
    }
    pub async fn leave(&self) -> Result<(), ClientError> {
        self.put_empty(Target::new("/v1/agent/leave")).await
    }
    pub async fn force_leave(&self, node: &str, prune: bool, wan: bool) -> Result<(), ClientError> {
        let target = Target::new("/v1/agent/force-leave/").rest(node);
        self.put_empty(target.flag_if("prune", prune).flag_if("wan", wan)).await
    }
    pub async fn reload(&self) -> Result<(), ClientError> {
        self.put_empty(Target::new("/v1/agent/reload")).await
    }
    /// Maintenance of the node, or of one of its services.
    pub async fn maintenance(&self, service_id: Option<&str>, enable: bool, reason: &str) -> Result<(), ClientError> {
        let target = match service_id {
            None => Target::new("/v1/agent/maintenance"),
            Some(id) => Target::new("/v1/agent/service/maintenance/").rest(id),
        };
        let enable = if enable { "true" } else { "false" };
        self.put_empty(target.query("enable", enable).query_if("reason", reason))
            .await
    }
    /// Local checks by id.
    pub async fn agent_checks(&self) -> Result<BTreeMap<String, HealthCheck>, ClientError> {
        self.get_json(Target::new("/v1/agent/checks")).await
    }
    /// Local services by id, free of form.
    pub async fn agent_services(&self) -> Result<BTreeMap<String, Value>, ClientError> {
        self.get_json(Target::new("/v1/agent/services")).await
    }
    /// Registers a service from its JSON definition.
    pub async fn register_service(&self, definition: &Value) -> Result<(), ClientError> {
        let body = serde_json::to_vec(definition)?;
        self.put(Target::new("/v1/agent/service/register"), body)
            .await?
            .ok()
            .map(drop)
    }
    pub async fn deregister_service(&self, service_id: &str) -> Result<(), ClientError> {
        self.put_empty(Target::new("/v1/agent/service/deregister/").rest(service_id))
            .await
    }

    /// The entry of a key; `None` when there is none.
    pub async fn kv_get(&self, key: &str) -> Result<Option<KvEntry>, ClientError> {
        let entries = self.found::<Vec<KvEntry>>(Target::new("/v1/kv/").rest(key)).await?;
        Ok(entries.and_then(|entries| entries.into_iter().next()))
    }
    /// The entries below a prefix, in key order.
    pub async fn kv_list(&self, prefix: &str) -> Result<Vec<KvEntry>, ClientError> {
        let target = Target::new("/v1/kv/").rest(prefix).flag("recurse");
        Ok(self.found(target).await?.unwrap_or_default())
    }
    /// The entry of a key, and the index to wait for a change beyond. Never stale, whatever the client's own setting.
    pub async fn kv_read(&self, key: &str, options: &ReadOptions) -> Result<(Option<KvEntry>, u64), ClientError> {
        let target = options.add_to(Target::new("/v1/kv/").rest(key));
        let (entries, index) = self.kv_entries(target).await?;
        Ok((entries.into_iter().next(), index))
    }
    /// The same of all below a prefix, in key order.
    pub async fn kv_read_all(&self, prefix: &str, options: &ReadOptions) -> Result<(Vec<KvEntry>, u64), ClientError> {
        let target = Target::new("/v1/kv/").rest(prefix).flag("recurse");
        self.kv_entries(options.add_to(target)).await
    }
    async fn kv_entries(&self, target: Target) -> Result<(Vec<KvEntry>, u64), ClientError> {
        let answer = self.call(Method::GET, target, Bytes::new()).await?;
        let index = answer.index().unwrap_or_default();
        match answer.status {
            StatusCode::OK => Ok((answer.json()?, index)),
            StatusCode::NOT_FOUND => Ok((Vec::new(), index)),
            status => Err(ClientError::BareStatus { status }),
        }
    }
    pub async fn kv_keys(&self, prefix: &str, separator: &str) -> Result<Vec<String>, ClientError> {
        let target = Target::new("/v1/kv/")
            .rest(prefix)
            .flag("keys")
            .query_if("separator", separator);
        Ok(self.found(target).await?.unwrap_or_default())
    }
    /// Whether it was written: a condition may not have held.
    pub async fn kv_put(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        options: &KvPutOptions,
    ) -> Result<bool, ClientError> {
        let mut target = Target::new("/v1/kv/").rest(key);
        if options.flags != 0 {
            target = target.query("flags", &options.flags.to_string());
        }
        if let Some(index) = options.cas {
            target = target.query("cas", &index.to_string());
        }
        for (name, session) in [("acquire", &options.acquire), ("release", &options.release)] {
            if let Some(session) = session {
                target = target.query(name, session);
            }
        }
        self.put(target, value).await?.ok()?.json()
    }
    /// Whether it was deleted: the condition may not have held.
    pub async fn kv_delete(&self, key: &str, cas: Option<u64>) -> Result<bool, ClientError> {
        let target = Target::new("/v1/kv/").rest(key);
        let target = match cas {
            None => target,
            Some(index) => target.query("cas", &index.to_string()),
        };
        self.delete(target).await?.ok()?.json()
    }
    pub async fn kv_delete_tree(&self, prefix: &str) -> Result<bool, ClientError> {
        self.delete(Target::new("/v1/kv/").rest(prefix).flag("recurse"))
            .await?
            .ok()?
            .json()
    }

    /// Opens a session of the agent's node; an empty behavior is the default. Answers its id.
    pub async fn create_session(&self, name: &str, ttl: Duration, behavior: &str) -> Result<String, ClientError> {
        let mut body = serde_json::json!({"Name": name, "TTL": format!("{}s", ttl.as_secs())});
        if !behavior.is_empty() {
            body["Behavior"] = behavior.into();
        }
        let target = Target::new("/v1/session/create");
        let created: Created = self.put(target, serde_json::to_vec(&body)?).await?.ok()?.json()?;
        Ok(created.id)
    }
    /// Whether it was there to be renewed.
    pub async fn renew_session(&self, id: &str) -> Result<bool, ClientError> {
        let answer = self
            .put(Target::new("/v1/session/renew/").rest(id), Bytes::new())
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(false),
            _ => answer.ok().map(|_| true),
        }
    }
    /// Ends a session, whether or not it was there.
    pub async fn destroy_session(&self, id: &str) -> Result<(), ClientError> {
        self.put_empty(Target::new("/v1/session/destroy/").rest(id)).await
    }

    pub async fn datacenters(&self) -> Result<Vec<String>, ClientError> {
        self.get_json(Target::new("/v1/catalog/datacenters")).await
    }
    pub async fn catalog_nodes(&self, options: &CatalogOptions) -> Result<Vec<CatalogNode>, ClientError> {
        self.get_json(options.add_to(Target::new("/v1/catalog/nodes"))).await
    }
    /// Service names with their tags.
    pub async fn catalog_services(
        &self,
        options: &CatalogOptions,
    ) -> Result<BTreeMap<String, Vec<String>>, ClientError> {
        self.get_json(options.add_to(Target::new("/v1/catalog/services"))).await
    }
    pub async fn catalog_service(
        &self,
        service: &str,
        options: &CatalogOptions,
    ) -> Result<Vec<CatalogService>, ClientError> {
        self.get_json(options.add_to(Target::new("/v1/catalog/service/").rest(service)))
            .await
    }
    /// A node with its services, free of form; `None` when it is unknown.
    pub async fn catalog_node(&self, node: &str) -> Result<Option<Value>, ClientError> {
        self.get_json(Target::new("/v1/catalog/node/").rest(node)).await
    }

    /// RPC address of the leader; empty when there is none.
    pub async fn status_leader(&self) -> Result<String, ClientError> {
        self.get_json(Target::new("/v1/status/leader")).await
    }
    pub async fn raft_configuration(&self) -> Result<RaftConfiguration, ClientError> {
        self.get_json(Target::new("/v1/operator/raft/configuration")).await
    }

    /// Tells all agents of the datacenter; answers the event's id.
    pub async fn fire_event(
        &self,
        name: &str,
        payload: impl Into<Bytes>,
        options: &EventOptions,
    ) -> Result<String, ClientError> {
        let target = Target::new("/v1/event/fire/")
            .rest(name)
            .query_if("node", &options.node)
            .query_if("service", &options.service)
            .query_if("tag", &options.tag);
        let event: UserEvent = self.put(target, payload).await?.ok()?.json()?;
        Ok(event.id)
    }
    /// Where all nodes of the datacenter are.
    pub async fn coordinate_nodes(&self) -> Result<Vec<CoordinateEntry>, ClientError> {
        self.get_json(Target::new("/v1/coordinate/nodes")).await
    }
    /// Where the servers of all datacenters are.
    pub async fn coordinate_datacenters(&self) -> Result<Vec<DatacenterMap>, ClientError> {
        self.get_json(Target::new("/v1/coordinate/datacenters")).await
    }

    /// Asks every live member whom it cannot reach; an empty `timeout` is the agent's.
    pub async fn reachability(&self, timeout: &str) -> Result<Reachability, ClientError> {
        self.get_json(Target::new("/v1/agent/reachability").query_if("timeout", timeout))
            .await
    }

    /// The gossip keys of every pool, or of this datacenter's LAN alone.
    pub async fn keyring(&self, relay_factor: u64, local_only: bool) -> Result<Vec<KeyringPool>, ClientError> {
        let target = Target::new("/v1/operator/keyring").query_if("relay-factor", &relay_text(relay_factor));
        let target = target.query_if("local-only", if local_only { "true" } else { "" });
        self.get_json(target).await
    }
    /// Changes every member's keyring: POST installs the key, PUT makes it the primary one, DELETE removes it.
    pub async fn change_keyring(&self, method: Method, key: &str, relay_factor: u64) -> Result<(), ClientError> {
        let target = Target::new("/v1/operator/keyring").query_if("relay-factor", &relay_text(relay_factor));
        let body = serde_json::to_vec(&serde_json::json!({ "Key": key }))?;
        self.call(method, target, body.into()).await?.ok().map(drop)
    }

    /// The answer, `None` for 404. As Consul's client, a failed read of keys is told without its body.
    async fn found<T: serde::de::DeserializeOwned>(&self, target: Target) -> Result<Option<T>, ClientError> {
        let answer: Answer = self.get(target).await?;
        match answer.status {
            StatusCode::OK => answer.json().map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(ClientError::BareStatus { status }),
        }
    }
}

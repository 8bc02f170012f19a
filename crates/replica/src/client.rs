//! The calls of a client agent: it keeps no replicated state.

use crate::replica::request_call;
use crate::transport::client::{CallFailure, Greeter, Pool, Target};
use quorate_rt::Rt;
use quorate_types::{Instant, NodeId};
use quorate_wire::frame::Hello;
use quorate_wire::rpc::{Request, Response};
use std::net::SocketAddr;

/// Greets as an agent of no cluster.
struct AgentGreeter {
    node_id: NodeId,
}

impl Greeter for AgentGreeter {
    fn hello(&self, target: &Target) -> Hello {
        Hello {
            cluster_id: None,
            from: self.node_id,
            from_disk: None,
            to: target.node,
            to_disk: None,
        }
    }
}

/// Calls to servers; many at once share a connection. Clones share the connections.
pub struct RpcClient<R: Rt> {
    pool: Pool<R>,
}

impl<R: Rt> Clone for RpcClient<R> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
        }
    }
}

impl<R: Rt> RpcClient<R> {
    pub fn new(rt: R, node_id: NodeId) -> Self {
        Self {
            pool: Pool::new(rt, AgentGreeter { node_id }),
        }
    }

    /// Fails at the deadline at the latest, and says whether the request can have arrived.
    pub async fn call(
        &self,
        address: SocketAddr,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, CallFailure> {
        request_call(&self.pool, address, None, request, deadline).await
    }

    /// Closes the connections; calls under way fail.
    pub fn stop(&self) {
        self.pool.stop();
    }
}

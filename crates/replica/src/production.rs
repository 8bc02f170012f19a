//! Consensus on the production door: openraft's own tokio runtime.

use crate::types::RaftRt;
use quorate_rt::production::TokioRt;

impl RaftRt for TokioRt {
    type AsyncRuntime = openraft_rt_tokio::TokioRuntime;
}

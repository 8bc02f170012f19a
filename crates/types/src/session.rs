//! Sessions: what a lock is held with.

use crate::ids::{ModifyIndex, Uuid};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What becomes of the keys that a session holds when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SessionBehavior {
    #[default]
    Release,
    Delete,
}

impl SessionBehavior {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for SessionBehavior {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SessionBehavior {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "release" => Ok(Self::Release),
            "delete" => Ok(Self::Delete),
            _ => Err(()),
        }
    }
}

/// A session of a node. It ends when it is destroyed, not renewed in time, or when its node or one of its checks is gone
/// or critical. It never changes while it lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: Uuid,
    pub name: String,
    pub node: String,
    /// After the session ends, for so long nobody acquires the keys that it held.
    pub lock_delay: Duration,
    pub behavior: SessionBehavior,
    /// Zero: it need not be renewed. Else it lasts at least this long after each renewal.
    pub ttl: Duration,
    /// The time to live as its creator spelled it; clients are shown this.
    pub ttl_text: String,
    /// Ids of checks of its node.
    pub node_checks: Vec<String>,
    /// Ids of checks of its node that are bound to a service.
    pub service_checks: Vec<String>,
    pub create_index: ModifyIndex,
    pub modify_index: ModifyIndex,
}

impl Session {
    /// Every check whose failure ends it.
    pub fn checks(&self) -> impl Iterator<Item = &str> {
        self.node_checks.iter().chain(&self.service_checks).map(String::as_str)
    }
}

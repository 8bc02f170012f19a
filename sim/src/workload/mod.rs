//! Those who use the cluster while it suffers. Each has a setup, a run that ends with the story, and a check of what it saw.

pub mod cells;
pub mod key_rotation;
pub mod kv_register;
pub mod locks;
pub mod node_lock;
pub mod service_dns;
pub mod session;

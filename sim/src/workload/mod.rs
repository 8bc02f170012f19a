//! Those who use the cluster while it suffers. Each has a setup, a run that ends with the story, and a check of what it saw.

pub mod kv_register;
pub mod service_dns;

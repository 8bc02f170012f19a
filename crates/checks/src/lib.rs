//! Runs health checks and reports edges.

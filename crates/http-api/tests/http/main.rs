//! The HTTP API as its clients see it, over a backend of one store.

mod behaviour;
mod locks;
mod replay;
mod support;

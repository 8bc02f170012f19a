//! One node: configuration, start, wiring, orderly stop.

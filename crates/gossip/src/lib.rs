//! Drives swim over sockets.

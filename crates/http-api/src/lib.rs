//! Routes, JSON shapes, status codes, blocking queries.

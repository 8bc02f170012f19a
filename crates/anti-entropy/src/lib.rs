//! Local services against the catalog: the list of changes.

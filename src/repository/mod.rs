//! The object store: layout and access.

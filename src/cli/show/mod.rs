//! What people and scripts see: tables, JSON, progress, and lines to copy.

pub(super) mod shell;

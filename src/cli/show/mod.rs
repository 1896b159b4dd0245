//! What people and scripts see: tables, JSON, progress, and lines to copy.

pub(super) mod list;
pub(super) mod output;
pub(super) mod progress;
pub(super) mod shell;

//! What people and scripts see: tables, JSON, progress, and lines to copy.

pub(super) mod check;
pub(super) mod fork;
pub(super) mod health;
pub(super) mod index;
pub(super) mod list;
pub(super) mod log;
pub(super) mod output;
pub(super) mod progress;
pub(super) mod repository;
pub(super) mod shell;
pub(super) mod time;
pub(super) mod verify;
pub(super) mod plan;
pub(super) mod restore;
pub(super) mod backup;
pub(super) mod cleanup;

//! One module for each command: its arguments, the flow it calls, and the exit code.

pub(super) mod archive_get;
pub(super) mod archive_push;
pub(super) mod check;
pub(super) mod fork;
pub(super) mod health;
pub(super) mod index;
pub(super) mod init;
pub(super) mod list;
pub(super) mod log;
pub(super) mod receive;
pub(super) mod recovery_ended;
pub(super) mod repository;
pub(super) mod verify;
pub(super) mod backup;
pub(super) mod plan;
pub(super) mod restore;
pub(super) mod cleanup;

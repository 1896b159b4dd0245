//! The commands: each file has the arguments of its command and what runs it.

pub(super) mod receive;
pub(super) mod backup;
pub(super) mod plan;
pub(super) mod restore;
pub(super) mod cleanup;

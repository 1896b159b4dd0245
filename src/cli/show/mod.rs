//! Results as people read them and as `--json` prints them.

pub(super) mod plan;
pub(super) mod restore;
pub(super) mod backup;
pub(super) mod cleanup;

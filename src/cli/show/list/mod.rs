//! What `walkeep list` shows.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;

use crate::postgres::archive::inventory::ArchiveInventory;

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ListJson<'r> {
    pub(in crate::cli) clusters: &'r [ArchiveInventory],
    pub(in crate::cli) instances: &'r [redis::InstanceInventory],
}

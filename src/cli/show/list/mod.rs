//! What `walkeep list` shows.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;

use crate::postgres::archive::coverage::ArchiveCoverage;

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct ListJson<'r> {
    pub(in crate::cli) clusters: &'r [ArchiveCoverage],
    pub(in crate::cli) instances: &'r [redis::InstanceInventory],
}

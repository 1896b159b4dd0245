//! One way in for WAL, one way out: what joins sealing, the repositories and the digests.
//!
//! An [`Archive`] is one cluster in all configured repositories. What goes in is checked, sealed once and put into every one of them
//! ([`ingest`]); only when all have it is it acknowledged. What comes out is opened and authenticated ([`fetch`]), from whichever repository
//! has it whole. An object is absent only if every repository says so: one that cannot be asked is an error, never "not found".
//!
//! Not known here: RocksDB, PostgreSQL's sockets, and who asks.

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "small numbers; repositories moved away"
)]
pub(crate) mod tests;
pub mod pieces;
pub mod spool;
pub mod chunks;
pub mod reindex;
mod identity;
pub mod wal_file;
pub mod layout;
pub mod gap;
mod error;
pub mod clock_notes;
pub mod unfinished;
pub mod ingest;
pub mod fetch;
pub mod inventory;
pub mod name_list;
pub mod timeline_tail;
pub mod manifest;
pub mod lookup;

use std::fmt;
use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::postgres::archive::layout::{ClusterName, Layout};
use crate::vault::Vault;

pub use error::ArchiveError;
pub use identity::ArchiveIdentity;

/// One PostgreSQL cluster in all repositories of a vault.
pub struct Archive {
    vault: Arc<Vault>,
    layout: Layout,
    identity: OnceCell<ArchiveIdentity>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("cluster", self.cluster()).field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Archive {
    /// The archive of `cluster` in a vault. Reads nothing yet.
    #[must_use]
    pub fn new(vault: Arc<Vault>, cluster: ClusterName) -> Archive {
        Archive { vault, layout: Layout::new(cluster), identity: OnceCell::new() }
    }

    /// The repositories and keys.
    #[must_use]
    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        self.layout.cluster()
    }

    /// Where this cluster's objects are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

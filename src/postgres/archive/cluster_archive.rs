//! One cluster in all repositories of a vault, and what it is known by.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::layout::{ClusterName, Layout};
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::vault::Vault;

/// One PostgreSQL cluster in all repositories of a vault.
pub struct Archive {
    pub(super) vault: Arc<Vault>,
    pub(super) layout: Layout,
    pub(super) identity: OnceCell<ArchiveIdentity>,
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

/// What must be the same in every segment of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArchiveIdentity {
    /// Its system identifier.
    pub system_id: SystemId,
    /// Its segment size.
    pub segment_size: SegmentSize,
}

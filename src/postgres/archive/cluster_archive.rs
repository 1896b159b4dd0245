//! One cluster in all repositories of a vault, and what it is known by.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::layout::{ClusterName, Layout};
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::vault::{RequiredCopies, Vault};

/// One PostgreSQL cluster in all repositories of a vault.
pub struct Archive {
    pub(super) vault: Arc<Vault>,
    pub(super) layout: Layout,
    pub(super) required: RequiredCopies,
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
        Archive { vault, layout: Layout::new(cluster), required: RequiredCopies::Any, identity: OnceCell::new() }
    }

    /// The same archive, in which WAL counts as archived only when these repositories have it.
    #[must_use]
    pub fn with_required(self, required: RequiredCopies) -> Archive {
        Archive { required, ..self }
    }

    /// The repositories that must have WAL before it counts as archived.
    #[must_use]
    pub const fn required(&self) -> &RequiredCopies {
        &self.required
    }

    /// The archive as the repositories that are open now have it; `None` if all are open, or none.
    #[must_use]
    pub fn reachable_view(&self) -> Option<Arc<Archive>> {
        let open: Vec<&str> = self.vault.repositories().map(|(name, _)| name).collect();
        let some = !open.is_empty() && self.vault.unreachable().next().is_some();
        some.then(|| Arc::new(self.view(|name| open.contains(&name))))
    }

    /// The archive as each repository alone has it, with the repository's name, in the order of the configuration.
    #[must_use]
    pub fn single_views(&self) -> Vec<(String, Arc<Archive>)> {
        let view = |(name, vault): (&str, Vault)| {
            (name.to_owned(), Arc::new(Archive::new(Arc::new(vault), self.cluster().clone())))
        };
        self.vault.single_views().map(view).collect()
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

/// What is to be done if a server runs another cluster than the one that is archived.
#[must_use]
pub fn foreign_server(server: SystemId, archived: SystemId) -> Option<String> {
    (server != archived).then(|| {
        format!(
            "this server runs another cluster (system identifier {server}) than the one archived under this name \
             ({archived}). Correct its connection, or archive the new cluster under a name of its own"
        )
    })
}

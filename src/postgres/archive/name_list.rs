//! What databases and tables were called when a backup was taken: a list beside the backup's manifest, from which
//! `walkeep log` reads names.
//!
//! A backup is whole without it. It is put before the manifest, under the same label, as JSON (`docs/format/names.md`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Archive, ArchiveError};
use crate::postgres::wal::catalog::ListedRow;
use crate::vault;
use crate::vault::SkippedRepositories;
use crate::vault::repository::PutOutcome;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;

/// The format that this program writes, and the newest it reads.
pub const NAME_LIST_FORMAT: u32 = 1;

/// The names of one cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NameList {
    /// The format of what follows: [`NAME_LIST_FORMAT`].
    pub format: u32,
    /// The server's major version, by which changes of these rows are read.
    pub major_version: u32,
    /// Every database.
    pub databases: Vec<DatabaseNames>,
}

/// A database, and what is in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DatabaseNames {
    /// Its row of `pg_database`.
    #[serde(flatten)]
    pub row: ListedRow,
    /// Its schemas.
    pub schemas: Vec<ListedRow>,
    /// Its relations, but for those of the system and the temporary ones.
    pub relations: Vec<ListedRow>,
}

impl Archive {
    /// Stores the list under `key` ([`crate::postgres::archive::layout::Layout::names`]) in the repositories that are
    /// not left out.
    ///
    /// # Errors
    /// No repository took it.
    pub async fn put_name_list(
        &self,
        key: &ObjectKey,
        names: &NameList,
        skipped: &SkippedRepositories,
    ) -> Result<PutOutcome, ArchiveError> {
        let wrong = |why: serde_json::Error| vault::VaultError::MalformedContent {
            name: self.cluster().to_string(),
            key: key.clone(),
            why: why.to_string(),
        };
        let text = serde_json::to_vec(names).map_err(wrong)?;
        let sealed = self.vault().seal_object(SealedKind::Names, key, vec![Bytes::from(text)], Vec::new()).await?;
        Ok(self.vault().put_where_not_skipped(key, &sealed, skipped).await?)
    }

    /// The list beside the backup `label`; `None` if there is none, or it is of a newer format.
    ///
    /// # Errors
    /// No repository gave it whole, and not all said that they don't have it.
    pub async fn name_list(&self, label: &str) -> Result<Option<NameList>, ArchiveError> {
        // A label that cannot stand in a key is one of no backup.
        let Ok(key) = self.layout.names(label) else { return Ok(None) };
        let Some(opened) = self.vault().get_object(SealedKind::Names, &key).await? else { return Ok(None) };
        let names = serde_json::from_slice::<NameList>(&opened.plain);
        let names = names.map_err(|why| vault::VaultError::MalformedContent {
            name: self.cluster().to_string(),
            key: key.clone(),
            why: why.to_string(),
        })?;
        Ok(Some(names).filter(|names| names.format <= NAME_LIST_FORMAT))
    }
}

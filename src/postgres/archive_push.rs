//! `archive_command`: one file of `pg_wal` into the archive. A segment that is archived with another content is
//! refused, and its server is recorded as a fork.
//!
//! Success means durable in every repository. PostgreSQL takes exit codes 1 to 125 as "try again later", and
//! `archive-push` never exits with another one after a failure (TRAPS 5).

use std::path::Path;
use std::sync::Arc;

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::{IngestError, Ingested};

/// Why a file was not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchivePushError {
    /// The archive did not take it.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The service that was asked to archive it did not take it.
    #[error("{why}")]
    Refused {
        /// What it said.
        why: String,
        /// Whether it may take it later.
        transient: bool,
    },
}

impl HasKind for ArchivePushError {
    fn kind(&self) -> ErrorKind {
        match self {
            ArchivePushError::Ingest(error) => error.kind(),
            ArchivePushError::Refused { transient: true, .. } => ErrorKind::Unavailable,
            ArchivePushError::Refused { transient: false, .. } => ErrorKind::Failed,
        }
    }
}

impl ArchivePushError {
    /// What the caller can do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }
}

/// Archives the file at `path` under `name`, in this process. `note` is its clock note
/// ([`crate::postgres::archive::clock_notes`]), or empty.
///
/// # Errors
/// Why it was not archived.
pub async fn archive_push(
    archive: &Arc<Archive>,
    path: &Path,
    name: &str,
    note: &[u8],
) -> Result<Ingested, ArchivePushError> {
    let refused = match archive.put_wal_file_at(path, name, note).await {
        Ok(ingested) => return Ok(ingested),
        Err(error) => error,
    };
    if matches!(refused, IngestError::ContentDiffers { .. }) {
        match archive.record_refused_file(path, name).await {
            Ok(Some(recorded)) => tracing::error!("{}", recorded.describe(archive.cluster().as_str())),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "a fork of the archive cannot be recorded"),
        }
    }
    Err(refused.into())
}

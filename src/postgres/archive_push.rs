//! `archive_command`: one file of `pg_wal` into the archive.
//!
//! If a service runs, it is handed over through the control socket, so that neither keys nor repositories are opened here; else this process
//! archives it itself. Either way, success means durable in every repository. PostgreSQL takes 1 to 125 as "try again later", and that is all
//! it ever gets (TRAPS 5).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Clock;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::control::{self, ControlRequest, ControlResponse};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::{IngestError, Ingested};

/// How long a service may take over one file that it has accepted. PostgreSQL waits as long as it takes; a service that dies is noticed at
/// once, by its connection. So this is only for one that hangs, and longer than a repository's own patience.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a file was not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchivePushError {
    /// The archive did not take it.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The service did not take it.
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

/// Archives the file at `path` under `name`, in this process; with a note of how it came, if there is anything to say ([`crate::postgres::archive::clock_notes`]).
///
/// # Errors
/// Why it was not archived.
pub async fn archive_push(
    archive: &Arc<Archive>,
    path: &Path,
    name: &str,
    note: &[u8],
) -> Result<Ingested, ArchivePushError> {
    Ok(archive.put_wal_file_at(path, name, note).await?)
}

/// Hands the file over to the service whose state directory this is, if one listens: `Some` once the file is archived, and whether it was
/// there already; `None` if this process has to do it itself.
///
/// # Errors
/// The service said no, and this process would have to say the same.
pub async fn push_through_service(
    state_dir: &Path,
    cluster: &str,
    path: &Path,
    name: &str,
    clock: &dyn Clock,
) -> Result<Option<bool>, ArchivePushError> {
    let request = ControlRequest::Push { cluster: cluster.to_owned(), path: path.to_owned(), name: name.to_owned() };
    match control::send_request(state_dir, &request, clock, SERVICE_TIMEOUT).await {
        Ok(ControlResponse::Pushed { identical }) => Ok(Some(identical)),
        Ok(ControlResponse::Refused { why, transient }) => Err(ArchivePushError::Refused { why, transient }),
        Ok(
            ControlResponse::NotMine
            | ControlResponse::Pong { .. }
            | ControlResponse::Status { .. }
            | ControlResponse::Accepted,
        ) => Ok(None),
        Err(control::ControlError::NotListening { .. }) => Ok(None),
        Err(error) => {
            // Archiving must not depend on a service that hangs. It may have archived the file; then it is found to be identical.
            tracing::warn!(%error, file = name, "the service does not take the file; archiving it without");
            Ok(None)
        }
    }
}

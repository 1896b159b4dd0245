//! Archives files on behalf of `archive-push`, which hands them over through the control socket.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::base::retry::ErrorClass;
use crate::cli::exit;
use crate::control::{ControlHandler, ControlRequest, ControlResponse};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::{IngestError, IngestOutcome};
use crate::postgres::archive::wal_file::WalFileError;
use crate::postgres::archive_push::{self, ArchivePushError};

/// A cluster whose files are taken.
pub(super) struct PushTarget {
    pub(super) archive: Arc<Archive>,
    /// What its receiver knows of the server's clock.
    pub(super) noted: watch::Receiver<Vec<u8>>,
}

/// What the receivers of this process do with the requests of the control socket.
pub(super) struct PushHandler {
    pub(super) targets: Vec<PushTarget>,
}

impl ControlHandler for PushHandler {
    async fn handle(&self, request: ControlRequest) -> ControlResponse {
        let names = || self.targets.iter().map(|target| target.archive.cluster().as_str());
        match request {
            ControlRequest::Ping => ControlResponse::Pong {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                clusters: names().map(str::to_owned).collect(),
                // The receivers of one process have one configuration.
                repositories: self.targets.first().map_or_else(Vec::new, |target| {
                    target.archive.vault().repository_names().map(str::to_owned).collect()
                }),
            },
            ControlRequest::Push { cluster, path, name } => {
                match self.targets.iter().find(|target| target.archive.cluster().as_str() == cluster) {
                    Some(target) => target.archive_pushed_file(&path, &name).await,
                    None => ControlResponse::NotMine,
                }
            }
            ControlRequest::Status => ControlResponse::NotMine,
        }
    }
}

impl PushTarget {
    async fn archive_pushed_file(&self, path: &Path, name: &str) -> ControlResponse {
        let note = self.noted.borrow().clone();
        match archive_push::archive_push(&self.archive, path, name, &note).await {
            Ok(ingested) => {
                if let Some(alarm) = &ingested.alarm {
                    tracing::error!(file = name, %alarm, "archived, but somebody should look at it");
                }
                ControlResponse::Pushed { identical: ingested.outcome == IngestOutcome::Identical }
            }
            // The file may be where this process cannot see it, in another container for example. The process that
            // hands it over can.
            Err(ArchivePushError::Ingest(IngestError::File(WalFileError::Read { path, source }))) => {
                tracing::debug!(path = %path.display(), %source, "archive-push archives this file itself");
                ControlResponse::NotMine
            }
            Err(error) => {
                let transient = error.class() == ErrorClass::Transient;
                let why = exit::error_line(&error.into());
                tracing::warn!(file = name, error = why, "archive-push was refused");
                ControlResponse::Refused { why, transient }
            }
        }
    }
}

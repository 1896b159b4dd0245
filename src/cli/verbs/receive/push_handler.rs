//! Archives files on behalf of `archive-push`, which hands them over through the control socket.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::base::retry::ErrorClass;
use crate::cli::exit;
use crate::control::{ControlHandler, ControlRequest, ControlResponse};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::IngestOutcome;
use crate::postgres::archive_push;

/// What the receiver does with the requests of the control socket.
pub(super) struct PushHandler {
    pub(super) archive: Arc<Archive>,
    /// What the receiver knows of the server's clock.
    pub(super) noted: watch::Receiver<Vec<u8>>,
}

impl ControlHandler for PushHandler {
    async fn handle(&self, request: ControlRequest) -> ControlResponse {
        let ours = self.archive.cluster().as_str();
        match request {
            ControlRequest::Ping => {
                ControlResponse::Pong { version: env!("CARGO_PKG_VERSION").to_owned(), clusters: vec![ours.to_owned()] }
            }
            ControlRequest::Push { cluster, path, name } if cluster == ours => {
                self.archive_pushed_file(&path, &name).await
            }
            ControlRequest::Push { .. } | ControlRequest::Status => ControlResponse::NotMine,
        }
    }
}

impl PushHandler {
    async fn archive_pushed_file(&self, path: &Path, name: &str) -> ControlResponse {
        let note = self.noted.borrow().clone();
        match archive_push::archive_push(&self.archive, path, name, &note).await {
            Ok(ingested) => {
                if let Some(alarm) = &ingested.alarm {
                    tracing::error!(file = name, %alarm, "archived, but somebody should look at it");
                }
                ControlResponse::Pushed { identical: ingested.outcome == IngestOutcome::Identical }
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

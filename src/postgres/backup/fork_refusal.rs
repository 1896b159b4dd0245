//! A server whose WAL differs from the archive is not backed up: its data would be replayed with the archive's WAL.

use std::sync::Arc;

use super::error::BackupError;
use crate::postgres::archive::Archive;
use crate::postgres::fork_check::{ComparedServer, ComparedWal, Verdict};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::wire::ReplicationConnection;
use crate::postgres::wire::conninfo::Conninfo;

/// Compares the server with the last archived segment on its path, over a connection of its own.
///
/// # Errors
/// [`BackupError::Forked`] if they differ, or if a fork of this server is recorded and nothing can be compared.
pub(super) async fn refuse_fork(archive: &Arc<Archive>, server: &Conninfo) -> Result<(), BackupError> {
    let mut connection = ReplicationConnection::connect(server).await?;
    let standby = connection.is_in_recovery().await?;
    let identity = connection.identify_system().await?;
    let size = connection.segment_size().await?;
    let path = server_path(&mut connection, identity.timeline).await?;
    let server = ComparedServer { identity, standby, name: connection.peer().to_owned(), size, path };
    let clock = Arc::clone(archive.vault().clock());
    let compared = ComparedWal { archive, spool: None, known: &server, clock: &*clock };
    let comparison = compared.compare(connection).await?;
    if let Some(connection) = comparison.connection {
        connection.close().await;
    }
    let recorded = match comparison.verdict {
        Verdict::Equal | Verdict::Unknown(_) => return Ok(()),
        Verdict::Recorded(recorded) => recorded,
        Verdict::Fork(found) => server.record_fork(archive, found).await,
    };
    Err(BackupError::Forked(recorded.describe(archive.cluster().as_str())))
}

async fn server_path(
    connection: &mut ReplicationConnection,
    timeline: TimelineId,
) -> Result<TimelinePath, BackupError> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelinePath::first());
    }
    let (file, text) = connection.timeline_history(timeline).await?;
    let unusable = |why: String| BackupError::UnusableFile { file: file.clone(), why };
    let text = std::str::from_utf8(&text).map_err(|error| unusable(error.to_string()))?;
    Ok(TimelineHistory::parse(timeline, text).map_err(|error| unusable(error.to_string()))?.path())
}

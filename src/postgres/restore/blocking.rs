//! Work that blocks, off the threads of the runtime.

use super::error::RestoreError;

/// Runs what blocks where that is allowed.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|_gone| RestoreError::WorkerLost)
}

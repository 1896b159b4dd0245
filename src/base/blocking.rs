//! Work that blocks (files, compression, the index), on the runtime's threads for it.

use super::error_kind::{ErrorKind, HasKind};

/// The work panicked, or the runtime is shutting down and never began it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a worker thread gave up on it; this is a bug in walkeep")]
pub(crate) struct WorkerLostError;

impl HasKind for WorkerLostError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Failed
    }
}

/// Runs what blocks where that holds nothing else up. The work is not cancelled with the caller.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkerLostError> {
    tokio::task::spawn_blocking(work).await.map_err(|_panicked| WorkerLostError)
}

#[cfg(test)]
mod tests {
    use super::{WorkerLostError, run_blocking};

    #[tokio::test]
    async fn work_runs_on_another_thread_and_a_panic_ends_only_the_work() {
        let caller = std::thread::current().id();
        assert!(run_blocking(|| std::thread::current().id()).await.is_ok_and(|worker| worker != caller));
        assert_eq!(run_blocking(|| assert_eq!(1, 2, "a bug")).await, Err(WorkerLostError));
    }
}

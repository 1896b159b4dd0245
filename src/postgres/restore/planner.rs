//! Planning restores of one cluster: what a plan is made from is opened once, and answers any number of requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backup_reading::read_manifest;
use super::destination::{CheckedDestination, Destination, DestinationError, check_created_tablespaces, free_bytes_at};
use super::plan::RestorePlan;
use super::target::RestoreRequest;
use super::{RestoreError, plan_restore};
use crate::base::blocking::run_blocking;
use crate::base::restore_estimate::RestoreEstimator;
use crate::postgres::archive::reindex::{self, ReindexError};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, ArchiveIdentity};
use crate::postgres::index::WalIndex;

/// The archive of a cluster with its index, and this machine's state directory.
#[derive(Debug)]
pub struct RestorePlanner {
    archive: Arc<Archive>,
    identity: Option<ArchiveIdentity>,
    index: Arc<WalIndex>,
    state_dir: PathBuf,
}

impl RestorePlanner {
    /// Opens the index in `index_dir` and catches up with the archive, whose identity is known already.
    ///
    /// # Errors
    /// The index or a repository cannot be read.
    pub async fn open(
        archive: Arc<Archive>,
        identity: Option<ArchiveIdentity>,
        index_dir: &Path,
        state_dir: &Path,
    ) -> Result<RestorePlanner, ReindexError> {
        let (index, _) = reindex::open_index_or_scratch(&archive, index_dir).await?;
        Ok(RestorePlanner { archive, identity, index, state_dir: state_dir.to_owned() })
    }

    /// The archive.
    #[must_use]
    pub const fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Plans a restore, with an estimate from what this machine has measured.
    ///
    /// # Errors
    /// [`RestoreError`]. A target that cannot be reached is a plan too.
    pub async fn plan(&self, request: RestoreRequest) -> Result<RestorePlan, RestoreError> {
        let spool = Spool::existing(&self.state_dir, &self.archive);
        let plan = plan_restore(&self.archive, &self.index, spool, request).await?;
        let estimator = RestoreEstimator::load(&self.state_dir, self.archive.cluster().as_str());
        Ok(plan.with_estimate(&estimator))
    }

    /// The same plan for the data directory `pgdata`, where it may not fit or could destroy something. A directory that
    /// has something in it is judged as `--delta` would.
    ///
    /// # Errors
    /// The backup's manifest cannot be read, or the file system does not answer.
    pub async fn check_destination(&self, plan: RestorePlan, pgdata: &Path) -> Result<RestorePlan, RestoreError> {
        let (Some(identity), Some(restore)) = (&self.identity, plan.restore()) else { return Ok(plan) };
        let manifest = read_manifest(&self.archive, &restore.backup).await?;
        let made = restore.tablespaces_made.clone();
        let destination = Destination { pgdata: pgdata.to_owned(), mapping: Vec::new() };
        let looked = run_blocking(move || {
            check_created_tablespaces(&made)?;
            CheckedDestination::check_existing(&destination, &manifest, false).map(|existing| existing.is_some())
        });
        let mut plan = match looked.await? {
            Ok(false) => plan.with_free_space(free_bytes_at(pgdata)?, identity.segment_size).at(pgdata, false),
            Ok(true) => plan.at(pgdata, true),
            Err(error @ (DestinationError::Running { .. } | DestinationError::MayRun { .. })) => {
                let mut plan = plan.at(pgdata, true);
                plan.notes.push(error.to_string());
                plan
            }
            Err(error) => plan.refused(&error),
        };
        if plan.destination.as_ref().is_some_and(|destination| destination.delta) {
            plan.notes.push(format!(
                "{} has a data directory of this cluster: --delta replaces what differs from the backup, and removes \
                 the rest",
                pgdata.display()
            ));
        }
        Ok(plan)
    }
}

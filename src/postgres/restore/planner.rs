//! Planning restores of one cluster: what a plan is made from is opened once, and answers any number of requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::destination::{DestinationError, check_created_tablespaces, free_bytes_at};
use super::plan::RestorePlan;
use super::target::RestoreRequest;
use super::{RestoreError, plan_restore};
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

    /// The same plan for the data directory `pgdata`, where it may not fit or could destroy something.
    ///
    /// # Errors
    /// The file system does not report its free space.
    pub fn check_destination(&self, plan: RestorePlan, pgdata: &Path) -> Result<RestorePlan, DestinationError> {
        let Some(identity) = &self.identity else { return Ok(plan) };
        let plan = plan.with_free_space(free_bytes_at(pgdata)?, identity.segment_size);
        match plan.restore().map(|restore| check_created_tablespaces(&restore.tablespaces_made)) {
            Some(Err(error)) => Ok(plan.refused(&error)),
            Some(Ok(())) | None => Ok(plan),
        }
    }
}

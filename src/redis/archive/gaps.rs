//! Recorded breaks in the stream.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::instance::Archive;
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::seal::SealedKind;
use crate::vault::{SkippedRepositories, VaultError};

/// A break in the stream: what came between is known to no one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// The history that broke off.
    pub replid: ReplicationId,
    /// The offset up to which it is whole.
    pub offset: u64,
    /// When its last byte had come.
    pub until: Option<Timestamp>,
    /// When the break was noticed.
    pub noticed_at: Timestamp,
    /// What happened, for people.
    pub reason: String,
}

impl Archive {
    /// Records a break in the stream. The same break recorded again is the same break.
    ///
    /// # Errors
    /// No repository that is not absent took it.
    pub async fn record_gap(&self, gap: &Gap, absent: &SkippedRepositories) -> Result<(), VaultError> {
        let key = self.layout.gap(&gap.replid.to_string(), gap.offset).map_err(|bad| self.bad_key_error(&bad))?;
        self.put(SealedKind::Gap, &key, gap, absent).await.map(drop)
    }

    /// All recorded breaks.
    ///
    /// # Errors
    /// No repository could be asked, or a record does not open.
    pub async fn gaps(&self) -> Result<Vec<Gap>, VaultError> {
        let mut gaps = Vec::new();
        for object in self.vault.list(&self.layout.gaps(), None).await?.objects {
            gaps.extend(self.get::<Gap>(SealedKind::Gap, &object.key).await?);
        }
        gaps.sort_by_key(|gap| gap.noticed_at);
        Ok(gaps)
    }

    /// Records a break in the repository of this number.
    ///
    /// # Errors
    /// It did not take it.
    pub async fn record_gap_in(&self, place: usize, gap: &Gap) -> Result<(), VaultError> {
        let others = (0..self.place_count()).filter(|other| *other != place);
        let absent = SkippedRepositories::new(others.map(|other| (other, VaultError::NoRepository)).collect());
        self.record_gap(gap, &absent).await
    }
}

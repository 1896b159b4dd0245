//! WAL that is known to be lost, as objects: shown wherever somebody could rely on it, until it is filled (I11).

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Archive, ArchiveError};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;
use crate::vault;
use crate::vault::seal::SealedKind;

/// A stretch of WAL that was not archived and may never be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gap {
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// The first byte lost.
    pub start: Lsn,
    /// The position after the last byte lost.
    pub end: Lsn,
    /// When it was noticed.
    pub noticed_at: Timestamp,
    /// What happened, for people.
    pub reason: String,
}

impl Archive {
    /// Records a gap. The same gap recorded again is the same gap.
    ///
    /// # Errors
    /// A repository did not take it.
    pub async fn record_gap(&self, gap: &Gap) -> Result<(), ArchiveError> {
        let key = self.layout.gap(gap.timeline, gap.start, gap.end);
        let text = serde_json::to_vec(gap).map_err(|e| vault::VaultError::MalformedContent {
            name: self.cluster().to_string(),
            key: key.clone(),
            why: e.to_string(),
        })?;
        self.vault().put_object(SealedKind::Gap, &key, vec![Bytes::from(text)], Vec::new()).await?;
        Ok(())
    }

    /// All recorded gaps by timeline and position, also those that were filled since.
    ///
    /// # Errors
    /// No repository could be asked, or a record does not open.
    pub async fn gaps(&self) -> Result<Vec<Gap>, ArchiveError> {
        let mut gaps = Vec::new();
        for object in self.vault().list(&self.layout.gaps(), None).await?.objects {
            let Some(opened) = self.vault().get_object(SealedKind::Gap, &object.key).await? else { continue };
            let wrong = |e: serde_json::Error| vault::VaultError::MalformedContent {
                name: self.cluster().to_string(),
                key: object.key.clone(),
                why: e.to_string(),
            };
            gaps.push(serde_json::from_slice(&opened.plain).map_err(wrong)?);
        }
        Ok(gaps)
    }
}

//! Servers whose WAL differs from the archive on the same timeline, as objects: reported until an operator decides.
//!
//! A fork is a server that was set back to an older state, a clone that uses the same archive, or a server that lost
//! WAL. Its WAL is never merged with the archive, whose objects never change. So a decision changes nothing in the
//! archive either: it only ends the alarm. Receivers and backups find forks in `postgres::fork_check`, and
//! `archive-push` when a segment is refused.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ingest::PreparedSegment;
use super::layout::ClusterObject;
use super::{Archive, ArchiveError};
use crate::base::blocking::run_blocking;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SystemId};
use crate::postgres::format::timeline::TimelineId;
use crate::vault;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::{OpenError, SealedKind};

/// A server whose WAL differs from the archive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fork {
    /// The cluster that both are.
    pub system_id: SystemId,
    /// The timeline that both have.
    pub timeline: TimelineId,
    /// The first byte that differs, or the end of the server's WAL if the server has less.
    pub at: Lsn,
    /// The end of the archived WAL that was compared.
    pub archived_until: Lsn,
    /// When it was noticed.
    pub noticed_at: Timestamp,
    /// The server, or the machine that pushed a file.
    pub server: String,
    /// What happened, for people.
    pub reason: String,
}

/// What an operator decided about a fork.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForkResolution {
    /// The fork's timeline.
    pub timeline: TimelineId,
    /// The fork's position.
    pub at: Lsn,
    /// Whose WAL is kept.
    pub keep: KeptSide,
    /// When it was decided.
    pub decided_at: Timestamp,
}

/// Whose WAL is kept under the archive's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptSide {
    /// The archive's. The server is refused on this timeline.
    Archive,
}

/// A fork, and what was decided about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RecordedFork {
    /// The fork.
    #[serde(flatten)]
    pub fork: Fork,
    /// The decision; `None` as long as there is none.
    pub resolution: Option<ForkResolution>,
}

impl RecordedFork {
    /// One sentence for reports.
    #[must_use]
    pub fn describe(&self, cluster: &str) -> String {
        let Fork { timeline, at, archived_until, server, reason, .. } = &self.fork;
        format!(
            "{server} is a fork of the archive on timeline {timeline} at {at} (archived until {archived_until}): \
                {reason}; its WAL is refused. See walkeep fork list {cluster}, and decide with walkeep fork resolve"
        )
    }

    /// Whether `other` is the same incident found again: an alarm that is on, or one that was decided since the archive
    /// has its last WAL.
    fn covers(&self, other: &Fork) -> bool {
        self.fork.timeline == other.timeline
            && (self.resolution.is_none() || self.fork.archived_until >= other.archived_until)
    }
}

impl Archive {
    /// Records a fork, unless it is one that is recorded already. Returns the record.
    ///
    /// # Errors
    /// No repository could be asked or took it, or a record does not open.
    pub async fn record_fork(&self, fork: Fork) -> Result<RecordedFork, ArchiveError> {
        if let Some(known) = self.forks().await?.into_iter().find(|known| known.covers(&fork)) {
            return Ok(known);
        }
        self.put_fork_object(&self.layout.fork(fork.timeline, fork.at), &fork).await?;
        Ok(RecordedFork { fork, resolution: None })
    }

    /// Records the fork of a server that pushed another content of an archived segment; `None` if the archive does not
    /// have it, or has the same.
    ///
    /// # Errors
    /// As [`Archive::record_fork`], or the archived segment cannot be read.
    pub async fn record_refused_segment(
        &self,
        name: SegmentName,
        pushed: &[u8],
        server: String,
    ) -> Result<Option<RecordedFork>, ArchiveError> {
        let (Some(identity), Some(archived)) = (self.identity().await?, self.segment(name).await?) else {
            return Ok(None);
        };
        let Some(number) = name.number(identity.segment_size) else { return Ok(None) };
        let start = number.start(identity.segment_size);
        let Some(at) = first_difference(start, &archived, pushed) else { return Ok(None) };
        let fork = Fork {
            system_id: identity.system_id,
            timeline: name.timeline(),
            at,
            archived_until: number.end(identity.segment_size),
            noticed_at: self.vault().clock().now(),
            server,
            reason: format!("it has another content of the archived segment {name}"),
        };
        self.record_fork(fork).await.map(Some)
    }

    /// The same for a segment that is sealed already.
    ///
    /// # Errors
    /// As [`Archive::record_refused_segment`].
    pub async fn record_refused_prepared(
        &self,
        refused: &PreparedSegment,
        server: String,
    ) -> Result<Option<RecordedFork>, ArchiveError> {
        let (refused, protection) = (refused.clone(), Arc::clone(self.vault().protection()));
        let (name, threads) = (refused.name(), self.vault().threads());
        let open = move || refused.open(&protection, threads);
        let opened = run_blocking(open).await.map_err(vault::VaultError::from)?;
        let opened = opened.map_err(|error| self.malformed_segment(name, &error))?;
        self.record_refused_segment(name, &opened, server).await
    }

    /// All recorded forks by timeline and position, with what was decided.
    ///
    /// # Errors
    /// No repository could be asked, or a record does not open.
    pub async fn forks(&self) -> Result<Vec<RecordedFork>, ArchiveError> {
        let (mut forks, mut decided) = (Vec::new(), Vec::new());
        for object in self.vault().list(&self.layout.forks(), None).await?.objects {
            match self.layout.object_of_key(&object.key) {
                Some(ClusterObject::Fork { .. }) => forks.extend(self.fork_object::<Fork>(&object.key).await?),
                Some(ClusterObject::ForkResolution { .. }) => {
                    decided.extend(self.fork_object::<ForkResolution>(&object.key).await?);
                }
                _ => {}
            }
        }
        let with_resolution = |fork: Fork| {
            let of_fork = |decided: &&ForkResolution| decided.timeline == fork.timeline && decided.at == fork.at;
            let resolution = decided.iter().find(of_fork).cloned();
            RecordedFork { fork, resolution }
        };
        Ok(forks.into_iter().map(with_resolution).collect())
    }

    /// The forks without a decision.
    ///
    /// # Errors
    /// As [`Archive::forks`].
    pub async fn unresolved_forks(&self) -> Result<Vec<RecordedFork>, ArchiveError> {
        let mut forks = self.forks().await?;
        forks.retain(|known| known.resolution.is_none());
        Ok(forks)
    }

    /// Records what was decided about a fork. The first decision stays.
    ///
    /// # Errors
    /// No repository took it.
    pub async fn resolve_fork(&self, resolution: &ForkResolution) -> Result<(), ArchiveError> {
        self.put_fork_object(&self.layout.fork_resolution(resolution.timeline, resolution.at), resolution).await
    }

    async fn put_fork_object(&self, key: &ObjectKey, value: &impl Serialize) -> Result<(), ArchiveError> {
        let text = serde_json::to_vec(value).map_err(|error| self.malformed_fork(key, &error))?;
        self.vault().put_object(SealedKind::Fork, key, vec![Bytes::from(text)], Vec::new()).await?;
        Ok(())
    }

    async fn fork_object<T: DeserializeOwned>(&self, key: &ObjectKey) -> Result<Option<T>, ArchiveError> {
        let Some(opened) = self.vault().get_object(SealedKind::Fork, key).await? else { return Ok(None) };
        serde_json::from_slice(&opened.plain).map(Some).map_err(|error| self.malformed_fork(key, &error))
    }

    fn malformed_segment(&self, name: SegmentName, error: &OpenError) -> ArchiveError {
        let (key, why) = (self.layout.segment(name), error.to_string());
        vault::VaultError::MalformedContent { name: self.cluster().to_string(), key, why }.into()
    }

    fn malformed_fork(&self, key: &ObjectKey, error: &serde_json::Error) -> ArchiveError {
        let (name, why) = (self.cluster().to_string(), error.to_string());
        vault::VaultError::MalformedContent { name, key: key.clone(), why }.into()
    }
}

/// The position of the first byte in which two copies of the WAL from `start` on differ, as far as both reach.
#[must_use]
pub fn first_difference(start: Lsn, ours: &[u8], theirs: &[u8]) -> Option<Lsn> {
    let equal = ours.iter().zip(theirs).take_while(|(our, their)| our == their).count();
    (equal < ours.len().min(theirs.len())).then(|| start.saturating_add(equal as u64))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{Fork, ForkResolution, KeptSide, first_difference};
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SystemId;
    use crate::postgres::format::timeline::TimelineId;
    use crate::vault::seal::SealedKind;
    use crate::vault::shipper::SeedScope;

    fn fork(at: u64, archived_until: u64) -> Fork {
        Fork {
            system_id: SystemId::new(7),
            timeline: TimelineId::FIRST,
            at: Lsn::new(at),
            archived_until: Lsn::new(archived_until),
            noticed_at: Timestamp::UNIX_EPOCH,
            server: "host".into(),
            reason: "it was set back".into(),
        }
    }

    #[tokio::test]
    async fn an_incident_is_one_fork_until_it_is_decided_and_the_archive_has_grown() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        assert_eq!(archive.record_fork(fork(500, 900)).await.unwrap().fork, fork(500, 900));
        // Found again elsewhere, with or without more WAL in the archive: the alarm is on already.
        for again in [fork(600, 900), fork(450, 900), fork(600, 1000)] {
            assert_eq!(archive.record_fork(again).await.unwrap().fork, fork(500, 900));
        }
        assert_eq!(archive.unresolved_forks().await.unwrap().len(), 1);
        let (timeline, keep) = (TimelineId::FIRST, KeptSide::Archive);
        let decided = ForkResolution { timeline, at: Lsn::new(500), keep, decided_at: Timestamp::UNIX_EPOCH };
        archive.resolve_fork(&decided).await.unwrap();
        assert_eq!(archive.forks().await.unwrap()[0].resolution, Some(decided.clone()));
        assert_eq!(archive.record_fork(fork(600, 900)).await.unwrap().resolution, Some(decided));
        assert_eq!(archive.unresolved_forks().await.unwrap(), []);
        // Since then WAL was archived, so this is another incident.
        archive.record_fork(fork(950, 1000)).await.unwrap();
        assert_eq!(archive.unresolved_forks().await.unwrap().len(), 1);
        assert_eq!(archive.forks().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_repository_that_lacks_a_fork_and_its_decision_gets_both() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let archive = create(&[&dirs[0], &dirs[1]], None).await;
        archive.record_fork(fork(500, 900)).await.unwrap();
        let (timeline, keep) = (TimelineId::FIRST, KeptSide::Archive);
        let decided = ForkResolution { timeline, at: Lsn::new(500), keep, decided_at: Timestamp::UNIX_EPOCH };
        archive.resolve_fork(&decided).await.unwrap();
        std::fs::remove_dir_all(dirs[1].path().join("repository/main/fork")).unwrap();
        let target = archive.vault().repository_names().nth(1).unwrap().to_owned();
        let lacking = archive.lacking(&target, None, SeedScope::All).await.unwrap();
        let items: Vec<(&str, SealedKind)> = lacking.items.iter().map(|item| (item.key.as_str(), item.kind)).collect();
        let name = "main/fork/00000001/00000000000001F4";
        let resolved = format!("{name}.resolved");
        assert_eq!(items, [(name, SealedKind::Fork), (resolved.as_str(), SealedKind::Fork)]);
    }

    #[tokio::test]
    async fn only_another_content_of_an_archived_segment_is_a_fork() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        let (name, bytes) = segment(7, 3, b"a", 9);
        let record = async |pushed: &[u8]| archive.record_refused_segment(name, pushed, "host".into()).await.unwrap();
        assert_eq!(record(&bytes).await, None, "nothing is archived");
        archive.put_segment(name, bytes.clone()).await.unwrap();
        assert_eq!(record(&bytes).await, None, "it is the same");
        let mut other = bytes.to_vec();
        other[70] ^= 1;
        let found = record(&other).await.unwrap().fork;
        assert_eq!((found.at, found.archived_until), (Lsn::new((3 << 20) + 70), Lsn::new(4 << 20)));
    }

    #[test]
    fn the_first_difference_is_found_as_far_as_both_reach() {
        let start = Lsn::new(100);
        for (ours, theirs, expected) in
            [("abc", "abc", None), ("abc", "ab", None), ("ab", "abx", None), ("abc", "axc", Some(101)), ("", "x", None)]
        {
            let found = first_difference(start, ours.as_bytes(), theirs.as_bytes());
            assert_eq!(found, expected.map(Lsn::new), "{ours} {theirs}");
        }
    }
}

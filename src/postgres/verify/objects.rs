//! Objects one by one: each is fetched, opened and looked into.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use super::{BackupWal, ClusterVerifyError, MEMORY_BUDGET_MIB, RepositoryVerifier};
use crate::base::blocking::run_blocking;
use crate::postgres::archive::ArchiveIdentity;
use crate::postgres::archive::fork::{Fork, ForkResolution};
use crate::postgres::archive::gap::Gap;
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::archive::manifest::BackupSummary;
use crate::postgres::archive::name_list::NameList;
use crate::postgres::format::segment::{SegmentName, SegmentSize, WalFileName};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::wal::digest::{SegmentDigest, SegmentState, digest_segment};
use crate::vault::repository::key::ObjectKey;
use crate::vault::repository::{self, ObjectInfo};
use crate::vault::seal::{self, OpenedObject, SealedKind};
use crate::vault::verify::open_checked;

/// Fetches at the same time; the memory budget mostly allows fewer.
const FETCHES_IN_FLIGHT: usize = 16;

impl RepositoryVerifier<'_> {
    /// Verifies listed objects, backups last; of segments only those that `needed` names.
    pub(super) async fn verify_objects(
        &self,
        listed: Vec<ObjectInfo>,
        needed: Option<BackupWal>,
    ) -> Result<(), ClusterVerifyError> {
        let layout = self.archive.layout();
        let mut manifests = Vec::new();
        let (mut single, mut packs) = (Vec::new(), Vec::new());
        for object in listed {
            match layout.object_of_key(&object.key) {
                None => self.record_damage(
                    object.key.as_str(),
                    "no object of walkeep has such a name; it may be somebody else's",
                ),
                Some(ClusterObject::Backup(label)) => manifests.push((label, object)),
                Some(ClusterObject::Pack(_)) => packs.push(object),
                // What `check` was about to delete, and marks whose names say all.
                Some(ClusterObject::Probe(_) | ClusterObject::Pin(_) | ClusterObject::Running(..)) => {}
                Some(kind) => single.push((kind, object)),
            }
        }
        let checks = single.into_iter().filter(|(kind, _)| needed.is_none_or(|needed| needed.needs_object(kind)));
        let mut running = stream::iter(checks)
            .map(|(kind, object)| self.verify_object(kind, object))
            .buffer_unordered(FETCHES_IN_FLIGHT);
        while let Some(checked) = running.next().await {
            checked?;
        }
        drop(running);
        // Packs are read with the backups that need them; those that none needs, at the end.
        self.verify_backups(manifests, packs).await
    }

    /// Room for an object of `len` bytes that opens to `plain`.
    pub(super) async fn reserve_memory(&self, len: u64, plain: u64) -> Option<OwnedSemaphorePermit> {
        let mebibytes = (len.saturating_add(plain) >> 20).saturating_add(1);
        let permits = u32::try_from(mebibytes).unwrap_or(MEMORY_BUDGET_MIB).min(MEMORY_BUDGET_MIB);
        Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()
    }

    /// An object's bytes; `None` if it is gone since it was listed, or cannot be what its name says.
    pub(super) async fn read_object(&self, object: &ObjectInfo) -> Result<Option<Bytes>, ClusterVerifyError> {
        match self.repository.get(&object.key).await {
            Ok(bytes) => {
                self.progress.add_object(bytes.len() as u64);
                self.record(|found| found.counts.bytes = found.counts.bytes.saturating_add(bytes.len() as u64));
                Ok(Some(bytes))
            }
            Err(repository::RepositoryError::NotFound { .. }) => {
                self.record(|found| found.gone.push(object.key.clone()));
                Ok(None)
            }
            Err(error @ repository::RepositoryError::Corrupt { .. }) => {
                self.record_damage(object.key.as_str(), error);
                Ok(None)
            }
            Err(error) => Err(self.repository_error(error)),
        }
    }

    async fn verify_object(&self, kind: ClusterObject, object: ObjectInfo) -> Result<(), ClusterVerifyError> {
        let plain = if matches!(kind, ClusterObject::Segment(_)) {
            self.size.unwrap_or(SegmentSize::DEFAULT).get()
        } else {
            object.len.saturating_mul(4)
        };
        let _room = self.reserve_memory(object.len, plain).await;
        let Some(bytes) = self.read_object(&object).await? else { return Ok(()) };
        let (protection, size, key) = (Arc::clone(self.archive.vault().protection()), self.size, object.key.clone());
        let checked = run_blocking(move || check_object(&kind, &key, &bytes, &protection, size)).await;
        match checked {
            Ok(Ok(good)) => self.record(|found| {
                match good {
                    VerifiedObject::Segment(digest) => {
                        found.counts.segments = found.counts.segments.saturating_add(1);
                        found.digests.push((*digest, object.len));
                        return;
                    }
                    VerifiedObject::History(history) => found.histories.push(history),
                    VerifiedObject::Gap(gap) => found.gaps.push(gap),
                    VerifiedObject::Other => {}
                }
                found.counts.files = found.counts.files.saturating_add(1);
            }),
            Ok(Err(what)) => self.record_damage(object.key.as_str(), what),
            Err(lost) => return Err(lost.into()),
        }
        Ok(())
    }
}

impl BackupWal {
    /// Whether a segment has a byte of it; every history is needed.
    fn needs_object(&self, kind: &ClusterObject) -> bool {
        match kind {
            ClusterObject::Segment(name) => {
                let (number, size) = (name.number(self.size), self.size);
                name.timeline() == self.timeline
                    && number.is_some_and(|number| number.start(size) < self.to && self.from < number.end(size))
            }
            ClusterObject::File(WalFileName::History(_)) => true,
            _ => false,
        }
    }
}

/// What an object proved to be.
enum VerifiedObject {
    Segment(Box<SegmentDigest>),
    History(TimelineHistory),
    Gap(Gap),
    Other,
}

/// Opens one object and looks into it. The error says what is wrong.
fn check_object(
    kind: &ClusterObject,
    key: &ObjectKey,
    bytes: &[u8],
    protection: &seal::ObjectEncryption,
    size: Option<SegmentSize>,
) -> Result<VerifiedObject, String> {
    let sealed = match kind {
        ClusterObject::Segment(_) => SealedKind::Wal,
        ClusterObject::File(_) => SealedKind::WalFile,
        ClusterObject::Identity => SealedKind::Cluster,
        ClusterObject::Gap { .. } => SealedKind::Gap,
        ClusterObject::Backup(_) | ClusterObject::Expired(_) => SealedKind::Manifest,
        ClusterObject::Pack(_) => SealedKind::Pack,
        // Never asked: these are not sealed, or removed at any moment.
        ClusterObject::Probe(_) | ClusterObject::Pin(_) | ClusterObject::Running(..) => SealedKind::Probe,
        ClusterObject::Names(_) => SealedKind::Names,
        ClusterObject::Piece { .. } => SealedKind::Piece,
        ClusterObject::Fork { .. } | ClusterObject::ForkResolution { .. } => SealedKind::Fork,
    };
    let opened = open_checked(sealed, key, bytes, protection)?;
    match kind {
        ClusterObject::Segment(name) => {
            check_segment(*name, &opened, size).map(|digest| VerifiedObject::Segment(Box::new(digest)))
        }
        ClusterObject::File(WalFileName::History(timeline)) => {
            check_history(*timeline, &opened.plain).map(VerifiedObject::History)
        }
        ClusterObject::Gap { .. } => {
            serde_json::from_slice(&opened.plain).map(VerifiedObject::Gap).map_err(|e| e.to_string())
        }
        ClusterObject::Fork { .. } => {
            serde_json::from_slice::<Fork>(&opened.plain).map(|_| VerifiedObject::Other).map_err(|e| e.to_string())
        }
        ClusterObject::ForkResolution { .. } => serde_json::from_slice::<ForkResolution>(&opened.plain)
            .map(|_| VerifiedObject::Other)
            .map_err(|e| e.to_string()),
        ClusterObject::Identity => serde_json::from_slice::<ArchiveIdentity>(&opened.plain)
            .map(|_| VerifiedObject::Other)
            .map_err(|e| e.to_string()),
        ClusterObject::Names(_) => {
            serde_json::from_slice::<NameList>(&opened.plain).map(|_| VerifiedObject::Other).map_err(|e| e.to_string())
        }
        ClusterObject::File(WalFileName::Tail { len, .. }) if opened.plain.len() as u64 != u64::from(*len) => {
            Err("its length is not the one in its name".to_owned())
        }
        ClusterObject::Piece { start, end, .. } if opened.plain.len() as u64 != end.bytes_since(*start) => {
            Err("it is not as long as its name says".to_owned())
        }
        ClusterObject::File(_)
        | ClusterObject::Piece { .. }
        | ClusterObject::Backup(_)
        | ClusterObject::Expired(_)
        | ClusterObject::Pack(_)
        | ClusterObject::Pin(_)
        | ClusterObject::Running(..)
        | ClusterObject::Probe(_) => Ok(VerifiedObject::Other),
    }
}

/// Reads a segment's records again, and compares with what was found when it was archived.
fn check_segment(
    name: SegmentName,
    opened: &OpenedObject,
    expected: Option<SegmentSize>,
) -> Result<SegmentDigest, String> {
    let size = SegmentSize::new(opened.plain.len() as u64).map_err(|error| error.to_string())?;
    if expected.is_some_and(|expected| expected != size) {
        return Err(format!("it has {} bytes, unlike the cluster's other segments", size.get()));
    }
    let stored = SegmentDigest::from_bytes(&opened.metadata).map_err(|error| error.to_string())?;
    let again = digest_segment(&opened.plain, name, size).map_err(|error| error.to_string())?;
    // Digests of the first version hold less, and of the rest the same.
    let first_version = opened.metadata.first() == Some(&1);
    let same = || stored.content == again.content && stored.endings == again.endings && stored.events == again.events;
    // A release that was not known when it was archived may be known now.
    if stored == again || stored.state == SegmentState::Opaque || first_version && same() {
        Ok(again)
    } else {
        Err("it opens, but its digest is not that of its content; it was archived by a faulty program".to_owned())
    }
}

fn check_history(timeline: TimelineId, plain: &[u8]) -> Result<TimelineHistory, String> {
    let text = std::str::from_utf8(plain).map_err(|error| error.to_string())?;
    TimelineHistory::parse(timeline, text).map_err(|error| error.to_string())
}

/// A backup's summary.
pub(super) fn read_summary(opened: &OpenedObject) -> Result<BackupSummary, String> {
    BackupSummary::from_bytes(&opened.metadata).map_err(|error| error.to_string())
}

//! What one repository lacks of a cluster, compared with the others: names alone, by listing.
//!
//! A repository that keeps less than the others is not incomplete: what its retention removed is not lacking. So by
//! default only WAL that its own oldest backup needs counts, and only backups after that one; all, if it has none.

use std::collections::BTreeSet;

use futures_util::future::try_join;

use super::layout::ClusterObject;
use super::manifest::{BackupSummary, Manifest};
use super::{Archive, ArchiveError};
use crate::postgres::format::segment::{SegmentName, SegmentNo, WalFileName};
use crate::vault::repository::ObjectInfo;
use crate::vault::repository::key::{KeyPrefix, ObjectKey};
use crate::vault::seal::SealedKind;
use crate::vault::shipper::{Lacking, SeedScope, ShipItem, ShipStage};
use crate::vault::{self, VaultError};

/// So many segments before the cursor are listed too: another process may have stored one of them later than what
/// follows it. They are in the same folder, or in the one before.
const LOOK_BACK_SEGMENTS: u64 = 64;

impl Archive {
    /// What the repository `target` lacks of what the others have: of WAL, what sorts after `cursor`. Backups,
    /// histories, gaps and forks are few and always compared. Without a cursor, the data of backups that `target` has
    /// already is compared too, which reads their manifests if the others have data that it does not have.
    ///
    /// # Errors
    /// `target` or all others could not be listed.
    pub async fn lacking(
        &self,
        target: &str,
        cursor: Option<&ObjectKey>,
        scope: SeedScope,
    ) -> Result<Lacking, ArchiveError> {
        let (ours, others) = (self.view(|name| name == target), self.view(|name| name != target));
        if others.vault.places.is_empty() {
            return Ok(Lacking::default());
        }
        let mut comparison = Comparison { ours, others, lacking: Lacking::default() };
        comparison.descriptions().await?;
        let seed = comparison.backups(scope).await?;
        if cursor.is_none() {
            comparison.data_of_own_backups().await?;
        }
        comparison.wal(cursor, seed).await?;
        let Lacking { items, unasked, .. } = &mut comparison.lacking;
        items.sort_unstable();
        unasked.sort_unstable();
        unasked.dedup();
        Ok(comparison.lacking)
    }

    /// The archive as these repositories alone have it.
    #[must_use]
    pub(crate) fn view(&self, wanted: impl Fn(&str) -> bool) -> Archive {
        Archive::new(std::sync::Arc::new(self.vault.view(wanted)), self.cluster().clone())
    }
}

struct Comparison {
    ours: Archive,
    others: Archive,
    lacking: Lacking,
}

impl Comparison {
    fn add(&mut self, stage: ShipStage, key: ObjectKey, kind: SealedKind) {
        self.lacking.items.push(ShipItem { stage, key, kind });
    }

    /// What both sides have under a prefix. The others are listed first: what is stored meanwhile is no reason to
    /// report it as lacking.
    async fn both(
        &mut self,
        prefix: &KeyPrefix,
        after: Option<&ObjectKey>,
    ) -> Result<(Vec<ObjectInfo>, BTreeSet<ObjectKey>), VaultError> {
        let theirs = self.others.vault().list(prefix, after).await?;
        self.lacking.unasked.extend(theirs.unasked);
        let ours = self.ours.vault().list(prefix, after).await?;
        Ok((theirs.objects, ours.objects.into_iter().map(|object| object.key).collect()))
    }

    async fn descriptions(&mut self) -> Result<(), ArchiveError> {
        let layout = self.ours.layout().clone();
        let (theirs, ours) = try_join(self.others.identity(), self.ours.identity()).await?;
        match (theirs, ours) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                let why = "it is another cluster than in the other repositories".to_owned();
                let name = self.ours.vault().repository_names().next().unwrap_or_default().to_owned();
                return Err(VaultError::MalformedContent { name, key: layout.identity(), why }.into());
            }
            (Some(_), None) => self.add(ShipStage::Description, layout.identity(), SealedKind::Cluster),
            _ => {}
        }
        let few = [
            (layout.histories(), SealedKind::WalFile),
            (layout.gaps(), SealedKind::Gap),
            (layout.forks(), SealedKind::Fork),
        ];
        for (prefix, kind) in few {
            let (theirs, ours) = self.both(&prefix, None).await?;
            for object in theirs.into_iter().filter(|object| !ours.contains(&object.key)) {
                self.add(ShipStage::Description, object.key, kind);
            }
        }
        Ok(())
    }

    /// Backups with their packs. The first segment that the repository is to have, if not all WAL is wanted.
    async fn backups(&mut self, scope: SeedScope) -> Result<Option<SegmentName>, ArchiveError> {
        let layout = self.ours.layout().clone();
        let (theirs, ours) = self.both(&layout.backups(), None).await?;
        let (_, expired) = self.both(&layout.expired(), None).await?;
        let expired: BTreeSet<&str> = expired.iter().map(ObjectKey::file_name).collect();
        let mut wanted: Vec<ObjectKey> = theirs.into_iter().map(|object| object.key).collect();
        let mut first = None;
        let mut seed = None;
        match scope {
            SeedScope::FromOwnOldestBackup => {
                first = ours.first().cloned();
                if let Some(first) = &first {
                    seed = self.first_segment_of_backup(first).await?;
                }
            }
            SeedScope::All => {}
            SeedScope::NewestBackup => {
                wanted = wanted.pop().into_iter().collect();
                if let Some(newest) = wanted.first() {
                    seed = self.first_segment_of_backup(newest).await?;
                }
            }
        }
        wanted.retain(|key| {
            !ours.contains(key) && !expired.contains(key.file_name()) && first.as_ref().is_none_or(|first| key > first)
        });
        if wanted.is_empty() {
            return Ok(seed);
        }
        let (_, packs) = self.both(&layout.packs(), None).await?;
        let names = self.others.vault().list(&layout.all_names(), None).await?;
        let names: BTreeSet<ObjectKey> = names.objects.into_iter().map(|object| object.key).collect();
        for key in wanted {
            // Removed since it was listed.
            let Some(manifest) = self.read_manifest(&key).await? else { continue };
            let pack_keys = manifest.packs.iter().map(|pack| layout.pack(&pack.to_string()));
            let pack_keys: Result<Vec<ObjectKey>, _> = pack_keys.collect();
            let malformed = |why: String| self.malformed(&key, why);
            let names = names.iter().find(|names| names.file_name() == key.file_name());
            for pack in pack_keys.map_err(|bad| malformed(bad.to_string()))? {
                if !packs.contains(&pack) {
                    for manifest in std::iter::once(&key).chain(names) {
                        self.lacking.needs.add(manifest, &pack);
                    }
                    self.add(ShipStage::Data, pack, SealedKind::Pack);
                }
            }
            if let Some(names) = names {
                self.add(ShipStage::Manifest, names.clone(), SealedKind::Names);
            }
            self.add(ShipStage::Manifest, key, SealedKind::Manifest);
        }
        self.lacking.items.sort_unstable();
        self.lacking.items.dedup();
        Ok(seed)
    }

    /// Packs that the repository's own backups name and that only others have.
    async fn data_of_own_backups(&mut self) -> Result<(), ArchiveError> {
        let layout = self.ours.layout().clone();
        let (theirs, ours) = self.both(&layout.packs(), None).await?;
        let elsewhere: BTreeSet<ObjectKey> =
            theirs.into_iter().map(|object| object.key).filter(|key| !ours.contains(key)).collect();
        if elsewhere.is_empty() {
            return Ok(());
        }
        for manifest in self.ours.vault().list(&layout.backups(), None).await?.objects {
            let read = self.ours.vault().get_object(SealedKind::Manifest, &manifest.key).await;
            // A damaged manifest is what `verify` reports.
            let Ok(Some(opened)) = read else { continue };
            let manifest = BackupSummary::from_bytes(&opened.metadata)
                .and_then(|summary| Manifest::from_bytes(summary, &opened.plain));
            let packs = manifest.map(|manifest| manifest.packs).unwrap_or_default();
            let keys = packs.iter().filter_map(|pack| layout.pack(&pack.to_string()).ok());
            for key in keys.filter(|key| elsewhere.contains(key)) {
                self.add(ShipStage::Data, key, SealedKind::Pack);
            }
        }
        self.lacking.items.sort_unstable();
        self.lacking.items.dedup();
        Ok(())
    }

    /// The first segment that the backup under this key needs, wherever it is.
    async fn first_segment_of_backup(&self, key: &ObjectKey) -> Result<Option<SegmentName>, ArchiveError> {
        let Some(identity) = self.others.identity().await? else { return Ok(None) };
        let trailer = match self.ours.vault().get_trailer(SealedKind::Manifest, key).await? {
            Some(trailer) => Some(trailer),
            None => self.others.vault().get_trailer(SealedKind::Manifest, key).await?,
        };
        let Some(trailer) = trailer else { return Ok(None) };
        let summary = BackupSummary::from_bytes(trailer.metadata());
        let summary = summary.map_err(|error| self.malformed(key, error.to_string()))?;
        let size = identity.segment_size;
        Ok(SegmentName::new(summary.timeline, size.segment_of(summary.start_lsn), size))
    }

    async fn read_manifest(&self, key: &ObjectKey) -> Result<Option<Manifest>, ArchiveError> {
        let Some(opened) = self.others.vault().get_object(SealedKind::Manifest, key).await? else { return Ok(None) };
        let manifest = BackupSummary::from_bytes(&opened.metadata)
            .and_then(|summary| Manifest::from_bytes(summary, &opened.plain));
        manifest.map(Some).map_err(|error| self.malformed(key, error.to_string()))
    }

    fn malformed(&self, key: &ObjectKey, why: String) -> ArchiveError {
        vault::VaultError::MalformedContent { name: self.ours.cluster().to_string(), key: key.clone(), why }.into()
    }

    /// The key of the segment [`LOOK_BACK_SEGMENTS`] before the cursor.
    fn step_back(&self, cursor: &ObjectKey) -> ObjectKey {
        let layout = self.ours.layout();
        let Some(ClusterObject::Segment(name)) = layout.object_of_key(cursor) else { return cursor.clone() };
        let size = self.others.identity.get().map(|identity| identity.segment_size);
        let earlier = size.and_then(|size| {
            let number = SegmentNo::new(name.number(size)?.get().saturating_sub(LOOK_BACK_SEGMENTS));
            SegmentName::new(name.timeline(), number, size)
        });
        layout.segment(earlier.unwrap_or(name))
    }

    async fn wal(&mut self, cursor: Option<&ObjectKey>, seed: Option<SegmentName>) -> Result<(), ArchiveError> {
        let layout = self.ours.layout().clone();
        let from = cursor.map(|cursor| self.step_back(cursor));
        let (theirs, ours) = self.both(&layout.wal(), from.as_ref()).await?;
        let segment = |key: &ObjectKey| match layout.object_of_key(key) {
            Some(ClusterObject::Segment(name)) => Some(name),
            _ => None,
        };
        // WAL before the first backup's, on its timeline or an older one, restores nothing.
        let removed = |name: SegmentName| {
            seed.is_some_and(|seed| {
                name.timeline() < seed.timeline() || (name.timeline() == seed.timeline() && name < seed)
            })
        };
        self.lacking.through =
            theirs.iter().map(|object| &object.key).filter(|key| segment(key).is_some()).max().cloned();
        let missing: Vec<ObjectInfo> = theirs.into_iter().filter(|object| !ours.contains(&object.key)).collect();
        for object in missing {
            match layout.object_of_key(&object.key) {
                Some(ClusterObject::Segment(name)) if !removed(name) => {
                    self.add(ShipStage::Log, object.key, SealedKind::Wal);
                }
                Some(ClusterObject::File(file)) if segment_of_file(&file).is_none_or(|name| !removed(name)) => {
                    self.add(ShipStage::Log, object.key, SealedKind::WalFile);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The segment that a file beside the segments belongs to.
fn segment_of_file(file: &WalFileName) -> Option<SegmentName> {
    match file {
        WalFileName::Segment(segment)
        | WalFileName::Partial(segment)
        | WalFileName::BackupLabel { segment, .. }
        | WalFileName::Tail { segment, .. } => Some(*segment),
        WalFileName::History(_) | WalFileName::Other(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::SeedScope;
    use crate::postgres::archive::manifest::sample_summary;
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::WalFileName;
    use crate::vault::seal::SealedKind;
    use crate::vault::shipper::ShipStage;

    /// A receiver stored new WAL in a repository that was added and not filled yet: the older WAL is lacking. What is
    /// older than its own first backup is what its retention removed, the beginnings of lost segments too.
    #[tokio::test]
    async fn a_repository_lacks_all_wal_until_it_has_a_backup() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let archive = create(&[&dirs[0], &dirs[1]], None).await;
        for number in 3..7 {
            let (name, bytes) = segment(7, number, b"a", 9);
            archive.put_segment(name, bytes).await.unwrap();
        }
        let first = archive.view(|name| name == "place0");
        for number in [2, 5] {
            let (segment, bytes) = segment(7, number, b"a", 9);
            first.put_file(&WalFileName::Tail { segment, len: 5000 }, bytes.slice(..5000)).await.unwrap();
        }
        let second = dirs[1].path().join("repository/main");
        for number in [3, 4, 6] {
            std::fs::remove_file(second.join(format!("wal/00000001/00000000/00000001000000000000000{number}")))
                .unwrap();
        }
        let log = async |cursor: Option<u64>, scope| -> Vec<String> {
            let cursor = cursor.map(|number| archive.layout().segment(segment(7, number, b"a", 9).0));
            let lacking = archive.lacking("place1", cursor.as_ref(), scope).await.unwrap();
            let log = lacking.items.iter().filter(|item| item.stage == ShipStage::Log);
            log.map(|item| item.key.file_name().chars().skip(23).take(1).collect()).collect()
        };
        assert_eq!(log(None, SeedScope::default()).await, ["3", "4", "6", "2", "5"]);
        let mut summary = sample_summary();
        summary.start_lsn = Lsn::new(5 << 20);
        let key = archive.layout().backup(&summary.label).unwrap();
        let alone = archive.view(|name| name == "place1");
        let plain = vec![Bytes::from_static(b"x")];
        alone.vault().put_object(SealedKind::Manifest, &key, plain, summary.to_bytes()).await.unwrap();
        for cursor in [None, Some(6)] {
            assert_eq!(log(cursor, SeedScope::default()).await, ["6", "5"], "{cursor:?}");
        }
        assert_eq!(log(None, SeedScope::All).await, ["3", "4", "6", "2", "5"]);
    }
}

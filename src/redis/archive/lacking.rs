//! What one repository lacks of an instance, compared with the others: names alone, by listing.
//!
//! Repositories may have cut the same commands into other stretches, so a missing stretch does not show by its name
//! within a history that a repository has. Only a history of which it has nothing, and what is before its first stretch
//! of one, is lacking for certain. The receiver brings the rest from its spool.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::instance::Archive;
use super::layout::InstanceObject;
use crate::vault::VaultError;
use crate::vault::repository::key::{KeyPrefix, ObjectKey};
use crate::vault::seal::SealedKind;
use crate::vault::shipper::{Lacking, SeedScope, ShipItem, ShipStage};

impl Archive {
    /// What the repository `target` lacks of what the others have. With [`SeedScope::FromOwnOldestBackup`], snapshots
    /// that are older than its oldest one are not lacking: its retention removed them.
    ///
    /// # Errors
    /// `target` or all others could not be listed.
    pub async fn lacking(&self, target: &str, scope: SeedScope) -> Result<Lacking, VaultError> {
        let (ours, others) = (self.view(|name| name == target), self.view(|name| name != target));
        if others.vault().repository_names().next().is_none() {
            return Ok(Lacking::default());
        }
        let mut comparison = InstanceComparison { ours, others, lacking: Lacking::default() };
        comparison.descriptions().await?;
        comparison.snapshots(scope).await?;
        comparison.stretches(scope).await?;
        comparison.lacking.items.sort_unstable();
        Ok(comparison.lacking)
    }

    fn view(&self, wanted: impl Fn(&str) -> bool) -> Archive {
        Archive::new(Arc::new(self.vault().view(wanted)), self.name().clone())
    }
}

struct InstanceComparison {
    ours: Archive,
    others: Archive,
    lacking: Lacking,
}

impl InstanceComparison {
    fn add(&mut self, stage: ShipStage, key: ObjectKey, kind: SealedKind) {
        self.lacking.items.push(ShipItem { stage, key, kind });
    }

    /// The keys of both sides under a prefix, those of the others first.
    async fn both(&mut self, prefix: &KeyPrefix) -> Result<(BTreeSet<ObjectKey>, BTreeSet<ObjectKey>), VaultError> {
        let theirs = self.others.vault().list(prefix, None).await?;
        for unasked in theirs.unasked {
            if !self.lacking.unasked.contains(&unasked) {
                self.lacking.unasked.push(unasked);
            }
        }
        let ours = self.ours.vault().list(prefix, None).await?;
        let keys = |objects: Vec<crate::vault::repository::ObjectInfo>| objects.into_iter().map(|object| object.key);
        Ok((keys(theirs.objects).collect(), keys(ours.objects).collect()))
    }

    async fn descriptions(&mut self) -> Result<(), VaultError> {
        let layout = self.ours.layout().clone();
        let identity = layout.identity();
        let there = self.others.vault().get_trailer(SealedKind::Instance, &identity).await?.is_some();
        if there && self.ours.vault().get_trailer(SealedKind::Instance, &identity).await?.is_none() {
            self.add(ShipStage::Description, identity, SealedKind::Instance);
        }
        let (theirs, ours) = self.both(&layout.gaps()).await?;
        for key in theirs.difference(&ours) {
            self.add(ShipStage::Description, key.clone(), SealedKind::Gap);
        }
        Ok(())
    }

    /// Snapshots with their parts.
    async fn snapshots(&mut self, scope: SeedScope) -> Result<(), VaultError> {
        let layout = self.ours.layout().clone();
        let (theirs, ours) = self.both(&layout.snapshots()).await?;
        let oldest = ours.first().filter(|_| scope == SeedScope::FromOwnOldestBackup);
        let newest = theirs.last().filter(|_| scope == SeedScope::NewestBackup);
        let wanted: Vec<ObjectKey> = theirs
            .difference(&ours)
            .filter(|key| oldest.is_none_or(|oldest| *key > oldest) && newest.is_none_or(|newest| *key == newest))
            .cloned()
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let labels: BTreeSet<&str> = wanted.iter().map(ObjectKey::file_name).collect();
        let (parts, present) = self.both(&layout.parts()).await?;
        for key in parts.difference(&present) {
            if let Some(InstanceObject::Part(label, _)) = layout.parse_key(key)
                && labels.contains(label.as_str())
            {
                self.add(ShipStage::Data, key.clone(), SealedKind::RdbPart);
            }
        }
        for key in wanted {
            self.add(ShipStage::Manifest, key, SealedKind::Snapshot);
        }
        Ok(())
    }

    async fn stretches(&mut self, scope: SeedScope) -> Result<(), VaultError> {
        let layout = self.ours.layout().clone();
        let (theirs, ours) = self.both(&layout.streams()).await?;
        let mut first: BTreeMap<String, u64> = BTreeMap::new();
        for key in &ours {
            if let Some(InstanceObject::Commands(replid, offset)) = layout.parse_key(key) {
                first.entry(replid).and_modify(|first| *first = offset.min(*first)).or_insert(offset);
            }
        }
        for key in theirs.difference(&ours) {
            let Some(InstanceObject::Commands(replid, offset)) = layout.parse_key(key) else { continue };
            let lacking = match first.get(&replid) {
                None => true,
                Some(first) => scope == SeedScope::All && offset < *first,
            };
            if lacking {
                self.add(ShipStage::Log, key.clone(), SealedKind::Commands);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Archive, SeedScope, ShipStage};
    use crate::redis::archive::layout::Layout;
    use crate::vault::seal::SealedKind;
    use crate::vault::testing::create;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[tokio::test]
    async fn a_new_repository_lacks_everything_and_one_with_a_snapshot_what_is_newer() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let vault = create(&[&dirs[0], &dirs[1]], None).await;
        let layout = Layout::new("cache".parse().unwrap());
        let archive = Archive::new(vault, "cache".parse().unwrap());
        let only_first = archive.vault().view(|name| name == "place0");
        let put = async |vault: &crate::vault::Vault, kind, key| {
            vault.put_object(kind, &key, vec![Bytes::from_static(b"{}")], Vec::new()).await.unwrap();
        };
        for label in ["20261201T000000.000Z", "20261202T000000.000Z"] {
            put(&only_first, SealedKind::RdbPart, layout.part(label, 0).unwrap()).await;
            put(&only_first, SealedKind::Snapshot, layout.snapshot(label).unwrap()).await;
        }
        put(&only_first, SealedKind::Commands, layout.commands(ID, 100).unwrap()).await;
        let stages = async |scope| {
            let lacking = archive.lacking("place1", scope).await.unwrap();
            lacking.items.iter().map(|item| item.stage).collect::<Vec<_>>()
        };
        let (log, data, manifest) = (ShipStage::Log, ShipStage::Data, ShipStage::Manifest);
        assert_eq!(stages(SeedScope::default()).await, [log, data, data, manifest, manifest]);
        assert_eq!(stages(SeedScope::NewestBackup).await, [log, data, manifest]);
        assert_eq!(archive.lacking("place0", SeedScope::All).await.unwrap().items, []);
        let lacking = archive.lacking("place1", SeedScope::NewestBackup).await.unwrap();
        for item in &lacking.items {
            archive.vault().copy_object(item, "place1").await.unwrap();
        }
        assert_eq!(stages(SeedScope::default()).await, [], "the older snapshot is not kept there");
        assert_eq!(stages(SeedScope::All).await, [data, manifest]);
    }
}

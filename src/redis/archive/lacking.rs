//! What one repository lacks of an instance, compared with the others: by listing, and by the ends of a few stretches.
//!
//! A repository that keeps less than the others is not incomplete: what its retention removed is not lacking. So by
//! default only snapshots that are newer than its own oldest one count, and only commands after that one. If it has no
//! snapshot, everything counts.
//!
//! Repositories may have cut the same commands into other stretches, where two receivers ran. So a stretch that a
//! repository does not have by this name is lacking only if its own stretches do not cover the same commands. Where the
//! names agree, nothing is read for that.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use jiff::Timestamp;

use super::instance::Archive;
use super::layout::InstanceObject;
use super::snapshot::SnapshotManifest;
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::VaultError;
use crate::vault::repository::ObjectInfo;
use crate::vault::repository::key::{KeyPrefix, ObjectKey};
use crate::vault::seal::SealedKind;
use crate::vault::shipper::{Lacking, SeedScope, ShipItem, ShipStage};

/// How many stretches before a position may reach beyond it. If more of them overlap, a stretch is copied that is
/// covered already.
const MAX_OVERLAPPING_STRETCHES: usize = 8;

impl Archive {
    /// What the repository `target` lacks of what the others have.
    ///
    /// # Errors
    /// `target` or all others could not be listed.
    pub async fn lacking(&self, target: &str, scope: SeedScope) -> Result<Lacking, VaultError> {
        self.lacking_except(target, scope, &mut BTreeSet::new()).await
    }

    /// The same without the stretches in `except`. Stretches that the repository's own ones cover are added to it.
    ///
    /// # Errors
    /// As [`Archive::lacking`].
    pub async fn lacking_except(
        &self,
        target: &str,
        scope: SeedScope,
        except: &mut BTreeSet<ObjectKey>,
    ) -> Result<Lacking, VaultError> {
        let (ours, others) = (self.view(|name| name == target), self.view(|name| name != target));
        if others.vault().repository_names().next().is_none() {
            return Ok(Lacking::default());
        }
        let mut comparison = InstanceComparison { ours, others, lacking: Lacking::default() };
        comparison.descriptions().await?;
        let base = comparison.snapshots(scope).await?;
        comparison.stretches(base, except).await?;
        comparison.lacking.items.sort_unstable();
        Ok(comparison.lacking)
    }
}

/// The snapshot from which on a repository is to have the commands.
#[derive(Clone, Copy, Debug)]
struct SeedBase {
    replid: ReplicationId,
    offset: u64,
    at: Timestamp,
}

impl SeedBase {
    fn from_snapshot(snapshot: &SnapshotManifest) -> Option<SeedBase> {
        Some(SeedBase { replid: snapshot.replid?, offset: snapshot.offset?, at: snapshot.at })
    }

    /// Whether a stretch may have commands after it. `next` is where the next one of its history begins, if there is
    /// one. The time at which its stretches were stored decides whether another history precedes it.
    fn needs(&self, replid: ReplicationId, next: Option<u64>, stored: Timestamp) -> bool {
        if replid == self.replid { next.is_none_or(|next| next > self.offset) } else { stored >= self.at }
    }
}

struct InstanceComparison {
    ours: Archive,
    others: Archive,
    lacking: Lacking,
}

/// What is under a prefix in the others and in the repository.
struct BothSides {
    theirs: Vec<ObjectInfo>,
    ours: BTreeSet<ObjectKey>,
}

impl BothSides {
    /// What only the others have.
    fn missing(&self) -> impl Iterator<Item = &ObjectKey> {
        self.theirs.iter().map(|object| &object.key).filter(|key| !self.ours.contains(key))
    }
}

impl InstanceComparison {
    fn add(&mut self, stage: ShipStage, key: ObjectKey, kind: SealedKind) {
        self.lacking.items.push(ShipItem { stage, key, kind });
    }

    /// What both sides have under a prefix. The others are listed first: what is stored meanwhile is no reason to
    /// report it as lacking.
    async fn both(&mut self, prefix: &KeyPrefix) -> Result<BothSides, VaultError> {
        let theirs = self.others.vault().list(prefix, None).await?;
        for unasked in theirs.unasked {
            if !self.lacking.unasked.contains(&unasked) {
                self.lacking.unasked.push(unasked);
            }
        }
        let ours = self.ours.vault().list(prefix, None).await?.objects;
        Ok(BothSides { theirs: theirs.objects, ours: ours.into_iter().map(|object| object.key).collect() })
    }

    async fn descriptions(&mut self) -> Result<(), VaultError> {
        let layout = self.ours.layout().clone();
        let identity = layout.identity();
        let there = self.others.vault().get_trailer(SealedKind::Instance, &identity).await?.is_some();
        if there && self.ours.vault().get_trailer(SealedKind::Instance, &identity).await?.is_none() {
            self.add(ShipStage::Description, identity, SealedKind::Instance);
        }
        let gaps = self.both(&layout.gaps()).await?;
        for key in gaps.missing() {
            self.add(ShipStage::Description, key.clone(), SealedKind::Gap);
        }
        Ok(())
    }

    /// Snapshots with their parts. The snapshot from which on commands are wanted; all are, if there is none.
    async fn snapshots(&mut self, scope: SeedScope) -> Result<Option<SeedBase>, VaultError> {
        let layout = self.ours.layout().clone();
        let snapshots = self.both(&layout.snapshots()).await?;
        let theirs: BTreeSet<&ObjectKey> = snapshots.theirs.iter().map(|object| &object.key).collect();
        let oldest = snapshots.ours.first().filter(|_| scope == SeedScope::FromOwnOldestBackup);
        let newest = theirs.last().filter(|_| scope == SeedScope::NewestBackup);
        let base = match scope {
            SeedScope::FromOwnOldestBackup => self.first_base(snapshots.ours.iter()).await?,
            SeedScope::All => None,
            SeedScope::NewestBackup => self.first_base(newest.copied().into_iter()).await?,
        };
        let wanted: Vec<&ObjectKey> = snapshots
            .missing()
            .filter(|key| oldest.is_none_or(|oldest| *key > oldest) && newest.is_none_or(|newest| key == newest))
            .collect();
        if wanted.is_empty() {
            return Ok(base);
        }
        let parts = self.both(&layout.parts()).await?;
        for manifest in wanted {
            for part in self.parts_of(manifest, &parts).await? {
                if !parts.ours.contains(&part) {
                    self.lacking.needs.add(manifest, &part);
                    self.add(ShipStage::Data, part, SealedKind::RdbPart);
                }
            }
            self.add(ShipStage::Manifest, manifest.clone(), SealedKind::Snapshot);
        }
        Ok(base)
    }

    /// The first of these snapshots that is a state of this instance at a known offset.
    async fn first_base(&self, keys: impl Iterator<Item = &ObjectKey>) -> Result<Option<SeedBase>, VaultError> {
        for key in keys {
            if let Some(snapshot) = self.read_snapshot(key).await?
                && let Some(base) = SeedBase::from_snapshot(&snapshot)
            {
                return Ok(Some(base));
            }
        }
        Ok(None)
    }

    /// A snapshot's manifest, wherever it is; `None` if it does not open. Then it is not copied either.
    async fn read_snapshot(&self, key: &ObjectKey) -> Result<Option<SnapshotManifest>, VaultError> {
        let label = key.file_name();
        let read = match self.ours.read_snapshot(label).await {
            Ok(None) => self.others.read_snapshot(label).await,
            read => read,
        };
        match read {
            Err(error) if error.is_integrity() => Ok(None),
            read => read,
        }
    }

    /// The parts that a manifest names, wherever they are.
    async fn parts_of(&self, manifest: &ObjectKey, parts: &BothSides) -> Result<Vec<ObjectKey>, VaultError> {
        let (layout, label) = (self.ours.layout(), manifest.file_name());
        if let Some(snapshot) = self.read_snapshot(manifest).await? {
            let numbers = 0..u32::try_from(snapshot.parts.len()).unwrap_or(u32::MAX);
            return Ok(numbers.filter_map(|number| layout.part(label, number).ok()).collect());
        }
        let named = |key: &ObjectKey| matches!(layout.parse_key(key), Some(InstanceObject::Part(of, _)) if of == label);
        Ok(parts.theirs.iter().map(|object| &object.key).filter(|key| named(key)).cloned().collect())
    }

    async fn stretches(&mut self, base: Option<SeedBase>, except: &mut BTreeSet<ObjectKey>) -> Result<(), VaultError> {
        let (ours, others) = (self.ours.clone(), self.others.clone());
        let layout = ours.layout();
        let both = self.both(&layout.streams()).await?;
        let position = |key: &ObjectKey| match layout.parse_key(key)? {
            InstanceObject::Commands(replid, first) => Some((replid.parse::<ReplicationId>().ok()?, first)),
            _ => None,
        };
        let mut own: BTreeMap<ReplicationId, BTreeSet<u64>> = BTreeMap::new();
        for (replid, first) in both.ours.iter().filter_map(position) {
            own.entry(replid).or_default().insert(first);
        }
        let mut theirs: BTreeMap<ReplicationId, Vec<(u64, &ObjectInfo)>> = BTreeMap::new();
        for object in &both.theirs {
            if let Some((replid, first)) = position(&object.key) {
                theirs.entry(replid).or_default().push((first, object));
            }
        }
        for (replid, listed) in theirs {
            let own = own.get(&replid);
            let mut cover = StretchCover { ours: &ours, replid, own, ends: BTreeMap::new() };
            let mut before = None;
            for (nth, (first, object)) in listed.iter().enumerate() {
                let next = nth.checked_add(1).and_then(|next| listed.get(next)).map(|(next, _)| *next);
                let preceding = before.replace(*first);
                let is_own = own.is_some_and(|own| own.contains(first));
                let needed = base.is_none_or(|base| base.needs(replid, next, object.modified));
                if is_own || !needed || except.contains(&object.key) {
                    continue;
                }
                if cover.follows_own(preceding, *first) || !cover.covers(&others, *first).await? {
                    self.add(ShipStage::Log, object.key.clone(), SealedKind::Commands);
                } else {
                    except.insert(object.key.clone());
                }
            }
        }
        Ok(())
    }
}

/// Which commands of one history a repository's own stretches have.
struct StretchCover<'a> {
    ours: &'a Archive,
    replid: ReplicationId,
    own: Option<&'a BTreeSet<u64>>,
    /// Where own stretches end that were asked for it.
    ends: BTreeMap<u64, u64>,
}

impl StretchCover<'_> {
    /// Whether the stretch at `first` is certainly not covered, by the names alone: no own stretch begins before it, or
    /// the last one that does has the name of the stretch `preceding` it in the others.
    fn follows_own(&self, preceding: Option<u64>, first: u64) -> bool {
        let last = self.own.and_then(|own| own.range(..=first).next_back().copied());
        last.is_none() || last == preceding
    }

    /// Whether own stretches have all commands of the stretch at `first` of the others. A damaged stretch has none.
    async fn covers(&mut self, others: &Archive, first: u64) -> Result<bool, VaultError> {
        let last = match others.stored_stretch(self.replid, first).await {
            Ok(stretch) => stretch.map(|stretch| stretch.last),
            Err(error) if error.is_integrity() => None,
            Err(error) => return Err(error),
        };
        // Gone meanwhile, or damaged: nothing of it can be copied.
        let Some(last) = last else { return Ok(true) };
        let mut reached = first;
        while reached < last {
            let end = self.furthest_end(reached).await?;
            if end.is_none_or(|end| end <= reached) {
                return Ok(false);
            }
            reached = end.unwrap_or(reached);
        }
        Ok(true)
    }

    /// How far own stretches reach that begin at or before `offset`.
    async fn furthest_end(&mut self, offset: u64) -> Result<Option<u64>, VaultError> {
        let firsts: Vec<u64> = match self.own {
            Some(own) => own.range(..=offset).rev().take(MAX_OVERLAPPING_STRETCHES).copied().collect(),
            None => Vec::new(),
        };
        let unknown = firsts.iter().copied().filter(|first| !self.ends.contains_key(first));
        let (ours, replid) = (self.ours, self.replid);
        let read =
            join_all(unknown.map(|first| async move { (first, ours.stored_stretch(replid, first).await) })).await;
        for (first, stretch) in read {
            let end = match stretch {
                Ok(stretch) => stretch.map_or(first, |stretch| stretch.last),
                Err(error) if error.is_integrity() => first,
                Err(error) => return Err(error),
            };
            self.ends.insert(first, end);
        }
        Ok(firsts.iter().filter_map(|first| self.ends.get(first)).max().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use jiff::Timestamp;

    use super::{Archive, SeedScope, ShipStage};
    use crate::redis::archive::StreamStretch;
    use crate::redis::archive::layout::Layout;
    use crate::redis::archive::stream::StretchToStore;
    use crate::redis::format::resp::encode_command;
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

    /// A stretch of so many commands of 27 bytes.
    fn stretch(replid: &str, first: u64, commands: u64) -> StretchToStore {
        let command = encode_command(&[b"SET", b"a", b"1"]);
        let bytes = Bytes::from(command.repeat(usize::try_from(commands).unwrap()));
        let at = Timestamp::from_second(1000).unwrap();
        let stretch: StreamStretch = serde_json::from_value(serde_json::json!({
            "replid": replid, "first": first, "last": first + bytes.len() as u64, "db": 0, "in_transaction": false,
            "db_after": 0, "in_transaction_after": false, "follows": null, "started_at": at, "ended_at": at,
            "writes": commands, "marks": [],
        }))
        .unwrap();
        StretchToStore::new(stretch, bytes)
    }

    /// What the second repository lacks of the stream, as offsets.
    async fn lacking_log(archive: &Archive, except: &mut BTreeSet<super::ObjectKey>) -> Vec<u64> {
        let lacking = archive.lacking_except("place1", SeedScope::default(), except).await.unwrap();
        let log = lacking.items.iter().filter(|item| item.stage == ShipStage::Log);
        log.map(|item| item.key.file_name().parse().unwrap()).collect()
    }

    /// New commands were stored before it was filled: the older ones are lacking until it has a snapshot. A hole in the
    /// middle is lacking too.
    #[tokio::test]
    async fn commands_before_and_between_those_of_a_repository_are_lacking() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let vault = create(&[&dirs[0], &dirs[1]], None).await;
        let archive = Archive::new(vault, "cache".parse().unwrap());
        for first in [100, 127, 154, 181] {
            archive.put_commands(0, &stretch(ID, first, 1)).await.unwrap();
        }
        let mut none = BTreeSet::new();
        assert_eq!(lacking_log(&archive, &mut none).await, [100, 127, 154, 181]);
        for first in [127, 181] {
            archive.put_commands(1, &stretch(ID, first, 1)).await.unwrap();
        }
        assert_eq!(lacking_log(&archive, &mut none).await, [100, 154]);
        assert_eq!(none, BTreeSet::new(), "names alone tell that");
        let mut except = BTreeSet::from([archive.layout().commands(ID, 154).unwrap()]);
        assert_eq!(lacking_log(&archive, &mut except).await, [100]);
    }

    /// Two receivers cut the same commands at other places.
    #[tokio::test]
    async fn commands_that_a_repository_has_in_other_stretches_are_not_lacking() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let vault = create(&[&dirs[0], &dirs[1]], None).await;
        let archive = Archive::new(vault, "cache".parse().unwrap());
        for (first, commands) in [(100, 2), (154, 2), (208, 1), (235, 3)] {
            archive.put_commands(0, &stretch(ID, first, commands)).await.unwrap();
        }
        for (first, commands) in [(100, 1), (127, 2), (181, 2)] {
            archive.put_commands(1, &stretch(ID, first, commands)).await.unwrap();
        }
        let mut covered = BTreeSet::new();
        assert_eq!(lacking_log(&archive, &mut covered).await, [235]);
        let names: Vec<&str> = covered.iter().map(super::ObjectKey::file_name).collect();
        assert_eq!(names, ["00000000000000000154", "00000000000000000208"]);
    }
}

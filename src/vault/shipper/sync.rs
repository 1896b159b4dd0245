//! Copying all that a comparison found into one repository, once: for a command, while [`super::rules`] is for a
//! process that keeps running.
//!
//! It may be interrupted after any object, and the next comparison finds the rest. Two things make that true. A stage
//! is complete before the next one begins, so that no manifest is stored before what it names. And the first object of
//! each folder is stored alone, oldest first: a comparison takes what is older than a repository's first object for
//! something that retention removed.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use futures_util::StreamExt;
use futures_util::stream;

use super::copy::CopyOutcome;
use super::item::{Lacking, ShipItem, ShipStage};
use super::rules::MAX_UNDER_WAY;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;
use crate::vault::{Vault, VaultError};

/// What a synchronisation did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Objects that were copied.
    pub copied: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that another process had stored meanwhile.
    pub existing: u64,
    /// Objects that no repository has any longer.
    pub gone: u64,
    /// Objects that no repository gave whole, each with the error.
    pub damaged: Vec<(ShipItem, VaultError)>,
    /// Why it ended early: a repository did not take or give an object. The next synchronisation copies the rest.
    pub interrupted: Option<VaultError>,
    /// Objects that were not tried: manifests of which data is damaged or gone, and the rest of an interrupted one.
    pub left: u64,
    /// The manifests among them of which data is damaged or gone.
    pub held_back: BTreeSet<ObjectKey>,
}

/// What [`sync_repository`] reports while it works.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncProgress {
    /// Objects done.
    pub objects: u64,
    /// Bytes copied.
    pub bytes: u64,
}

/// Copies what the repository `to` lacks from the other repositories of the vault, several objects at once.
pub async fn sync_repository(
    vault: &Vault,
    lacking: &Lacking,
    to: &str,
    progress: &(dyn Fn(SyncProgress) + Sync),
) -> SyncReport {
    let mut report = SyncReport::default();
    for mut batch in batches(&lacking.items) {
        let all = batch.len();
        batch.retain(|item| item.stage != ShipStage::Manifest || !report.held_back.contains(&item.key));
        report.left = report.left.saturating_add(all.saturating_sub(batch.len()) as u64);
        if report.interrupted.is_some() {
            report.left = report.left.saturating_add(batch.len() as u64);
            continue;
        }
        let unusable = copy_batch(vault, &batch, to, &mut report, progress).await;
        report.held_back.extend(unusable.iter().flat_map(|data| lacking.needs.of_data(data)).cloned());
    }
    report
}

/// Copies objects that need not wait for one another. Returns those that are damaged or gone.
async fn copy_batch(
    vault: &Vault,
    batch: &[&ShipItem],
    to: &str,
    report: &mut SyncReport,
    progress: &(dyn Fn(SyncProgress) + Sync),
) -> Vec<ObjectKey> {
    let mut unusable = Vec::new();
    let copy = |item: &ShipItem| {
        let item = item.clone();
        async move { (vault.copy_object(&item, to).await, item) }
    };
    let mut waiting = batch.iter();
    let mut under_way = stream::FuturesUnordered::new();
    under_way.extend(waiting.by_ref().take(MAX_UNDER_WAY).map(|item| copy(item)));
    while let Some((copied, item)) = under_way.next().await {
        if matches!(&copied, Ok(CopyOutcome::Gone)) || matches!(&copied, Err(error) if error.is_integrity()) {
            unusable.push(item.key.clone());
        }
        if report.add(item, copied).is_continue()
            && report.interrupted.is_none()
            && let Some(next) = waiting.next()
        {
            under_way.push(copy(next));
        }
        progress(report.progress());
    }
    report.left = report.left.saturating_add(waiting.count() as u64);
    unusable
}

impl SyncReport {
    fn add(&mut self, item: ShipItem, copied: Result<CopyOutcome, VaultError>) -> ControlFlow<()> {
        match copied {
            Ok(CopyOutcome::Copied(bytes)) => {
                self.copied = self.copied.saturating_add(1);
                self.bytes = self.bytes.saturating_add(bytes);
            }
            Ok(CopyOutcome::Exists) => self.existing = self.existing.saturating_add(1),
            Ok(CopyOutcome::Gone) => self.gone = self.gone.saturating_add(1),
            Err(error) if error.is_integrity() => self.damaged.push((item, error)),
            Err(error) => {
                self.left = self.left.saturating_add(1);
                self.interrupted.get_or_insert(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn progress(&self) -> SyncProgress {
        let done = self.copied.saturating_add(self.existing).saturating_add(self.gone);
        SyncProgress { objects: done.saturating_add(self.damaged.len() as u64), bytes: self.bytes }
    }
}

/// The objects in the order in which they are stored, in groups of which each is complete before the next begins.
fn batches(items: &[ShipItem]) -> Vec<Vec<&ShipItem>> {
    // What belongs to a backup is stored before its manifest, because a comparison asks for it only with the manifest.
    let manifest = |kind| matches!(kind, SealedKind::Manifest | SealedKind::Snapshot);
    let order = |item: &ShipItem| (item.stage, manifest(item.kind));
    let mut sorted: Vec<&ShipItem> = items.iter().collect();
    sorted.sort_by(|a, b| (order(a), &a.key).cmp(&(order(b), &b.key)));
    let mut batches: Vec<Vec<&ShipItem>> = Vec::new();
    let mut before = None;
    let mut alone = false;
    for item in sorted {
        let place = (order(item), item.key.parent());
        let first = before.as_ref() != Some(&place);
        match batches.last_mut() {
            Some(last) if !first && !alone => last.push(item),
            _ => batches.push(vec![item]),
        }
        alone = first;
        before = Some(place);
    }
    batches
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tempfile::TempDir;

    use super::{SyncReport, batches, sync_repository};
    use crate::vault::Vault;
    use crate::vault::repository::key::ObjectKey;
    use crate::vault::seal::SealedKind;
    use crate::vault::shipper::{Lacking, ManifestNeeds, ShipItem, ShipStage};
    use crate::vault::testing::{create, open};

    const ITEMS: [(&str, ShipStage, SealedKind); 12] = [
        ("main/cluster", ShipStage::Description, SealedKind::Cluster),
        ("main/wal/00000001/00000000/000000010000000000000001", ShipStage::Log, SealedKind::Wal),
        ("main/wal/00000001/00000000/000000010000000000000002", ShipStage::Log, SealedKind::Wal),
        ("main/wal/00000001/00000000/000000010000000000000003", ShipStage::Log, SealedKind::Wal),
        ("main/wal/00000002/00000000/000000020000000000000004", ShipStage::Log, SealedKind::Wal),
        ("main/wal/00000002/00000000/000000020000000000000005", ShipStage::Log, SealedKind::Wal),
        ("main/pack/aa", ShipStage::Data, SealedKind::Pack),
        ("main/pack/ab", ShipStage::Data, SealedKind::Pack),
        ("main/names/one", ShipStage::Manifest, SealedKind::Names),
        ("main/names/two", ShipStage::Manifest, SealedKind::Names),
        ("main/backup/one", ShipStage::Manifest, SealedKind::Manifest),
        ("main/backup/two", ShipStage::Manifest, SealedKind::Manifest),
    ];

    fn item((key, stage, kind): (&str, ShipStage, SealedKind)) -> ShipItem {
        ShipItem { stage, key: ObjectKey::parse(key).unwrap(), kind }
    }

    fn file(dir: &TempDir, key: &str) -> std::path::PathBuf {
        dir.path().join("repository").join(key)
    }

    /// The first repository has everything, the second one nothing.
    async fn full_and_empty(dirs: &[TempDir; 2]) -> (Arc<Vault>, Lacking) {
        let key = crate::vault::seal::keys::KeyEncryptionKey::generate().unwrap();
        let both = create(&[&dirs[0], &dirs[1]], Some(&key)).await;
        let one = both.view(|name| name == "place0");
        let mut items = Vec::new();
        for of in ITEMS {
            let item = item(of);
            one.put_object(item.kind, &item.key, vec![of.0.as_bytes().to_vec().into()], Vec::new()).await.unwrap();
            items.push(item);
        }
        items.sort();
        drop(both);
        let vault = open(&[&dirs[0], &dirs[1]], Some(&key)).await.unwrap();
        let mut needs = ManifestNeeds::default();
        for (manifest, data) in [("names/one", "pack/aa"), ("backup/one", "pack/aa"), ("backup/two", "pack/ab")] {
            let key = |name: &str| ObjectKey::parse(&format!("main/{name}")).unwrap();
            needs.add(&key(manifest), &key(data));
        }
        (vault, Lacking { items, needs, ..Lacking::default() })
    }

    async fn sync(vault: &Vault, lacking: &Lacking) -> SyncReport {
        sync_repository(vault, lacking, "place1", &|_| {}).await
    }

    fn lacks(dir: &TempDir) -> Vec<&'static str> {
        ITEMS.iter().map(|(key, ..)| *key).filter(|key| !file(dir, key).exists()).collect()
    }

    #[test]
    fn the_first_of_each_folder_is_alone_and_manifests_are_last() {
        let items: Vec<ShipItem> = ITEMS.into_iter().map(item).collect();
        let order: Vec<Vec<&str>> =
            batches(&items).iter().map(|batch| batch.iter().map(|item| item.key.file_name()).collect()).collect();
        let expected: [&[&str]; 11] = [
            &["cluster"],
            &["000000010000000000000001"],
            &["000000010000000000000002", "000000010000000000000003"],
            &["000000020000000000000004"],
            &["000000020000000000000005"],
            &["aa"],
            &["ab"],
            &["one"],
            &["two"],
            &["one"],
            &["two"],
        ];
        assert_eq!(order, expected);
        assert_eq!(order.iter().map(Vec::len).sum::<usize>(), ITEMS.len());
    }

    /// However far it got: no manifest without its data and names, no later segment without the first of its timeline,
    /// and the next run copies the rest.
    #[tokio::test]
    async fn a_crash_after_any_object_leaves_what_the_next_run_completes() {
        for stop_after in 1..=ITEMS.len() as u64 {
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let (vault, lacking) = full_and_empty(&dirs).await;
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let stop = std::sync::Mutex::new(Some(stop));
            let tell = |progress: super::SyncProgress| {
                if progress.objects >= stop_after {
                    drop(stop.lock().unwrap().take());
                }
            };
            tokio::select! {
                biased;
                _ = stopped => {}
                _ = sync_repository(&vault, &lacking, "place1", &tell) => {}
            }
            let has = |key: &str| file(&dirs[1], key).exists();
            for (key, stage, _) in ITEMS {
                let earlier = ITEMS.iter().filter(|(_, other, _)| *other < stage);
                let missing: Vec<_> = earlier.filter(|(earlier, ..)| !has(earlier)).collect();
                assert!(!has(key) || missing.is_empty(), "after {stop_after}: {key} without {missing:?}");
            }
            for (later, first) in [(ITEMS[2].0, ITEMS[1].0), (ITEMS[3].0, ITEMS[1].0), (ITEMS[5].0, ITEMS[4].0)] {
                assert!(!has(later) || has(first), "after {stop_after}: {later} without {first}");
            }
            for backup in ["one", "two"] {
                let whole = has(&format!("main/names/{backup}"));
                assert!(!has(&format!("main/backup/{backup}")) || whole, "after {stop_after}: {backup} without names");
            }
            let report = sync(&vault, &lacking).await;
            assert_eq!((report.left, report.damaged.len(), report.gone), (0, 0, 0));
            assert_eq!(report.copied + report.existing, ITEMS.len() as u64);
            assert_eq!(lacks(&dirs[1]), [""; 0]);
        }
    }

    fn damage(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[tokio::test]
    async fn damage_is_not_copied_and_holds_back_the_manifests_that_need_it() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (vault, lacking) = full_and_empty(&dirs).await;
        damage(&file(&dirs[0], "main/pack/aa"));
        damage(&file(&dirs[0], ITEMS[2].0));
        let report = sync(&vault, &lacking).await;
        let damaged: Vec<&str> = report.damaged.iter().map(|(item, _)| item.key.as_str()).collect();
        assert_eq!(damaged, [ITEMS[2].0, "main/pack/aa"]);
        assert!(report.damaged.iter().all(|(_, error)| error.is_integrity()) && report.interrupted.is_none());
        let missing = [ITEMS[2].0, "main/pack/aa", "main/names/one", "main/backup/one"];
        assert_eq!((lacks(&dirs[1]), report.left), (missing.to_vec(), 2));
        let held_back: Vec<&str> = report.held_back.iter().map(ObjectKey::as_str).collect();
        assert_eq!(held_back, ["main/backup/one", "main/names/one"]);
    }

    #[tokio::test]
    async fn a_repository_that_is_lost_meanwhile_ends_it_and_the_rest_is_counted() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (vault, lacking) = full_and_empty(&dirs).await;
        let calls = AtomicU64::new(0);
        let aside = dirs[1].path().join("aside");
        let folder = dirs[1].path().join("repository");
        let lose = |_: super::SyncProgress| {
            if calls.fetch_add(1, Ordering::Relaxed) == 2 {
                crate::base::durable::rename(&folder, &aside).unwrap();
                std::fs::write(&folder, "no folder").unwrap();
            }
        };
        let report = sync_repository(&vault, &lacking, "place1", &lose).await;
        let error = report.interrupted.unwrap();
        assert!(error.to_string().contains("repository place1: "), "{error}");
        assert!(report.left > 0 && report.copied >= 3);
        assert_eq!(report.copied + report.existing + report.left, ITEMS.len() as u64);
    }
}

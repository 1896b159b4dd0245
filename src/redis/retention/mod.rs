//! Retention of a Redis instance: snapshots and the stream behind them, in each repository by itself.
//!
//! [`decide_instance_retention`] is pure. Of the snapshots that are older than the window, the newest one stays that
//! leads to each history which is still written, and the newest of all; whatever else is older goes. Of the stream
//! everything stays that comes after a kept snapshot, on its history and on those that go on from it, and whatever is
//! younger than the window itself. That one history goes on from another is told by the offsets: what a replication id
//! and an offset name is one state, whichever bytes are there. Stretches may overlap, so each is asked for its end
//! before it goes.
//!
//! Carrying it out can end after every step: manifests go first, oldest first, so that their snapshots are gone at
//! once; then the stream, oldest first; then parts that no manifest names and that are older than the grace, as a
//! snapshot under way has no manifest yet. Records of gaps and what the instance is always stay.

mod policy;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use jiff::Timestamp;

use crate::redis::archive::layout::InstanceObject;
use crate::redis::archive::stream::PreviousHistory;
use crate::redis::archive::{Archive, SnapshotManifest, SnapshotOrigin};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::repository::key::KeyPrefix;
use crate::vault::repository::{ObjectInfo, Repository};
use crate::vault::retention::{
    self, CleanupReport, KeepReason, ObjectTotals, RetentionError as Error, RetentionOptions,
};
use crate::vault::running::RunningBackups;

pub use self::policy::{RetentionDecision, RetentionInput, RetentionSnapshot, decide_instance_retention};

/// Stretches asked about at once.
const MAX_PARALLEL_STRETCH_READS: usize = 16;

/// A snapshot that stays or goes.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct SnapshotRetention {
    /// Its name.
    pub label: String,
    /// The moment whose state it holds.
    pub at: Timestamp,
    /// Why it stays; none if it goes.
    pub kept: Option<KeepReason>,
}

/// What was done to one repository, or would be.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct InstanceCleanup {
    /// Its name in the configuration.
    pub repository: String,
    /// Where its window begins.
    pub since: Timestamp,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotRetention>,
    /// Stretches of the stream that go.
    pub stream: ObjectTotals,
    /// Stretches that stay.
    pub stream_kept: ObjectTotals,
    /// Parts of snapshots that go now.
    pub parts: ObjectTotals,
    /// Parts that no manifest names, and whose time is not up.
    pub parts_waiting: ObjectTotals,
    /// What stood in the way of more.
    pub notes: Vec<String>,
}

/// Carries retention out for one instance. `progress` is told each object that is removed.
///
/// # Errors
/// [`Error`].
pub async fn clean_up_instance(
    instance: &Archive,
    wish: &RetentionOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<CleanupReport<InstanceCleanup>, Error> {
    let vault = instance.vault();
    let mut report = CleanupReport::new(vault, wish);
    let (follows, unknown) = read_history_links(instance).await?;
    for (name, repository) in vault.repositories() {
        let Some((since, young)) = report.repository_window(vault, wish, name) else { continue };
        let (follows, unknown) = (&follows, &unknown);
        let sweep = InstanceSweep {
            instance,
            name,
            repository: &repository,
            since,
            grace_start: young,
            wish,
            progress,
            follows,
            unreadable_histories: unknown,
        };
        report.repositories.push(sweep.run().await?);
    }
    Ok(report)
}

/// Which history goes on from which, and those of which that can't be read: the first stretch that any repository has
/// of each says it.
async fn read_history_links(
    instance: &Archive,
) -> Result<(BTreeMap<ReplicationId, PreviousHistory>, BTreeSet<ReplicationId>), Error> {
    let mut firsts: BTreeMap<ReplicationId, u64> = BTreeMap::new();
    for listed in instance.stored_stretches().await? {
        firsts.entry(listed.name.replid).or_insert(listed.name.first);
    }
    let (mut follows, mut unknown) = (BTreeMap::new(), BTreeSet::new());
    for (replid, first) in firsts {
        match instance.stored_stretch(replid, first).await {
            Ok(Some(stretch)) => follows.extend(stretch.follows.map(|before| (replid, before))),
            Ok(None) => {}
            Err(error) if error.is_integrity() => drop(unknown.insert(replid)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((follows, unknown))
}

/// One repository being cleaned.
struct InstanceSweep<'a> {
    instance: &'a Archive,
    name: &'a str,
    repository: &'a Repository,
    since: Timestamp,
    /// What is younger than this may belong to a snapshot under way.
    grace_start: Timestamp,
    wish: &'a RetentionOptions,
    progress: &'a (dyn Fn(u64) + Sync),
    follows: &'a BTreeMap<ReplicationId, PreviousHistory>,
    unreadable_histories: &'a BTreeSet<ReplicationId>,
}

/// What a repository has of the stream.
type StoredStretches = BTreeMap<ReplicationId, BTreeMap<u64, ObjectInfo>>;
/// What it has of parts, by the label of their snapshot.
type StoredParts = BTreeMap<String, Vec<ObjectInfo>>;

impl InstanceSweep<'_> {
    async fn run(&self) -> Result<InstanceCleanup, Error> {
        let mut cleaned = InstanceCleanup {
            repository: self.name.to_owned(),
            since: self.since,
            snapshots: Vec::new(),
            stream: ObjectTotals::default(),
            stream_kept: ObjectTotals::default(),
            parts: ObjectTotals::default(),
            parts_waiting: ObjectTotals::default(),
            notes: Vec::new(),
        };
        // The parts first: a snapshot that ends meanwhile has its manifest by the time manifests are looked for.
        let parts = self.list_parts().await?;
        // Then those under way: one whose parts are listed either has its mark still, or its manifest is there.
        let running = self.list_running(&mut cleaned.notes).await?;
        let grace_start = running.map_or(self.grace_start, |begun| self.grace_start.min(begun));
        let stream = self.list_stretches().await?;
        let (bases, unreadable) = self.read_snapshots(&parts, &mut cleaned.notes).await?;
        let verdict = self.decide(&bases, &stream);
        let kept = |base: &RetentionSnapshot| verdict.keep.get(&base.label).copied();
        cleaned.snapshots = bases
            .iter()
            .map(|(base, _)| SnapshotRetention { label: base.label.clone(), at: base.at, kept: kept(base) })
            .collect();
        for label in &verdict.expire {
            for (_, object) in bases.iter().filter(|(base, _)| base.label == *label) {
                tracing::info!(repository = self.name, snapshot = label, "removing a snapshot whose time is up");
                self.remove(object).await?;
            }
        }
        if unreadable.is_empty() {
            self.sweep_stream(&verdict, &stream, &mut cleaned).await?;
        } else {
            let why =
                "a snapshot's manifest cannot be read, so nothing of the stream is removed; walkeep verify says more";
            cleaned.notes.push(why.to_owned());
            stream.values().flat_map(BTreeMap::values).for_each(|object| cleaned.stream_kept.add_object(object));
        }
        for (label, objects) in parts.iter().filter(|(label, _)| !unreadable.contains(*label)) {
            if !verdict.keep.contains_key(label) {
                self.sweep_parts(objects, grace_start, &mut cleaned).await?;
            }
        }
        Ok(cleaned)
    }

    async fn list(&self, prefix: &KeyPrefix) -> Result<Vec<ObjectInfo>, Error> {
        self.repository.list(prefix).await.map_err(|error| Error::in_repository(self.name, error))
    }

    async fn remove(&self, object: &ObjectInfo) -> Result<(), Error> {
        if !self.wish.dry_run {
            self.repository.delete(&object.key).await.map_err(|error| Error::in_repository(self.name, error))?;
            (self.progress)(object.len);
        }
        Ok(())
    }

    /// Since when snapshots are under way, and the store's clock is near to this machine's.
    async fn list_running(&self, notes: &mut Vec<String>) -> Result<Option<Timestamp>, Error> {
        let (vault, layout) = (self.instance.vault(), self.instance.layout());
        let now = if self.wish.dry_run {
            vault.clock().now()
        } else {
            let probe = layout.probe(&format!("{:032x}", rand::random::<u128>()))?;
            retention::store_time(vault, (self.name, self.repository), &probe, self.wish).await?
        };
        let running = RunningBackups::list(self.repository, &layout.running(), now).await;
        let running = running.map_err(|error| Error::in_repository(self.name, error))?;
        for object in &running.dead {
            self.remove(object).await?;
        }
        for name in running.live.keys() {
            notes.push(format!("snapshot {name} is under way; what it may need stays"));
        }
        Ok(running.protected_since())
    }

    async fn list_parts(&self) -> Result<StoredParts, Error> {
        let mut found = StoredParts::new();
        for object in self.list(&self.instance.layout().parts()).await? {
            // What is not understood stays.
            if let Some(InstanceObject::Part(label, _)) = self.instance.layout().parse_key(&object.key) {
                found.entry(label).or_default().push(object);
            }
        }
        Ok(found)
    }

    async fn list_stretches(&self) -> Result<StoredStretches, Error> {
        let mut found = StoredStretches::new();
        for object in self.list(&self.instance.layout().streams()).await? {
            if let Some(InstanceObject::Commands(replid, first)) = self.instance.layout().parse_key(&object.key)
                && let Ok(replid) = replid.parse()
            {
                found.entry(replid).or_default().insert(first, object);
            }
        }
        Ok(found)
    }

    /// The snapshots of this repository, and those whose manifest can't be read.
    async fn read_snapshots(
        &self,
        parts: &StoredParts,
        notes: &mut Vec<String>,
    ) -> Result<(Vec<(RetentionSnapshot, ObjectInfo)>, BTreeSet<String>), Error> {
        let (mut found, mut unreadable) = (Vec::new(), BTreeSet::new());
        for object in self.list(&self.instance.layout().snapshots()).await? {
            let Some(InstanceObject::Snapshot(label)) = self.instance.layout().parse_key(&object.key) else { continue };
            match self.instance.read_snapshot(&label).await {
                Ok(Some(snapshot)) => found.push((retention_snapshot(&snapshot, parts.get(&label)), object)),
                Ok(None) => {}
                Err(error) if error.is_integrity() => {
                    notes.push(format!("snapshot {label} cannot be read and is left alone: {error}"));
                    unreadable.insert(label);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((found, unreadable))
    }

    fn decide(&self, bases: &[(RetentionSnapshot, ObjectInfo)], stream: &StoredStretches) -> RetentionDecision {
        let snapshots: Vec<RetentionSnapshot> = bases.iter().map(|(base, _)| base.clone()).collect();
        let arrived = |objects: &BTreeMap<u64, ObjectInfo>| {
            objects.iter().map(|(first, object)| (*first, object.modified)).collect::<BTreeMap<_, _>>()
        };
        let stretches = stream.iter().map(|(replid, objects)| (*replid, arrived(objects))).collect();
        decide_instance_retention(RetentionInput {
            snapshots: &snapshots,
            stretches: &stretches,
            follows: self.follows,
            unknown: self.unreadable_histories,
            since: self.since,
        })
    }

    async fn sweep_stream(
        &self,
        verdict: &RetentionDecision,
        stream: &StoredStretches,
        cleaned: &mut InstanceCleanup,
    ) -> Result<(), Error> {
        for (replid, objects) in stream {
            let nexts = objects.keys().skip(1).map(|next| Some(*next)).chain([None]);
            let (go, stay): (Vec<_>, Vec<_>) = objects
                .iter()
                .zip(nexts)
                .partition(|((_, object), next)| verdict.may_remove(*replid, *next, object.modified));
            stay.iter().for_each(|((_, object), _)| cleaned.stream_kept.add_object(object));
            for some in go.chunks(MAX_PARALLEL_STRETCH_READS) {
                let ends = some.iter().map(|((first, _), next)| self.stretch_end(*replid, **first, *next));
                for (((_, object), _), end) in some.iter().zip(join_all(ends).await) {
                    if verdict.may_remove(*replid, end?, object.modified) {
                        self.remove(object).await?;
                        cleaned.stream.add_object(object);
                    } else {
                        cleaned.stream_kept.add_object(object);
                    }
                }
            }
        }
        Ok(())
    }

    /// Where a stretch ends. That may be beyond where the next one begins, if two receivers ran; where the next one
    /// begins counts for one that does not open.
    async fn stretch_end(&self, replid: ReplicationId, first: u64, next: Option<u64>) -> Result<Option<u64>, Error> {
        match self.instance.read_stretch_from(self.name, replid, first).await {
            Ok(stretch) => Ok(stretch.map(|stretch| stretch.last).or(next)),
            Err(error) if error.is_integrity() => Ok(next),
            Err(error) => Err(error.into()),
        }
    }

    async fn sweep_parts(
        &self,
        objects: &[ObjectInfo],
        grace_start: Timestamp,
        cleaned: &mut InstanceCleanup,
    ) -> Result<(), Error> {
        for object in objects {
            if object.modified >= grace_start {
                cleaned.parts_waiting.add_object(object);
            } else {
                self.remove(object).await?;
                cleaned.parts.add_object(object);
            }
        }
        Ok(())
    }
}

fn retention_snapshot(snapshot: &SnapshotManifest, parts: Option<&Vec<ObjectInfo>>) -> RetentionSnapshot {
    let there: Vec<u64> = parts.into_iter().flatten().map(|object| object.len).collect();
    let named: Vec<u64> = snapshot.parts.iter().map(|part| part.stored).collect();
    let own = matches!(snapshot.origin, SnapshotOrigin::Replication { .. });
    RetentionSnapshot {
        label: snapshot.label.clone(),
        // A file is kept as long as anything that came at the same time, however old it was then.
        at: if own { snapshot.at } else { snapshot.finished_at.max(snapshot.at) },
        place: snapshot.replid.zip(snapshot.offset),
        whole: there == named,
        own,
    }
}

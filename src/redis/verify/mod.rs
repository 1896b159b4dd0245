//! A Redis instance: every snapshot's parts are put together and walked again, every stretch of the stream is parsed
//! again and must go on where another ends, in every repository.
//!
//! The archive lives on meanwhile: what was listed and then not there, and is no longer listed either, was taken by
//! retention, and nothing is said about it; nor about the parts of a snapshot whose manifest went. A part that a
//! manifest names which is still there is missing.
//!
//! Memory: one part or one stretch, stored and opened, and what the walker looks into.

pub(crate) mod continuity;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::verify::continuity::{ListedStretch, UPLOAD_GRACE, find_holes, find_missing_beginnings, find_missing_tails};
use crate::base::blocking::run_blocking;
use crate::redis::archive::layout::InstanceObject;
use crate::redis::archive::{
    Archive, ArchiveIdentity, Gap, SnapshotManifest, SnapshotOrigin, SnapshotPart, StreamHole, StreamStretch,
};
use crate::redis::format::rdb::{self, RdbSummary, RdbWalker};
use crate::redis::format::resp::{self, CommandParser};
use crate::vault::UnreachableRepositories;
use crate::vault::repository::key::ObjectKey;
use crate::vault::repository::{self, Repository};
use crate::vault::seal::{OpenedObject, SealedKind};
use crate::vault::verify::{DamagedObject, VerifyError, VerifyOptions, VerifyProgress, open_checked, sort_unopened};

/// What one repository holds of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct InstanceObjectCounts {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Snapshots that are right: every part, and what a walk finds.
    pub snapshots: u64,
    /// Their parts.
    pub parts: u64,
    /// Stretches of the stream that are right.
    pub stretches: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// What a verification of an instance found.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct InstanceVerifyReport {
    /// What each repository holds.
    pub repositories: Vec<InstanceObjectCounts>,
    /// Repositories that could not be verified.
    pub unreachable: UnreachableRepositories,
    /// What is damaged or missing.
    pub damage: Vec<DamagedObject>,
    /// What is missing in the stream.
    pub holes: Vec<MissingFromRepository>,
    /// Breaks in the stream that were recorded; a snapshot after each begins anew.
    pub gaps: Vec<Gap>,
}

impl InstanceVerifyReport {
    /// Whether everything is there and right. A recorded break is no damage.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.holes.is_empty()
    }
}

/// What a repository does not have, of the stream or at all.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct MissingFromRepository {
    /// The repository's name in the configuration.
    pub repository: String,
    /// What it does not have, in words.
    pub what: String,
}

impl MissingFromRepository {
    fn from_hole(repository: &str, hole: StreamHole) -> MissingFromRepository {
        MissingFromRepository::new(repository, hole.to_string())
    }

    fn new(repository: &str, what: String) -> MissingFromRepository {
        tracing::error!(repository, what, "missing");
        MissingFromRepository { repository: repository.to_owned(), what }
    }
}

/// Verifies one instance.
///
/// # Errors
/// [`VerifyError`] if no repository answers. Damage is not an error but in the report, and so is a repository that does
/// not answer while another does.
pub async fn verify_instance(
    instance: &Archive,
    options: &VerifyOptions,
    progress: &VerifyProgress,
) -> Result<InstanceVerifyReport, VerifyError> {
    let vault = instance.vault();
    let (unreachable, damage) = sort_unopened(vault);
    let mut report = InstanceVerifyReport { unreachable, damage, ..InstanceVerifyReport::default() };
    let mut failed = None;
    let mut known = options.backup.is_none();
    let mut pieces_of_all = Vec::new();
    // What is stored after the first repository was listed is missed nowhere, however long the reading takes.
    let begun = vault.clock().now();
    // Nor is what waits here for a repository that was away.
    let spooled = instance.list_known_stretches().await.ok();
    let is_missed = |hole: &StreamHole| !spooled.as_ref().is_some_and(|known| known.is_spooled(hole));
    let mut settled_somewhere = false;
    for (name, repository) in vault.repositories() {
        let mut subject = InstanceVerifier::new(instance, &repository, name, progress);
        match subject.run(options.backup.as_deref()).await {
            Ok(found) => known |= found,
            Err(error) if error.is_unreachable() => {
                report.unreachable.insert_error(name, &error);
                failed = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        }
        let (snapshots, gaps) = (&subject.snapshots, &subject.gaps);
        let sent = snapshots.iter().filter(|snapshot| matches!(snapshot.origin, SnapshotOrigin::Replication { .. }));
        let stands = |snapshot: &SnapshotManifest| {
            Some(ListedStretch::from_snapshot(snapshot.replid?, snapshot.offset?, snapshot.at))
        };
        let all: Vec<ListedStretch> = subject.pieces.iter().copied().chain(sent.filter_map(stands)).collect();
        let holes = find_holes(&all).into_iter().filter(|hole| !hole.is_explained(snapshots, gaps) && is_missed(hole));
        report.holes.extend(holes.map(|hole| MissingFromRepository::from_hole(name, hole)));
        let settled = |snapshot: &SnapshotManifest| begun.duration_since(snapshot.finished_at) > UPLOAD_GRACE;
        settled_somewhere |= snapshots.iter().any(settled);
        pieces_of_all.push(all);
        subject.gaps.retain(|gap| !report.gaps.contains(gap));
        report.gaps.append(&mut subject.gaps);
        report.damage.append(&mut subject.damage);
        report.repositories.push(subject.counts);
    }
    if let (true, Some(error)) = (report.repositories.is_empty(), failed) {
        return Err(error);
    }
    let lacking =
        find_missing_tails(&pieces_of_all, begun).into_iter().chain(find_missing_beginnings(&pieces_of_all, begun));
    for (number, hole) in lacking.filter(|(_, hole)| is_missed(hole)) {
        let name = report.repositories.get(number).map_or("?", |counts| counts.repository.as_str());
        report.holes.push(MissingFromRepository::from_hole(name, hole));
    }
    if options.backup.is_none() && settled_somewhere {
        // Retention leaves the newest snapshot in each.
        let empty = report.repositories.iter().filter(|counts| counts.bytes == 0);
        let what = format!("all of {}: there is nothing of it, and another repository has it", instance.name());
        let lacks: Vec<MissingFromRepository> =
            empty.map(|counts| MissingFromRepository::new(&counts.repository, what.clone())).collect();
        report.holes.extend(lacks);
    }
    match &options.backup {
        Some(label) if !known => {
            // An unreachable repository may have it.
            report.unreachable.ensure_empty()?;
            Err(VerifyError::UnknownBackup { label: label.clone() })
        }
        _ => Ok(report),
    }
}

/// One repository under verification.
struct InstanceVerifier<'a> {
    instance: &'a Archive,
    repository: &'a Repository,
    progress: &'a VerifyProgress,
    counts: InstanceObjectCounts,
    damage: Vec<DamagedObject>,
    /// Objects that were not there when they were asked for, each with what names it: a snapshot its parts, the listing
    /// all others.
    gone: Vec<(ObjectKey, ObjectKey)>,
    gaps: Vec<Gap>,
    snapshots: Vec<SnapshotManifest>,
    /// The stretches that were listed.
    pieces: Vec<ListedStretch>,
}

impl<'a> InstanceVerifier<'a> {
    fn new(
        instance: &'a Archive,
        repository: &'a Repository,
        name: &str,
        progress: &'a VerifyProgress,
    ) -> InstanceVerifier<'a> {
        let counts = InstanceObjectCounts { repository: name.to_owned(), ..InstanceObjectCounts::default() };
        let (damage, gone, gaps) = (Vec::new(), Vec::new(), Vec::new());
        let (snapshots, pieces) = (Vec::new(), Vec::new());
        InstanceVerifier { instance, repository, progress, counts, damage, gone, gaps, snapshots, pieces }
    }
}

impl InstanceVerifier<'_> {
    /// Everything, or the snapshot of this label alone. Says whether there was such a snapshot.
    async fn run(&mut self, only: Option<&str>) -> Result<bool, VerifyError> {
        let listed = self.list_objects().await?;
        let found = self.verify_objects(&listed, only).await?;
        self.settle_continuity().await?;
        Ok(found)
    }

    async fn list_objects(&self) -> Result<Vec<ObjectKey>, VerifyError> {
        let all = self.instance.layout().all();
        let listed = self.repository.list(&all).await.map_err(|error| self.with_repository_name(error))?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }

    /// Settles what was not there: it is missing only if what names it still is there.
    async fn settle_continuity(&mut self) -> Result<(), VerifyError> {
        if self.gone.is_empty() && self.damage.is_empty() {
            return Ok(());
        }
        let listed: HashSet<ObjectKey> = self.list_objects().await?.into_iter().collect();
        // Damaged and then gone is nobody's concern any more.
        self.damage.retain(|damage| listed.iter().any(|key| key.as_str() == damage.object));
        for (key, by) in std::mem::take(&mut self.gone) {
            if listed.contains(&by) {
                self.record_damage(&key, "it is missing");
            }
        }
        Ok(())
    }

    async fn verify_objects(&mut self, listed: &[ObjectKey], only: Option<&str>) -> Result<bool, VerifyError> {
        let mut found = false;
        let is = |key: &&ObjectKey| matches!(self.instance.layout().parse_key(key), Some(InstanceObject::Snapshot(_)));
        let identity = self.instance.layout().identity();
        if only.is_none()
            && !listed.contains(&identity)
            && let Some(snapshot) = listed.iter().find(is)
        {
            // It is stored before any snapshot.
            self.gone.push((identity, snapshot.clone()));
        }
        for key in listed {
            match self.instance.layout().parse_key(key) {
                Some(InstanceObject::Snapshot(label)) if only.is_none_or(|only| only == label) => {
                    found = true;
                    self.verify_snapshot(key).await?;
                }
                // Parts are read with their snapshot. One under way has no manifest yet.
                Some(
                    InstanceObject::Part(..)
                    | InstanceObject::Snapshot(_)
                    | InstanceObject::Running(..)
                    | InstanceObject::Probe(_),
                ) => {}
                _ if only.is_some() => {}
                Some(InstanceObject::Commands(replid, first)) => {
                    let read = self.verify_stretch(key).await?;
                    let unread = || replid.parse().ok().map(|replid| ListedStretch::unreadable(replid, first));
                    self.pieces.extend(read.or_else(unread));
                }
                Some(InstanceObject::Gap(..)) => {
                    let gap = self.read_value::<Gap>(SealedKind::Gap, key).await?;
                    self.gaps.extend(gap);
                }
                Some(InstanceObject::Identity) => {
                    let _readable = self.read_value::<ArchiveIdentity>(SealedKind::Instance, key).await?;
                }
                None => self.record_damage(key, "no object of walkeep has such a name; it may be somebody else's"),
            }
        }
        Ok(found)
    }

    async fn verify_snapshot(&mut self, manifest: &ObjectKey) -> Result<(), VerifyError> {
        let Some(snapshot) = self.read_value::<SnapshotManifest>(SealedKind::Snapshot, manifest).await? else {
            return Ok(());
        };
        let (mut walker, mut whole) = (Some(RdbWalker::new(rdb::RdbLimits::default())), true);
        for (number, part) in (0..).zip(&snapshot.parts) {
            let Ok(key) = self.instance.layout().part(&snapshot.label, number) else { continue };
            match self.verify_part(&key, part, manifest).await? {
                None => whole = false,
                Some(bytes) => walker = self.walk_part(&key, walker, bytes).await,
            }
            whole &= walker.is_some();
        }
        let Some(walker) = walker.filter(|_| whole) else { return Ok(()) };
        match walker.finish() {
            Ok(walk) if same_content(&walk, &snapshot.walk) => {
                self.counts.snapshots = self.counts.snapshots.saturating_add(1);
                self.snapshots.push(snapshot);
            }
            Ok(_) => self.record_damage(manifest, "its parts hold other keys than it says"),
            Err(error) => self.record_damage(manifest, error),
        }
        Ok(())
    }

    async fn verify_part(
        &mut self,
        key: &ObjectKey,
        part: &SnapshotPart,
        by: &ObjectKey,
    ) -> Result<Option<Bytes>, VerifyError> {
        let Some(opened) = self.open_object(SealedKind::RdbPart, key, by).await? else { return Ok(None) };
        let content = blake3::Hash::from_bytes(opened.content).to_hex();
        if opened.plain.len() as u64 != part.len || content.as_str() != part.content {
            self.record_damage(key, "it is not the part that the snapshot names");
            return Ok(None);
        }
        self.counts.parts = self.counts.parts.saturating_add(1);
        Ok(Some(opened.plain))
    }

    async fn walk_part(&mut self, key: &ObjectKey, walker: Option<RdbWalker>, bytes: Bytes) -> Option<RdbWalker> {
        let mut walker = walker?;
        let walked = run_blocking(move || walker.push(&bytes).map(|()| walker)).await;
        match walked {
            Ok(Ok(walker)) => Some(walker),
            Ok(Err(error)) => {
                self.record_damage(key, error);
                None
            }
            Err(lost) => {
                self.record_damage(key, lost);
                None
            }
        }
    }

    /// A stretch; `None` if it is not there or not right.
    async fn verify_stretch(&mut self, key: &ObjectKey) -> Result<Option<ListedStretch>, VerifyError> {
        let Some(opened) = self.open_object(SealedKind::Commands, key, key).await? else { return Ok(None) };
        let checked = run_blocking(move || parse_stretch(&opened.metadata, &opened.plain)).await;
        match checked {
            Ok(Ok(piece)) => {
                self.counts.stretches = self.counts.stretches.saturating_add(1);
                return Ok(Some(piece));
            }
            Ok(Err(what)) => self.record_damage(key, what),
            Err(lost) => self.record_damage(key, lost),
        }
        Ok(None)
    }

    /// An object's content as a value; `None` if it is damaged.
    async fn read_value<T: DeserializeOwned>(
        &mut self,
        kind: SealedKind,
        key: &ObjectKey,
    ) -> Result<Option<T>, VerifyError> {
        let Some(opened) = self.open_object(kind, key, key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&opened.plain);
        Ok(value.map_err(|error| self.record_damage(key, error)).ok())
    }

    /// An object opened, which `by` names; `None` if it is not there or damaged.
    async fn open_object(
        &mut self,
        kind: SealedKind,
        key: &ObjectKey,
        by: &ObjectKey,
    ) -> Result<Option<OpenedObject>, VerifyError> {
        let bytes = match self.repository.get(key).await {
            Ok(bytes) => bytes,
            Err(repository::RepositoryError::NotFound { .. }) => {
                self.gone.push((key.clone(), by.clone()));
                return Ok(None);
            }
            Err(error @ repository::RepositoryError::Corrupt { .. }) => {
                self.record_damage(key, error);
                return Ok(None);
            }
            Err(error) => return Err(self.with_repository_name(error)),
        };
        self.progress.add_object(bytes.len() as u64);
        self.counts.bytes = self.counts.bytes.saturating_add(bytes.len() as u64);
        let (protection, name) = (Arc::clone(self.instance.vault().protection()), key.clone());
        match run_blocking(move || open_checked(kind, &name, &bytes, &protection)).await {
            Ok(Ok(opened)) => return Ok(Some(opened)),
            Ok(Err(what)) => self.record_damage(key, what),
            Err(lost) => self.record_damage(key, lost),
        }
        Ok(None)
    }

    fn record_damage(&mut self, object: &ObjectKey, what: impl ToString) {
        let repository = self.counts.repository.clone();
        let damage = DamagedObject { repository, object: object.to_string(), what: what.to_string() };
        tracing::error!(repository = damage.repository, object = damage.object, what = damage.what, "damaged");
        self.damage.push(damage);
    }

    fn with_repository_name(&self, source: repository::RepositoryError) -> VerifyError {
        VerifyError::Repository { name: self.counts.repository.clone(), source: Arc::new(source) }
    }
}

/// Whether two walks found the same. One that stopped at something it did not know may have stopped elsewhere.
fn same_content(a: &RdbSummary, b: &RdbSummary) -> bool {
    let stopped = a.stopped.is_some() || b.stopped.is_some();
    a.bytes == b.bytes && (stopped || (&a.databases, a.functions, a.version) == (&b.databases, b.functions, b.version))
}

/// Parses a stretch again, and compares with what it says of itself.
fn parse_stretch(metadata: &[u8], plain: &[u8]) -> Result<ListedStretch, String> {
    let stretch: StreamStretch = serde_json::from_slice(metadata).map_err(|error| error.to_string())?;
    let mut commands =
        CommandParser::resume_at(stretch.first, stretch.db, stretch.in_transaction, resp::CommandLimits::default());
    commands.push(plain, &mut |_| {}).map_err(|error| error.to_string())?;
    let found = (commands.boundary(), commands.offset(), commands.db(), commands.in_transaction());
    if found == (stretch.last, stretch.last, stretch.db_after, stretch.in_transaction_after) {
        Ok(ListedStretch::from_stretch(&stretch))
    } else {
        Err("its commands end elsewhere than it says".to_owned())
    }
}

/// The body of a fuzz target: a stretch's metadata, of the length that the first two bytes say, and its commands. What
/// is right says the same when it is written again, and what stands out in it is within it.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk::<2>() else { return };
    let Some((metadata, plain)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))) else { return };
    let right = parse_stretch(metadata, plain).is_ok();
    let Ok(stretch) = serde_json::from_slice::<StreamStretch>(metadata) else { return };
    let again = serde_json::to_vec(&stretch).unwrap_or_default();
    assert_eq!(serde_json::from_slice(&again).ok().as_ref(), Some(&stretch), "another stretch when written again");
    assert_eq!(parse_stretch(&again, plain).is_ok(), right);
    if stretch.first.checked_add(plain.len() as u64).is_none() {
        return;
    }
    let Ok(seen) = stretch.scan_deletions(plain, 1) else { return };
    for notable in &seen.found {
        let within = stretch.first <= notable.before && notable.before < notable.end;
        assert!(within && (notable.end <= stretch.last || !right), "{notable:?} is not in the stretch");
        let at = stretch.time_at(notable.before);
        assert!(at == stretch.ended_at || stretch.marks.iter().any(|mark| mark.time == at), "a time that nobody noted");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;

    use super::{Archive, InstanceObjectCounts, InstanceVerifier, verify_instance};
    use crate::redis::archive::stream::PreviousHistory;
    use crate::redis::archive::stream::StretchToStore;
    use crate::redis::archive::{SnapshotManifest, SnapshotOrigin, SnapshotPart, StreamStretch};
    use crate::redis::format::flavour::ServerFlavour;
    use crate::redis::format::rdb::{RdbLimits, RdbWalker};
    use crate::redis::format::resp::encode_command;
    use crate::vault::SkippedRepositories;
    use crate::vault::seal::{self, ObjectBinding, SealSpec, SealedKind};
    use crate::vault::testing::{create, open};
    use crate::vault::verify::VerifyOptions;
    use crate::vault::verify::VerifyProgress;

    const RDB: &[u8] = b"REDIS0009\xff\0\0\0\0\0\0\0\0";

    async fn put(instance: &Archive, label: &str) {
        let mut walker = RdbWalker::new(RdbLimits::default());
        walker.push(RDB).unwrap();
        let key = instance.layout().part(label, 0).unwrap();
        let binding = ObjectBinding::new(SealedKind::RdbPart, key.as_str());
        let sealed = seal::seal_object(&[RDB], &SealSpec::new(&binding), instance.vault().protection()).unwrap();
        instance.vault().put_sealed(&key, &sealed).await.unwrap();
        instance.put_identity(ServerFlavour::Redis, &SkippedRepositories::default()).await.unwrap();
        let at = Timestamp::UNIX_EPOCH;
        let snapshot = SnapshotManifest {
            format: 1,
            label: label.into(),
            started_at: at,
            finished_at: at,
            at,
            origin: SnapshotOrigin::File { path: "x".into() },
            flavour: ServerFlavour::Redis,
            version: "7.0.15".into(),
            run_id: None,
            replid: None,
            offset: None,
            db: 0,
            walk: walker.finish().unwrap(),
            parts: vec![SnapshotPart::from_sealed(&sealed)],
            logical_bytes: RDB.len() as u64,
            stored_bytes: sealed.len,
        };
        instance.put_snapshot(&snapshot, &SkippedRepositories::default()).await.unwrap();
    }

    #[tokio::test]
    async fn what_retention_takes_meanwhile_is_not_missed_and_what_is_missing_is() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Archive::new(create(&[&dir], None).await, "main".parse().unwrap());
        for label in ["20260101T000000.000Z", "20260102T000000.000Z", "20260103T000000.000Z"] {
            put(&instance, label).await;
        }
        let (_, repository) = instance.vault().repositories().next().unwrap();
        let progress = VerifyProgress::default();
        let mut subject = InstanceVerifier {
            instance: &instance,
            repository: &repository,
            progress: &progress,
            counts: InstanceObjectCounts::default(),
            damage: vec![],
            gone: vec![],
            gaps: vec![],
            snapshots: vec![],
            pieces: vec![],
        };
        // All of the first and the parts of the second have gone since; the manifest of the second goes while they are
        // looked for.
        let listed = subject.list_objects().await.unwrap();
        let (snapshot, part) = (
            |label: &str| instance.layout().snapshot(label).unwrap(),
            |label: &str| instance.layout().part(label, 0).unwrap(),
        );
        for key in [snapshot("20260101T000000.000Z"), part("20260101T000000.000Z"), part("20260102T000000.000Z")] {
            instance.vault().delete(&key).await.unwrap();
        }
        subject.verify_objects(&listed, None).await.unwrap();
        instance.vault().delete(&snapshot("20260102T000000.000Z")).await.unwrap();
        subject.settle_continuity().await.unwrap();
        assert_eq!((subject.damage, subject.counts.snapshots), (vec![], 1));

        // A part whose manifest stays is missing.
        instance.vault().delete(&part("20260103T000000.000Z")).await.unwrap();
        let report = verify_instance(&instance, &VerifyOptions::default(), &progress).await.unwrap();
        let found: Vec<(&str, &str)> = report.damage.iter().map(|d| (d.object.as_str(), d.what.as_str())).collect();
        assert_eq!(found, [(part("20260103T000000.000Z").as_str(), "it is missing")]);
    }
    /// A stretch of one command.
    async fn put_stretch(
        instance: &Archive,
        (history, first): (char, u64),
        follows: Option<PreviousHistory>,
        second: i64,
    ) {
        let bytes = Bytes::from(encode_command(&[b"SET", b"a", b"1"]));
        let at = Timestamp::from_second(second).unwrap();
        let stretch: StreamStretch = serde_json::from_value(serde_json::json!({
            "replid": history.to_string().repeat(40), "first": first, "last": first + bytes.len() as u64, "db": 0,
            "in_transaction": false, "db_after": 0, "in_transaction_after": false, "follows": follows, "started_at": at,
            "ended_at": at, "writes": 1, "marks": [],
        }))
        .unwrap();
        for place in 0..instance.place_count() {
            instance.put_commands(place, &StretchToStore::new(stretch.clone(), bytes.clone())).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_others_are_verified_while_a_repository_is_unreachable() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let both = Archive::new(create(&[&a, &b], None).await, "main".parse().unwrap());
        put(&both, "20260101T000000.000Z").await;
        put_stretch(&both, ('a', 100), None, 10).await;
        crate::base::durable::rename(&b.path().join("repository"), &b.path().join("moved")).unwrap();
        let one = Archive::new(open(&[&a, &b], None).await.unwrap(), "main".parse().unwrap());
        let verify = async |backup: Option<&str>| {
            let options = VerifyOptions { backup: backup.map(str::to_owned) };
            verify_instance(&one, &options, &VerifyProgress::default()).await
        };
        let report = verify(None).await.unwrap();
        assert_eq!(report.unreachable.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["place1"]);
        assert_eq!(report.repositories.iter().map(|counts| counts.snapshots).collect::<Vec<_>>(), [1]);
        assert!(report.is_whole(), "{report:?}");
        let error = verify(Some("20200101T000000.000Z")).await.unwrap_err();
        assert!(error.to_string().contains("place1"), "it may be in the other one: {error}");
    }

    /// It was away over a failover, and what waited for it was lost with its machine.
    #[tokio::test]
    async fn a_whole_history_that_a_repository_lacks_is_missed() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let both = Archive::new(create(&[&a, &b], None).await, "main".parse().unwrap());
        put(&both, "20260101T000000.000Z").await;
        put_stretch(&both, ('a', 100), None, 10).await;
        let one = Archive::new(open(&[&a], None).await.unwrap(), "main".parse().unwrap());
        let follows = PreviousHistory { replid: "a".repeat(40).parse().unwrap(), offset: 127 };
        put_stretch(&one, ('b', 127), Some(follows), 20).await;
        let verify = async |of: &Archive| {
            let report = verify_instance(of, &VerifyOptions::default(), &VerifyProgress::default()).await.unwrap();
            assert_eq!(report.damage, []);
            report.holes.into_iter().map(|lack| (lack.repository, lack.what)).collect::<Vec<_>>()
        };
        let what = format!("what lies between offset 127 and 154 of history {} is missing", "b".repeat(40));
        assert_eq!(verify(&both).await, [("place1".to_owned(), what)]);
        assert_eq!(verify(&one).await, []);
    }
}

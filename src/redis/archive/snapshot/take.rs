//! Taking a snapshot: an RDB file from a server or a file, walked while it comes, stored in parts, made visible by its
//! manifest.
//!
//! Memory: two parts, one that fills while the other is sealed, which are used again and again; the sealed forms of
//! [`MAX_SEALED_PARTS`] parts and one more; and what the walker looks into. Where a repository takes them more slowly
//! than the server sends, parts wait on this machine's disk (`aside`), and the server waits only when there is no room
//! there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::error::SnapshotError;
use super::manifest::{SNAPSHOT_PART_BYTES, SnapshotManifest, SnapshotOrigin, SnapshotPart};
use super::spill::PartSpill;
use crate::base::blocking::run_blocking;
use crate::base::clock::{SharedClock, timeout};
use crate::redis::archive::instance::Archive;
use crate::redis::format::flavour::ServerFlavour;
use crate::redis::format::rdb::{self, RdbSummary, RdbWalker};
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::wire::{RedisConnection, RedisSource, ServerInfo, SnapshotTransfer, SyncAnswer, SyncRequest};
use crate::vault::repository::key::ObjectKey;
use crate::vault::running::RunningMark;
use crate::vault::seal::{self, ObjectBinding, SealSpec, SealedKind, SealedObject};
use crate::vault::{self, SkippedRepositories};

/// Sealed parts in memory at once, beside the one that is being sealed: one being put, and the next. More of them wait
/// on the disk.
const MAX_SEALED_PARTS: usize = 2;
/// What a file says of itself stands within so many bytes of its beginning.
const FILE_HEAD_BYTES: usize = 16 << 10;
/// A week: no server writes a snapshot for longer.
const MAX_BGSAVE_SECONDS: i64 = 7 * 24 * 60 * 60;
/// A part waits so long for its place in memory before it goes to the disk: a repository that is only now and then
/// slower is not worth a second copy.
const SPILL_DELAY: Duration = Duration::from_millis(250);
/// Pieces of a file.
const FILE_READ_BYTES: usize = 1 << 20;
/// Bytes handed to the walker at once: a server sends pieces of 16 KiB, each of which would wake it.
const WALK_BATCH_BYTES: usize = 256 << 10;
/// How many such lots wait for the walker.
const WALK_QUEUE_BATCHES: usize = 32;

/// Where the RDB file comes from.
#[derive(Debug)]
pub enum SnapshotSource<'i> {
    /// A server, or a replica of the one that the Sentinels name, if one is fit for it.
    Server(&'i RedisSource),
    /// A server, or the one that the Sentinels name.
    Master(&'i RedisSource),
    /// A file.
    File(&'i Path),
}

/// How far a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotProgress {
    /// The server prepares it.
    Waiting,
    /// So many bytes have come, of how many if that is known.
    Bytes(u64, Option<u64>),
    /// Everything has come and is being put.
    Storing,
}

/// A snapshot that the server has begun: the stream behind it may be followed from here on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BegunSnapshot {
    /// The server's address.
    pub server: String,
    /// The history.
    pub replid: ReplicationId,
    /// The offset.
    pub offset: u64,
    /// The database that the stream behind it acts on, until it says another one.
    pub db: u32,
}

/// Takes a snapshot and stores it in all repositories but those that are `absent`, which are more afterwards if one of
/// several went away. `begun` hears at which offset it stands as soon as the server says so. Dropped midway, it stores
/// no snapshot.
///
/// # Errors
/// The transfer was refused, cut short or damaged, or no repository took a part. Nothing is visible then.
pub async fn take_snapshot(
    instance: &Archive,
    input: SnapshotSource<'_>,
    begun: Option<oneshot::Sender<BegunSnapshot>>,
    absent: &Arc<SkippedRepositories>,
    progress: &mut (dyn FnMut(SnapshotProgress) + Send),
) -> Result<SnapshotManifest, SnapshotError> {
    let started_at = instance.vault().clock().now();
    let label = snapshot_label(started_at);
    progress(SnapshotProgress::Waiting);
    let source = match input {
        SnapshotSource::Server(source) => PartSource::Server(source.connect_for_snapshot().await?, begun),
        SnapshotSource::Master(source) => PartSource::Server(source.connect().await?, begun),
        SnapshotSource::File(path) => PartSource::File(path),
    };
    // Before the first part, which nothing names yet.
    let mark = match RunningMark::create(instance.vault(), &instance.layout().running(), &label, absent).await {
        Ok(mark) => mark,
        Err(error) if error.may_pass() => {
            // The stream begins with the snapshot all the same. It is spooled until a repository takes one.
            if let PartSource::Server(connected, begun) = source {
                let mut intake = PartWriter::new(instance, &label, absent);
                let clock = Arc::clone(instance.vault().clock());
                drop(take_from_server(connected, begun, &mut intake, progress, &*clock).await);
            }
            return Err(error.into());
        }
        Err(error) => return Err(error.into()),
    };
    let taken = take_marked(instance, source, (label, started_at, &mark), absent, progress).await;
    mark.remove().await;
    taken
}

/// A source that is open.
enum PartSource<'i> {
    Server((RedisConnection, ServerInfo), Option<oneshot::Sender<BegunSnapshot>>),
    File(&'i Path),
}

async fn take_marked(
    instance: &Archive,
    source: PartSource<'_>,
    (label, started_at, mark): (String, Timestamp, &RunningMark),
    absent: &Arc<SkippedRepositories>,
    progress: &mut (dyn FnMut(SnapshotProgress) + Send),
) -> Result<SnapshotManifest, SnapshotError> {
    let clock = Arc::clone(instance.vault().clock());
    let mut intake = PartWriter::new(instance, &label, absent);
    let described = match source {
        PartSource::Server(connected, begun) => {
            take_from_server(connected, begun, &mut intake, progress, &*clock).await?
        }
        PartSource::File(path) => take_from_file(path, &mut intake, progress).await?,
    };
    progress(SnapshotProgress::Storing);
    let origin_name = described.describe_server();
    let (parts, walk) = intake.finish().await.map_err(|error| error.into_snapshot_error(&origin_name))?;
    for warning in walk.warnings() {
        tracing::warn!(label, "the snapshot {warning}");
    }
    let snapshot = described.into_manifest(label, (started_at, clock.now()), walk, parts);
    mark.confirm().await?;
    require_parts(instance, &snapshot, absent).await?;
    instance.put_identity(snapshot.flavour, absent).await?;
    instance.put_snapshot(&snapshot, absent).await?;
    for error in absent.errors().values() {
        tracing::warn!(label = snapshot.label, %error, "the snapshot is not in this repository");
    }
    Ok(snapshot)
}

/// Leaves out every repository that lacks one of the parts: the manifest must not be where they are not. It is an error
/// if none is left.
async fn require_parts(
    instance: &Archive,
    snapshot: &SnapshotManifest,
    absent: &SkippedRepositories,
) -> Result<(), SnapshotError> {
    let prefix = instance.layout().parts().child(&snapshot.label).map_err(|error| instance.bad_key_error(&error))?;
    let mut whole = false;
    for (nth, place) in instance.vault().not_skipped(absent) {
        match place.list(&prefix).await {
            Ok(there) if there.len() >= snapshot.parts.len() => whole = true,
            Ok(there) => {
                let (name, count) = (place.name.clone(), snapshot.parts.len().saturating_sub(there.len()));
                let example = prefix.to_string();
                absent.skip(nth, vault::VaultError::ObjectsGone { name, count, example });
            }
            Err(error) if error.may_pass() => absent.skip(nth, error),
            Err(error) => return Err(error.into()),
        }
    }
    match absent.errors().into_values().next_back() {
        Some(error) if !whole => Err(error.into()),
        _ => Ok(()),
    }
}

/// The name of a snapshot begun at `time`; sorts by it.
fn snapshot_label(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%S.%3fZ").to_string()
}

/// What is known of a snapshot besides its bytes.
struct SnapshotDescription {
    origin: SnapshotOrigin,
    flavour: Option<ServerFlavour>,
    version: Option<String>,
    run_id: Option<String>,
    position: Option<(ReplicationId, u64)>,
    at: Option<Timestamp>,
}

impl SnapshotDescription {
    fn describe_server(&self) -> String {
        match &self.origin {
            SnapshotOrigin::Replication { server, .. } => format!("Redis at {server}"),
            SnapshotOrigin::File { path } => path.clone(),
        }
    }

    fn into_manifest(
        self,
        label: String,
        times: (Timestamp, Timestamp),
        walk: RdbSummary,
        parts: Vec<SnapshotPart>,
    ) -> SnapshotManifest {
        let aux = |name: &str| walk.aux.get(name).map(String::as_str);
        // A file says which state it is, if its server was or had a replica (`rdbSaveInfoAuxFields`).
        let by_file = || Some((aux("repl-id")?.parse().ok()?, aux("repl-offset")?.parse().ok()?));
        // What was written later in that second may be in it.
        let written = || Timestamp::from_second(aux("ctime")?.parse::<i64>().ok()?.checked_add(1)?).ok();
        let flavour = if walk.magic == rdb::RdbMagic::Valkey { ServerFlavour::Valkey } else { ServerFlavour::Redis };
        let (replid, offset) = self.position.or_else(by_file).unzip();
        let (started_at, finished_at) = times;
        SnapshotManifest {
            format: 1,
            label,
            started_at,
            finished_at,
            at: self.at.or_else(written).unwrap_or(started_at),
            origin: self.origin,
            flavour: self.flavour.unwrap_or(flavour),
            version: self
                .version
                .or_else(|| walk.server_version().map(str::to_owned))
                .unwrap_or_else(|| "?".to_owned()),
            run_id: self.run_id,
            replid,
            offset,
            db: walk.stream_database().unwrap_or(0),
            logical_bytes: walk.bytes,
            stored_bytes: parts.iter().map(|part| part.stored).sum(),
            walk,
            parts,
        }
    }
}

async fn take_from_server(
    (mut connection, info): (RedisConnection, ServerInfo),
    begun: Option<oneshot::Sender<BegunSnapshot>>,
    intake: &mut PartWriter,
    progress: &mut (dyn FnMut(SnapshotProgress) + Send),
    clock: &dyn crate::base::clock::Clock,
) -> Result<SnapshotDescription, SnapshotError> {
    warn_of_persistence_trouble(&connection, &info);
    let (replid, offset) = match connection.request_sync(SyncRequest::Snapshot, info.version()).await? {
        SyncAnswer::Full(replid, offset) => (replid, offset),
        SyncAnswer::Continue(_) => {
            let (server, why) = (connection.peer().to_owned(), "continues a stream that was not asked for".to_owned());
            return Err(SnapshotError::UnsuitableServer { server, why });
        }
    };
    let at = snapshot_time(clock.now(), offset, &info);
    let mut announced =
        begun.map(|to| (to, BegunSnapshot { server: connection.peer().to_owned(), replid, offset, db: 0 }));
    if info.is_master() {
        // It says `SELECT` before the first command behind a snapshot.
        announce_begun(&mut announced, 0);
    }
    let transfer = connection.begin_transfer().await?;
    let total = transfer.len();
    let tell = &mut |done| progress(SnapshotProgress::Bytes(done, total));
    receive_snapshot(&mut connection, transfer, intake, &mut announced, tell).await?;
    let role = info.get("role").unwrap_or("?").to_owned();
    Ok(SnapshotDescription {
        origin: SnapshotOrigin::Replication { server: connection.peer().to_owned(), role },
        flavour: Some(info.flavour()),
        version: Some(info.version().to_owned()),
        run_id: info.get("run_id").map(str::to_owned),
        position: Some((replid, offset)),
        at: Some(at),
    })
}

/// The moment whose state a snapshot holds that stands at `offset`: now, unless the server was already writing it down
/// for somebody else (`syncCommand`); then its offset is one from before, and `info`, asked before, says since when.
fn snapshot_time(now: Timestamp, offset: u64, info: &ServerInfo) -> Timestamp {
    if info.number("master_repl_offset").is_none_or(|before| before <= offset) {
        return now;
    }
    // Whole seconds, so one of them may be too many.
    let since = info.number("rdb_current_bgsave_time_sec").and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
    let since = SignedDuration::from_secs(since.saturating_sub(1).clamp(0, MAX_BGSAVE_SECONDS));
    now.checked_sub(since).unwrap_or(now)
}

/// Who hears that a snapshot has begun, and what.
type BegunAnnouncement = Option<(oneshot::Sender<BegunSnapshot>, BegunSnapshot)>;

fn announce_begun(announced: &mut BegunAnnouncement, db: u32) {
    if let Some((to, begun)) = announced.take() {
        // Nobody listens if the receiver has given up meanwhile; the snapshot is good without.
        drop(to.send(BegunSnapshot { db, ..begun }));
    }
}

/// A replica hands its master's stream on as it comes, without a `SELECT` for us: the beginning of its snapshot says on
/// which database that acts.
async fn receive_snapshot(
    connection: &mut RedisConnection,
    mut transfer: SnapshotTransfer,
    intake: &mut PartWriter,
    announced: &mut BegunAnnouncement,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), SnapshotError> {
    let mut done = 0_u64;
    let mut beginning = RdbWalker::new(rdb::RdbLimits::default());
    while let Some(bytes) = connection.read_snapshot(&mut transfer).await? {
        if announced.is_some() {
            // What is wrong with it is found by the one who walks it all.
            drop(beginning.push(bytes.get(..FILE_HEAD_BYTES).unwrap_or(&bytes)));
            let db = beginning.stream_database();
            if db.is_some() || done >= FILE_HEAD_BYTES as u64 {
                announce_begun(announced, db.unwrap_or(0));
            }
        }
        done = done.saturating_add(bytes.len() as u64);
        intake
            .push(bytes)
            .await
            .map_err(|error| error.into_snapshot_error(&format!("Redis at {}", connection.peer())))?;
        progress(done);
    }
    announce_begun(announced, 0);
    Ok(())
}

/// The server's own persistence is its own business, but a BGSAVE that fails in silence is how data is lost.
pub(crate) fn warn_of_persistence_trouble(connection: &RedisConnection, info: &ServerInfo) {
    if let Some(trouble) = info.persistence_trouble() {
        tracing::warn!(server = connection.peer(), "{trouble}");
    }
}

async fn take_from_file(
    path: &Path,
    intake: &mut PartWriter,
    progress: &mut (dyn FnMut(SnapshotProgress) + Send),
) -> Result<SnapshotDescription, SnapshotError> {
    let failed = |source| SnapshotError::ReadFile { path: PathBuf::from(path), source };
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let total = file.metadata().await.map_err(failed)?.len();
    let mut done = 0_u64;
    loop {
        let mut piece = bytes::BytesMut::with_capacity(FILE_READ_BYTES);
        if file.read_buf(&mut piece).await.map_err(failed)? == 0 {
            break;
        }
        done = done.saturating_add(piece.len() as u64);
        intake.push(piece.freeze()).await.map_err(|error| error.into_snapshot_error(&path.display().to_string()))?;
        progress(SnapshotProgress::Bytes(done, Some(total)));
    }
    let origin = SnapshotOrigin::File { path: path.display().to_string() };
    Ok(SnapshotDescription { origin, flavour: None, version: None, run_id: None, position: None, at: None })
}

/// What can go wrong while bytes are taken in, before anybody knows whose they are.
enum PartWriteError {
    Rdb(rdb::RdbError),
    Other(SnapshotError),
}

impl PartWriteError {
    fn into_snapshot_error(self, origin: &str) -> SnapshotError {
        match self {
            PartWriteError::Rdb(source) => SnapshotError::Rdb { origin: origin.to_owned(), source },
            PartWriteError::Other(error) => error,
        }
    }
}

impl<E: Into<SnapshotError>> From<E> for PartWriteError {
    fn from(error: E) -> PartWriteError {
        PartWriteError::Other(error.into())
    }
}

/// The bytes of an RDB file on their way into parts and through the walker.
struct PartWriter {
    instance: Archive,
    label: String,
    absent: Arc<SkippedRepositories>,
    part: Vec<u8>,
    /// Gives the memory of the part before back, once that is sealed.
    returned_buffer: Option<oneshot::Receiver<Vec<u8>>>,
    next_part: u32,
    pending_puts: JoinSet<Result<(u32, SnapshotPart), SnapshotError>>,
    stored_parts: Vec<(u32, SnapshotPart)>,
    room: PartQueue,
    /// What the walker gets next.
    walk_batch: Vec<Bytes>,
    walk_batch_bytes: usize,
    walk_sender: Option<mpsc::Sender<Vec<Bytes>>>,
    walker: JoinHandle<Result<RdbSummary, rdb::RdbError>>,
}

impl PartWriter {
    fn new(instance: &Archive, label: &str, absent: &Arc<SkippedRepositories>) -> PartWriter {
        let (walk, mut lots) = mpsc::channel::<Vec<Bytes>>(WALK_QUEUE_BATCHES);
        let walker = tokio::task::spawn_blocking(move || {
            let mut walker = RdbWalker::new(rdb::RdbLimits::default());
            while let Some(lot) = lots.blocking_recv() {
                lot.iter().try_for_each(|piece| walker.push(piece))?;
            }
            walker.finish()
        });
        PartWriter {
            instance: instance.clone(),
            label: label.to_owned(),
            absent: Arc::clone(absent),
            part: Vec::new(),
            returned_buffer: None,
            next_part: 0,
            pending_puts: JoinSet::new(),
            stored_parts: Vec::new(),
            room: PartQueue::new(instance),
            walk_batch: Vec::new(),
            walk_batch_bytes: 0,
            walk_sender: Some(walk),
            walker,
        }
    }

    async fn push(&mut self, mut bytes: Bytes) -> Result<(), PartWriteError> {
        self.walk_batch.push(bytes.clone());
        self.walk_batch_bytes = self.walk_batch_bytes.saturating_add(bytes.len());
        if self.walk_batch_bytes >= WALK_BATCH_BYTES && !self.flush_to_walker().await {
            // The walker ends early only at what it cannot walk.
            return Err(self.finish_walk().await.err().unwrap_or(PartWriteError::Other(SnapshotError::WorkerPanicked)));
        }
        while !bytes.is_empty() {
            // Copied: a part then lies in one piece for the frames cut from it, and the socket's buffers, mostly
            // emptier than they are large, are free at once.
            self.part.reserve_exact(SNAPSHOT_PART_BYTES.saturating_sub(self.part.len()));
            self.part.extend_from_slice(
                &bytes.split_to(SNAPSHOT_PART_BYTES.saturating_sub(self.part.len()).min(bytes.len())),
            );
            if self.part.len() == SNAPSHOT_PART_BYTES {
                self.store_part().await?;
            }
        }
        Ok(())
    }

    /// Sends the part under way off; waits while others are being sealed, or have no room.
    async fn store_part(&mut self) -> Result<(), SnapshotError> {
        let sealing =
            Arc::clone(&self.room.sealing).acquire_owned().await.map_err(|_closed| SnapshotError::WorkerPanicked)?;
        while let Some(done) = self.pending_puts.try_join_next() {
            self.stored_parts.push(done.map_err(|_panic| SnapshotError::WorkerPanicked)??);
        }
        let (instance, label, absent) = (self.instance.clone(), self.label.clone(), Arc::clone(&self.absent));
        let (room, number) = (self.room.clone(), self.next_part);
        self.next_part = self.next_part.saturating_add(1);
        let (empty, emptied) = oneshot::channel();
        let before = self.returned_buffer.replace(emptied);
        let plain = std::mem::take(&mut self.part);
        self.pending_puts.spawn(async move {
            let (key, sealed) = seal_part(&instance, (&label, number), plain, empty).await?;
            let (sealed, _place) = room.await_slot(sealed, sealing).await?;
            put_part(&instance, key, sealed, &absent).await.map(|part| (number, part))
        });
        if let Some(before) = before {
            // Had sealing failed, `puts` would say so.
            self.part = before.await.unwrap_or_default();
        }
        Ok(())
    }

    /// Whether the walker took what there is for it.
    async fn flush_to_walker(&mut self) -> bool {
        self.walk_batch_bytes = 0;
        match &self.walk_sender {
            Some(walk) => walk.send(std::mem::take(&mut self.walk_batch)).await.is_ok(),
            None => false,
        }
    }

    async fn finish_walk(&mut self) -> Result<RdbSummary, PartWriteError> {
        // One that has ended already says why itself.
        let _taken = self.flush_to_walker().await;
        self.walk_sender = None;
        match (&mut self.walker).await {
            Ok(Ok(walk)) => Ok(walk),
            Ok(Err(error)) => Err(PartWriteError::Rdb(error)),
            Err(_panic) => Err(PartWriteError::Other(SnapshotError::WorkerPanicked)),
        }
    }

    /// Every part is put, and the walk is over.
    async fn finish(mut self) -> Result<(Vec<SnapshotPart>, RdbSummary), PartWriteError> {
        let walk = self.finish_walk().await?;
        if !self.part.is_empty() {
            self.store_part().await?;
        }
        while let Some(done) = self.pending_puts.join_next().await {
            self.stored_parts.push(done.map_err(|_panic| SnapshotError::WorkerPanicked)??);
        }
        self.stored_parts.sort_unstable_by_key(|(number, _)| *number);
        Ok((self.stored_parts.into_iter().map(|(_, part)| part).collect(), walk))
    }
}

/// Where parts are between the server and the repositories.
#[derive(Clone, Debug)]
struct PartQueue {
    /// To be sealed.
    sealing: Arc<Semaphore>,
    /// To be in memory, sealed.
    memory: Arc<Semaphore>,
    /// Where those wait that have no place there.
    spill: Option<PartSpill>,
    clock: SharedClock,
}

impl PartQueue {
    fn new(instance: &Archive) -> PartQueue {
        let (sealing, memory) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(MAX_SEALED_PARTS)));
        let clock = Arc::clone(instance.vault().clock());
        PartQueue { sealing, memory, spill: instance.state_dir().map(PartSpill::new), clock }
    }

    /// Waits until a part may be put, with its place in memory. Meanwhile it is on the disk, so that others can be
    /// `sealing`; without room there it keeps them, and so the server, waiting.
    async fn await_slot(
        self,
        sealed: SealedObject,
        sealing: OwnedSemaphorePermit,
    ) -> Result<(SealedObject, OwnedSemaphorePermit), SnapshotError> {
        let place = timeout(&*self.clock, SPILL_DELAY, Arc::clone(&self.memory).acquire_owned()).await;
        let sealed = match (place, self.spill) {
            (Some(place), _) => return Ok((sealed, place.map_err(|_closed| SnapshotError::WorkerPanicked)?)),
            (None, None) => Err(sealed),
            (None, Some(aside)) => run_blocking(move || aside.spill(sealed)).await?,
        };
        let kept = sealed.is_err().then_some(sealing);
        let place = self.memory.acquire_owned().await.map_err(|_closed| SnapshotError::WorkerPanicked)?;
        drop(kept);
        match sealed {
            Err(sealed) => Ok((sealed, place)),
            Ok(waiting) => {
                let read = run_blocking(move || waiting.read()).await?;
                let path = PathBuf::from("a part of the snapshot that waited in the state-dir");
                Ok((read.map_err(|source| SnapshotError::ReadFile { path, source })?, place))
            }
        }
    }
}

/// Seals a part; its memory goes to `emptied`.
async fn seal_part(
    instance: &Archive,
    (label, number): (&str, u32),
    mut plain: Vec<u8>,
    emptied: oneshot::Sender<Vec<u8>>,
) -> Result<(ObjectKey, SealedObject), SnapshotError> {
    let key = instance.layout().part(label, number).map_err(|bad| vault::VaultError::MalformedContent {
        name: instance.name().to_string(),
        key: instance.layout().identity(),
        why: bad.to_string(),
    })?;
    let vault = Arc::clone(instance.vault());
    let binding = ObjectBinding::new(SealedKind::RdbPart, key.as_str());
    let sealed = run_blocking(move || {
        let spec = SealSpec { level: vault.level(), threads: vault.threads(), ..SealSpec::new(&binding) };
        let sealed = seal::seal_object(&[&plain], &spec, vault.protection());
        plain.clear();
        // Nobody takes it after the last part.
        drop(emptied.send(plain));
        sealed
    });
    Ok((key, sealed.await??))
}

async fn put_part(
    instance: &Archive,
    key: ObjectKey,
    sealed: SealedObject,
    absent: &SkippedRepositories,
) -> Result<SnapshotPart, SnapshotError> {
    if instance.vault().put_where_not_skipped(&key, &sealed, absent).await?
        == crate::vault::repository::PutOutcome::Exists
    {
        let why = "is a part of another snapshot of the same moment; take this one again".to_owned();
        return Err(vault::VaultError::NameTaken { name: instance.name().to_string(), key, why }.into());
    }
    Ok(SnapshotPart::from_sealed(&sealed))
}

#[cfg(test)]
mod tests {
    use super::{put_part, seal_part, snapshot_label, snapshot_time};
    use crate::redis::archive::Archive;
    use crate::redis::archive::snapshot::error::SnapshotError;
    use crate::redis::wire::ServerInfo;
    use crate::vault::testing::create;
    use crate::vault::{self, SkippedRepositories};
    use jiff::Timestamp;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_part_whose_name_is_taken_is_not_called_one_of_a_newer_walkeep() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Archive::new(create(&[&dir], None).await, "main".parse().unwrap());
        let absent = SkippedRepositories::default();
        let put = async || {
            let empty = oneshot::channel().0;
            let (key, sealed) = seal_part(&instance, ("20261122T020000.123Z", 0), b"part".to_vec(), empty).await?;
            put_part(&instance, key, sealed, &absent).await
        };
        put().await.unwrap();
        let error = put().await.unwrap_err();
        assert!(matches!(error, SnapshotError::Vault(vault::VaultError::NameTaken { .. })), "{error}");
        assert!(error.to_string().ends_with("take this one again"), "{error}");
    }

    #[test]
    fn a_snapshot_that_was_under_way_already_is_as_old_as_the_server_says() {
        let now = Timestamp::from_second(1000).unwrap();
        let at = |offset, seconds: &str| {
            let info = format!("master_repl_offset:500\nrdb_current_bgsave_time_sec:{seconds}\n");
            snapshot_time(now, offset, &ServerInfo::parse(&info)).as_second()
        };
        assert_eq!((at(500, "7"), at(501, "7"), at(499, "7")), (1000, 1000, 994));
        assert_eq!((at(499, "-1"), at(499, "0"), at(499, "1"), at(499, "x")), (1000, 1000, 1000, 1000));
    }

    #[test]
    fn labels_sort_by_time() {
        let of = |ms| snapshot_label(Timestamp::from_millisecond(ms).unwrap());
        assert_eq!(of(1_795_312_800_123), "20261122T020000.123Z");
        assert!(of(999) < of(1000) && of(1000) < of(60_000));
    }
}

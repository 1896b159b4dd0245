//! Base backups over `BASE_BACKUP`: no access to the server's files is needed, only a replication connection.
//!
//! The server sends archives ([`tar`]); files are cut in chunks ([`chunker`]), whose pages are checked
//! ([`page_checksums`]) and which are hashed on all cores. A chunk that any older backup of the cluster has stored is
//! only named; the others fill packs that are sealed and put away while reading goes on ([`packer`]). When the server
//! is done, the archive must prove to have the WAL from the backup's start to its stop ([`required_wal`]). Files that
//! the server left out ([`left_out`], [`completeness`]) and pages that are damaged ([`damaged_pages`]) are looked for,
//! and the manifest names them. Only then is it written, with a create-only put: it is what makes the backup one.
//!
//! A crash at any step leaves no manifest, and at most packs that nothing names, which a cleanup removes. While a
//! backup is under way, its mark prevents cleanups from removing packs that it uses ([`crate::vault::running`]), and
//! before the manifest is put, every pack must be there in every repository that gets it. Two backups at once are safe:
//! packs have random names, and a chunk stored twice does no harm.
//!
//! In memory: the chunks under way (8 MiB), four packs at most and what they were sealed to (256 MiB at worst, half of
//! that as a rule), and 100 bytes a chunk known.

mod fork_refusal;
mod required_wal;
mod chunker;
mod known_chunks;
mod error;
mod tar;
mod packer;
mod catalog_names;
mod page_checksums;
mod completeness;
mod damaged_pages;
mod left_out;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use error::BackupError;
pub use tar::TarError;

use self::chunker::{Chunker, CutChunk, HashedChunk};
use self::completeness::ExpectedFiles;
use self::left_out::{LeftOut, TablespacePlace};
use self::packer::{PackedChunks, Packer};
use self::page_checksums::{ChecksumRule, PageFindings};
use self::required_wal::RequiredWal;
use crate::base::pipeline::{OrderedStage, StageLostError, WorkerStage};
use crate::base::units::parse_size;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{self, ChunkNamer, ChunkSubtreeHash};
use crate::postgres::archive::manifest::{
    BackupDefects, BackupSummary, DamagedPage, EntryContent, MANIFEST_FORMAT, Manifest, ManifestTablespace,
};
use crate::postgres::archive::name_list::NameList;
use crate::postgres::format::backup_label::{BackupFrom, BackupLabel};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::PgControl;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::wire::conninfo::Conninfo;
use crate::postgres::wire::{
    BaseBackup, BaseBackupEnd, BaseBackupEvent, BaseBackupOptions, BaseBackupStart, ReplicationConnection,
    ServerCompression, ServerWarnings, SystemIdentity,
};
use crate::vault::SkippedRepositories;
use crate::vault::repository::PutOutcome;
use crate::vault::running::RunningMark;
use crate::vault::seal::SealedKind;

/// Chunks that one thread hashes in a row: handing over each by itself costs as much as hashing it.
const CHUNKS_PER_BATCH: usize = 8;
/// Batches that are being hashed, or wait for it or for being stored: 8 MiB.
const BATCHES_IN_FLIGHT: usize = 8;
/// How the server is to compress what it sends, the first that it can: both take less of its time than sending all of
/// it would, even over a local socket, and leave a seventh to be sent; LZ4 takes two thirds of zstd's.
const SERVER_COMPRESSIONS: [ServerCompression; 2] = [ServerCompression::Lz4, ServerCompression::Zstd(-5)];
/// What a server says that cannot: feature not supported, syntax error, invalid parameter value.
const NO_COMPRESSION_SQLSTATES: [&str; 3] = ["0A000", "42601", "22023"];
/// Progress is told each time so many bytes have come.
const PROGRESS_BYTES: u64 = 8 << 20;

/// How to take a backup.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Ask the server for an immediate checkpoint instead of one spread over `checkpoint_completion_target`.
    pub fast_checkpoint: bool,
    /// The most the server sends, in KiB a second.
    pub max_rate_kib: Option<u32>,
    /// How long the WAL that the backup needs may take to arrive in the archive.
    pub wal_limit: Duration,
}

impl Default for BackupOptions {
    fn default() -> BackupOptions {
        BackupOptions { fast_checkpoint: true, max_rate_kib: None, wal_limit: Duration::from_secs(300) }
    }
}

/// How far a backup is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupProgress {
    /// The server makes its checkpoint.
    Checkpoint,
    /// So many bytes have been read of about so many, and so many were put into the repositories.
    Reading {
        /// Read.
        done: u64,
        /// To be read, as the server estimated at the start.
        total: u64,
        /// Put away.
        stored: u64,
    },
    /// Waiting for the WAL that it needs.
    WaitingForWal,
}

/// Takes a backup of the server and returns what a list will show of it. When this returns, the backup is durable in
/// every repository, and the WAL it needs is, too. Dropped half-way it leaves nothing that looks like a backup. A
/// backup that lacks files or has damaged pages is stored all the same: [`BackupSummary::defects`].
///
/// # Errors
/// [`BackupError`]; there is no backup then.
pub async fn take_backup(
    archive: &Arc<Archive>,
    server: &Conninfo,
    options: &BackupOptions,
    progress: &mut (dyn FnMut(BackupProgress) + Send),
) -> Result<BackupSummary, BackupError> {
    let (tell, mut told) = watch::channel(BackupProgress::Checkpoint);
    let (archive, server, options) = (Arc::clone(archive), server.clone(), options.clone());
    // On a worker thread of its own, where the socket is polled, too: woken from another thread for each of its many
    // messages, the caller's would spend more time on waking than on working. Dropping the set ends the task.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { take_backup_reporting(&archive, &server, &options, &tell).await });
    while told.changed().await.is_ok() {
        progress(*told.borrow_and_update());
    }
    match tasks.join_next().await {
        Some(Ok(taken)) => taken,
        Some(Err(_)) | None => Err(StageLostError.into()),
    }
}

async fn take_backup_reporting(
    archive: &Arc<Archive>,
    server: &Conninfo,
    options: &BackupOptions,
    tell: &watch::Sender<BackupProgress>,
) -> Result<BackupSummary, BackupError> {
    let mut connection = ReplicationConnection::connect(server).await?;
    let about = inspect_server(archive, &mut connection).await?;
    fork_refusal::refuse_fork(archive, server).await?;
    let skipped = Arc::new(archive.vault().skip_unreachable());
    // Before anything is looked up that a cleanup could remove meanwhile.
    let label = new_label(about.started_at, 1);
    let mark = RunningMark::create(archive.vault(), &archive.layout().running(), &label, &skipped).await?;
    let taken = take_marked(archive, (server, connection, about), options, (&mark, &skipped), tell).await;
    mark.remove().await;
    taken
}

async fn take_marked(
    archive: &Arc<Archive>,
    (server, connection, about): (&Conninfo, ReplicationConnection, BackupSource),
    options: &BackupOptions,
    (mark, skipped): (&RunningMark, &Arc<SkippedRepositories>),
    tell: &watch::Sender<BackupProgress>,
) -> Result<BackupSummary, BackupError> {
    let namer = ChunkNamer::for_current_key(archive.vault().protection());
    let known = known_chunks::known_chunks(archive, about.identity.system_id, namer.id(), skipped).await?;
    let store = Packer::new(archive, known, skipped)?;

    let expected = ExpectedFiles::ask(server).await;
    let hold = required_wal::hold_server_wal(server).await?;
    tell.send_replace(BackupProgress::Checkpoint);
    let stream = start_base_backup(connection, server, base_backup_options(options, about.started_at)).await?;
    let start = stream.start().clone();
    archive_start_history(archive, server, &start).await?;
    // Near to where the backup begins: from there on the log tells what changes.
    let (asked, major) = (server.clone(), about.major);
    let names = tokio::spawn(async move { catalog_names::collect_names(&asked, major).await });
    let rule = about.rule.map(|rule| ChecksumRule { start: start.start, ..rule });
    let taking = RunningBackup::new(rule, store, namer, archive.vault().threads())?;
    let (end, mut taken) = taking.read_stream(stream, &start, tell).await?;
    let finished_at = archive.vault().clock().now();

    let mut summary = build_summary(&about, &start, end, finished_at, &taken)?;
    tell.send_replace(BackupProgress::WaitingForWal);
    let needed = RequiredWal {
        timeline: start.timeline,
        size: about.segment_size,
        start: summary.start_lsn,
        stop: end.stop,
        standby: summary.from_standby,
    };
    required_wal::require_archived(archive, server, &needed, options.wal_limit).await?;
    let found = find_defects(archive, server, (expected, rule), &needed, (&start, &mut taken)).await?;
    (summary.defects, summary.left_out, summary.torn_pages) = (found.defects, found.left_out, found.torn_pages);
    if let Some(hold) = hold {
        hold.close().await;
    }
    let names = names.await.map_err(|_gone| StageLostError)?;
    mark.confirm().await?;
    write_manifest(archive, summary, taken, names, skipped).await
}

/// Pages with wrong checksums that are noted by name. With more of them the disk is gone, and a count is enough.
const MAX_NOTED_PAGES: usize = 1 << 20;

/// What is known of the server before anything is read.
struct BackupSource {
    identity: SystemIdentity,
    started_at: Timestamp,
    version: String,
    major: u32,
    segment_size: SegmentSize,
    /// How to check pages, but for where the backup begins.
    rule: Option<ChecksumRule>,
}

async fn inspect_server(
    archive: &Archive,
    connection: &mut ReplicationConnection,
) -> Result<BackupSource, BackupError> {
    let identity = connection.identify_system().await?;
    if let Some(archived) = archive.identity().await?.filter(|archived| archived.system_id != identity.system_id) {
        return Err(BackupError::WrongCluster { server: identity.system_id, archived: archived.system_id });
    }
    let version = connection.parameter("server_version").unwrap_or_default().to_owned();
    let rule = if connection.show("data_checksums").await? == "on" {
        let block_size = show_size(connection, "block_size").await?;
        let segment = show_size(connection, "segment_size").await?;
        let segment_blocks = u32::try_from(segment.checked_div(block_size).unwrap_or(0)).unwrap_or(u32::MAX);
        let block_size = usize::try_from(block_size).unwrap_or(usize::MAX);
        Some(ChecksumRule { block_size, segment_blocks, start: Lsn::INVALID })
    } else {
        None
    };
    Ok(BackupSource {
        identity,
        started_at: archive.vault().clock().now(),
        version,
        major: connection.version().0,
        segment_size: connection.segment_size().await?,
        rule,
    })
}

/// A size as `SHOW` writes it: `8192`, `1GB`.
async fn show_size(connection: &mut ReplicationConnection, name: &'static str) -> Result<u64, BackupError> {
    let text = connection.show(name).await?;
    let size = parse_size(&text);
    size.filter(|size| *size > 0)
        .ok_or_else(|| BackupError::UnusableFile { file: name.to_owned(), why: format!("it is {text:?}") })
}

fn base_backup_options(options: &BackupOptions, started_at: Timestamp) -> BaseBackupOptions {
    BaseBackupOptions {
        label: format!("walkeep {}", new_label(started_at, 1)),
        fast_checkpoint: options.fast_checkpoint,
        max_rate_kib: options.max_rate_kib,
        manifest: false,
        // Each page is checked here, on another machine's cores if there is one.
        server_verifies: false,
        // The archive itself is asked.
        wait_for_archive: false,
        compression: None,
    }
}

/// Starts the server's sending, compressed if it was built for that.
async fn start_base_backup(
    connection: ReplicationConnection,
    server: &Conninfo,
    options: BaseBackupOptions,
) -> Result<BaseBackup, BackupError> {
    let mut connection = connection;
    for compression in SERVER_COMPRESSIONS {
        match connection.base_backup(&BaseBackupOptions { compression: Some(compression), ..options.clone() }).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.sqlstate().is_some_and(|code| NO_COMPRESSION_SQLSTATES.contains(&code)) => {
                tracing::debug!(%error, ?compression, "the server cannot compress what it sends like this");
                connection = ReplicationConnection::connect(server).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(connection.base_backup(&options).await?)
}

/// `20261122T020000Z-F`; a second one of the same second is `…-F2`.
fn new_label(started_at: Timestamp, attempt: u32) -> String {
    let time = started_at.strftime("%Y%m%dT%H%M%SZ-F");
    if attempt == 1 { time.to_string() } else { format!("{time}{attempt}") }
}

/// The history of the timeline, without which nobody finds the way to it later.
async fn archive_start_history(
    archive: &Arc<Archive>,
    server: &Conninfo,
    start: &BaseBackupStart,
) -> Result<(), BackupError> {
    if start.timeline.get() > 1 {
        let mut connection = ReplicationConnection::connect(server).await?;
        required_wal::archive_history(archive, &mut connection, start.timeline).await?;
        connection.close().await;
    }
    Ok(())
}

/// A backup being taken.
struct RunningBackup {
    reader: Chunker,
    store: Packer,
    hashing: WorkerStage<Vec<CutChunk>, Vec<HashedChunk>>,
    namer: Arc<ChunkNamer>,
    values: Vec<Vec<ChunkSubtreeHash>>,
    pages: PageCounts,
}

/// What became of the pages.
#[derive(Default)]
struct PageCounts {
    checked: u64,
    /// Pages that were being written, by their own word: file, block, and when it was last changed.
    torn: Vec<(usize, u32, Lsn)>,
    /// File and block.
    suspect: Vec<(usize, u32)>,
    /// Pages beyond [`MAX_NOTED_PAGES`].
    unnoted: u64,
}

impl PageCounts {
    fn add(&mut self, file: usize, found: &PageFindings) {
        self.checked = self.checked.saturating_add(found.checked);
        let noted = self.torn.len().saturating_add(self.suspect.len());
        if noted >= MAX_NOTED_PAGES {
            let more = found.torn.len().saturating_add(found.suspect.len());
            self.unnoted = self.unnoted.saturating_add(more as u64);
            return;
        }
        self.torn.extend(found.torn.iter().map(|(block, lsn)| (file, *block, *lsn)));
        self.suspect.extend(found.suspect.iter().map(|block| (file, *block)));
    }

    /// Takes the pages that are in doubt. One that was changed after the backup's end was not read before it: its
    /// header is damaged, too.
    fn take_suspect(&mut self, stop: Lsn) -> Vec<(usize, u32)> {
        let (torn, young): (Vec<_>, Vec<_>) = self.torn.drain(..).partition(|(.., lsn)| *lsn <= stop);
        self.torn = torn;
        self.suspect.extend(young.into_iter().map(|(file, block, _)| (file, block)));
        std::mem::take(&mut self.suspect)
    }
}

/// All that a manifest needs of the files and chunks.
struct BackupContents {
    reader: Chunker,
    stored: PackedChunks,
    pages: PageCounts,
    namer: Arc<ChunkNamer>,
    warnings: ServerWarnings,
}

impl BackupContents {
    fn path_of(&self, file: usize) -> String {
        let entry = self.reader.files.get(file).and_then(|entry| self.reader.entries.get(*entry));
        entry.map(|entry| entry.path.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl RunningBackup {
    fn new(
        rule: Option<ChecksumRule>,
        store: Packer,
        namer: ChunkNamer,
        threads: usize,
    ) -> Result<RunningBackup, BackupError> {
        let namer = Arc::new(namer);
        let for_threads = Arc::clone(&namer);
        let hash =
            move |cuts: Vec<CutChunk>| cuts.into_iter().map(|cut| chunker::hash_chunk(cut, &for_threads)).collect();
        let hashing = WorkerStage::start("hash", threads, BATCHES_IN_FLIGHT, hash)?;
        let (values, pages) = (Vec::new(), PageCounts::default());
        Ok(RunningBackup { reader: Chunker::new(rule), store, hashing, namer, values, pages })
    }

    async fn read_stream(
        self,
        mut stream: BaseBackup,
        start: &BaseBackupStart,
        tell: &watch::Sender<BackupProgress>,
    ) -> Result<(BaseBackupEnd, BackupContents), BackupError> {
        let RunningBackup { mut reader, mut store, hashing, namer, mut values, mut pages } = self;
        let mut ordered = OrderedStage::new(&hashing);
        let total = start.tablespaces.iter().filter_map(|space| space.size_kib).sum::<u64>().saturating_mul(1024);
        let (mut done, mut told, mut cuts) = (0_u64, 0_u64, Vec::with_capacity(CHUNKS_PER_BATCH));
        loop {
            let event = stream.next().await?;
            let ended = match event {
                BaseBackupEvent::End(end) => Some(end),
                BaseBackupEvent::Archive(tablespace) => {
                    reader.begin_archive(tablespace)?;
                    None
                }
                BaseBackupEvent::Data(bytes) => {
                    done = done.saturating_add(bytes.len() as u64);
                    reader.push(bytes, &mut cuts)?;
                    None
                }
                BaseBackupEvent::Manifest | BaseBackupEvent::Progress(_) => None,
            };
            if done.saturating_sub(told) >= PROGRESS_BYTES || ended.is_some() {
                told = done;
                tell.send_replace(BackupProgress::Reading {
                    done,
                    total: total.max(done),
                    stored: store.stored_bytes(),
                });
            }
            if cuts.len() >= CHUNKS_PER_BATCH || ended.is_some() {
                ordered.push(std::mem::replace(&mut cuts, Vec::with_capacity(CHUNKS_PER_BATCH))).await?;
            }
            while ordered.outstanding() >= BATCHES_IN_FLIGHT || ended.is_some() {
                let Some(batch) = ordered.next().await? else { break };
                for hashed in batch {
                    record_chunk(hashed, &mut store, &mut reader, &mut values, &mut pages).await?;
                }
            }
            if let Some(end) = ended {
                let warnings = stream.take_warnings();
                stream.finish().await?.close().await;
                reader.finish()?;
                return Ok((end, BackupContents { reader, stored: store.finish().await?, pages, namer, warnings }));
            }
        }
    }
}

/// Notes a chunk in its file, and closes the file if it was the last.
async fn record_chunk(
    hashed: HashedChunk,
    store: &mut Packer,
    reader: &mut Chunker,
    values: &mut Vec<Vec<ChunkSubtreeHash>>,
    pages: &mut PageCounts,
) -> Result<(), BackupError> {
    let place = store.add_chunk(&hashed).await?;
    pages.add(hashed.file, &hashed.pages);
    if values.len() <= hashed.file {
        values.resize_with(hashed.file.saturating_add(1), Vec::new);
    }
    let entry = reader.files.get(hashed.file).copied().and_then(|entry| reader.entries.get_mut(entry));
    let (Some(values), Some(entry)) = (values.get_mut(hashed.file), entry) else { return Ok(()) };
    let EntryContent::File { len, hash, chunks } = &mut entry.content else { return Ok(()) };
    values.push(hashed.value);
    chunks.push(place);
    if chunks.len() as u64 == len.div_ceil(u64::from(chunks::CHUNK_BYTES)) {
        *hash = chunks::file_hash(values, *len);
        // A file's values are needed until it is whole, no longer.
        *values = Vec::new();
    }
    Ok(())
}

/// What was found out about a backup besides its files.
#[derive(Default)]
struct BackupFindings {
    defects: BackupDefects,
    left_out: Vec<String>,
    torn_pages: u64,
}

/// What the server left out, and which pages are damaged. The archive has the backup's WAL by now.
async fn find_defects(
    archive: &Arc<Archive>,
    server: &Conninfo,
    (expected, rule): (Option<ExpectedFiles>, Option<ChecksumRule>),
    needed: &RequiredWal,
    (start, taken): (&BaseBackupStart, &mut BackupContents),
) -> Result<BackupFindings, BackupError> {
    let places = start
        .tablespaces
        .iter()
        .filter_map(|space| Some(TablespacePlace { oid: space.oid?, location: space.location.as_deref()? }));
    let LeftOut { needed: mut missing, more, unneeded, other } =
        LeftOut::read(&taken.warnings, &places.collect::<Vec<_>>());
    for warning in other {
        tracing::warn!(warning, "the server warned of this during the backup");
    }
    for path in &unneeded {
        tracing::warn!(
            path,
            "this is no plain file or directory, so the server left it out of the backup; keep a copy \
            of what it points to"
        );
    }
    if let Some(expected) = expected {
        let sent = taken.reader.entries.iter().filter_map(|entry| entry.path.to_str()).collect();
        let unsent = expected.missing(server, &sent).await;
        // A directory that is named stands for all that is in it.
        let is_named = |file: &String| missing.iter().any(|named| is_within(file, named));
        let unnamed: Vec<String> = unsent.into_iter().filter(|file| !is_named(file)).collect();
        missing.extend(unnamed);
    }
    let suspect = taken.pages.take_suspect(needed.stop);
    let count = suspect.len();
    let damaged = match rule {
        Some(rule) => {
            let pages = suspect.into_iter().map(|(file, block)| DamagedPage { file: taken.path_of(file), block });
            damaged_pages::damaged_pages(archive, server, rule, needed, pages.collect()).await?
        }
        None => Vec::new(),
    };
    let torn_pages = taken.pages.torn.len().saturating_add(count.saturating_sub(damaged.len())) as u64;
    let defects = BackupDefects::new((missing, more), (damaged, taken.pages.unnoted));
    Ok(BackupFindings { defects, left_out: unneeded, torn_pages })
}

fn is_within(file: &str, directory: &str) -> bool {
    file == directory || file.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn build_summary(
    about: &BackupSource,
    start: &BaseBackupStart,
    end: BaseBackupEnd,
    finished_at: Timestamp,
    taken: &BackupContents,
) -> Result<BackupSummary, BackupError> {
    if end.timeline != start.timeline {
        return Err(BackupError::Promoted { from: start.timeline, to: end.timeline });
    }
    let label_file = taken.reader.backup_label.as_deref().ok_or(BackupError::FileMissing(BackupLabel::FILE))?;
    let backup_label = BackupLabel::parse(label_file)?;
    let control =
        PgControl::parse(taken.reader.control.as_deref().ok_or(BackupError::FileMissing("global/pg_control"))?)?;
    if control.system_id != about.identity.system_id {
        return Err(BackupError::WrongCluster { server: control.system_id, archived: about.identity.system_id });
    }
    let tablespaces = start.tablespaces.iter().filter_map(|space| {
        Some(ManifestTablespace { oid: space.oid?, location: space.location.clone().unwrap_or_default() })
    });
    Ok(BackupSummary {
        format: MANIFEST_FORMAT,
        label: new_label(about.started_at, 1),
        system_id: about.identity.system_id,
        server_version: about.version.clone(),
        major_version: about.major,
        catalog_version: control.catalog_version,
        segment_size: about.segment_size,
        block_size: control.block_size,
        data_checksums: control.data_checksum_version != 0,
        required: control.required,
        from_standby: backup_label.from == Some(BackupFrom::Standby),
        timeline: backup_label.timeline,
        start_lsn: backup_label.start,
        checkpoint_lsn: backup_label.checkpoint,
        stop_lsn: end.stop,
        started_at: about.started_at,
        finished_at,
        tablespaces: tablespaces.collect(),
        logical_bytes: taken.reader.logical_bytes,
        stored_bytes: taken.stored.stored_bytes,
        files: taken.reader.entries.len() as u64,
        chunks: taken.stored.chunks.len() as u64,
        new_chunks: taken.stored.new_chunks,
        pages_checked: taken.pages.checked,
        torn_pages: 0,
        naming_key: taken.namer.id(),
        defects: BackupDefects::default(),
        left_out: Vec::new(),
    })
}

/// Writes the manifest: after this there is a backup.
async fn write_manifest(
    archive: &Arc<Archive>,
    mut summary: BackupSummary,
    taken: BackupContents,
    names: Option<NameList>,
    skipped: &SkippedRepositories,
) -> Result<BackupSummary, BackupError> {
    let BackupContents { reader, stored, .. } = taken;
    packer::require_packs(archive, &stored.packs, skipped).await?;
    let mut manifest = Manifest {
        summary: summary.clone(),
        packs: stored.packs,
        chunks: stored.chunks,
        entries: reader.entries,
        backup_label: reader.backup_label.ok_or(BackupError::FileMissing(BackupLabel::FILE))?,
        tablespace_map: reader.tablespace_map,
    };
    // Directories before what is in them, whatever the order of the archives.
    manifest.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let body = Bytes::from(manifest.to_bytes());
    for attempt in 1.. {
        summary.label = new_label(summary.started_at, attempt);
        let key = archive.layout().backup(&summary.label)?;
        if let Some(names) = &names {
            // One of this label that exists is another backup's, and so is the manifest.
            let _there = archive.put_name_list(&archive.layout().names(&summary.label)?, names, skipped).await?;
        }
        let vault = archive.vault();
        let sealed = vault.seal_object(SealedKind::Manifest, &key, vec![body.clone()], summary.to_bytes()).await?;
        match vault.put_where_not_skipped(&key, &sealed, skipped).await? {
            PutOutcome::Created => break,
            // Another backup began in the same second.
            PutOutcome::Exists => {}
        }
    }
    for error in skipped.errors().into_values() {
        let label = &summary.label;
        tracing::warn!(label, %error, "the backup is not in this repository; it is copied once the repository is back");
    }
    let whole = summary.defects.is_empty();
    tracing::info!(cluster = %archive.cluster(), label = summary.label, whole, "backup stored");
    Ok(summary)
}

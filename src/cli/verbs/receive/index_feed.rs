//! Keeps the index while the receiver runs, on a thread of its own.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use crate::base::error_kind::HasKind;
use crate::base::retry::ErrorClass;
use crate::cli::exit;
use crate::postgres::archive::Archive;
use crate::postgres::archive::reindex::{self, ReindexError, ReindexScope};
use crate::postgres::index::{IndexEntry, WalIndex};
use crate::postgres::receive::{ReceiveEvent, ReceiveObserver};
use crate::postgres::wal::digest::SegmentDigest;

/// Digests that wait for the index. A busy segment's is half a megabyte, so this is some 16 MB; what comes while it
/// is full is read from the repository later.
const INDEX_QUEUE_DIGESTS: usize = 32;

/// How long to wait before the index is opened again if the repositories do not answer.
const OPEN_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Hears what the receiver does: logs it, hands digests to the index, and what is known of the server's clock to
/// whoever takes files.
pub(super) struct IndexFeed {
    queue: Option<SyncSender<(Arc<SegmentDigest>, u64)>>,
    /// Something was archived that did not go through the queue.
    missed: Arc<AtomicBool>,
    worker: Option<std::thread::JoinHandle<()>>,
    note: watch::Sender<Vec<u8>>,
}

/// The index of all clusters, which one process writes: the first receiver that needs it opens it.
#[derive(Clone)]
pub(super) struct SharedIndex {
    dir: PathBuf,
    opened: Arc<Mutex<Option<Arc<WalIndex>>>>,
}

impl SharedIndex {
    pub(super) fn new(dir: PathBuf) -> SharedIndex {
        SharedIndex { dir, opened: Arc::default() }
    }

    /// The index, caught up with this archive. Blocks.
    fn open(&self, archive: &Arc<Archive>, runtime: &tokio::runtime::Handle) -> Result<Arc<WalIndex>, ReindexError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = &*opened {
            let index = Arc::clone(index);
            drop(opened);
            runtime.block_on(reindex::catch_up_index(archive, &index, ReindexScope::New))?;
            return Ok(index);
        }
        let (index, _) = runtime.block_on(reindex::open_index(archive, &self.dir))?;
        Ok(Arc::clone(opened.insert(index)))
    }
}

impl IndexFeed {
    pub(super) fn start(archive: Arc<Archive>, shared: SharedIndex, note: watch::Sender<Vec<u8>>) -> IndexFeed {
        let (queue, digests) = sync_channel(INDEX_QUEUE_DIGESTS);
        let missed = Arc::new(AtomicBool::new(false));
        let (flag, runtime) = (Arc::clone(&missed), tokio::runtime::Handle::current());
        let work = move || {
            if let Err(error) = run_index_thread(&archive, &shared, &digests, &flag, &runtime) {
                let error = exit::error_line(&error);
                tracing::warn!(error, "the index is not kept up to date; commands will read the repository instead");
            }
        };
        let worker = std::thread::Builder::new().name("index".to_owned()).spawn(work);
        let worker = worker.inspect_err(|error| tracing::warn!(%error, "the index is not kept up to date")).ok();
        IndexFeed { queue: Some(queue), missed, worker, note }
    }

    /// Lets the index take in what waits.
    pub(super) async fn finish(mut self) {
        drop(self.queue.take());
        if let Some(worker) = self.worker.take() {
            // Its panic has been reported by the hook.
            drop(tokio::task::spawn_blocking(move || worker.join()).await);
        }
    }
}

impl ReceiveObserver for IndexFeed {
    fn event(&self, event: ReceiveEvent) {
        match event {
            ReceiveEvent::Archived { name, ingested } => {
                tracing::debug!(segment = %name, outcome = ?ingested.outcome, stored_bytes = ingested.stored_bytes, "archived");
                if let Some(alarm) = &ingested.alarm {
                    tracing::error!(segment = %name, %alarm, "archived, but somebody should look at it");
                }
                let queued = match (ingested.digest, &self.queue) {
                    (Some(digest), Some(queue)) => queue.try_send((digest, ingested.stored_bytes)).is_ok(),
                    _ => false,
                };
                if !queued {
                    self.missed.store(true, Ordering::Relaxed);
                }
            }
            ReceiveEvent::Timeline { timeline, from } => {
                tracing::info!(%timeline, %from, "the server is on a new timeline")
            }
            ReceiveEvent::Gap(gap) => {
                tracing::error!(timeline = %gap.timeline, from = %gap.start, to = %gap.end, reason = gap.reason, "WAL is lost; take a new backup");
            }
            ReceiveEvent::Clock { note } => drop(self.note.send_replace(note)),
            ReceiveEvent::Acknowledged { until } => tracing::trace!(%until, "acknowledged"),
            // The receiver logs these itself.
            ReceiveEvent::Streaming { .. } | ReceiveEvent::Disconnected { .. } => {}
        }
    }
}

/// The index's thread: first what is in the repository already, then what comes.
fn run_index_thread(
    archive: &Arc<Archive>,
    shared: &SharedIndex,
    digests: &Receiver<(Arc<SegmentDigest>, u64)>,
    missed: &AtomicBool,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<()> {
    let index = loop {
        match shared.open(archive, runtime) {
            Ok(index) => break index,
            // A repository that does not answer now may do so later. Segments of the meantime are read from it then.
            Err(error) if may_pass(archive, &error) => {
                tracing::debug!(%error, "the index cannot be opened yet");
                if digests.recv_timeout(OPEN_RETRY_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                    return Ok(());
                }
                missed.store(true, Ordering::Relaxed);
            }
            Err(error) => return Err(error).context("cannot open the index"),
        }
    };
    if !index.is_writer() {
        anyhow::bail!("another walkeep process writes the index in {}", shared.dir.display());
    }
    let cluster = archive.cluster().as_str();
    while let Ok(first) = digests.recv() {
        let batch: Vec<(Arc<SegmentDigest>, u64)> =
            std::iter::once(first).chain(digests.try_iter().take(INDEX_QUEUE_DIGESTS)).collect();
        index.ingest(cluster, batch.iter().map(|(digest, stored)| IndexEntry { digest, stored: *stored }))?;
        if missed.swap(false, Ordering::Relaxed) {
            catch_up(archive, &index, runtime)?;
        }
    }
    if missed.swap(false, Ordering::Relaxed) {
        catch_up(archive, &index, runtime)?;
    }
    index.flush().context("cannot write the index")
}

fn catch_up(archive: &Arc<Archive>, index: &Arc<WalIndex>, runtime: &tokio::runtime::Handle) -> anyhow::Result<()> {
    match runtime.block_on(reindex::catch_up_index(archive, index, ReindexScope::New)) {
        Err(error) if may_pass(archive, &error) => {
            tracing::debug!(%error, "the index does not catch up yet");
            Ok(())
        }
        caught_up => caught_up.map(drop).context("the index cannot catch up"),
    }
}

/// Whether a repository is in the way that may be back later.
fn may_pass(archive: &Archive, error: &ReindexError) -> bool {
    error.kind().class() == ErrorClass::Transient || archive.vault().unreachable().next().is_some()
}

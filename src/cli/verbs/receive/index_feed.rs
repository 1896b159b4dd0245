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
use crate::postgres::index::{IndexEntry, IndexError, WalIndex};
use crate::postgres::receive::{ReceiveEvent, ReceiveObserver};
use crate::postgres::wal::digest::SegmentDigest;

/// Digests that wait for the index. A busy segment's is half a megabyte, so this is some 16 MB; what comes while it
/// is full is read from the repository later.
const INDEX_QUEUE_DIGESTS: usize = 32;

/// How long to wait before the index is opened again, if it cannot be written or the repositories do not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

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
        if !index.is_writer() {
            return Err(IndexError::Locked(self.dir.clone()).into());
        }
        Ok(Arc::clone(opened.insert(index)))
    }
}

impl IndexFeed {
    pub(super) fn start(archive: Arc<Archive>, shared: SharedIndex, note: watch::Sender<Vec<u8>>) -> IndexFeed {
        let (queue, digests) = sync_channel(INDEX_QUEUE_DIGESTS);
        let missed = Arc::new(AtomicBool::new(false));
        let (flag, runtime) = (Arc::clone(&missed), tokio::runtime::Handle::current());
        let work = move || run_index_thread(&archive, &shared, &digests, &flag, &runtime);
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

/// The index's thread. The index is derived, so nothing that is wrong with it ends the receiver, and nothing ends this
/// thread before the receiver: a full disk has room again, and another process that writes the index ends.
fn run_index_thread(
    archive: &Arc<Archive>,
    shared: &SharedIndex,
    digests: &Receiver<(Arc<SegmentDigest>, u64)>,
    missed: &AtomicBool,
    runtime: &tokio::runtime::Handle,
) {
    let mut reported = None;
    while let Err(error) = keep_index(archive, shared, digests, missed, runtime, &mut reported) {
        let error = exit::error_line(&error);
        if reported.as_ref() != Some(&error) {
            tracing::warn!(
                error,
                "the index is not kept up to date; commands read the repository instead, and walkeep tries again"
            );
            reported = Some(error);
        }
        // Segments of the meantime are read from a repository then.
        if digests.recv_timeout(RETRY_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
        missed.store(true, Ordering::Relaxed);
    }
}

/// Takes in what is in the repository already, then what arrives, until the receiver ends. Forgets what was reported
/// once it works.
fn keep_index(
    archive: &Arc<Archive>,
    shared: &SharedIndex,
    digests: &Receiver<(Arc<SegmentDigest>, u64)>,
    missed: &AtomicBool,
    runtime: &tokio::runtime::Handle,
    reported: &mut Option<String>,
) -> anyhow::Result<()> {
    let index = loop {
        match shared.open(archive, runtime) {
            Ok(index) => break index,
            // A repository that does not answer now may do so later.
            Err(error) if !is_of_index(&error) && may_pass(archive, &error) => {
                tracing::debug!(%error, "the index cannot be opened yet");
                if digests.recv_timeout(RETRY_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                    return Ok(());
                }
                missed.store(true, Ordering::Relaxed);
            }
            Err(error) => return Err(error).context("cannot open the index"),
        }
    };
    if reported.take().is_some() {
        tracing::info!("the index is kept up to date again");
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

/// Whether the index itself is in the way.
const fn is_of_index(error: &ReindexError) -> bool {
    matches!(error, ReindexError::Index(_))
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

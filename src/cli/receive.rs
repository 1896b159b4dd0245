//! `walkeep receive`: the receiver in the foreground, with what belongs around it.
//!
//! While it runs, `archive-push` hands its files over to it through the control socket, and it keeps the index. Neither can hold the
//! receiver up: the index takes in what it can, and reads the rest from the repository when it has time. A segment that is handed over gets the note of
//! the server's clock that the receiver's own would have, because whichever is first stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::CliContext;
use super::args::ReceiveArgs;
use super::exit::{CliError, CliExitCode};
use super::open;
use crate::base::retry::ErrorClass;
use crate::config::NamedStore;
use crate::control::{ControlHandler, ControlListener, ControlRequest, ControlResponse};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::IngestOutcome;
use crate::postgres::archive::reindex::{self, ReindexScope};
use crate::postgres::archive_push;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::index::{IndexEntry, WalIndex};
use crate::postgres::receive::{self, ReceiveEvent, ReceiveObserver, ReceiveSettings};
use crate::postgres::wal::digest::SegmentDigest;

/// Digests that wait for the index. A busy segment's is half a megabyte, so this is some 16 MB; what comes while it is full is read from the
/// repository later.
const INDEX_QUEUE_DIGESTS: usize = 32;

pub(super) async fn run(args: ReceiveArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = match config.find_named(args.cluster.as_deref())? {
        NamedStore::Cluster(cluster) => cluster,
        NamedStore::Instance(_) if args.end_lsn.is_some() => {
            return Err(CliError::usage("--end-lsn is a position of PostgreSQL; a Redis instance has none").into());
        }
        NamedStore::Instance(instance) => {
            return super::verbs::receive::redis::run(&config, instance, around).await;
        }
    };
    let Some(conninfo) = cluster.conninfo(&around.environment)? else {
        let message = format!(
            "[postgres.{}] has no connection to receive from; add one to {}",
            cluster.name,
            config.path.display()
        );
        return Err(CliError::usage(message).into());
    };
    let end = args.end_lsn.as_deref().map(str::parse::<Lsn>).transpose();
    let end = end.map_err(|why| CliError::usage(format!("--end-lsn: {why}")))?;
    let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
    let settings = ReceiveSettings {
        acknowledge: cluster.acknowledge,
        copy_every: cluster.copy_every,
        end,
        ..ReceiveSettings::new(conninfo, Some(cluster.slot.clone()), config.state_dir.clone())
    };
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    let (note, noted) = watch::channel(Vec::new());
    let service = serve_control_socket(&archive, config.state_dir.clone(), noted);
    let indexer = IndexFeed::start(Arc::clone(&archive), open::index_dir(&config), note);
    let finished = receive::receive(&archive, &settings, &indexer, stopped).await;
    if let Some(service) = service {
        service.abort();
    }
    indexer.finish().await;
    let finished = finished.with_context(|| format!("receiving {} has ended", cluster.name))?;
    tracing::info!(until = %finished.until, timeline = %finished.timeline, "everything up to here is safe");
    if let (Some(end), false) = (end, finished.reached) {
        let message = format!("stopped at {}, before {end} was archived", finished.until);
        return Err(CliError { code: CliExitCode::Failed, message }.into());
    }
    Ok(CliExitCode::Done)
}

/// Ends the receiver cleanly at the first SIGINT or SIGTERM.
pub(super) fn stop_on_signal(stop: watch::Sender<bool>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        tracing::info!("ending: what is under way is finished first");
        // Nobody listens if the receiver has ended by itself.
        stop.send_replace(true);
        stop.closed().await;
    })
}

/// Takes files from `archive-push`. Archiving does not depend on it: without, each push archives its file itself.
fn serve_control_socket(
    archive: &Arc<Archive>,
    state_dir: PathBuf,
    noted: watch::Receiver<Vec<u8>>,
) -> Option<tokio::task::JoinHandle<()>> {
    let listener = match ControlListener::bind(&state_dir) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "archive-push will do its work without this receiver");
            return None;
        }
    };
    let (handler, clock) =
        (Arc::new(PushHandler { archive: Arc::clone(archive), noted }), Arc::clone(archive.vault().clock()));
    Some(tokio::spawn(async move { listener.serve(handler, clock).await }))
}

struct PushHandler {
    archive: Arc<Archive>,
    /// What the receiver knows of the server's clock.
    noted: watch::Receiver<Vec<u8>>,
}

impl ControlHandler for PushHandler {
    async fn handle(&self, request: ControlRequest) -> ControlResponse {
        let ours = self.archive.cluster().as_str();
        match request {
            ControlRequest::Ping => {
                ControlResponse::Pong { version: env!("CARGO_PKG_VERSION").to_owned(), clusters: vec![ours.to_owned()] }
            }
            ControlRequest::Push { cluster, path, name } if cluster == ours => {
                self.archive_pushed_file(&path, &name).await
            }
            ControlRequest::Push { .. } | ControlRequest::Status => ControlResponse::NotMine,
        }
    }
}

impl PushHandler {
    async fn archive_pushed_file(&self, path: &Path, name: &str) -> ControlResponse {
        let note = self.noted.borrow().clone();
        match archive_push::archive_push(&self.archive, path, name, &note).await {
            Ok(ingested) => {
                if let Some(alarm) = &ingested.alarm {
                    tracing::error!(file = name, %alarm, "archived, but somebody should look at it");
                }
                ControlResponse::Pushed { identical: ingested.outcome == IngestOutcome::Identical }
            }
            Err(error) => {
                let transient = error.class() == ErrorClass::Transient;
                let why = super::exit::error_line(&error.into());
                tracing::warn!(file = name, error = why, "archive-push was refused");
                ControlResponse::Refused { why, transient }
            }
        }
    }
}

/// Hears what the receiver does: logs it, hands digests to the index, and what is known of the server's clock to whoever takes files.
struct IndexFeed {
    queue: Option<SyncSender<(Arc<SegmentDigest>, u64)>>,
    /// Something was archived that did not go through the queue.
    missed: Arc<AtomicBool>,
    worker: Option<std::thread::JoinHandle<()>>,
    note: watch::Sender<Vec<u8>>,
}

impl IndexFeed {
    fn start(archive: Arc<Archive>, dir: PathBuf, note: watch::Sender<Vec<u8>>) -> IndexFeed {
        let (queue, digests) = sync_channel(INDEX_QUEUE_DIGESTS);
        let missed = Arc::new(AtomicBool::new(false));
        let (flag, runtime) = (Arc::clone(&missed), tokio::runtime::Handle::current());
        let work = move || {
            if let Err(error) = run_index_thread(&archive, &dir, &digests, &flag, &runtime) {
                let error = super::exit::error_line(&error);
                tracing::warn!(error, "the index is not kept up to date; commands will read the repository instead");
            }
        };
        let worker = std::thread::Builder::new().name("index".to_owned()).spawn(work);
        let worker = worker.inspect_err(|error| tracing::warn!(%error, "the index is not kept up to date")).ok();
        IndexFeed { queue: Some(queue), missed, worker, note }
    }

    /// Lets the index take in what waits.
    async fn finish(mut self) {
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
    dir: &Path,
    digests: &Receiver<(Arc<SegmentDigest>, u64)>,
    missed: &AtomicBool,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<()> {
    let (index, _) = runtime.block_on(reindex::open_index(archive, dir)).context("cannot open the index")?;
    if !index.is_writer() {
        anyhow::bail!("another walkeep process writes the index in {}", dir.display());
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
    runtime
        .block_on(reindex::catch_up_index(archive, index, ReindexScope::New))
        .context("the index cannot catch up")?;
    Ok(())
}

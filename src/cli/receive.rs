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

use super::Surroundings;
use super::args::Receive;
use super::exit::{Code, Failure};
use super::open;
use crate::base::retry::Class;
use crate::config::Meant;
use crate::control::{Answer, Handler, Listener, Request};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::Outcome;
use crate::postgres::archive::reindex::{self, Scope};
use crate::postgres::archive_push;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::index::{Entry, Index};
use crate::postgres::receive::{self, Event, Observer, Settings};
use crate::postgres::wal::digest::Digest;

/// Digests that wait for the index. A busy segment's is half a megabyte, so this is some 16 MB; what comes while it is full is read from the
/// repository later.
const INDEX_QUEUE: usize = 32;

pub(super) async fn run(args: Receive, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let cluster = match config.meant(args.cluster.as_deref())? {
        Meant::Cluster(cluster) => cluster,
        Meant::Instance(_) if args.end_lsn.is_some() => {
            return Err(Failure::usage("--end-lsn is a position of PostgreSQL; a Redis instance has none").into());
        }
        Meant::Instance(instance) => return super::redis::receive(&config, instance, around).await,
    };
    let Some(conninfo) = cluster.conninfo(&around.environment)? else {
        let message = format!(
            "[postgres.{}] has no connection to receive from; add one to {}",
            cluster.name,
            config.path.display()
        );
        return Err(Failure::usage(message).into());
    };
    let end = args.end_lsn.as_deref().map(str::parse::<Lsn>).transpose();
    let end = end.map_err(|why| Failure::usage(format!("--end-lsn: {why}")))?;
    let archive = Arc::new(open::archive(&config, cluster, around).await?);
    let settings = Settings {
        acknowledge: cluster.acknowledge,
        copy_every: cluster.copy_every,
        end,
        ..Settings::new(conninfo, Some(cluster.slot.clone()), config.state_dir.clone())
    };
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    let (note, noted) = watch::channel(Vec::new());
    let service = serve(&archive, config.state_dir.clone(), noted);
    let indexer = Indexer::start(Arc::clone(&archive), open::index_dir(&config), note);
    let finished = receive::run(&archive, &settings, &indexer, stopped).await;
    if let Some(service) = service {
        service.abort();
    }
    indexer.finish().await;
    let finished = finished.with_context(|| format!("receiving {} has ended", cluster.name))?;
    tracing::info!(until = %finished.until, timeline = %finished.timeline, "everything up to here is safe");
    if let (Some(end), false) = (end, finished.reached) {
        let message = format!("stopped at {}, before {end} was archived", finished.until);
        return Err(Failure { code: Code::Failed, message }.into());
    }
    Ok(Code::Done)
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
fn serve(
    archive: &Arc<Archive>,
    state_dir: PathBuf,
    noted: watch::Receiver<Vec<u8>>,
) -> Option<tokio::task::JoinHandle<()>> {
    let listener = match Listener::bind(&state_dir) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "archive-push will do its work without this receiver");
            return None;
        }
    };
    let (handler, clock) =
        (Arc::new(Takes { archive: Arc::clone(archive), noted }), Arc::clone(archive.vault().clock()));
    Some(tokio::spawn(async move { listener.serve(handler, clock).await }))
}

struct Takes {
    archive: Arc<Archive>,
    /// What the receiver knows of the server's clock.
    noted: watch::Receiver<Vec<u8>>,
}

impl Handler for Takes {
    async fn handle(&self, request: Request) -> Answer {
        let ours = self.archive.cluster().as_str();
        match request {
            Request::Ping => {
                Answer::Pong { version: env!("CARGO_PKG_VERSION").to_owned(), clusters: vec![ours.to_owned()] }
            }
            Request::Push { cluster, path, name } if cluster == ours => self.push(&path, &name).await,
            Request::Push { .. } | Request::Status => Answer::NotMine,
        }
    }
}

impl Takes {
    async fn push(&self, path: &Path, name: &str) -> Answer {
        let note = self.noted.borrow().clone();
        match archive_push::push(&self.archive, path, name, &note).await {
            Ok(ingested) => {
                if let Some(alarm) = &ingested.alarm {
                    tracing::error!(file = name, %alarm, "archived, but somebody should look at it");
                }
                Answer::Pushed { identical: ingested.outcome == Outcome::Identical }
            }
            Err(error) => {
                let transient = error.class() == Class::Transient;
                let why = super::exit::explain(&error.into());
                tracing::warn!(file = name, error = why, "archive-push was refused");
                Answer::Refused { why, transient }
            }
        }
    }
}

/// Hears what the receiver does: logs it, hands digests to the index, and what is known of the server's clock to whoever takes files.
struct Indexer {
    queue: Option<SyncSender<(Arc<Digest>, u64)>>,
    /// Something was archived that did not go through the queue.
    missed: Arc<AtomicBool>,
    worker: Option<std::thread::JoinHandle<()>>,
    note: watch::Sender<Vec<u8>>,
}

impl Indexer {
    fn start(archive: Arc<Archive>, dir: PathBuf, note: watch::Sender<Vec<u8>>) -> Indexer {
        let (queue, digests) = sync_channel(INDEX_QUEUE);
        let missed = Arc::new(AtomicBool::new(false));
        let (flag, runtime) = (Arc::clone(&missed), tokio::runtime::Handle::current());
        let work = move || {
            if let Err(error) = keep_index(&archive, &dir, &digests, &flag, &runtime) {
                let error = super::exit::explain(&error);
                tracing::warn!(error, "the index is not kept up to date; commands will read the repository instead");
            }
        };
        let worker = std::thread::Builder::new().name("index".to_owned()).spawn(work);
        let worker = worker.inspect_err(|error| tracing::warn!(%error, "the index is not kept up to date")).ok();
        Indexer { queue: Some(queue), missed, worker, note }
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

impl Observer for Indexer {
    fn event(&self, event: Event) {
        match event {
            Event::Archived { name, ingested } => {
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
            Event::Timeline { timeline, from } => tracing::info!(%timeline, %from, "the server is on a new timeline"),
            Event::Gap(gap) => {
                tracing::error!(timeline = %gap.timeline, from = %gap.start, to = %gap.end, reason = gap.reason, "WAL is lost; take a new backup");
            }
            Event::Clock { note } => drop(self.note.send_replace(note)),
            Event::Acknowledged { until } => tracing::trace!(%until, "acknowledged"),
            // The receiver logs these itself.
            Event::Streaming { .. } | Event::Disconnected { .. } => {}
        }
    }
}

/// The index's thread: first what is in the repository already, then what comes.
fn keep_index(
    archive: &Arc<Archive>,
    dir: &Path,
    digests: &Receiver<(Arc<Digest>, u64)>,
    missed: &AtomicBool,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<()> {
    let (index, _) = runtime.block_on(reindex::open(archive, dir)).context("cannot open the index")?;
    if !index.is_writer() {
        anyhow::bail!("another walkeep process writes the index in {}", dir.display());
    }
    let cluster = archive.cluster().as_str();
    while let Ok(first) = digests.recv() {
        let batch: Vec<(Arc<Digest>, u64)> =
            std::iter::once(first).chain(digests.try_iter().take(INDEX_QUEUE)).collect();
        index.ingest(cluster, batch.iter().map(|(digest, stored)| Entry { digest, stored: *stored }))?;
        if missed.swap(false, Ordering::Relaxed) {
            catch_up(archive, &index, runtime)?;
        }
    }
    if missed.swap(false, Ordering::Relaxed) {
        catch_up(archive, &index, runtime)?;
    }
    index.flush().context("cannot write the index")
}

fn catch_up(archive: &Arc<Archive>, index: &Arc<Index>, runtime: &tokio::runtime::Handle) -> anyhow::Result<()> {
    runtime.block_on(reindex::catch_up(archive, index, Scope::New)).context("the index cannot catch up")?;
    Ok(())
}

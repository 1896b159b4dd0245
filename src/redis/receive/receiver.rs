//! The state of a receiver, and what each of its steps does with it: the spool's files, breaks, and the snapshot beside
//! the stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::acknowledge::acknowledgeable_offset;
use super::base_snapshot::{BaseSnapshot, SnapshotTask, SnapshotTaskResult};
use super::position::ReceivePosition;
use super::settings::{ReceiveEvent, ReceiveObserver, ReceiveSettings};
use super::stretch_uploads::StretchUploads;
use crate::base::blocking::run_blocking;
use crate::base::clock::{Clock, timeout};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::snapshot::take::{BegunSnapshot, SnapshotSource, take_snapshot};
use crate::redis::archive::stream::StretchName;
use crate::redis::archive::stream::StretchStart;
use crate::redis::archive::stream::spool::{Spool, UnfinishedStretch};
use crate::redis::archive::{Archive, Gap, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::SkippedRepositories;
use crate::vault::spool::SpoolError;

/// How long a clean end may wait for what is on its way to the repositories; the rest stays spooled.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of where the stream ends.
#[derive(Debug, Default)]
pub(super) struct ResumeState {
    /// All stretches in the spool, once they were read.
    pub(super) spooled: Option<Vec<StreamStretch>>,
    /// Whether the position is found.
    pub(super) resumed: bool,
    /// Histories of whose stretches none opens, and where the last of them begins.
    pub(super) unreadable_ends: Vec<(ReplicationId, u64)>,
}

pub(super) struct Receiver<'a> {
    pub(super) instance: Archive,
    pub(super) settings: &'a ReceiveSettings,
    pub(super) observer: &'a dyn ReceiveObserver,
    pub(super) shutdown: watch::Receiver<bool>,
    pub(super) spool: Spool,
    pub(super) uploads: StretchUploads,
    /// What an earlier run left.
    pub(super) resume_state: ResumeState,
    pub(super) position: Option<ReceivePosition>,
    /// The stretch that was under way when following ended, until it is read again.
    pub(super) unclosed_file: Option<StretchName>,
    /// When the server was asked how far it is.
    pub(super) offset_asked_at: Duration,
    /// The snapshot that leads to the position.
    pub(super) base_snapshot: BaseSnapshot,
}

impl Receiver<'_> {
    /// What is durable of a stretch is what is there when it is read from the disk again, after a sync that did not
    /// fail; the rest is asked for once more. Until then nothing is received: the position is acknowledged as soon as
    /// it is followed from.
    pub(super) async fn put_finished_file(&mut self, name: StretchName) -> Result<(), SnapshotError> {
        let spool = self.spool.clone();
        let read = run_blocking(move || {
            spool.recover(name)?;
            spool.end_with_whole_transaction(name, None)?;
            Ok::<_, SpoolError>(spool.read(name)?.map(|spooled| spooled.into_stretch().0))
        });
        let stretch = read.await??;
        self.unclosed_file = None;
        let Some(stretch) = stretch else { return Ok(()) };
        self.position = Some(ReceivePosition::from_stretch(&stretch));
        // An empty one is begun again under the same name, so it must not be on its way then.
        if stretch.first < stretch.last {
            self.uploads.enqueue(name);
        }
        Ok(())
    }

    /// Begins the file of a stretch, unless there is one of that name with commands that are in no repository yet.
    pub(super) async fn begin_stretch_file(
        &mut self,
        beginning: StretchStart,
    ) -> Result<UnfinishedStretch, SnapshotError> {
        let name = beginning.name();
        let on_its_way = SnapshotError::StillUploading { replid: name.replid, first: name.first };
        if self.uploads.is_uploading(name) {
            return Err(on_its_way);
        }
        let spool = self.spool.clone();
        let begun = run_blocking(move || {
            let there = spool.read(name)?.map(|spooled| spooled.into_stretch().0);
            match there {
                Some(stretch) if stretch.first < stretch.last => Ok(None),
                _ => {
                    spool.discard(name)?;
                    spool.begin(beginning).map(Some)
                }
            }
        });
        let begun = begun.await??;
        begun.ok_or_else(|| {
            self.uploads.enqueue(name);
            on_its_way
        })
    }

    /// What may be acknowledged of what is durable here ([`acknowledgeable_offset`]).
    pub(super) fn acknowledgeable_offset(&self, durable: u64) -> u64 {
        acknowledgeable_offset(durable, self.base_snapshot.has_snapshot)
    }

    /// The parts that are waited for at once.
    pub(super) fn split_wait_sources(
        &mut self,
    ) -> (&mut StretchUploads, &mut Option<SnapshotTask>, &mut watch::Receiver<bool>) {
        (&mut self.uploads, &mut self.base_snapshot.attempt, &mut self.shutdown)
    }

    /// Records a break where that is possible, and later in the other repositories.
    pub(super) async fn record_gap_everywhere(&mut self, gap: &Gap) -> Result<(), SnapshotError> {
        let absent = SkippedRepositories::new(self.uploads.unavailable());
        self.instance.record_gap(gap, &absent).await?;
        absent.errors().into_keys().for_each(|place| self.uploads.enqueue_gap(place, gap));
        self.observer.event(ReceiveEvent::Gap(gap));
        Ok(())
    }

    pub(super) async fn pause_before_retry(&mut self, clock: &dyn Clock, pause: Duration) -> Result<(), SnapshotError> {
        let end = clock.elapsed().saturating_add(pause);
        loop {
            let left = end.saturating_sub(clock.elapsed());
            if left.is_zero() || *self.shutdown.borrow() {
                return Ok(());
            }
            tokio::select! {
                stored = self.uploads.next_stored() => self.observer.event(ReceiveEvent::Stored(&stored?)),
                () = clock.sleep(left) => return Ok(()),
                _ = self.shutdown.changed() => return Ok(()),
            }
        }
    }

    /// Lets what is on its way arrive.
    pub(super) async fn await_uploads(&mut self, clock: &dyn Clock) {
        self.base_snapshot.reset();
        let end = clock.elapsed().saturating_add(SHUTDOWN_TIMEOUT);
        while self.uploads.outstanding_count() > 0 {
            let left = end.saturating_sub(clock.elapsed());
            match timeout(clock, left, self.uploads.next_stored()).await {
                Some(Ok(stored)) => self.observer.event(ReceiveEvent::Stored(&stored)),
                Some(Err(_)) | None => break,
            }
        }
    }

    /// Begins a snapshot beside the stream.
    pub(super) fn begin_base_snapshot(&mut self) -> oneshot::Receiver<BegunSnapshot> {
        let (begun, hears) = oneshot::channel();
        let (instance, source) = (self.instance.clone(), self.settings.source.clone());
        let absent = Arc::new(SkippedRepositories::new(self.uploads.unavailable()));
        let from_master = self.base_snapshot.last_attempt_failed;
        let take = async move {
            let input = if from_master { SnapshotSource::Master(&source) } else { SnapshotSource::Server(&source) };
            take_snapshot(&instance, input, Some(begun), &absent, &mut |_| {}).await
        };
        self.base_snapshot.attempt = Some(tokio::spawn(take));
        hears
    }

    /// Why the snapshot under way came to nothing.
    pub(super) async fn base_snapshot_error(&mut self) -> SnapshotError {
        match self.base_snapshot.attempt.take() {
            Some(taking) => match taking.await {
                Ok(Err(error)) => error,
                Ok(Ok(_)) | Err(_) => SnapshotError::WorkerPanicked,
            },
            None => SnapshotError::WorkerPanicked,
        }
    }

    /// The snapshot under way has ended, well or not.
    pub(super) fn finish_base_snapshot(&mut self, taken: SnapshotTaskResult, now: Duration) {
        self.uploads.look_for_lacking();
        if let Some(snapshot) = self.base_snapshot.finish_attempt(taken, now) {
            self.observer.event(ReceiveEvent::Snapshot(&snapshot));
        }
    }

    /// The snapshot under way; never ready if there is none.
    pub(super) async fn base_snapshot(taking: &mut Option<SnapshotTask>) -> SnapshotTaskResult {
        match taking {
            Some(taking) => taking.await,
            None => std::future::pending().await,
        }
    }

    /// Begins a snapshot if there is none to begin with, none under way, and the time for the next attempt has come.
    pub(super) async fn retry_base_snapshot(&mut self, now: Duration) {
        self.base_snapshot.collect_search_result().await;
        if !self.base_snapshot.is_due(now) {
            return;
        }
        drop(self.begin_base_snapshot());
    }
}

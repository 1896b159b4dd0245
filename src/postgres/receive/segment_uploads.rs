//! Whole segments on their way into the repository: checked and sealed on the threads of a stage, then put; several at
//! once, so that one is compressed while another is synced.
//!
//! A segment is done when the required repositories have it ([`super::followers`]). While they do not take it, segments
//! wait here, as many as the budget allows, and then in the spool.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::base::blocking::run_blocking;
use crate::base::clock::timeout;
use crate::base::pipeline::WorkerStage;
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::{
    IngestError, Ingested, NotedSegment, PreparedSegment, prepare_segment_with_note,
};
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::vault::seal::CompressionLevel;
use crate::vault::seal::compress::AdaptiveLevel;

use super::error::ReceiveError;
use super::followers::Followers;
use super::server_clock::ServerClockNotes;

/// Pauses between attempts at a repository that does not take a segment. For ever: the WAL is safe in the spool or
/// still on the server.
const UPLOAD_RETRY: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(200), longest: Duration::from_secs(30), total: None };

/// A segment that takes longer to put is stuck: what it holds goes to the spool, so that commits don't wait for the
/// repository.
const STUCK_AFTER: Duration = Duration::from_secs(3);

/// Sealed segments that may be on their way beside those in memory: while one is synced, others are sealed. At the
/// fastest level each has half of its segment's size.
const MAX_SEALED_SEGMENTS: usize = 2;

/// How much there is to do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UploadLoad {
    /// Segments in memory that are not sealed yet.
    plain: usize,
    /// Segments that the repository does not take.
    stuck: usize,
}

/// One segment to check and seal.
struct SealJob {
    name: SegmentName,
    bytes: Bytes,
    level: CompressionLevel,
    /// What is said with it.
    note: Vec<u8>,
}

/// A job's outcome, and its bytes, whose memory the next segment may have.
type SealStage = WorkerStage<SealJob, (Result<PreparedSegment, IngestError>, Bytes)>;

/// What came of a segment.
#[derive(Debug)]
pub(super) struct UploadedSegment {
    /// Which segment.
    pub(super) name: SegmentName,
    /// It is in every required repository, or never will be.
    pub(super) result: Result<Ingested, ReceiveError>,
}

/// Segments on their way.
pub(super) struct SegmentUploads {
    archive: Arc<Archive>,
    spool: Spool,
    size: SegmentSize,
    work: Arc<SealStage>,
    tasks: JoinSet<UploadedSegment>,
    /// Whole segments in the spool whose turn has not come.
    waiting: VecDeque<SegmentName>,
    /// Segments that may be in memory, waiting to be sealed or being sealed.
    limit: usize,
    adaptive: Option<AdaptiveLevel>,
    load: watch::Sender<UploadLoad>,
    followers: Arc<Followers>,
    /// Whose WAL it is.
    server: String,
    /// What is said with each segment of the server's clock.
    pub(super) clocks: ServerClockNotes,
    /// Memory of segments that are sealed.
    spare: (mpsc::UnboundedSender<Bytes>, mpsc::UnboundedReceiver<Bytes>),
}

impl std::fmt::Debug for SegmentUploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploads")
            .field("under_way", &self.tasks.len())
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

impl SegmentUploads {
    /// `budget` bytes of segments may be in memory at once; at least one segment is.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub(super) fn start(
        archive: &Arc<Archive>,
        spool: Spool,
        size: SegmentSize,
        budget: u64,
        followers: Followers,
        server: String,
    ) -> io::Result<SegmentUploads> {
        let followers = Arc::new(followers);
        let threads = archive.vault().threads().clamp(1, 8);
        let limit = usize::try_from(budget / size.get()).unwrap_or(usize::MAX).clamp(1, threads + 1);
        let for_work = Arc::clone(archive);
        // Each job digests on a thread of its own while it seals on this one.
        let work = WorkerStage::start("seal", threads.min(limit), limit, move |job: SealJob| {
            let segment = NotedSegment { name: job.name, bytes: &job.bytes, note: &job.note };
            (prepare_segment_with_note(&for_work, segment, job.level, 1), job.bytes)
        })?;
        let adaptive = matches!(archive.vault().level(), CompressionLevel::Auto).then(AdaptiveLevel::new);
        Ok(SegmentUploads {
            archive: Arc::clone(archive),
            spool,
            size,
            work: Arc::new(work),
            tasks: JoinSet::new(),
            waiting: VecDeque::new(),
            limit,
            adaptive,
            load: watch::Sender::new(UploadLoad::default()),
            followers,
            server,
            clocks: ServerClockNotes::default(),
            // No more can be in it than segments were under way.
            spare: mpsc::unbounded_channel(),
        })
    }

    /// Whether another segment may be kept in memory.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.may_start()
    }

    fn may_start(&self) -> bool {
        self.load.borrow().plain < self.limit && self.tasks.len() < self.limit + MAX_SEALED_SEGMENTS
    }

    /// Whether the repository does not take what is under way, so that the spool must.
    pub(super) fn is_stuck(&self) -> bool {
        self.load.borrow().stuck > 0
    }

    /// Hears when there may be room again, or something is stuck.
    pub(super) fn subscribe_load(&self) -> watch::Receiver<UploadLoad> {
        self.load.subscribe()
    }

    /// Segments that are not in the repository yet.
    pub(super) fn outstanding(&self) -> usize {
        self.tasks.len() + self.waiting.len()
    }

    /// Segments that wait in the spool.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sends a segment on its way.
    pub(super) fn push(&mut self, name: SegmentName, bytes: Bytes) {
        self.start_upload(name, Some(bytes));
    }

    /// Sends a segment on its way once there is room. It is whole in the spool.
    pub(super) fn push_spooled(&mut self, name: SegmentName) {
        self.waiting.push_back(name);
        self.start_waiting();
    }

    fn start_waiting(&mut self) {
        while self.may_start()
            && let Some(name) = self.waiting.pop_front()
        {
            self.start_upload(name, None);
        }
    }

    fn start_upload(&mut self, name: SegmentName, bytes: Option<Bytes>) {
        let level = match &mut self.adaptive {
            Some(adaptive) => {
                // The last place is taken by the segment that is being pushed: when all others are, its feeder has
                // waited or is about to.
                adaptive.observe(self.load.borrow().plain, self.limit.saturating_sub(1));
                adaptive.level()
            }
            None => self.archive.vault().level(),
        };
        let upload = SegmentUpload {
            archive: Arc::clone(&self.archive),
            spool: self.spool.clone(),
            size: self.size,
            work: Arc::clone(&self.work),
            load: self.load.clone(),
            followers: Arc::clone(&self.followers),
            server: self.server.clone(),
            note: self.clocks.segment_note(name),
            spare: self.spare.0.clone(),
        };
        self.load.send_modify(|load| load.plain += 1);
        self.tasks.spawn(async move {
            let result = upload.run(name, bytes, level).await;
            UploadedSegment { name, result }
        });
    }

    /// The bytes of a segment that is sealed.
    pub(super) fn spare_buffer(&mut self) -> Option<Bytes> {
        self.spare.1.try_recv().ok()
    }

    /// The next segment that is done. Waits for ever if none is under way. Cancel safe.
    pub(super) async fn next_uploaded(&mut self) -> UploadedSegment {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(uploaded)) => {
                    self.clocks.forget_segment(uploaded.name);
                    self.start_waiting();
                    return uploaded;
                }
                // A task that panics takes its segment with it: it stays unacknowledged, and the server has it still.
                Some(Err(error)) => tracing::error!(%error, "an upload was cut off; this is a bug in walkeep"),
                None => std::future::pending().await,
            }
        }
    }

    /// A segment that is done already.
    pub(super) fn try_next_uploaded(&mut self) -> Option<UploadedSegment> {
        let done = self.tasks.try_join_next()?.ok();
        done.iter().for_each(|uploaded| self.clocks.forget_segment(uploaded.name));
        self.start_waiting();
        done
    }
}

/// What one segment's way needs.
struct SegmentUpload {
    archive: Arc<Archive>,
    spool: Spool,
    size: SegmentSize,
    work: Arc<SealStage>,
    load: watch::Sender<UploadLoad>,
    followers: Arc<Followers>,
    server: String,
    note: Vec<u8>,
    spare: mpsc::UnboundedSender<Bytes>,
}

impl SegmentUpload {
    async fn run(
        mut self,
        name: SegmentName,
        bytes: Option<Bytes>,
        level: CompressionLevel,
    ) -> Result<Ingested, ReceiveError> {
        let mut plain = LoadGuard { load: &self.load, count: |load| &mut load.plain, counted: true };
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                let (spool, size) = (self.spool.clone(), self.size);
                run_blocking(move || spool.read_segment(name, size)).await??
            }
        };
        let job = SealJob { name, bytes, level, note: std::mem::take(&mut self.note) };
        let pending = self.work.submit(job).await.map_err(|_gone| ReceiveError::WorkerLost)?;
        let (prepared, bytes) = pending.wait().await.map_err(|_gone| ReceiveError::WorkerLost)?;
        // Without a receiver there is no next segment.
        drop(self.spare.send(bytes));
        plain.count_out();
        let prepared = prepared?;
        let clock = self.archive.vault().clock();
        let mut backoff = Backoff::new(UPLOAD_RETRY, clock.elapsed(), prepared.stored_bytes());
        let mut stuck = LoadGuard { load: &self.load, count: |load| &mut load.stuck, counted: false };
        loop {
            let stored = {
                let mut storing = std::pin::pin!(self.followers.store(prepared.clone()));
                match timeout(&**clock, STUCK_AFTER, storing.as_mut()).await {
                    Some(stored) => stored,
                    // The repositories are tried again and again. A commit must not wait that long.
                    None => {
                        stuck.count_in();
                        storing.await
                    }
                }
            };
            match stored {
                Ok(ingested) => return Ok(ingested),
                Err(error) if error.may_pass() || error.class() == ErrorClass::Transient => {
                    stuck.count_in();
                    let pause = backoff.next_pause(clock.elapsed()).unwrap_or(UPLOAD_RETRY.longest);
                    tracing::warn!(segment = %name, error = &error as &dyn std::error::Error, ?pause, "not archived \
                        yet; walkeep tries again");
                    clock.sleep(pause).await;
                }
                Err(error @ IngestError::ContentDiffers { .. }) => return Err(self.refuse(&prepared, error).await),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Another server, or this one before it was set back, has archived another content: a fork.
    async fn refuse(&self, prepared: &PreparedSegment, refused: IngestError) -> ReceiveError {
        match self.archive.record_refused_prepared(prepared, self.server.clone()).await {
            Ok(Some(recorded)) => {
                tracing::error!("{}", recorded.describe(self.archive.cluster().as_str()));
                ReceiveError::forked(self.server.clone(), &recorded)
            }
            Ok(None) => refused.into(),
            Err(error) => {
                tracing::error!(%error, "a fork of the archive cannot be recorded");
                refused.into()
            }
        }
    }
}

/// Counts a segment in the load as long as it belongs there.
struct LoadGuard<'a> {
    load: &'a watch::Sender<UploadLoad>,
    count: fn(&mut UploadLoad) -> &mut usize,
    counted: bool,
}

impl LoadGuard<'_> {
    fn count_in(&mut self) {
        if !self.counted {
            self.counted = true;
            self.load.send_modify(|load| *(self.count)(load) += 1);
        }
    }

    fn count_out(&mut self) {
        if self.counted {
            self.counted = false;
            self.load.send_modify(|load| *(self.count)(load) -= 1);
        }
    }
}

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        self.count_out();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Followers, SegmentUploads, Spool};
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::segment::SegmentSize;

    /// As long as its marker is away, so is its disk.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_repository_that_was_unmounted_is_waited_for_and_nothing_is_said_to_be_archived_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        let spool = Spool::open(&dir.path().join("state"), &archive).unwrap();
        let followers = Followers::start(&archive, dir.path());
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut uploads = SegmentUploads::start(&archive, spool, size, 1 << 20, followers, "server".into()).unwrap();
        let marker = dir.path().join("repository/walkeep.json");
        let text = std::fs::read(&marker).unwrap();
        std::fs::remove_file(&marker).unwrap();
        let (name, bytes) = segment(7, 3, b"a", 9);
        uploads.push(name, bytes.clone());
        let early = tokio::time::timeout(Duration::from_secs(1), uploads.next_uploaded()).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!((uploads.is_stuck(), archive.segment(name).await.unwrap()), (true, None));
        std::fs::write(&marker, text).unwrap();
        uploads.next_uploaded().await.result.unwrap();
        assert_eq!(archive.segment(name).await.unwrap(), Some(bytes));
    }
}

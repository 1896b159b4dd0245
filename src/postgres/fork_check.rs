//! Before anything of a server is archived: is the server's WAL the WAL that is here?
//!
//! A receiver and a backup stream the last whole segment that is kept (archived, or spooled) once more, without a slot
//! and without reports, and compare it up to its last record. What follows a switch record is padding and may differ.
//!
//! A difference in content proves a fork: a server that was set back and wrote other WAL, or a clone. A server that
//! has less WAL than is kept is judged by its role:
//!
//! - A standby lags its primary. If all it has is equal, it is waited for.
//! - A primary never has less on its own timeline. It sends WAL only after it has flushed it, and crash recovery ends
//!   at the end of the flushed WAL or after it: a record that was cut at a page boundary keeps its part, and the log
//!   continues on the next page (`XLOG_OVERWRITE_CONTRECORD`). So a primary whose WAL ends before that of the archive
//!   has lost WAL, because it was set back or its disk does not keep what is synced. It will write other bytes there.
//!   That is a fork at the server's position.
//!
//! A timeline's segment in which the next timeline begins is not on the server's path and is not compared. So a server
//! that was set back and promoted before it wrote anything is accepted.
//!
//! If the server no longer has the segment, nothing can be compared: a slot holds WAL from the acknowledged position
//! on, and the segment before that may be removed. This alone is no reason to refuse the server. It is one if this
//! server is recorded as a fork on the timeline that it is on. A server that was restored from the archive has no older
//! WAL either, and a new timeline: the first segment of that begins with WAL of the timeline before, and that is
//! compared.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::blocking::{WorkerLostError, run_blocking};
use crate::base::clock::{Clock, timeout};
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::postgres::archive::fork::{Fork, RecordedFork, first_difference};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, ArchiveError};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineId, TimelinePath, TimelineSpan};
use crate::postgres::wire::{
    ReplicationConnection, ReplicationError, StandbyStatus, StartedReplication, SystemIdentity, WalStreamEvent,
};
use crate::vault::spool::error::SpoolError;

/// The server may send nothing for so long while it is compared.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// How long the server may take to end the stream. After that, another connection is quicker.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// A segment before a timeline's end is looked for among so many.
const LOOK_BACK_SEGMENTS: u64 = 64;

/// The beginning of a timeline's first segment proves nothing if it is shorter: it may be a page's header alone.
const MIN_COMPARED_BYTES: usize = 8192;

/// Why a server could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// The server or the way to it.
    #[error(transparent)]
    Server(#[from] ReplicationError),
    /// The archive, when read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// A worker thread panicked.
    #[error("a worker thread gave up; this is a bug in walkeep, and its message is in the log above")]
    WorkerLost,
}

impl From<WorkerLostError> for ComparisonError {
    fn from(_lost: WorkerLostError) -> ComparisonError {
        ComparisonError::WorkerLost
    }
}

impl HasKind for ComparisonError {
    fn kind(&self) -> ErrorKind {
        match self {
            ComparisonError::Server(error) => error.kind(),
            ComparisonError::Archive(error) => error.kind(),
            ComparisonError::Spool(error) => error.kind(),
            ComparisonError::WorkerLost => ErrorKind::Failed,
        }
    }
}

/// The server that is compared.
#[derive(Debug, Clone)]
pub struct ComparedServer {
    /// What it calls itself.
    pub identity: SystemIdentity,
    /// Whether it is in recovery. Asked before the identity, so that a primary's position is its own.
    pub standby: bool,
    /// Which server this is, for messages.
    pub name: String,
    /// The size of its segments.
    pub size: SegmentSize,
    /// Its timelines, up to its own.
    pub path: TimelinePath,
}

impl ComparedServer {
    /// The record of a fork of this server.
    fn fork_record(&self, archive: &Archive, found: FoundFork) -> Fork {
        Fork {
            system_id: self.identity.system_id,
            timeline: found.timeline,
            at: found.at,
            archived_until: found.kept_until,
            noticed_at: archive.vault().clock().now(),
            server: self.name.clone(),
            reason: found.reason(),
        }
    }

    /// Records a fork of this server, and logs it. If the record cannot be stored, the log has that too; the server is
    /// refused all the same.
    pub async fn record_fork(&self, archive: &Archive, found: FoundFork) -> RecordedFork {
        let fork = self.fork_record(archive, found);
        match archive.record_fork(fork.clone()).await {
            Ok(recorded) => {
                tracing::error!(server = self.name, "{}", recorded.describe(archive.cluster().as_str()));
                recorded
            }
            Err(error) => {
                tracing::error!(server = self.name, %error, "a fork of the archive cannot be recorded");
                RecordedFork { fork, resolution: None }
            }
        }
    }
}

/// The result of a comparison.
#[derive(Debug)]
pub struct Comparison {
    /// The connection, if it can be used for more.
    pub connection: Option<ReplicationConnection>,
    /// What was found.
    pub verdict: Verdict,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All that both have is equal, or nothing is kept.
    Equal,
    /// The server no longer has the WAL, and no fork of it is recorded.
    Unknown(TimelineId),
    /// The server no longer has the WAL, and a fork of it is recorded on this timeline.
    Recorded(RecordedFork),
    /// The server's WAL is another one.
    Fork(FoundFork),
}

/// Where the server leaves the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundFork {
    /// The timeline that both have.
    pub timeline: TimelineId,
    /// The first byte that differs, or the end of the server's WAL.
    pub at: Lsn,
    /// The end of what is kept.
    pub kept_until: Lsn,
    /// In which way they differ.
    pub cause: ForkCause,
}

/// In which way a server's WAL differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkCause {
    /// Other bytes.
    Differs,
    /// A primary's WAL ends before.
    Behind,
}

impl FoundFork {
    /// For people.
    #[must_use]
    pub fn reason(self) -> String {
        match self.cause {
            ForkCause::Differs => format!("its WAL differs from what was received before, from {} on", self.at),
            ForkCause::Behind => format!(
                "it is a primary whose WAL ends at {}, before what was received; it lost WAL or was set back",
                self.at
            ),
        }
    }
}

/// A segment that is kept, up to its last record.
struct KeptSegment {
    timeline: TimelineId,
    start: Lsn,
    bytes: Bytes,
}

impl KeptSegment {
    fn end(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    fn until(&self, end: Lsn) -> &[u8] {
        let len = usize::try_from(end.bytes_since(self.start)).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.get(..len).unwrap_or_default()
    }
}

/// What a comparison needs besides the connection.
pub(crate) struct ComparedWal<'a> {
    /// The archive that is compared with.
    pub(crate) archive: &'a Arc<Archive>,
    /// `None` while the receiver has its own view of the spool.
    pub(crate) spool: Option<&'a Spool>,
    /// The server.
    pub(crate) known: &'a ComparedServer,
    /// The clock for limits.
    pub(crate) clock: &'a dyn Clock,
}

impl ComparedWal<'_> {
    /// Compares the server's WAL with the last kept segment on its path. Records nothing.
    ///
    /// # Errors
    /// [`ComparisonError`]: nothing is known then.
    pub(crate) async fn compare(&self, connection: ReplicationConnection) -> Result<Comparison, ComparisonError> {
        let equal = |connection| Ok(Comparison { connection: Some(connection), verdict: Verdict::Equal });
        let Some(last) = self.last_kept().await? else { return equal(connection) };
        let (timeline, end) = (last.timeline, last.end());
        let mut connection = connection;
        if let Some(beginning) = self.beginning_of_own_timeline(timeline).await? {
            let (connection, found) = self.stream(connection, &beginning, beginning.end()).await?;
            let verdict = match found {
                StreamedWal::Differs(at) => {
                    Verdict::Fork(FoundFork { timeline, at, kept_until: end, cause: ForkCause::Differs })
                }
                StreamedWal::Equal => Verdict::Equal,
                StreamedWal::Removed => Verdict::Unknown(timeline),
            };
            return Ok(Comparison { connection, verdict });
        }
        let flushed = self.flushed(&mut connection, timeline, end).await?;
        let compared = if flushed > last.start { Some(last) } else { self.archived_at(timeline, flushed).await? };
        let (connection, found) = match &compared {
            Some(segment) => self.stream(connection, segment, flushed.min(segment.end())).await?,
            None => (Some(connection), StreamedWal::Equal),
        };
        let fork = |at, cause| Verdict::Fork(FoundFork { timeline, at, kept_until: end, cause });
        let verdict = match found {
            StreamedWal::Differs(at) => fork(at, ForkCause::Differs),
            _ if flushed < end && !self.known.standby => fork(flushed, ForkCause::Behind),
            StreamedWal::Equal => Verdict::Equal,
            StreamedWal::Removed => self.recorded_fork(timeline).await?,
        };
        Ok(Comparison { connection, verdict })
    }

    /// The first segment of the server's timeline begins with the end of the one before, up to where it was promoted:
    /// what the archive has of that. `None` if the server is on the timeline of the last kept segment, or if it was
    /// promoted near the border of a segment.
    async fn beginning_of_own_timeline(&self, kept: TimelineId) -> Result<Option<KeptSegment>, ComparisonError> {
        let current = self.known.identity.timeline;
        let spans = self.known.path.spans();
        let (Some(own), Some(before)) = (spans.last(), spans.iter().rev().nth(1)) else { return Ok(None) };
        if own.timeline != current || before.timeline != kept {
            return Ok(None);
        }
        let number = self.known.size.segment_of(own.begin);
        let start = number.start(self.known.size);
        let Some(archived) = self.archived(before.timeline, number).await? else { return Ok(None) };
        let len = usize::try_from(own.begin.bytes_since(start)).unwrap_or(usize::MAX).min(archived.bytes.len());
        let bytes = archived.bytes.slice(..len);
        Ok((bytes.len() >= MIN_COMPARED_BYTES).then_some(KeptSegment { timeline: current, start, bytes }))
    }

    /// How far the server's WAL of this timeline reaches. If that is not as far as what is kept, the server is asked
    /// again: another process may have archived WAL since it was asked first.
    async fn flushed(
        &self,
        connection: &mut ReplicationConnection,
        timeline: TimelineId,
        kept_until: Lsn,
    ) -> Result<Lsn, ComparisonError> {
        let SystemIdentity { timeline: current, flushed, .. } = self.known.identity;
        if timeline != current {
            return Ok(Lsn::MAX);
        }
        if flushed >= kept_until {
            return Ok(flushed);
        }
        let now = connection.identify_system().await?;
        Ok(if now.timeline == timeline { now.flushed } else { flushed })
    }

    /// What is recorded of this server, if nothing can be compared. What another server did is no reason to refuse
    /// this one; nor is what this one did before it was restored or promoted to a later timeline.
    async fn recorded_fork(&self, timeline: TimelineId) -> Result<Verdict, ComparisonError> {
        if timeline != self.known.identity.timeline {
            return Ok(Verdict::Unknown(timeline));
        }
        let forks = self.archive.forks().await?;
        let is_of_server =
            |recorded: &RecordedFork| recorded.fork.timeline == timeline && recorded.fork.server == self.known.name;
        Ok(forks.into_iter().find(is_of_server).map_or(Verdict::Unknown(timeline), Verdict::Recorded))
    }

    /// The last whole segment on the server's path that is archived or spooled.
    async fn last_kept(&self) -> Result<Option<KeptSegment>, ComparisonError> {
        let size = self.known.size;
        for span in self.known.path.spans().iter().rev() {
            let archived = self.last_archived(span).await?;
            if let Some(spool) = self.spool
                && let Some(found) = last_spooled(spool.clone(), *span, archived, size).await?
            {
                return Ok(Some(found));
            }
            if let Some(number) = archived {
                return self.archived(span.timeline, number).await;
            }
        }
        Ok(None)
    }

    /// The last archived segment of a span.
    async fn last_archived(&self, span: &TimelineSpan) -> Result<Option<SegmentNo>, ComparisonError> {
        let size = self.known.size;
        let last = self.archive.last_segment(span.timeline).await?.and_then(|name| name.number(size));
        let end = span.end.map(|fork| size.segment_of(fork));
        let (Some(last), begin) = (last, size.segment_of(span.begin)) else { return Ok(None) };
        let Some(end) = end.filter(|end| last >= *end) else { return Ok(Some(last).filter(|last| *last >= begin)) };
        let after = SegmentNo::new(end.get().saturating_sub(LOOK_BACK_SEGMENTS)).max(begin).previous();
        let after = after.and_then(|after| SegmentName::new(span.timeline, after, size));
        let listed = self.archive.list_segments(span.timeline, after).await?.found;
        Ok(listed.into_iter().filter_map(|(name, _)| name.number(size)).filter(|number| *number < end).max())
    }

    /// The archived segment with the WAL before a position.
    async fn archived_at(&self, timeline: TimelineId, position: Lsn) -> Result<Option<KeptSegment>, ComparisonError> {
        let before = Lsn::new(position.get().saturating_sub(1));
        self.archived(timeline, self.known.size.segment_of(before)).await
    }

    /// An archived segment up to its last record; `None` if there is none, or if it cannot be opened.
    async fn archived(&self, timeline: TimelineId, number: SegmentNo) -> Result<Option<KeptSegment>, ComparisonError> {
        let Some(name) = SegmentName::new(timeline, number, self.known.size) else { return Ok(None) };
        let read =
            async { Ok::<_, ArchiveError>(self.archive.digest(name).await?.zip(self.archive.segment(name).await?)) };
        match read.await {
            Ok(found) => Ok(found.map(|(digest, bytes)| {
                let start = number.start(self.known.size);
                let valid = usize::try_from(digest.valid_until.bytes_since(start)).unwrap_or(usize::MAX);
                KeptSegment { timeline, start, bytes: bytes.slice(..valid.min(bytes.len())) }
            })),
            Err(ArchiveError::Vault(error)) if error.may_pass() => Err(ArchiveError::Vault(error).into()),
            Err(error) => {
                tracing::error!(segment = %name, %error, "the archived segment cannot be compared with the server");
                Ok(None)
            }
        }
    }

    /// Streams the server's copy of a segment up to `end`, and compares.
    async fn stream(
        &self,
        connection: ReplicationConnection,
        kept: &KeptSegment,
        end: Lsn,
    ) -> Result<(Option<ReplicationConnection>, StreamedWal), ComparisonError> {
        let mut stream = match connection.start_physical(None, kept.start, kept.timeline).await {
            Ok(StartedReplication::Streaming(stream)) => stream,
            Ok(StartedReplication::TimelineEnded(connection, _)) => return Ok((Some(connection), StreamedWal::Equal)),
            Err(error) if error.is_wal_removed() => return Ok((None, StreamedWal::Removed)),
            Err(error) => return Err(error.into()),
        };
        let ours = kept.until(end);
        let (mut position, mut found) = (kept.start, StreamedWal::Equal);
        while position < end {
            let host = stream.peer().to_owned();
            let silent = || ReplicationError::TimedOut { host, limit: SILENCE_LIMIT };
            match timeout(self.clock, SILENCE_LIMIT, stream.next()).await.ok_or_else(silent)? {
                Ok(WalStreamEvent::Wal(wal)) => {
                    let from = usize::try_from(wal.start.bytes_since(kept.start)).unwrap_or(usize::MAX);
                    let rest = ours.get(from..).unwrap_or_default();
                    position = wal.start.saturating_add(wal.bytes.len() as u64);
                    if let Some(at) = first_difference(wal.start, rest, &wal.bytes) {
                        found = StreamedWal::Differs(at);
                        break;
                    }
                }
                Ok(WalStreamEvent::Keepalive(keepalive)) if keepalive.reply_requested => {
                    // Without a slot, and with no position: nothing is acknowledged.
                    let nothing = StandbyStatus { written: Lsn::INVALID, flushed: Lsn::INVALID, reply_wanted: false };
                    stream.send_status(nothing, PgTime::from_timestamp(self.clock.now())).await?;
                }
                Ok(WalStreamEvent::Keepalive(_)) => {}
                Ok(WalStreamEvent::EndOfTimeline) => break,
                Err(error) if error.is_wal_removed() => return Ok((None, StreamedWal::Removed)),
                Err(error) => return Err(error.into()),
            }
        }
        let finished = timeout(self.clock, FAREWELL_TIMEOUT, stream.finish()).await;
        Ok((finished.and_then(Result::ok).map(|(connection, _)| connection), found))
    }
}

/// What the server sent.
enum StreamedWal {
    Equal,
    Differs(Lsn),
    Removed,
}

/// The last segment of a span that is whole in the spool, after what is archived.
async fn last_spooled(
    spool: Spool,
    span: TimelineSpan,
    archived: Option<SegmentNo>,
    size: SegmentSize,
) -> Result<Option<KeptSegment>, ComparisonError> {
    let find = move || {
        let end = span.end.map(|fork| size.segment_of(fork));
        let (timeline, begin) = (span.timeline, size.segment_of(span.begin));
        let is_on = |number: &SegmentNo| {
            *number >= begin && archived.is_none_or(|last| *number > last) && end.is_none_or(|end| *number < end)
        };
        for name in spool.list_segments()?.into_iter().rev().filter(|name| name.timeline() == timeline) {
            let Some(number) = name.number(size).filter(is_on) else { continue };
            let bytes = spool.read_segment(name, size)?;
            if bytes.len() == size.len() {
                let valid = valid_len(name, &bytes, size);
                return Ok(Some(KeptSegment { timeline, start: number.start(size), bytes: bytes.slice(..valid) }));
            }
        }
        Ok(None)
    };
    run_blocking(find).await?
}

/// Up to where the bytes of a whole segment mean anything.
fn valid_len(name: SegmentName, bytes: &[u8], size: SegmentSize) -> usize {
    let digest = crate::postgres::wal::digest::digest_segment(bytes, name, size);
    let valid = digest.ok().zip(name.number(size)).map(|(digest, number)| {
        usize::try_from(digest.valid_until.bytes_since(number.start(size))).unwrap_or(usize::MAX)
    });
    valid.map_or(bytes.len(), |valid| valid.min(bytes.len()))
}

//! What has come of one timeline: pieces in, whole segments on their way to the repository, the tail in the spool, and
//! the position that is safe. No socket.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::acknowledge::{AcknowledgePolicy, DurabilityLedger};
use super::error::ReceiveError;
use super::segment_uploads::{SegmentUploads, UploadedSegment};
use crate::postgres::archive::ingest::Ingested;
use crate::postgres::archive::pieces::WalPiece as Copied;
use crate::postgres::archive::spool::{Spool, SpoolFile};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::assemble::{AssembleError, PartialSegment, SegmentAssembler, WalSegment};
use crate::postgres::wire::XLogData;
use crate::vault::spool::SpoolError;

/// A standby that is not so many segments behind may be waited for.
const NEAR_STANDBY_SEGMENTS: u64 = 3;

/// Where an intake begins.
#[derive(Debug)]
pub(super) struct IntakeStart {
    pub(super) timeline: TimelineId,
    /// The segment under way: the first of which the spool has not all.
    pub(super) segment: SegmentNo,
    /// The first segment that is not archived. From there to the segment under way, all is in the spool.
    pub(super) unarchived: SegmentNo,
    /// What the spool holds of it, and the file to go on with.
    pub(super) spooled: Option<(SpoolFile, Bytes)>,
}

/// Bytes for the spool.
#[derive(Debug)]
struct UnspooledBytes {
    name: SegmentName,
    number: SegmentNo,
    offset: u64,
    bytes: Bytes,
}

/// A whole segment that the spool has or shall have, because its beginning was acknowledged or the repository fails.
#[derive(Debug)]
struct UnspooledSegment {
    segment: WalSegment,
    number: SegmentNo,
    /// It is being put into the repository; otherwise it goes there from the spool.
    under_way: bool,
    /// Its beginning was spooled, so somebody may wait for its end.
    begun: bool,
}

/// What a commit takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpoolScope {
    /// What somebody may wait for, and what the repository does not take.
    Needed,
    /// That, and the segment under way even if the server has more of it.
    Tail,
    /// Everything.
    All,
}

/// What a commit has made durable.
#[derive(Debug)]
pub(super) struct SpoolCommit {
    tail: Option<SpoolFile>,
    /// Segments and how many of their bytes are synced.
    synced: Vec<(SegmentNo, u64)>,
}

/// One timeline's WAL as it comes.
#[derive(Debug)]
pub(super) struct TimelineIntake {
    timeline: TimelineId,
    size: SegmentSize,
    assembler: SegmentAssembler,
    ledger: DurabilityLedger,
    spool: Spool,
    /// The file that was appended to last.
    tail: Option<SpoolFile>,
    commit: Option<JoinHandle<Result<SpoolCommit, SpoolError>>>,
    /// Whole segments that are neither in the repository nor whole in the spool yet.
    unspooled: VecDeque<UnspooledSegment>,
    /// Archived segments whose spool files are still there.
    obsolete: Vec<SegmentName>,
    removal: Option<JoinHandle<()>>,
    server_end: Lsn,
}

impl TimelineIntake {
    pub(super) fn new(
        begin: IntakeStart,
        spool: Spool,
        size: SegmentSize,
        policy: AcknowledgePolicy,
    ) -> Result<TimelineIntake, ReceiveError> {
        let start = begin.segment.start(size);
        let mut assembler = SegmentAssembler::new(begin.timeline, size, start);
        let mut ledger = DurabilityLedger::resume(policy, size, begin.unarchived, begin.segment);
        let mut tail = None;
        if let Some((file, bytes)) = begin.spooled {
            let wrong = |source| ReceiveError::Assemble { timeline: begin.timeline, source };
            assembler.push(start, &bytes).map_err(wrong)?;
            ledger.mark_spooled(begin.segment, start.saturating_add(bytes.len() as u64));
            tail = Some(file);
        }
        Ok(TimelineIntake {
            timeline: begin.timeline,
            size,
            assembler,
            ledger,
            spool,
            tail,
            commit: None,
            unspooled: VecDeque::new(),
            obsolete: Vec::new(),
            removal: None,
            server_end: Lsn::INVALID,
        })
    }

    pub(super) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The position of the next byte.
    pub(super) fn position(&self) -> Lsn {
        self.assembler.position()
    }

    /// Where the server is to begin: the start of the segment under way, so that what has come of it is compared with
    /// what the server has.
    pub(super) fn stream_from(&self) -> Lsn {
        self.size.segment_of(self.position()).start(self.size)
    }

    pub(super) fn safe_lsn(&self) -> Lsn {
        self.ledger.safe_lsn()
    }

    /// What was acknowledged on another timeline stays so.
    pub(super) fn raise_safe_lsn(&mut self, lsn: Lsn) {
        self.ledger.raise_safe_lsn(lsn);
    }

    pub(super) fn set_server_end(&mut self, end: Lsn) {
        self.server_end = self.server_end.max(end);
    }

    /// Whether one more message may be taken: it completes at most one segment for the repository or, if that fails,
    /// for the spool.
    pub(super) fn has_room(&self, uploads: &SegmentUploads, spool_limit: u64) -> bool {
        if uploads.has_room() {
            return true;
        }
        let spooled = (uploads.waiting() as u64).saturating_mul(self.size.get());
        let may_spool = self.ledger.policy() == AcknowledgePolicy::Spool && spooled < spool_limit;
        may_spool && uploads.is_stuck() && !self.holds_back()
    }

    /// Whether a whole segment waits for room in the spool.
    fn holds_back(&self) -> bool {
        self.unspooled.iter().any(|whole| !whole.under_way)
    }

    /// Takes a piece of WAL.
    pub(super) fn push_wal(&mut self, wal: &XLogData, uploads: &mut SegmentUploads) -> Result<(), ReceiveError> {
        self.set_server_end(wal.server_end);
        while let Some(bytes) = uploads.spare_buffer() {
            self.assembler.recycle(bytes);
        }
        let pushed = self.assembler.push(wal.start, &wal.bytes);
        pushed.map_err(|source| self.assemble_error(source))?;
        while let Some(segment) = self.assembler.poll() {
            let Some(number) = segment.name.number(self.size) else { continue };
            let begun = self.ledger.spooled_until(number) > number.start(self.size);
            uploads.clocks.close_segment(segment.name);
            let under_way = uploads.has_room();
            if under_way {
                uploads.push(segment.name, segment.bytes.clone());
            }
            // Far behind, nobody waits for a commit: then a segment is not kept for the spool while it is being put.
            let near = self.server_end.bytes_since(number.end(self.size))
                < NEAR_STANDBY_SEGMENTS.saturating_mul(self.size.get());
            if !under_way || begun || (near && self.ledger.policy() == AcknowledgePolicy::Spool) {
                self.unspooled.push_back(UnspooledSegment { segment, number, under_way, begun });
            }
        }
        Ok(())
    }

    fn assemble_error(&self, source: AssembleError) -> ReceiveError {
        let timeline = self.timeline;
        match source {
            AssembleError::Differs { at } => self.diverged_error(at),
            source => ReceiveError::Assemble { timeline, source },
        }
    }

    /// The server's WAL is another one from `at` on than what was received of the segment under way.
    pub(super) fn diverged_error(&self, at: Lsn) -> ReceiveError {
        let number = self.size.segment_of(self.position());
        let spool_file =
            SegmentName::new(self.timeline, number, self.size).map(|name| self.spool.path(name)).unwrap_or_default();
        ReceiveError::Diverged { timeline: self.timeline, at, spool_file }
    }

    /// The segment under way, if it is worth copying: when the server has the rest of it, it will soon be whole.
    pub(super) fn segment_worth_copying(&self) -> Option<PartialSegment<'_>> {
        self.unfinished_segment().filter(|_| !self.is_behind())
    }

    /// The segment under way as it is.
    pub(super) fn unfinished_segment(&self) -> Option<PartialSegment<'_>> {
        self.assembler.partial()
    }

    /// A piece is in every repository.
    pub(super) fn mark_copied(&mut self, piece: Copied) {
        if piece.timeline == self.timeline {
            self.ledger.mark_copied(self.size.segment_of(piece.start), piece.end);
        }
    }

    /// Whether the server has more of the segment under way, so that it will soon be whole and needs no spooling.
    fn is_behind(&self) -> bool {
        self.server_end >= self.size.segment_of(self.position()).end(self.size)
    }

    /// Whether there is something to make durable, and no commit under way.
    pub(super) fn wants_commit(&self, scope: SpoolScope, uploads: &SegmentUploads) -> bool {
        let stuck = uploads.is_stuck();
        let mut wholes = self.unspooled.iter().filter(|whole| whole.is_in_scope(scope, stuck));
        self.commit.is_none()
            && (wholes.any(|whole| self.unspooled_from(whole.number, whole.segment.bytes.len()).is_some())
                || (self.includes_tail(scope) && self.has_unspooled_tail()))
    }

    /// Whether the segment under way is to be spooled.
    fn includes_tail(&self, scope: SpoolScope) -> bool {
        scope != SpoolScope::Needed || (self.ledger.policy() == AcknowledgePolicy::Spool && !self.is_behind())
    }

    fn has_unspooled_tail(&self) -> bool {
        let Some(partial) = self.assembler.partial() else { return false };
        let number = partial.name.number(self.size);
        number.is_some_and(|number| self.unspooled_from(number, partial.bytes.len()).is_some())
    }

    /// What of the segment under way is not in the spool.
    fn unspooled_tail(&self) -> Option<UnspooledBytes> {
        let partial = self.assembler.partial()?;
        let number = partial.name.number(self.size)?;
        let (offset, from) = self.unspooled_from(number, partial.bytes.len())?;
        let bytes = Bytes::copy_from_slice(partial.bytes.get(from..)?);
        Some(UnspooledBytes { name: partial.name, number, offset, bytes })
    }

    /// Where the part of a segment begins that is not spooled; `None` if all of its `len` bytes are, or if it is
    /// archived.
    fn unspooled_from(&self, number: SegmentNo, len: usize) -> Option<(u64, usize)> {
        let offset = self.ledger.spooled_until(number).bytes_since(number.start(self.size));
        let from = usize::try_from(offset).ok()?;
        (from < len && !self.ledger.is_archived(number)).then_some((offset, from))
    }

    /// Begins to write and sync what is not in the spool yet, in the background.
    pub(super) fn start_commit(&mut self, scope: SpoolScope, uploads: &SegmentUploads) {
        let stuck = uploads.is_stuck();
        let mut pieces = Vec::new();
        for whole in self.unspooled.iter().filter(|whole| whole.is_in_scope(scope, stuck)) {
            let UnspooledSegment { segment, number, .. } = whole;
            if let Some((offset, from)) = self.unspooled_from(*number, segment.bytes.len()) {
                pieces.push(UnspooledBytes {
                    name: segment.name,
                    number: *number,
                    offset,
                    bytes: segment.bytes.slice(from..),
                });
            }
        }
        if self.includes_tail(scope) {
            pieces.extend(self.unspooled_tail());
        }
        let (spool, size, tail) = (self.spool.clone(), self.size, self.tail.take());
        self.commit = Some(tokio::task::spawn_blocking(move || append_and_sync(&spool, size, tail, pieces)));
    }

    /// Waits for the end of a commit. For ever if there is none. Cancel safe: the commit goes on.
    pub(super) async fn commit_ended(&mut self) -> Result<SpoolCommit, ReceiveError> {
        let Some(commit) = &mut self.commit else { return std::future::pending().await };
        let done = commit.await;
        self.commit = None;
        Ok(done.map_err(|_panic| ReceiveError::WorkerLost)??)
    }

    /// Takes note of what a commit has made durable.
    pub(super) fn apply_commit(
        &mut self,
        committed: SpoolCommit,
        uploads: &mut SegmentUploads,
    ) -> Result<(), ReceiveError> {
        self.tail = committed.tail;
        for (number, until) in committed.synced {
            self.ledger.mark_spooled(number, number.start(self.size).saturating_add(until));
        }
        let (ledger, size) = (&self.ledger, self.size);
        self.unspooled.retain(|whole| {
            let done = ledger.spooled_until(whole.number) >= whole.number.end(size);
            if done && !whole.under_way {
                uploads.push_spooled(whole.segment.name);
            }
            !done
        });
        self.remove_obsolete();
        Ok(())
    }

    /// A segment has come to its end.
    pub(super) fn finish_upload(&mut self, uploaded: UploadedSegment) -> Result<(SegmentName, Ingested), ReceiveError> {
        let ingested = uploaded.result?;
        if uploaded.name.timeline() == self.timeline
            && let Some(number) = uploaded.name.number(self.size)
        {
            self.ledger.mark_archived(number);
        }
        if let Some(at) = self.unspooled.iter().position(|whole| whole.segment.name == uploaded.name)
            && let Some(whole) = self.unspooled.remove(at)
        {
            self.assembler.recycle(whole.segment.bytes);
        }
        self.obsolete.push(uploaded.name);
        self.remove_obsolete();
        Ok((uploaded.name, ingested))
    }

    /// Removes spool files of archived segments; not while one of them may be written to.
    fn remove_obsolete(&mut self) {
        if self.commit.is_some() || self.obsolete.is_empty() {
            return;
        }
        if self.tail.as_ref().is_some_and(|tail| self.obsolete.contains(&tail.name())) {
            self.tail = None;
        }
        let (names, spool, earlier) = (std::mem::take(&mut self.obsolete), self.spool.clone(), self.removal.take());
        self.removal = Some(tokio::spawn(async move {
            if let Some(earlier) = earlier {
                drop(earlier.await);
            }
            let work = move || {
                for name in names {
                    if let Err(error) = spool.remove_segment(name) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a spool file is left over");
                    }
                }
            };
            drop(tokio::task::spawn_blocking(work).await);
        }));
    }

    /// Waits until the spool files of archived segments are gone.
    pub(super) async fn wait_for_removal(&mut self) {
        if let Some(removal) = self.removal.take() {
            drop(removal.await);
        }
    }

    /// The segment under way.
    pub(super) fn current_segment(&self) -> Option<WalSegment> {
        let partial = self.unfinished_segment()?;
        Some(WalSegment { name: partial.name, bytes: Bytes::copy_from_slice(partial.bytes) })
    }

    /// Makes what has come durable here, and waits for that. Not cancel safe.
    pub(super) async fn commit_now(
        &mut self,
        scope: SpoolScope,
        uploads: &mut SegmentUploads,
    ) -> Result<(), ReceiveError> {
        loop {
            if self.commit.is_some() {
                let committed = self.commit_ended().await?;
                self.apply_commit(committed, uploads)?;
            } else if self.wants_commit(scope, uploads) {
                self.start_commit(scope, uploads);
            } else {
                return Ok(());
            }
        }
    }
}

impl UnspooledSegment {
    fn is_in_scope(&self, scope: SpoolScope, stuck: bool) -> bool {
        scope == SpoolScope::All || self.begun || stuck || !self.under_way
    }
}

/// Appends and syncs. Blocks.
fn append_and_sync(
    spool: &Spool,
    size: SegmentSize,
    mut tail: Option<SpoolFile>,
    pieces: Vec<UnspooledBytes>,
) -> Result<SpoolCommit, SpoolError> {
    let mut synced = Vec::new();
    for piece in pieces {
        let mut file = match tail.take() {
            Some(tail) if tail.name() == piece.name => tail,
            _ => spool.open_for_append(piece.name, size)?.0,
        };
        // A file left by an earlier run may hold more than was known.
        let known = usize::try_from(file.held().saturating_sub(piece.offset)).unwrap_or(usize::MAX);
        let new = piece.bytes.slice(known.min(piece.bytes.len())..);
        file.append(piece.offset.saturating_add(known as u64), &new)?;
        file.sync()?;
        synced.push((piece.number, file.held()));
        tail = Some(file);
    }
    Ok(SpoolCommit { tail, synced })
}

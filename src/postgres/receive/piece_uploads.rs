//! The segment under way, copied into one repository piece by piece: what has come of it leaves this machine within
//! seconds, not when the segment is whole.
//!
//! The order of effects: a piece is put into the repository; then it counts as there, and those that it swallowed are
//! removed. When a segment is archived, its pieces are swept. A crash in between leaves pieces too many, which a later
//! sweep takes, and never one too few.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use super::server_clock::ServerClockNotes;
use crate::postgres::archive::pieces::{self, WalPiece};
use crate::postgres::archive::{self, Archive};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::postgres::wal::assemble::PartialSegment;

/// The most bytes in one piece: what a copy takes of memory, beside its sealed form.
const MAX_PIECE_BYTES: u64 = 16 << 20;

/// The pieces of the segment under way.
#[derive(Debug)]
pub(super) struct PieceUploads {
    archive: Arc<Archive>,
    size: SegmentSize,
    /// How old WAL may become that is on this machine alone; `None` for as old as its segment.
    every: Option<Duration>,
    segment: Option<SegmentName>,
    /// Its pieces, each beginning where the one before it ends.
    made: Vec<WalPiece>,
    /// The time from which the next may be made.
    due: Duration,
    under_way: Option<JoinHandle<Result<WalPiece, archive::ArchiveError>>>,
    /// Whether there may be pieces of archived segments.
    unswept: bool,
    sweep: Option<JoinHandle<()>>,
    /// Whether the sweep came too early for all of them.
    again: bool,
}

impl PieceUploads {
    pub(super) fn new(archive: &Arc<Archive>, size: SegmentSize, every: Option<Duration>) -> PieceUploads {
        PieceUploads {
            archive: Arc::clone(archive),
            size,
            every,
            segment: None,
            made: Vec::new(),
            due: Duration::ZERO,
            under_way: None,
            unswept: true,
            sweep: None,
            again: false,
        }
    }

    /// How long until another piece may be made of what has come up to `position`; `None` if there is nothing to wait
    /// for.
    pub(super) fn until_due(&self, position: Lsn, now: Duration) -> Option<Duration> {
        let idle = self.every.is_some() && self.under_way.is_none() && self.copied_until() < position;
        idle.then(|| self.due.saturating_sub(now))
    }

    /// Up to where the segment under way is copied.
    fn copied_until(&self) -> Lsn {
        self.made.last().map_or(Lsn::INVALID, |piece| piece.end)
    }

    /// Begins to copy what has come since the last piece, if it is time.
    pub(super) fn copy_if_due(
        &mut self,
        partial: Option<PartialSegment<'_>>,
        now: Duration,
        clocks: &ServerClockNotes,
    ) {
        let (Some(every), Some(partial), None) = (self.every, partial, &self.under_way) else { return };
        if now >= self.due && self.start_copy(&partial, clocks) {
            self.due = now.saturating_add(every);
        }
    }

    /// The same without regard to the time; for when there may be no other.
    pub(super) fn copy_now(&mut self, partial: Option<PartialSegment<'_>>, clocks: &ServerClockNotes) {
        if let (Some(_), Some(partial), None) = (self.every, partial, &self.under_way) {
            self.start_copy(&partial, clocks);
        }
    }

    fn start_copy(&mut self, partial: &PartialSegment<'_>, clocks: &ServerClockNotes) -> bool {
        let Some(start) = partial.name.number(self.size).map(|number| number.start(self.size)) else { return false };
        if self.segment != Some(partial.name) {
            self.segment = Some(partial.name);
            self.made.clear();
        }
        let copied = self.copied_until().max(start);
        let end = start.saturating_add(partial.bytes.len() as u64).min(copied.saturating_add(MAX_PIECE_BYTES));
        let swallowed = pieces::count_merged_pieces(&self.made, end, MAX_PIECE_BYTES);
        assert!(swallowed <= self.made.len(), "{swallowed} pieces to merge, of {}", self.made.len());
        let small = self.made.split_off(self.made.len() - swallowed);
        let from = small.first().map_or(copied, |piece| piece.start);
        assert!(start <= from && from <= copied, "a piece from {from} on, of {copied} that are copied since {start}");
        let range = (from.bytes_since(start), end.bytes_since(start));
        let range = usize::try_from(range.0).unwrap_or(usize::MAX)..usize::try_from(range.1).unwrap_or(usize::MAX);
        let Some(bytes) = partial.bytes.get(range).filter(|_| copied < end) else {
            self.made.extend(small);
            return false;
        };
        let (archive, bytes, timeline) =
            (Arc::clone(&self.archive), Bytes::copy_from_slice(bytes), partial.name.timeline());
        let note = clocks.current_note();
        self.unswept = true;
        self.made.extend(small.iter().copied());
        self.under_way = Some(tokio::spawn(async move {
            let piece = archive.put_piece_with_note(timeline, from, bytes, note).await?;
            if let Err(error) = archive.remove_pieces(&small).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "pieces of WAL are left over");
            }
            Ok(piece)
        }));
        true
    }

    /// Waits for the piece that is being put, for ever if there is none. Cancel safe. Answers up to where a segment is
    /// now copied.
    pub(super) async fn next_finished(&mut self) -> Option<WalPiece> {
        loop {
            if let Some(under_way) = &mut self.under_way {
                let done = under_way.await;
                self.under_way = None;
                return self.finish_copy(done.ok()?);
            }
            // On a server that has nothing to say there is no next piece that would sweep again.
            let Some(sweep) = self.sweep.as_mut().filter(|_| self.again) else { return std::future::pending().await };
            drop(sweep.await);
            self.sweep = None;
            self.start_sweep();
        }
    }

    /// What [`PieceUploads::next_finished`] would say at once.
    pub(super) fn try_next_finished(&mut self) -> Option<WalPiece> {
        self.under_way.as_ref().filter(|under_way| under_way.is_finished())?;
        self.next_finished().now_or_never().flatten()
    }

    fn finish_copy(&mut self, done: Result<WalPiece, archive::ArchiveError>) -> Option<WalPiece> {
        if std::mem::take(&mut self.again) {
            self.start_sweep();
        }
        match done {
            Ok(piece) => {
                if piece.segment(self.size) == self.segment {
                    self.made.retain(|other| other.end <= piece.start);
                    self.made.push(piece);
                }
                Some(piece)
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                // One that is unreachable was reported when it became so.
                if self.archive.vault().unreachable().next().is_some() {
                    tracing::debug!(error, "the newest WAL is not copied to an unreachable repository");
                } else {
                    tracing::warn!(error, "the newest WAL is not copied to the repository yet; it is on this machine");
                }
                None
            }
        }
    }

    /// A segment is archived, whole or up to where its timeline ended: its pieces may go.
    pub(super) fn mark_archived(&mut self, name: SegmentName) {
        if self.segment == Some(name) {
            self.segment = None;
            self.made.clear();
        }
        self.start_sweep();
    }

    fn start_sweep(&mut self) {
        let sweeping = self.sweep.as_ref().is_some_and(|sweep| !sweep.is_finished());
        // What is being put now may be of that segment.
        self.again = sweeping || self.under_way.is_some();
        if self.every.is_none() || !self.unswept || sweeping {
            return;
        }
        // The pieces of the segment under way stay, and are for a later sweep.
        self.unswept = self.again || !self.made.is_empty();
        let (archive, size) = (Arc::clone(&self.archive), self.size);
        self.sweep = Some(tokio::spawn(async move {
            if let Err(error) = archive.sweep_pieces(size).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "pieces of archived WAL are left over");
            }
        }));
    }

    /// Waits for what is under way.
    pub(super) async fn wait_until_idle(&mut self) {
        if self.under_way.is_some() {
            let _ended = self.next_finished().await;
        }
        if let Some(sweep) = self.sweep.take() {
            drop(sweep.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::PieceUploads;
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SegmentSize;

    /// A segment that is archived while the pieces of another are swept is swept after it, though nothing more comes.
    #[tokio::test]
    async fn a_sweep_that_came_too_early_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        let mut copies = PieceUploads::new(&archive, SegmentSize::new(1 << 20).unwrap(), Some(Duration::ZERO));
        let segments = [5, 6].map(|number| (number, segment(7, number, b"a", 9)));
        for (number, (name, bytes)) in &segments {
            let start = Lsn::new(number << 20);
            copies.made = vec![archive.put_piece(name.timeline(), start, bytes.slice(..100)).await.unwrap()];
            copies.segment = Some(*name);
        }
        for (_, (name, _)) in &segments {
            copies.mark_archived(*name);
        }
        while !copies.sweep.as_ref().unwrap().is_finished() {
            tokio::task::yield_now().await;
        }
        for (_, (name, bytes)) in segments {
            archive.put_segment(name, bytes).await.unwrap();
        }
        let _nothing_ends = tokio::time::timeout(Duration::from_secs(1), copies.next_finished()).await;
        copies.wait_until_idle().await;
        assert_eq!(archive.list_pieces(None).await.unwrap(), []);
    }
}

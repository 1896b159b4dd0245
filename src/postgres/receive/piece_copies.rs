//! The segment under way in each repository: every one gets its own pieces, so that a slow or unreachable one delays no
//! other.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{join_all, select_all};

use super::piece_uploads::PieceUploads;
use super::server_clock::ServerClockNotes;
use crate::postgres::archive::Archive;
use crate::postgres::archive::pieces::WalPiece;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::postgres::wal::assemble::PartialSegment;
use crate::vault::RequiredCopies;

/// The pieces in all repositories.
#[derive(Debug)]
pub(super) struct PieceCopies {
    lanes: Vec<PieceLane>,
    required: RequiredCopies,
    size: SegmentSize,
}

#[derive(Debug)]
struct PieceLane {
    name: String,
    uploads: PieceUploads,
    /// Everything of its segment before this is in the repository.
    until: Lsn,
}

impl PieceCopies {
    pub(super) fn new(archive: &Archive, size: SegmentSize, every: Option<Duration>) -> PieceCopies {
        let lane = |(name, alone)| {
            let uploads = PieceUploads::new(&alone, size, every);
            PieceLane { name, uploads, until: Lsn::INVALID }
        };
        let lanes = archive.single_views().into_iter().map(lane).collect();
        PieceCopies { lanes, required: archive.required().clone(), size }
    }

    /// How long until another piece may be made of the WAL up to `position`; `None` if there is nothing to wait for.
    pub(super) fn until_due(&self, position: Lsn, now: Duration) -> Option<Duration> {
        self.lanes.iter().filter_map(|lane| lane.uploads.until_due(position, now)).min()
    }

    /// Begins to copy the WAL since the last piece, where it is due.
    pub(super) fn copy_if_due(
        &mut self,
        partial: Option<PartialSegment<'_>>,
        now: Duration,
        clocks: &ServerClockNotes,
    ) {
        self.lanes.iter_mut().for_each(|lane| lane.uploads.copy_if_due(partial, now, clocks));
    }

    /// The same without regard to the time; for when there may be no other.
    pub(super) fn copy_now(&mut self, partial: Option<PartialSegment<'_>>, clocks: &ServerClockNotes) {
        self.lanes.iter_mut().for_each(|lane| lane.uploads.copy_now(partial, clocks));
    }

    /// Waits for the next piece that is put, indefinitely if there is none. Cancel safe. Returns the part of a segment
    /// that every required repository has now.
    pub(super) async fn next_finished(&mut self) -> Option<WalPiece> {
        let (piece, nth) = {
            let finished = self.lanes.iter_mut().map(|lane| lane.uploads.next_finished().boxed());
            let (piece, nth, _others) = select_all(finished).await;
            (piece, nth)
        };
        self.note(nth, piece?)
    }

    /// What [`PieceCopies::next_finished`] would say at once.
    pub(super) fn try_next_finished(&mut self) -> Option<WalPiece> {
        let nth_piece = |(nth, lane): (usize, &mut PieceLane)| Some((nth, lane.uploads.try_next_finished()?));
        let (nth, piece) = self.lanes.iter_mut().enumerate().find_map(nth_piece)?;
        self.note(nth, piece)
    }

    /// A repository has a piece: what of its segment all required ones have.
    fn note(&mut self, nth: usize, piece: WalPiece) -> Option<WalPiece> {
        self.lanes.get_mut(nth)?.until = piece.end;
        let positions: Vec<(&str, Lsn)> = self.lanes.iter().map(|lane| (lane.name.as_str(), lane.until)).collect();
        let end = self.required.common_position(&positions)?;
        let start = self.size.segment_of(piece.start).start(self.size);
        (end > start).then(|| WalPiece { start, end: end.min(piece.end), ..piece })
    }

    /// A segment is archived, whole or up to where its timeline ended: its pieces may go.
    pub(super) fn mark_archived(&mut self, name: SegmentName) {
        self.lanes.iter_mut().for_each(|lane| lane.uploads.mark_archived(name));
    }

    /// Waits for what is under way.
    pub(super) async fn wait_until_idle(&mut self) {
        join_all(self.lanes.iter_mut().map(|lane| lane.uploads.wait_until_idle())).await;
    }

    /// A new timeline may begin before the end of what was copied of the old one.
    pub(super) fn forget_positions(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.until = Lsn::INVALID);
    }
}

//! What the receiver keeps between connections: the WAL under way, and its uploads.

use super::error::ReceiveError;
use super::intake::TimelineIntake;
use super::piece_copies::PieceCopies;
use super::segment_uploads::{SegmentUploads, UploadedSegment};
use super::settings::{ReceiveEvent, ReceiveObserver};
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::timeline::TimelinePath;

/// What lives longer than a connection.
pub(super) struct ReceiverState {
    pub(super) size: SegmentSize,
    /// The timelines up to the one that is received.
    pub(super) path: TimelinePath,
    pub(super) intake: TimelineIntake,
    pub(super) uploads: SegmentUploads,
    pub(super) copies: PieceCopies,
}

impl ReceiverState {
    /// Takes the result of a segment's upload. If the segment is archived, its pieces are no longer needed.
    pub(super) fn finish_upload(
        &mut self,
        done: UploadedSegment,
        observer: &dyn ReceiveObserver,
    ) -> Result<(), ReceiveError> {
        let (name, ingested) = self.intake.finish_upload(done)?;
        self.copies.mark_archived(name);
        observer.event(ReceiveEvent::Archived { name, ingested });
        Ok(())
    }
}

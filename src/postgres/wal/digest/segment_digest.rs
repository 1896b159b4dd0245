//! What a digest consists of.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize, SystemId};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::event::{TransactionEnd, WalEvent};

/// What one segment contains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentDigest {
    /// The timeline in the segment's name.
    pub timeline: TimelineId,
    /// The segment's number.
    pub segment: SegmentNo,
    /// Its size.
    pub segment_size: SegmentSize,
    /// The magic of its pages, which says what release wrote it ([`crate::postgres::wal::page::MajorVersion`]).
    pub page_magic: u16,
    /// The cluster it belongs to, by the header of its first page.
    pub system_id: SystemId,
    /// Whether its records could be checked.
    pub state: SegmentState,
    /// The first record that starts in it.
    pub first_record: Option<Lsn>,
    /// The last record that starts and ends in it.
    pub last_record: Option<Lsn>,
    /// The record before the first one, by the first one's own word: it ties this segment to the one before.
    pub first_prev: Option<Lsn>,
    /// Where what means anything ends: at the segment's end, after the record that switched, or where the log just
    /// stops.
    pub valid_until: Lsn,
    /// Whether `XLOG_SWITCH` ended it before its end.
    pub switched: bool,
    /// Whether the record that runs over its beginning is void, because a crash cut it there or further on in this
    /// segment.
    pub overwrites: bool,
    /// Records that start and end in it.
    pub records: u64,
    /// The smallest time of its endings.
    pub earliest: Option<PgTime>,
    /// The largest time of its endings.
    pub latest: Option<PgTime>,
    /// Every commit and abort that starts and ends in it, in log order; their times are not in order.
    pub endings: Vec<TransactionEnd>,
    /// Everything else worth finding, in log order.
    pub events: Vec<WalEvent>,
    /// Rows that transactions changed, and changes of names, in log order: sums of records, not records of which each
    /// counts.
    pub changes: Vec<WalEvent>,
    /// Drops, rewrites and truncations beyond [`MAX_EVENTS`], of which only the number is known.
    pub omitted_events: u64,
    /// The rest of a record that began in an earlier segment.
    pub head: Option<RecordFragment>,
    /// The beginning of a record that goes on in the next segment.
    pub tail: Option<RecordFragment>,
    /// BLAKE3 of the bytes up to `valid_until`, or of all of them unless `state` is [`SegmentState::Checked`]. Two
    /// copies of one segment may differ in what stands after a switch; by this they are equal.
    pub content: [u8; 32],
}

/// Whether a segment's records could be checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SegmentState {
    /// Every record's CRC and every link of the chain is right.
    Checked,
    /// The page magic belongs to no release known here. Nothing but the first page's header was read.
    Opaque,
    /// The log is damaged from `at` on; what the digest lists stands before that.
    Broken {
        /// Where.
        at: Lsn,
        /// How.
        why: String,
    },
}

/// The part of a record that lies in one segment, where the whole lies in two or more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordFragment {
    /// Where this part begins: for a tail the record's start, for a head the first byte after the page header.
    pub start: Lsn,
    /// Where this part ends: for a tail the segment's end; for a head where the record ends, or the segment.
    pub end: Lsn,
    /// Bytes of the record from `start` to its end, in this segment and after it.
    pub total: u32,
    /// Bytes of the record in this segment, page headers aside.
    pub held: u32,
    /// The first of those bytes: of a head [`MAX_FRAGMENT_BYTES`] at the most, of a tail that means nothing to us only
    /// the record's header.
    pub bytes: Vec<u8>,
    /// CRC-32C of the bytes that are held and not kept, so that the whole record's CRC can still be checked.
    pub rest_crc: u32,
}

/// The most bytes a fragment keeps. Commits of some ten thousand subtransactions fit; of larger ones the front is
/// enough for all but the xid of a prepared one.
pub const MAX_FRAGMENT_BYTES: usize = 64 << 10;

/// The most drops, rewrites and truncations that a digest lists. Sessions that make and drop temporary tables all the
/// time write a few thousand into a segment of 16 MiB.
pub const MAX_EVENTS: usize = 16 << 10;

impl SegmentDigest {
    /// Where the segment begins.
    #[must_use]
    pub const fn start(&self) -> Lsn {
        self.segment.start(self.segment_size)
    }

    /// Where the segment ends.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.segment.end(self.segment_size)
    }

    /// Whether the log stops inside the segment without a switch, as in the last segment of a timeline that ended.
    #[must_use]
    pub fn ends_early(&self) -> bool {
        self.state == SegmentState::Checked && !self.switched && self.valid_until < self.end()
    }
}

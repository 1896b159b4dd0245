//! The digest of a segment: what is in it, without reading it again.
//!
//! [`digest_segment`] makes it from the bytes of one whole segment and nothing else, so that a segment which arrives
//! alone, as `archive_command` hands them over, has the same digest as one from a stream. It is stored in the trailer
//! of the segment's object ([`SegmentDigest::to_bytes`]); the index is built from these alone. A record that runs over
//! a segment's end is in neither segment's digest: each keeps its part as a [`RecordFragment`], and [`continuation`]
//! makes the record of them, with its CRC checked.

mod continuation;
mod row_counts;
mod scan;
mod segment_digest;
mod codec;

pub use codec::{DigestFormatError, fuzz, note_after_digest, with_note};
pub use continuation::{JoinError, JoinedRecord, check_follows, join_record};
pub use scan::{DigestError, ScannedSegment, digest_segment, scan_segment};
pub use segment_digest::{MAX_EVENTS, MAX_FRAGMENT_BYTES, RecordFragment, SegmentDigest, SegmentState};

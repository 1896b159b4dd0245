//! Digests of consecutive segments: does one follow the other, and what is the record between them?

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentNo;

use super::segment_digest::{RecordFragment, SegmentDigest};
use crate::postgres::wal::event::{RecordBodyError, RecordMeaning, interpret_front};
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::{RECORD_HEADER_BYTES, RecordHeader, WalRecord, finish_crc};

/// A record that lies in more than one segment, made whole again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinedRecord {
    /// Where it starts.
    pub lsn: Lsn,
    /// Where it ends.
    pub end_lsn: Lsn,
    /// The record before it, by its own word.
    pub prev: Lsn,
    /// What it says to us; nothing, for most.
    pub meaning: RecordMeaning,
}

/// Why two segments are not one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// They are not neighbours.
    #[error("segment number {found} does not come after number {after}", found = .found.get(), after = .after.get())]
    NotNeighbours {
        /// The earlier segment.
        after: SegmentNo,
        /// What was taken for the next.
        found: SegmentNo,
    },
    /// They belong to two clusters, or one was rebuilt with other sizes.
    #[error("the segments before and after {at} belong to different clusters")]
    OtherCluster {
        /// Their border.
        at: Lsn,
    },
    /// The earlier one's log stops before its end.
    #[error("the log before {at} stops at {stops} already")]
    EndsEarly {
        /// The border.
        at: Lsn,
        /// Where it stops.
        stops: Lsn,
    },
    /// The later one's first record names another predecessor than the earlier one's last.
    #[error(
        "the first record after {at} says that it follows the one at {found}, but the last one before is at {expected}"
    )]
    Chain {
        /// The border.
        at: Lsn,
        /// The predecessor it names.
        found: Lsn,
        /// The one it has.
        expected: Lsn,
    },
    /// A record that begins before the border doesn't go on after it, or the other way round, or with another length.
    #[error("the record over {at} does not go on as it began")]
    Parts {
        /// The border.
        at: Lsn,
    },
    /// The parts given don't reach the record's end.
    #[error("the record at {at} goes on beyond {until}")]
    Unfinished {
        /// Where the record starts.
        at: Lsn,
        /// How far the parts reach.
        until: Lsn,
    },
    /// Its parts are not those that were written.
    #[error("the record at {at} has the checksum {computed:08X} where {stored:08X} was written")]
    Crc {
        /// Where the record starts.
        at: Lsn,
        /// What its header holds.
        stored: u32,
        /// What its parts give.
        computed: u32,
    },
    /// It is whole, but not of the form that its release writes.
    #[error(transparent)]
    Body(#[from] RecordBodyError),
}

/// Checks that the log of `later` is the continuation of `earlier`: the same cluster, the next segment, the same chain
/// of records. Timelines are not compared, for the next segment may be on the next timeline.
///
/// # Errors
/// [`JoinError`] for the first thing that does not fit. What neither segment can know, like the record before one that
/// fills a whole segment, is not checked.
pub fn check_follows(earlier: &SegmentDigest, later: &SegmentDigest) -> Result<(), JoinError> {
    let at = earlier.end();
    if later.segment != earlier.segment.next() {
        return Err(JoinError::NotNeighbours { after: earlier.segment, found: later.segment });
    }
    let kin = |d: &SegmentDigest| (d.system_id, d.segment_size, d.page_magic);
    if kin(earlier) != kin(later) {
        return Err(JoinError::OtherCluster { at });
    }
    if earlier.ends_early() {
        return Err(JoinError::EndsEarly { at, stops: earlier.valid_until });
    }
    let parts = || Err(JoinError::Parts { at });
    match (continued_bytes(earlier), &later.head) {
        (_, None) if later.overwrites => {}
        (None, None) => {}
        (Some(left), Some(head)) if left == head.total => {}
        _ => return parts(),
    }
    let before = match &earlier.tail {
        Some(tail) if !later.overwrites => Some(tail.start),
        _ => earlier.last_record,
    };
    match (before, later.first_prev) {
        (Some(expected), Some(found)) if expected != found => Err(JoinError::Chain { at, found, expected }),
        _ => Ok(()),
    }
}

/// How many bytes of a record go on in the next segment.
fn continued_bytes(digest: &SegmentDigest) -> Option<u32> {
    let open = |part: &RecordFragment| part.total.checked_sub(part.held).filter(|left| *left > 0);
    match &digest.tail {
        Some(tail) => open(tail),
        None => digest.head.as_ref().and_then(open),
    }
}

/// Makes whole the record that begins at the end of the first of `parts` and ends in the last; there are more than two
/// only if it fills whole segments. `None` if no record lies on the border, or a crash made it void.
///
/// # Errors
/// [`JoinError`] if the parts don't fit or are not what was written.
pub fn join_record(parts: &[&SegmentDigest]) -> Result<Option<JoinedRecord>, JoinError> {
    let Some((first, rest)) = parts.split_first() else { return Ok(None) };
    let Some(tail) = &first.tail else { return Ok(None) };
    let mut whole = RecordParts::from_tail(tail);
    let mut earlier = *first;
    for &later in rest {
        check_follows(earlier, later)?;
        let Some(head) = &later.head else { return Ok(None) };
        whole.add_fragment(head);
        earlier = later;
        if whole.have >= tail.total {
            break;
        }
    }
    if whole.have != tail.total {
        return Err(JoinError::Unfinished { at: tail.start, until: earlier.end() });
    }
    let (header, computed) = whole.crc().ok_or(JoinError::Parts { at: first.end() })?;
    if computed != header.crc || header.total_len != tail.total {
        return Err(JoinError::Crc { at: tail.start, stored: header.crc, computed });
    }
    let record = WalRecord { lsn: tail.start, end_lsn: whole.end, header, bytes: &whole.front };
    let meaning = match MajorVersion::from_magic(first.page_magic) {
        Some(major) => interpret_front(&record, major)?,
        None => RecordMeaning::default(),
    };
    Ok(Some(JoinedRecord { lsn: record.lsn, end_lsn: record.end_lsn, prev: header.prev, meaning }))
}

/// The parts of a record put together, as far as they were kept.
struct RecordParts<'a> {
    /// The parts, in order.
    parts: Vec<&'a RecordFragment>,
    /// The bytes from the record's start up to the first that was not kept.
    front: Vec<u8>,
    /// Whether `front` has a gap after it.
    gap: bool,
    have: u32,
    end: Lsn,
}

impl<'a> RecordParts<'a> {
    fn from_tail(tail: &'a RecordFragment) -> RecordParts<'a> {
        let mut whole = RecordParts { parts: Vec::new(), front: Vec::new(), gap: false, have: 0, end: tail.end };
        whole.add_fragment(tail);
        whole
    }

    fn add_fragment(&mut self, part: &'a RecordFragment) {
        if !self.gap {
            self.front.extend_from_slice(&part.bytes);
        }
        self.gap |= (part.bytes.len() as u64) < u64::from(part.held);
        self.have = self.have.saturating_add(part.held);
        self.end = part.end;
        self.parts.push(part);
    }

    /// The header, and the CRC over all parts: of what was not kept, the digests hold a CRC of its own.
    fn crc(&self) -> Option<(RecordHeader, u32)> {
        let fixed = self.front.first_chunk::<RECORD_HEADER_BYTES>()?;
        let mut crc = 0;
        let mut skip = RECORD_HEADER_BYTES;
        for part in &self.parts {
            let body = part.bytes.get(skip.min(part.bytes.len())..)?;
            skip = skip.saturating_sub(part.bytes.len());
            crc = crc32c::crc32c_append(crc, body);
            let rest = usize::try_from(part.held).ok()?.checked_sub(part.bytes.len())?;
            if rest > 0 {
                crc = crc32c::crc32c_combine(crc, part.rest_crc, rest);
            }
        }
        Some((RecordHeader::parse(fixed), finish_crc(crc, fixed)))
    }
}

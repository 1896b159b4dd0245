//! A segment's bytes into its digest.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize};

use super::row_counts::RowTally;
use super::segment_digest::{MAX_EVENTS, MAX_FRAGMENT_BYTES, RecordFragment, SegmentDigest, SegmentState};
use crate::postgres::wal::catalog::{FILE_VISIBLE_BYTES, may_change_names, may_count};
use crate::postgres::wal::decode::{LogEnd, PendingRecord, WalDecoder};
use crate::postgres::wal::event::{RecordMeaning, WalEvent, WalEventKind, interpret, may_matter};
use crate::postgres::wal::page::{
    FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LongPageHeader, MajorVersion, WalPageHeader, plausible_magic,
};
use crate::postgres::wal::record::{RECORD_HEADER_BYTES, RecordHeader, WalRecord};

/// Bytes that are not the segment they are said to be. Nothing is said about the records in it: damage there is in
/// [`SegmentDigest::state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Not as long as a segment is.
    #[error("segment {name} has {found} bytes, and not {expected}")]
    Length {
        /// Its name.
        name: SegmentName,
        /// Bytes a segment of the cluster has.
        expected: u64,
        /// Bytes there were.
        found: u64,
    },
    /// No segment of this size has such a name.
    #[error("{name} is not the name of a segment of {size} bytes")]
    Name {
        /// The name.
        name: SegmentName,
        /// The segment size.
        size: u64,
    },
    /// The first bytes are not those of any PostgreSQL's log.
    #[error("{name} is not write-ahead log: its first bytes are no page header (magic {magic:04X})")]
    NotWal {
        /// Its name.
        name: SegmentName,
        /// What stands in the place of the magic.
        magic: u16,
    },
    /// The segment size in the header is another one.
    #[error("segment {name} says that segments of its cluster have {found} bytes, and not {expected}")]
    SegmentSize {
        /// Its name.
        name: SegmentName,
        /// The segment size it was taken to have.
        expected: u64,
        /// The one it names.
        found: u32,
    },
    /// A segment under another one's name, or a recycled file that was not written yet.
    #[error("segment {name} begins at {expected}, but its first page says that it belongs at {found}")]
    Address {
        /// Its name.
        name: SegmentName,
        /// Where the segment of that name begins.
        expected: Lsn,
        /// Where it says it does.
        found: Lsn,
    },
    /// The log of a later timeline under an earlier one's name.
    #[error("segment {name} begins with a page of timeline {found}")]
    Timeline {
        /// Its name.
        name: SegmentName,
        /// The timeline its first page names.
        found: u32,
    },
}

/// A digest that lacks nothing but [`SegmentDigest::content`].
#[derive(Debug)]
pub struct ScannedSegment<'a> {
    digest: SegmentDigest,
    /// What the content is the hash of: the segment, or its beginning.
    meaningful: &'a [u8],
    is_whole: bool,
}

impl ScannedSegment<'_> {
    /// The digest, its bytes hashed here.
    #[must_use]
    fn with_own_hash(self) -> SegmentDigest {
        SegmentDigest { content: *blake3::hash(self.meaningful).as_bytes(), ..self.digest }
    }

    /// The digest, for who has the BLAKE3 of the whole segment already, as sealing does: nearly always that is what is
    /// wanted.
    #[must_use]
    pub fn with_hash_of_all(self, hash: [u8; 32]) -> SegmentDigest {
        if self.is_whole { SegmentDigest { content: hash, ..self.digest } } else { self.with_own_hash() }
    }
}

/// Makes the digest of one whole segment. Every record in it is checked; what is wrong with them is in
/// [`SegmentDigest::state`].
///
/// # Errors
/// [`DigestError`] if it is not that segment at all.
pub fn digest_segment(segment: &[u8], name: SegmentName, size: SegmentSize) -> Result<SegmentDigest, DigestError> {
    scan_segment(segment, name, size).map(ScannedSegment::with_own_hash)
}

/// [`digest_segment`] but for the hash.
///
/// # Errors
/// As [`digest_segment`].
pub fn scan_segment(segment: &[u8], name: SegmentName, size: SegmentSize) -> Result<ScannedSegment<'_>, DigestError> {
    let (first, long, mut digest) = begin_digest(segment, name, size)?;
    if MajorVersion::from_magic(first.magic).is_none() {
        digest.state = SegmentState::Opaque;
        return Ok(ScannedSegment { digest, meaningful: segment, is_whole: true });
    }
    let start = digest.start();
    let mut decoder = WalDecoder::new(start, digest.timeline, size);
    digest.state = match scan_records(&mut digest, &mut decoder, segment) {
        Ok(()) => finish_digest(&mut digest, &decoder, segment, &first),
        Err(state) => state,
    };
    if digest.state == SegmentState::Checked || digest.first_record.is_some() {
        match head_fragment(segment, &first, long.page_size as usize, start) {
            SegmentHead::Rest(fragment) => digest.head = Some(fragment),
            SegmentHead::Void => digest.overwrites = true,
            SegmentHead::None => {}
        }
    }
    let meaningful = match digest.state {
        SegmentState::Checked => usize::try_from(digest.valid_until.bytes_since(start)).unwrap_or(usize::MAX),
        SegmentState::Opaque | SegmentState::Broken { .. } => segment.len(),
    };
    digest.earliest = digest.endings.iter().map(|ending| ending.time).min();
    digest.latest = digest.endings.iter().map(|ending| ending.time).max();
    let meaningful = segment.get(..meaningful).unwrap_or(segment);
    Ok(ScannedSegment { digest, meaningful, is_whole: meaningful.len() == segment.len() })
}

/// Checks that the first page is that of the segment of this name; answers its header and a digest in which nothing is
/// found yet.
fn begin_digest(
    segment: &[u8],
    name: SegmentName,
    size: SegmentSize,
) -> Result<(WalPageHeader, LongPageHeader, SegmentDigest), DigestError> {
    let number = name.number(size).ok_or(DigestError::Name { name, size: size.get() })?;
    if segment.len() != size.len() {
        return Err(DigestError::Length { name, expected: size.get(), found: segment.len() as u64 });
    }
    let magic = segment.first_chunk().map_or(0, |magic| u16::from_le_bytes(*magic));
    let header = WalPageHeader::parse(segment).filter(|_| plausible_magic(magic));
    let Some((header, long)) = header.and_then(|header| Some((header, header.long?))) else {
        return Err(DigestError::NotWal { name, magic });
    };
    if u64::from(long.segment_size) != size.get() {
        return Err(DigestError::SegmentSize { name, expected: size.get(), found: long.segment_size });
    }
    let start = number.start(size);
    if header.address != start {
        return Err(DigestError::Address { name, expected: start, found: header.address });
    }
    if header.timeline > name.timeline().get() || header.timeline == 0 {
        return Err(DigestError::Timeline { name, found: header.timeline });
    }
    let digest = SegmentDigest {
        timeline: name.timeline(),
        segment: number,
        segment_size: size,
        page_magic: magic,
        system_id: long.system_id,
        state: SegmentState::Checked,
        first_record: None,
        last_record: None,
        first_prev: None,
        valid_until: number.end(size),
        switched: false,
        overwrites: false,
        records: 0,
        earliest: None,
        latest: None,
        endings: Vec::new(),
        events: Vec::new(),
        changes: Vec::new(),
        omitted_events: 0,
        head: None,
        tail: None,
        content: [0; 32],
    };
    Ok((header, long, digest))
}

/// Runs through the records and takes up what they mean.
fn scan_records(digest: &mut SegmentDigest, decoder: &mut WalDecoder, segment: &[u8]) -> Result<(), SegmentState> {
    let major = MajorVersion::from_magic(digest.page_magic).ok_or(SegmentState::Opaque)?;
    let mut tally = RowTally::new(major);
    let read = each_record(digest, decoder, segment, &mut tally);
    tally.finish(digest);
    read
}

fn each_record(
    digest: &mut SegmentDigest,
    decoder: &mut WalDecoder,
    segment: &[u8],
    tally: &mut RowTally,
) -> Result<(), SegmentState> {
    let major = MajorVersion::from_magic(digest.page_magic).ok_or(SegmentState::Opaque)?;
    let mut feed = decoder.feed_bytes(segment);
    let mut last = None;
    while let Some(record) = feed.next_record().map_err(|error| broken_state(error.at(), &error))? {
        tally.observe_record(&record);
        if last.is_none() {
            digest.first_record = Some(record.lsn);
            digest.first_prev = Some(record.header.prev);
        }
        last = Some(record.lsn);
        digest.last_record = last;
        digest.records = digest.records.saturating_add(1);
        if may_matter(&record.header) {
            note_record(digest, tally, &record, major)?;
        }
    }
    Ok(())
}

fn broken_state(at: Lsn, why: &dyn std::fmt::Display) -> SegmentState {
    SegmentState::Broken { at, why: why.to_string() }
}

fn note_record(
    digest: &mut SegmentDigest,
    tally: &mut RowTally,
    record: &WalRecord<'_>,
    major: MajorVersion,
) -> Result<(), SegmentState> {
    let RecordMeaning { ending, event, subtransactions } =
        interpret(record, major).map_err(|error| broken_state(error.at, &error))?;
    if let Some(ending) = &ending {
        tally.end_transaction(ending, &subtransactions);
    }
    digest.endings.extend(ending);
    let Some(event) = event else { return Ok(()) };
    if event.kind == WalEventKind::Switch {
        digest.switched = true;
    }
    if digest.events.len() < MAX_EVENTS || !is_plentiful(&event) {
        digest.events.push(event);
    } else {
        digest.omitted_events = digest.omitted_events.saturating_add(1);
    }
    Ok(())
}

/// Whether sessions write such events by the thousand; the others are few, and a restore needs them all.
const fn is_plentiful(event: &WalEvent) -> bool {
    matches!(
        event.kind,
        WalEventKind::Drop(_)
            | WalEventKind::Rewrite(_)
            | WalEventKind::Truncate { .. }
            | WalEventKind::FileEmptied { .. }
            | WalEventKind::DropDatabase { .. }
    )
}

/// Settles where the log ends in the segment, and what of it belongs to the next one.
fn finish_digest(
    digest: &mut SegmentDigest,
    decoder: &WalDecoder,
    segment: &[u8],
    first: &WalPageHeader,
) -> SegmentState {
    if let Some(end) = decoder.end() {
        digest.valid_until = end.at;
        return match wal_after_end(segment, digest, end, decoder.page_size(), first.magic) {
            Some(later) => SegmentState::Broken {
                at: end.at,
                why: format!("the log seems to end at {}, but goes on at {later}: a part of it is missing", end.at),
            },
            None => SegmentState::Checked,
        };
    }
    if digest.switched {
        digest.valid_until = decoder.last_end();
    }
    if let Some(pending) = decoder.pending() {
        if digest.first_record.is_none() {
            digest.first_record = Some(pending.start);
            digest.first_prev = pending
                .bytes
                .get(8..16)
                .and_then(|prev| prev.first_chunk())
                .map(|prev| Lsn::new(u64::from_le_bytes(*prev)));
        }
        digest.tail = Some(tail_fragment(&pending, digest.end()));
    }
    SegmentState::Checked
}

/// Where there is log after what looks like its end: not just zeros in the rest of the page, or a page that is in its
/// place.
fn wal_after_end(segment: &[u8], digest: &SegmentDigest, end: LogEnd, page_size: u64, magic: u16) -> Option<Lsn> {
    let start = digest.start();
    let within = end.seen_at.bytes_since(start);
    let next_page = within.checked_next_multiple_of(page_size)?;
    let rest = segment.get(usize::try_from(within).ok()?..usize::try_from(next_page).ok()?.min(segment.len()))?;
    if let Some(at) = rest.iter().position(|&byte| byte != 0) {
        return end.seen_at.checked_add(at as u64);
    }
    let page_size = usize::try_from(page_size).ok()?;
    let pages = segment.chunks(page_size).zip((start.get()..).step_by(page_size));
    pages
        .skip(usize::try_from(next_page).ok()? / page_size)
        .find(|(page, at)| {
            WalPageHeader::parse(page).is_some_and(|page| page.magic == magic && page.address.get() == *at)
        })
        .map(|(_, at)| Lsn::new(at))
}

fn tail_fragment(pending: &PendingRecord<'_>, end: Lsn) -> RecordFragment {
    let total = pending.bytes.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
    let header = pending.bytes.first_chunk::<RECORD_HEADER_BYTES>().map(RecordHeader::parse);
    let keep = match header {
        Some(header) if !may_matter(&header) && !may_change_names(pending.bytes) => {
            if may_count(&header) {
                FILE_VISIBLE_BYTES
            } else {
                RECORD_HEADER_BYTES
            }
        }
        _ => MAX_FRAGMENT_BYTES,
    };
    let (kept, rest) = pending.bytes.split_at_checked(keep).unwrap_or((pending.bytes, &[]));
    RecordFragment {
        start: pending.start,
        end,
        total,
        held: u32::try_from(pending.bytes.len()).unwrap_or(u32::MAX),
        bytes: kept.to_vec(),
        rest_crc: crc32c::crc32c(rest),
    }
}

/// What stands at a segment's beginning of a record from before.
enum SegmentHead {
    None,
    Rest(RecordFragment),
    /// A crash cut the record in this segment, or at its border.
    Void,
}

/// Gathers the rest of a record from before from the segment's first pages, whose headers the decoder has found right.
fn head_fragment(segment: &[u8], first: &WalPageHeader, page_size: usize, start: Lsn) -> SegmentHead {
    if first.has_flags(FIRST_IS_OVERWRITE_CONTRECORD) {
        return SegmentHead::Void;
    }
    if !first.has_flags(FIRST_IS_CONTRECORD) {
        return SegmentHead::None;
    }
    let mut fragment = RecordFragment {
        start: start.checked_add(first.size() as u64).unwrap_or(start),
        end: start,
        total: first.remaining,
        held: 0,
        bytes: Vec::new(),
        rest_crc: 0,
    };
    let mut position = 0_usize;
    for page in segment.chunks(page_size) {
        let Some(header) = WalPageHeader::parse(page) else { break };
        if header.has_flags(FIRST_IS_OVERWRITE_CONTRECORD) {
            return SegmentHead::Void;
        }
        let body = page.get(header.size()..).unwrap_or_default();
        let left = fragment.total.saturating_sub(fragment.held) as usize;
        let part = body.get(..left).unwrap_or(body);
        let (keep, rest) = part.split_at(part.len().min(MAX_FRAGMENT_BYTES.saturating_sub(fragment.bytes.len())));
        fragment.bytes.extend_from_slice(keep);
        fragment.rest_crc = crc32c::crc32c_append(fragment.rest_crc, rest);
        fragment.held = fragment.held.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
        position = position.saturating_add(header.size()).saturating_add(part.len());
        if fragment.held == fragment.total {
            break;
        }
    }
    fragment.end = start.checked_add(position.next_multiple_of(8) as u64).unwrap_or(start);
    SegmentHead::Rest(fragment)
}

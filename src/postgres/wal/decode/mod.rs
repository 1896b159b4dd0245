//! The push decoder: bytes of the log in, in pieces of any size, and checked records out.
//!
//! Every page header is checked as `XLogReaderValidatePageHeader` does, every record's CRC-32C and its link to the
//! record before as `ValidXLogRecordHeader` and `ValidXLogRecord` do (`xlogreader.c`). A record that lies within one
//! page of one piece is handed out where it lies; only what pages or pieces divide is copied. It does not read bodies
//! ([`super::event`] does), nor does it look for the log beyond damage: the first error is the last word.
//! [`record_check`] has the checks of a record.

mod error;
mod record_check;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::postgres::format::timeline::TimelineId;

pub use error::DecodeError;

use super::page::{
    ALL_FLAGS, DEFAULT_WAL_PAGE_BYTES, FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, HAS_LONG_HEADER,
    LONG_PAGE_HEADER_BYTES, MajorVersion, SHORT_PAGE_HEADER_BYTES, WalPageHeader,
};
use super::record::{RECORD_HEADER_BYTES, RecordHeader, WalRecord};

/// The log's end, as it shows in a segment that was not filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEnd {
    /// Where the next record would have started; where an incomplete one starts, if the end lies within a record.
    pub at: Lsn,
    /// The position of the zeros or of the recycled page that showed it.
    pub seen_at: Lsn,
}

/// What the decoder stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DecoderState {
    /// At a page's first byte, or in its header.
    Page,
    /// Between records, or in one's padding.
    Between,
    /// In a record of which a part is in `record`.
    Within,
    /// In the rest of a record that began before the decoder did.
    Head,
    /// After a switch: what follows until the segment's end means nothing.
    Skip,
    /// Past the end of the log.
    Ended(LogEnd),
    /// After an error.
    Failed(DecodeError),
}

/// A decoder at one place of one cluster's log.
#[derive(Debug)]
pub struct WalDecoder {
    state: DecoderState,
    segment_size: SegmentSize,
    /// The last timeline that can occur.
    timeline: TimelineId,
    /// The next byte's position.
    position: u64,
    page_end: u64,
    page_size: u64,
    major: Option<MajorVersion>,
    system_id: Option<SystemId>,
    page_timeline: u32,
    /// The first bytes of a page header that was cut by the end of a piece.
    header: Vec<u8>,
    /// The first bytes of a record that pages or pieces divide.
    record: Vec<u8>,
    /// Whether the record in `record` is still to be completed; a complete one lies there until the next begins.
    divided: bool,
    record_start: Lsn,
    /// Bytes of the head that are still to come.
    head_left: u64,
    /// The last whole record.
    last: Option<Lsn>,
    /// Where it ended, with its padding.
    last_end: u64,
    /// Whether any page was entered.
    started: bool,
}

/// A piece of the log on its way through a decoder.
#[derive(Debug)]
pub struct DecoderFeed<'d, 'i> {
    decoder: &'d mut WalDecoder,
    input: &'i [u8],
}

/// A record of which the decoder has seen only a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingRecord<'a> {
    /// Where it starts.
    pub start: Lsn,
    /// The part, page headers left out.
    pub bytes: &'a [u8],
}

impl WalDecoder {
    /// A decoder of the log of `timeline` from the page that begins at `start`. If a record from before goes on there,
    /// its rest is passed over: nothing can be said of it without its beginning.
    #[must_use]
    pub fn new(start: Lsn, timeline: TimelineId, segment_size: SegmentSize) -> WalDecoder {
        WalDecoder {
            state: DecoderState::Page,
            segment_size,
            timeline,
            position: start.get(),
            page_end: start.get(),
            page_size: u64::from(DEFAULT_WAL_PAGE_BYTES),
            major: None,
            system_id: None,
            page_timeline: 0,
            header: Vec::new(),
            record: Vec::new(),
            divided: false,
            record_start: start,
            head_left: 0,
            last: None,
            last_end: start.get(),
            started: false,
        }
    }

    /// Takes the next piece. The records in it are to be asked for with [`DecoderFeed::next_record`] until there are
    /// none; what then remains of it is kept.
    pub const fn feed_bytes<'d, 'i>(&'d mut self, input: &'i [u8]) -> DecoderFeed<'d, 'i> {
        DecoderFeed { decoder: self, input }
    }

    /// The position of the next byte it expects.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        Lsn::new(self.position)
    }

    /// The release that writes this log, once the first page was seen.
    #[must_use]
    pub const fn major(&self) -> Option<MajorVersion> {
        self.major
    }

    /// The page size, once the first page was seen.
    #[must_use]
    pub const fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Where the last whole record ended, with its padding and without what a switch leaves unused; where the decoder
    /// began if there was none.
    #[must_use]
    pub const fn last_end(&self) -> Lsn {
        Lsn::new(self.last_end)
    }

    /// The end of the log, if it was passed.
    #[must_use]
    pub const fn end(&self) -> Option<LogEnd> {
        match self.state {
            DecoderState::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// The record that the bytes so far end within.
    #[must_use]
    pub fn pending(&self) -> Option<PendingRecord<'_>> {
        self.divided.then_some(PendingRecord { start: self.record_start, bytes: &self.record })
    }
}

impl<'i> DecoderFeed<'_, 'i> {
    /// The next whole record. `None` when the piece is used up, or nothing more can follow ([`WalDecoder::end`]).
    ///
    /// # Errors
    /// [`DecodeError`] where the log is damaged; the same again on every call after it.
    pub fn next_record(&mut self) -> Result<Option<WalRecord<'_>>, DecodeError> {
        loop {
            match self.decoder.state {
                DecoderState::Between => match self.read_next_record() {
                    Ok(DecodeStep::Whole(bytes)) => return Ok(Some(self.decoder.record_in_input(bytes))),
                    Ok(DecodeStep::On) => {}
                    Ok(DecodeStep::More) => return Ok(None),
                    Err(error) => return self.fail(error),
                },
                DecoderState::Within => match self.collect_record() {
                    Ok(DecodeStep::Whole(_)) => return Ok(Some(self.decoder.collected_record())),
                    Ok(DecodeStep::On) => {}
                    Ok(DecodeStep::More) => return Ok(None),
                    Err(error) => return self.fail(error),
                },
                DecoderState::Page => match self.read_page_header() {
                    Ok(true) => {}
                    Ok(false) => return Ok(None),
                    Err(error) => return self.fail(error),
                },
                DecoderState::Head => {
                    if !self.skip_earlier_record() {
                        return Ok(None);
                    }
                }
                DecoderState::Skip => {
                    if !self.skip_after_switch() {
                        return Ok(None);
                    }
                }
                DecoderState::Ended(_) => {
                    self.take_bytes(self.input.len());
                    return Ok(None);
                }
                DecoderState::Failed(error) => return Err(error),
            }
        }
    }

    fn fail(&mut self, error: DecodeError) -> Result<Option<WalRecord<'_>>, DecodeError> {
        self.decoder.state = DecoderState::Failed(error);
        Err(error)
    }

    /// Takes up to `len` bytes of the piece.
    #[inline]
    fn take_bytes(&mut self, len: usize) -> &'i [u8] {
        let (taken, rest) = self.input.split_at_checked(len).unwrap_or((self.input, &[]));
        self.input = rest;
        self.decoder.position = self.decoder.position.saturating_add(taken.len() as u64);
        taken
    }

    /// The part of the piece that lies in this page.
    #[inline]
    fn in_page(&self) -> &'i [u8] {
        let left = self.decoder.page_end.saturating_sub(self.decoder.position);
        usize::try_from(left).ok().and_then(|left| self.input.get(..left)).unwrap_or(self.input)
    }

    /// Reads and checks a page header; `false` if the piece ends before it does.
    fn read_page_header(&mut self) -> Result<bool, DecodeError> {
        let at = self.decoder.position.saturating_sub(self.decoder.header.len() as u64);
        loop {
            let want = match self.decoder.header.get(2) {
                Some(flags) if u16::from(*flags) & HAS_LONG_HEADER != 0 => LONG_PAGE_HEADER_BYTES,
                _ => SHORT_PAGE_HEADER_BYTES,
            };
            let missing = want.saturating_sub(self.decoder.header.len());
            if missing == 0 {
                break;
            }
            let taken = self.take_bytes(missing);
            if taken.is_empty() {
                return Ok(false);
            }
            self.decoder.header.extend_from_slice(taken);
        }
        let parsed = WalPageHeader::parse(&self.decoder.header);
        self.decoder.header.clear();
        if let Some(header) = parsed {
            self.decoder.enter_page(&header, Lsn::new(at))?;
        }
        Ok(true)
    }

    /// At a record boundary: the next record, where it lies if it lies whole in this page and piece.
    #[inline]
    fn read_next_record(&mut self) -> Result<DecodeStep<'i>, DecodeError> {
        // A decoder's position cannot wrap: the log's would have.
        let padding = (self.decoder.position.wrapping_neg() & 7) as usize;
        if padding != 0 && self.take_bytes(padding).len() < padding {
            return Ok(DecodeStep::More);
        }
        if self.decoder.position >= self.decoder.page_end {
            self.decoder.state = DecoderState::Page;
            return Ok(DecodeStep::On);
        }
        let slice = self.in_page();
        if slice.is_empty() {
            return Ok(DecodeStep::More);
        }
        self.decoder.record_start = Lsn::new(self.decoder.position);
        if let Some((fixed, _)) = slice.split_first_chunk::<RECORD_HEADER_BYTES>() {
            let header = RecordHeader::parse(fixed);
            if header.total_len == 0 {
                return Ok(self.decoder.end_at_zeros());
            }
            self.decoder.check_header(&header)?;
            if let Some(bytes) = slice.get(..header.total_len as usize) {
                self.decoder.check_crc(&header, bytes)?;
                self.take_bytes(bytes.len());
                return Ok(DecodeStep::Whole(bytes));
            }
        }
        self.decoder.record.clear();
        self.decoder.divided = true;
        self.decoder.state = DecoderState::Within;
        Ok(DecodeStep::On)
    }

    /// Collects a record that is divided.
    fn collect_record(&mut self) -> Result<DecodeStep<'i>, DecodeError> {
        let had = self.decoder.record.len();
        let header = self.decoder.record.first_chunk::<RECORD_HEADER_BYTES>().map(RecordHeader::parse);
        let want = match header {
            Some(header) => header.total_len as usize,
            None if had < 4 => 4,
            None => RECORD_HEADER_BYTES,
        };
        // Asked first: a record may end where the page does, and nothing of it is then looked for on the next.
        if let Some(header) = header.filter(|_| had >= want) {
            self.decoder.check_crc(&header, &self.decoder.record)?;
            return Ok(DecodeStep::Whole(&[]));
        }
        if self.decoder.position >= self.decoder.page_end {
            self.decoder.state = DecoderState::Page;
            return Ok(DecodeStep::On);
        }
        let slice = self.in_page();
        let taken = self.take_bytes(want.saturating_sub(had).min(slice.len()));
        if taken.is_empty() {
            return Ok(DecodeStep::More);
        }
        self.decoder.record.extend_from_slice(taken);
        if had < 4 && self.decoder.record.len() == 4 {
            if self.decoder.record == [0; 4] {
                return Ok(self.decoder.end_at_zeros());
            }
            let total_len = self.decoder.record.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len));
            self.decoder.check_length(total_len)?;
        }
        if had < RECORD_HEADER_BYTES
            && let Some(fixed) = self.decoder.record.first_chunk::<RECORD_HEADER_BYTES>()
        {
            let header = RecordHeader::parse(fixed);
            self.decoder.check_header(&header)?;
        }
        Ok(DecodeStep::On)
    }

    /// Passes over the rest of a record from before the first page; `false` if the piece ends first.
    fn skip_earlier_record(&mut self) -> bool {
        if self.decoder.head_left == 0 {
            self.decoder.state = DecoderState::Between;
        } else if self.decoder.position >= self.decoder.page_end {
            self.decoder.state = DecoderState::Page;
        } else {
            let left = usize::try_from(self.decoder.head_left).unwrap_or(usize::MAX);
            let taken = self.take_bytes(left.min(self.in_page().len())).len();
            self.decoder.head_left = self.decoder.head_left.saturating_sub(taken as u64);
            return taken > 0;
        }
        true
    }

    /// Passes over the rest of a switched segment; `false` if the piece ends first.
    fn skip_after_switch(&mut self) -> bool {
        let left = self.decoder.page_end.saturating_sub(self.decoder.position);
        if left == 0 {
            self.decoder.state = DecoderState::Page;
            return true;
        }
        !self.take_bytes(usize::try_from(left).unwrap_or(usize::MAX)).is_empty()
    }
}

/// How a step through the log ended.
enum DecodeStep<'a> {
    /// A whole record: where it lies, or empty if it is in the decoder.
    Whole(&'a [u8]),
    /// Somewhere else; go on.
    On,
    /// At the end of the piece.
    More,
}

impl WalDecoder {
    /// A record in the input, whose bytes were already taken.
    #[inline]
    fn record_in_input<'a>(&mut self, bytes: &'a [u8]) -> WalRecord<'a> {
        let fixed = bytes.first_chunk::<RECORD_HEADER_BYTES>().unwrap_or(&[0; RECORD_HEADER_BYTES]);
        let header = RecordHeader::parse(fixed);
        self.finish_record(header);
        WalRecord { lsn: self.record_start, end_lsn: self.end_of_record(), header, bytes }
    }

    /// The record in `record`. It stays there until the next one begins; `pending` must not show it.
    fn collected_record(&mut self) -> WalRecord<'_> {
        let fixed = self.record.first_chunk::<RECORD_HEADER_BYTES>().unwrap_or(&[0; RECORD_HEADER_BYTES]);
        let header = RecordHeader::parse(fixed);
        self.finish_record(header);
        WalRecord { lsn: self.record_start, end_lsn: self.end_of_record(), header, bytes: &self.record }
    }

    #[inline]
    fn finish_record(&mut self, header: RecordHeader) {
        self.last = Some(self.record_start);
        self.last_end = round_up(self.position, 8);
        self.divided = false;
        self.state = DecoderState::Between;
        if header.is_switch() {
            // The whole rest is skipped as if it were one page.
            self.page_end = round_up(self.position, self.segment_size.get());
            self.state = DecoderState::Skip;
        }
    }

    /// Where the record that ends at the current position ends for PostgreSQL: padding belongs to it, and after a
    /// switch the whole segment.
    #[inline]
    fn end_of_record(&self) -> Lsn {
        Lsn::new(if self.state == DecoderState::Skip { self.page_end } else { self.last_end })
    }

    /// A length of zero where a record should be: nothing was ever written here.
    fn end_at_zeros(&mut self) -> DecodeStep<'static> {
        self.divided = false;
        self.state = DecoderState::Ended(LogEnd { at: self.record_start, seen_at: self.record_start });
        DecodeStep::On
    }

    /// Checks the header of the page at `at`, and turns to what stands first in it.
    fn enter_page(&mut self, header: &WalPageHeader, at: Lsn) -> Result<(), DecodeError> {
        if self.is_never_written(header, at) {
            let start = if self.divided { self.record_start } else { at };
            self.divided = false;
            self.state = DecoderState::Ended(LogEnd { at: start, seen_at: at });
            return Ok(());
        }
        self.check_page(header, at)?;
        self.page_timeline = header.timeline;
        self.page_end = at.get().saturating_add(self.page_size);
        self.enter_first_record(header, at)
    }

    /// Whether the page is zero, or was last written in the segment's former life: the log ends before it.
    fn is_never_written(&self, header: &WalPageHeader, at: Lsn) -> bool {
        let zero = header.magic == 0 && header.info == 0 && header.address == Lsn::INVALID && header.timeline == 0;
        let known = self.major.is_some_and(|major| major.magic() == header.magic);
        let recycled = known && header.address < at && header.address.get().is_multiple_of(self.page_size);
        self.major.is_some() && (zero || recycled)
    }

    fn check_page(&mut self, header: &WalPageHeader, at: Lsn) -> Result<(), DecodeError> {
        let damaged = |problem| Err(DecodeError::Page { at, problem });
        let known = MajorVersion::from_magic(header.magic);
        let (Some(major), true) = (known, self.major.is_none_or(|major| Some(major) == known)) else {
            return Err(DecodeError::Magic { at, found: header.magic });
        };
        if header.address != at {
            return Err(DecodeError::Address { at, found: header.address });
        }
        if header.info & !ALL_FLAGS != 0 {
            return damaged("flags that do not exist");
        }
        if header.timeline < self.page_timeline || header.timeline == 0 || header.timeline > self.timeline.get() {
            return Err(DecodeError::Timeline { at, found: header.timeline, before: self.page_timeline });
        }
        match header.long {
            Some(long) => {
                if u64::from(long.segment_size) != self.segment_size.get() {
                    return damaged("another segment size");
                }
                if !long.page_size.is_power_of_two() || !(1024..=65536).contains(&long.page_size) {
                    return damaged("a page size that does not exist");
                }
                let expected = *self.system_id.get_or_insert(long.system_id);
                if long.system_id != expected {
                    return Err(DecodeError::SystemId { at, found: long.system_id, expected });
                }
                self.page_size = u64::from(long.page_size);
            }
            None if self.segment_size.offset_of(at) == 0 => {
                return damaged("a segment's first page without the long form");
            }
            None => {}
        }
        self.major = Some(major);
        Ok(())
    }

    /// What stands first in the page: the rest of a record, or a new one (`XLogDecodeNextRecord`).
    fn enter_first_record(&mut self, header: &WalPageHeader, at: Lsn) -> Result<(), DecodeError> {
        let wrong = |problem| Err(DecodeError::Continuation { at, problem });
        if header.has_flags(FIRST_IS_OVERWRITE_CONTRECORD) {
            // A crash cut the record, and the server wrote this page in the place of its rest
            // (`CreateOverwriteContrecordRecord`).
            self.divided = false;
            self.head_left = 0;
        }
        let expected = if self.divided { self.record_left() } else { self.head_left };
        let first = !std::mem::replace(&mut self.started, true);
        match (header.has_flags(FIRST_IS_CONTRECORD), expected) {
            (true, 0) if first => {
                self.head_left = u64::from(header.remaining);
                self.state = DecoderState::Head;
                return if self.head_left == 0 { wrong("nothing remains of it") } else { Ok(()) };
            }
            (true, 0) => return wrong("none was cut by the page's end"),
            (false, 1..) => return wrong("the rest of it is missing"),
            (true, left) if left != u64::from(header.remaining) => {
                return wrong("another number of bytes remains than should");
            }
            _ => {}
        }
        self.state = match (expected, self.divided) {
            (0, _) => DecoderState::Between,
            (_, true) => DecoderState::Within,
            (_, false) => DecoderState::Head,
        };
        Ok(())
    }

    /// How much of the record in `record` is still to come. Its length is known: records start at multiples of eight,
    /// pages end there.
    fn record_left(&self) -> u64 {
        let total = self.record.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len));
        u64::from(total).saturating_sub(self.record.len() as u64)
    }
}

/// The next multiple of `unit`; the end of all positions if there is none.
#[inline]
fn round_up(position: u64, unit: u64) -> u64 {
    position.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
}

/// Fuzz body: the first bytes choose release, place and pieces, the rest is the log. Whatever it is, decoding ends, and
/// in pieces it gives what it gives in one.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&[piece, start], log)) = data.split_first_chunk::<2>() else { return };
    let Ok(size) = SegmentSize::new(1 << 20) else { return };
    let start = Lsn::new(u64::from(start) * 8192);
    let timeline = TimelineId::FIRST;
    let run = |piece: usize| {
        let mut decoder = WalDecoder::new(start, timeline, size);
        let (mut records, mut error) = (Vec::new(), None);
        for piece in log.chunks(piece.max(1)) {
            let mut feed = decoder.feed_bytes(piece);
            loop {
                match feed.next_record() {
                    Ok(Some(record)) => records.push((record.lsn, record.end_lsn, record.bytes.to_vec())),
                    Ok(None) => break,
                    Err(found) => {
                        error = Some(found);
                        break;
                    }
                }
            }
        }
        (records, error, decoder.end())
    };
    assert_eq!(run(log.len()), run(usize::from(piece)), "in one piece and in pieces");
}

//! Where what a record does takes effect, and who did how much: questions that only the segments' bytes answer.

use std::collections::{BTreeSet, HashMap};

use super::{LookupError, RecordSpan, SegmentSource, WalLookup};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::index::path_search::{PathSearch, SegmentFilter};
use crate::postgres::wal::catalog::{RowCounts, counted_rows, invalidates};
use crate::postgres::wal::event::{RelFileLocator, TransactionEnd, WalEventKind, Xid, interpret};
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::{RECORD_HEADER_BYTES, RMGR_INFO, RecordHeader, rmgr};

/// Whether a record changes a tuple in its place, which no abort undoes.
fn is_in_place_update(header: &RecordHeader) -> bool {
    header.rmgr == rmgr::SMGR_TRUNCATE_HEAP && header.info & RMGR_INFO & 0x70 == 0x70
}

/// Segments that are looked through for what should be near.
const NEARBY_SEGMENTS: u64 = 16;

/// The kind of dropped databases ([`WalEventKind::tag`]).
const DROP_DATABASE_TAG: u8 = 13;

impl<S: SegmentSource> WalLookup<'_, S> {
    /// The record by which what stands at `lsn` took effect: where its transaction ended, or the record itself where it
    /// belongs to none. `None` if no record starts there, or its transaction did not end.
    ///
    /// # Errors
    /// What index or source say.
    pub fn effect_of(&self, path: &TimelinePath, lsn: Lsn) -> Result<Option<RecordSpan>, LookupError<S::Error>> {
        if let Some(ending) =
            self.first_ending(path, lsn, SegmentFilter::Ending, |_| true)?.filter(|ending| ending.lsn == lsn)
        {
            return self.effect_of_ending(path, &ending).map(Some);
        }
        let Some((record, header)) = self.record_at(path, lsn)? else { return Ok(None) };
        if header.xid == 0 || is_in_place_update(&header) {
            return Ok(Some(record));
        }
        let ended = match self.ending_of(path, record.end, Xid::new(header.xid))? {
            Some(ending) => Some(ending),
            None => self.ending_of_subtransaction(path, record.end, Xid::new(header.xid))?,
        };
        ended.map(|ending| self.effect_of_ending(path, &ending)).transpose()
    }

    /// Where a transaction took effect: with its end, but for one that dropped a database, which did so before.
    fn effect_of_ending(
        &self,
        path: &TimelinePath,
        ending: &TransactionEnd,
    ) -> Result<RecordSpan, LookupError<S::Error>> {
        let from = Lsn::new(ending.lsn.get().saturating_sub(NEARBY_SEGMENTS.saturating_mul(self.segment_size().get())));
        let dropped = self.events(path, &[DROP_DATABASE_TAG], from, ending.lsn, usize::MAX)?;
        let Some((event, database)) = dropped.iter().find_map(|event| match event.kind {
            WalEventKind::DropDatabase { database } if event.xid == ending.xid => Some((event, database)),
            _ => None,
        }) else {
            return Ok(RecordSpan { lsn: ending.lsn, end: ending.end_lsn });
        };
        let invalidated = match self.invalidated_before(path, event.lsn, database)? {
            Some(lsn) => self.record_at(path, lsn)?.map(|(record, _)| record),
            None => None,
        };
        Ok(invalidated.unwrap_or(RecordSpan { lsn: event.lsn, end: event.end_lsn }))
    }

    /// The end of the transaction that `part` is a subtransaction of, if it comes soon. Looks into the segments' bytes:
    /// nothing else says whose a subtransaction is.
    fn ending_of_subtransaction(
        &self,
        path: &TimelinePath,
        from: Lsn,
        part: Xid,
    ) -> Result<Option<TransactionEnd>, LookupError<S::Error>> {
        let (Some(along), Some(major)) = (PathSearch::new(&self.view, path), self.major_at(path, from)?) else {
            return Ok(None);
        };
        let mut segment = along.segment_size().segment_of(from);
        for _ in 0..NEARBY_SEGMENTS {
            let Some(stretch) = along.next_segment(segment, SegmentFilter::Ending)? else { return Ok(None) };
            let mut found = None;
            self.find_record(&stretch, |record| {
                if record.lsn >= from && record.header.rmgr == rmgr::TRANSACTION {
                    let meaning = interpret(record, major).unwrap_or_default();
                    found = meaning.ending.filter(|_| meaning.subtransactions.contains(&part));
                }
                found.is_some()
            })?;
            if found.is_some() {
                return Ok(found);
            }
            segment = stretch.place.segment.next();
        }
        Ok(None)
    }

    /// The record before `before` and not far from it that marked a database as invalid, if the server does that. Looks
    /// into that segment's bytes, and the one before.
    ///
    /// # Errors
    /// What index or source say.
    pub fn invalidated_before(
        &self,
        path: &TimelinePath,
        before: Lsn,
        database: u32,
    ) -> Result<Option<Lsn>, LookupError<S::Error>> {
        let (Some(along), Some(major)) = (PathSearch::new(&self.view, path), self.major_at(path, before)?) else {
            return Ok(None);
        };
        let last = along.segment_size().segment_of(before);
        for segment in [Some(last), last.previous()].into_iter().flatten() {
            let Some(stretch) = along.segment_by_number(segment)? else { break };
            let found =
                self.find_record(&stretch, |record| record.lsn >= before || invalidates(record, database, major))?;
            if let Some(record) = found.filter(|record| record.lsn < before) {
                return Ok(Some(record.lsn));
            }
        }
        Ok(None)
    }

    /// The rows that transactions changed in one segment of the path, by file, counted in the segment's bytes.
    ///
    /// # Errors
    /// What index or source say.
    pub fn count_rows_of(
        &self,
        path: &TimelinePath,
        segment: SegmentNo,
        xids: &BTreeSet<Xid>,
    ) -> Result<HashMap<RelFileLocator, RowCounts>, LookupError<S::Error>> {
        let mut rows: HashMap<RelFileLocator, RowCounts> = HashMap::new();
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(rows) };
        let Some(stretch) = along.segment_by_number(segment)? else { return Ok(rows) };
        let Some(major) = MajorVersion::from_magic(stretch.summary.digest.page_magic) else { return Ok(rows) };
        self.find_record(&stretch, |record| {
            if xids.contains(&Xid::new(record.header.xid))
                && let Some((_, file, counts)) = counted_rows(record, major)
            {
                rows.entry(file).or_default().add(counts);
            }
            false
        })?;
        Ok(rows)
    }

    /// The record that starts at `lsn`, and its header.
    fn record_at(
        &self,
        path: &TimelinePath,
        lsn: Lsn,
    ) -> Result<Option<(RecordSpan, RecordHeader)>, LookupError<S::Error>> {
        let Some(along) = PathSearch::new(&self.view, path) else { return Ok(None) };
        let Some(stretch) = along.segment_containing(lsn)? else { return Ok(None) };
        let mut header = None;
        let found = self.find_record(&stretch, |record| {
            header = Some(record.header);
            record.lsn >= lsn
        })?;
        if let Some(record) = found {
            return Ok(header.map(|header| (record, header)).filter(|_| record.lsn == lsn && record.end <= stretch.to));
        }
        // It runs over the segment's end.
        let Some(tail) = stretch.summary.digest.tail.filter(|tail| tail.start == lsn) else { return Ok(None) };
        let writer = tail.bytes.first_chunk::<RECORD_HEADER_BYTES>().map(RecordHeader::parse);
        let whole = self.record_from(path, lsn)?.filter(|record| record.lsn == lsn);
        Ok(whole.zip(writer))
    }
}

//! What transactions did to tables, put together from the sums that segments show.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::error::LogError;
use crate::postgres::archive::lookup::WalLookup;
use crate::postgres::archive::reindex::ArchiveSegments;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::wal::catalog::RowCounts;
use crate::postgres::wal::event::{RelFileLocator, TransactionEnd, Xid};

/// Rows in all that make a transaction large, in multiples of those that make it worth telling.
const LARGE_FACTOR: u64 = 10;
/// Transactions that are put together at a time. Most end in the segment in which they began.
const MAX_OPEN_TRANSACTIONS: usize = 1 << 16;
/// A transaction whose first listed row stands so near to a segment's beginning may have begun in the one before.
const NEAR_SEGMENT_START_BYTES: u64 = 256 << 10;

/// One transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct TransactionChanges {
    /// Rows by file.
    pub(super) tables: HashMap<RelFileLocator, RowCounts>,
    /// Segments whose sums are in it.
    seen: BTreeSet<SegmentNo>,
    first: Option<Lsn>,
    /// Its subtransactions, as far as they are known.
    parts: BTreeSet<Xid>,
    /// The log has come to its end.
    ended: bool,
    /// Its commit, once there is enough to ask for it.
    pub(super) commit: Option<TransactionEnd>,
}

impl TransactionChanges {
    fn is_notable(&self, many: u64) -> bool {
        let table = |counts: &RowCounts| counts.updated >= many || counts.deleted >= many;
        self.tables.values().any(table) || self.is_large(many)
    }

    fn is_large(&self, many: u64) -> bool {
        self.tables.values().fold(0, |sum: u64, counts| sum.saturating_add(counts.rows()))
            >= many.saturating_mul(LARGE_FACTOR)
    }

    fn add_counts(&mut self, file: RelFileLocator, counts: RowCounts) {
        self.tables.entry(file).or_default().add(counts);
    }
}

/// Transactions that are under way, and those that are to be told when the log has come to their commit.
#[derive(Debug)]
pub(super) struct OpenTransactions<'a> {
    lookup: &'a WalLookup<'a, ArchiveSegments>,
    path: &'a TimelinePath,
    /// Rows of a table that make a transaction worth telling.
    pub(super) min_rows: u64,
    open: HashMap<Xid, TransactionChanges>,
    due: BTreeMap<Lsn, Xid>,
}

impl<'a> OpenTransactions<'a> {
    pub(super) fn new(
        lookup: &'a WalLookup<'a, ArchiveSegments>,
        path: &'a TimelinePath,
        many: u64,
    ) -> OpenTransactions<'a> {
        OpenTransactions { lookup, path, min_rows: many, open: HashMap::new(), due: BTreeMap::new() }
    }

    /// The rows that are many in all.
    pub(super) const fn large_transaction_rows(&self) -> u64 {
        self.min_rows.saturating_mul(LARGE_FACTOR)
    }

    /// A segment's sum; `last` if the transaction is known to have ended in it.
    pub(super) fn add_rows(
        &mut self,
        at: Lsn,
        xid: Xid,
        file: RelFileLocator,
        counts: RowCounts,
        last: bool,
    ) -> Result<(), LogError> {
        if self.open.len() >= MAX_OPEN_TRANSACTIONS {
            self.open.retain(|_, work| work.commit.is_some() || !work.ended);
            if self.open.len() >= MAX_OPEN_TRANSACTIONS {
                self.open.retain(|_, work| work.commit.is_some());
            }
        }
        let segment = self.lookup.segment_size().segment_of(at);
        let work = self.open.entry(xid).or_default();
        work.add_counts(file, counts);
        work.first = Some(work.first.map_or(at, |first| first.min(at)));
        // A single row is that of a record that lies over a segment's end, and no segment's sum.
        if counts.rows() > 1 || last {
            work.seen.insert(segment);
        }
        // Its subtransactions may turn out to have done more.
        work.ended = last;
        self.look_up_end(at, xid)
    }

    /// Subtransactions turn out to be of `xid`.
    pub(super) fn join_subtransactions(&mut self, at: Lsn, xid: Xid, of: &[Xid]) -> Result<(), LogError> {
        for sub in of {
            let Some(part) = self.open.remove(sub) else { continue };
            let work = self.open.entry(xid).or_default();
            part.tables.into_iter().for_each(|(file, counts)| work.add_counts(file, counts));
            work.seen.extend(part.seen);
            work.parts.insert(*sub);
            work.first = work.first.into_iter().chain(part.first).min();
        }
        if self.open.contains_key(&xid) { self.look_up_end(at, xid) } else { Ok(()) }
    }

    /// Asks how the transaction ended, once it has done enough to be told.
    fn look_up_end(&mut self, at: Lsn, xid: Xid) -> Result<(), LogError> {
        let Some(work) = self.open.get_mut(&xid) else { return Ok(()) };
        if work.commit.is_some() || !work.is_notable(self.min_rows) {
            return Ok(());
        }
        match self.lookup.ending_of(self.path, at, xid)? {
            Some(ending) if ending.kind.is_commit() => {
                work.commit = Some(ending);
                self.due.insert(ending.lsn, xid);
            }
            Some(_aborted) => {
                self.open.remove(&xid);
            }
            // A subtransaction, or it has not ended.
            None => {}
        }
        Ok(())
    }

    /// A transaction that committed before `lsn` and has not been told; call it until there is none.
    pub(super) fn next_committed_before(
        &mut self,
        lsn: Lsn,
    ) -> Result<Option<(Xid, TransactionEnd, TransactionChanges)>, LogError> {
        let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() < lsn) else { return Ok(None) };
        let xid = entry.remove();
        let Some(mut work) = self.open.remove(&xid) else { return Ok(None) };
        let Some(commit) = work.commit else { return Ok(None) };
        self.add_unlisted_rows(&mut work, &commit)?;
        Ok(Some((xid, commit, work)))
    }

    /// Counts what the segments' sums leave out: the few rows in a transaction's last segment, and in the one before
    /// the first that lists it.
    fn add_unlisted_rows(&self, work: &mut TransactionChanges, commit: &TransactionEnd) -> Result<(), LogError> {
        let size = self.lookup.segment_size();
        let Some(first) = work.first else { return Ok(()) };
        let xids: BTreeSet<Xid> = work.parts.iter().copied().chain([commit.xid]).collect();
        let before = size.segment_of(first).previous().filter(|_| size.offset_of(first) < NEAR_SEGMENT_START_BYTES);
        for segment in before.into_iter().chain([size.segment_of(commit.lsn)]) {
            if work.seen.insert(segment) {
                for (file, counts) in self.lookup.count_rows_of(self.path, segment, &xids)? {
                    work.add_counts(file, counts);
                }
            }
        }
        Ok(())
    }
}

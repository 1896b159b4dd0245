//! What a segment's heap records come to: rows by transaction and table, and changes of the catalogs that hold names.
//!
//! It sees nearly every record there is, so the common way is short: a transaction is found by the low bits of its
//! number, its table is the last one it changed, and when it ends with a few rows to its name it is forgotten. What
//! stays is what somebody will ask for.

use std::collections::{HashMap, HashSet};

use super::segment_digest::SegmentDigest;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::wal::catalog::{Catalog, RowCounts, catalog_change, counted_rows};
use crate::postgres::wal::event::{MAX_SUBTRANSACTIONS, RelFileLocator, TransactionEnd, WalEvent, WalEventKind, Xid};
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::{RMGR_INFO, WalRecord, rmgr};

/// Fewer rows of a table than this in one segment are not listed: a transaction's work in a segment is what is counted,
/// and most transactions change a row or two.
const MIN_LISTED_ROWS: u64 = 8;
/// As few for rows that were only inserted, which no one needs to undo one by one.
const MIN_LISTED_INSERTED_ROWS: u64 = 64;
/// The most that a segment lists of rows.
const MAX_ROW_EVENTS: usize = 256;
/// The most that a segment lists of changes in catalogs. A session that makes and drops temporary tables all the time
/// fills a segment with some thousands, and of those only that they are temporary is of interest.
const MAX_CATALOG_EVENTS: usize = 4096;
/// Transactions that are found at once. Those whose numbers share the low bits make room for one another.
const TRANSACTION_SLOTS: usize = 256;

/// What one transaction did to one table.
#[derive(Clone, Copy)]
struct TableRows {
    file: RelFileLocator,
    first: Lsn,
    end: Lsn,
    counts: RowCounts,
}

impl TableRows {
    const fn is_worth_listing(&self) -> bool {
        self.counts.updated.saturating_add(self.counts.deleted) >= MIN_LISTED_ROWS
            || self.counts.inserted >= MIN_LISTED_INSERTED_ROWS
            || self.counts.pages > 0
    }

    const fn event(&self, xid: Xid, ended: bool) -> WalEvent {
        let kind = WalEventKind::Rows { file: self.file, counts: self.counts, ended };
        WalEvent { lsn: self.first, end_lsn: self.end, xid, kind }
    }
}

#[derive(Clone, Default)]
struct TransactionSlot {
    xid: u32,
    entries: Vec<TableRows>,
}

/// The sums so far.
pub(super) struct RowTally {
    major: MajorVersion,
    slots: Vec<TransactionSlot>,
    /// Transactions that had to make room.
    spilled: HashMap<u32, Vec<TableRows>>,
    rows: Vec<WalEvent>,
    others: Vec<WalEvent>,
    catalog: Vec<WalEvent>,
    /// Transactions that changed a catalog, and how they ended.
    named: HashSet<u32>,
    fates: HashMap<u32, (Xid, bool)>,
}

impl RowTally {
    pub(super) fn new(major: MajorVersion) -> RowTally {
        RowTally {
            major,
            slots: vec![TransactionSlot::default(); TRANSACTION_SLOTS],
            spilled: HashMap::new(),
            rows: Vec::new(),
            others: Vec::new(),
            catalog: Vec::new(),
            named: HashSet::new(),
            fates: HashMap::new(),
        }
    }

    /// Takes a record up, whatever it is.
    #[inline]
    pub(super) fn observe_record(&mut self, record: &WalRecord<'_>) {
        if let Some((xid, file, counts)) = counted_rows(record, self.major) {
            if Catalog::from_file(file).is_some() {
                self.add_catalog_change(record);
            } else {
                self.add_rows(record, xid, file, counts);
            }
        } else if record.header.rmgr == rmgr::DATABASE {
            self.others.extend(database_created(record, self.major));
        }
    }

    #[inline]
    fn add_rows(&mut self, record: &WalRecord<'_>, xid: Xid, file: RelFileLocator, counts: RowCounts) {
        let Some(slot) = self.slots.get_mut(xid.get() as usize % TRANSACTION_SLOTS) else { return };
        if slot.xid != xid.get() {
            if !slot.entries.is_empty() {
                self.spilled.insert(slot.xid, std::mem::take(&mut slot.entries));
            }
            slot.xid = xid.get();
            if !self.spilled.is_empty() {
                slot.entries = self.spilled.remove(&xid.get()).unwrap_or_default();
            }
        }
        match slot.entries.iter_mut().rev().find(|entry| entry.file == file) {
            Some(entry) => {
                entry.counts.add(counts);
                entry.end = record.end_lsn;
            }
            None => slot.entries.push(TableRows { file, first: record.lsn, end: record.end_lsn, counts }),
        }
    }

    fn add_catalog_change(&mut self, record: &WalRecord<'_>) {
        let Some(change) = catalog_change(record, self.major) else { return };
        if self.catalog.len() < MAX_CATALOG_EVENTS {
            self.named.insert(record.header.xid);
            let xid = Xid::new(record.header.xid);
            self.catalog.push(WalEvent {
                lsn: record.lsn,
                end_lsn: record.end_lsn,
                xid,
                kind: WalEventKind::Catalog(Box::new(change)),
            });
        }
    }

    /// A transaction has ended, and its subtransactions with it.
    pub(super) fn end_transaction(&mut self, ending: &TransactionEnd, subtransactions: &[Xid]) {
        let commits = ending.kind.is_commit();
        let top = ending.xid;
        if let Some(slot) = self.slots.get_mut(top.get() as usize % TRANSACTION_SLOTS)
            && slot.xid == top.get()
            && subtransactions.is_empty()
        {
            // The common way: nothing is moved, and the room is used again.
            let worth = slot.entries.iter().filter(|entry| commits && entry.is_worth_listing());
            self.rows.extend(worth.map(|entry| entry.event(top, true)));
            slot.entries.clear();
        } else {
            self.end_with_subtransactions(ending, subtransactions);
        }
        if !self.named.is_empty() {
            for xid in subtransactions.iter().chain([&top]).filter(|xid| self.named.contains(&xid.get())) {
                self.fates.insert(xid.get(), (top, commits));
            }
        }
    }

    fn end_with_subtransactions(&mut self, ending: &TransactionEnd, subtransactions: &[Xid]) {
        let mut all = self.remove_transaction(ending.xid).unwrap_or_default();
        let mut unseen = Vec::new();
        for sub in subtransactions {
            let entries = self.remove_transaction(*sub);
            let elsewhere = match &entries {
                Some(entries) => entries.iter().any(TableRows::is_worth_listing),
                None => !self.named.contains(&sub.get()),
            };
            if elsewhere && unseen.len() < MAX_SUBTRANSACTIONS {
                unseen.push(*sub);
            }
            let Some(entries) = entries else { continue };
            for entry in entries {
                match all.iter_mut().find(|other| other.file == entry.file) {
                    Some(other) => {
                        other.counts.add(entry.counts);
                        (other.first, other.end) = (other.first.min(entry.first), other.end.max(entry.end));
                    }
                    None => all.push(entry),
                }
            }
        }
        if !ending.kind.is_commit() {
            return;
        }
        self.rows
            .extend(all.iter().filter(|entry| entry.is_worth_listing()).map(|entry| entry.event(ending.xid, true)));
        // More of what they did may stand in earlier segments, under their own numbers.
        if !unseen.is_empty() {
            let kind = WalEventKind::Subtransactions { of: unseen };
            self.others.push(WalEvent { lsn: ending.lsn, end_lsn: ending.end_lsn, xid: ending.xid, kind });
        }
    }

    fn remove_transaction(&mut self, xid: Xid) -> Option<Vec<TableRows>> {
        let slot = self.slots.get_mut(xid.get() as usize % TRANSACTION_SLOTS)?;
        if slot.xid == xid.get() && !slot.entries.is_empty() {
            return Some(std::mem::take(&mut slot.entries));
        }
        self.spilled.remove(&xid.get())
    }

    /// Puts what is worth it into the digest, in log order.
    pub(super) fn finish(mut self, digest: &mut SegmentDigest) {
        let open = self.slots.into_iter().map(|slot| (slot.xid, slot.entries)).chain(self.spilled);
        for (xid, entries) in open {
            let worth = entries.iter().filter(|entry| entry.is_worth_listing());
            self.rows.extend(worth.map(|entry| entry.event(Xid::new(xid), false)));
        }
        if self.rows.len() > MAX_ROW_EVENTS {
            let weight = |event: &WalEvent| match &event.kind {
                WalEventKind::Rows { counts, .. } => counts.rows(),
                _ => 0,
            };
            self.rows.sort_by_key(|event| (std::cmp::Reverse(weight(event)), event.lsn));
            self.rows.truncate(MAX_ROW_EVENTS);
        }
        let fates = self.fates;
        self.catalog.retain_mut(|event| match (fates.get(&event.xid.get()), &mut event.kind) {
            (Some((top, true)), WalEventKind::Catalog(change)) => {
                event.xid = *top;
                change.committed = true;
                true
            }
            (Some((_, commits)), _) => *commits,
            (None, _) => true,
        });
        digest.changes = self.rows;
        digest.changes.append(&mut self.others);
        digest.changes.append(&mut self.catalog);
        digest.changes.sort_by_key(|event| (event.lsn, event.kind.tag()));
    }
}

/// `XLOG_DBASE_CREATE`, of which there are two since 15 (`dbcommands_xlog.h`).
fn database_created(record: &WalRecord<'_>, major: MajorVersion) -> Option<WalEvent> {
    let op = record.header.info & RMGR_INFO;
    if op != 0 && (op != 0x10 || major < MajorVersion::V15) {
        return None;
    }
    let database = u32::from_le_bytes(*record.main_data(major)?.first_chunk()?);
    let kind = WalEventKind::CreateDatabase { database };
    Some(WalEvent { lsn: record.lsn, end_lsn: record.end_lsn, xid: Xid::new(record.header.xid), kind })
}

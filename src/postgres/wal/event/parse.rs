//! Records into endings and events.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;

use super::wal_event::{
    CheckpointRecord, DroppedObject, DroppedObjectKind, MAX_ITEMS, RemovedObjects, TransactionEnd, TransactionEndKind,
    WalEvent, WalEventKind, WalLevel, WalParameters,
};
use crate::postgres::wal::byte_reader::ByteReader;
use crate::postgres::wal::catalog::{self, Catalog};
use crate::postgres::wal::identifiers::{RelFileLocator, Xid};
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::{RECORD_HEADER_BYTES, RMGR_INFO, RecordHeader, RecordLayout, WalRecord, rmgr};

/// What a record says to us: a commit may be an ending and, if it dropped something, an event besides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordMeaning {
    /// The transaction that ended with it.
    pub ending: Option<TransactionEnd>,
    /// What else it reports.
    pub event: Option<WalEvent>,
    /// The subtransactions that ended with it.
    pub subtransactions: Vec<Xid>,
}

/// A record whose CRC is right and whose body is not of the form its release writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {what} record at {at} has a valid checksum but not the form that its release writes")]
pub struct RecordBodyError {
    /// Where the record starts.
    pub at: Lsn,
    /// What kind of record it is.
    pub what: &'static str,
}

/// Microseconds from 1970 to 2000: checkpoints carry `pg_time_t`, seconds since the Unix epoch.
const UNIX_TO_PG_SECONDS: i64 = 946_684_800;

/// Whether a record of this header can mean anything to us; all others need not be looked into.
#[inline]
pub(in crate::postgres::wal) fn may_matter(header: &RecordHeader) -> bool {
    let op = header.info & RMGR_INFO;
    match header.rmgr {
        rmgr::XLOG => matches!(op, 0x00 | 0x10 | 0x40 | 0x50 | 0x60 | 0x70 | 0x80 | 0x90 | 0xD0),
        rmgr::TRANSACTION => ending_kind(op).is_some(),
        rmgr::STORAGE => op == 0x20,
        rmgr::DATABASE => matches!(op, 0x10 | 0x20),
        rmgr::TABLESPACE => op == 0x00,
        rmgr::SMGR_TRUNCATE_HEAP => op & 0x70 == 0x30,
        _ => false,
    }
}

/// Says what a checked record means.
///
/// # Errors
/// [`RecordBodyError`] if its body is not of the form that `major` writes.
pub fn interpret(record: &WalRecord<'_>, major: MajorVersion) -> Result<RecordMeaning, RecordBodyError> {
    if !may_matter(&record.header) {
        return Ok(RecordMeaning::default());
    }
    read_body(record, major).ok_or(RecordBodyError { at: record.lsn, what: rmgr_name(&record.header) })
}

/// As [`interpret`], of a record of which only the first bytes were kept. The CRC was checked over all of them. What
/// lies beyond is left out: the xid of a prepared transaction stays unknown if it stands after more subtransactions
/// than were kept.
pub(in crate::postgres::wal) fn interpret_front(
    record: &WalRecord<'_>,
    major: MajorVersion,
) -> Result<RecordMeaning, RecordBodyError> {
    let whole = usize::try_from(record.header.total_len).is_ok_and(|len| record.bytes.len() >= len);
    if let Some((xid, file, counts)) =
        catalog::counted_rows(record, major).filter(|(_, file, _)| Catalog::from_file(*file).is_none())
    {
        let kind = WalEventKind::Rows { file, counts, ended: false };
        let event = WalEvent { lsn: record.lsn, end_lsn: record.end_lsn, xid, kind };
        return Ok(RecordMeaning { event: Some(event), ..RecordMeaning::default() });
    }
    if whole && let Some(change) = catalog::catalog_change(record, major) {
        let kind = WalEventKind::Catalog(Box::new(change));
        let event = WalEvent { lsn: record.lsn, end_lsn: record.end_lsn, xid: Xid::new(record.header.xid), kind };
        return Ok(RecordMeaning { event: Some(event), ..RecordMeaning::default() });
    }
    if whole || record.header.rmgr != rmgr::TRANSACTION {
        return interpret(record, major);
    }
    let front = || -> Option<RecordMeaning> {
        let kind = ending_kind(record.header.info & RMGR_INFO)?;
        let full = usize::try_from(record.header.total_len).ok()?.checked_sub(RECORD_HEADER_BYTES)?;
        let layout = RecordLayout::parse(record.bytes.get(RECORD_HEADER_BYTES..)?, full, major)?;
        let mut main = ByteReader::new(record.bytes.get(RECORD_HEADER_BYTES.checked_add(layout.main_at)?..)?);
        let time = PgTime::from_pg_micros(main.i64()?);
        let ending = Some(ending(record, kind, Xid::new(record.header.xid), time));
        Some(RecordMeaning { ending, ..RecordMeaning::default() })
    };
    if may_matter(&record.header) {
        front().ok_or(RecordBodyError { at: record.lsn, what: rmgr_name(&record.header) })
    } else {
        Ok(RecordMeaning::default())
    }
}

fn rmgr_name(header: &RecordHeader) -> &'static str {
    match header.rmgr {
        rmgr::XLOG => "XLOG",
        rmgr::TRANSACTION => "transaction",
        rmgr::STORAGE => "storage",
        rmgr::DATABASE => "database",
        rmgr::TABLESPACE => "tablespace",
        _ => "heap",
    }
}

fn read_body(record: &WalRecord<'_>, major: MajorVersion) -> Option<RecordMeaning> {
    let mut main = ByteReader::new(record.main_data(major)?);
    let op = record.header.info & RMGR_INFO;
    let kind = match record.header.rmgr {
        rmgr::TRANSACTION => return read_transaction(record, &mut main, major),
        rmgr::XLOG => Some(read_xlog(op, &mut main)?),
        rmgr::STORAGE => read_smgr_truncate(&mut main)?,
        // In 15 a second way to create a database took the number that DROP had before (`dbcommands_xlog.h`).
        rmgr::DATABASE if op == 0x10 && major >= MajorVersion::V15 => None,
        rmgr::DATABASE => Some(WalEventKind::DropDatabase { database: main.u32()? }),
        rmgr::TABLESPACE => Some(read_create_tablespace(&mut main)?),
        _ => Some(read_truncate(&mut main)?),
    };
    let event =
        kind.map(|kind| WalEvent { lsn: record.lsn, end_lsn: record.end_lsn, xid: Xid::new(record.header.xid), kind });
    Some(RecordMeaning { event, ..RecordMeaning::default() })
}

/// `xl_tblspc_create_rec` (`tablespace.h`), the same from 13 to 18: the number, and the path up to a zero.
fn read_create_tablespace(main: &mut ByteReader<'_>) -> Option<WalEventKind> {
    let tablespace = main.u32()?;
    let path = main.rest();
    let end = path.iter().position(|&byte| byte == 0)?;
    Some(WalEventKind::CreateTablespace {
        tablespace,
        location: String::from_utf8_lossy(path.get(..end)?).into_owned(),
    })
}

fn ending_kind(op: u8) -> Option<TransactionEndKind> {
    match op & 0x70 {
        0x00 => Some(TransactionEndKind::Commit),
        0x20 => Some(TransactionEndKind::Abort),
        0x30 => Some(TransactionEndKind::CommitPrepared),
        0x40 => Some(TransactionEndKind::AbortPrepared),
        _ => None,
    }
}

fn ending(record: &WalRecord<'_>, kind: TransactionEndKind, xid: Xid, time: PgTime) -> TransactionEnd {
    TransactionEnd { lsn: record.lsn, end_lsn: record.end_lsn, xid, time, kind }
}

/// Commits and aborts (`ParseCommitRecord`, `ParseAbortRecord` in `xactdesc.c`).
fn read_transaction(record: &WalRecord<'_>, main: &mut ByteReader<'_>, major: MajorVersion) -> Option<RecordMeaning> {
    const HAS_INFO: u8 = 0x80;
    let kind = ending_kind(record.header.info & RMGR_INFO)?;
    let time = PgTime::from_pg_micros(main.i64()?);
    let flags = if record.header.info & HAS_INFO == 0 { 0 } else { main.u32()? };
    let mut body =
        if flags == 0 { TransactionBody::default() } else { TransactionBody::parse(main, flags, kind, major)? };
    let xid = Xid::new(body.prepared_xid.unwrap_or(record.header.xid));
    let subtransactions = std::mem::take(&mut body.subtransactions);
    let event = body.removal(time, kind).map(|kind| WalEvent { lsn: record.lsn, end_lsn: record.end_lsn, xid, kind });
    Some(RecordMeaning { ending: Some(ending(record, kind, xid, time)), event, subtransactions })
}

/// The optional parts of a commit or abort, in the order they stand in.
#[derive(Default)]
struct TransactionBody {
    database: Option<u32>,
    files: Vec<RelFileLocator>,
    files_total: usize,
    objects: Vec<DroppedObject>,
    objects_total: usize,
    prepared_xid: Option<u32>,
    subtransactions: Vec<Xid>,
}

impl TransactionBody {
    fn parse(
        main: &mut ByteReader<'_>,
        flags: u32,
        kind: TransactionEndKind,
        major: MajorVersion,
    ) -> Option<TransactionBody> {
        const HAS_DBINFO: u32 = 1 << 0;
        const HAS_SUBXACTS: u32 = 1 << 1;
        const HAS_FILES: u32 = 1 << 2;
        const HAS_INVALIDATIONS: u32 = 1 << 3;
        const HAS_TWOPHASE: u32 = 1 << 4;
        const HAS_DROPPED_STATS: u32 = 1 << 8;

        let mut body = TransactionBody::default();
        if flags & HAS_DBINFO != 0 {
            body.database = Some(main.u32()?);
            main.u32()?;
        }
        if flags & HAS_SUBXACTS != 0 {
            let (_, items) = main.take_items(4)?;
            body.subtransactions =
                items.as_chunks::<4>().0.iter().map(|xid| Xid::new(u32::from_le_bytes(*xid))).collect();
        }
        if flags & HAS_FILES != 0 {
            let (total, items) = main.take_items(12)?;
            body.files_total = total;
            body.files = items
                .chunks_exact(12)
                .take(MAX_ITEMS)
                .map_while(|item| read_relation(&mut ByteReader::new(item)))
                .collect();
        }
        if flags & HAS_DROPPED_STATS != 0 && major >= MajorVersion::V15 {
            // The object's number became 64 bits wide in 18, in two halves (`xl_xact_stats_item`).
            let wide = major >= MajorVersion::V18;
            let size = if wide { 16 } else { 12 };
            let (total, items) = main.take_items(size)?;
            body.objects_total = total;
            body.objects =
                items.chunks_exact(size).take(MAX_ITEMS).map_while(|item| read_dropped_object(item, wide)).collect();
        }
        if flags & HAS_INVALIDATIONS != 0 && kind.is_commit() {
            main.take_items(16)?;
        }
        if flags & HAS_TWOPHASE != 0 {
            body.prepared_xid = Some(main.u32()?);
        }
        Some(body)
    }

    /// Commits only: the same list in an abort names what had been created, which is gone too but was never there for
    /// others.
    fn removal(self, time: PgTime, kind: TransactionEndKind) -> Option<WalEventKind> {
        if !kind.is_commit() || (self.files_total == 0 && self.objects_total == 0) {
            return None;
        }
        let dropped = self.objects_total > 0;
        let removal = RemovedObjects {
            time,
            database: self.database,
            objects: self.objects,
            objects_total: u32::try_from(self.objects_total).unwrap_or(u32::MAX),
            files: self.files,
            files_total: u32::try_from(self.files_total).unwrap_or(u32::MAX),
        };
        Some(if dropped { WalEventKind::Drop(removal) } else { WalEventKind::Rewrite(removal) })
    }
}

fn read_relation(item: &mut ByteReader<'_>) -> Option<RelFileLocator> {
    Some(RelFileLocator { tablespace: item.u32()?, database: item.u32()?, filenode: item.u32()? })
}

fn read_dropped_object(item: &[u8], wide: bool) -> Option<DroppedObject> {
    let mut item = ByteReader::new(item);
    let kind = DroppedObjectKind::from_number(item.u32()?);
    let database = item.u32()?;
    let low = u64::from(item.u32()?);
    let high = if wide { u64::from(item.u32()?) } else { 0 };
    Some(DroppedObject { kind, database, object: high << 32 | low })
}

impl DroppedObjectKind {
    /// `PgStat_Kind`: the same numbers in 15 to 18 for those that can be dropped in a transaction.
    pub(in crate::postgres::wal) const fn from_number(number: u32) -> DroppedObjectKind {
        match number {
            1 => DroppedObjectKind::Database,
            2 => DroppedObjectKind::Relation,
            3 => DroppedObjectKind::Function,
            5 => DroppedObjectKind::Subscription,
            other => DroppedObjectKind::Other(other),
        }
    }

    pub(in crate::postgres::wal) const fn number(self) -> u32 {
        match self {
            DroppedObjectKind::Database => 1,
            DroppedObjectKind::Relation => 2,
            DroppedObjectKind::Function => 3,
            DroppedObjectKind::Subscription => 5,
            DroppedObjectKind::Other(number) => number,
        }
    }
}

/// Records of resource manager XLOG (`xlog_desc`, `pg_control.h`).
fn read_xlog(op: u8, main: &mut ByteReader<'_>) -> Option<WalEventKind> {
    Some(match op {
        0x00 | 0x10 => WalEventKind::Checkpoint(read_checkpoint(main, op == 0x00)?),
        0x40 => WalEventKind::Switch,
        0x50 => WalEventKind::BackupEnd { start: Lsn::new(main.u64()?) },
        0x60 => WalEventKind::Parameters(read_parameters(main)?),
        0x70 => {
            let time = PgTime::from_pg_micros(main.i64()?);
            let name: [u8; 64] = main.array()?;
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
            WalEventKind::RestorePoint { name: String::from_utf8_lossy(name.get(..end)?).into_owned(), time }
        }
        0x80 => WalEventKind::FullPageWrites { on: main.u8()? != 0 },
        0x90 => WalEventKind::EndOfRecovery {
            time: PgTime::from_pg_micros(main.i64()?),
            timeline: TimelineId::new(main.u32()?)?,
            previous: TimelineId::new(main.u32()?)?,
        },
        _ => WalEventKind::OverwriteContrecord {
            overwritten: Lsn::new(main.u64()?),
            time: PgTime::from_pg_micros(main.i64()?),
        },
    })
}

/// `CheckPoint` up to its time, whose place did not change from 13 to 18: in 17 `wal_level` came into what had been
/// padding.
fn read_checkpoint(main: &mut ByteReader<'_>, shutdown: bool) -> Option<CheckpointRecord> {
    let redo = Lsn::new(main.u64()?);
    let timeline = TimelineId::new(main.u32()?)?;
    let previous_timeline = TimelineId::new(main.u32()?)?;
    let full_page_writes = main.u8()? != 0;
    main.take_bytes(47)?;
    let seconds = main.i64()?.saturating_sub(UNIX_TO_PG_SECONDS);
    let time = PgTime::from_pg_micros(seconds.saturating_mul(1_000_000));
    Some(CheckpointRecord { shutdown, redo, timeline, previous_timeline, time, full_page_writes })
}

fn read_parameters(main: &mut ByteReader<'_>) -> Option<WalParameters> {
    Some(WalParameters {
        max_connections: main.u32()?,
        max_worker_processes: main.u32()?,
        max_wal_senders: main.u32()?,
        max_prepared_transactions: main.u32()?,
        max_locks_per_transaction: main.u32()?,
        wal_level: match main.u32()? {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return None,
        },
        wal_log_hints: main.u8()? != 0,
        track_commit_timestamp: main.u8()? != 0,
    })
}

/// `xl_smgr_truncate`. Only a file cut to nothing is of interest: VACUUM cuts empty ends off tables all day.
fn read_smgr_truncate(main: &mut ByteReader<'_>) -> Option<Option<WalEventKind>> {
    const HEAP: u32 = 0x0001;
    let blocks = main.u32()?;
    let file = read_relation(main)?;
    let flags = main.u32()?;
    Some((blocks == 0 && flags & HEAP != 0).then_some(WalEventKind::FileEmptied { file }))
}

/// `xl_heap_truncate`: the flags' byte stands before relation ids that are aligned to four.
fn read_truncate(main: &mut ByteReader<'_>) -> Option<WalEventKind> {
    let database = main.u32()?;
    let total = main.u32()?;
    let flags = main.u8()?;
    main.take_bytes(3)?;
    let ids = main.take_bytes(usize::try_from(total).ok()?.checked_mul(4)?)?;
    let relations = ids.as_chunks::<4>().0.iter().take(MAX_ITEMS).map(|id| u32::from_le_bytes(*id)).collect();
    Some(WalEventKind::Truncate {
        database,
        relations,
        total,
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
    })
}

/// Fuzz body: a record of any bytes, of which the first chooses the release, means something or is refused.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&[choice], bytes)) = data.split_first_chunk::<1>() else { return };
    let Some(chunk) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else { return };
    let Some(&major) = MajorVersion::ALL.get(usize::from(choice) % MajorVersion::ALL.len()) else { return };
    let header = RecordHeader::parse(chunk);
    let record = WalRecord { lsn: Lsn::new(40), end_lsn: Lsn::new(80), header, bytes };
    if let Ok(RecordMeaning { event: Some(event), .. }) = interpret(&record, major)
        && let WalEventKind::Drop(removal) | WalEventKind::Rewrite(removal) = event.kind
    {
        assert!(removal.files.len() <= MAX_ITEMS && removal.objects.len() <= MAX_ITEMS, "an event without a bound");
    }
    catalog::fuzz(&record, major);
    if let Ok(RecordMeaning { ending: Some(ending), .. }) = interpret_front(&record, major) {
        assert_eq!(ending.lsn, record.lsn);
    }
}

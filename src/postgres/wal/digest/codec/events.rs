//! Events as bytes: a tag, distance, length and xid for each, then the fields of its kind.

use super::fields::{put_bytes, put_option, read_bytes, read_option};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::byte_reader::{ByteReader, put_signed, put_varint};
use crate::postgres::wal::catalog::{Catalog, CatalogChange, CatalogRow, RelationRow, RowCounts, TupleChange, TupleId};
use crate::postgres::wal::event::{
    CheckpointRecord, DroppedObject, DroppedObjectKind, MAX_ITEMS, MAX_SUBTRANSACTIONS, RelFileLocator, RemovedObjects,
    WalEvent, WalEventKind, WalLevel, WalParameters, Xid,
};

/// A restore point's name has at most 63 bytes; replaced ones may become three.
const MAX_NAME_BYTES: usize = 256;
/// A path has less than `MAXPGPATH`, 1,024 bytes; replaced ones may become three.
const MAX_LOCATION_BYTES: usize = 4096;

pub(super) fn put_events(out: &mut Vec<u8>, events: &[WalEvent], start: Lsn) {
    put_varint(out, events.len() as u64);
    let mut lsn = start;
    for event in events {
        out.push(event_tag(&event.kind));
        put_varint(out, event.lsn.bytes_since(lsn) >> 3);
        put_varint(out, event.end_lsn.bytes_since(event.lsn) >> 3);
        put_varint(out, u64::from(event.xid.get()));
        put_kind(out, &event.kind);
        lsn = event.lsn;
    }
}

impl WalEvent {
    /// The event by itself as bytes, for the index.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put_events(&mut out, std::slice::from_ref(self), Lsn::INVALID);
        out
    }

    /// Reads what [`WalEvent::to_bytes`] wrote; `None` for anything else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<WalEvent> {
        let mut reader = ByteReader::new(bytes);
        let mut events = read_events(&mut reader, Lsn::INVALID)?;
        let event = events.pop()?;
        (events.is_empty() && reader.rest().is_empty()).then_some(event)
    }
}

impl WalEventKind {
    /// The number that stands for this kind in digests and in the index's keys.
    #[must_use]
    pub fn tag(&self) -> u8 {
        event_tag(self)
    }
}

fn event_tag(kind: &WalEventKind) -> u8 {
    match kind {
        WalEventKind::Checkpoint(_) => 1,
        WalEventKind::Parameters(_) => 2,
        WalEventKind::RestorePoint { .. } => 3,
        WalEventKind::EndOfRecovery { .. } => 4,
        WalEventKind::BackupEnd { .. } => 5,
        WalEventKind::Switch => 6,
        WalEventKind::FullPageWrites { .. } => 7,
        WalEventKind::OverwriteContrecord { .. } => 8,
        WalEventKind::Drop(_) => 9,
        WalEventKind::Rewrite(_) => 10,
        WalEventKind::Truncate { .. } => 11,
        WalEventKind::FileEmptied { .. } => 12,
        WalEventKind::DropDatabase { .. } => 13,
        WalEventKind::Rows { .. } => 14,
        WalEventKind::Catalog(_) => 15,
        WalEventKind::CreateDatabase { .. } => 16,
        WalEventKind::Subtransactions { .. } => 17,
        WalEventKind::CreateTablespace { .. } => 18,
    }
}

fn put_kind(out: &mut Vec<u8>, kind: &WalEventKind) {
    match kind {
        WalEventKind::Checkpoint(checkpoint) => put_checkpoint(out, checkpoint),
        WalEventKind::Parameters(parameters) => put_parameters(out, parameters),
        WalEventKind::RestorePoint { name, time } => {
            put_signed(out, time.pg_micros());
            put_bytes(out, name.as_bytes());
        }
        WalEventKind::EndOfRecovery { time, timeline, previous } => {
            put_signed(out, time.pg_micros());
            put_varint(out, u64::from(timeline.get()));
            put_varint(out, u64::from(previous.get()));
        }
        WalEventKind::BackupEnd { start } => put_varint(out, start.get()),
        WalEventKind::Switch => {}
        WalEventKind::FullPageWrites { on } => out.push(u8::from(*on)),
        WalEventKind::OverwriteContrecord { overwritten, time } => {
            put_varint(out, overwritten.get());
            put_signed(out, time.pg_micros());
        }
        WalEventKind::Drop(removal) | WalEventKind::Rewrite(removal) => put_removal(out, removal),
        WalEventKind::Truncate { database, relations, total, cascade, restart_identity } => {
            put_varint(out, u64::from(*database));
            out.push(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            put_varint(out, u64::from(*total));
            put_varint(out, relations.len() as u64);
            relations.iter().for_each(|relation| put_varint(out, u64::from(*relation)));
        }
        WalEventKind::FileEmptied { file } => put_relation(out, *file),
        WalEventKind::DropDatabase { database } | WalEventKind::CreateDatabase { database } => {
            put_varint(out, u64::from(*database));
        }
        WalEventKind::Rows { file, counts, ended } => {
            put_relation(out, *file);
            [counts.inserted, counts.updated, counts.deleted, counts.pages]
                .into_iter()
                .for_each(|n| put_varint(out, n));
            out.push(u8::from(*ended));
        }
        WalEventKind::CreateTablespace { tablespace, location } => {
            put_varint(out, u64::from(*tablespace));
            put_bytes(out, location.as_bytes());
        }
        WalEventKind::Catalog(change) => put_change(out, change),
        WalEventKind::Subtransactions { of } => {
            put_varint(out, of.len() as u64);
            of.iter().for_each(|xid| put_varint(out, u64::from(xid.get())));
        }
    }
}

fn put_change(out: &mut Vec<u8>, change: &CatalogChange) {
    let catalog = match change.catalog {
        Catalog::Class => 0,
        Catalog::Database => 1,
        Catalog::Namespace => 2,
    };
    let (old, new) = (u8::from(change.old.is_some()), u8::from(change.new.is_some()));
    let made = match change.made {
        TupleChange::Row(_) => 0,
        TupleChange::Changed { .. } => 1,
        TupleChange::Nothing => 2,
    };
    out.push(catalog | u8::from(change.committed) << 2 | old << 3 | new << 4 | made << 5);
    put_varint(out, u64::from(change.database));
    for place in [change.old, change.new].into_iter().flatten() {
        put_varint(out, u64::from(place.page));
        put_varint(out, u64::from(place.item));
    }
    match &change.made {
        TupleChange::Row(row) => {
            put_varint(out, u64::from(row.oid));
            put_bytes(out, row.name.as_bytes());
            if let Some(relation) = row.relation {
                put_varint(out, u64::from(relation.namespace));
                put_varint(out, u64::from(relation.filenode));
                out.extend_from_slice(&[relation.persistence, relation.kind]);
            }
        }
        TupleChange::Changed { at, bytes } => {
            put_varint(out, u64::from(*at));
            put_bytes(out, bytes);
        }
        TupleChange::Nothing => {}
    }
}

fn read_change(reader: &mut ByteReader<'_>) -> Option<CatalogChange> {
    let flags = read_flags(reader, 0x7F)?;
    let catalog = match flags & 3 {
        0 => Catalog::Class,
        1 => Catalog::Database,
        2 => Catalog::Namespace,
        _ => return None,
    };
    let database = read_u32(reader)?;
    let mut place = |there: bool| -> Option<Option<TupleId>> {
        if !there {
            return Some(None);
        }
        Some(Some(TupleId { page: read_u32(reader)?, item: u16::try_from(reader.varint()?).ok()? }))
    };
    let (old, new) = (place(flags & 8 != 0)?, place(flags & 16 != 0)?);
    let made = match flags >> 5 {
        0 => {
            let oid = read_u32(reader)?;
            let name = String::from_utf8(read_bytes(reader, MAX_NAME_BYTES)?.to_vec()).ok()?;
            let relation = match catalog {
                Catalog::Class => {
                    let (namespace, filenode) = (read_u32(reader)?, read_u32(reader)?);
                    Some(RelationRow { namespace, filenode, persistence: reader.u8()?, kind: reader.u8()? })
                }
                Catalog::Database | Catalog::Namespace => None,
            };
            TupleChange::Row(CatalogRow { oid, name, relation })
        }
        1 => TupleChange::Changed {
            at: u16::try_from(reader.varint()?).ok()?,
            bytes: read_bytes(reader, MAX_NAME_BYTES)?.to_vec(),
        },
        2 => TupleChange::Nothing,
        _ => return None,
    };
    Some(CatalogChange { catalog, database, old, new, made, committed: flags & 4 != 0 })
}

fn put_checkpoint(out: &mut Vec<u8>, checkpoint: &CheckpointRecord) {
    out.push(u8::from(checkpoint.shutdown) | u8::from(checkpoint.full_page_writes) << 1);
    put_varint(out, checkpoint.redo.get());
    put_varint(out, u64::from(checkpoint.timeline.get()));
    put_varint(out, u64::from(checkpoint.previous_timeline.get()));
    put_signed(out, checkpoint.time.pg_micros());
}

fn put_parameters(out: &mut Vec<u8>, parameters: &WalParameters) {
    for value in [
        parameters.max_connections,
        parameters.max_worker_processes,
        parameters.max_wal_senders,
        parameters.max_prepared_transactions,
        parameters.max_locks_per_transaction,
    ] {
        put_varint(out, u64::from(value));
    }
    let level = match parameters.wal_level {
        WalLevel::Minimal => 0,
        WalLevel::Replica => 1,
        WalLevel::Logical => 2,
    };
    out.push(level | u8::from(parameters.wal_log_hints) << 4 | u8::from(parameters.track_commit_timestamp) << 5);
}

fn put_removal(out: &mut Vec<u8>, removal: &RemovedObjects) {
    put_signed(out, removal.time.pg_micros());
    put_option(out, removal.database.map(u64::from));
    put_varint(out, u64::from(removal.objects_total));
    put_varint(out, removal.objects.len() as u64);
    for object in &removal.objects {
        put_varint(out, u64::from(object.kind.number()));
        put_varint(out, u64::from(object.database));
        put_varint(out, object.object);
    }
    put_varint(out, u64::from(removal.files_total));
    put_varint(out, removal.files.len() as u64);
    removal.files.iter().for_each(|file| put_relation(out, *file));
}

fn put_relation(out: &mut Vec<u8>, relation: RelFileLocator) {
    for number in [relation.tablespace, relation.database, relation.filenode] {
        put_varint(out, u64::from(number));
    }
}

pub(super) fn read_events(reader: &mut ByteReader<'_>, start: Lsn) -> Option<Vec<WalEvent>> {
    /// The fewest bytes an event takes.
    const SMALLEST: usize = 4;
    let count = usize::try_from(reader.varint()?).ok().filter(|count| *count <= reader.rest().len() / SMALLEST)?;
    let mut events = Vec::new();
    let mut lsn = start;
    for _ in 0..count {
        let tag = reader.u8()?;
        lsn = lsn.checked_add(reader.varint()?.checked_mul(8)?)?;
        let end_lsn = lsn.checked_add(reader.varint()?.checked_mul(8)?)?;
        let xid = Xid::new(read_u32(reader)?);
        events.push(WalEvent { lsn, end_lsn, xid, kind: read_kind(tag, reader)? });
    }
    Some(events)
}

fn read_kind(tag: u8, reader: &mut ByteReader<'_>) -> Option<WalEventKind> {
    Some(match tag {
        1 => WalEventKind::Checkpoint(read_checkpoint(reader)?),
        2 => WalEventKind::Parameters(read_parameters(reader)?),
        3 => {
            let time = read_time(reader)?;
            WalEventKind::RestorePoint {
                name: String::from_utf8(read_bytes(reader, MAX_NAME_BYTES)?.to_vec()).ok()?,
                time,
            }
        }
        4 => WalEventKind::EndOfRecovery {
            time: read_time(reader)?,
            timeline: read_timeline(reader)?,
            previous: read_timeline(reader)?,
        },
        5 => WalEventKind::BackupEnd { start: Lsn::new(reader.varint()?) },
        6 => WalEventKind::Switch,
        7 => WalEventKind::FullPageWrites { on: read_flags(reader, 1)? != 0 },
        8 => WalEventKind::OverwriteContrecord { overwritten: Lsn::new(reader.varint()?), time: read_time(reader)? },
        9 => WalEventKind::Drop(read_removal(reader)?),
        10 => WalEventKind::Rewrite(read_removal(reader)?),
        11 => {
            let database = read_u32(reader)?;
            let flags = read_flags(reader, 3)?;
            let total = read_u32(reader)?;
            let relations = read_list(reader, read_u32)?;
            let (cascade, restart_identity) = (flags & 1 != 0, flags & 2 != 0);
            WalEventKind::Truncate { database, relations, total, cascade, restart_identity }
        }
        12 => WalEventKind::FileEmptied { file: read_relation(reader)? },
        13 => WalEventKind::DropDatabase { database: read_u32(reader)? },
        14 => {
            let file = read_relation(reader)?;
            let (inserted, updated, deleted) = (reader.varint()?, reader.varint()?, reader.varint()?);
            let counts = RowCounts { inserted, updated, deleted, pages: reader.varint()? };
            WalEventKind::Rows { file, counts, ended: read_flags(reader, 1)? != 0 }
        }
        15 => WalEventKind::Catalog(Box::new(read_change(reader)?)),
        16 => WalEventKind::CreateDatabase { database: read_u32(reader)? },
        17 => {
            let of = read_list_up_to(MAX_SUBTRANSACTIONS, reader, |reader| Some(Xid::new(read_u32(reader)?)))?;
            WalEventKind::Subtransactions { of }
        }
        18 => WalEventKind::CreateTablespace {
            tablespace: read_u32(reader)?,
            location: String::from_utf8(read_bytes(reader, MAX_LOCATION_BYTES)?.to_vec()).ok()?,
        },
        _ => return None,
    })
}

fn read_u32(reader: &mut ByteReader<'_>) -> Option<u32> {
    u32::try_from(reader.varint()?).ok()
}

fn read_time(reader: &mut ByteReader<'_>) -> Option<PgTime> {
    Some(PgTime::from_pg_micros(reader.signed()?))
}

fn read_timeline(reader: &mut ByteReader<'_>) -> Option<TimelineId> {
    TimelineId::new(read_u32(reader)?)
}

fn read_flags(reader: &mut ByteReader<'_>, known: u8) -> Option<u8> {
    reader.u8().filter(|flags| flags & !known == 0)
}

fn read_list<T>(reader: &mut ByteReader<'_>, item: impl Fn(&mut ByteReader<'_>) -> Option<T>) -> Option<Vec<T>> {
    read_list_up_to(MAX_ITEMS, reader, item)
}

fn read_list_up_to<T>(
    most: usize,
    reader: &mut ByteReader<'_>,
    item: impl Fn(&mut ByteReader<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = usize::try_from(reader.varint()?).ok().filter(|count| *count <= most)?;
    (0..count).map(|_| item(reader)).collect()
}

fn read_checkpoint(reader: &mut ByteReader<'_>) -> Option<CheckpointRecord> {
    let flags = read_flags(reader, 3)?;
    Some(CheckpointRecord {
        shutdown: flags & 1 != 0,
        full_page_writes: flags & 2 != 0,
        redo: Lsn::new(reader.varint()?),
        timeline: read_timeline(reader)?,
        previous_timeline: read_timeline(reader)?,
        time: read_time(reader)?,
    })
}

fn read_parameters(reader: &mut ByteReader<'_>) -> Option<WalParameters> {
    let (max_connections, max_worker_processes, max_wal_senders) =
        (read_u32(reader)?, read_u32(reader)?, read_u32(reader)?);
    let (max_prepared_transactions, max_locks_per_transaction) = (read_u32(reader)?, read_u32(reader)?);
    let flags = read_flags(reader, 0x33)?;
    Some(WalParameters {
        max_connections,
        max_worker_processes,
        max_wal_senders,
        max_prepared_transactions,
        max_locks_per_transaction,
        wal_level: match flags & 3 {
            0 => WalLevel::Minimal,
            1 => WalLevel::Replica,
            2 => WalLevel::Logical,
            _ => return None,
        },
        wal_log_hints: flags & 0x10 != 0,
        track_commit_timestamp: flags & 0x20 != 0,
    })
}

fn read_removal(reader: &mut ByteReader<'_>) -> Option<RemovedObjects> {
    let time = read_time(reader)?;
    let database = match read_option(reader)? {
        Some(database) => Some(u32::try_from(database).ok()?),
        None => None,
    };
    let objects_total = read_u32(reader)?;
    let objects = read_list(reader, |reader| {
        let kind = DroppedObjectKind::from_number(read_u32(reader)?);
        Some(DroppedObject { kind, database: read_u32(reader)?, object: reader.varint()? })
    })?;
    let files_total = read_u32(reader)?;
    let files = read_list(reader, read_relation)?;
    Some(RemovedObjects { time, database, objects, objects_total, files, files_total })
}

fn read_relation(reader: &mut ByteReader<'_>) -> Option<RelFileLocator> {
    Some(RelFileLocator { tablespace: read_u32(reader)?, database: read_u32(reader)?, filenode: read_u32(reader)? })
}

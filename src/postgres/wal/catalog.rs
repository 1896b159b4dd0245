//! What records change in the system catalogs that hold names: `pg_class`, `pg_database`, `pg_namespace`.
//!
//! A catalog is known by its file: it has its OID as its number until it is rewritten. After a VACUUM FULL of such a
//! catalog its changes go unseen until the next backup's list of names. Only the fixed front of a tuple is read, up to
//! `relkind`; it is laid out the same from 13 on but for `relallfrozen`, which came in 18.

use super::heap::{self, HeapOperation, HeapTuple};
use super::identifiers::{RelFileLocator, Xid};
use super::page::MajorVersion;
use super::record::{RECORD_HEADER_BYTES, RecordHeader, WalRecord};

/// A catalog that holds names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Catalog {
    /// `pg_class`: tables and all that is like them.
    Class,
    /// `pg_database`, which all databases share.
    Database,
    /// `pg_namespace`: schemas.
    Namespace,
}

impl Catalog {
    /// The catalog that this file is, unless it was rewritten.
    #[must_use]
    #[inline]
    pub const fn from_file(file: RelFileLocator) -> Option<Catalog> {
        match (file.filenode, file.database) {
            (1259, 1..) => Some(Catalog::Class),
            (1262, 0) => Some(Catalog::Database),
            (2615, 1..) => Some(Catalog::Namespace),
            _ => None,
        }
    }
}

/// Where a tuple is in its catalog.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct TupleId {
    /// Its page.
    pub page: u32,
    /// Its number on the page.
    pub item: u16,
}

impl TupleId {
    const fn new((page, item): heap::ItemPointer) -> TupleId {
        TupleId { page, item }
    }
}

/// A row of a catalog.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct CatalogRow {
    /// The OID of what it describes.
    pub oid: u32,
    /// Its name; bytes that are no UTF-8 are replaced.
    pub name: String,
    /// For a relation what else is of interest.
    pub relation: Option<RelationRow>,
}

/// What `pg_class` says of a relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct RelationRow {
    /// Its schema's OID (`relnamespace`).
    pub namespace: u32,
    /// Its file's number (`relfilenode`); 0 for what has none, and for the catalogs that are mapped.
    pub filenode: u32,
    /// `relpersistence`.
    pub persistence: u8,
    /// `relkind`.
    pub kind: u8,
}

/// A row, and where it is.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct ListedRow {
    /// The row.
    #[serde(flatten)]
    pub row: CatalogRow,
    /// Its place (`ctid`).
    pub at: TupleId,
}

/// What a record makes of a tuple.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TupleChange {
    /// This row.
    Row(CatalogRow),
    /// The row that was there but for these bytes, which stand so far from its front: the record leaves out what both
    /// share.
    Changed {
        /// Where the bytes stand.
        at: u16,
        /// The bytes, as far as they concern the front.
        bytes: Vec<u8>,
    },
    /// Nothing: the row is gone.
    Nothing,
}

/// A change of a catalog.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CatalogChange {
    /// Which catalog.
    pub catalog: Catalog,
    /// The database it is of; 0 for `pg_database`.
    pub database: u32,
    /// The tuple that was there before.
    pub old: Option<TupleId>,
    /// The tuple that is there afterwards.
    pub new: Option<TupleId>,
    /// What is in it.
    pub made: TupleChange,
    /// The transaction is known to have committed.
    pub committed: bool,
}

/// The longest name (`NAMEDATALEN`, less the zero at its end).
const NAME_BYTES: usize = 64;
/// Up to `relkind` in 18.
const FRONT_BYTES: usize = 120;

/// Where the fields of `pg_class` stand.
struct PgClassOffsets {
    persistence: usize,
    kind: usize,
}

const fn pg_class_offsets(major: MajorVersion) -> PgClassOffsets {
    match major {
        MajorVersion::V13 | MajorVersion::V14 | MajorVersion::V15 | MajorVersion::V16 | MajorVersion::V17 => {
            PgClassOffsets { persistence: 114, kind: 115 }
        }
        MajorVersion::V18 => PgClassOffsets { persistence: 118, kind: 119 },
    }
}

impl CatalogRow {
    /// Reads the front of a tuple's user data.
    #[must_use]
    pub fn parse(catalog: Catalog, data: &[u8], major: MajorVersion) -> Option<CatalogRow> {
        let number = |at: usize| data.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let name = data.get(4..4 + NAME_BYTES)?;
        let name = name.get(..name.iter().position(|&byte| byte == 0)?)?;
        let relation = match catalog {
            Catalog::Class => {
                let PgClassOffsets { persistence, kind } = pg_class_offsets(major);
                let (persistence, kind) = (*data.get(persistence)?, *data.get(kind)?);
                Some(RelationRow { namespace: number(68)?, filenode: number(88)?, persistence, kind })
            }
            Catalog::Database | Catalog::Namespace => None,
        };
        Some(CatalogRow { oid: number(0)?, name: String::from_utf8_lossy(name).into_owned(), relation })
    }

    /// The front of the tuple, as far as it is known: what stands between the fields is zero.
    #[must_use]
    fn front_bytes(&self, major: MajorVersion) -> Vec<u8> {
        let mut front = vec![0; FRONT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            front.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.oid.to_le_bytes());
        put(4, self.name.as_bytes().get(..NAME_BYTES - 1).unwrap_or(self.name.as_bytes()));
        if let Some(relation) = self.relation {
            let PgClassOffsets { persistence, kind } = pg_class_offsets(major);
            put(68, &relation.namespace.to_le_bytes());
            put(88, &relation.filenode.to_le_bytes());
            put(persistence, &[relation.persistence]);
            put(kind, &[relation.kind]);
        }
        front
    }

    /// The same row after `bytes` have taken the place of what stood so far from its front.
    #[must_use]
    pub fn with_patch(&self, catalog: Catalog, at: u16, bytes: &[u8], major: MajorVersion) -> Option<CatalogRow> {
        let mut front = self.front_bytes(major);
        front.iter_mut().skip(usize::from(at)).zip(bytes).for_each(|(to, from)| *to = *from);
        CatalogRow::parse(catalog, &front, major)
    }
}

/// The change that a record makes in a catalog. `None` for every other record, and for what changes nothing but
/// statistics in its place.
pub(super) fn catalog_change(record: &WalRecord<'_>, major: MajorVersion) -> Option<CatalogChange> {
    let catalog = Catalog::from_file(heap::first_file(record.bytes, major)?)?;
    if heap::heap_operation(&record.header)? == HeapOperation::InPlace {
        return None;
    }
    let change = heap::heap_change(record, major)?;
    let front =
        |bytes: &[u8], at: u16| bytes.get(..FRONT_BYTES.saturating_sub(usize::from(at))).unwrap_or(bytes).to_vec();
    let (new, made) = match change.new {
        None => (None, TupleChange::Nothing),
        Some((place, Some(HeapTuple::Whole(data)))) => {
            (Some(place), TupleChange::Row(CatalogRow::parse(catalog, &data, major)?))
        }
        Some((place, Some(HeapTuple::Changed(at, data)))) => {
            (Some(place), TupleChange::Changed { at, bytes: front(data, at) })
        }
        // On a page that makes no sense: there is a new row, and no telling what is in it.
        Some((_, None)) => return None,
    };
    let (old, new) = (change.old.map(TupleId::new), new.map(TupleId::new));
    Some(CatalogChange { catalog, database: change.file.database, old, new, made, committed: false })
}

/// Bytes of a record's front that show which file it is about.
pub(super) const FILE_VISIBLE_BYTES: usize = 64;

/// Whether the record changes rows, so that its front is worth keeping where it lies over a segment's end.
pub(super) fn may_count(header: &RecordHeader) -> bool {
    heap::heap_operation(header).is_some()
}

/// Whether the beginning of a record may be that of one that changes a catalog: its first block's file says so, or does
/// not show yet.
pub(super) fn may_change_names(front: &[u8]) -> bool {
    let Some(header) = front.first_chunk::<RECORD_HEADER_BYTES>().map(RecordHeader::parse) else { return true };
    if heap::heap_operation(&header).is_none() {
        return false;
    }
    // The form of the front differs between releases only where a page is compressed.
    front.len() < RECORD_HEADER_BYTES.saturating_add(32)
        || heap::first_file(front, MajorVersion::V18).and_then(Catalog::from_file).is_some()
        || heap::first_file(front, MajorVersion::V13).and_then(Catalog::from_file).is_some()
}

/// Whether the record marks the database as invalid, as DROP DATABASE does before it removes the files, in place and so
/// for good (`DATCONNLIMIT_INVALID_DB`, `pg_database.h`).
pub(crate) fn invalidates(record: &WalRecord<'_>, database: u32, major: MajorVersion) -> bool {
    let in_place = heap::heap_operation(&record.header) == Some(HeapOperation::InPlace);
    let is_ours = || heap::first_file(record.bytes, major).and_then(Catalog::from_file) == Some(Catalog::Database);
    let invalid = || {
        let Some((_, Some(HeapTuple::Whole(data)))) = heap::heap_change(record, major)?.new else { return None };
        let limit = if major <= MajorVersion::V14 { 208 } else { 80 };
        let number = |at: usize| data.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        Some(number(0)? == database && number(limit)?.cast_signed() == -2)
    };
    in_place && is_ours() && invalid().unwrap_or(false)
}

/// How many rows of a table one transaction changed, as far as a segment shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct RowCounts {
    /// Rows inserted, by INSERT or COPY.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Pages of a new file that were written whole, as a rewrite does.
    pub pages: u64,
}

impl RowCounts {
    /// Adds what another segment shows.
    pub const fn add(&mut self, other: RowCounts) {
        self.inserted = self.inserted.saturating_add(other.inserted);
        self.updated = self.updated.saturating_add(other.updated);
        self.deleted = self.deleted.saturating_add(other.deleted);
        self.pages = self.pages.saturating_add(other.pages);
    }

    /// Rows in all, whatever became of them.
    #[must_use]
    pub const fn rows(self) -> u64 {
        self.inserted.saturating_add(self.updated).saturating_add(self.deleted)
    }
}

/// The rows that one record changes, and in which file. `None` for most records, and for those of no transaction.
#[inline]
pub(crate) fn counted_rows(record: &WalRecord<'_>, major: MajorVersion) -> Option<(Xid, RelFileLocator, RowCounts)> {
    let operation = heap::heap_operation(&record.header)?;
    if record.header.xid == 0 || operation == HeapOperation::InPlace {
        return None;
    }
    let file = heap::first_file(record.bytes, major)?;
    let mut counts = RowCounts::default();
    match operation {
        HeapOperation::Insert => counts.inserted = 1,
        HeapOperation::Update => counts.updated = 1,
        HeapOperation::Delete => counts.deleted = 1,
        HeapOperation::MultiInsert => counts.inserted = heap::inserted_rows(record, major),
        HeapOperation::Pages | HeapOperation::InPlace => counts.pages = 1,
    }
    Some((Xid::new(record.header.xid), file, counts))
}

/// Part of the fuzz body of events: whatever stands in a record, reading it ends, and what is read is of a bounded
/// size.
pub(super) fn fuzz(record: &WalRecord<'_>, major: MajorVersion) {
    if let Some(change) = catalog_change(record, major) {
        match change.made {
            TupleChange::Row(row) => assert!(row.name.len() <= 3 * NAME_BYTES, "a name without a bound"),
            TupleChange::Changed { bytes, .. } => assert!(bytes.len() <= FRONT_BYTES, "more than the front"),
            TupleChange::Nothing => {}
        }
    }
    let _counted = counted_rows(record, major);
    assert!(!invalidates(record, 0, major) || record.header.rmgr == super::record::rmgr::SMGR_TRUNCATE_HEAP);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{Catalog, CatalogRow, RelationRow, RowCounts, TupleChange, catalog_change, counted_rows};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::wal::event::{RelFileLocator, Xid};
    use crate::postgres::wal::page::MajorVersion;
    use crate::postgres::wal::record::{RECORD_HEADER_BYTES, RecordHeader, WalRecord};

    fn row(name: &str, filenode: u32) -> CatalogRow {
        let relation = RelationRow { namespace: 2200, filenode, persistence: b'p', kind: b'r' };
        CatalogRow { oid: 16_385, name: name.to_owned(), relation: Some(relation) }
    }

    /// A heap record whose first block is page 3 of `file`.
    fn with_record<T>(info: u8, file: [u32; 3], data: &[u8], main: &[u8], look: impl FnOnce(&WalRecord<'_>) -> T) -> T {
        let mut bytes = vec![0; RECORD_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&77_u32.to_le_bytes());
        bytes[16..18].copy_from_slice(&[info, 10]);
        bytes.extend_from_slice(&[0, 0x20]);
        bytes.extend_from_slice(&u16::try_from(data.len()).unwrap().to_le_bytes());
        file.iter().for_each(|part| bytes.extend_from_slice(&part.to_le_bytes()));
        bytes.extend_from_slice(&[3, 0, 0, 0, 255, u8::try_from(main.len()).unwrap()]);
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(main);
        let total = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        let header = RecordHeader::parse(bytes.first_chunk().unwrap());
        look(&WalRecord { lsn: Lsn::new(8), end_lsn: Lsn::new(16), header, bytes: &bytes })
    }

    /// `xl_heap_header`, null bitmap and padding, and then the tuple.
    fn tuple(data: &[u8]) -> Vec<u8> {
        [&[33, 0, 1, 0, 32], &[0xFF; 9][..], data].concat()
    }

    const CLASS: [u32; 3] = [1663, 5, 1259];

    #[test]
    fn an_inserted_row_is_read_whole() {
        for major in MajorVersion::ALL {
            let front = row("orders", 16_385).front_bytes(major);
            let read =
                with_record(0x80, CLASS, &tuple(&front), &[7, 0, 0], |record| catalog_change(record, major)).unwrap();
            assert_eq!((read.database, read.old), (5, None));
            assert_eq!(read.new.map(|place| (place.page, place.item)), Some((3, 7)));
            assert_eq!(read.made, TupleChange::Row(row("orders", 16_385)), "{major:?}");
        }
    }

    #[test]
    fn an_update_says_what_it_changes_of_the_row_before() {
        let main = [0, 0, 0, 0, 7, 0, 0, 0x60, 0, 0, 0, 0, 8, 0];
        let data = [&[88, 0, 30, 0][..], &tuple(&20_000_u32.to_le_bytes())].concat();
        for major in MajorVersion::ALL {
            let read = with_record(0x40, CLASS, &data, &main, |record| catalog_change(record, major)).unwrap();
            let places = [read.old, read.new].map(|place| place.map(|place| (place.page, place.item)));
            assert_eq!(places, [Some((3, 7)), Some((3, 8))]);
            let TupleChange::Changed { at, bytes } = read.made else { panic!("{read:?}") };
            let new = row("orders", 16_385).with_patch(Catalog::Class, at, &bytes, major);
            assert_eq!(new, Some(row("orders", 20_000)), "{major:?}");
        }
    }

    #[test]
    fn other_tables_are_counted_and_no_catalog() {
        let file = RelFileLocator { tablespace: 1663, database: 5, filenode: 16_400 };
        for (info, counts) in [
            (0x00, RowCounts { inserted: 1, ..RowCounts::default() }),
            (0x10, RowCounts { deleted: 1, ..RowCounts::default() }),
            (0x20, RowCounts { updated: 1, ..RowCounts::default() }),
            (0x40, RowCounts { updated: 1, ..RowCounts::default() }),
        ] {
            with_record(info, [1663, 5, 16_400], &[], &[0; 14], |record| {
                assert_eq!(counted_rows(record, MajorVersion::V16), Some((Xid::new(77), file, counts)));
                assert_eq!(catalog_change(record, MajorVersion::V16), None);
            });
        }
        for info in [0x30, 0x60] {
            let counted = with_record(info, CLASS, &[], &[0; 14], |record| counted_rows(record, MajorVersion::V16));
            assert_eq!(counted, None, "locks and truncations are no rows");
        }
    }

    proptest! {
        #[test]
        fn a_row_is_what_its_front_says(oid in any::<u32>(), name in "[a-zé ]{1,20}", n in any::<(u32, u32, u8, u8)>()) {
            let relation = RelationRow { namespace: n.0, filenode: n.1, persistence: n.2, kind: n.3 };
            for major in MajorVersion::ALL {
                let row = CatalogRow { oid, name: name.clone(), relation: Some(relation) };
                prop_assert_eq!(CatalogRow::parse(Catalog::Class, &row.front_bytes(major), major), Some(row));
                let other = CatalogRow { oid, name: name.clone(), relation: None };
                prop_assert_eq!(CatalogRow::parse(Catalog::Namespace, &other.front_bytes(major), major), Some(other));
            }
        }
    }
}

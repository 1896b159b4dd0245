//! Which system catalogs hold names, and what DROP DATABASE does to one of them before anything else.
//!
//! A catalog is known by its file: it has its OID as its number until it is rewritten.

use super::event::RelationId;
use super::heap::{self, Operation, Tuple};
use super::page::Major;
use super::record::Record;

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
    pub const fn of(file: RelationId) -> Option<Catalog> {
        match (file.filenode, file.database) {
            (1259, 1..) => Some(Catalog::Class),
            (1262, 0) => Some(Catalog::Database),
            (2615, 1..) => Some(Catalog::Namespace),
            _ => None,
        }
    }
}

/// Whether the record marks the database as invalid, as DROP DATABASE does before it removes the files, in place and so for good
/// (`DATCONNLIMIT_INVALID_DB`, `pg_database.h`).
pub(crate) fn invalidates(record: &Record<'_>, database: u32, major: Major) -> bool {
    let in_place = heap::operation(&record.header) == Some(Operation::InPlace);
    let is_ours = || heap::first_file(record.bytes, major).and_then(Catalog::of) == Some(Catalog::Database);
    let invalid = || {
        let Some((_, Some(Tuple::Whole(data)))) = heap::change(record, major)?.new else { return None };
        let limit = if major <= Major::V14 { 208 } else { 80 };
        let number = |at: usize| data.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        Some(number(0)? == database && number(limit)?.cast_signed() == -2)
    };
    in_place && is_ours() && invalid().unwrap_or(false)
}

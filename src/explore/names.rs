//! What databases and tables were called, at a place in the log.

use std::collections::HashMap;

use crate::wal::event::RelationId;

/// What a relation is (`relkind`, and whether it is temporary).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelationKind {
    /// A table, partitioned or not, a materialised view, or a foreign table.
    Table,
    /// A sequence.
    Sequence,
    /// What belongs to a table and is no event by itself: an index, a TOAST table.
    Part,
    /// A view or a composite type: no data are lost with it.
    View,
    /// A temporary one: nobody else ever saw it.
    Temporary,
}

/// A relation, as it was called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relation {
    /// Its schema's OID.
    pub namespace: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
}

/// The names at one place in the log.
#[derive(Debug, Default)]
pub struct Names {
    databases: HashMap<u32, String>,
    namespaces: HashMap<(u32, u32), String>,
    relations: HashMap<(u32, u32), Relation>,
    files: HashMap<(u32, u32), u32>,
}

/// The first OID that is not the system's own (`FirstNormalObjectId`, `transam.h`).
pub const FIRST_NORMAL: u32 = 16384;

impl Names {
    /// What a database is called; its OID if that is not known.
    #[must_use]
    pub fn database(&self, oid: u32) -> String {
        self.databases.get(&oid).cloned().unwrap_or_else(|| oid.to_string())
    }

    /// A relation by its OID.
    #[must_use]
    pub fn relation(&self, database: u32, oid: u32) -> Option<&Relation> {
        self.relations.get(&(database, oid))
    }

    /// The OID of the relation that a file belongs to. Until a relation is rewritten, its file has its number.
    #[must_use]
    pub fn owner(&self, file: RelationId) -> Option<u32> {
        self.files.get(&(file.database, file.filenode)).copied()
    }

    /// A relation as people write it, schema first.
    #[must_use]
    pub fn spell(&self, database: u32, relation: &Relation) -> String {
        let builtin = match relation.namespace {
            11 => Some("pg_catalog"),
            99 => Some("pg_toast"),
            2200 => Some("public"),
            _ => None,
        };
        let schema = self.namespaces.get(&(database, relation.namespace)).map(String::as_str).or(builtin);
        let schema = schema.map_or_else(|| relation.namespace.to_string(), quoted);
        format!("{schema}.{}", quoted(&relation.name))
    }
}

/// An identifier as SQL reads it back: quoted unless it is all small letters, digits and underscores (`quote_identifier`, without its care for
/// keywords, for these names are for people).
#[must_use]
pub fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if begins_well && name.chars().all(plain) { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

//! What databases and tables were called, at a place in the log.

use std::collections::HashMap;

use crate::postgres::archive::name_list::NameList;
use crate::postgres::wal::catalog::{Catalog, CatalogChange, CatalogRow, ListedRow, TupleChange, TupleId};
use crate::postgres::wal::event::RelFileLocator;
use crate::postgres::wal::page::MajorVersion;

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
pub struct NamedRelation {
    /// Its schema's OID.
    pub namespace: u32,
    /// Its file's number now; 0 for what has none.
    pub filenode: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
}

/// The names at one place in the log.
#[derive(Debug, Default)]
pub struct RelationNames {
    databases: HashMap<u32, String>,
    namespaces: HashMap<(u32, u32), String>,
    relations: HashMap<(u32, u32), NamedRelation>,
    /// Whose file it is, or was.
    files: HashMap<(u32, u32), u32>,
    /// The rows that are there, by where they are: some records say only what they change of one.
    rows: HashMap<(Catalog, u32, TupleId), CatalogRow>,
}

/// The first OID that is not the system's own (`FirstNormalObjectId`, `transam.h`).
pub const FIRST_NORMAL_OID: u32 = 16384;

impl RelationNames {
    /// Takes in the list that was made when a backup was taken. What is known besides stays: it may be gone by then.
    /// `here` if the log has come to that backup; else rows may not be where the list has them.
    pub fn apply_name_list(&mut self, list: &NameList, here: bool) {
        if here {
            let listed = |oid: u32| list.databases.iter().any(|one| one.row.row.oid == oid && !one.schemas.is_empty());
            self.rows.retain(|(catalog, database, _), _| *catalog != Catalog::Database && !listed(*database));
        }
        for database in &list.databases {
            let oid = database.row.row.oid;
            let schemas = database.schemas.iter().map(|row| (Catalog::Namespace, oid, row));
            let relations = database.relations.iter().map(|row| (Catalog::Class, oid, row));
            for (catalog, of, ListedRow { row, at }) in
                std::iter::once((Catalog::Database, 0, &database.row)).chain(schemas).chain(relations)
            {
                self.insert_row(catalog, of, row);
                if here {
                    self.rows.insert((catalog, of, *at), row.clone());
                }
            }
        }
    }

    /// Takes in a change that the log shows. Answers the row that is gone, if one is.
    pub fn apply_change(&mut self, change: &CatalogChange, major: MajorVersion) -> Option<CatalogRow> {
        let key = |place: TupleId| (change.catalog, change.database, place);
        let old = change.old.and_then(|place| self.rows.remove(&key(place)));
        let row = match &change.made {
            TupleChange::Row(row) => row.clone(),
            TupleChange::Changed { at, bytes } => old?.with_patch(change.catalog, *at, bytes, major)?,
            TupleChange::Nothing => return old,
        };
        self.insert_row(change.catalog, change.database, &row);
        if let Some(place) = change.new {
            self.rows.insert(key(place), row);
        }
        None
    }

    fn insert_row(&mut self, catalog: Catalog, database: u32, row: &CatalogRow) {
        match (catalog, row.relation) {
            (Catalog::Database, _) => {
                self.databases.insert(row.oid, row.name.clone());
            }
            (Catalog::Namespace, _) => {
                self.namespaces.insert((database, row.oid), row.name.clone());
            }
            (Catalog::Class, Some(relation)) => {
                let kind = match (relation.persistence, relation.kind) {
                    (b't', _) => RelationKind::Temporary,
                    (_, b'i' | b'I' | b't') => RelationKind::Part,
                    (_, b'S') => RelationKind::Sequence,
                    (_, b'v' | b'c') => RelationKind::View,
                    _ => RelationKind::Table,
                };
                if relation.filenode != 0 {
                    self.files.insert((database, relation.filenode), row.oid);
                }
                let (namespace, filenode, name) = (relation.namespace, relation.filenode, row.name.clone());
                self.relations.insert((database, row.oid), NamedRelation { namespace, filenode, name, kind });
            }
            (Catalog::Class, None) => {}
        }
    }

    /// What a database is called; its OID if that is not known.
    #[must_use]
    pub fn database_name(&self, oid: u32) -> String {
        self.databases.get(&oid).cloned().unwrap_or_else(|| oid.to_string())
    }

    /// A relation by its OID.
    #[must_use]
    pub fn relation(&self, database: u32, oid: u32) -> Option<&NamedRelation> {
        self.relations.get(&(database, oid))
    }

    /// The OID of the relation that a file belongs to. Until a relation is rewritten, its file has its number.
    #[must_use]
    pub fn relation_of_file(&self, file: RelFileLocator) -> Option<u32> {
        self.files.get(&(file.database, file.filenode)).copied()
    }

    /// The table that a relation stands in for while that is written anew: its name says so.
    #[must_use]
    pub fn rewritten_table(&self, database: u32, oid: u32) -> Option<u32> {
        self.relation(database, oid)?.name.strip_prefix("pg_temp_")?.parse().ok()
    }

    /// A relation as people write it, schema first.
    #[must_use]
    pub fn qualified_name(&self, database: u32, relation: &NamedRelation) -> String {
        let builtin = match relation.namespace {
            11 => Some("pg_catalog"),
            99 => Some("pg_toast"),
            2200 => Some("public"),
            _ => None,
        };
        let schema = self.namespaces.get(&(database, relation.namespace)).map(String::as_str).or(builtin);
        let schema = schema.map_or_else(|| relation.namespace.to_string(), quote_identifier);
        format!("{schema}.{}", quote_identifier(&relation.name))
    }
}

/// An identifier as SQL reads it back: quoted unless it is all small letters, digits and underscores
/// (`quote_identifier`, without its care for keywords, for these names are for people).
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if begins_well && name.chars().all(plain) { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

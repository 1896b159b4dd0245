//! One table under another name: made ready in the scratch server, which may be written to, so that what leaves it has
//! its new names already.
//!
//! There it is taken out of whatever it belongs to: foreign keys, triggers and rules go, because they would reach into
//! tables of the running server; a partition is detached. Indexes, constraints, statistics and owned sequences get
//! names that begin with the new one. A table with partitions or children becomes one ordinary table with all their
//! rows.

use std::collections::BTreeSet;

use crate::postgres::sql::{self, SqlSession, quote_identifier, quote_literal};

use super::error::SelectiveRestoreError;
use super::nearest_name::nearest_name;
use super::table_name::{MAX_NAME_BYTES, TableName};

/// A table in the scratch server.
pub(super) struct ScratchTable<'s> {
    pub(super) sql: &'s SqlSession,
    pub(super) from: &'s TableName,
    pub(super) to: &'s TableName,
    /// Names that are in use in the running server's schema.
    pub(super) taken: BTreeSet<String>,
}

/// What a table is.
struct TableTraits {
    oid: String,
    partition: bool,
    /// It has partitions or children, whose rows it shows.
    many: bool,
    unlogged: bool,
}

impl ScratchTable<'_> {
    /// Gives the table its new name, with all that belongs to it, and says what stays behind.
    pub(super) async fn rename_in_scratch(mut self, database: &str) -> Result<Vec<String>, SelectiveRestoreError> {
        let kind = self.inspect_table(database).await?;
        let mut notes = Vec::new();
        if kind.unlogged {
            notes.push(format!(
                "{} is unlogged: its rows are in no log and no backup, so it comes back empty",
                self.from
            ));
        }
        if self.from.schema != self.to.schema {
            self.execute(&format!("CREATE SCHEMA IF NOT EXISTS {}", quote_identifier(&self.to.schema))).await?;
        }
        let oid = if kind.many {
            notes.push(format!("{} has partitions or children; their rows come back in one ordinary table", self.from));
            self.copy_into_one_table(&kind.oid).await?
        } else {
            self.detach(&kind).await?;
            notes.extend(self.drop_dependents(&kind.oid).await?);
            kind.oid
        };
        self.rename_dependents(&oid).await?;
        if !kind.many {
            if self.from.schema != self.to.schema {
                self.execute(&format!(
                    "ALTER TABLE {} SET SCHEMA {}",
                    self.from.to_sql(),
                    quote_identifier(&self.to.schema)
                ))
                .await?;
            }
            let now = TableName { schema: self.to.schema.clone(), name: self.from.name.clone() };
            self.execute(&format!("ALTER TABLE {} RENAME TO {}", now.to_sql(), quote_identifier(&self.to.name)))
                .await?;
        }
        Ok(notes)
    }

    async fn execute(&self, statement: &str) -> Result<(), SelectiveRestoreError> {
        Ok(self.sql.execute("preparing the table in the scratch server", statement).await?)
    }

    async fn query(&self, query: &str) -> Result<Vec<Vec<String>>, SelectiveRestoreError> {
        Ok(self.sql.query("the table in the scratch server", query).await?)
    }

    async fn inspect_table(&self, database: &str) -> Result<TableTraits, SelectiveRestoreError> {
        let (schema, name) = (quote_literal(&self.from.schema), quote_literal(&self.from.name));
        let query = format!(
            "SELECT c.oid, c.relkind, c.relispartition, c.relpersistence, \
             c.relkind = 'p' OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = c.oid) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {schema} AND c.relname = {name}"
        );
        let rows = self.query(&query).await?;
        let Some([oid, kind, partition, persistence, many]) = rows.first().map(Vec::as_slice) else {
            return Err(self.absent_error(database).await?);
        };
        if !matches!(kind.as_str(), "r" | "p") {
            let what = match kind.as_str() {
                "v" => "a view",
                "m" => "a materialised view",
                "S" => "a sequence",
                "f" => "a foreign table",
                "i" | "I" => "an index",
                _ => "no table",
            };
            return Err(SelectiveRestoreError::NotATable { name: self.from.clone(), what });
        }
        Ok(TableTraits {
            oid: oid.clone(),
            partition: partition == "t",
            many: many == "t",
            unlogged: persistence == "u",
        })
    }

    async fn absent_error(&self, database: &str) -> Result<SelectiveRestoreError, SelectiveRestoreError> {
        let query = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
                     ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' \
                     AND n.nspname <> 'information_schema' ORDER BY 1, 2";
        let tables: Vec<TableName> = self
            .query(query)
            .await?
            .into_iter()
            .filter_map(|row| {
                let [schema, name] = <[String; 2]>::try_from(row).ok()?;
                Some(TableName { schema, name })
            })
            .collect();
        let elsewhere = tables.iter().find(|table| table.name == self.from.name).map(ToString::to_string);
        let near = elsewhere.or_else(|| nearest_name(&self.from.to_string(), tables.iter().map(ToString::to_string)));
        let hint = match near {
            Some(near) => format!("did you mean {near}?"),
            None if tables.is_empty() => "it had no table at all".to_owned(),
            None => "no table there had a name like it".to_owned(),
        };
        Ok(SelectiveRestoreError::AbsentTable { name: self.from.clone(), database: database.to_owned(), hint })
    }

    async fn detach(&self, kind: &TableTraits) -> Result<(), SelectiveRestoreError> {
        let query = format!(
            "SELECT i.inhparent::pg_catalog.regclass::text FROM pg_catalog.pg_inherits i WHERE i.inhrelid = {}",
            kind.oid
        );
        for row in self.query(&query).await? {
            let Some(parent) = row.first() else { continue };
            let statement = if kind.partition {
                format!("ALTER TABLE {parent} DETACH PARTITION {}", self.from.to_sql())
            } else {
                format!("ALTER TABLE {} NO INHERIT {parent}", self.from.to_sql())
            };
            self.execute(&statement).await?;
        }
        Ok(())
    }

    /// Takes away what would reach beyond the table, and says what that was.
    async fn drop_dependents(&self, oid: &str) -> Result<Vec<String>, SelectiveRestoreError> {
        let mut notes = Vec::new();
        let keys = format!(
            "SELECT conname, pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint \
             WHERE conrelid = {oid} AND contype = 'f' AND conparentid = 0 ORDER BY conname"
        );
        for row in self.query(&keys).await? {
            let [name, definition] = row.as_slice() else { continue };
            self.execute(&format!("ALTER TABLE {} DROP CONSTRAINT {}", self.from.to_sql(), quote_identifier(name)))
                .await?;
            notes.push(format!(
                "foreign key {name} is left out; to add it: ALTER TABLE {} ADD {definition}",
                self.to.to_sql()
            ));
        }
        let triggers = format!(
            "SELECT tgname FROM pg_catalog.pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal ORDER BY tgname"
        );
        let rules = format!(
            "SELECT rulename FROM pg_catalog.pg_rewrite WHERE ev_class = {oid} AND rulename <> '_RETURN' ORDER BY \
                rulename"
        );
        for (what, query) in [("TRIGGER", triggers), ("RULE", rules)] {
            for row in self.query(&query).await? {
                let Some(name) = row.first() else { continue };
                self.execute(&format!("DROP {what} {} ON {}", quote_identifier(name), self.from.to_sql())).await?;
                notes.push(format!("{} {name} is left out", what.to_lowercase()));
            }
        }
        Ok(notes)
    }

    /// All rows of a table with partitions or children in one new table of the new name; its number.
    async fn copy_into_one_table(&self, oid: &str) -> Result<String, SelectiveRestoreError> {
        let columns = format!(
            "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
             WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        );
        let columns: Vec<String> = self.query(&columns).await?.into_iter().flatten().collect();
        let (from, to, columns) = (self.from.to_sql(), self.to.to_sql(), columns.join(", "));
        self.execute(&format!("CREATE TABLE {to} (LIKE {from} INCLUDING ALL EXCLUDING STATISTICS)")).await?;
        if !columns.is_empty() {
            let insert = format!("INSERT INTO {to} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {from}");
            self.execute(&insert).await?;
        }
        let owner = format!("SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE oid = {oid}");
        if let Some(owner) = self.query(&owner).await?.into_iter().flatten().next() {
            self.execute(&format!("ALTER TABLE {to} OWNER TO {}", quote_identifier(&owner))).await?;
        }
        let rows = self.query(&format!("SELECT {}::pg_catalog.regclass::oid", quote_literal(&to))).await?;
        Ok(rows.into_iter().flatten().next().unwrap_or_default())
    }

    /// Indexes and the constraints behind them, owned sequences, and statistics share the schema with those of the
    /// table that is there.
    async fn rename_dependents(&mut self, oid: &str) -> Result<(), SelectiveRestoreError> {
        let query = format!(
            "SELECT 'INDEX', n.nspname, c.relname FROM pg_catalog.pg_index i \
             JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = \
             c.relnamespace \
             WHERE i.indrelid = {oid} UNION ALL \
             SELECT 'SEQUENCE', n.nspname, c.relname FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S' \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
             AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = {oid} AND d.deptype IN \
             ('a', 'i') \
             UNION ALL SELECT 'STATISTICS', n.nspname, s.stxname FROM pg_catalog.pg_statistic_ext s \
             JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = {oid} ORDER BY 1, 2, 3"
        );
        for row in self.query(&query).await? {
            let [what, schema, name] = row.as_slice() else { continue };
            let new = self.unused_name(name);
            self.taken.insert(new.clone());
            if new != *name {
                let (schema, name, new) = (quote_identifier(schema), quote_identifier(name), quote_identifier(&new));
                self.execute(&format!("ALTER {what} {schema}.{name} RENAME TO {new}")).await?;
            }
        }
        Ok(())
    }

    fn unused_name(&self, name: &str) -> String {
        let rest = name.strip_prefix(self.to.name.as_str()).or_else(|| name.strip_prefix(self.from.name.as_str()));
        let wanted = match rest {
            Some(rest) => format!("{}{rest}", self.to.name),
            None => format!("{}_{name}", self.to.name),
        };
        let mut tries = (0_u32..).map(|n| match n {
            0 => truncate_to_bytes(&wanted, MAX_NAME_BYTES),
            n => format!("{}_{n}", truncate_to_bytes(&wanted, MAX_NAME_BYTES - 8)),
        });
        tries.find(|new| !self.taken.contains(new)).unwrap_or(wanted)
    }
}

/// As many whole characters as fit.
fn truncate_to_bytes(text: &str, bytes: usize) -> String {
    text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= bytes).map(|(_, c)| c).collect()
}

/// Names that relations and statistics have in a schema of the running server.
pub(super) async fn taken_names(sql: &SqlSession, schema: &str) -> Result<BTreeSet<String>, sql::SqlError> {
    let schema = quote_literal(schema);
    let query = format!(
        "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {schema} UNION SELECT t.typname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n \
         ON n.oid = t.typnamespace WHERE n.nspname = {schema} UNION SELECT s.stxname FROM pg_catalog.pg_statistic_ext \
         s \
         JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE n.nspname = {schema}"
    );
    Ok(sql.query("the names in use", &query).await?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::truncate_to_bytes;

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(
            (truncate_to_bytes("aäb", 2), truncate_to_bytes("aäb", 3), truncate_to_bytes("aäb", 9)),
            ("a".into(), "aä".into(), "aäb".into())
        );
    }
}

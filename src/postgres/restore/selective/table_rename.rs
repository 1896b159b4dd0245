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
use super::restore_failure::RestoreFailure;
use super::table_name::{MAX_NAME_BYTES, TableName};
use super::table_rows::LaterStatement;

/// A table in the scratch server.
pub(super) struct ScratchTable<'s> {
    pub(super) sql: &'s SqlSession,
    pub(super) from: &'s TableName,
    pub(super) to: &'s TableName,
    /// What the table of many is called while it is copied.
    pub(super) original: TableName,
    /// Names that are in use in the running server's schema.
    pub(super) taken: BTreeSet<String>,
}

/// A table that is ready to leave the scratch server.
pub(super) struct PreparedTable {
    /// What is left out.
    pub(super) notes: Vec<String>,
    /// What is done once its rows are there: it calls functions of users, which may fail.
    pub(super) later: Vec<LaterStatement>,
    /// Its generated columns, with their expressions.
    pub(super) generated: Vec<(String, String)>,
}

impl PreparedTable {
    /// Makes the generated columns ordinary ones, which keep their values. `reason` is why their rows could not be
    /// loaded otherwise.
    pub(super) async fn keep_generated_values(
        &self,
        sql: &SqlSession,
        table: &TableName,
        reason: &str,
    ) -> Result<Vec<RestoreFailure>, SelectiveRestoreError> {
        let mut failures = Vec::new();
        for (column, expression) in &self.generated {
            let column = quote_identifier(column);
            let statement = format!("ALTER TABLE {} ALTER COLUMN {column} DROP EXPRESSION", table.to_sql());
            sql.execute("keeping generated values", &statement).await?;
            failures.push(RestoreFailure {
                object: format!("generated column {column} of {table}"),
                reason: reason.to_owned(),
                statement: None,
                advice: format!(
                    "it has the values that it had, and is an ordinary column now; it was generated as ({expression})"
                ),
            });
        }
        Ok(failures)
    }
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
    pub(super) async fn rename_in_scratch(mut self, database: &str) -> Result<PreparedTable, SelectiveRestoreError> {
        let kind = self.inspect_table(database).await?;
        let mut notes = Vec::new();
        let mut later = Vec::new();
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
            notes.extend(self.detach_foreign(&kind.oid).await?);
            later.extend(self.checks(&kind.oid, "true").await?);
            self.set_original_aside(&kind.oid).await?;
            self.copy_into_one_table(&kind.oid).await?
        } else {
            self.detach(&kind).await?;
            notes.extend(self.drop_dependents(&kind.oid).await?);
            kind.oid
        };
        self.rename_dependents(&oid).await?;
        if !kind.many {
            later.extend(self.take_away_checks(&oid).await?);
            if self.from.schema != self.to.schema {
                self.execute(&format!(
                    "ALTER TABLE {} SET SCHEMA {}",
                    self.from.to_sql(),
                    quote_identifier(&self.to.schema)
                ))
                .await?;
            }
            let now = TableName { schema: self.to.schema.clone(), name: self.from.name.clone() };
            if now.name != self.to.name {
                self.execute(&format!("ALTER TABLE {} RENAME TO {}", now.to_sql(), quote_identifier(&self.to.name)))
                    .await?;
            }
        }
        later.extend(self.take_away_defaults(&oid).await?);
        let generated = format!(
            "SELECT a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = {oid} AND a.attgenerated = 's' ORDER BY a.attnum"
        );
        let pair =
            |row: Vec<String>| <[String; 2]>::try_from(row).ok().map(|[column, expression]| (column, expression));
        let generated = self.query(&generated).await?.into_iter().filter_map(pair).collect();
        Ok(PreparedTable { notes, later, generated })
    }

    /// The checks of a table for which `condition` holds, as statements on the new one.
    async fn checks(&self, oid: &str, condition: &str) -> Result<Vec<LaterStatement>, SelectiveRestoreError> {
        let query = format!(
            "SELECT c.conname, pg_catalog.pg_get_constraintdef(c.oid) FROM pg_catalog.pg_constraint c \
             WHERE c.conrelid = {oid} AND c.contype = 'c' AND {condition} ORDER BY c.conname"
        );
        let read = |row: Vec<String>| {
            let [name, definition] = <[String; 2]>::try_from(row).ok()?;
            let statement =
                format!("ALTER TABLE {} ADD CONSTRAINT {} {definition}", self.to.to_sql(), quote_identifier(&name));
            Some(LaterStatement { object: format!("CHECK {name} of {}", self.to), statement, check: true })
        };
        Ok(self.query(&query).await?.into_iter().filter_map(read).collect())
    }

    /// Takes away the checks that call functions or operators of users: a row that such a check fails for would hold up
    /// all the others.
    async fn take_away_checks(&self, oid: &str) -> Result<Vec<LaterStatement>, SelectiveRestoreError> {
        let depends = calls_users_code("pg_constraint", "c.oid");
        let later = self.checks(oid, &depends).await?;
        let names = format!(
            "SELECT c.conname FROM pg_catalog.pg_constraint c \
             WHERE c.conrelid = {oid} AND c.contype = 'c' AND {depends}"
        );
        for name in self.query(&names).await?.into_iter().flatten() {
            let statement = format!("ALTER TABLE {} DROP CONSTRAINT {}", self.from.to_sql(), quote_identifier(&name));
            self.execute(&statement).await?;
        }
        Ok(later)
    }

    /// Takes away the defaults that call functions of users, or that count by a sequence that does not belong to the
    /// table: the running server may not have them.
    async fn take_away_defaults(&self, oid: &str) -> Result<Vec<LaterStatement>, SelectiveRestoreError> {
        let query = format!(
            "SELECT a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum \
             WHERE d.adrelid = {oid} AND a.attgenerated = '' AND ({} OR {}) ORDER BY a.attnum",
            calls_users_code("pg_attrdef", "d.oid"),
            uses_foreign_sequence(oid)
        );
        let mut later = Vec::new();
        for row in self.query(&query).await? {
            let [column, expression] = row.as_slice() else { continue };
            let alter = format!("ALTER TABLE {} ALTER COLUMN {}", self.to.to_sql(), quote_identifier(column));
            self.execute(&format!("{alter} DROP DEFAULT")).await?;
            later.push(LaterStatement {
                object: format!("default of column {column} of {}", self.to),
                statement: format!("{alter} SET DEFAULT {expression}"),
                check: false,
            });
        }
        Ok(later)
    }

    /// Foreign tables among the partitions show what their server has today.
    async fn detach_foreign(&self, oid: &str) -> Result<Vec<String>, SelectiveRestoreError> {
        let query = format!(
            "WITH RECURSIVE tree (oid, parent) AS (SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i \
             WHERE i.inhparent = {oid} UNION ALL SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i \
             JOIN tree t ON i.inhparent = t.oid) \
             SELECT c.oid::pg_catalog.regclass, t.parent::pg_catalog.regclass, c.relispartition FROM tree t \
             JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE c.relkind = 'f' ORDER BY 1, 2"
        );
        let mut notes = Vec::new();
        for row in self.query(&query).await? {
            let [child, parent, partition] = row.as_slice() else { continue };
            let statement = if partition == "t" {
                format!("ALTER TABLE {parent} DETACH PARTITION {child}")
            } else {
                format!("ALTER FOREIGN TABLE {child} NO INHERIT {parent}")
            };
            self.execute(&statement).await?;
            notes.push(format!("{child} is a foreign table: its rows are on another server, and are left out"));
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

    /// A table of many that keeps its name gives it to the new one, with the names of its indexes and sequences.
    async fn set_original_aside(&mut self, oid: &str) -> Result<(), SelectiveRestoreError> {
        if self.from.to_sql() != self.to.to_sql() {
            return Ok(());
        }
        let aside = "walkeep_original";
        self.execute(&format!("ALTER TABLE {} RENAME TO {aside}", self.from.to_sql())).await?;
        self.original = TableName { schema: self.from.schema.clone(), name: aside.to_owned() };
        for (nth, row) in self.query(&dependents_query(oid)).await?.iter().enumerate() {
            let [what, schema, name] = row.as_slice() else { continue };
            let (schema, name) = (quote_identifier(schema), quote_identifier(name));
            self.execute(&format!("ALTER {what} {schema}.{name} RENAME TO {aside}_{nth}")).await?;
        }
        Ok(())
    }

    /// All rows of a table with partitions or children in one new table of the new name; its number.
    async fn copy_into_one_table(&self, oid: &str) -> Result<String, SelectiveRestoreError> {
        let columns = format!(
            "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
             WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        );
        let columns: Vec<String> = self.query(&columns).await?.into_iter().flatten().collect();
        let (from, to, columns) = (self.original.to_sql(), self.to.to_sql(), columns.join(", "));
        self.execute(&format!(
            "CREATE TABLE {to} (LIKE {from} INCLUDING ALL EXCLUDING STATISTICS EXCLUDING CONSTRAINTS)"
        ))
        .await?;
        if !columns.is_empty() {
            let insert = format!("INSERT INTO {to} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {from}");
            self.execute(&insert).await?;
        }
        self.copy_sequences(oid).await?;
        let owner = format!("SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE oid = {oid}");
        if let Some(owner) = self.query(&owner).await?.into_iter().flatten().next() {
            self.execute(&format!("ALTER TABLE {to} OWNER TO {}", quote_identifier(&owner))).await?;
        }
        let rows = self.query(&format!("SELECT {}::pg_catalog.regclass::oid", quote_literal(&to))).await?;
        Ok(rows.into_iter().flatten().next().unwrap_or_default())
    }

    /// The new table's identity and serial columns count on from where those of the original were, each with a sequence
    /// of its own.
    async fn copy_sequences(&self, oid: &str) -> Result<(), SelectiveRestoreError> {
        let query = format!(
            "SELECT a.attname, d.deptype, c.oid::pg_catalog.regclass, \
             pg_catalog.format('AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s', \
             pg_catalog.format_type(s.seqtypid, NULL), \
             s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN 'CYCLE' END) \
             FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_sequence s ON s.seqrelid = d.objid \
             JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
             WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = {oid} \
             AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i') \
             ORDER BY a.attnum"
        );
        let to = self.to.to_sql();
        for row in self.query(&query).await? {
            let [column, kind, original, options] = row.as_slice() else { continue };
            let new = if kind == "i" {
                let asked = format!(
                    "SELECT pg_catalog.pg_get_serial_sequence({}, {})",
                    quote_literal(&to),
                    quote_literal(column)
                );
                self.query(&asked).await?.into_iter().flatten().next().unwrap_or_default()
            } else {
                let name = format!("{}_{column}_seq", self.to.name);
                let new =
                    format!("{}.{}", quote_identifier(&self.to.schema), quote_identifier(&self.unused_name(&name)));
                let column = quote_identifier(column);
                self.execute(&format!("CREATE SEQUENCE {new} {options}")).await?;
                self.execute(&format!("ALTER SEQUENCE {new} OWNED BY {to}.{column}")).await?;
                let counts = format!("pg_catalog.nextval({})", quote_literal(&new));
                self.execute(&format!("ALTER TABLE {to} ALTER COLUMN {column} SET DEFAULT {counts}")).await?;
                new
            };
            let set = format!(
                "SELECT pg_catalog.setval({}::pg_catalog.regclass, last_value, is_called) FROM {original}",
                quote_literal(&new)
            );
            self.query(&set).await?;
        }
        Ok(())
    }

    /// Indexes and the constraints behind them, owned sequences, and statistics share the schema with those of the
    /// table that is there.
    async fn rename_dependents(&mut self, oid: &str) -> Result<(), SelectiveRestoreError> {
        let query = dependents_query(oid);
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

/// The condition that an object depends on a function or an operator of users (`FirstNormalObjectId`).
fn calls_users_code(catalog: &str, oid: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_depend u WHERE u.classid = 'pg_catalog.{catalog}'::pg_catalog.regclass \
         AND u.objid = {oid} AND u.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, \
         'pg_catalog.pg_operator'::pg_catalog.regclass) AND u.refobjid >= 16384)"
    )
}

/// The condition that a default `d` counts by a sequence that does not belong to the table.
fn uses_foreign_sequence(table: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_depend u JOIN pg_catalog.pg_sequence s ON s.seqrelid = u.refobjid \
         WHERE u.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND u.objid = d.oid \
         AND u.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND NOT EXISTS (SELECT \
         FROM pg_catalog.pg_depend o WHERE o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND o.objid = s.seqrelid AND o.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND o.refobjid = {table} AND o.deptype IN ('a', 'i')))"
    )
}

/// Kind, schema and name of the indexes, owned sequences and statistics of a table.
fn dependents_query(oid: &str) -> String {
    format!(
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
    )
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

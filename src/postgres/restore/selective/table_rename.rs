//! One table under another name: made ready in the scratch server, which may be written to, so that what leaves it has its new names already.
//!
//! There it is taken out of whatever it belongs to: foreign keys, triggers and rules go, because they would reach into tables of the running
//! server; a partition is detached. Indexes, constraints, statistics and owned sequences get names that begin with the new one. A table with
//! partitions or children becomes one ordinary table with all their rows.

use std::collections::BTreeSet;
use std::fmt;

use crate::postgres::sql::{self, SqlSession, identifier, literal};

use super::{SelectiveRestoreError, nearest};

/// The longest name (`NAMEDATALEN` less the zero).
const NAME_MAX: usize = 63;

/// A table's name with its schema.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl TableName {
    /// Reads `schema.name`, or a name alone, which is in `schema`; double quotes as in SQL, and what has none in lower case.
    #[must_use]
    pub fn parse(text: &str, schema: &str) -> Option<TableName> {
        let mut parts: Vec<String> = vec![String::new()];
        let mut quoted = false;
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let last = parts.last_mut()?;
            match character {
                '"' if quoted && characters.next_if_eq(&'"').is_some() => last.push('"'),
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                other if quoted => last.push(other),
                other => last.extend(other.to_lowercase()),
            }
        }
        let whole = !quoted && parts.iter().all(|part| !part.is_empty() && part.len() <= NAME_MAX);
        match (whole, parts.as_slice()) {
            (true, [name]) => Some(TableName { schema: schema.to_owned(), name: name.clone() }),
            (true, [schema, name]) => Some(TableName { schema: schema.clone(), name: name.clone() }),
            _ => None,
        }
    }

    /// As SQL has it, and as a pattern of `pg_dump` that fits it alone.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

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
    pub(super) async fn make_ready(mut self, database: &str) -> Result<Vec<String>, SelectiveRestoreError> {
        let kind = self.find(database).await?;
        let mut notes = Vec::new();
        if kind.unlogged {
            notes.push(format!(
                "{} is unlogged: its rows are in no log and no backup, so it comes back empty",
                self.from
            ));
        }
        if self.from.schema != self.to.schema {
            self.run(&format!("CREATE SCHEMA IF NOT EXISTS {}", identifier(&self.to.schema))).await?;
        }
        let oid = if kind.many {
            notes.push(format!("{} has partitions or children; their rows come back in one ordinary table", self.from));
            self.copy_many(&kind.oid).await?
        } else {
            self.detach(&kind).await?;
            notes.extend(self.cut_off(&kind.oid).await?);
            kind.oid
        };
        self.rename_belongings(&oid).await?;
        if !kind.many {
            if self.from.schema != self.to.schema {
                self.run(&format!("ALTER TABLE {} SET SCHEMA {}", self.from.sql(), identifier(&self.to.schema)))
                    .await?;
            }
            let now = TableName { schema: self.to.schema.clone(), name: self.from.name.clone() };
            self.run(&format!("ALTER TABLE {} RENAME TO {}", now.sql(), identifier(&self.to.name))).await?;
        }
        Ok(notes)
    }

    async fn run(&self, statement: &str) -> Result<(), SelectiveRestoreError> {
        Ok(self.sql.execute("preparing the table in the scratch server", statement).await?)
    }

    async fn ask(&self, query: &str) -> Result<Vec<Vec<String>>, SelectiveRestoreError> {
        Ok(self.sql.query("the table in the scratch server", query).await?)
    }

    async fn find(&self, database: &str) -> Result<TableTraits, SelectiveRestoreError> {
        let (schema, name) = (literal(&self.from.schema), literal(&self.from.name));
        let query = format!(
            "SELECT c.oid, c.relkind, c.relispartition, c.relpersistence, \
             c.relkind = 'p' OR EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = c.oid) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {schema} AND c.relname = {name}"
        );
        let rows = self.ask(&query).await?;
        let Some([oid, kind, partition, persistence, many]) = rows.first().map(Vec::as_slice) else {
            return Err(self.absent(database).await?);
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
            return Err(SelectiveRestoreError::NoTable { name: self.from.clone(), what });
        }
        Ok(TableTraits {
            oid: oid.clone(),
            partition: partition == "t",
            many: many == "t",
            unlogged: persistence == "u",
        })
    }

    async fn absent(&self, database: &str) -> Result<SelectiveRestoreError, SelectiveRestoreError> {
        let query = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
                     ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' \
                     AND n.nspname <> 'information_schema' ORDER BY 1, 2";
        let tables: Vec<TableName> = self
            .ask(query)
            .await?
            .into_iter()
            .filter_map(|row| {
                let [schema, name] = <[String; 2]>::try_from(row).ok()?;
                Some(TableName { schema, name })
            })
            .collect();
        let elsewhere = tables.iter().find(|table| table.name == self.from.name).map(ToString::to_string);
        let near = elsewhere.or_else(|| nearest(&self.from.to_string(), tables.iter().map(ToString::to_string)));
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
        for row in self.ask(&query).await? {
            let Some(parent) = row.first() else { continue };
            let statement = if kind.partition {
                format!("ALTER TABLE {parent} DETACH PARTITION {}", self.from.sql())
            } else {
                format!("ALTER TABLE {} NO INHERIT {parent}", self.from.sql())
            };
            self.run(&statement).await?;
        }
        Ok(())
    }

    /// Takes away what would reach beyond the table, and says what that was.
    async fn cut_off(&self, oid: &str) -> Result<Vec<String>, SelectiveRestoreError> {
        let mut notes = Vec::new();
        let keys = format!(
            "SELECT conname, pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint \
             WHERE conrelid = {oid} AND contype = 'f' AND conparentid = 0 ORDER BY conname"
        );
        for row in self.ask(&keys).await? {
            let [name, definition] = row.as_slice() else { continue };
            self.run(&format!("ALTER TABLE {} DROP CONSTRAINT {}", self.from.sql(), identifier(name))).await?;
            notes.push(format!(
                "foreign key {name} is left out; to add it: ALTER TABLE {} ADD {definition}",
                self.to.sql()
            ));
        }
        let triggers = format!(
            "SELECT tgname FROM pg_catalog.pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal ORDER BY tgname"
        );
        let rules = format!(
            "SELECT rulename FROM pg_catalog.pg_rewrite WHERE ev_class = {oid} AND rulename <> '_RETURN' ORDER BY rulename"
        );
        for (what, query) in [("TRIGGER", triggers), ("RULE", rules)] {
            for row in self.ask(&query).await? {
                let Some(name) = row.first() else { continue };
                self.run(&format!("DROP {what} {} ON {}", identifier(name), self.from.sql())).await?;
                notes.push(format!("{} {name} is left out", what.to_lowercase()));
            }
        }
        Ok(notes)
    }

    /// All rows of a table with partitions or children in one new table of the new name; its number.
    async fn copy_many(&self, oid: &str) -> Result<String, SelectiveRestoreError> {
        let columns = format!(
            "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
             WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        );
        let columns: Vec<String> = self.ask(&columns).await?.into_iter().flatten().collect();
        let (from, to, columns) = (self.from.sql(), self.to.sql(), columns.join(", "));
        self.run(&format!("CREATE TABLE {to} (LIKE {from} INCLUDING ALL EXCLUDING STATISTICS)")).await?;
        if !columns.is_empty() {
            let insert = format!("INSERT INTO {to} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {from}");
            self.run(&insert).await?;
        }
        let owner = format!("SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE oid = {oid}");
        if let Some(owner) = self.ask(&owner).await?.into_iter().flatten().next() {
            self.run(&format!("ALTER TABLE {to} OWNER TO {}", identifier(&owner))).await?;
        }
        let rows = self.ask(&format!("SELECT {}::pg_catalog.regclass::oid", literal(&to))).await?;
        Ok(rows.into_iter().flatten().next().unwrap_or_default())
    }

    /// Indexes and the constraints behind them, owned sequences, and statistics share the schema with those of the table that is there.
    async fn rename_belongings(&mut self, oid: &str) -> Result<(), SelectiveRestoreError> {
        let query = format!(
            "SELECT 'INDEX', n.nspname, c.relname FROM pg_catalog.pg_index i \
             JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE i.indrelid = {oid} UNION ALL \
             SELECT 'SEQUENCE', n.nspname, c.relname FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S' \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
             AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = {oid} AND d.deptype IN ('a', 'i') \
             UNION ALL SELECT 'STATISTICS', n.nspname, s.stxname FROM pg_catalog.pg_statistic_ext s \
             JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE s.stxrelid = {oid} ORDER BY 1, 2, 3"
        );
        for row in self.ask(&query).await? {
            let [what, schema, name] = row.as_slice() else { continue };
            let new = self.new_name(name);
            self.taken.insert(new.clone());
            if new != *name {
                let (schema, name, new) = (identifier(schema), identifier(name), identifier(&new));
                self.run(&format!("ALTER {what} {schema}.{name} RENAME TO {new}")).await?;
            }
        }
        Ok(())
    }

    fn new_name(&self, name: &str) -> String {
        let rest = name.strip_prefix(self.to.name.as_str()).or_else(|| name.strip_prefix(self.from.name.as_str()));
        let wanted = match rest {
            Some(rest) => format!("{}{rest}", self.to.name),
            None => format!("{}_{name}", self.to.name),
        };
        let mut tries = (0_u32..).map(|n| match n {
            0 => cut(&wanted, NAME_MAX),
            n => format!("{}_{n}", cut(&wanted, NAME_MAX - 8)),
        });
        tries.find(|new| !self.taken.contains(new)).unwrap_or(wanted)
    }
}

/// As many whole characters as fit.
fn cut(text: &str, bytes: usize) -> String {
    text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= bytes).map(|(_, c)| c).collect()
}

/// Names that relations and statistics have in a schema of the running server.
pub(super) async fn taken(sql: &SqlSession, schema: &str) -> Result<BTreeSet<String>, sql::SqlError> {
    let schema = literal(schema);
    let query = format!(
        "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = {schema} UNION SELECT t.typname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n \
         ON n.oid = t.typnamespace WHERE n.nspname = {schema} UNION SELECT s.stxname FROM pg_catalog.pg_statistic_ext s \
         JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace WHERE n.nspname = {schema}"
    );
    Ok(sql.query("the names in use", &query).await?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::{TableName, cut};

    #[test]
    fn names_are_read_as_sql_reads_them() {
        let read = |text: &str| TableName::parse(text, "public").map(|name| (name.schema, name.name));
        let pair = |schema: &str, name: &str| Some((schema.to_owned(), name.to_owned()));
        assert_eq!(read("orders"), pair("public", "orders"));
        assert_eq!(read("Sales.Orders"), pair("sales", "orders"));
        assert_eq!(read("\"Sales\".\"my.Orders\""), pair("Sales", "my.Orders"));
        assert_eq!(read("\"a\"\"b\""), pair("public", "a\"b"));
        for wrong in ["", "a.", ".a", "a.b.c", "\"a", &"x".repeat(64)] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!((cut("aäb", 2), cut("aäb", 3), cut("aäb", 9)), ("a".into(), "aä".into(), "aäb".into()));
    }
}

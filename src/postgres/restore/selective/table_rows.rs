//! A table of a restored database whose rows could not be loaded, because a check or a generated column calls a
//! function that fails. Its rows are loaded without them, and both are put back as far as they can be.

use crate::postgres::sql::{SqlSession, quote_identifier, quote_literal};

use super::error::SelectiveRestoreError;
use super::restore_failure::RestoreFailure;

/// Such a table, as the scratch server names it.
pub(super) struct FailedTable {
    /// Its name without the schema.
    pub(super) name: String,
    /// It alone, as a pattern of `pg_dump`.
    pub(super) pattern: String,
    /// It, and the root of its partitions, which its constraints may be inherited from.
    relations: Vec<String>,
}

/// What was taken away from a table for the time that its rows are loaded.
pub(super) struct RemovedHindrances {
    /// Table, name and definition.
    checks: Vec<(String, String, String)>,
    /// Table, column and expression.
    generated: Vec<(String, String, String)>,
}

impl FailedTable {
    /// The tables of these names, in whichever schema, that have rows in the scratch server and none in the new
    /// database.
    pub(super) async fn find_all(
        scratch: &SqlSession,
        target: &SqlSession,
        names: impl Iterator<Item = &str>,
    ) -> Result<Vec<FailedTable>, SelectiveRestoreError> {
        let names: Vec<String> = names.map(quote_literal).collect();
        // With an empty search_path, `regclass` shows the schema.
        let query = format!(
            "SELECT relname, oid::pg_catalog.regclass, \
             COALESCE(pg_catalog.pg_partition_root(oid), oid::pg_catalog.regclass) \
             FROM pg_catalog.pg_class WHERE relkind = 'r' AND relname IN ({}) ORDER BY 2",
            names.join(", ")
        );
        let mut found = Vec::new();
        for row in scratch.query("the tables without rows", &query).await? {
            let Ok([name, table, root]) = <[String; 3]>::try_from(row) else { continue };
            let any = format!("SELECT EXISTS (SELECT FROM ONLY {table})");
            let has_rows = async |sql: &SqlSession| -> Result<bool, SelectiveRestoreError> {
                Ok(sql.query("whether a table has rows", &any).await?.into_iter().flatten().next().as_deref()
                    == Some("t"))
            };
            if has_rows(scratch).await? && !has_rows(target).await? {
                let relations = if root == table { vec![root] } else { vec![root, table.clone()] };
                found.push(FailedTable { name, pattern: table, relations });
            }
        }
        Ok(found)
    }

    /// Takes away the checks in the new database. Generated columns become ordinary ones, there and in the scratch
    /// server, so that their values are copied.
    pub(super) async fn remove_hindrances(
        &self,
        scratch: &SqlSession,
        target: &SqlSession,
    ) -> Result<RemovedHindrances, SelectiveRestoreError> {
        let mut removed = RemovedHindrances { checks: Vec::new(), generated: Vec::new() };
        for relation in &self.relations {
            let of = format!("{}::pg_catalog.regclass", quote_literal(relation));
            let checks = format!(
                "SELECT conname, pg_catalog.pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint \
                 WHERE conrelid = {of} AND contype = 'c' AND conislocal AND coninhcount = 0 ORDER BY conname"
            );
            for row in target.query("the checks", &checks).await? {
                let [name, definition] = row.as_slice() else { continue };
                let statement = format!("ALTER TABLE {relation} DROP CONSTRAINT {}", quote_identifier(name));
                if let Err(error) = target.execute("taking away a check", &statement).await {
                    tracing::warn!(relation, %error, "check {name} stays");
                    continue;
                }
                removed.checks.push((relation.clone(), name.clone(), definition.clone()));
            }
            let generated = format!(
                "SELECT a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attribute a \
                 JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
                 WHERE a.attrelid = {of} AND a.attgenerated = 's' AND a.attislocal AND a.attinhcount = 0 \
                 ORDER BY a.attnum"
            );
            for row in scratch.query("the generated columns", &generated).await? {
                let [column, expression] = row.as_slice() else { continue };
                let statement =
                    format!("ALTER TABLE {relation} ALTER COLUMN {} DROP EXPRESSION", quote_identifier(column));
                let changed = async {
                    scratch.execute("keeping generated values", &statement).await?;
                    target.execute("keeping generated values", &statement).await
                };
                if let Err(error) = changed.await {
                    tracing::warn!(relation, %error, "column {column} stays generated");
                    continue;
                }
                removed.generated.push((relation.clone(), column.clone(), expression.clone()));
            }
        }
        Ok(removed)
    }
}

impl RemovedHindrances {
    /// Puts the checks back: for the rows that are there, too, if that is possible, and else for new ones.
    pub(super) async fn put_back(self, target: &SqlSession, reason: &str) -> Vec<RestoreFailure> {
        let mut failures = Vec::new();
        for (table, name, definition) in self.checks {
            let statement = format!("ALTER TABLE {table} ADD CONSTRAINT {} {definition}", quote_identifier(&name));
            let later = LaterStatement { object: format!("CHECK {name} of {table}"), statement, check: true };
            failures.extend(later.run(target).await);
        }
        failures.extend(self.generated.into_iter().map(|(table, column, expression)| RestoreFailure {
            object: format!("generated column {column} of {table}"),
            reason: reason.to_owned(),
            statement: None,
            advice: format!(
                "it has the values that it had, and is an ordinary column now; it was generated as ({expression})"
            ),
        }));
        failures
    }
}

/// A statement for which the rows do not wait.
pub(super) struct LaterStatement {
    pub(super) object: String,
    pub(super) statement: String,
    /// Whether it adds a check, which can also be added for new rows only.
    pub(super) check: bool,
}

impl LaterStatement {
    /// What could not be done of it.
    pub(super) async fn run(&self, sql: &SqlSession) -> Option<RestoreFailure> {
        let error = sql.execute("adding what was left out", &self.statement).await.err()?;
        let unchecked = format!("{} NOT VALID", self.statement);
        let added = self.check
            && !self.statement.ends_with("NOT VALID")
            && sql.execute("adding a check for new rows", &unchecked).await.is_ok();
        let advice = if added {
            "it is there as NOT VALID: these rows were not checked; ALTER TABLE … VALIDATE CONSTRAINT does that"
        } else {
            "the rows are there: run the statement once the cause is removed"
        };
        Some(RestoreFailure {
            object: self.object.clone(),
            reason: error.to_string(),
            statement: Some(self.statement.clone()),
            advice: advice.to_owned(),
        })
    }
}

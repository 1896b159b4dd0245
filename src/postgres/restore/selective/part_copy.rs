//! The copy of a part between the two servers, with PostgreSQL's own tools.
//!
//! Rows come first. What is built on them afterwards may fail, because it calls functions of users that need a
//! `search_path`, an extension or another table: it is left out and reported with its statement, and the rows stay.

use std::path::{Path, PathBuf};

use crate::base::clock::real_sleep;
use crate::postgres::session_settings::{self, SessionRights};
use crate::postgres::sql::{SqlSession, quote_identifier, quote_literal};
use crate::postgres::wire::Conninfo;

use super::error::SelectiveRestoreError;
use super::pg_tools::PgTool;
use super::request::SelectiveRestoreStep;
use super::restore_failure::{FailedEntry, RestoreFailure};
use super::scratch_server::bytes_in;
use super::staged_database::{give_name, new_staged_name, rename_in_scratch};
use super::table_name::TableName;
use super::table_rename::PreparedTable;
use super::table_rows::FailedTable;
use super::under_way::{POLL_INTERVAL, SelectiveRestore};

/// What was copied.
pub(super) struct CopiedPart {
    /// Its bytes in the running server.
    pub(super) bytes: u64,
    /// What could not be built on the rows.
    pub(super) failures: Vec<RestoreFailure>,
}

impl SelectiveRestore {
    /// Options of `pg_restore` that the two servers' differences ask for.
    async fn pg_restore_options(&self, sql: &SqlSession) -> Result<Vec<&'static str>, SelectiveRestoreError> {
        let mut options = vec!["--no-subscriptions"];
        if self.must_skip_owners(sql).await? {
            options.extend(["--no-owner", "--no-acl"]);
        }
        let spaces = sql.query("the tablespaces", "SELECT spcname FROM pg_catalog.pg_tablespace").await?;
        if spaces.into_iter().flatten().any(|name| !self.running.tablespaces.contains(&name)) {
            options.push("--no-tablespaces");
        }
        Ok(options)
    }

    pub(super) async fn copy_database(
        &mut self,
        sql: SqlSession,
        tools: &Path,
        (name, new): (&str, &str),
        progress: &(dyn Fn(SelectiveRestoreStep) + Sync),
    ) -> Result<CopiedPart, SelectiveRestoreError> {
        let staged = new_staged_name()?;
        let options = self.pg_restore_options(&sql).await?;
        drop(sql);
        let scratch = self.connect("template1", &self.candidates).await?;
        rename_in_scratch(&scratch, name, &staged).await?;
        let size = database_size(&scratch, &staged).await?;
        let (from, dump) = self.dump_destination(&current_user(&scratch).await?, &staged)?;
        drop(scratch);
        let jobs = self.wish.jobs.max(1).to_string();
        let tool = PgTool::new(tools, "pg_dump", &from)
            .args(["-Fd", "-Z1", "--no-subscriptions", "-j", &jobs, "-f"])
            .arg(&dump);
        watch_progress(tool.run(), async || progress(SelectiveRestoreStep::Dumping(bytes_in(&dump), size))).await?;

        self.staged = Some(staged.clone());
        let (first, within) = (self.tool_conninfo(None), self.tool_conninfo(Some(&staged)));
        let section = |into: &Conninfo, words: &[&str]| {
            let tool = PgTool::new(tools, "pg_restore", into).args(words.iter().copied());
            tool.args(options.iter().copied()).arg("-d").arg(connection_string_for_tool(into)).arg(&dump)
        };
        let mut failed = section(&first, &["--create", "--section=pre-data"]).run_through().await?;
        let loading = section(&within, &["--section=data", "-j", &jobs]).run_through();
        let running = &self.running.sql;
        let rows = watch_progress(loading, async || {
            let now = database_size(running, &staged).await.unwrap_or(0);
            progress(SelectiveRestoreStep::Loading(now.min(size), size));
        })
        .await?;
        let mut failures = self.copy_failed_tables(tools, &staged, rows, &mut failed).await?;
        let building = section(&within, &["--section=post-data", "-j", &jobs]).run_through();
        failed.extend(watch_progress(building, async || progress(SelectiveRestoreStep::Loading(size, size))).await?);
        let quoted = quote_identifier(new);
        failures.extend(failed.into_iter().map(|entry| entry.into_failure(Some((&staged, &quoted)))));

        self.running.reopen(&self.wish).await?;
        let named = give_name(&self.running.sql, &staged, new, &self.wish.into.to_string()).await;
        if matches!(named, Ok(()) | Err(SelectiveRestoreError::Held { .. })) {
            // It is complete, and not to be dropped any more.
            self.staged = None;
        }
        named?;
        Ok(CopiedPart { bytes: database_size(&self.running.sql, new).await?, failures })
    }

    pub(super) async fn copy_table(
        &mut self,
        sql: SqlSession,
        tools: &Path,
        (new, prepared): (&TableName, &PreparedTable),
        progress: &(dyn Fn(SelectiveRestoreStep) + Sync),
    ) -> Result<CopiedPart, SelectiveRestoreError> {
        let options = self.pg_restore_options(&sql).await?;
        let query = format!("SELECT pg_catalog.pg_total_relation_size({})", quote_literal(&new.to_sql()));
        let size = query_number(&sql, &query).await?;
        let database = self.wish.part.database().to_owned();
        let (from, dump) = self.dump_destination(&current_user(&sql).await?, &database)?;
        let into = self.tool_conninfo(Some(&database));
        let restore = |words: &[&str]| {
            let tool = PgTool::new(tools, "pg_restore", &into).args(words.iter().copied());
            let tool = tool.args(["--no-publications"]).args(options.iter().copied());
            tool.arg("-d").arg(connection_string_for_tool(&into)).arg(&dump)
        };
        // A table is there with all its rows or not at all.
        let whole = ["--single-transaction", "--section=pre-data", "--section=data"];
        let mut failures = Vec::new();
        self.dump_table(tools, (&from, &dump, new), (size, progress)).await?;
        let mut loaded =
            watch_progress(restore(&whole).run(), async || progress(SelectiveRestoreStep::Loading(0, size))).await;
        if let Err(SelectiveRestoreError::Tool { said, .. }) = &loaded
            && !prepared.generated.is_empty()
        {
            failures.extend(prepared.keep_generated_values(&sql, new, said).await?);
            self.dump_table(tools, (&from, &dump, new), (size, progress)).await?;
            loaded = restore(&whole).run().await;
        }
        drop(sql);
        loaded?;
        self.loaded = Some(new.clone());
        let building = restore(&["--section=post-data"]).run_through();
        let failed = watch_progress(building, async || progress(SelectiveRestoreStep::Loading(size, size))).await?;
        failures.extend(failed.into_iter().map(|entry| entry.into_failure(None)));
        self.running.reopen(&self.wish).await?;
        for later in &prepared.later {
            failures.extend(later.run(&self.running.sql).await);
        }
        self.loaded = None;
        Ok(CopiedPart { bytes: query_number(&self.running.sql, &query).await?, failures })
    }

    async fn dump_table(
        &self,
        tools: &Path,
        (from, dump, table): (&Conninfo, &Path, &TableName),
        (size, progress): (u64, &(dyn Fn(SelectiveRestoreStep) + Sync)),
    ) -> Result<(), SelectiveRestoreError> {
        let tool = PgTool::new(tools, "pg_dump", from).args(["-Fc", "-Z1", "--no-publications", "-t"]);
        let tool = tool.arg(table.to_sql()).arg("-f").arg(dump);
        let written = || std::fs::metadata(dump).map_or(0, |metadata| metadata.len());
        watch_progress(tool.run(), async || progress(SelectiveRestoreStep::Dumping(written(), size))).await
    }

    /// Copies once more, each for itself, the tables whose rows could not be loaded.
    async fn copy_failed_tables(
        &self,
        tools: &Path,
        staged: &str,
        rows: Vec<FailedEntry>,
        failed: &mut Vec<FailedEntry>,
    ) -> Result<Vec<RestoreFailure>, SelectiveRestoreError> {
        let (tables, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|entry| entry.refused_table().is_some());
        failed.extend(others);
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let scratch = self.connect(staged, &self.candidates).await?;
        let into = Conninfo { dbname: Some(staged.to_owned()), ..self.wish.into.clone() };
        let target = self.running.sql.connect_beside(&into).await?;
        let (from, dump) = self.dump_destination(&current_user(&scratch).await?, staged)?;
        let dump = dump.with_extension("table");
        let into = self.tool_conninfo(Some(staged));
        let mut failures = Vec::new();
        let names = tables.iter().filter_map(FailedEntry::refused_table);
        let found = FailedTable::find_all(&scratch, &target, names).await?;
        let unknown = |entry: &&FailedEntry| !found.iter().any(|table| entry.refused_table() == Some(&table.name));
        failed.extend(tables.iter().filter(unknown).cloned());
        for table in found {
            let reason = tables.iter().find(|entry| entry.refused_table() == Some(table.name.as_str()));
            let Some(entry) = reason else { continue };
            let reason = entry.reason.clone();
            let removed = table.remove_hindrances(&scratch, &target).await?;
            let copy = async {
                let tool = PgTool::new(tools, "pg_dump", &from).args(["-Fc", "-Z1", "--data-only", "-t"]);
                tool.arg(&table.pattern).arg("-f").arg(&dump).run().await?;
                let tool = PgTool::new(tools, "pg_restore", &into).args(["--data-only", "--single-transaction", "-d"]);
                tool.arg(connection_string_for_tool(&into)).arg(&dump).run().await
            };
            match copy.await {
                Ok(()) => {}
                Err(SelectiveRestoreError::Tool { .. }) => failed.push(entry.clone()),
                Err(error) => return Err(error),
            }
            failures.extend(removed.put_back(&target, &reason).await);
        }
        Ok(failures)
    }

    /// How a tool reaches the running server: with options that leave what is set for its databases and roles without
    /// effect.
    fn tool_conninfo(&self, database: Option<&str>) -> Conninfo {
        let into = &self.wish.into;
        let rights = SessionRights { major: self.running.major, superuser: self.running.superuser };
        Conninfo {
            options: Some(session_settings::options_for(into.options.as_deref(), rights)),
            dbname: database.map(str::to_owned).or_else(|| into.dbname.clone()),
            ..into.clone()
        }
    }

    fn dump_destination(&self, role: &str, database: &str) -> Result<(Conninfo, PathBuf), SelectiveRestoreError> {
        let Some(scratch) = &self.scratch else { return Err(super::super::RestoreError::WorkerLost.into()) };
        Ok((scratch.conninfo(role, database)?, scratch.path().join("dump")))
    }
}

/// Waits for `work`, and looks at it now and then.
async fn watch_progress<T>(work: impl Future<Output = T>, look: impl AsyncFn()) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        let pause = std::pin::pin!(real_sleep(POLL_INTERVAL));
        match futures_util::future::select(&mut work, pause).await {
            futures_util::future::Either::Left((done, _)) => return done,
            futures_util::future::Either::Right(_) => look().await,
        }
    }
}

/// The database of a connection string as `-d` takes it, whatever is in its name.
fn connection_string_for_tool(info: &Conninfo) -> String {
    let name = info.dbname.clone().or_else(|| info.user.clone()).unwrap_or_else(|| "postgres".to_owned());
    format!("dbname='{}'", name.replace('\\', "\\\\").replace('\'', "\\'"))
}

async fn current_user(sql: &SqlSession) -> Result<String, SelectiveRestoreError> {
    Ok(sql.query("the superuser", "SELECT current_user").await?.into_iter().flatten().next().unwrap_or_default())
}

async fn database_size(sql: &SqlSession, name: &str) -> Result<u64, SelectiveRestoreError> {
    let query = format!(
        "SELECT pg_catalog.pg_database_size(oid) FROM pg_catalog.pg_database WHERE datname = {}",
        quote_literal(name)
    );
    query_number(sql, &query).await
}

async fn query_number(sql: &SqlSession, query: &str) -> Result<u64, SelectiveRestoreError> {
    let rows = sql.query("a size", query).await?;
    Ok(rows.into_iter().flatten().next().and_then(|size| size.parse().ok()).unwrap_or(0))
}

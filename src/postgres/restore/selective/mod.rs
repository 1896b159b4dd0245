//! One database or one table, brought back into a running server under another name.
//!
//! The running server is looked at first, and a name that is in use is refused before anything else. Then the log is
//! read ([`wal_survey`]) and a scratch server is restored to the target with no more files than that needs
//! ([`scratch_server`]); the part is copied out of it with PostgreSQL's own tools ([`pg_tools`]). A database arrives
//! under a name that nobody else would choose and gets its own as the last step; a table arrives in one transaction.
//! Either is there whole or not at all.
//!
//! Why other databases' files may be left out: replay needs a page only where a record changes it. Every first change
//! of a page after the backup's redo point brings the whole page along, so pages of files that have nothing but their
//! length come to life as the log goes over them; and where a record expects a page that is not there,
//! `ignore_invalid_pages` has it say so and go on. What it says is read: one word of it about a database that is
//! wanted, and everything is restored instead.

mod wal_survey;
mod transfer;
mod error;
mod restore_failure;
mod part_copy;
mod staged_database;
mod table_rows;
mod scratch_server;
mod catalog_files;
mod table_rename;
mod pg_tools;
mod nearest_name;
mod request;
mod scratch_directory;
mod table_name;
mod under_way;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::base::clock::real_sleep;
use crate::postgres::archive::Archive;
use crate::postgres::archive::manifest::Manifest;
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::sql::{SqlError, SqlSession, quote_identifier, quote_literal};

use super::plan::ProvedRestore;
use super::server_start::{ReachedTarget, ServerStart};
use super::target::RecoveryTargetAction;

use scratch_server::{ScratchContents, ScratchServer, bytes_of, database_of_path};
use transfer::{
    BackupCatalogs, ScratchAttempt, WantedDatabases, absent_database_error, may_create_databases, quiet_event_triggers,
    require_no_database, require_no_relation, roll_back_prepared, wake_event_triggers,
};
use wal_survey::{SurveyRange, WalSurvey};

use under_way::{POLL_INTERVAL, RunningServer, STAGED_DATABASE_PREFIX};

pub use error::SelectiveRestoreError;
pub use request::{
    RestoreLeftovers, SelectedObject, SelectiveRestoreOptions, SelectiveRestoreReport, SelectiveRestoreStep,
};
pub use restore_failure::RestoreFailure;
pub use scratch_directory::LeftoverScratch;
pub use table_name::TableName;
pub use under_way::SelectiveRestore;

/// Where a part comes from.
struct SelectiveRestoreSource<'s> {
    archive: &'s Arc<Archive>,
    spool: Option<&'s Spool>,
    proved: &'s ProvedRestore,
    manifest: &'s Manifest,
    progress: &'s (dyn Fn(SelectiveRestoreStep) + Sync),
}

/// Our own session in the running server: for a table in its database, after one in the connection's own.
async fn connect_to_running(wish: &SelectiveRestoreOptions) -> Result<SqlSession, SqlError> {
    let info = wish.session_conninfo();
    if info.dbname == wish.into.dbname {
        return SqlSession::connect(&info).await;
    }
    match SqlSession::connect(&wish.into).await {
        Ok(first) => first.connect_beside(&info).await,
        // A role may be let into the table's database alone.
        Err(_) => SqlSession::connect(&info).await,
    }
}

impl SelectiveRestore {
    /// Looks at the running server, and refuses what cannot be. Nothing is changed, there or here.
    ///
    /// # Errors
    /// [`SelectiveRestoreError`].
    pub async fn begin(
        mut wish: SelectiveRestoreOptions,
    ) -> Result<(SelectiveRestore, RestoreLeftovers), SelectiveRestoreError> {
        let server = wish.into.to_string();
        let unfit = |why: &str| SelectiveRestoreError::UnusableServer { server: server.clone(), why: why.to_owned() };
        let sql = match connect_to_running(&wish).await {
            Err(error) if error.sqlstate() == Some("3D000") && matches!(wish.part, SelectedObject::Table { .. }) => {
                let (name, advice) =
                    (wish.part.database().to_owned(), "bring back the whole database with --database, or name another");
                return Err(SelectiveRestoreError::MissingInServer { server, what: "database", name, advice });
            }
            connected => connected?,
        };
        if sql.in_recovery().await? {
            return Err(unfit("is a standby, which takes no writes; name its primary with --into"));
        }
        if let SelectedObject::Table { name, new, .. } = &mut wish.part
            && wish.own_name_if_free
            && !table_rename::taken_names(&sql, &name.schema).await?.contains(&name.name)
        {
            *new = name.clone();
        }
        match &wish.part {
            SelectedObject::Database { new, .. } => require_no_database(&sql, new, &server).await?,
            SelectedObject::Table { new, .. } => require_no_relation(&sql, new, &server).await?,
        }
        let running = RunningServer::inspect(sql).await?;
        if matches!(wish.part, SelectedObject::Database { .. })
            && !running.superuser
            && !may_create_databases(&running.sql).await?
        {
            return Err(unfit(&format!(
                "does not let {} create a database; ALTER ROLE {} CREATEDB",
                running.role,
                quote_identifier(&running.role)
            )));
        }
        let staged = format!(
            "SELECT datname FROM pg_catalog.pg_database WHERE datname LIKE {}",
            quote_literal(&format!("{}%", STAGED_DATABASE_PREFIX.replace('_', "\\_")))
        );
        let databases = running.sql.query("the databases", &staged).await?.into_iter().flatten().collect();
        let scratch = ScratchServer::find_leftovers(&wish.scratch);
        Ok((
            SelectiveRestore { wish, running, scratch: None, staged: None, loaded: None, candidates: Vec::new() },
            RestoreLeftovers { scratch, databases },
        ))
    }

    /// What is brought back, and what it will be called.
    #[must_use]
    pub fn part(&self) -> &SelectedObject {
        &self.wish.part
    }

    /// Does it. Dropped before its end, it leaves the rest to [`SelectiveRestore::clean_up`].
    ///
    /// # Errors
    /// [`SelectiveRestoreError`].
    pub async fn run(
        &mut self,
        archive: &Arc<Archive>,
        spool: Option<&Spool>,
        proved: &ProvedRestore,
        progress: &(dyn Fn(SelectiveRestoreStep) + Sync),
    ) -> Result<SelectiveRestoreReport, SelectiveRestoreError> {
        let manifest = super::backup_reading::read_manifest(archive, &proved.backup).await?;
        let catalogs = BackupCatalogs::read(archive, &manifest).await?;
        self.candidates = self.superuser_candidates(&catalogs);
        let major = manifest.summary.major_version;
        let scratch = self.scratch.insert(ScratchServer::new(&self.wish.scratch, major)?);
        let (named, search) = (self.wish.bindir.as_deref(), &self.wish.search);
        scratch.set_program_dir(super::server_start::find_programs(major, named, search)?);
        let newer = major.max(self.running.major);
        let tools = pg_tools::find_tools(newer, named, search);
        let tools = tools.ok_or(SelectiveRestoreError::NoTools { major: newer })?;
        let source = SelectiveRestoreSource { archive, spool, proved, manifest: &manifest, progress };
        let survey = self.survey_wal(&source, &catalogs).await?;
        let mut notes = Vec::new();
        let mut wanted = self.wanted_databases(&catalogs, &survey, &mut notes)?;
        let reached = loop {
            match self.restore_scratch(&source, &wanted, survey.needs_libraries()).await? {
                ScratchAttempt::Good(reached) => break reached,
                ScratchAttempt::Again(more, why) => {
                    notes.push(why.clone());
                    progress(SelectiveRestoreStep::Note(why));
                    wanted = more;
                }
            }
        };
        let fetched = bytes_of(manifest.entries.iter().filter(|entry| wanted.includes(database_of_path(&entry.path))));
        let sql = self.connect_as_superuser(self.wish.part.database()).await?;
        let triggers = quiet_event_triggers(&sql).await?;
        notes.extend(roll_back_prepared(&sql).await?);
        notes.extend(self.missing_roles(&sql).await?);
        let copied = match self.wish.part.clone() {
            SelectedObject::Database { name, new } => {
                notes.extend(self.drop_role_settings(&sql).await?);
                wake_event_triggers(&sql, &triggers).await?;
                self.copy_database(sql, &tools, (&name, &new), progress).await?
            }
            SelectedObject::Table { database, name, new } => {
                let source = table_rename::ScratchTable {
                    sql: &sql,
                    from: &name,
                    to: &new,
                    original: name.clone(),
                    taken: table_rename::taken_names(&self.running.sql, &new.schema).await?,
                };
                let prepared = source.rename_in_scratch(&database).await?;
                notes.extend(prepared.notes.iter().cloned());
                self.copy_table(sql, &tools, (&new, &prepared), progress).await?
            }
        };
        let (database, table) = match &self.wish.part {
            SelectedObject::Database { new, .. } => (new.clone(), None),
            SelectedObject::Table { database, new, .. } => (database.clone(), Some(new.to_string())),
        };
        Ok(SelectiveRestoreReport {
            database,
            table,
            bytes: copied.bytes,
            fetched_bytes: fetched,
            backup_bytes: manifest.summary.logical_bytes,
            reached,
            notes,
            failures: copied.failures,
        })
    }

    /// Ends the scratch server, removes its directory, and drops the database that is half filled, if there is one.
    pub async fn clean_up(mut self) {
        if let Err(error) = self.running.reopen(&self.wish).await {
            tracing::warn!(%error, "cannot connect to the running server again");
        }
        if let Some(table) = self.loaded.take() {
            let statement = format!("DROP TABLE IF EXISTS {}", table.to_sql());
            if let Err(error) = self.running.sql.execute("dropping the unfinished copy", &statement).await {
                tracing::warn!(table = %table, %error, "cannot drop the unfinished copy");
            }
        }
        if let Some(name) = self.staged.take() {
            let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote_identifier(&name));
            // A session goes on with `CREATE DATABASE` though the tool that asked for it was killed; until it is done
            // there is nothing to drop.
            let makers = format!(
                "SELECT pg_catalog.pg_terminate_backend(pid)::text FROM pg_catalog.pg_stat_activity \
                 WHERE pid <> pg_catalog.pg_backend_pid() AND usename = current_user AND state = 'active' \
                 AND pg_catalog.strpos(query, {}) > 0",
                quote_literal(&name)
            );
            // Its template's mark, if any, and sessions of tools that were killed just now are in the way for a moment.
            for _ in 0..40 {
                let dropped = async {
                    if !self.running.sql.query("who still makes the unfinished copy", &makers).await?.is_empty() {
                        return Ok(false);
                    }
                    self.running.sql.execute("dropping the unfinished copy", &statement).await.map(|()| true)
                };
                match dropped.await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => tracing::warn!(database = name, %error, "cannot drop the unfinished copy yet"),
                }
                real_sleep(POLL_INTERVAL).await;
            }
        }
        let scratch = self.scratch.take();
        if tokio::task::spawn_blocking(move || drop(scratch)).await.is_err() {
            tracing::warn!("removing the scratch directory was interrupted");
        }
    }

    /// Reads the log, and keeps it where there is room.
    async fn survey_wal(
        &self,
        source: &SelectiveRestoreSource<'_>,
        catalogs: &BackupCatalogs,
    ) -> Result<WalSurvey, SelectiveRestoreError> {
        let SelectiveRestoreSource { archive, spool, proved, manifest, progress } = *source;
        let Some(scratch) = &self.scratch else { return Ok(WalSurvey::default()) };
        if let Some(made) = proved.tablespaces_made.first() {
            let (path, at) = (made.location.clone(), made.lsn);
            return Err(SelectiveRestoreError::Tablespace { path, at, backup: manifest.summary.label.clone() });
        }
        let history = if proved.timeline == TimelineId::FIRST {
            Some(TimelineHistory::first())
        } else {
            archive.history(proved.timeline).await?
        };
        let history = history.ok_or(super::error::RestoreError::UnknownTimeline { timeline: proved.timeline })?;
        let (files, free) = (
            bytes_of(manifest.entries.iter().filter(|entry| self.may_be_needed(catalogs, &entry.path))),
            scratch.free_bytes()?,
        );
        let needed = files.saturating_mul(2);
        if free < needed {
            return Err(SelectiveRestoreError::NoSpace { dir: self.wish.scratch.clone(), free, needed, files });
        }
        let (size, wal) =
            (manifest.summary.segment_size, proved.wal_segments.saturating_mul(manifest.summary.segment_size.get()));
        let stretch = SurveyRange {
            path: &history.path(),
            from: manifest.summary.start_lsn,
            to: manifest.summary.start_lsn.saturating_add(proved.work.wal_bytes),
            size,
            databases: catalogs.databases_file,
            keep: (free.saturating_sub(needed) > wal.saturating_add(wal / 4)).then(|| scratch.wal_dir()),
        };
        stretch.survey(archive, spool, &|done, total| progress(SelectiveRestoreStep::Reading(done, total))).await
    }

    /// Before the log is read, as far as is known.
    fn may_be_needed(&self, catalogs: &BackupCatalogs, path: &Path) -> bool {
        database_of_path(path).is_none_or(|oid| {
            oid < catalog_files::FIRST_NORMAL_OID || catalogs.database_oids(self.wish.part.database()).contains(&oid)
        })
    }

    /// Which databases' files are needed.
    fn wanted_databases(
        &self,
        catalogs: &BackupCatalogs,
        survey: &WalSurvey,
        notes: &mut Vec<String>,
    ) -> Result<WantedDatabases, SelectiveRestoreError> {
        let name = self.wish.part.database();
        let numbers = catalogs.database_oids(name);
        if numbers.is_empty() && !survey.databases_changed && survey.unseen == 0 && !catalogs.databases.is_empty() {
            return Err(absent_database_error(name, catalogs.databases.iter().map(|(_, name)| name.clone())));
        }
        if let Some(at) = survey.no_full_pages {
            notes.push(format!(
                "full_page_writes was off at {at}, so no database's files can be left out: everything is restored"
            ));
            return Ok(WantedDatabases::All);
        }
        Ok(WantedDatabases::Some(numbers.into_iter().chain(survey.copied.iter().copied()).collect()))
    }

    /// One scratch restore up to the target.
    async fn restore_scratch(
        &mut self,
        source: &SelectiveRestoreSource<'_>,
        wanted: &WantedDatabases,
        preload_libraries: bool,
    ) -> Result<ScratchAttempt, SelectiveRestoreError> {
        let SelectiveRestoreSource { archive, proved, manifest, progress, .. } = *source;
        let Some(scratch) = self.scratch.as_mut() else { return Err(super::error::RestoreError::WorkerLost.into()) };
        scratch.clear()?;
        let restore_command = &self.wish.restore_command;
        let load = ScratchContents { archive, proved, manifest, restore_command, preload_libraries, progress };
        load.place_files(scratch, |oid| wanted.includes(Some(oid))).await?;
        let start = ServerStart {
            bindir: self.wish.bindir.clone(),
            search: self.wish.search.clone(),
            ..ServerStart::new(scratch.data_dir())
        };
        let total = proved.wal_segments.max(1);
        let (mut at, mut asked) = (0, 0_u64);
        let told = std::sync::Mutex::new(());
        let mut running = std::pin::pin!(start.run(proved, RecoveryTargetAction::Promote, archive.vault().clock()));
        let reached = loop {
            let pause = archive.vault().clock().sleep(POLL_INTERVAL);
            match futures_util::future::select(&mut running, pause).await {
                futures_util::future::Either::Left((reached, _)) => {
                    break reached.map_err(|error| scratch.keep_log(error))?;
                }
                futures_util::future::Either::Right(_) => {
                    let _one_at_a_time = told.lock();
                    let lines = scratch_server::read_appended(&scratch.request_log(), &mut at);
                    asked = asked.saturating_add(lines.lines().filter(|line| line.len() == 24).count() as u64);
                    let size = manifest.summary.segment_size.get();
                    progress(SelectiveRestoreStep::Replaying(
                        asked.min(total).saturating_mul(size),
                        total.saturating_mul(size),
                    ));
                }
            }
        };
        self.check_restored(wanted, manifest, reached).await
    }

    /// Whether what was restored has all that is needed.
    async fn check_restored(
        &self,
        wanted: &WantedDatabases,
        manifest: &Manifest,
        reached: ReachedTarget,
    ) -> Result<ScratchAttempt, SelectiveRestoreError> {
        let Some(scratch) = &self.scratch else { return Err(super::error::RestoreError::WorkerLost.into()) };
        let log = scratch_server::read_log(scratch);
        if let Some(complaint) = scratch_server::page_error_in_log(&log, |oid| wanted.includes(Some(oid))) {
            return match wanted {
                WantedDatabases::All => Err(SelectiveRestoreError::Pages(complaint)),
                WantedDatabases::Some(_) => {
                    let why = format!(
                        "leaving out the other databases does not work here ({complaint}): everything is restored"
                    );
                    Ok(ScratchAttempt::Again(WantedDatabases::All, why))
                }
            };
        }
        let name = self.wish.part.database();
        let sql = self.connect("template1", &self.candidates).await?;
        let rows =
            sql.query("the databases", "SELECT oid, datname FROM pg_catalog.pg_database ORDER BY datname").await?;
        let pairs: Vec<(u32, String)> = rows
            .into_iter()
            .filter_map(|row| {
                let [oid, name] = <[String; 2]>::try_from(row).ok()?;
                Some((oid.parse().ok()?, name))
            })
            .collect();
        let Some((oid, _)) = pairs.iter().find(|(_, known)| known == name) else {
            return Err(absent_database_error(name, pairs.into_iter().map(|(_, name)| name)));
        };
        // One that was made after the backup came out of the log whole.
        let in_backup = manifest.entries.iter().any(|entry| database_of_path(&entry.path) == Some(*oid));
        match wanted {
            WantedDatabases::Some(numbers) if in_backup && !wanted.includes(Some(*oid)) => {
                let why = format!(
                    "database {name} had another name when backup {} was taken: its files are fetched now",
                    manifest.summary.label
                );
                Ok(ScratchAttempt::Again(WantedDatabases::Some(numbers.iter().copied().chain([*oid]).collect()), why))
            }
            _ => Ok(ScratchAttempt::Good(reached)),
        }
    }

    fn superuser_candidates(&self, catalogs: &BackupCatalogs) -> Vec<String> {
        let mut names: Vec<String> = self.running.bootstrap.iter().chain(&catalogs.superusers).cloned().collect();
        names.extend(["postgres".to_owned(), self.running.role.clone()]);
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    async fn connect(&self, database: &str, roles: &[String]) -> Result<SqlSession, SelectiveRestoreError> {
        let Some(scratch) = &self.scratch else { return Err(super::error::RestoreError::WorkerLost.into()) };
        for role in roles {
            match SqlSession::connect(&scratch.conninfo(role, database)?).await {
                // Invalid authorisation: no such role.
                Err(error) if error.sqlstate().is_some_and(|state| state.starts_with("28")) => {}
                connected => return Ok(connected?),
            }
        }
        Err(SelectiveRestoreError::NoSuperuser(roles.join(", ")))
    }

    /// A session in a database of the scratch server that may do everything.
    async fn connect_as_superuser(&self, database: &str) -> Result<SqlSession, SelectiveRestoreError> {
        let sql = self.connect("template1", &self.candidates).await?;
        let allow =
            format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true IS_TEMPLATE false", quote_identifier(database));
        sql.execute("opening the database in the scratch server", &allow).await?;
        self.connect(database, &self.candidates).await
    }
}

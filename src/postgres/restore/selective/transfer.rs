//! The ends of a restore of a part: what is asked of the backup's catalogs and of the running server, and the copy
//! between the two servers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;

use crate::base::clock::real_sleep;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{Pack, PackError, PackId, pack_binding};
use crate::postgres::archive::manifest::{EntryContent, Manifest};
use crate::postgres::sql::{SqlSession, quote_identifier, quote_literal};
use crate::postgres::wire::Conninfo;
use crate::vault::seal::SealedKind;

use super::super::placement::PlacementError;
use super::super::server_start::ReachedTarget;
use super::catalog_files;
use super::error::SelectiveRestoreError;
use super::nearest_name::nearest_name;
use super::pg_tools::PgTool;
use super::request::{SelectedObject, SelectiveRestoreStep};
use super::scratch_server::bytes_in;
use super::table_name::TableName;
use super::under_way::{POLL_INTERVAL, RunningServer, STAGED_DATABASE_PREFIX, SelectiveRestore};

/// A name is in use (`duplicate_database`), and a database has sessions (`object_in_use`).
const DUPLICATE_DATABASE_SQLSTATE: &str = "42P04";
const OBJECT_IN_USE_SQLSTATE: &str = "55006";
/// How long sessions that were just closed may linger.
const MAX_RENAME_ATTEMPTS: u32 = 50;

/// What a backup's catalogs say before they are restored: hints, not proofs.
#[derive(Debug, Default)]
pub(super) struct BackupCatalogs {
    pub(super) databases: Vec<(u32, String)>,
    /// Names that the superuser has, or had.
    pub(super) superusers: Vec<String>,
    pub(super) databases_file: Option<u32>,
}

impl BackupCatalogs {
    pub(super) async fn read(
        archive: &Arc<Archive>,
        manifest: &Manifest,
    ) -> Result<BackupCatalogs, SelectiveRestoreError> {
        let mut files = BackupFiles { archive, manifest, packs: BTreeMap::new() };
        let map = files.read_file("global/pg_filenode.map").await?;
        let page_size = usize::try_from(manifest.summary.block_size).unwrap_or(8192);
        let databases_file = catalog_files::mapped_file(&map, catalog_files::PG_DATABASE_OID);
        let mut catalogs = BackupCatalogs { databases_file, ..BackupCatalogs::default() };
        if let Some(file) = databases_file {
            catalogs.databases =
                catalog_files::read_names(&files.read_file(&format!("global/{file}")).await?, page_size);
        }
        if let Some(file) = catalog_files::mapped_file(&map, catalog_files::PG_AUTHID_OID) {
            let roles = catalog_files::read_names(&files.read_file(&format!("global/{file}")).await?, page_size);
            catalogs.superusers = roles
                .into_iter()
                .filter(|(oid, _)| *oid == catalog_files::BOOTSTRAP_SUPERUSER_OID)
                .map(|(_, name)| name)
                .collect();
        }
        Ok(catalogs)
    }

    /// The databases that had this name at some time.
    pub(super) fn database_oids(&self, name: &str) -> BTreeSet<u32> {
        self.databases.iter().filter(|(_, known)| known == name).map(|(oid, _)| *oid).collect()
    }
}

/// Single files of a backup.
struct BackupFiles<'a> {
    archive: &'a Arc<Archive>,
    manifest: &'a Manifest,
    packs: BTreeMap<PackId, Pack>,
}

impl BackupFiles<'_> {
    /// A file's bytes; none if the backup does not have it.
    async fn read_file(&mut self, path: &str) -> Result<Vec<u8>, SelectiveRestoreError> {
        let manifest = self.manifest;
        let broken = |what| PlacementError::Manifest { label: manifest.summary.label.clone(), what };
        let found = manifest.entries.iter().find(|entry| entry.path == Path::new(path));
        let Some(EntryContent::File { chunks, .. }) = found.map(|entry| &entry.content) else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        for &number in chunks {
            let chunk = manifest.chunks.get(number as usize).ok_or_else(|| broken("a chunk"))?;
            let id = *manifest.packs.get(chunk.pack as usize).ok_or_else(|| broken("a pack"))?;
            if !self.packs.contains_key(&id) {
                let (key, _) = pack_binding(self.archive.layout(), id).map_err(PackError::from)?;
                let opened = self
                    .archive
                    .vault()
                    .get_object(SealedKind::Pack, &key)
                    .await?
                    .ok_or(PlacementError::PackMissing(id))?;
                self.packs.insert(id, Pack::from_opened(id, opened)?);
            }
            let pack = self.packs.get(&id).ok_or_else(|| broken("a pack"))?;
            bytes.extend_from_slice(&pack.chunk(chunk)?);
        }
        Ok(bytes)
    }
}

/// Which databases' files are restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum WantedDatabases {
    /// All of them.
    All,
    /// These, and those that `initdb` made.
    Some(BTreeSet<u32>),
}

impl WantedDatabases {
    /// Whether the files of this database are; what is nobody's always is.
    pub(super) fn includes(&self, database: Option<u32>) -> bool {
        match (self, database) {
            (WantedDatabases::All, _) | (_, None) => true,
            (WantedDatabases::Some(numbers), Some(oid)) => {
                oid < catalog_files::FIRST_NORMAL_OID || numbers.contains(&oid)
            }
        }
    }
}

/// What became of a scratch restore.
#[derive(Debug)]
pub(super) enum ScratchAttempt {
    /// It has what is needed.
    Good(ReachedTarget),
    /// It takes more files, for this reason.
    Again(WantedDatabases, String),
}

pub(super) fn absent_database_error(name: &str, known: impl Iterator<Item = String>) -> SelectiveRestoreError {
    let known: Vec<String> = known.filter(|name| name != "template0" && name != "template1").collect();
    let hint = match nearest_name(name, known.iter().cloned()) {
        Some(near) => format!("did you mean {near}? there were {}", known.join(", ")),
        None => format!("there were {}", known.join(", ")),
    };
    SelectiveRestoreError::AbsentDatabase { name: name.to_owned(), hint }
}

impl RunningServer {
    pub(super) async fn inspect(sql: SqlSession) -> Result<RunningServer, SelectiveRestoreError> {
        let privileges = sql.privileges().await?;
        let all = async |question, query: &str| -> Result<BTreeSet<String>, SelectiveRestoreError> {
            Ok(sql.query(question, query).await?.into_iter().flatten().collect())
        };
        let roles = all("the roles", "SELECT rolname FROM pg_catalog.pg_roles").await?;
        let bootstrap = all("the superuser", "SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10").await?;
        let tablespaces = all("the tablespaces", "SELECT spcname FROM pg_catalog.pg_tablespace").await?;
        let major = sql.version_num().await? / 10_000;
        let (role, superuser) = (privileges.role, privileges.superuser);
        Ok(RunningServer { major, role, superuser, roles, bootstrap: bootstrap.into_iter().next(), tablespaces, sql })
    }
}

pub(super) async fn may_create_databases(sql: &SqlSession) -> Result<bool, SelectiveRestoreError> {
    let query = "SELECT rolcreatedb FROM pg_catalog.pg_roles WHERE rolname = current_user";
    Ok(sql.query("the role's privileges", query).await?.into_iter().flatten().next().as_deref() == Some("t"))
}

pub(super) async fn require_no_database(
    sql: &SqlSession,
    name: &str,
    server: &str,
) -> Result<(), SelectiveRestoreError> {
    let query = format!("SELECT datname FROM pg_catalog.pg_database WHERE datname = {}", quote_literal(name));
    if sql.query("the databases", &query).await?.is_empty() {
        return Ok(());
    }
    Err(SelectiveRestoreError::Exists { what: "database", name: name.to_owned(), server: server.to_owned() })
}

pub(super) async fn require_no_relation(
    sql: &SqlSession,
    name: &TableName,
    server: &str,
) -> Result<(), SelectiveRestoreError> {
    let query = format!("SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname = {}", quote_literal(&name.schema));
    if sql.query("the schemas", &query).await?.is_empty() {
        let advice = "create it, or name a table in another schema with --as";
        return Err(SelectiveRestoreError::MissingInServer {
            server: server.to_owned(),
            what: "schema",
            name: name.schema.clone(),
            advice,
        });
    }
    if super::table_rename::taken_names(sql, &name.schema).await?.contains(&name.name) {
        return Err(SelectiveRestoreError::Exists {
            what: "relation",
            name: name.to_string(),
            server: server.to_owned(),
        });
    }
    Ok(())
}

/// Prepared transactions that had not ended at the target hold their locks in the scratch server; their rows are not
/// visible anyway.
pub(super) async fn roll_back_prepared(sql: &SqlSession) -> Result<Vec<String>, SelectiveRestoreError> {
    let query = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = current_database() ORDER BY gid";
    let mut notes = Vec::new();
    for gid in sql.query("the prepared transactions", query).await?.into_iter().flatten() {
        sql.execute("rolling back in the scratch server", &format!("ROLLBACK PREPARED {}", quote_literal(&gid)))
            .await?;
        notes.push(format!(
            "transaction {gid:?} was prepared and neither committed nor rolled back at the target: its \
            changes are left out"
        ));
    }
    Ok(notes)
}

impl SelectiveRestore {
    /// Roles that own or may use something and are not in the running server: what they own goes to the superuser, and
    /// is told.
    pub(super) async fn missing_roles(&self, sql: &SqlSession) -> Result<Vec<String>, SelectiveRestoreError> {
        if self.must_skip_owners(sql).await? {
            return Ok(vec![format!(
                "everything will belong to {}, and nobody else is granted anything",
                self.running.role
            )]);
        }
        let of = match &self.wish.part {
            SelectedObject::Database { .. } => {
                "d.dbid = b.oid OR d.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND d.objid = b.oid"
                    .to_owned()
            }
            SelectedObject::Table { name, .. } => format!(
                "d.dbid = b.oid AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = \
                    pg_catalog.to_regclass({})",
                quote_literal(&name.to_sql())
            ),
        };
        let query = format!(
            "SELECT DISTINCT r.rolname FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_authid r ON r.oid = d.refobjid \
             JOIN pg_catalog.pg_database b ON b.datname = current_database() \
             WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND ({of}) ORDER BY 1"
        );
        let roles = sql.query("the roles", &query).await?.into_iter().flatten();
        let missing: Vec<String> = roles.filter(|role| !self.running.roles.contains(role)).collect();
        for role in &missing {
            let role = quote_identifier(role);
            let statement = format!("REASSIGN OWNED BY {role} TO CURRENT_USER");
            sql.execute("giving away what a missing role owns", &statement).await?;
            sql.execute("taking away what a missing role may", &format!("DROP OWNED BY {role}")).await?;
        }
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let list = missing.join(", ");
        Ok(vec![format!(
            "roles are not brought back: what {list} owned belongs to the superuser now, and what was granted to it \
                is not"
        )])
    }

    /// Whether owners and grants cannot be brought along: they take a superuser, under the name it had.
    async fn must_skip_owners(&self, sql: &SqlSession) -> Result<bool, SelectiveRestoreError> {
        let superuser = sql.query("the superuser", "SELECT current_user").await?.into_iter().flatten().next();
        Ok(!self.running.superuser || superuser.is_none_or(|name| !self.running.roles.contains(&name)))
    }

    /// Options of `pg_restore` that the two servers' differences ask for.
    async fn pg_restore_options(&self, sql: &SqlSession) -> Result<Vec<&'static str>, SelectiveRestoreError> {
        let mut options = vec!["--exit-on-error", "--no-subscriptions"];
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
        name: &str,
        new: &str,
        progress: &(dyn Fn(SelectiveRestoreStep) + Sync),
    ) -> Result<u64, SelectiveRestoreError> {
        let mut random = [0; 6];
        SysRng.try_fill_bytes(&mut random).map_err(|_none| SelectiveRestoreError::NoRandomness)?;
        let staged = random.iter().fold(STAGED_DATABASE_PREFIX.to_owned(), |name, byte| format!("{name}{byte:02x}"));
        let options = self.pg_restore_options(&sql).await?;
        drop(sql);
        let roles = self.candidates.clone();
        let scratch = self.connect("template1", &roles).await?;
        rename_database(&scratch, name, &staged).await?;
        let size = database_size(&scratch, &staged).await?;
        let role = scratch
            .query("the superuser", "SELECT current_user")
            .await?
            .into_iter()
            .flatten()
            .next()
            .unwrap_or_default();
        drop(scratch);
        let (from, dump) = self.dump_destination(&role, &staged)?;
        let jobs = self.wish.jobs.max(1).to_string();
        let tool = PgTool::new(tools, "pg_dump", &from)
            .args(["-Fd", "-Z1", "--no-subscriptions", "-j", &jobs, "-f"])
            .arg(&dump);
        watch_progress(tool.run(), async || progress(SelectiveRestoreStep::Dumping(bytes_in(&dump), size))).await?;

        self.staged = Some(staged.clone());
        let into = &self.wish.into;
        let tool = PgTool::new(tools, "pg_restore", into).args(["--create", "-j", &jobs]).args(options);
        let tool = tool.arg("-d").arg(connection_string_for_tool(into)).arg(&dump);
        let running = &self.running.sql;
        watch_progress(tool.run(), async || {
            let now = database_size(running, &staged).await.unwrap_or(0);
            progress(SelectiveRestoreStep::Loading(now.min(size), size));
        })
        .await?;
        match rename_database(running, &staged, new).await {
            Err(SelectiveRestoreError::Sql(error)) if error.sqlstate() == Some(DUPLICATE_DATABASE_SQLSTATE) => {
                let server = into.to_string();
                return Err(SelectiveRestoreError::Exists { what: "database", name: new.to_owned(), server });
            }
            renamed => renamed?,
        }
        self.staged = None;
        database_size(&self.running.sql, new).await
    }

    pub(super) async fn copy_table(
        &mut self,
        sql: SqlSession,
        tools: &Path,
        new: &TableName,
        progress: &(dyn Fn(SelectiveRestoreStep) + Sync),
    ) -> Result<u64, SelectiveRestoreError> {
        let options = self.pg_restore_options(&sql).await?;
        let query = format!("SELECT pg_catalog.pg_total_relation_size({}), current_user", quote_literal(&new.to_sql()));
        let rows = sql.query("the table's size", &query).await?;
        let (size, role) = match rows.into_iter().next().as_deref() {
            Some([size, role]) => (size.parse().unwrap_or(0), role.clone()),
            _ => (0, String::new()),
        };
        drop(sql);
        let database = self.wish.part.database().to_owned();
        let (from, dump) = self.dump_destination(&role, &database)?;
        let tool =
            PgTool::new(tools, "pg_dump", &from).args(["-Fc", "-Z1", "--no-publications", "-t"]).arg(new.to_sql());
        let tool = tool.arg("-f").arg(&dump);
        let written = || std::fs::metadata(&dump).map_or(0, |metadata| metadata.len());
        watch_progress(tool.run(), async || progress(SelectiveRestoreStep::Dumping(written(), size))).await?;

        let into = Conninfo { dbname: Some(database), ..self.wish.into.clone() };
        let tool =
            PgTool::new(tools, "pg_restore", &into).args(["--single-transaction", "--no-publications"]).args(options);
        let tool = tool.arg("-d").arg(connection_string_for_tool(&into)).arg(&dump);
        // Nothing of it can be seen before it is committed.
        watch_progress(tool.run(), async || progress(SelectiveRestoreStep::Loading(0, size))).await?;
        let query = format!("SELECT pg_catalog.pg_total_relation_size({})", quote_literal(&new.to_sql()));
        query_number(&self.running.sql, &query).await
    }

    fn dump_destination(
        &self,
        role: &str,
        database: &str,
    ) -> Result<(Conninfo, std::path::PathBuf), SelectiveRestoreError> {
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

/// Sessions that were just closed may still be there for a moment.
async fn rename_database(sql: &SqlSession, from: &str, to: &str) -> Result<(), SelectiveRestoreError> {
    let statement = format!("ALTER DATABASE {} RENAME TO {}", quote_identifier(from), quote_identifier(to));
    for _ in 0..MAX_RENAME_ATTEMPTS {
        match sql.execute("renaming the database", &statement).await {
            Err(error) if error.sqlstate() == Some(OBJECT_IN_USE_SQLSTATE) => {
                real_sleep(Duration::from_millis(100)).await
            }
            renamed => return Ok(renamed?),
        }
    }
    Ok(sql.execute("renaming the database", &statement).await?)
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

//! The ends of a restore of a part: what is asked of the backup's catalogs and of the running server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{Pack, PackError, PackId, pack_binding};
use crate::postgres::archive::manifest::{EntryContent, Manifest};
use crate::postgres::sql::{SqlSession, quote_identifier, quote_literal};
use crate::vault::seal::SealedKind;

use super::super::placement::PlacementError;
use super::super::server_start::ReachedTarget;
use super::catalog_files;
use super::error::SelectiveRestoreError;
use super::nearest_name::nearest_name;
use super::request::SelectedObject;
use super::table_name::TableName;
use super::under_way::{RunningServer, SelectiveRestore};

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
    // `CREATE TABLE` takes it, and the replay would be for nothing.
    let query =
        format!("SELECT pg_catalog.has_schema_privilege({}, 'CREATE'), current_user", quote_literal(&name.schema));
    match sql.query("the right to create", &query).await?.into_iter().next().as_deref() {
        Some([yes, role]) if yes != "t" => {
            let schema = quote_identifier(&name.schema);
            let why = format!(
                "does not let {role} create a table in schema {}; GRANT CREATE ON SCHEMA {schema} TO {}",
                name.schema,
                quote_identifier(role)
            );
            Err(SelectiveRestoreError::UnusableServer { server: server.to_owned(), why })
        }
        _ => Ok(()),
    }
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

/// Event triggers of the scratch database that fire in our own sessions although those say that they are replicas: from
/// 17 on none does. Gives those that were switched off.
pub(super) async fn quiet_event_triggers(sql: &SqlSession) -> Result<Vec<(String, String)>, SelectiveRestoreError> {
    let query = "SELECT evtname, evtenabled FROM pg_catalog.pg_event_trigger WHERE evtenabled IN ('A', 'R') ORDER BY 1";
    let mut quiet = Vec::new();
    for row in sql.query("the event triggers", query).await? {
        let Ok([name, fires]) = <[String; 2]>::try_from(row) else { continue };
        // No event trigger fires for this.
        let statement = format!("ALTER EVENT TRIGGER {} DISABLE", quote_identifier(&name));
        sql.execute("switching off an event trigger", &statement).await?;
        quiet.push((name, fires));
    }
    Ok(quiet)
}

/// Switches them on again, so that the copy has them as they were.
pub(super) async fn wake_event_triggers(
    sql: &SqlSession,
    quiet: &[(String, String)],
) -> Result<(), SelectiveRestoreError> {
    for (name, fires) in quiet {
        let how = if fires == "A" { "ALWAYS" } else { "REPLICA" };
        let statement = format!("ALTER EVENT TRIGGER {} ENABLE {how}", quote_identifier(name));
        sql.execute("switching on an event trigger", &statement).await?;
    }
    Ok(())
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
    pub(super) async fn must_skip_owners(&self, sql: &SqlSession) -> Result<bool, SelectiveRestoreError> {
        let superuser = sql.query("the superuser", "SELECT current_user").await?.into_iter().flatten().next();
        Ok(!self.running.superuser || superuser.is_none_or(|name| !self.running.roles.contains(&name)))
    }

    /// Takes away what a database sets for roles that are not in the running server.
    pub(super) async fn drop_role_settings(&self, sql: &SqlSession) -> Result<Vec<String>, SelectiveRestoreError> {
        let query = "SELECT r.rolname, b.datname, pg_catalog.array_to_string(s.setconfig, ', ') \
                     FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole \
                     JOIN pg_catalog.pg_database b ON b.oid = s.setdatabase \
                     WHERE b.datname = current_database() ORDER BY 1";
        let mut notes = Vec::new();
        for row in sql.query("settings of roles", query).await? {
            let [role, database, set] = row.as_slice() else { continue };
            if self.running.roles.contains(role) {
                continue;
            }
            let (quoted, database) = (quote_identifier(role), quote_identifier(database));
            let statement = format!("ALTER ROLE {quoted} IN DATABASE {database} RESET ALL");
            sql.execute("taking away what is set for a missing role", &statement).await?;
            notes.push(format!("role {role} is not in this server; what the database set for it is left out: {set}"));
        }
        Ok(notes)
    }
}

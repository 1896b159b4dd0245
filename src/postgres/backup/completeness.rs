//! The proof that a base backup has the file of every relation: what the catalogs name, against what the server sent.
//!
//! A file is missing if the catalogs named it before the backup began, and name it still when it has ended: then it was
//! there all the time, and the server had to send it. What was created, rewritten or dropped meanwhile is replayed from
//! WAL and proves nothing. Nothing is asked a second time if everything is there. A database that does not let walkeep
//! in is proved by its directory alone.

use std::collections::BTreeSet;

use crate::postgres::sql::{SqlError, SqlSession};
use crate::postgres::wire::conninfo::Conninfo;

/// The server's answer to a connection to a database that does not exist (`ERRCODE_UNDEFINED_DATABASE`).
const NO_DATABASE_SQLSTATE: &str = "3D000";

/// The files that a backup must have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct ExpectedFiles {
    databases: Vec<ExpectedDatabase>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct ExpectedDatabase {
    oid: u32,
    name: String,
    /// What the relations' files are called; empty if the database does not let walkeep in.
    files: BTreeSet<String>,
}

impl ExpectedFiles {
    /// What the catalogs name now; `None` if the server takes no SQL from walkeep.
    pub(super) async fn ask(server: &Conninfo) -> Option<ExpectedFiles> {
        match connect_and_list(server).await {
            Ok((first, listed)) => {
                let mut databases = Vec::with_capacity(listed.len());
                for (oid, name, open) in listed {
                    let files = if open { relation_files(&first, server, &name).await } else { Ok(BTreeSet::new()) };
                    let files = files.unwrap_or_else(|error| {
                        tracing::debug!(database = name, %error, "its files cannot be listed");
                        BTreeSet::new()
                    });
                    databases.push(ExpectedDatabase { oid, name, files });
                }
                Some(ExpectedFiles { databases })
            }
            Err(error) => {
                tracing::info!(%error, "the catalogs cannot be asked which files a backup must have; the server's own \
                    warnings are all that is known");
                None
            }
        }
    }

    /// The files that were not `sent` and that the catalogs still name; and directories of databases of which nothing
    /// was sent, in place of their files.
    pub(super) async fn missing(&self, server: &Conninfo, sent: &BTreeSet<&str>) -> Vec<String> {
        let mut missing = Vec::new();
        let mut still_there: Option<BTreeSet<u32>> = None;
        for database in &self.databases {
            let has_directory = sent.iter().any(|path| is_version_file_of(path, database.oid));
            let absent: Vec<&String> = database.files.iter().filter(|file| !sent.contains(file.as_str())).collect();
            if has_directory && absent.is_empty() {
                continue;
            }
            if !has_directory {
                if still_there.is_none() {
                    let listed = connect_and_list(server).await.map(|(_, listed)| listed).unwrap_or_default();
                    still_there = Some(listed.into_iter().map(|(oid, ..)| oid).collect());
                }
                if still_there.as_ref().is_some_and(|there| there.contains(&database.oid)) {
                    missing.push(format!("base/{}", database.oid));
                }
                continue;
            }
            let now = match SqlSession::connect(server).await {
                Ok(first) => relation_files(&first, server, &database.name).await,
                Err(error) => Err(error),
            };
            match now {
                Ok(now) => missing.extend(absent.into_iter().filter(|file| now.contains(*file)).cloned()),
                Err(error) if error.sqlstate() == Some(NO_DATABASE_SQLSTATE) => {}
                Err(error) => {
                    tracing::warn!(database = database.name, %error, "files that were not sent cannot be looked up \
                        again, and count as missing");
                    missing.extend(absent.into_iter().cloned());
                }
            }
        }
        missing
    }
}

/// Whether a path is the `PG_VERSION` of a database's directory, in whichever tablespace.
fn is_version_file_of(path: &str, database: u32) -> bool {
    let mut parts = path.rsplit('/');
    parts.next() == Some("PG_VERSION") && parts.next().and_then(|part| part.parse().ok()) == Some(database)
}

/// A session, and the databases: number, name, and whether it lets anybody in.
async fn connect_and_list(server: &Conninfo) -> Result<(SqlSession, Vec<(u32, String, bool)>), SqlError> {
    let first = SqlSession::connect(server).await?;
    let listed = first.databases().await?;
    Ok((first, listed.into_iter().map(|(listed, open)| (listed.row.oid, listed.row.name, open)).collect()))
}

async fn relation_files(first: &SqlSession, server: &Conninfo, database: &str) -> Result<BTreeSet<String>, SqlError> {
    let sql = first.connect_beside(&Conninfo { dbname: Some(database.to_owned()), ..server.clone() }).await?;
    // Without any operator, which the database's owner could have made.
    let query = "SELECT pg_catalog.pg_relation_filepath(c.oid), c.relkind, c.relpersistence FROM pg_catalog.pg_class c";
    let rows = sql.query("the files of the relations", query).await?;
    Ok(rows.iter().filter_map(|row| file_that_is_sent(row)).collect())
}

/// The file of a row, if every backup has it: tables, indexes, sequences, TOAST tables and materialised views have one.
/// Of an unlogged relation a backup has only what it is reset to, of a temporary one nothing.
fn file_that_is_sent(row: &[String]) -> Option<String> {
    let [path, kind, persistence] = row else { return None };
    let has_file = !path.is_empty() && matches!(kind.as_str(), "r" | "i" | "S" | "t" | "m");
    match persistence.as_str() {
        "p" if has_file => Some(path.clone()),
        "u" if has_file => Some(format!("{path}_init")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{file_that_is_sent, is_version_file_of};

    #[test]
    fn only_files_that_every_backup_has_are_expected() {
        let file = |path: &str, kind: &str, persistence: &str| {
            file_that_is_sent(&[path.to_owned(), kind.to_owned(), persistence.to_owned()])
        };
        assert_eq!(file("base/5/16384", "r", "p").as_deref(), Some("base/5/16384"));
        assert_eq!(file("base/5/16384", "r", "u").as_deref(), Some("base/5/16384_init"));
        assert_eq!(file("base/5/t3_16384", "r", "t"), None);
        assert_eq!(file("base/5/16384", "f", "p"), None);
        assert_eq!(file("", "r", "p"), None);
        assert!(is_version_file_of("pg_tblspc/16385/PG_15_202209061/5/PG_VERSION", 5));
        assert!(!is_version_file_of("base/15/PG_VERSION", 5) && !is_version_file_of("PG_VERSION", 5));
    }
}

//! What is asked of a restore of a part, and what it reports.

use std::path::PathBuf;

use super::restore_failure::RestoreFailure;
use super::scratch_directory::LeftoverScratch;
use super::table_name::TableName;
use crate::postgres::restore::server_start::ReachedTarget;
use crate::postgres::wire::Conninfo;

/// What is wanted back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SelectedObject {
    /// A whole database, as a new one.
    Database {
        /// What it was called at the target.
        name: String,
        /// What it is to be called.
        new: String,
    },
    /// A table, into the database of the same name.
    Table {
        /// Its database.
        database: String,
        /// What it was called at the target.
        name: TableName,
        /// What it is to be called.
        new: TableName,
    },
}

impl SelectedObject {
    pub(super) fn database(&self) -> &str {
        match self {
            SelectedObject::Database { name, .. } => name,
            SelectedObject::Table { database, .. } => database,
        }
    }
}

/// How a part is brought back.
#[derive(Clone, Debug)]
pub struct SelectiveRestoreOptions {
    /// What.
    pub part: SelectedObject,
    /// Whether a table keeps its name if the running server has no relation of that name.
    pub own_name_if_free: bool,
    /// The running server.
    pub into: Conninfo,
    /// Where the scratch directory is made.
    pub scratch: PathBuf,
    /// The directory with PostgreSQL's programs, if the user named one.
    pub bindir: Option<PathBuf>,
    /// Other directories to look for them in.
    pub search: Vec<PathBuf>,
    /// Tables that are copied at a time.
    pub jobs: usize,
    /// What the scratch server asks for segments that are not kept for it.
    pub restore_command: String,
}

impl SelectiveRestoreOptions {
    /// How our own session reaches the running server: for a table, in its database.
    pub(super) fn session_conninfo(&self) -> Conninfo {
        let mut info = self.into.clone();
        if let SelectedObject::Table { database, .. } = &self.part {
            info.dbname = Some(database.clone());
        }
        info
    }
}

/// How far it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SelectiveRestoreStep {
    /// Reading the log: bytes done and in all.
    Reading(u64, u64),
    /// Placing files: bytes done and in all.
    Placing(u64, u64),
    /// Replaying: bytes done and in all.
    Replaying(u64, u64),
    /// Copying out of the scratch server: bytes done, and those of what is copied.
    Dumping(u64, u64),
    /// Copying into the running server: bytes done, and those of what is copied.
    Loading(u64, u64),
    /// Something one should know.
    Note(String),
}

/// What came back.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct SelectiveRestoreReport {
    /// The database that is new, or has the new table.
    pub database: String,
    /// The new table, if it is one.
    pub table: Option<String>,
    /// Its bytes in the running server, indexes included.
    pub bytes: u64,
    /// Bytes of the backup's files that were fetched.
    pub fetched_bytes: u64,
    /// Bytes of the backup's files in all.
    pub backup_bytes: u64,
    /// What the scratch server came to.
    pub reached: ReachedTarget,
    /// What one should know.
    pub notes: Vec<String>,
    /// What could not be brought back with the rows.
    pub failures: Vec<RestoreFailure>,
}

/// What was found before anything was done.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RestoreLeftovers {
    /// Scratch directories of earlier runs that were killed.
    pub scratch: Vec<LeftoverScratch>,
    /// Databases of such runs, half filled.
    pub databases: Vec<String>,
}

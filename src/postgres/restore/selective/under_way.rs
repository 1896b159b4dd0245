//! A restore of a part while it is under way, and the running server it goes into.

use std::collections::BTreeSet;
use std::time::Duration;

use super::request::SelectiveRestoreOptions;
use super::scratch_server::ScratchServer;
use super::table_name::TableName;
use crate::postgres::sql::{SqlError, SqlSession};

/// What databases are called while they are being filled.
pub(super) const STAGED_DATABASE_PREFIX: &str = "walkeep_restoring_";

/// How often work that others do is looked at.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The running server, looked at.
#[derive(Debug)]
pub(super) struct RunningServer {
    pub(super) sql: SqlSession,
    pub(super) major: u32,
    pub(super) role: String,
    pub(super) superuser: bool,
    pub(super) roles: BTreeSet<String>,
    /// Who `initdb` made, often the same in the scratch server.
    pub(super) bootstrap: Option<String>,
    pub(super) tablespaces: BTreeSet<String>,
}

impl RunningServer {
    /// Connects again if the session has ended: an administrator or a firewall may have cut it during a long replay.
    pub(super) async fn reopen(&mut self, wish: &SelectiveRestoreOptions) -> Result<(), SqlError> {
        if self.sql.is_closed() {
            self.sql = self.sql.connect_beside(&wish.session_conninfo()).await?;
        }
        Ok(())
    }
}

/// A restore of a part that is under way. Whatever happens to [`SelectiveRestore::run`], [`SelectiveRestore::clean_up`]
/// must be called after it.
#[derive(Debug)]
pub struct SelectiveRestore {
    pub(super) wish: SelectiveRestoreOptions,
    pub(super) running: RunningServer,
    pub(super) scratch: Option<ScratchServer>,
    /// The database that is being filled.
    pub(super) staged: Option<String>,
    /// The table that has its rows, and not yet all that is built on them.
    pub(super) loaded: Option<TableName>,
    /// Roles that may be the scratch server's superuser, likeliest first.
    pub(super) candidates: Vec<String>,
}

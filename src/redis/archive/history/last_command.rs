//! The last command of a restore that changes anything, for people to recognise the state by.

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::redis::archive::{Archive, RestoreRoute};
use crate::redis::format::resp::{CommandKind, CommandLimits, CommandParser, RespError};
use crate::vault::VaultError;

/// The last command that changed anything.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LastCommand {
    /// Its name, in capitals.
    pub name: String,
    /// The database.
    pub database: u32,
    /// The replication offset after it.
    pub offset: u64,
}

/// Why the last command is not known.
#[derive(Debug, thiserror::Error)]
pub enum LastCommandError {
    /// No repository gave the commands.
    #[error("cannot read the commands of {instance}")]
    Read {
        /// The instance.
        instance: String,
        /// The error of the repository.
        source: VaultError,
    },
    /// The commands are damaged.
    #[error("cannot read the commands of {instance}")]
    Parse {
        /// The instance.
        instance: String,
        /// What is wrong with them.
        source: RespError,
    },
}

impl HasKind for LastCommandError {
    fn kind(&self) -> ErrorKind {
        match self {
            LastCommandError::Read { source, .. } => source.kind(),
            LastCommandError::Parse { .. } => ErrorKind::Integrity,
        }
    }
}

impl Archive {
    /// The last command of the last stretch of `route` that changes anything; `None` if the stretch has none, or if the
    /// snapshot itself is the target.
    ///
    /// # Errors
    /// [`LastCommandError`].
    pub async fn find_last_command(&self, route: &RestoreRoute) -> Result<Option<LastCommand>, LastCommandError> {
        let (Some((stretch, before)), Some(from)) = (route.stretches.split_last(), route.from) else { return Ok(None) };
        let instance = || self.name().to_string();
        let bytes = self.read_route_commands(route, before.len()).await;
        let bytes = bytes.map_err(|source| LastCommandError::Read { instance: instance(), source })?;
        let limits = CommandLimits::default();
        let mut parser = match before.last() {
            // The last stretch may begin before this one ends.
            Some(before) if before.last > stretch.first => {
                CommandParser::resume_at(before.last, before.db_after, before.in_transaction_after, limits)
            }
            _ if from.offset > stretch.first => CommandParser::new(from, limits),
            _ => CommandParser::resume_at(stretch.first, stretch.db, stretch.in_transaction, limits),
        };
        let mut last = None;
        let parsed = parser.push(&bytes, &mut |command| {
            if command.kind == CommandKind::Other {
                let name = String::from_utf8_lossy(command.name()).to_uppercase();
                last = Some(LastCommand { name, database: command.db, offset: command.end });
            }
        });
        parsed.map_err(|source| LastCommandError::Parse { instance: instance(), source })?;
        Ok(last)
    }
}

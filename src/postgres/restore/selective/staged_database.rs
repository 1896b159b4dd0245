//! A database while it is being filled, and how it gets its name at the end.

use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;

use crate::base::clock::real_sleep;
use crate::postgres::sql::{SqlSession, quote_identifier, quote_literal};

use super::error::SelectiveRestoreError;
use super::under_way::STAGED_DATABASE_PREFIX;

/// A name is in use (`duplicate_database`), and a database has sessions (`object_in_use`).
const DUPLICATE_DATABASE_SQLSTATE: &str = "42P04";
const OBJECT_IN_USE_SQLSTATE: &str = "55006";
/// How long sessions that were just closed may linger. The server itself waits up to five seconds in each attempt
/// (`CountOtherDBBackends`), so this is at most half a minute.
const MAX_RENAME_ATTEMPTS: u32 = 6;
const RENAME_PAUSE: Duration = Duration::from_millis(100);

/// A name that no other run and no user has chosen.
pub(super) fn new_staged_name() -> Result<String, SelectiveRestoreError> {
    let mut random = [0; 6];
    SysRng.try_fill_bytes(&mut random).map_err(|_none| SelectiveRestoreError::NoRandomness)?;
    Ok(random.iter().fold(STAGED_DATABASE_PREFIX.to_owned(), |name, byte| format!("{name}{byte:02x}")))
}

/// Renames a database in the scratch server. Sessions that were just closed may still be there for a moment.
pub(super) async fn rename_in_scratch(sql: &SqlSession, from: &str, to: &str) -> Result<(), SelectiveRestoreError> {
    let statement = format!("ALTER DATABASE {} RENAME TO {}", quote_identifier(from), quote_identifier(to));
    for _ in 1..MAX_RENAME_ATTEMPTS {
        match sql.execute("renaming the database", &statement).await {
            Err(error) if error.sqlstate() == Some(OBJECT_IN_USE_SQLSTATE) => real_sleep(RENAME_PAUSE).await,
            renamed => return Ok(renamed?),
        }
    }
    Ok(sql.execute("renaming the database", &statement).await?)
}

/// Gives a database that is filled its name. An exporter or a connection pool may have found it: no new session gets in
/// from here on, and those that are there are ended, as far as our role may. What stays is waited for, within a limit.
pub(super) async fn give_name(
    sql: &SqlSession,
    staged: &str,
    new: &str,
    server: &str,
) -> Result<(), SelectiveRestoreError> {
    let (from, to) = (quote_identifier(staged), quote_identifier(new));
    let allow = |name: &str, yes: bool| format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {yes}");
    sql.execute("closing the new database", &allow(&from, false)).await?;
    // One transaction: under its name it lets everybody in.
    let rename = format!("ALTER DATABASE {from} RENAME TO {to}; {}", allow(&to, true));
    for attempt in 0..MAX_RENAME_ATTEMPTS {
        end_sessions(sql, staged).await?;
        match sql.execute("renaming the database", &rename).await {
            Ok(()) => return Ok(()),
            Err(error) if error.sqlstate() == Some(DUPLICATE_DATABASE_SQLSTATE) => {
                return Err(SelectiveRestoreError::Exists {
                    what: "database",
                    name: new.to_owned(),
                    server: server.to_owned(),
                });
            }
            Err(error) if error.sqlstate() == Some(OBJECT_IN_USE_SQLSTATE) => {
                tracing::warn!(attempt, database = staged, "sessions are connected to the new database");
                real_sleep(RENAME_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let sessions = sessions_of(sql, staged).await?.into_iter().map(|(_, words)| words).collect::<Vec<_>>().join(", ");
    sql.execute("opening the new database", &allow(&from, true)).await?;
    Err(SelectiveRestoreError::Held { staged: staged.to_owned(), name: new.to_owned(), sessions })
}

/// Sessions of a database, by process and in words.
async fn sessions_of(sql: &SqlSession, database: &str) -> Result<Vec<(u32, String)>, SelectiveRestoreError> {
    let query = format!(
        "SELECT pid, usename, application_name FROM pg_catalog.pg_stat_activity WHERE datname = {} \
         AND pid <> pg_catalog.pg_backend_pid() ORDER BY pid",
        quote_literal(database)
    );
    let rows = sql.query("the sessions of the new database", &query).await?;
    let read = |row: Vec<String>| {
        let [pid, role, application] = <[String; 3]>::try_from(row).ok()?;
        let application = if application.is_empty() { String::new() } else { format!(", {application}") };
        Some((pid.parse().ok()?, format!("process {pid} of {role}{application}")))
    };
    Ok(rows.into_iter().filter_map(read).collect())
}

async fn end_sessions(sql: &SqlSession, database: &str) -> Result<(), SelectiveRestoreError> {
    for (pid, words) in sessions_of(sql, database).await? {
        let ended = sql.query("ending a session", &format!("SELECT pg_catalog.pg_terminate_backend({pid})")).await;
        if let Err(error) = ended {
            tracing::warn!(database, %error, "cannot end {words}");
        }
    }
    Ok(())
}

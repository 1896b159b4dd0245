//! Ordinary SQL: settings, slots, privileges, a WAL switch. The only user of tokio-postgres.
//!
//! It connects with the same [`Conninfo`] and the same meanings of `sslmode` as [`crate::postgres::wire`], and asks
//! small questions. What is wrong with the answers, and what to do about it, is the business of whoever asked.
//!
//! No statement runs before the session is safe ([`session_settings`]): nothing that a user may define in the database,
//! or set for it or for the role, decides what a query of this module calls or how long it may take.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::base::clock::real_timeout;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::retry::ErrorClass;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::page;
use crate::postgres::format::segment::SystemId;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::session_settings::{self, SessionRights};
use crate::postgres::wal::catalog::{CatalogRow, ListedRow, RelationRow, TupleId};
use crate::postgres::wire::conninfo::{ChannelBinding, Conninfo, ConninfoHost, TargetSessionAttrs};
use crate::postgres::wire::error::LoginAttempt;
use crate::postgres::wire::refusal::SessionKind;
use crate::postgres::wire::socket::{self, RawSocket, SocketTarget, TransportEncryption};
use crate::postgres::wire::{self, login, tls};

/// What can go wrong with an SQL session.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// No connection; the same reasons as for replication.
    #[error(transparent)]
    Connect(#[from] wire::ReplicationError),
    /// The server or the connection failed.
    #[error("{}: {}", .0, describe_error(.1))]
    Query(&'static str, #[source] tokio_postgres::Error),
    /// The answer is not of the expected form.
    #[error("the server gave an unexpected answer to {0}")]
    Unexpected(&'static str),
}

impl HasKind for SqlError {
    fn kind(&self) -> ErrorKind {
        match self {
            SqlError::Connect(error) => error.kind(),
            SqlError::Query(_, error) => match error.code().map(tokio_postgres::error::SqlState::code) {
                None => ErrorKind::Unavailable,
                Some(code) if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => ErrorKind::Unavailable,
                Some(_) => ErrorKind::Failed,
            },
            SqlError::Unexpected(_) => ErrorKind::Failed,
        }
    }
}

/// The server's own words where there are some: tokio-postgres prints only "db error".
fn describe_error(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => db.message().to_owned(),
        None => error.to_string(),
    }
}

impl SqlError {
    /// Whether trying again helps.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.kind().class()
    }

    /// The SQLSTATE, if the server said no.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            SqlError::Connect(error) => error.sqlstate(),
            SqlError::Query(_, error) => error.code().map(tokio_postgres::error::SqlState::code),
            SqlError::Unexpected(_) => None,
        }
    }
}

/// Where a server's log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerWalPosition {
    /// How far it is written; on a standby, received by streaming, if anything was.
    pub lsn: Option<Lsn>,
    /// Its timeline. A standby tells it only while it streams, and only to a role that may read all statistics.
    pub timeline: Option<TimelineId>,
    /// Whether the server is a standby, or recovering.
    pub standby: bool,
}

/// A physical replication slot, as `pg_replication_slots` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// Whether somebody streams from it.
    pub active: bool,
    /// The server keeps WAL from here on.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why the server has invalidated it (PostgreSQL 17 and later).
    pub invalidation: Option<String>,
}

/// What the role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolePrivileges {
    /// The role's name.
    pub role: String,
    /// It may do everything.
    pub superuser: bool,
    /// It may stream WAL and take base backups.
    pub replication: bool,
    /// It may call `pg_switch_wal()`.
    pub switch_wal: bool,
    /// It may call `pg_create_restore_point()`.
    pub restore_point: bool,
}

/// How the server's own archiver fares (`pg_stat_archiver`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiverState {
    /// Files archived since the statistics were reset.
    pub archived: u64,
    /// The last one.
    pub last_archived: Option<String>,
    /// Failed attempts.
    pub failed: u64,
    /// The file that failed last.
    pub last_failed: Option<String>,
}

/// An SQL session. It ends when dropped.
#[derive(Debug)]
pub struct SqlSession {
    client: Client,
    driver: JoinHandle<()>,
    rights: SessionRights,
}

impl Drop for SqlSession {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl SqlSession {
    /// Connects to the first server of `info` that answers and is of the wanted kind.
    ///
    /// # Errors
    /// [`SqlError`] of the only server, or that of each.
    pub async fn connect(info: &Conninfo) -> Result<SqlSession, SqlError> {
        let mut errors = Vec::new();
        let passes: &[TargetSessionAttrs] = match &info.target_session {
            TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
            one => std::slice::from_ref(one),
        };
        for wanted in passes {
            errors.clear();
            for host in &info.hosts {
                match socket::resolve_addresses(host).await {
                    Err(error) => errors.push(error),
                    Ok(addresses) => {
                        for address in &addresses {
                            match connect_to(info, host, address, *wanted).await {
                                Ok(sql) => return Ok(sql),
                                Err(error) => errors.push(error),
                            }
                        }
                    }
                }
            }
        }
        Err(login::combine_errors(errors).into())
    }

    /// Runs the connection in a task of its own.
    fn begin<S, T>(client: Client, connection: tokio_postgres::Connection<S, T>) -> SqlSession
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        T: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
    {
        let major = connection.parameter("server_version").map_or(0, major_version);
        let rights = SessionRights { major, superuser: false };
        SqlSession { client, driver: tokio::spawn(async move { drop(connection.await) }), rights }
    }

    /// Makes the session independent of what users have set or defined. If the settings of the startup packet do not
    /// hold, something between here and the server has dropped them, and may also drop or share those of a session.
    async fn make_safe(&mut self) -> Result<SessionSafety, tokio_postgres::Error> {
        let answers = self
            .ask(&format!(
                "{}; SHOW search_path; SHOW is_superuser; SELECT pg_catalog.current_setting('{}', true)",
                session_settings::first_statements(self.rights.major),
                session_settings::MARKER_SETTING
            ))
            .await?;
        let values: Vec<&str> = answers.iter().filter_map(|row| row.get(0)).collect();
        let ["\"\"", superuser, "on"] = values.as_slice() else { return Ok(SessionSafety::OptionsDropped) };
        self.rights.superuser = *superuser == "on";
        if self.rights.superuser {
            self.ask(&session_settings::superuser_statements(self.rights.major)).await?;
        }
        Ok(SessionSafety::Safe)
    }

    async fn ask(&self, query: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        Ok(self.client.simple_query(query).await?.into_iter().filter_map(row).collect())
    }

    /// Connects to another database of the same server, or again to this one. What only a superuser may set then holds
    /// from the start, so that no login trigger fires.
    ///
    /// # Errors
    /// [`SqlError`] as for [`SqlSession::connect`].
    pub async fn connect_beside(&self, info: &Conninfo) -> Result<SqlSession, SqlError> {
        let options = session_settings::options_for(info.options.as_deref(), self.rights);
        SqlSession::connect(&Conninfo { options: Some(options), ..info.clone() }).await
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn rows(&self, question: &'static str, query: &str) -> Result<Vec<SimpleQueryRow>, SqlError> {
        self.ask(query).await.map_err(|error| SqlError::Query(question, error))
    }

    /// The rows that a query gives, as text; NULL is empty. `question` names it in errors.
    ///
    /// # Errors
    /// [`SqlError`] if the server says no or doesn't answer.
    pub async fn query(&self, question: &'static str, query: &str) -> Result<Vec<Vec<String>>, SqlError> {
        let row = |row: &SimpleQueryRow| (0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect();
        Ok(self.rows(question, query).await?.iter().map(row).collect())
    }

    /// Runs one statement. `what` names it in errors.
    ///
    /// # Errors
    /// [`SqlError`] if the server says no or doesn't answer.
    pub async fn execute(&self, what: &'static str, statement: &str) -> Result<(), SqlError> {
        self.rows(what, statement).await.map(drop)
    }

    async fn query_value(&self, question: &'static str, query: &str) -> Result<String, SqlError> {
        let rows = self.rows(question, query).await?;
        rows.first().and_then(|row| row.get(0)).map(str::to_owned).ok_or(SqlError::Unexpected(question))
    }

    async fn query_parsed<T: FromStr>(&self, question: &'static str, query: &str) -> Result<T, SqlError> {
        self.query_value(question, query).await?.parse().map_err(|_bad| SqlError::Unexpected(question))
    }

    /// The server's version as a number, such as 150020 for 15.20.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn version_num(&self) -> Result<u32, SqlError> {
        self.query_parsed("the version", "SHOW server_version_num").await
    }

    /// The values of settings by name, in the server's base units; unknown ones are left out.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn settings(&self, names: &[&str]) -> Result<BTreeMap<String, String>, SqlError> {
        let list = names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ");
        let query = format!("SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ({list})");
        let rows = self.rows("the settings", &query).await?;
        let pair = |row: &SimpleQueryRow| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()));
        Ok(rows.iter().filter_map(pair).collect())
    }

    /// Whether the server is a standby, or recovering.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn in_recovery(&self) -> Result<bool, SqlError> {
        Ok(self.query_value("pg_is_in_recovery()", "SELECT pg_catalog.pg_is_in_recovery()").await? == "t")
    }

    /// Where a server in recovery pauses; `None` if it does not.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer, or is not in recovery.
    pub async fn paused_at(&self) -> Result<Option<Option<Lsn>>, SqlError> {
        let query = "SELECT pg_catalog.pg_is_wal_replay_paused(), pg_catalog.pg_last_wal_replay_lsn()";
        let rows = self.rows("pg_is_wal_replay_paused()", query).await?;
        let row = rows.first().ok_or(SqlError::Unexpected("pg_is_wal_replay_paused()"))?;
        Ok((row.get(0) == Some("t")).then(|| row.get(1).and_then(|lsn| lsn.parse().ok())))
    }

    /// What the server's clock shows.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn server_time(&self) -> Result<Timestamp, SqlError> {
        let question = "clock_timestamp()";
        let query = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8";
        let micros = self.query_parsed(question, query).await?;
        Timestamp::from_microsecond(micros).map_err(|_beyond| SqlError::Unexpected(question))
    }

    /// Where the server's log stands.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn wal_position(&self) -> Result<ServerWalPosition, SqlError> {
        // pg_walfile_name() is refused in recovery, and pg_control_checkpoint() tells the last checkpoint's timeline,
        // which may be an earlier one.
        let query = "SELECT pg_catalog.pg_is_in_recovery(), \
                     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() \
                     ELSE pg_catalog.pg_current_wal_lsn() END, \
                     CASE WHEN pg_catalog.pg_is_in_recovery() \
                     THEN (SELECT pg_catalog.to_hex(received_tli) FROM pg_catalog.pg_stat_wal_receiver) \
                     ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END";
        let question = "the WAL position";
        let rows = self.rows(question, query).await?;
        let row = rows.first().ok_or(SqlError::Unexpected(question))?;
        let timeline = row.get(2).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(TimelineId::new);
        let lsn = row.get(1).and_then(|lsn| lsn.parse().ok());
        let standby = row.get(0) == Some("t");
        // A primary knows both.
        let told = standby || (lsn.is_some() && timeline.is_some());
        told.then_some(ServerWalPosition { lsn, timeline, standby }).ok_or(SqlError::Unexpected(question))
    }

    /// The cluster that the server runs.
    ///
    /// # Errors
    /// [`SqlError`] if the connection fails, or the role may not ask.
    pub async fn system_id(&self) -> Result<SystemId, SqlError> {
        let query = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
        let question = "the system identifier";
        let rows = self.rows(question, query).await?;
        // The server shows it as a signed number.
        let id = rows.first().and_then(|row| row.get(0)).and_then(|id| id.parse::<i64>().ok());
        id.map(|id| SystemId::new(id.cast_unsigned())).ok_or(SqlError::Unexpected(question))
    }

    /// When a page in a file of the data directory was last changed. `None` if the file does not reach so far any more.
    ///
    /// # Errors
    /// [`SqlError`] if the role may not: it takes `pg_read_server_files` and the right to execute
    /// `pg_read_binary_file`.
    pub async fn page_lsn(&self, path: &str, offset: u64) -> Result<Option<Lsn>, SqlError> {
        let path = quote_literal(path);
        let query =
            format!("SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file({path}, {offset}, 8, true), 'hex')");
        let rows = self.rows("pg_read_binary_file()", &query).await?;
        let digits = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
        let byte = |at: usize| digits.get(at..at.saturating_add(2)).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Vec<u8> = (0..16).step_by(2).map_while(byte).collect();
        Ok(page::lsn(&bytes))
    }

    /// Ends the current segment, if there is anything in it; gives the position just before the next one, and the name
    /// of the file that holds it.
    ///
    /// # Errors
    /// [`SqlError`] if the role may not, or the server is a standby.
    pub async fn switch_wal(&self) -> Result<(Lsn, String), SqlError> {
        let query = "SELECT lsn, pg_catalog.pg_walfile_name(lsn) FROM pg_catalog.pg_switch_wal() AS lsn";
        let rows = self.rows("pg_switch_wal()", query).await?;
        rows.first()
            .and_then(|row| Some((row.get(0)?.parse().ok()?, row.get(1)?.to_owned())))
            .ok_or(SqlError::Unexpected("pg_switch_wal()"))
    }

    /// Writes a restore point into the WAL.
    ///
    /// # Errors
    /// [`SqlError`] if the role may not, or the server is a standby.
    pub async fn create_restore_point(&self, name: &str) -> Result<Lsn, SqlError> {
        let query = format!("SELECT pg_catalog.pg_create_restore_point({})", quote_literal(name));
        self.query_parsed("pg_create_restore_point()", &query).await
    }

    /// The slot called `name`, if there is one.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn slot(&self, name: &str) -> Result<Option<SlotState>, SqlError> {
        let query = format!(
            "SELECT active, restart_lsn, wal_status, \
             pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(s), 'invalidation_reason') \
             FROM pg_catalog.pg_replication_slots AS s WHERE slot_name = {}",
            quote_literal(name)
        );
        let rows = self.rows("the replication slots", &query).await?;
        Ok(rows.first().map(|row| SlotState {
            active: row.get(0) == Some("t"),
            restart: row.get(1).and_then(|lsn| lsn.parse().ok()),
            wal_status: row.get(2).map(str::to_owned),
            invalidation: row.get(3).map(str::to_owned),
        }))
    }

    /// What our role may do.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn privileges(&self) -> Result<RolePrivileges, SqlError> {
        let query = "SELECT rolname, rolsuper, rolreplication, \
                     pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'execute'), \
                     pg_catalog.has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'execute') \
                     FROM pg_catalog.pg_roles WHERE rolname = current_user";
        let rows = self.rows("the role's privileges", query).await?;
        let Some(row) = rows.first() else { return Err(SqlError::Unexpected("the role's privileges")) };
        let yes = |column: usize| row.get(column) == Some("t");
        Ok(RolePrivileges {
            role: row.get(0).unwrap_or_default().to_owned(),
            superuser: yes(1),
            replication: yes(2),
            switch_wal: yes(3),
            restore_point: yes(4),
        })
    }

    /// Every database: its row of `pg_database`, and whether it lets anybody in.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn databases(&self) -> Result<Vec<(ListedRow, bool)>, SqlError> {
        let query = "SELECT oid, datname, ctid, datallowconn FROM pg_catalog.pg_database ORDER BY oid";
        let rows = self.rows("the databases", query).await?;
        let read = |row: &SimpleQueryRow| Some((listed_row(row)?, row.get(3) == Some("t")));
        rows.iter().map(read).collect::<Option<_>>().ok_or(SqlError::Unexpected("the databases"))
    }

    /// The schemas of this database.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn schemas(&self) -> Result<Vec<ListedRow>, SqlError> {
        let rows =
            self.rows("the schemas", "SELECT oid, nspname, ctid FROM pg_catalog.pg_namespace ORDER BY oid").await?;
        rows.iter().map(listed_row).collect::<Option<_>>().ok_or(SqlError::Unexpected("the schemas"))
    }

    /// The relations of this database, but for those of the system (`FirstNormalObjectId`, 16384) and the temporary
    /// ones.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn relations(&self) -> Result<Vec<ListedRow>, SqlError> {
        let query = "SELECT oid, relname, ctid, relnamespace, relfilenode, relpersistence, relkind \
                     FROM pg_catalog.pg_class WHERE oid >= 16384 AND relpersistence <> 't' ORDER BY oid";
        let rows = self.rows("the relations", query).await?;
        let read = |row: &SimpleQueryRow| {
            let number = |column: usize| row.get(column)?.parse().ok();
            let letter = |column: usize| row.get(column)?.bytes().next();
            let relation =
                RelationRow { namespace: number(3)?, filenode: number(4)?, persistence: letter(5)?, kind: letter(6)? };
            let mut listed = listed_row(row)?;
            listed.row.relation = Some(relation);
            Some(listed)
        };
        rows.iter().map(read).collect::<Option<_>>().ok_or(SqlError::Unexpected("the relations"))
    }

    /// How the server's own archiver fares.
    ///
    /// # Errors
    /// [`SqlError`] if the server doesn't answer.
    pub async fn archiver(&self) -> Result<ArchiverState, SqlError> {
        let query =
            "SELECT archived_count, last_archived_wal, failed_count, last_failed_wal FROM pg_catalog.pg_stat_archiver";
        let rows = self.rows("pg_stat_archiver", query).await?;
        let Some(row) = rows.first() else { return Err(SqlError::Unexpected("pg_stat_archiver")) };
        let number = |column: usize| row.get(column).and_then(|text| text.parse().ok()).unwrap_or(0);
        let name = |column: usize| row.get(column).map(str::to_owned);
        Ok(ArchiverState { archived: number(0), last_archived: name(1), failed: number(2), last_failed: name(3) })
    }
}

/// OID, name and `ctid`, which is written `(page,item)`.
fn listed_row(row: &SimpleQueryRow) -> Option<ListedRow> {
    let (page, item) = row.get(2)?.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let at = TupleId { page: page.parse().ok()?, item: item.parse().ok()? };
    Some(ListedRow {
        row: CatalogRow { oid: row.get(0)?.parse().ok()?, name: row.get(1)?.to_owned(), relation: None },
        at,
    })
}

/// `name` as an SQL identifier.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('\0', "").replace('"', "\"\""))
}

/// `text` as an SQL string, whatever `standard_conforming_strings` says.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let text = text.replace('\0', "").replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}

async fn connect_to(
    info: &Conninfo,
    host: &ConninfoHost,
    address: &SocketTarget,
    wanted: TargetSessionAttrs,
) -> Result<SqlSession, wire::ReplicationError> {
    let mut errors = Vec::new();
    let mut found = None;
    for encryption in socket::encryptions(info.tls.mode, address) {
        let limit = socket::attempt_limit(info);
        match real_timeout(limit, attempt_connection(info, host, address, *encryption)).await {
            Some(Ok(sql)) => {
                found = Some(sql);
                break;
            }
            Some(Err(error)) => {
                let refused = error.sqlstate().is_some_and(|code| code != "28000");
                errors.push(error);
                if refused {
                    break;
                }
            }
            None => errors.push(wire::ReplicationError::TimedOut { host: host.to_string(), limit }),
        }
    }
    let Some(sql) = found else { return Err(login::combine_errors(errors)) };
    let (query, words) = match wanted {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => return Ok(sql),
        TargetSessionAttrs::ReadWrite => {
            ("SELECT pg_catalog.current_setting('transaction_read_only') = 'off'", "read-write")
        }
        TargetSessionAttrs::ReadOnly => {
            ("SELECT pg_catalog.current_setting('transaction_read_only') = 'on'", "read-only")
        }
        TargetSessionAttrs::Primary => ("SELECT NOT pg_catalog.pg_is_in_recovery()", "a primary"),
        TargetSessionAttrs::Standby => ("SELECT pg_catalog.pg_is_in_recovery()", "a standby"),
    };
    match sql.query_value("target_session_attrs", query).await {
        Ok(answer) if answer == "t" => Ok(sql),
        Ok(_) => Err(wire::ReplicationError::WrongSession { host: host.to_string(), wanted: words }),
        Err(_) => Err(wire::ReplicationError::ConnectionClosed(None)),
    }
}

async fn attempt_connection(
    info: &Conninfo,
    host: &ConninfoHost,
    address: &SocketTarget,
    encryption: TransportEncryption,
) -> Result<SqlSession, wire::ReplicationError> {
    let user = login::login_user(info)?;
    let dbname = info.dbname.clone().unwrap_or_else(|| user.clone());
    let (password, password_from) = login::login_password(info, host, &user, &dbname)?;
    let mut config = Config::new();
    config.user(&user).dbname(&dbname).application_name(info.application_name.as_deref().unwrap_or("walkeep"));
    if let Some(password) = &password {
        config.password(password.reveal());
    }
    config.options(session_settings::startup_options(info.options.as_deref()));
    config.channel_binding(match info.channel_binding {
        ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
        ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
        ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
    });
    let failed = |source| wire::ReplicationError::Connect { host: host.to_string(), source };
    let raw = socket::open_socket(address, info).await.map_err(failed)?;
    let attempt = LoginAttempt {
        user,
        session: SessionKind::Sql,
        database: dbname,
        from: raw.local_ip(),
        encrypted: matches!(raw, RawSocket::Tcp(_)) && encryption == TransportEncryption::Tls,
        password_from,
    };
    let explain = |error: tokio_postgres::Error| login_error(host, &attempt, error);
    let mut sql = match (raw, encryption) {
        (RawSocket::Tcp(stream), TransportEncryption::Tls) => {
            let peer = stream.peer_addr().map_err(failed)?;
            let name = login::server_name(info, host, peer)?.to_str().into_owned();
            let mut tls = MakeRustlsConnect::new(tls::client_config(info)?);
            let connect = match MakeTlsConnect::<tokio::io::DuplexStream>::make_tls_connect(&mut tls, &name) {
                Ok(connect) => connect,
                Err(never) => match never {},
            };
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
            if info.tls.direct {
                config.ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
            }
            let (client, connection) = config.connect_raw(stream, connect).await.map_err(explain)?;
            SqlSession::begin(client, connection)
        }
        (RawSocket::Tcp(stream), TransportEncryption::Plain) => {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(explain)?;
            SqlSession::begin(client, connection)
        }
        (RawSocket::Unix(stream), _) => {
            config.ssl_mode(tokio_postgres::config::SslMode::Disable);
            let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(explain)?;
            SqlSession::begin(client, connection)
        }
    };
    match sql.make_safe().await.map_err(explain)? {
        SessionSafety::Safe => Ok(sql),
        SessionSafety::OptionsDropped => {
            let problem = wire::error::POOLER_ADVICE.to_owned();
            Err(wire::ReplicationError::Login { host: host.to_string(), problem })
        }
    }
}

/// What became of the settings that a session asked for.
enum SessionSafety {
    Safe,
    /// Those of the startup packet did not hold.
    OptionsDropped,
}

/// `17.2 (Debian 17.2-1)`, `19rc1`.
fn major_version(version: &str) -> u32 {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..digits).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// tokio-postgres's refusal in the words of [`wire::ReplicationError`].
fn login_error(host: &ConninfoHost, attempt: &LoginAttempt, error: tokio_postgres::Error) -> wire::ReplicationError {
    if let Some(db) = error.as_db_error() {
        return attempt.explain(wire::message::ServerError {
            severity: db.severity().to_owned(),
            code: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().map(str::to_owned),
            routine: db.routine().unwrap_or_default().to_owned(),
        });
    }
    if error.is_closed() {
        return wire::ReplicationError::ConnectionClosed(None);
    }
    let problem = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}; the password came from {}", attempt.password_from),
        None => error.to_string(),
    };
    match error.into_source().map(|source| source.downcast::<std::io::Error>()) {
        Some(Ok(source)) if login::is_cut(&source) => wire::ReplicationError::ConnectionClosed(Some(*source)),
        _ => wire::ReplicationError::Handshake { host: host.to_string(), problem },
    }
}

#[cfg(test)]
mod tests {
    use super::quote_literal;

    #[test]
    fn no_text_can_end_its_quotes() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b\0"), " E'a\\\\''b'");
    }
}

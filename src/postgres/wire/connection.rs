//! A session in replication mode and its commands (protocol.sgml "Streaming Replication Protocol").

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::command::{self, ServerVersion, SlotName};
use super::conninfo::{Conninfo, TargetSessionAttrs};
use super::error::ReplicationError;
use super::login;
use super::message::BackendMessage;
use super::socket;
use super::transport::{ANSWER_TIMEOUT, MessageTransport};
use crate::base::units::{parse_duration, parse_size};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::postgres::format::timeline::TimelineId;

/// More rows than any command here answers with.
const MAX_RESULT_ROWS: usize = 100_000;

/// What `IDENTIFY_SYSTEM` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Which cluster.
    pub system_id: SystemId,
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// How far its WAL is flushed (on a standby: received or replayed).
    pub flushed: Lsn,
}

/// A physical slot, as `READ_REPLICATION_SLOT` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationSlot {
    /// The server keeps WAL from here on; `None` if it keeps none for this slot yet.
    pub restart: Option<Lsn>,
    /// The timeline of that position.
    pub timeline: Option<TimelineId>,
}

/// One answer of the server: rows by column name.
#[derive(Debug, Default)]
pub(super) struct ResultRows {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<Option<Bytes>>>,
}

impl ResultRows {
    /// The text in `column` of the first row.
    pub(super) fn text(&self, column: &str) -> Option<&str> {
        self.row_text(0, column)
    }

    /// The text in `column` of row `row`.
    pub(super) fn row_text(&self, row: usize, column: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(row, column)?).ok()
    }

    fn bytes(&self, row: usize, column: &str) -> Option<&Bytes> {
        let position = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(position)?.as_ref()
    }

    /// The text in `column` of the first row, read as a `T`.
    pub(super) fn parse<T: std::str::FromStr>(&self, column: &str) -> Option<T> {
        self.text(column)?.parse().ok()
    }
}

/// A connection in physical replication mode.
#[derive(Debug)]
pub struct ReplicationConnection {
    pub(super) wire: MessageTransport,
    parameters: BTreeMap<String, String>,
    version: ServerVersion,
}

impl ReplicationConnection {
    /// Connects to the first server of `info` that answers and is of the wanted kind.
    ///
    /// # Errors
    /// [`ReplicationError`] of the only server, or [`ReplicationError::NoServer`] with that of each.
    pub async fn connect(info: &Conninfo) -> Result<ReplicationConnection, ReplicationError> {
        let mut errors = Vec::new();
        let passes: &[TargetSessionAttrs] = match info.target_session {
            TargetSessionAttrs::PreferStandby => &[TargetSessionAttrs::Standby, TargetSessionAttrs::Any],
            TargetSessionAttrs::Any => &[TargetSessionAttrs::Any],
            TargetSessionAttrs::ReadWrite => &[TargetSessionAttrs::ReadWrite],
            TargetSessionAttrs::ReadOnly => &[TargetSessionAttrs::ReadOnly],
            TargetSessionAttrs::Primary => &[TargetSessionAttrs::Primary],
            TargetSessionAttrs::Standby => &[TargetSessionAttrs::Standby],
        };
        for wanted in passes {
            errors.clear();
            for host in &info.hosts {
                let addresses = match socket::resolve_addresses(host).await {
                    Ok(addresses) => addresses,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                };
                for address in &addresses {
                    match ReplicationConnection::connect_to(info, host, address, *wanted).await {
                        Ok(connection) => return Ok(connection),
                        Err(error) => errors.push(error),
                    }
                }
            }
        }
        Err(login::combine_errors(errors))
    }

    async fn connect_to(
        info: &Conninfo,
        host: &super::conninfo::ConninfoHost,
        address: &socket::SocketTarget,
        wanted: TargetSessionAttrs,
    ) -> Result<ReplicationConnection, ReplicationError> {
        let session = login::connect(info, host, address).await?;
        let version = session.parameters.get("server_version").and_then(|text| ServerVersion::parse(text));
        let Some(version) = version else { return Err(ReplicationError::UnexpectedAnswer("the startup packet")) };
        let mut connection = ReplicationConnection { wire: session.wire, parameters: session.parameters, version };
        match connection.session_mismatch(wanted).await? {
            None => Ok(connection),
            Some(wanted) => {
                let host = connection.wire.peer.clone();
                connection.close().await;
                Err(ReplicationError::WrongSession { host, wanted })
            }
        }
    }

    /// What the server should be and isn't.
    async fn session_mismatch(&mut self, wanted: TargetSessionAttrs) -> Result<Option<&'static str>, ReplicationError> {
        let (asks_recovery, expected, words) = match wanted {
            TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => return Ok(None),
            TargetSessionAttrs::ReadWrite => (false, false, "read-write"),
            TargetSessionAttrs::ReadOnly => (false, true, "read-only"),
            TargetSessionAttrs::Primary => (true, false, "a primary"),
            TargetSessionAttrs::Standby => (true, true, "a standby"),
        };
        let on = |value: Option<&String>| value.map(|value| value == "on");
        let in_recovery = on(self.parameters.get("in_hot_standby"));
        let read_only = on(self.parameters.get("default_transaction_read_only"));
        let actual = match (asks_recovery, in_recovery, read_only) {
            (true, Some(recovery), _) => recovery,
            (false, Some(recovery), Some(read_only)) => recovery || read_only,
            // PostgreSQL 13 doesn't report these; a standby's transactions are always read-only.
            _ => self.show("transaction_read_only").await? == "on",
        };
        Ok((actual != expected).then_some(words))
    }

    /// The server's major version.
    #[must_use]
    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// A setting the server reported when the session began, such as `server_version`.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Which server this is, for messages.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.wire.peer
    }

    /// One result set, up to the end of its command.
    pub(super) async fn read_rows(&mut self, question: &'static str) -> Result<ResultRows, ReplicationError> {
        self.read_rows_within(question, ANSWER_TIMEOUT).await
    }

    /// The same, with so much time for each message.
    pub(super) async fn read_rows_within(
        &mut self,
        question: &'static str,
        limit: Duration,
    ) -> Result<ResultRows, ReplicationError> {
        let mut rows = ResultRows::default();
        loop {
            match self.wire.read_message_within(limit).await? {
                BackendMessage::RowDescription(columns) => rows.columns = columns,
                BackendMessage::DataRow(row) if rows.rows.len() < MAX_RESULT_ROWS => rows.rows.push(row),
                BackendMessage::CommandComplete(_) => return Ok(rows),
                BackendMessage::Error(error) => {
                    self.wire.drain_until_ready().await?;
                    return Err(ReplicationError::from_server(*error));
                }
                _ => return Err(ReplicationError::UnexpectedAnswer(question)),
            }
        }
    }

    async fn query_rows(&mut self, command: &str, question: &'static str) -> Result<ResultRows, ReplicationError> {
        self.wire.send_command(command).await?;
        let rows = self.read_rows(question).await?;
        self.wire.drain_until_ready().await?;
        Ok(rows)
    }

    /// Which cluster this is, on which timeline, how far.
    ///
    /// # Errors
    /// [`ReplicationError`] if the connection fails or the answer makes no sense.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let rows = self.query_rows("IDENTIFY_SYSTEM", "IDENTIFY_SYSTEM").await?;
        let identity = || {
            Some(SystemIdentity {
                system_id: SystemId::new(rows.parse("systemid")?),
                timeline: rows.parse("timeline")?,
                flushed: rows.parse("xlogpos")?,
            })
        };
        identity().ok_or(ReplicationError::UnexpectedAnswer("IDENTIFY_SYSTEM"))
    }

    /// The value of a setting.
    ///
    /// # Errors
    /// [`ReplicationError`] if the server does not know it.
    pub async fn show(&mut self, name: &'static str) -> Result<String, ReplicationError> {
        let command = command::show(name).ok_or(ReplicationError::UnexpectedAnswer("SHOW"))?;
        let rows = self.query_rows(&command, "SHOW").await?;
        rows.text(name).map(str::to_owned).ok_or(ReplicationError::UnexpectedAnswer("SHOW"))
    }

    /// Whether the server is in recovery: a standby. Asked anew each time, as it may have been promoted. PostgreSQL 13
    /// only says that transactions are read-only, which they always are on a standby, and on a primary only if its
    /// settings say so.
    ///
    /// # Errors
    /// [`ReplicationError`] if the connection fails or the answer makes no sense.
    pub async fn is_in_recovery(&mut self) -> Result<bool, ReplicationError> {
        let setting = if self.version.shows_recovery() { "in_hot_standby" } else { "transaction_read_only" };
        Ok(self.show(setting).await? == "on")
    }

    /// The size of the cluster's WAL segments. The server shows it with a unit: `16MB`, `1GB`.
    ///
    /// # Errors
    /// [`ReplicationError`] if the connection fails or the answer makes no sense.
    pub async fn segment_size(&mut self) -> Result<SegmentSize, ReplicationError> {
        let text = self.show("wal_segment_size").await?;
        parse_size(&text)
            .and_then(|bytes| SegmentSize::new(bytes).ok())
            .ok_or(ReplicationError::UnexpectedAnswer("SHOW wal_segment_size"))
    }

    /// The value of a setting that is a time.
    ///
    /// # Errors
    /// [`ReplicationError`] if the connection fails or the answer makes no sense.
    pub async fn show_duration(&mut self, name: &'static str) -> Result<Duration, ReplicationError> {
        parse_duration(&self.show(name).await?).ok_or(ReplicationError::UnexpectedAnswer("SHOW"))
    }

    /// The history file of `timeline`: its name and its content, byte for byte.
    ///
    /// # Errors
    /// [`ReplicationError`] if the server has no such timeline.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<(String, Bytes), ReplicationError> {
        let rows = self.query_rows(&command::timeline_history(timeline), "TIMELINE_HISTORY").await?;
        match (rows.text("filename"), rows.bytes(0, "content")) {
            (Some(name), Some(content)) => Ok((name.to_owned(), content.clone())),
            _ => Err(ReplicationError::UnexpectedAnswer("TIMELINE_HISTORY")),
        }
    }

    /// What the server keeps for `slot`; `None` if there is no such slot. Needs [`ServerVersion::can_read_slots`].
    ///
    /// # Errors
    /// [`ReplicationError`] if the connection fails or the slot is a logical one.
    pub async fn read_replication_slot(
        &mut self,
        slot: &SlotName,
    ) -> Result<Option<ReplicationSlot>, ReplicationError> {
        let rows = self.query_rows(&command::read_slot(slot), "READ_REPLICATION_SLOT").await?;
        Ok(rows
            .text("slot_type")
            .map(|_| ReplicationSlot { restart: rows.parse("restart_lsn"), timeline: rows.parse("restart_tli") }))
    }

    /// Makes a physical slot. With `reserve` the server keeps WAL from this moment on.
    ///
    /// # Errors
    /// [`ReplicationError::is_duplicate`] if it exists already.
    pub async fn create_physical_slot(&mut self, slot: &SlotName, reserve: bool) -> Result<(), ReplicationError> {
        self.query_rows(&command::create_physical_slot(slot, reserve, self.version), "CREATE_REPLICATION_SLOT")
            .await
            .map(drop)
    }

    /// Makes a slot that holds the server's WAL, from its last checkpoint on, for as long as this connection lasts.
    /// Nothing of it outlives a crash.
    ///
    /// # Errors
    /// [`ReplicationError`], also if the server has no slot to spare (`max_replication_slots`).
    pub async fn create_temporary_slot(&mut self, slot: &SlotName) -> Result<(), ReplicationError> {
        self.query_rows(&command::create_temporary_slot(slot, self.version), "CREATE_REPLICATION_SLOT").await.map(drop)
    }

    /// Drops a slot.
    ///
    /// # Errors
    /// [`ReplicationError::is_no_slot`] if there is none.
    pub async fn drop_slot(&mut self, slot: &SlotName) -> Result<(), ReplicationError> {
        self.query_rows(&command::drop_slot(slot), "DROP_REPLICATION_SLOT").await.map(drop)
    }

    /// Takes leave of the server.
    pub async fn close(self) {
        self.wire.terminate().await;
    }
}

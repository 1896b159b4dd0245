//! WAL as it flows: `START_REPLICATION … PHYSICAL` until the timeline ends or we have had enough.

use bytes::Bytes;
use postgres_protocol::message::frontend;

use super::command::{self, SlotName, StandbyStatus, standby_status};
use super::connection::ReplicationConnection;
use super::error::ReplicationError;
use super::message::{BackendMessage, KeepaliveMessage, MessageFrame, ReplicationMessage, XLogData};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;

/// Where the WAL goes on after the end of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextTimeline {
    /// The timeline that follows in this server's history; not always the number after this one.
    pub timeline: TimelineId,
    /// The position where it forked off.
    pub start: Lsn,
}

/// What `START_REPLICATION` leads to.
#[derive(Debug)]
pub enum StartedReplication {
    /// WAL will flow.
    Streaming(PhysicalStream),
    /// The timeline ends just where we asked to begin.
    TimelineEnded(ReplicationConnection, NextTimeline),
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalStreamEvent {
    /// A piece of WAL.
    Wal(XLogData),
    /// A sign of life; answer it if it asks for that.
    Keepalive(KeepaliveMessage),
    /// The timeline ends here. Report what is safe, then [`PhysicalStream::finish`].
    EndOfTimeline,
}

/// A stream of WAL, and the way back for reports.
#[derive(Debug)]
pub struct PhysicalStream {
    connection: ReplicationConnection,
    ended: bool,
}

impl ReplicationConnection {
    /// Starts to stream WAL of `timeline` from `start` on.
    ///
    /// # Errors
    /// [`ReplicationError::is_other_history`] and [`ReplicationError::is_no_slot`] tell the cases a receiver can act
    /// on. A position that the server has no longer or not yet is reported by the stream
    /// ([`ReplicationError::is_wal_removed`], [`ReplicationError::is_ahead_of_server`]).
    pub async fn start_physical(
        self,
        slot: Option<&SlotName>,
        start: Lsn,
        timeline: TimelineId,
    ) -> Result<StartedReplication, ReplicationError> {
        start_physical_stream(self, &command::start_physical(slot, start, timeline)).await
    }
}

async fn start_physical_stream(
    mut connection: ReplicationConnection,
    command: &str,
) -> Result<StartedReplication, ReplicationError> {
    connection.wire.send_command(command).await?;
    match connection.wire.read_message().await? {
        BackendMessage::CopyBoth => Ok(StartedReplication::Streaming(PhysicalStream { connection, ended: false })),
        BackendMessage::RowDescription(columns) => {
            let mut rows = connection.read_rows("START_REPLICATION").await?;
            rows.columns = columns;
            let next = next_timeline(&rows).ok_or(ReplicationError::UnexpectedAnswer("START_REPLICATION"))?;
            connection.wire.drain_until_ready().await?;
            Ok(StartedReplication::TimelineEnded(connection, next))
        }
        BackendMessage::Error(error) => {
            connection.wire.drain_until_ready().await?;
            Err(ReplicationError::from_server(*error))
        }
        _ => Err(ReplicationError::UnexpectedAnswer("START_REPLICATION")),
    }
}

fn next_timeline(rows: &super::connection::ResultRows) -> Option<NextTimeline> {
    Some(NextTimeline { timeline: rows.parse("next_tli")?, start: rows.parse("next_tli_startpos")? })
}

impl PhysicalStream {
    /// The next event. Cancel safe: an event is either returned or still to come.
    ///
    /// # Errors
    /// [`ReplicationError::is_wal_removed`] if the server no longer has the WAL; [`ReplicationError::ConnectionClosed`]
    /// if the server is gone.
    pub async fn next(&mut self) -> Result<WalStreamEvent, ReplicationError> {
        loop {
            let frame = self.connection.wire.read_frame().await?;
            if let Some(event) = self.event_of_frame(frame)? {
                return Ok(event);
            }
        }
    }

    /// The next event, if it was read from the socket already. `None` means that the socket is drained as far as we
    /// have looked: the moment to make what has come durable.
    ///
    /// # Errors
    /// As [`PhysicalStream::next`].
    pub fn buffered(&mut self) -> Result<Option<WalStreamEvent>, ReplicationError> {
        while let Some(frame) = self.connection.wire.buffered_frame()? {
            if let Some(event) = self.event_of_frame(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn event_of_frame(&mut self, frame: MessageFrame) -> Result<Option<WalStreamEvent>, ReplicationError> {
        if frame.tag == b'd' {
            return Ok(Some(copy_event(frame.body)?));
        }
        match BackendMessage::parse(frame)? {
            BackendMessage::CopyDone => {
                self.ended = true;
                Ok(Some(WalStreamEvent::EndOfTimeline))
            }
            BackendMessage::Error(error) => Err(ReplicationError::from_server(*error)),
            // A server that shuts down ends the copy like this, once we have reported its last record flushed
            // (`WalSndDone`).
            BackendMessage::CommandComplete(_) => Err(ReplicationError::ConnectionClosed(None)),
            BackendMessage::Notice(_) | BackendMessage::ParameterStatus { .. } | BackendMessage::Other(_) => Ok(None),
            _ => Err(ReplicationError::UnexpectedAnswer("START_REPLICATION")),
        }
    }

    /// Which server this is, for messages.
    #[must_use]
    pub fn peer(&self) -> &str {
        self.connection.peer()
    }

    /// Reports how far we are. Not cancel safe.
    ///
    /// # Errors
    /// [`ReplicationError::ConnectionClosed`] if the server is gone.
    pub async fn send_status(&mut self, status: StandbyStatus, now: PgTime) -> Result<(), ReplicationError> {
        standby_status(status, now, &mut self.connection.wire.output);
        self.connection.wire.flush().await
    }

    /// Ends the stream, by the server's wish after [`WalStreamEvent::EndOfTimeline`] or by ours. What the server had
    /// sent already is dropped.
    ///
    /// # Errors
    /// [`ReplicationError::ConnectionClosed`] if the server is gone.
    pub async fn finish(mut self) -> Result<(ReplicationConnection, Option<NextTimeline>), ReplicationError> {
        frontend::copy_done(&mut self.connection.wire.output);
        self.connection.wire.flush().await?;
        while !self.ended {
            match self.connection.wire.read_message().await? {
                BackendMessage::CopyData(_) => {}
                BackendMessage::CopyDone => self.ended = true,
                BackendMessage::Error(error) => return Err(ReplicationError::from_server(*error)),
                _ => return Err(ReplicationError::UnexpectedAnswer("the end of the stream")),
            }
        }
        let mut rows = super::connection::ResultRows::default();
        loop {
            match self.connection.wire.read_message().await? {
                // The answer to a status that was under way when the server ended the copy: it answers all the same
                // (`ProcessStandbyReplyMessage`).
                BackendMessage::CopyData(_) => {}
                BackendMessage::RowDescription(columns) => rows.columns = columns,
                BackendMessage::DataRow(row) if rows.rows.is_empty() => rows.rows.push(row),
                BackendMessage::CommandComplete(_) => {}
                BackendMessage::ReadyForQuery => return Ok((self.connection, next_timeline(&rows))),
                BackendMessage::Error(error) => return Err(ReplicationError::from_server(*error)),
                _ => return Err(ReplicationError::UnexpectedAnswer("the end of the stream")),
            }
        }
    }
}

fn copy_event(body: Bytes) -> Result<WalStreamEvent, ReplicationError> {
    Ok(match ReplicationMessage::parse(body)? {
        ReplicationMessage::XLogData(wal) => WalStreamEvent::Wal(wal),
        ReplicationMessage::Keepalive(keepalive) => WalStreamEvent::Keepalive(keepalive),
    })
}

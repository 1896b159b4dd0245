//! WAL as it flows: `START_REPLICATION … PHYSICAL` until the timeline ends or we have had enough.

use bytes::Bytes;
use postgres_protocol::message::frontend;

use super::command::{StandbyStatus, standby_status};
use super::connection::Connection;
use super::error::Error;
use super::message::{Frame, Keepalive, Message, Replication, XLogData};
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
pub enum Started {
    /// WAL will flow.
    Streaming(PhysicalStream),
    /// The timeline ends just where we asked to begin.
    TimelineEnded(Connection, NextTimeline),
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// A piece of WAL.
    Wal(XLogData),
    /// A sign of life; answer it if it asks for that.
    Keepalive(Keepalive),
    /// The timeline ends here. Report what is safe, then [`PhysicalStream::finish`].
    EndOfTimeline,
}

/// A stream of WAL, and the way back for reports.
#[derive(Debug)]
pub struct PhysicalStream {
    connection: Connection,
    ended: bool,
}

pub(super) async fn start(mut connection: Connection, command: &str) -> Result<Started, Error> {
    connection.wire.command(command).await?;
    match connection.wire.message().await? {
        Message::CopyBoth => Ok(Started::Streaming(PhysicalStream { connection, ended: false })),
        Message::RowDescription(columns) => {
            let mut rows = connection.rows("START_REPLICATION").await?;
            rows.columns = columns;
            let next = next_timeline(&rows).ok_or(Error::Unexpected("START_REPLICATION"))?;
            connection.wire.drain().await?;
            Ok(Started::TimelineEnded(connection, next))
        }
        Message::Error(error) => {
            connection.wire.drain().await?;
            Err(Error::from_server(*error))
        }
        _ => Err(Error::Unexpected("START_REPLICATION")),
    }
}

fn next_timeline(rows: &super::connection::Rows) -> Option<NextTimeline> {
    Some(NextTimeline { timeline: rows.parse("next_tli")?, start: rows.parse("next_tli_startpos")? })
}

impl PhysicalStream {
    /// The next event. Cancel safe: an event is either returned or still to come.
    ///
    /// # Errors
    /// [`Error::is_wal_removed`] if the server no longer has the WAL; [`Error::Closed`] if the server is gone.
    pub async fn next(&mut self) -> Result<StreamEvent, Error> {
        loop {
            let frame = self.connection.wire.frame().await?;
            if let Some(event) = self.event(frame)? {
                return Ok(event);
            }
        }
    }

    /// The next event, if it was read from the socket already. `None` means that the socket is drained as far as we have looked: the
    /// moment to make what has come durable.
    ///
    /// # Errors
    /// As [`PhysicalStream::next`].
    pub fn buffered(&mut self) -> Result<Option<StreamEvent>, Error> {
        while let Some(frame) = self.connection.wire.buffered_frame()? {
            if let Some(event) = self.event(frame)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn event(&mut self, frame: Frame) -> Result<Option<StreamEvent>, Error> {
        if frame.tag == b'd' {
            return Ok(Some(copy_event(frame.body)?));
        }
        match Message::parse(frame)? {
            Message::CopyDone => {
                self.ended = true;
                Ok(Some(StreamEvent::EndOfTimeline))
            }
            Message::Error(error) => Err(Error::from_server(*error)),
            // A server that shuts down ends the copy like this, once we have reported its last record flushed (`WalSndDone`).
            Message::CommandComplete(_) => Err(Error::Closed(None)),
            Message::Notice(_) | Message::ParameterStatus { .. } | Message::Other(_) => Ok(None),
            _ => Err(Error::Unexpected("START_REPLICATION")),
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
    /// [`Error::Closed`] if the server is gone.
    pub async fn send_status(&mut self, status: StandbyStatus, now: PgTime) -> Result<(), Error> {
        standby_status(status, now, &mut self.connection.wire.output);
        self.connection.wire.flush().await
    }

    /// Ends the stream, by the server's wish after [`StreamEvent::EndOfTimeline`] or by ours. What the server had sent already is dropped.
    ///
    /// # Errors
    /// [`Error::Closed`] if the server is gone.
    pub async fn finish(mut self) -> Result<(Connection, Option<NextTimeline>), Error> {
        frontend::copy_done(&mut self.connection.wire.output);
        self.connection.wire.flush().await?;
        while !self.ended {
            match self.connection.wire.message().await? {
                Message::CopyData(_) => {}
                Message::CopyDone => self.ended = true,
                Message::Error(error) => return Err(Error::from_server(*error)),
                _ => return Err(Error::Unexpected("the end of the stream")),
            }
        }
        let mut rows = super::connection::Rows::default();
        loop {
            match self.connection.wire.message().await? {
                // The answer to a status that was under way when the server ended the copy: it answers all the same (`ProcessStandbyReplyMessage`).
                Message::CopyData(_) => {}
                Message::RowDescription(columns) => rows.columns = columns,
                Message::DataRow(row) if rows.rows.is_empty() => rows.rows.push(row),
                Message::CommandComplete(_) => {}
                Message::ReadyForQuery => return Ok((self.connection, next_timeline(&rows))),
                Message::Error(error) => return Err(Error::from_server(*error)),
                _ => return Err(Error::Unexpected("the end of the stream")),
            }
        }
    }
}

fn copy_event(body: Bytes) -> Result<StreamEvent, Error> {
    Ok(match Replication::parse(body)? {
        Replication::XLogData(wal) => StreamEvent::Wal(wal),
        Replication::Keepalive(keepalive) => StreamEvent::Keepalive(keepalive),
    })
}

//! Messages over a socket: big reads in, whole messages out.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::error::ReplicationError;
use super::message::{BackendMessage, MessageFrame, ServerError, next_frame};
use super::socket::PgSocket;
use crate::base::clock::real_timeout;

/// What is allocated for the socket at a time. A walsender's messages are 128 KiB; eight of them share one allocation,
/// so that at most an eighth of what is read is ever moved to the front of the next buffer.
const READ_BUFFER_BYTES: usize = 1 << 20;

/// The least room a read is offered.
const MIN_READ_BYTES: usize = 128 << 10;

/// How long the other side may refuse to take our few bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the server may take to answer a command. All that walkeep sends look at shared memory or at one small file,
/// or sync one, except `BASE_BACKUP`, which waits for a checkpoint ([`MessageTransport::read_message_within`]).
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Warnings of the server that are kept. A backup that the server warns of more often has lost more than a list can
/// show; the rest is counted.
const MAX_KEPT_WARNINGS: usize = 1000;

/// What the server warned of while it answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerWarnings {
    /// The first [`MAX_KEPT_WARNINGS`], in the order in which they were received.
    pub kept: Vec<ServerError>,
    /// How many more there were.
    pub more: u64,
}

/// A connection's two directions.
pub(super) struct MessageTransport {
    socket: Box<dyn PgSocket>,
    input: BytesMut,
    /// What is to be sent next; filled by the caller, emptied by [`MessageTransport::flush`].
    pub(super) output: BytesMut,
    /// Which server, for messages.
    pub(super) peer: String,
    warnings: ServerWarnings,
}

impl std::fmt::Debug for MessageTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl MessageTransport {
    pub(super) fn new(socket: Box<dyn PgSocket>, peer: String) -> MessageTransport {
        let (input, output, warnings) = (BytesMut::new(), BytesMut::new(), ServerWarnings::default());
        MessageTransport { socket, input, output, peer, warnings }
    }

    /// The next frame. Cancel safe: what was read stays in the buffer.
    pub(super) async fn read_frame(&mut self) -> Result<MessageFrame, ReplicationError> {
        loop {
            if let Some(frame) = self.buffered_frame()? {
                return Ok(frame);
            }
            if self.input.capacity() - self.input.len() < MIN_READ_BYTES {
                self.input.reserve(READ_BUFFER_BYTES);
            }
            match self.socket.read_buf(&mut self.input).await {
                Ok(0) => return Err(ReplicationError::ConnectionClosed(None)),
                Ok(_) => {}
                Err(error) => return Err(ReplicationError::ConnectionClosed(Some(error))),
            }
        }
    }

    /// The next frame if it has been read already.
    pub(super) fn buffered_frame(&mut self) -> Result<Option<MessageFrame>, ReplicationError> {
        Ok(next_frame(&mut self.input)?)
    }

    /// The next message that is not just for information, within [`ANSWER_TIMEOUT`]. Cancel safe.
    pub(super) async fn read_message(&mut self) -> Result<BackendMessage, ReplicationError> {
        self.read_message_within(ANSWER_TIMEOUT).await
    }

    /// The same within another limit.
    pub(super) async fn read_message_within(&mut self, limit: Duration) -> Result<BackendMessage, ReplicationError> {
        match real_timeout(limit, self.wait_for_message()).await {
            Some(message) => message,
            None => Err(ReplicationError::TimedOut { host: self.peer.clone(), limit }),
        }
    }

    async fn wait_for_message(&mut self) -> Result<BackendMessage, ReplicationError> {
        loop {
            match BackendMessage::parse(self.read_frame().await?)? {
                BackendMessage::Notice(notice) => self.note(*notice),
                BackendMessage::ParameterStatus { .. } => {}
                BackendMessage::Error(error) if is_fatal(&error) => return Err(ReplicationError::from_server(*error)),
                message => return Ok(message),
            }
        }
    }

    /// Logs a notice, and keeps it if it is a warning.
    fn note(&mut self, notice: ServerError) {
        let ServerError { severity, code, message, .. } = &notice;
        tracing::debug!(severity, code, message, "the server says");
        // The field that is never translated.
        if severity != "WARNING" {
            return;
        }
        if self.warnings.kept.len() < MAX_KEPT_WARNINGS {
            self.warnings.kept.push(notice);
        } else {
            self.warnings.more = self.warnings.more.saturating_add(1);
        }
    }

    /// What the server has warned of since the last time this was asked.
    pub(super) fn take_warnings(&mut self) -> ServerWarnings {
        std::mem::take(&mut self.warnings)
    }

    /// Reads on until the server waits for a command, after an error within one.
    pub(super) async fn drain_until_ready(&mut self) -> Result<(), ReplicationError> {
        while !matches!(self.read_message().await?, BackendMessage::ReadyForQuery) {}
        Ok(())
    }

    /// Sends what is in [`MessageTransport::output`]. Not cancel safe: half a message may be out.
    pub(super) async fn flush(&mut self) -> Result<(), ReplicationError> {
        let send = async {
            self.socket.write_all_buf(&mut self.output).await?;
            self.socket.flush().await
        };
        match real_timeout(WRITE_TIMEOUT, send).await {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(ReplicationError::ConnectionClosed(Some(error))),
            None => Err(ReplicationError::TimedOut { host: self.peer.clone(), limit: WRITE_TIMEOUT }),
        }
    }

    /// Sends `command` as a simple query.
    pub(super) async fn send_command(&mut self, command: &str) -> Result<(), ReplicationError> {
        tracing::debug!(server = %self.peer, command, "replication command");
        let zero = |source| ReplicationError::ConnectionClosed(Some(source));
        postgres_protocol::message::frontend::query(command, &mut self.output).map_err(zero)?;
        self.flush().await
    }

    /// Takes leave. The server ends its process at once instead of finding out by itself.
    pub(super) async fn terminate(mut self) {
        postgres_protocol::message::frontend::terminate(&mut self.output);
        if self.flush().await.is_ok() {
            let _closed: io::Result<()> = self.socket.shutdown().await;
        }
    }
}

/// After these the server ends the connection, so nothing more will come.
fn is_fatal(error: &ServerError) -> bool {
    matches!(error.severity.as_str(), "FATAL" | "PANIC")
}

#[cfg(test)]
mod tests {
    use super::MessageTransport;
    use crate::base::retry::ErrorClass;
    use crate::postgres::wire::error::ReplicationError;
    use std::time::Duration;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn a_server_that_says_nothing_is_not_waited_for_indefinitely() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let mut wire = MessageTransport::new(Box::new(ours), "db:5432".into());
        // Half a message is no answer either.
        theirs.write_all(b"Z\0\0").await.unwrap();
        let limit = Duration::from_millis(20);
        let error = wire.read_message_within(limit).await.unwrap_err();
        assert!(matches!(error, ReplicationError::TimedOut { limit: same, .. } if same == limit), "{error}");
        assert_eq!(error.class(), ErrorClass::Transient);
    }
}

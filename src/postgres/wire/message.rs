//! What the server says, from bytes to values: protocol 3.0's messages as far as a replication connection meets them
//! (protocol.sgml "Message Formats", "Streaming Replication Protocol").
//!
//! Pure: a buffer in, values out; `None` means more bytes are needed. postgres-protocol parses most messages too, but
//! not `CopyBothResponse` and `NegotiateProtocolVersion`, and with no bound on a message's length, so the frames are
//! cut here.

use bytes::{Buf, Bytes, BytesMut};

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;

/// The longest message that is accepted. A walsender sends at most 16 blocks of at most 64 KiB at a time
/// (`MAX_SEND_SIZE`), a base backup 32 KiB; rows hold settings, names and timeline histories.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The tag byte and the length that begin every message.
const MESSAGE_HEADER_BYTES: usize = 5;

/// Columns in a row and fields in an error: the commands used here answer with fewer than ten.
const MAX_FIELDS: usize = 1664;

/// Bytes that break the protocol: the connection can't be used further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A length that no message has.
    #[error("the server sent a message {tag:?} of {len} bytes; at most {MAX_MESSAGE_BYTES} are expected")]
    Length {
        /// The message's tag.
        tag: char,
        /// The length it claims.
        len: u64,
    },
    /// A body that is not what its tag promises.
    #[error("the server sent a malformed message {tag:?}")]
    Malformed {
        /// The message's tag.
        tag: char,
    },
}

/// One message, cut out of the stream but not read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageFrame {
    /// What kind of message it is.
    pub tag: u8,
    /// What it holds; shares the buffer that was read from the socket.
    pub body: Bytes,
}

/// Cuts the next message off the front of `buffer`. On `None` the buffer has room reserved for the rest of the message.
///
/// # Errors
/// [`MessageError::Length`] if the length is none a server sends.
pub fn next_frame(buffer: &mut BytesMut) -> Result<Option<MessageFrame>, MessageError> {
    let Some((&tag, len)) = buffer.first().zip(buffer.get(1..MESSAGE_HEADER_BYTES)) else { return Ok(None) };
    let len = len.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let body_len = match usize::try_from(len) {
        Ok(len) if (4..=MAX_MESSAGE_BYTES).contains(&len) => len - 4,
        _ => return Err(MessageError::Length { tag: char::from(tag), len }),
    };
    if buffer.len() < MESSAGE_HEADER_BYTES + body_len {
        buffer.reserve(MESSAGE_HEADER_BYTES + body_len - buffer.len());
        return Ok(None);
    }
    buffer.advance(MESSAGE_HEADER_BYTES);
    Ok(Some(MessageFrame { tag, body: buffer.split_to(body_len).freeze() }))
}

/// What the server asks for, or says, while a connection is being set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthenticationMessage {
    /// Done.
    Ok,
    /// The password as it is.
    Cleartext,
    /// The password hashed with this salt.
    Md5([u8; 4]),
    /// One of these SASL mechanisms.
    Sasl(Vec<String>),
    /// The next step of SASL.
    SaslContinue(Bytes),
    /// The last step of SASL.
    SaslFinal(Bytes),
    /// A method this client doesn't have; its number.
    Other(u32),
}

/// An error or a notice, as the server words it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`…, untranslated where the server says so.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The message.
    pub message: String,
    /// The detail, if there is one.
    pub detail: Option<String>,
    /// The hint, if there is one.
    pub hint: Option<String>,
    /// The C function of the server that raised it, which is never translated; empty if the server does not say.
    pub routine: String,
}

/// A message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendMessage {
    /// Setting up.
    Authentication(AuthenticationMessage),
    /// A setting the client may want to know.
    ParameterStatus {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// For cancelling, which replication doesn't.
    BackendKeyData,
    /// The server does not know some of what was asked for.
    NegotiateProtocolVersion,
    /// The server waits for a command.
    ReadyForQuery,
    /// Names of the columns that follow.
    RowDescription(Vec<String>),
    /// One row.
    DataRow(Vec<Option<Bytes>>),
    /// A command is done.
    CommandComplete(String),
    /// An empty command is done.
    EmptyQuery,
    /// Data will flow both ways.
    CopyBoth,
    /// Data will flow to us.
    CopyOut,
    /// Data of either.
    CopyData(Bytes),
    /// The end of it.
    CopyDone,
    /// An error.
    Error(Box<ServerError>),
    /// A notice.
    Notice(Box<ServerError>),
    /// Something else that may be passed over.
    Other(u8),
}

/// Reads bytes of a body one after another; every read is checked.
struct BodyReader {
    tag: u8,
    body: Bytes,
}

impl BodyReader {
    fn malformed(&self) -> MessageError {
        MessageError::Malformed { tag: char::from(self.tag) }
    }

    fn u8(&mut self) -> Result<u8, MessageError> {
        self.body.try_get_u8().map_err(|_short| self.malformed())
    }

    fn u16(&mut self) -> Result<u16, MessageError> {
        self.body.try_get_u16().map_err(|_short| self.malformed())
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        self.body.try_get_u32().map_err(|_short| self.malformed())
    }

    fn u64(&mut self) -> Result<u64, MessageError> {
        self.body.try_get_u64().map_err(|_short| self.malformed())
    }

    fn i64(&mut self) -> Result<i64, MessageError> {
        self.body.try_get_i64().map_err(|_short| self.malformed())
    }

    fn bytes(&mut self, len: usize) -> Result<Bytes, MessageError> {
        if self.body.len() < len { Err(self.malformed()) } else { Ok(self.body.split_to(len)) }
    }

    /// Bytes up to the next zero byte, which is taken too.
    fn cstr(&mut self) -> Result<String, MessageError> {
        let Some(len) = self.body.iter().position(|&byte| byte == 0) else { return Err(self.malformed()) };
        let text = self.body.split_to(len);
        self.body.advance(1);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl BackendMessage {
    /// Reads what a frame holds.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] if the body is not what its tag promises.
    pub fn parse(frame: MessageFrame) -> Result<BackendMessage, MessageError> {
        let mut body = BodyReader { tag: frame.tag, body: frame.body };
        Ok(match frame.tag {
            b'd' => BackendMessage::CopyData(body.body),
            b'R' => BackendMessage::Authentication(authentication(body)?),
            b'S' => BackendMessage::ParameterStatus { name: body.cstr()?, value: body.cstr()? },
            b'K' => BackendMessage::BackendKeyData,
            b'v' => BackendMessage::NegotiateProtocolVersion,
            b'Z' => BackendMessage::ReadyForQuery,
            b'T' => BackendMessage::RowDescription(row_description(body)?),
            b'D' => BackendMessage::DataRow(data_row(body)?),
            b'C' => BackendMessage::CommandComplete(body.cstr()?),
            b'I' => BackendMessage::EmptyQuery,
            b'W' => BackendMessage::CopyBoth,
            b'H' => BackendMessage::CopyOut,
            b'c' => BackendMessage::CopyDone,
            b'E' => BackendMessage::Error(Box::new(server_error(body)?)),
            b'N' => BackendMessage::Notice(Box::new(server_error(body)?)),
            tag => BackendMessage::Other(tag),
        })
    }
}

fn authentication(mut body: BodyReader) -> Result<AuthenticationMessage, MessageError> {
    Ok(match body.u32()? {
        0 => AuthenticationMessage::Ok,
        3 => AuthenticationMessage::Cleartext,
        5 => {
            let salt = body.bytes(4)?;
            AuthenticationMessage::Md5(<[u8; 4]>::try_from(salt.as_ref()).map_err(|_wrong_length| body.malformed())?)
        }
        10 => {
            let mut mechanisms = Vec::new();
            loop {
                let name = body.cstr()?;
                if name.is_empty() {
                    break AuthenticationMessage::Sasl(mechanisms);
                }
                if mechanisms.len() >= MAX_FIELDS {
                    return Err(body.malformed());
                }
                mechanisms.push(name);
            }
        }
        11 => AuthenticationMessage::SaslContinue(body.body),
        12 => AuthenticationMessage::SaslFinal(body.body),
        other => AuthenticationMessage::Other(other),
    })
}

fn row_description(mut body: BodyReader) -> Result<Vec<String>, MessageError> {
    let count = usize::from(body.u16()?);
    let mut names = Vec::new();
    for _ in 0..count.min(MAX_FIELDS) {
        names.push(body.cstr()?);
        body.bytes(4 + 2 + 4 + 2 + 4 + 2)?;
    }
    if count > MAX_FIELDS { Err(body.malformed()) } else { Ok(names) }
}

fn data_row(mut body: BodyReader) -> Result<Vec<Option<Bytes>>, MessageError> {
    let count = usize::from(body.u16()?);
    if count > MAX_FIELDS {
        return Err(body.malformed());
    }
    (0..count)
        .map(|_| match body.u32()? {
            u32::MAX => Ok(None),
            len => {
                let len = usize::try_from(len).map_err(|_too_long| body.malformed())?;
                body.bytes(len).map(Some)
            }
        })
        .collect()
}

fn server_error(mut body: BodyReader) -> Result<ServerError, MessageError> {
    let mut error = ServerError::default();
    for _ in 0..MAX_FIELDS {
        match body.u8()? {
            0 => return Ok(error),
            b'V' => error.severity = body.cstr()?,
            b'S' => {
                let severity = body.cstr()?;
                if error.severity.is_empty() {
                    error.severity = severity;
                }
            }
            b'C' => error.code = body.cstr()?,
            b'M' => error.message = body.cstr()?,
            b'D' => error.detail = Some(body.cstr()?),
            b'H' => error.hint = Some(body.cstr()?),
            b'R' => error.routine = body.cstr()?,
            _ => {
                body.cstr()?;
            }
        }
    }
    Err(body.malformed())
}

/// What a `CopyData` of a physical stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// A piece of WAL.
    XLogData(XLogData),
    /// A sign of life.
    Keepalive(KeepaliveMessage),
}

/// A piece of WAL: any bytes at all; neither records nor pages nor segments end with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XLogData {
    /// The position of the first byte.
    pub start: Lsn,
    /// How far the server has WAL to send: the stream is behind by the difference.
    pub server_end: Lsn,
    /// The server's clock when it sent this.
    pub sent_at: PgTime,
    /// The bytes; they share the buffer that was read from the socket.
    pub bytes: Bytes,
}

/// A sign of life of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepaliveMessage {
    /// How far the server has WAL to send.
    pub server_end: Lsn,
    /// The server's clock when it sent this.
    pub sent_at: PgTime,
    /// The server will cut the connection if it isn't answered soon.
    pub reply_requested: bool,
}

impl ReplicationMessage {
    /// Reads a `CopyData` of `START_REPLICATION … PHYSICAL`.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] if it is neither WAL nor a sign of life.
    pub fn parse(body: Bytes) -> Result<ReplicationMessage, MessageError> {
        let mut body = BodyReader { tag: b'd', body };
        match body.u8()? {
            b'w' => Ok(ReplicationMessage::XLogData(XLogData {
                start: Lsn::new(body.u64()?),
                server_end: Lsn::new(body.u64()?),
                sent_at: PgTime::from_pg_micros(body.i64()?),
                bytes: body.body,
            })),
            b'k' => Ok(ReplicationMessage::Keepalive(KeepaliveMessage {
                server_end: Lsn::new(body.u64()?),
                sent_at: PgTime::from_pg_micros(body.i64()?),
                reply_requested: body.u8()? != 0,
            })),
            _ => Err(body.malformed()),
        }
    }
}

/// What a `CopyData` of a base backup holds, PostgreSQL 15 and later (`basebackup_copy.c`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseBackupMessage {
    /// A new archive begins.
    NewArchive {
        /// `base.tar` or `<oid>.tar`.
        name: String,
        /// The tablespace's place, empty for the main data directory.
        path: String,
    },
    /// The manifest begins.
    Manifest,
    /// Bytes of what began last.
    Data(Bytes),
    /// How many bytes the server has processed.
    Progress(u64),
}

impl BaseBackupMessage {
    /// Reads a `CopyData` of `BASE_BACKUP`, PostgreSQL 15 and later.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] if it is none of the four kinds.
    pub fn parse(body: Bytes) -> Result<BaseBackupMessage, MessageError> {
        let mut body = BodyReader { tag: b'd', body };
        match body.u8()? {
            b'd' => Ok(BaseBackupMessage::Data(body.body)),
            b'n' => Ok(BaseBackupMessage::NewArchive { name: body.cstr()?, path: body.cstr()? }),
            b'm' => Ok(BaseBackupMessage::Manifest),
            b'p' => Ok(BaseBackupMessage::Progress(body.u64()?)),
            _ => Err(body.malformed()),
        }
    }
}

/// Any bytes, as what a server sends. Must end without a panic, keep nothing longer than what came in, and cut the same
/// frames however the input is split. For fuzzing.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let frames = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match next_frame(&mut buffer) {
                    Ok(Some(frame)) => frames.push(Ok(frame)),
                    Ok(None) => break,
                    Err(error) => {
                        frames.push(Err(error));
                        return frames;
                    }
                }
            }
        }
        frames
    };
    let whole = frames(&mut std::iter::once(data));
    assert_eq!(whole, frames(&mut data.chunks(3)), "a split changed the frames");
    for frame in whole.into_iter().flatten() {
        let len = frame.body.len();
        match BackendMessage::parse(frame) {
            Ok(BackendMessage::CopyData(body)) => {
                if let Ok(ReplicationMessage::XLogData(wal)) = ReplicationMessage::parse(body.clone()) {
                    assert!(wal.bytes.len() < len, "a header comes before the bytes");
                }
                if let Ok(BaseBackupMessage::Data(bytes)) = BaseBackupMessage::parse(body) {
                    assert!(bytes.len() < len, "a kind comes before the bytes");
                }
            }
            Ok(BackendMessage::DataRow(row)) => {
                let held: usize = row.iter().flatten().map(Bytes::len).sum();
                assert!(held <= len, "a row holds no more than its message");
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        AuthenticationMessage, BackendMessage, BaseBackupMessage, MessageError, MessageFrame, ReplicationMessage, fuzz,
        next_frame,
    };
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Result<BackendMessage, MessageError> {
        BackendMessage::parse(MessageFrame { tag, body: Bytes::copy_from_slice(body) })
    }

    #[test]
    fn absurd_lengths_are_refused_before_anything_is_allocated() {
        for len in [0u32, 3, (16 << 20) + 1, u32::MAX] {
            let mut buffer = BytesMut::from(&b"d"[..]);
            buffer.extend_from_slice(&len.to_be_bytes());
            assert!(matches!(next_frame(&mut buffer), Err(MessageError::Length { .. })), "{len}");
        }
        let mut row = vec![0, 1];
        row.extend_from_slice(&0x7FFF_FFFFu32.to_be_bytes());
        assert_eq!(message(b'D', &row), Err(MessageError::Malformed { tag: 'D' }));
    }

    #[test]
    fn frames_share_the_buffer_they_were_cut_from() {
        let mut buffer = BytesMut::from(&b"d\0\0\0\x08abcdZ\0\0\0\x05I"[..]);
        let start = buffer.as_ptr();
        let frame = next_frame(&mut buffer).unwrap().unwrap();
        assert_eq!(frame.body.as_ptr(), start.wrapping_add(5), "the body was copied");
        assert_eq!(next_frame(&mut buffer).unwrap().unwrap().tag, b'Z');
        assert_eq!(next_frame(&mut buffer).unwrap(), None);
    }

    #[test]
    fn each_kind_is_read() {
        assert_eq!(message(b'W', b"\0\0\0"), Ok(BackendMessage::CopyBoth));
        assert_eq!(message(b'v', b"anything"), Ok(BackendMessage::NegotiateProtocolVersion));
        assert_eq!(
            message(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
            Ok(BackendMessage::Authentication(AuthenticationMessage::Sasl(vec![
                "SCRAM-SHA-256-PLUS".into(),
                "SCRAM-SHA-256".into()
            ])))
        );
        let BackendMessage::Error(error) = message(b'E', b"SFEHLER\0VFATAL\0C28P01\0Mno\0Hdo\0Rauth\0\0").unwrap()
        else {
            panic!("not an error");
        };
        assert_eq!(
            (error.severity.as_str(), error.code.as_str(), error.hint.as_deref(), error.routine.as_str()),
            ("FATAL", "28P01", Some("do"), "auth")
        );
        assert_eq!(
            message(b'D', b"\0\x02\xff\xff\xff\xff\0\0\0\x01x"),
            Ok(BackendMessage::DataRow(vec![None, Some(Bytes::from_static(b"x"))]))
        );
        let Ok(ReplicationMessage::Keepalive(keepalive)) =
            ReplicationMessage::parse(Bytes::from_static(b"k\0\0\0\x16\xb3\x74\xd8\x48\0\0\0\0\0\0\0\x07\x01"))
        else {
            panic!("not a keepalive");
        };
        assert_eq!((keepalive.server_end.to_string().as_str(), keepalive.reply_requested), ("16/B374D848", true));
        assert_eq!(
            BaseBackupMessage::parse(Bytes::from_static(b"nbase.tar\0\0")),
            Ok(BaseBackupMessage::NewArchive { name: "base.tar".into(), path: String::new() })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_can_break_it(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }

        #[test]
        fn no_body_can_break_it(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut data = vec![tag];
            data.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
            data.extend_from_slice(&body);
            fuzz(&data);
        }
    }
}

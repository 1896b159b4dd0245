//! `BASE_BACKUP`: a tar stream per tablespace, in the two protocols that PostgreSQL 13 and 14, and 15 and later, speak
//! (protocol.sgml "BASE_BACKUP"; `basebackup.c`, `basebackup_copy.c`).

use bytes::Bytes;

use super::command::{self, BaseBackupOptions, Compression};
use super::connection::{Connection, Rows};
use super::decompress::Inflate;
use super::error::Error;
use super::message::{BackupChunk, Message};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;

/// A tablespace, as the server announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its number; `None` for the main data directory.
    pub oid: Option<u32>,
    /// Where it lies on the server; `None` for the main data directory.
    pub location: Option<String>,
    /// About how large it is, as estimated before the backup began.
    pub size_kib: Option<u64>,
}

/// Where the backup began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStart {
    /// The redo position of its checkpoint: replay begins here.
    pub start: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// What is going to be sent, in no promised order.
    pub tablespaces: Vec<Tablespace>,
}

/// Where the backup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupEnd {
    /// The first position at which a restore of it is consistent.
    pub stop: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
}

/// What the stream brings next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupEvent {
    /// The tar of a tablespace begins, `None` for the main data directory. It ends with the next event that is not data or progress.
    /// PostgreSQL 13 and 14 leave out the two blocks of zeros at a tar's end.
    Archive(Option<u32>),
    /// The server's manifest begins.
    Manifest,
    /// Bytes of what began last.
    Data(Bytes),
    /// The server has processed so many bytes (PostgreSQL 15 and later).
    Progress(u64),
    /// Everything was sent.
    End(BackupEnd),
}

/// How the data comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One copy for each tablespace, in the order announced, and one for the manifest (13 and 14).
    CopyEach {
        /// How many copies have begun.
        begun: usize,
        /// One is going on.
        open: bool,
    },
    /// One copy whose messages say what they are (15 and later).
    Marked {
        /// It is going on.
        open: bool,
    },
}

/// A base backup that is being sent.
#[derive(Debug)]
pub struct BaseBackup {
    connection: Connection,
    start: BackupStart,
    form: Form,
    compression: Option<Compression>,
    /// Takes it off the archive under way.
    inflate: Option<Inflate>,
}

const QUESTION: &str = "BASE_BACKUP";

pub(super) async fn start(mut connection: Connection, options: &BaseBackupOptions) -> Result<BaseBackup, Error> {
    let version = connection.version();
    connection.wire.command(&command::base_backup(options, version)).await?;
    let position = connection.rows(QUESTION).await?;
    let announced = connection.rows(QUESTION).await?;
    let (start, timeline) = end_of(&position).ok_or(Error::Unexpected(QUESTION))?;
    let tablespaces = (0..announced.rows.len()).map(|row| tablespace(&announced, row)).collect::<Option<_>>();
    let tablespaces = tablespaces.ok_or(Error::Unexpected(QUESTION))?;
    let form = if version.has_option_lists() {
        Form::Marked { open: false }
    } else {
        Form::CopyEach { begun: 0, open: false }
    };
    let compression = options.compression.filter(|_| version.has_option_lists());
    let inflate = compression.map(Inflate::new);
    Ok(BaseBackup { connection, start: BackupStart { start, timeline, tablespaces }, form, compression, inflate })
}

fn end_of(rows: &Rows) -> Option<(Lsn, TimelineId)> {
    Some((rows.parse("recptr")?, rows.parse("tli")?))
}

fn tablespace(rows: &Rows, row: usize) -> Option<Tablespace> {
    let oid = match rows.row_text(row, "spcoid") {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    let size_kib = rows.row_text(row, "size").and_then(|text| text.parse().ok());
    Some(Tablespace { oid, location: rows.row_text(row, "spclocation").map(str::to_owned), size_kib })
}

impl BaseBackup {
    /// Where it began, and what will come.
    #[must_use]
    pub fn start(&self) -> &BackupStart {
        &self.start
    }

    /// The next event. After [`BackupEvent::End`] call [`BaseBackup::finish`].
    ///
    /// # Errors
    /// [`Error`] if the server gives up or the connection fails: the backup is worth nothing then.
    pub async fn next(&mut self) -> Result<BackupEvent, Error> {
        loop {
            let inflated = self.inflate.as_mut().map(Inflate::poll).transpose();
            if let Some(plain) = inflated.map_err(|_damaged| Error::Unexpected(QUESTION))?.flatten() {
                return Ok(BackupEvent::Data(plain));
            }
            let message = self.connection.wire.message().await?;
            let event = match (message, self.form) {
                (Message::Error(error), _) => return Err(Error::from_server(*error)),
                (Message::CopyData(body), Form::Marked { open: true }) => Some(marked(body)?),
                (Message::CopyData(body), Form::CopyEach { open: true, .. }) => Some(BackupEvent::Data(body)),
                (Message::CopyOut, Form::Marked { open: false }) => {
                    self.form = Form::Marked { open: true };
                    None
                }
                (Message::CopyOut, Form::CopyEach { begun, open: false }) => {
                    self.form = Form::CopyEach { begun: begun + 1, open: true };
                    match self.start.tablespaces.get(begun) {
                        Some(tablespace) => Some(BackupEvent::Archive(tablespace.oid)),
                        None if begun == self.start.tablespaces.len() => Some(BackupEvent::Manifest),
                        None => return Err(Error::Unexpected(QUESTION)),
                    }
                }
                (Message::CopyDone, Form::Marked { open: true }) => {
                    self.form = Form::Marked { open: false };
                    None
                }
                (Message::CopyDone, Form::CopyEach { begun, open: true }) => {
                    self.form = Form::CopyEach { begun, open: false };
                    None
                }
                (Message::RowDescription(columns), _) => {
                    let mut rows = self.connection.rows(QUESTION).await?;
                    rows.columns = columns;
                    let (stop, timeline) = end_of(&rows).ok_or(Error::Unexpected(QUESTION))?;
                    Some(BackupEvent::End(BackupEnd { stop, timeline }))
                }
                _ => return Err(Error::Unexpected(QUESTION)),
            };
            match (event, &mut self.inflate) {
                (Some(BackupEvent::Data(bytes)), Some(inflate)) => inflate.push(bytes),
                (Some(BackupEvent::Archive(oid)), _) => {
                    // Each archive is compressed by itself.
                    self.inflate = self.compression.map(Inflate::new);
                    return Ok(BackupEvent::Archive(oid));
                }
                (Some(BackupEvent::Manifest), _) => {
                    // It comes as it is.
                    self.inflate = None;
                    return Ok(BackupEvent::Manifest);
                }
                (Some(event), _) => return Ok(event),
                (None, _) => {}
            }
        }
    }

    /// Waits until the server is ready for the next command.
    ///
    /// # Errors
    /// [`Error`] if the server reports a failure at the very end, such as a checksum failure it found: the backup is not good then.
    pub async fn finish(mut self) -> Result<Connection, Error> {
        loop {
            match self.connection.wire.message().await? {
                Message::CommandComplete(_) => {}
                Message::ReadyForQuery => return Ok(self.connection),
                Message::Error(error) => return Err(Error::from_server(*error)),
                _ => return Err(Error::Unexpected(QUESTION)),
            }
        }
    }
}

fn marked(body: Bytes) -> Result<BackupEvent, Error> {
    Ok(match BackupChunk::parse(body)? {
        // The name tells how it is compressed, which is as it was asked for.
        BackupChunk::NewArchive { name, .. } => match name.split_once(".tar") {
            Some(("base", _)) => BackupEvent::Archive(None),
            Some((oid, _)) => BackupEvent::Archive(Some(oid.parse().map_err(|_bad| Error::Unexpected(QUESTION))?)),
            None => return Err(Error::Unexpected(QUESTION)),
        },
        BackupChunk::Manifest => BackupEvent::Manifest,
        BackupChunk::Data(bytes) => BackupEvent::Data(bytes),
        BackupChunk::Progress(bytes) => BackupEvent::Progress(bytes),
    })
}

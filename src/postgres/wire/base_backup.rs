//! `BASE_BACKUP`: a tar stream per tablespace, in the two protocols that PostgreSQL 13 and 14, and 15 and later, speak
//! (protocol.sgml "BASE_BACKUP"; `basebackup.c`, `basebackup_copy.c`).

use std::time::Duration;

use bytes::Bytes;

use super::command::{self, BaseBackupOptions, ServerCompression};
use super::connection::{ReplicationConnection, ResultRows};
use super::decompress::StreamDecompressor;
use super::error::ReplicationError;
use super::message::{BackendMessage, BaseBackupMessage};
use super::transport::ServerWarnings;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;

/// A tablespace, as the server announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedTablespace {
    /// Its number; `None` for the main data directory.
    pub oid: Option<u32>,
    /// Where it lies on the server; `None` for the main data directory.
    pub location: Option<String>,
    /// About how large it is, as estimated before the backup began.
    pub size_kib: Option<u64>,
}

/// Where the backup began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupStart {
    /// The redo position of its checkpoint: replay begins here.
    pub start: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// What is going to be sent, in no promised order.
    pub tablespaces: Vec<AnnouncedTablespace>,
}

/// Where the backup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseBackupEnd {
    /// The first position at which a restore of it is consistent.
    pub stop: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
}

/// What the stream brings next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseBackupEvent {
    /// The tar of a tablespace begins, `None` for the main data directory. It ends with the next event that is not data
    /// or progress. PostgreSQL 13 and 14 leave out the two blocks of zeros at a tar's end.
    Archive(Option<u32>),
    /// The server's manifest begins.
    Manifest,
    /// Bytes of what began last.
    Data(Bytes),
    /// The server has processed so many bytes (PostgreSQL 15 and later).
    Progress(u64),
    /// Everything was sent.
    End(BaseBackupEnd),
}

/// How the data comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BaseBackupFraming {
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
    connection: ReplicationConnection,
    start: BaseBackupStart,
    form: BaseBackupFraming,
    compression: Option<ServerCompression>,
    /// Takes it off the archive under way.
    inflate: Option<StreamDecompressor>,
}

/// How long the checkpoint before a backup may take beside `checkpoint_timeout`, over which a checkpoint is spread.
/// That counts twice: for one that is running and for the backup's own. What is written must be synced too, which takes
/// minutes on a slow disk.
const MAX_CHECKPOINT_SYNC: Duration = Duration::from_secs(30 * 60);

/// How long the server may send nothing of a backup: it reads from its disk, and `MAX_RATE` makes pauses of less than a
/// second.
const SILENCE_LIMIT: Duration = Duration::from_secs(10 * 60);

const BASE_BACKUP_QUESTION: &str = "BASE_BACKUP";

impl ReplicationConnection {
    /// Starts a base backup.
    ///
    /// # Errors
    /// [`ReplicationError`] if the server refuses.
    pub async fn base_backup(self, options: &BaseBackupOptions) -> Result<BaseBackup, ReplicationError> {
        start_base_backup(self, options).await
    }
}

async fn start_base_backup(
    mut connection: ReplicationConnection,
    options: &BaseBackupOptions,
) -> Result<BaseBackup, ReplicationError> {
    let version = connection.version();
    let checkpoint = connection.show_duration("checkpoint_timeout").await?;
    connection.wire.send_command(&command::base_backup(options, version)).await?;
    let limit = checkpoint.saturating_mul(2).saturating_add(MAX_CHECKPOINT_SYNC);
    let position = connection.read_rows_within(BASE_BACKUP_QUESTION, limit).await?;
    let announced = connection.read_rows(BASE_BACKUP_QUESTION).await?;
    let (start, timeline) = parse_end(&position).ok_or(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION))?;
    let tablespaces = (0..announced.rows.len()).map(|row| parse_tablespace(&announced, row)).collect::<Option<_>>();
    let tablespaces = tablespaces.ok_or(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION))?;
    let form = if version.has_option_lists() {
        BaseBackupFraming::Marked { open: false }
    } else {
        BaseBackupFraming::CopyEach { begun: 0, open: false }
    };
    let compression = options.compression.filter(|_| version.has_option_lists());
    let inflate = compression.map(StreamDecompressor::new);
    Ok(BaseBackup { connection, start: BaseBackupStart { start, timeline, tablespaces }, form, compression, inflate })
}

fn parse_end(rows: &ResultRows) -> Option<(Lsn, TimelineId)> {
    Some((rows.parse("recptr")?, rows.parse("tli")?))
}

fn parse_tablespace(rows: &ResultRows, row: usize) -> Option<AnnouncedTablespace> {
    let oid = match rows.row_text(row, "spcoid") {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    let size_kib = rows.row_text(row, "size").and_then(|text| text.parse().ok());
    Some(AnnouncedTablespace { oid, location: rows.row_text(row, "spclocation").map(str::to_owned), size_kib })
}

impl BaseBackup {
    /// Where it began, and what will come.
    #[must_use]
    pub fn start(&self) -> &BaseBackupStart {
        &self.start
    }

    /// The next event. After [`BaseBackupEvent::End`] call [`BaseBackup::finish`].
    ///
    /// # Errors
    /// [`ReplicationError`] if the server gives up or the connection fails: the backup is worth nothing then.
    pub async fn next(&mut self) -> Result<BaseBackupEvent, ReplicationError> {
        loop {
            let inflated = self.inflate.as_mut().map(StreamDecompressor::poll).transpose();
            if let Some(plain) =
                inflated.map_err(|_damaged| ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION))?.flatten()
            {
                return Ok(BaseBackupEvent::Data(plain));
            }
            let message = self.connection.wire.read_message_within(SILENCE_LIMIT).await?;
            let event = match (message, self.form) {
                (BackendMessage::Error(error), _) => return Err(ReplicationError::from_server(*error)),
                (BackendMessage::CopyData(body), BaseBackupFraming::Marked { open: true }) => Some(parse_marked(body)?),
                (BackendMessage::CopyData(body), BaseBackupFraming::CopyEach { open: true, .. }) => {
                    Some(BaseBackupEvent::Data(body))
                }
                (BackendMessage::CopyOut, BaseBackupFraming::Marked { open: false }) => {
                    self.form = BaseBackupFraming::Marked { open: true };
                    None
                }
                (BackendMessage::CopyOut, BaseBackupFraming::CopyEach { begun, open: false }) => {
                    self.form = BaseBackupFraming::CopyEach { begun: begun + 1, open: true };
                    match self.start.tablespaces.get(begun) {
                        Some(tablespace) => Some(BaseBackupEvent::Archive(tablespace.oid)),
                        None if begun == self.start.tablespaces.len() => Some(BaseBackupEvent::Manifest),
                        None => return Err(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION)),
                    }
                }
                (BackendMessage::CopyDone, BaseBackupFraming::Marked { open: true }) => {
                    self.form = BaseBackupFraming::Marked { open: false };
                    None
                }
                (BackendMessage::CopyDone, BaseBackupFraming::CopyEach { begun, open: true }) => {
                    self.form = BaseBackupFraming::CopyEach { begun, open: false };
                    None
                }
                (BackendMessage::RowDescription(columns), _) => {
                    let mut rows = self.connection.read_rows(BASE_BACKUP_QUESTION).await?;
                    rows.columns = columns;
                    let (stop, timeline) =
                        parse_end(&rows).ok_or(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION))?;
                    Some(BaseBackupEvent::End(BaseBackupEnd { stop, timeline }))
                }
                _ => return Err(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION)),
            };
            match (event, &mut self.inflate) {
                (Some(BaseBackupEvent::Data(bytes)), Some(inflate)) => inflate.push(bytes),
                (Some(BaseBackupEvent::Archive(oid)), _) => {
                    // Each archive is compressed by itself.
                    self.inflate = self.compression.map(StreamDecompressor::new);
                    return Ok(BaseBackupEvent::Archive(oid));
                }
                (Some(BaseBackupEvent::Manifest), _) => {
                    // It comes as it is.
                    self.inflate = None;
                    return Ok(BaseBackupEvent::Manifest);
                }
                (Some(event), _) => return Ok(event),
                (None, _) => {}
            }
        }
    }

    /// What the server has warned of so far. A file that it left out is among them.
    pub fn take_warnings(&mut self) -> ServerWarnings {
        self.connection.wire.take_warnings()
    }

    /// Waits until the server is ready for the next command.
    ///
    /// # Errors
    /// [`ReplicationError`] if the server reports a failure at the very end, such as a checksum failure it found: the
    /// backup is not good then.
    pub async fn finish(mut self) -> Result<ReplicationConnection, ReplicationError> {
        loop {
            match self.connection.wire.read_message_within(SILENCE_LIMIT).await? {
                BackendMessage::CommandComplete(_) => {}
                BackendMessage::ReadyForQuery => return Ok(self.connection),
                BackendMessage::Error(error) => return Err(ReplicationError::from_server(*error)),
                _ => return Err(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION)),
            }
        }
    }
}

fn parse_marked(body: Bytes) -> Result<BaseBackupEvent, ReplicationError> {
    Ok(match BaseBackupMessage::parse(body)? {
        // The name tells how it is compressed, which is as it was asked for.
        BaseBackupMessage::NewArchive { name, .. } => match name.split_once(".tar") {
            Some(("base", _)) => BaseBackupEvent::Archive(None),
            Some((oid, _)) => BaseBackupEvent::Archive(Some(
                oid.parse().map_err(|_bad| ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION))?,
            )),
            None => return Err(ReplicationError::UnexpectedAnswer(BASE_BACKUP_QUESTION)),
        },
        BaseBackupMessage::Manifest => BaseBackupEvent::Manifest,
        BaseBackupMessage::Data(bytes) => BaseBackupEvent::Data(bytes),
        BaseBackupMessage::Progress(bytes) => BaseBackupEvent::Progress(bytes),
    })
}

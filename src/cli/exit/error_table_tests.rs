//! The exit code and the retry class of at least one value of nearly every error variant. Scripts and operators depend
//! on them: a change of a line here is a change that they notice.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{CliExitCode, exit_code};
use crate::base::durable::{self, DurableError};
use crate::base::error_kind::HasKind;
use crate::base::pem::PemFileError;
use crate::base::retry::ErrorClass;
use crate::config::{ConfigError, KeySourceError, PasswordError};
use crate::joint::error::JointError;
use crate::postgres::archive::ArchiveError;
use crate::postgres::archive::beginning_source::BeginningSource;
use crate::postgres::archive::chunks::{PackError, PackId};
use crate::postgres::archive::ingest::IngestError;
use crate::postgres::archive::reindex::ReindexError;
use crate::postgres::archive::wal_file::WalFileError;
use crate::postgres::archive_get::ArchiveGetError;
use crate::postgres::archive_push::ArchivePushError;
use crate::postgres::backup::BackupError;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize, SystemId};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::index::IndexError;
use crate::postgres::receive::ReceiveError;
use crate::postgres::restore::destination::DestinationError;
use crate::postgres::restore::placement::PlacementError;
use crate::postgres::restore::selective::{SelectiveRestoreError, TableName};
use crate::postgres::restore::server_start::ServerStartError;
use crate::postgres::retention::CleanupError;
use crate::postgres::sql::SqlError;
use crate::postgres::verify::ClusterVerifyError;
use crate::postgres::wal::assemble::AssembleError;
use crate::postgres::wire::message::{MessageError, ServerError};
use crate::postgres::wire::{ConninfoError, ReplicationError};
use crate::postgres::{log, restore};
use crate::redis;
use crate::redis::archive::StreamPosition;
use crate::redis::archive::history::last_command::LastCommandError;
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::format::rdb::RdbError;
use crate::redis::format::resp::RespError;
use crate::redis::restore::destination::RedisDestinationError;
use crate::redis::restore::plan::RedisPlanError;
use crate::redis::wire::{RedisError, RedisTlsError};
use crate::vault::VaultError;
use crate::vault::repository::RepositoryError;
use crate::vault::repository::key::marker_key;
use crate::vault::retention::RetentionError;
use crate::vault::seal::SealError;
use crate::vault::seal::keys::SealKeyError;
use crate::vault::spool::error::{SpoolError, SpoolKeyError};
use crate::vault::verify::VerifyError;

const FAILED: (CliExitCode, ErrorClass) = (CliExitCode::Failed, ErrorClass::Permanent);
const CONFLICT: (CliExitCode, ErrorClass) = (CliExitCode::Failed, ErrorClass::Conflict);
const USAGE: (CliExitCode, ErrorClass) = (CliExitCode::Usage, ErrorClass::Permanent);
const ALREADY_EXISTS: (CliExitCode, ErrorClass) = (CliExitCode::Usage, ErrorClass::Conflict);
const UNREACHABLE: (CliExitCode, ErrorClass) = (CliExitCode::Unreachable, ErrorClass::Permanent);
const NOT_FOUND: (CliExitCode, ErrorClass) = (CliExitCode::NotFound, ErrorClass::Permanent);
const UNAVAILABLE: (CliExitCode, ErrorClass) = (CliExitCode::Unavailable, ErrorClass::Transient);
const INTEGRITY: (CliExitCode, ErrorClass) = (CliExitCode::Integrity, ErrorClass::Permanent);

type Expected = (CliExitCode, ErrorClass);

/// Each value ends a command with its code, and is retried or not.
fn check<E, const N: usize>(table: [(E, Expected); N])
where
    E: std::error::Error + HasKind + Send + Sync + 'static,
{
    for (error, expected) in table {
        let shown = format!("{error:?}");
        let class = error.kind().class();
        assert_eq!((exit_code(&anyhow::Error::from(error)), class), expected, "{shown}");
    }
}

fn text() -> String {
    "x".to_owned()
}

fn wrong_spool_key() -> SpoolError {
    SpoolKeyError::Unusable { path: path(), source: SealKeyError::Damaged }.into()
}

fn path() -> PathBuf {
    "/x".into()
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn not_found() -> io::Error {
    io::Error::from_raw_os_error(2)
}

fn durable_error() -> DurableError {
    durable::sync_file(std::path::Path::new("/nonexistent/x")).unwrap_err()
}

fn timeline() -> TimelineId {
    TimelineId::new(1).unwrap()
}

fn segment() -> SegmentName {
    SegmentName::parse("000000010000000000000003").unwrap()
}

fn refused(code: &str) -> ReplicationError {
    ReplicationError::from_server(ServerError { code: code.into(), ..ServerError::default() })
}

fn unavailable() -> ReplicationError {
    ReplicationError::ConnectionClosed(None)
}

fn conninfo() -> ReplicationError {
    ReplicationError::Conninfo(ConninfoError::Syntax(text()))
}

fn damaged() -> RepositoryError {
    RepositoryError::Corrupt { key: marker_key(), url: "x".into(), why: text() }
}

fn full() -> RepositoryError {
    RepositoryError::Full { action: "write", key: text(), url: "x".into() }
}

fn vault_of(source: RepositoryError) -> VaultError {
    VaultError::Repository { name: text(), source: Arc::new(source) }
}

fn archive_of(source: RepositoryError) -> ArchiveError {
    ArchiveError::Vault(vault_of(source))
}

fn pack() -> PackError {
    PackError::MalformedList(PackId::random().unwrap())
}

#[test]
fn errors_of_the_vault() {
    let url = || Arc::<str>::from("x");
    check([
        (RepositoryError::NotFound { key: marker_key(), url: url() }, NOT_FOUND),
        (RepositoryError::NoRepository { url: url() }, NOT_FOUND),
        (full(), UNAVAILABLE),
        (damaged(), INTEGRITY),
        (RepositoryError::RepositoryExists { url: url() }, ALREADY_EXISTS),
        (RepositoryError::NewerFormat { url: url(), found: 9 }, FAILED),
        (RepositoryError::BadUrl { url: url(), why: text() }, USAGE),
    ]);
    check([
        (vault_of(damaged()), INTEGRITY),
        (vault_of(full()), UNAVAILABLE),
        (vault_of(RepositoryError::NoRepository { url: url() }), NOT_FOUND),
        (vault_of(RepositoryError::RepositoryExists { url: url() }), ALREADY_EXISTS),
        (VaultError::MalformedContent { name: text(), key: marker_key(), why: text() }, INTEGRITY),
        (VaultError::NameTaken { name: text(), key: marker_key(), why: text() }, INTEGRITY),
        (VaultError::Seal(Arc::new(SealError::FrameSize(3))), FAILED),
        (VaultError::Key { name: text(), key: text(), source: SealKeyError::Empty }, INTEGRITY),
        (VaultError::KeyNotConfigured { name: text() }, USAGE),
        (VaultError::KeysMissing { name: text() }, INTEGRITY),
        (VaultError::NotAllAnswered { why: text() }, UNAVAILABLE),
        (VaultError::MarkExpired { name: text() }, UNAVAILABLE),
        (VaultError::ObjectsGone { name: text(), count: 1, example: text() }, UNAVAILABLE),
        (VaultError::Vanished { what: text() }, FAILED),
        (VaultError::SameRepository { name: text(), other: text() }, USAGE),
        (VaultError::NoRepository, USAGE),
        (VaultError::WorkerLost, FAILED),
    ]);
    check([
        (RetentionError::Repository { name: text(), source: Arc::new(damaged()) }, INTEGRITY),
        (RetentionError::Vault(vault_of(full())), UNAVAILABLE),
        (
            RetentionError::ClocksDisagree { name: text(), store: jiff::Timestamp::MIN, ours: jiff::Timestamp::MAX },
            FAILED,
        ),
    ]);
    check([
        (VerifyError::Repository { name: text(), source: Arc::new(full()) }, UNAVAILABLE),
        (VerifyError::Vault(vault_of(damaged())), INTEGRITY),
        (VerifyError::UnknownBackup { label: text() }, NOT_FOUND),
    ]);
}

#[test]
fn errors_of_the_configuration() {
    check([
        (ConfigError::Nowhere(Vec::new()), USAGE),
        (ConfigError::Unreadable { path: path(), source: io_error() }, USAGE),
        (ConfigError::Line { path: path(), line: 1, message: text() }, USAGE),
        (ConfigError::Whole { path: path(), message: text() }, USAGE),
    ]);
    check([
        (KeySourceError::File { path: path(), source: not_found() }, USAGE),
        (KeySourceError::Exposed { path: path(), mode: 0o644 }, USAGE),
        (KeySourceError::Variable(text()), USAGE),
        (KeySourceError::Command(text()), USAGE),
        (KeySourceError::Shape(text()), USAGE),
    ]);
    check([
        (PasswordError::File { path: path(), source: not_found() }, USAGE),
        (PasswordError::Variable(text()), USAGE),
    ]);
    check([
        (ConninfoError::Syntax(text()), USAGE),
        (ConninfoError::UnknownKey { key: text(), nearest: None }, USAGE),
        (ConninfoError::BadValue { key: "port", problem: text() }, USAGE),
    ]);
}

#[test]
fn errors_of_a_postgresql_connection() {
    let host = text;
    let many = |errors| ReplicationError::NoServer(errors);
    let tls = || ReplicationError::Tls(PemFileError::new("sslrootcert", &path(), "x").into());
    check([
        (conninfo(), USAGE),
        (ReplicationError::Connect { host: host(), source: io_error() }, UNAVAILABLE),
        (ReplicationError::TimedOut { host: host(), limit: Duration::from_secs(1) }, UNAVAILABLE),
        (tls(), USAGE),
        (ReplicationError::Handshake { host: host(), problem: text() }, FAILED),
        (ReplicationError::HandshakeCut { host: host(), source: io_error() }, UNAVAILABLE),
        (ReplicationError::Login { host: host(), problem: text() }, FAILED),
        (refused("57P03"), UNAVAILABLE),
        (refused("28P01"), FAILED),
        (ReplicationError::Protocol(MessageError::Length { tag: 'x', len: 0 }), FAILED),
        (ReplicationError::UnexpectedAnswer("x"), FAILED),
        (unavailable(), UNAVAILABLE),
        (ReplicationError::WrongSession { host: host(), wanted: "primary" }, UNAVAILABLE),
        (many(vec![conninfo(), unavailable()]), UNAVAILABLE),
        (many(vec![conninfo(), refused("28P01")]), FAILED),
        (many(vec![conninfo()]), FAILED),
    ]);
    check([
        (SqlError::Connect(conninfo()), USAGE),
        (SqlError::Connect(unavailable()), UNAVAILABLE),
        (SqlError::Connect(refused("28P01")), FAILED),
        (SqlError::Unexpected("x"), FAILED),
    ]);
}

#[test]
fn errors_of_a_postgresql_archive() {
    check([
        (archive_of(damaged()), INTEGRITY),
        (archive_of(full()), UNAVAILABLE),
        (ArchiveError::SegmentGone { name: text() }, FAILED),
        (
            ArchiveError::CopiesDiffer {
                name: text(),
                at: Lsn::new(1),
                one: BeginningSource::Spool,
                other: BeginningSource::Tail,
            },
            INTEGRITY,
        ),
    ]);
    let differs = || IngestError::ContentDiffers { name: text(), place: text() };
    let (ours, theirs) = (SystemId::new(1), SystemId::new(2));
    check([
        (differs(), CONFLICT),
        (IngestError::WrongSystem { name: text(), found: ours, expected: theirs }, FAILED),
        (IngestError::WrongSize { name: text(), found: 1, expected: 2 }, FAILED),
        (IngestError::NotWhole { name: text(), found: 1 }, FAILED),
        (IngestError::File(WalFileError::Name(text())), FAILED),
        (IngestError::File(WalFileError::NotAFile(path())), FAILED),
        (IngestError::Archive(archive_of(damaged())), INTEGRITY),
        (IngestError::Archive(archive_of(full())), UNAVAILABLE),
    ]);
    check([
        (ArchivePushError::Ingest(differs()), CONFLICT),
        (ArchivePushError::Ingest(IngestError::Archive(archive_of(full()))), UNAVAILABLE),
        (ArchivePushError::Refused { why: text(), transient: true }, UNAVAILABLE),
        (ArchivePushError::Refused { why: text(), transient: false }, FAILED),
    ]);
    check([
        (ArchiveGetError::Name(text()), USAGE),
        (ArchiveGetError::Hole { name: segment(), later: segment() }, INTEGRITY),
        (ArchiveGetError::Archive(archive_of(full())), UNAVAILABLE),
        (ArchiveGetError::Archive(archive_of(damaged())), INTEGRITY),
        (ArchiveGetError::Write(durable_error()), FAILED),
        (ArchiveGetError::WorkerLost, FAILED),
    ]);
    check([
        (IndexError::Absent(path()), NOT_FOUND),
        (IndexError::Locked(path()), UNAVAILABLE),
        (IndexError::Damaged { dir: path(), what: text() }, INTEGRITY),
        (IndexError::OtherRepository { dir: path(), found: text(), expected: text() }, FAILED),
        (IndexError::OtherFormat { dir: path(), found: 1, expected: 2 }, FAILED),
        (IndexError::MalformedValue("x"), INTEGRITY),
        (IndexError::File { what: "read", path: path(), source: io_error() }, UNAVAILABLE),
    ]);
    check([
        (ReindexError::Index(IndexError::Absent(path())), NOT_FOUND),
        (ReindexError::Archive(archive_of(damaged())), INTEGRITY),
    ]);
}

#[test]
fn errors_of_receiving_and_of_backups() {
    let (ours, theirs) = (SystemId::new(1), SystemId::new(2));
    let size = || SegmentSize::new(1 << 24).unwrap();
    let differs = || IngestError::ContentDiffers { name: text(), place: text() };
    check([
        (ReceiveError::Replication(conninfo()), USAGE),
        (ReceiveError::Archive(archive_of(damaged())), INTEGRITY),
        (ReceiveError::Ingest(differs()), CONFLICT),
        (ReceiveError::Spool(SpoolError::Durable(durable_error())), FAILED),
        (ReceiveError::Spool(wrong_spool_key()), INTEGRITY),
        (ReceiveError::Spool(SpoolKeyError::NotConfigured { dir: path() }.into()), USAGE),
        (ReceiveError::WrongSystem { host: text(), found: ours, expected: theirs }, FAILED),
        (ReceiveError::WrongSize { found: size(), expected: size() }, FAILED),
        (ReceiveError::Assemble { timeline: timeline(), source: AssembleError::Differs { at: Lsn::new(1) } }, FAILED),
        (ReceiveError::Diverged { timeline: timeline(), at: Lsn::new(1), spool_file: path() }, INTEGRITY),
        (
            ReceiveError::Forked {
                server: String::new(),
                timeline: timeline(),
                at: Lsn::new(1),
                archived_until: Lsn::new(2),
                resolved: false,
            },
            INTEGRITY,
        ),
        (ReceiveError::ServerBehind { timeline: timeline(), at: Lsn::new(1) }, UNAVAILABLE),
        (ReceiveError::History(TimelineHistory::parse(timeline(), "x").unwrap_err()), FAILED),
        (ReceiveError::WrongHistory(timeline()), FAILED),
        (ReceiveError::WorkerLost, FAILED),
    ]);
    check([
        (BackupError::Server(conninfo()), USAGE),
        (BackupError::Server(unavailable()), UNAVAILABLE),
        (BackupError::Archive(archive_of(damaged())), INTEGRITY),
        (BackupError::Pack(pack()), FAILED),
        (BackupError::Ingest(IngestError::Archive(archive_of(damaged()))), INTEGRITY),
        (BackupError::Assemble(AssembleError::Differs { at: Lsn::new(1) }), FAILED),
        (BackupError::WrongCluster { server: ours, archived: theirs }, FAILED),
        (BackupError::FileMissing("backup_label"), FAILED),
        (BackupError::UnusableFile { file: text(), why: text() }, FAILED),
        (BackupError::Promoted { from: timeline(), to: timeline() }, UNAVAILABLE),
        (
            BackupError::WalMissing {
                missing: segment(),
                stop: Lsn::new(1),
                waited: Duration::from_secs(1),
                advice: "x",
            },
            FAILED,
        ),
        (BackupError::BrokenWal { segment: segment(), at: Lsn::new(1), why: text() }, INTEGRITY),
        (BackupError::WorkerStart(io_error()), FAILED),
    ]);
}

fn would_be_replayed_into() -> DestinationError {
    DestinationError::WouldBeReplayedInto {
        tablespace: 1,
        lsn: Lsn::new(1),
        when: text(),
        location: text(),
        found: text(),
    }
}

#[test]
fn errors_of_a_postgresql_restore() {
    use restore::RestoreError;
    let place = RestoreError::Place;
    let destination = |error| RestoreError::Place(PlacementError::Destination(error));
    check([
        (RestoreError::UnknownBackup { label: text() }, NOT_FOUND),
        (RestoreError::UnknownTimeline { timeline: timeline() }, NOT_FOUND),
        (RestoreError::DefectiveBackup { label: text(), defects: text(), options: text() }, INTEGRITY),
        (RestoreError::AmbiguousName { name: text(), positions: vec![Lsn::MAX] }, USAGE),
        (RestoreError::EmptyArchive { cluster: text() }, NOT_FOUND),
        (RestoreError::Index(IndexError::Locked(path())), UNAVAILABLE),
        (RestoreError::Archive(archive_of(damaged())), INTEGRITY),
        (RestoreError::WorkerLost, FAILED),
        (place(PlacementError::Durable(durable_error())), FAILED),
        (place(PlacementError::Archive(archive_of(full()))), UNAVAILABLE),
        (place(PlacementError::Pack(pack())), INTEGRITY),
        (place(PlacementError::PackMissing(PackId::random().unwrap())), INTEGRITY),
        (place(PlacementError::Manifest { label: text(), what: "x" }), INTEGRITY),
        (place(PlacementError::HashDiffers { path: path() }), INTEGRITY),
        (place(PlacementError::WorkerLost), FAILED),
        (destination(DestinationError::NotEmpty { path: path(), found: text() }), USAGE),
        (destination(DestinationError::UnfinishedRestore { path: path() }), USAGE),
        (destination(DestinationError::OtherCluster { path: path(), found: text() }), USAGE),
        (destination(DestinationError::Running { path: path(), pid: 1 }), USAGE),
        (destination(DestinationError::Busy { path: path() }), USAGE),
        (
            destination(DestinationError::TablespaceOccupied { oid: 1, path: path(), found: text(), location: text() }),
            USAGE,
        ),
        (destination(DestinationError::UnknownMapping { old: path(), known: text() }), USAGE),
        (destination(DestinationError::BadPath { path: path() }), USAGE),
        (destination(DestinationError::BadWaldir { path: path(), why: "it is not empty" }), USAGE),
        (destination(DestinationError::Overlap { first: path(), second: path() }), USAGE),
        (destination(would_be_replayed_into()), UNREACHABLE),
        (destination(DestinationError::NoSpace { path: path(), needed: 2, free: 1 }), FAILED),
        (destination(DestinationError::Io { what: "read", path: path(), source: io_error() }), FAILED),
    ]);
}

#[test]
fn errors_of_a_selective_restore() {
    use SelectiveRestoreError as Error;
    let table = || TableName::parse("x", "public").unwrap();
    check([
        (Error::Exists { what: "database", name: text(), server: text() }, USAGE),
        (Error::AbsentDatabase { name: text(), hint: text() }, NOT_FOUND),
        (Error::AbsentTable { name: table(), database: text(), hint: text() }, NOT_FOUND),
        (Error::NotATable { name: table(), what: "view" }, USAGE),
        (Error::MissingInServer { server: text(), what: "role", name: text(), advice: "x" }, NOT_FOUND),
        (Error::UnusableServer { server: text(), why: text() }, FAILED),
        (Error::Tablespace { path: text(), at: Lsn::new(1), backup: text() }, UNREACHABLE),
        (Error::NoSpace { dir: path(), free: 1, needed: 2, files: 3 }, FAILED),
        (Error::Root { parent: path() }, FAILED),
        (Error::NoTools { major: 17 }, FAILED),
        (Error::Tool { name: text(), said: text() }, FAILED),
        (Error::Held { staged: text(), name: text(), sessions: text() }, FAILED),
        (Error::WalUnusable(text()), INTEGRITY),
        (Error::Pages(text()), INTEGRITY),
        (Error::Conninfo(text()), USAGE),
        (Error::NoSuperuser(text()), FAILED),
        (Error::NoRandomness, FAILED),
        (Error::Io { what: "read", path: path(), source: io_error() }, FAILED),
        (Error::Sql(SqlError::Connect(conninfo())), USAGE),
        (Error::Sql(SqlError::Connect(unavailable())), UNAVAILABLE),
        (Error::Sql(SqlError::Unexpected("x")), FAILED),
        (Error::Start(ServerStartError::NoPrograms { major: 17, looked: text() }), FAILED),
        (Error::Pack(pack()), INTEGRITY),
        (Error::Restore(restore::RestoreError::UnknownBackup { label: text() }), NOT_FOUND),
        (Error::Restore(restore::RestoreError::Archive(archive_of(full()))), UNAVAILABLE),
    ]);
}

#[test]
fn errors_of_other_postgresql_commands() {
    check([
        (log::LogError::EmptyArchive { cluster: text() }, NOT_FOUND),
        (log::LogError::UnknownTimeline { timeline: timeline() }, NOT_FOUND),
        (log::LogError::Index(IndexError::Absent(path())), NOT_FOUND),
        (log::LogError::Archive(archive_of(full())), UNAVAILABLE),
        (log::LogError::WorkerLost, FAILED),
    ]);
    check([
        (CleanupError::Objects(RetentionError::Vault(vault_of(full()))), UNAVAILABLE),
        (CleanupError::Archive(archive_of(damaged())), INTEGRITY),
        (CleanupError::Index(ReindexError::Index(IndexError::Locked(path()))), UNAVAILABLE),
        (CleanupError::Seal(SealError::FrameSize(3)), FAILED),
        (CleanupError::UnknownBackup { label: text() }, NOT_FOUND),
        (CleanupError::Pinned { label: text() }, USAGE),
        (CleanupError::OnlyBackup { label: text() }, USAGE),
        (CleanupError::WorkerLost, FAILED),
    ]);
    check([
        (ClusterVerifyError::Objects(VerifyError::UnknownBackup { label: text() }), NOT_FOUND),
        (ClusterVerifyError::Archive(archive_of(damaged())), INTEGRITY),
        (ClusterVerifyError::Index(IndexError::MalformedValue("x")), INTEGRITY),
    ]);
}

#[test]
fn errors_of_redis() {
    use redis::log::error::LogError;
    use redis::restore::RestoreError;
    let server = text;
    let rdb = || RdbError::Truncated { at: 1 };
    let resp = || RespError::Endless { at: 1, limit: 1 };
    check([
        (RedisError::Socket { server: server(), source: io_error() }, UNAVAILABLE),
        (RedisError::Closed { server: server(), during: "x" }, UNAVAILABLE),
        (RedisError::Silent { server: server(), during: "x", seconds: 1 }, UNAVAILABLE),
        (RedisError::Tls(RedisTlsError::NoRoots), USAGE),
        (RedisError::Handshake { server: server(), problem: text() }, USAGE),
        (RedisError::Login { server: server(), message: text() }, FAILED),
        (RedisError::NotReady { server: server(), message: text() }, UNAVAILABLE),
        (RedisError::Refused { server: server(), command: text(), message: text() }, FAILED),
        (RedisError::Protocol { server: server(), why: text() }, FAILED),
        (RedisError::UnknownMaster { sentinels: text(), master: text() }, USAGE),
        (RedisError::TwoMasters { masters: Vec::new(), master: text() }, UNAVAILABLE),
        (RedisError::Sentinel(text()), UNAVAILABLE),
    ]);
    check([
        (LogError::Nothing { instance: text() }, NOT_FOUND),
        (LogError::Vault(vault_of(full())), UNAVAILABLE),
        (LogError::Stopped, FAILED),
    ]);
    check([
        (RestoreError::FolderNotEmpty { dir: path(), found: text() }, USAGE),
        (RestoreError::NotEnoughSpace { dir: path(), needed: 2, free: 1 }, FAILED),
        (RestoreError::OpenFolder { path: path(), source: io_error() }, FAILED),
        (RestoreError::Write(durable_error()), FAILED),
        (RestoreError::Rdb(rdb()), INTEGRITY),
        (RestoreError::Stream(resp()), INTEGRITY),
        (RestoreError::NoCutInStream, FAILED),
        (RestoreError::StartServer { program: path(), source: not_found() }, FAILED),
        (RestoreError::NotAServerProgram { program: path(), output: text() }, USAGE),
        (RestoreError::ServerExited { program: path(), log: text() }, FAILED),
        (RestoreError::Server(RedisError::Sentinel(text())), UNAVAILABLE),
        (RestoreError::Server(RedisError::Tls(RedisTlsError::NoRoots)), USAGE),
        (RestoreError::Vault(vault_of(damaged())), INTEGRITY),
        (RestoreError::Vault(vault_of(full())), UNAVAILABLE),
        (RestoreError::StreamTooShort { end: 1, target: 2 }, FAILED),
        (RestoreError::WorkerPanicked, FAILED),
        (RestoreError::ContentDiffers(text()), INTEGRITY),
    ]);
    check_snapshot_errors(rdb, resp);
    check_redis_restore_errors();
}

fn check_redis_restore_errors() {
    use redis::restore::RestoreError;
    let no_space = || RestoreError::NotEnoughSpace { dir: path(), needed: 2, free: 1 };
    let no_server = || RestoreError::NotAServerProgram { program: path(), output: text() };
    let position = || "5".parse::<StreamPosition>().unwrap();
    check([
        (RedisPlanError::Archive { instance: text(), source: vault_of(full()) }, UNAVAILABLE),
        (RedisPlanError::Archive { instance: text(), source: vault_of(damaged()) }, INTEGRITY),
        (RedisPlanError::UnknownSnapshot { label: text(), instance: text() }, NOT_FOUND),
        (RedisPlanError::UnknownPosition { position: position(), instance: text() }, NOT_FOUND),
        (RedisPlanError::AmbiguousPosition { positions: vec![text()] }, USAGE),
    ]);
    check([
        (RedisDestinationError::NoProgram { program: "x", origin: text() }, USAGE),
        (RedisDestinationError::UnknownVersion { version: text() }, USAGE),
        (RedisDestinationError::Program(no_server()), USAGE),
        (RedisDestinationError::RelativePath(io_error()), FAILED),
        (RedisDestinationError::Space { dir: path(), source: no_space() }, FAILED),
        (RedisDestinationError::ReadConf { path: path(), source: io_error() }, FAILED),
    ]);
}

#[test]
fn errors_of_joint_commands() {
    let cluster = |source| JointError::PlanPostgres { cluster: text(), source: Box::new(source) };
    let instance = |source| JointError::PlanRedis { instance: text(), source };
    let read = |source| JointError::LastCommand(LastCommandError::Read { instance: text(), source });
    let parse = RespError::Endless { at: 1, limit: 1 };
    let no_space = redis::restore::RestoreError::NotEnoughSpace { dir: path(), needed: 2, free: 1 };
    check([
        (cluster(restore::RestoreError::EmptyArchive { cluster: text() }), NOT_FOUND),
        (cluster(restore::RestoreError::Archive(archive_of(full()))), UNAVAILABLE),
        (instance(vault_of(full())), UNAVAILABLE),
        (instance(vault_of(damaged())), INTEGRITY),
        (JointError::Destination(DestinationError::Io { what: "read", path: path(), source: io_error() }), FAILED),
        (read(vault_of(full())), UNAVAILABLE),
        (JointError::LastCommand(LastCommandError::Parse { instance: text(), source: parse }), INTEGRITY),
        (JointError::NestedFolders { pgdata: path(), redis_dir: path() }, USAGE),
        (JointError::FolderNotEmpty { option: "--pgdata", dir: path(), found: text() }, USAGE),
        (JointError::ReadFolder { path: path(), source: io_error() }, FAILED),
        (JointError::SharedFileSystem { cluster: text(), instance: text(), source: Box::new(no_space) }, FAILED),
    ]);
}

fn check_snapshot_errors(rdb: fn() -> RdbError, resp: fn() -> RespError) {
    let replid = "0123456789abcdef0123456789abcdef01234567".parse::<redis::wire::ReplicationId>().unwrap();
    check([
        (SnapshotError::Server(RedisError::Sentinel(text())), UNAVAILABLE),
        (SnapshotError::Server(RedisError::Tls(RedisTlsError::NoRoots)), USAGE),
        (SnapshotError::Vault(vault_of(damaged())), INTEGRITY),
        (SnapshotError::Vault(VaultError::NoRepository), USAGE),
        (SnapshotError::Seal(SealError::FrameSize(3)), FAILED),
        (SnapshotError::Rdb { origin: text(), source: rdb() }, INTEGRITY),
        (SnapshotError::Stream(resp()), INTEGRITY),
        (SnapshotError::ReadFile { path: path(), source: not_found() }, NOT_FOUND),
        (SnapshotError::ReadFile { path: path(), source: io_error() }, FAILED),
        (SnapshotError::Spool(SpoolError::InUse { dir: path(), pid: None, instead: "x" }), FAILED),
        (SnapshotError::Spool(SpoolError::Durable(durable_error())), UNAVAILABLE),
        (SnapshotError::Spool(wrong_spool_key()), INTEGRITY),
        (SnapshotError::UnsuitableServer { server: text(), why: text() }, UNAVAILABLE),
        (SnapshotError::StillUploading { replid, first: 1 }, UNAVAILABLE),
        (SnapshotError::SpoolFileChanged { replid, first: 1 }, FAILED),
        (SnapshotError::WorkerPanicked, FAILED),
    ]);
}

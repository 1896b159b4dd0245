//! How a command ends: one table from every flow's errors to the exit codes of the manual, and the line that says what was wrong.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::retry::ErrorClass;
use crate::config::{ConfigError, KeySourceError, PasswordError};
use crate::postgres::archive::ingest::IngestError;
use crate::postgres::archive::reindex::ReindexError;
use crate::postgres::archive_get::{self, ArchiveGetError};
use crate::postgres::archive_push::ArchivePushError;
use crate::postgres::restore::destination::DestinationError;
use crate::postgres::restore::placement::PlacementError;
use crate::postgres::restore::selective::SelectiveRestoreError as SingleError;
use crate::postgres::verify::ClusterVerifyError;
use crate::postgres::wire::ConninfoError;
use crate::postgres::{archive, backup, index, log, receive, restore, retention, sql, wire};
use crate::redis;
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::log::error::LogError;
use crate::vault;
use crate::vault::repository;
use crate::vault::retention::RetentionError;

/// The exit codes that scripts rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum CliExitCode {
    Done = 0,
    /// Failed, or unhealthy.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The target cannot be reached.
    Unreachable = 3,
    NotFound = 4,
    /// The repository or the network is not available; worth trying again.
    Unavailable = 5,
    /// Damaged, forged, or the wrong key.
    Integrity = 6,
}

impl CliExitCode {
    /// Which of several codes a command ends with, the highest: "worth trying again" only if nothing but that is wrong.
    pub(super) const fn severity(self) -> u8 {
        match self {
            CliExitCode::Done => 0,
            CliExitCode::Unavailable => 1,
            CliExitCode::NotFound | CliExitCode::Unreachable => 2,
            CliExitCode::Failed => 3,
            CliExitCode::Usage => 4,
            CliExitCode::Integrity => 5,
        }
    }
}

/// What failed of several things that are done one after the other: it does not keep the rest from being done, and the worst ends the command.
#[derive(Debug, Default)]
pub(super) struct FailureTally {
    several: bool,
    worst: Option<anyhow::Error>,
}

impl FailureTally {
    /// Of so many things. What fails of several is said at once.
    pub(super) const fn new(count: usize) -> FailureTally {
        FailureTally { several: count > 1, worst: None }
    }

    /// What came of one of them, if it did not fail.
    pub(super) fn record<T>(&mut self, result: anyhow::Result<T>) -> Option<T> {
        let error = match result {
            Ok(done) => return Some(done),
            Err(error) => error,
        };
        if self.several {
            tracing::error!(error = error_line(&error), "going on with the rest");
        }
        let worse = |before: &anyhow::Error| exit_code(&error).severity() > exit_code(before).severity();
        if self.worst.as_ref().is_none_or(worse) {
            self.worst = Some(error);
        }
        None
    }

    /// Ends with the worst that was noted; with this code if nothing was, or nothing worse.
    pub(super) fn finish(self, otherwise: CliExitCode) -> anyhow::Result<CliExitCode> {
        match self.worst {
            Some(error) if exit_code(&error).severity() >= otherwise.severity() => Err(error),
            _ => Ok(otherwise),
        }
    }
}

/// An error that the edge itself found.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct CliError {
    pub(super) code: CliExitCode,
    pub(super) message: String,
}

impl CliError {
    /// Something typed or configured that cannot be meant.
    pub(super) fn usage(message: impl Into<String>) -> CliError {
        CliError { code: CliExitCode::Usage, message: message.into() }
    }
}

/// What an error ends a command with. To PostgreSQL, every code up to 125 of a `restore_command` means that the file does not exist, which
/// ends recovery and promotes the server (`RestoreArchivedFile`, xlogarchive.c); so there, trouble has a code of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExitCodeRule {
    /// As the table says.
    FromTable,
    /// `archive-get` in a restore: above 125, so that PostgreSQL stops, and no signal's 128 + n.
    StopRecovery,
    /// `archive-get --standby`: as if the file were not there, so that the standby asks again.
    AskAgain,
}

impl ExitCodeRule {
    /// Decided from the bare arguments, because it must hold even if they cannot be parsed.
    pub(super) fn from_arguments(arguments: &[OsString]) -> ExitCodeRule {
        let has = |word: &str| arguments.iter().any(|argument| argument == word);
        match (has("archive-get"), has("--standby")) {
            (false, _) => ExitCodeRule::FromTable,
            (true, false) => ExitCodeRule::StopRecovery,
            (true, true) => ExitCodeRule::AskAgain,
        }
    }

    /// The exit code.
    pub(super) fn exit_code(self, code: CliExitCode) -> u8 {
        match self {
            ExitCodeRule::FromTable => code as u8,
            ExitCodeRule::StopRecovery => archive_get::failure_exit_code(code as u8, false),
            ExitCodeRule::AskAgain => archive_get::failure_exit_code(code as u8, true),
        }
    }
}

/// What clap says of a wrong line, in one: the first lines up to the usage, without its own prefix.
pub(super) fn clap_error_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let more = |line: &&str| !line.starts_with("For more information");
    let said: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Usage:")).filter(more).collect();
    let said = join_lines(&said.join(" "));
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let said = said.replace(" tip: ", "; ");
    format!("{said}; see --help")
}

/// The code for an error: that of the outermost cause which has one.
pub(super) fn exit_code(error: &anyhow::Error) -> CliExitCode {
    error.chain().find_map(exit_code_of_cause).unwrap_or(CliExitCode::Failed)
}

/// The table. `None` for an error that says nothing by itself; what it wraps may.
fn exit_code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<CliExitCode> {
    if let Some(failure) = cause.downcast_ref::<CliError>() {
        return Some(failure.code);
    }
    if cause.is::<ConfigError>()
        || cause.is::<KeySourceError>()
        || cause.is::<ConninfoError>()
        || cause.is::<PasswordError>()
    {
        return Some(CliExitCode::Usage);
    }
    if let Some(error) = cause.downcast_ref::<repository::RepositoryError>() {
        return Some(exit_code_of_repository(error));
    }
    if let Some(error) = cause.downcast_ref::<Arc<repository::RepositoryError>>() {
        return Some(exit_code_of_repository(error));
    }
    if let Some(error) = cause.downcast_ref::<archive::ArchiveError>() {
        return Some(exit_code_of_archive(error));
    }
    if let Some(error) = cause.downcast_ref::<vault::VaultError>() {
        return Some(of_vault(error));
    }
    if let Some(error) = cause.downcast_ref::<IngestError>() {
        return Some(exit_code_of_ingest(error));
    }
    if let Some(error) = cause.downcast_ref::<ArchivePushError>() {
        return Some(match error {
            ArchivePushError::Ingest(error) => exit_code_of_ingest(error),
            ArchivePushError::Refused { .. } => exit_code_of_class(error.class()),
        });
    }
    if let Some(error) = cause.downcast_ref::<backup::BackupError>() {
        return Some(exit_code_of_backup(error));
    }
    if let Some(error) = cause.downcast_ref::<ArchiveGetError>() {
        return Some(match error {
            ArchiveGetError::Archive(error) => exit_code_of_archive(error),
            ArchiveGetError::Hole { .. } => CliExitCode::Integrity,
            ArchiveGetError::Name(_) => CliExitCode::Usage,
            other => exit_code_of_class(other.class()),
        });
    }
    if let Some(error) = cause.downcast_ref::<restore::RestoreError>() {
        return Some(exit_code_of_restore(error));
    }
    if let Some(error) = cause.downcast_ref::<log::LogError>() {
        return Some(exit_code_of_log(error));
    }
    if let Some(error) = cause.downcast_ref::<SingleError>() {
        return Some(exit_code_of_selective_restore(error));
    }
    if let Some(error) = cause.downcast_ref::<ClusterVerifyError>() {
        return Some(exit_code_of_verify(error));
    }
    if let Some(error) = cause.downcast_ref::<receive::ReceiveError>() {
        return Some(exit_code_of_receive(error));
    }
    if let Some(error) = cause.downcast_ref::<index::IndexError>() {
        return Some(exit_code_of_index(error));
    }
    if let Some(error) = cause.downcast_ref::<ReindexError>() {
        return Some(exit_code_of_reindex(error));
    }
    if let Some(error) = cause.downcast_ref::<retention::CleanupError>() {
        return Some(exit_code_of_retention(error));
    }
    if let Some(error) = cause.downcast_ref::<RetentionError>() {
        return Some(of_retention_objects(error));
    }
    if let Some(error) = cause.downcast_ref::<vault::verify::VerifyError>() {
        return Some(of_verify_objects(error));
    }
    if let Some(error) = cause.downcast_ref::<LogError>() {
        return Some(of_instance_log(error));
    }
    if let Some(error) = cause.downcast_ref::<wire::ReplicationError>() {
        return Some(exit_code_of_replication(error));
    }
    if let Some(error) = cause.downcast_ref::<sql::SqlError>() {
        return Some(match error {
            sql::SqlError::Connect(error) => exit_code_of_replication(error),
            other => exit_code_of_class(other.class()),
        });
    }
    exit_code_of_redis_cause(cause)
}

/// The errors of Redis instances.
fn exit_code_of_redis_cause(cause: &(dyn std::error::Error + 'static)) -> Option<CliExitCode> {
    let by_snapshot = cause.downcast_ref::<SnapshotError>().map(exit_code_of_snapshot);
    let by_restore = || cause.downcast_ref::<redis::restore::RestoreError>().map(exit_code_of_redis_restore);
    by_snapshot.or_else(by_restore).or_else(|| cause.downcast_ref::<redis::wire::RedisError>().map(exit_code_of_redis))
}

fn exit_code_of_class(class: ErrorClass) -> CliExitCode {
    match class {
        ErrorClass::Transient => CliExitCode::Unavailable,
        ErrorClass::Permanent | ErrorClass::Conflict => CliExitCode::Failed,
    }
}

fn exit_code_of_repository(error: &repository::RepositoryError) -> CliExitCode {
    use repository::RepositoryError;
    match error {
        RepositoryError::NotFound { .. } | RepositoryError::NoRepository { .. } => CliExitCode::NotFound,
        RepositoryError::Unavailable { .. } | RepositoryError::Full { .. } => CliExitCode::Unavailable,
        RepositoryError::Corrupt { .. } => CliExitCode::Integrity,
        RepositoryError::RepositoryExists { .. } | RepositoryError::BadUrl { .. } => CliExitCode::Usage,
        RepositoryError::Denied { .. } | RepositoryError::NewerFormat { .. } => CliExitCode::Failed,
    }
}

fn exit_code_of_archive(error: &archive::ArchiveError) -> CliExitCode {
    match error {
        archive::ArchiveError::Vault(error) => of_vault(error),
        error if error.is_integrity() => CliExitCode::Integrity,
        other => exit_code_of_class(other.class()),
    }
}

fn of_vault(error: &vault::VaultError) -> CliExitCode {
    use vault::VaultError;
    match error {
        error if error.is_integrity() => CliExitCode::Integrity,
        VaultError::Repository { source, .. } => exit_code_of_repository(source),
        VaultError::KeyNotConfigured { .. } | VaultError::NoRepository => CliExitCode::Usage,
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_ingest(error: &IngestError) -> CliExitCode {
    match error {
        IngestError::Archive(error) => exit_code_of_archive(error),
        IngestError::NotTheSegment(_) => CliExitCode::Integrity,
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_restore(error: &restore::RestoreError) -> CliExitCode {
    use restore::RestoreError;
    match error {
        RestoreError::UnknownBackup { .. }
        | RestoreError::UnknownTimeline { .. }
        | RestoreError::EmptyArchive { .. } => CliExitCode::NotFound,
        RestoreError::Unreachable { .. } => CliExitCode::Unreachable,
        RestoreError::Index(error) => exit_code_of_index(error),
        RestoreError::Archive(error) => exit_code_of_archive(error),
        RestoreError::Manifest { .. } | RestoreError::Label { .. } => CliExitCode::Integrity,
        RestoreError::Place(error) => exit_code_of_placement(error),
        RestoreError::WorkerLost => CliExitCode::Failed,
    }
}

fn exit_code_of_log(error: &log::LogError) -> CliExitCode {
    use log::LogError;
    match error {
        LogError::EmptyArchive { .. } | LogError::UnknownTimeline { .. } => CliExitCode::NotFound,
        LogError::Index(error) => exit_code_of_index(error),
        LogError::Archive(error) => exit_code_of_archive(error),
        LogError::WorkerLost => CliExitCode::Failed,
    }
}

fn exit_code_of_selective_restore(error: &SingleError) -> CliExitCode {
    match error {
        SingleError::Exists { .. } | SingleError::NotATable { .. } | SingleError::Conninfo(_) => CliExitCode::Usage,
        SingleError::AbsentDatabase { .. } | SingleError::AbsentTable { .. } | SingleError::MissingInServer { .. } => {
            CliExitCode::NotFound
        }
        SingleError::Unreachable(_) | SingleError::Tablespace { .. } => CliExitCode::Unreachable,
        SingleError::WalUnusable(_) | SingleError::Pages(_) | SingleError::Pack(_) => CliExitCode::Integrity,
        SingleError::Restore(error) => exit_code_of_restore(error),
        SingleError::Sql(sql::SqlError::Connect(error)) => exit_code_of_replication(error),
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_placement(error: &PlacementError) -> CliExitCode {
    match error {
        PlacementError::Archive(error) => exit_code_of_archive(error),
        PlacementError::Pack(error) if error.class() == ErrorClass::Transient => CliExitCode::Unavailable,
        PlacementError::Pack(_) | PlacementError::PackMissing(_) | PlacementError::Manifest { .. } => {
            CliExitCode::Integrity
        }
        PlacementError::HashDiffers { .. } | PlacementError::Control(_) => CliExitCode::Integrity,
        PlacementError::Destination(DestinationError::Io { .. } | DestinationError::NoSpace { .. })
        | PlacementError::Durable(_)
        | PlacementError::WorkerLost => CliExitCode::Failed,
        PlacementError::Destination(DestinationError::WouldBeReplayedInto { .. }) => CliExitCode::Unreachable,
        PlacementError::Destination(_) => CliExitCode::Usage,
    }
}

fn exit_code_of_backup(error: &backup::BackupError) -> CliExitCode {
    use backup::BackupError;
    match error {
        BackupError::Server(error) => exit_code_of_replication(error),
        BackupError::Archive(error) => exit_code_of_archive(error),
        BackupError::Ingest(error) => exit_code_of_ingest(error),
        error if error.is_integrity() => CliExitCode::Integrity,
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_receive(error: &receive::ReceiveError) -> CliExitCode {
    use receive::ReceiveError;
    match error {
        ReceiveError::Replication(error) => exit_code_of_replication(error),
        ReceiveError::Archive(error) => exit_code_of_archive(error),
        ReceiveError::Ingest(error) => exit_code_of_ingest(error),
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_snapshot(error: &SnapshotError) -> CliExitCode {
    match error {
        SnapshotError::Server(error) => exit_code_of_redis(error),
        SnapshotError::Vault(error) => of_vault(error),
        error if error.is_integrity() => CliExitCode::Integrity,
        SnapshotError::ReadFile { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            CliExitCode::NotFound
        }
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_redis_restore(error: &redis::restore::RestoreError) -> CliExitCode {
    use redis::restore::RestoreError;
    match error {
        RestoreError::Server(error) => exit_code_of_redis(error),
        RestoreError::Vault(error) => of_vault(error),
        error if error.is_integrity() => CliExitCode::Integrity,
        RestoreError::FolderNotEmpty { .. } | RestoreError::NotAServerProgram { .. } => CliExitCode::Usage,
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_redis(error: &redis::wire::RedisError) -> CliExitCode {
    match error {
        redis::wire::RedisError::Tls(_)
        | redis::wire::RedisError::Handshake { .. }
        | redis::wire::RedisError::UnknownMaster { .. } => CliExitCode::Usage,
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_retention(error: &retention::CleanupError) -> CliExitCode {
    match error {
        retention::CleanupError::Objects(error) => of_retention_objects(error),
        retention::CleanupError::Archive(error) => exit_code_of_archive(error),
        retention::CleanupError::Index(error) => exit_code_of_reindex(error),
        other => exit_code_of_class(other.class()),
    }
}

fn of_retention_objects(error: &RetentionError) -> CliExitCode {
    match error {
        RetentionError::Repository { source, .. } => exit_code_of_repository(source),
        RetentionError::Vault(error) => of_vault(error),
    }
}

fn of_verify_objects(error: &vault::verify::VerifyError) -> CliExitCode {
    use vault::verify::VerifyError;
    match error {
        VerifyError::Repository { source, .. } => exit_code_of_repository(source),
        VerifyError::Vault(error) => of_vault(error),
        VerifyError::UnknownBackup { .. } => CliExitCode::NotFound,
    }
}

fn of_instance_log(error: &LogError) -> CliExitCode {
    match error {
        LogError::Nothing { .. } => CliExitCode::NotFound,
        LogError::Vault(error) => of_vault(error),
        LogError::Stopped => exit_code_of_class(error.class()),
    }
}

fn exit_code_of_verify(error: &ClusterVerifyError) -> CliExitCode {
    match error {
        ClusterVerifyError::Objects(error) => of_verify_objects(error),
        ClusterVerifyError::Archive(error) => exit_code_of_archive(error),
        ClusterVerifyError::Index(error) => exit_code_of_index(error),
    }
}

fn exit_code_of_reindex(error: &ReindexError) -> CliExitCode {
    match error {
        ReindexError::Index(error) => exit_code_of_index(error),
        ReindexError::Archive(error) => exit_code_of_archive(error),
    }
}

fn exit_code_of_index(error: &index::IndexError) -> CliExitCode {
    use index::IndexError;
    match error {
        IndexError::Absent(_) => CliExitCode::NotFound,
        IndexError::Locked(_) => CliExitCode::Unavailable,
        IndexError::Damaged { .. } | IndexError::MalformedValue(_) => CliExitCode::Integrity,
        other => exit_code_of_class(other.class()),
    }
}

fn exit_code_of_replication(error: &wire::ReplicationError) -> CliExitCode {
    use wire::ReplicationError;
    match error {
        ReplicationError::Conninfo(_) | ReplicationError::Tls(_) => CliExitCode::Usage,
        other => exit_code_of_class(other.class()),
    }
}

/// The error in one line, outermost first: `what: cause; what to do next`. A cause that its parent has already quoted is left out.
pub(super) fn error_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let message = join_lines(&cause.to_string());
        if last.contains(&message) {
            continue;
        }
        if text.is_empty() {
            text.push_str(&message);
        } else {
            // Writing to a string cannot fail.
            let _written = write!(text, ": {message}");
        }
        last = message;
    }
    text
}

/// Foreign causes may bring line breaks and control characters along; a terminal and a log get none of them.
fn join_lines(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::Arc;

    use anyhow::anyhow;
    use clap::{CommandFactory, Parser};

    use super::{CliError, CliExitCode, ExitCodeRule, FailureTally, clap_error_line, error_line, exit_code};
    use crate::cli::args::command_line::CommandLine;
    use crate::config::ConfigError;
    use crate::postgres::wire;
    use crate::vault;
    use crate::vault::repository;

    #[test]
    fn each_cause_is_said_once_in_one_line() {
        let io = std::io::Error::from_raw_os_error(2);
        let unreadable = ConfigError::Unreadable { path: "/x.toml".into(), source: io };
        let error = anyhow::Error::from(unreadable).context("cannot check main");
        assert_eq!(
            error_line(&error),
            "cannot check main: cannot read the configuration /x.toml: No such file or directory (os error 2); name another with \
             --config, or make one with walkeep init"
        );
        assert_eq!(error_line(&anyhow!("one\n  two\x1b[31m").context("outer")), "outer: one two [31m");
    }

    #[test]
    fn trouble_of_a_restore_command_never_looks_like_a_missing_file() {
        let of = |line: &str| ExitCodeRule::from_arguments(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("walkeep list").exit_code(CliExitCode::Unavailable), 5);
        assert_eq!(of("walkeep archive-push x").exit_code(CliExitCode::Usage), 2);
        for line in ["walkeep archive-get a b", "walkeep --config x archive-get", "walkeep archive-get --nonsense"] {
            let code = of(line).exit_code(CliExitCode::Usage);
            assert!(code > 125 && code != 128 + 15, "{line}: {code}");
        }
        assert_eq!(of("walkeep archive-get --standby a b").exit_code(CliExitCode::Usage), 1);
    }

    #[test]
    fn the_worst_of_several_ends_the_command() {
        let fails = |code| Err::<(), _>(CliError { code, message: format!("{code:?}") }.into());
        let ends = |codes: &[CliExitCode], otherwise| {
            let mut failures = FailureTally::new(codes.len());
            codes.iter().for_each(|code| assert_eq!(failures.record(fails(*code)), None));
            assert_eq!(failures.record(Ok(5)), Some(5));
            failures.finish(otherwise).map_err(|error| error.to_string())
        };
        assert_eq!(ends(&[], CliExitCode::Unavailable), Ok(CliExitCode::Unavailable));
        assert_eq!(ends(&[CliExitCode::Unavailable], CliExitCode::Done), Err("Unavailable".into()));
        assert_eq!(
            ends(&[CliExitCode::Unavailable, CliExitCode::Integrity, CliExitCode::Usage], CliExitCode::Done),
            Err("Integrity".into())
        );
        assert_eq!(
            ends(&[CliExitCode::NotFound, CliExitCode::Unreachable], CliExitCode::Done),
            Err("NotFound".into()),
            "the first of two"
        );
        assert_eq!(ends(&[CliExitCode::Unavailable], CliExitCode::Failed), Ok(CliExitCode::Failed));
    }

    #[test]
    fn a_wrong_line_is_answered_in_one() {
        for (line, says) in [
            ("walkeep chekc", "unrecognized subcommand 'chekc'; a similar subcommand exists: 'check'; see --help"),
            (
                "walkeep check --jsn",
                "unexpected argument '--jsn' found; a similar argument exists: '--json'; see --help",
            ),
        ] {
            let error = CommandLine::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(clap_error_line(&error), says);
        }
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_outermost_known_cause_decides() {
        let nowhere = || anyhow::Error::from(ConfigError::Nowhere(Vec::new()));
        assert_eq!(exit_code(&nowhere()), CliExitCode::Usage);
        assert_eq!(exit_code(&nowhere().context("while doing that")), CliExitCode::Usage);
        assert_eq!(exit_code(&anyhow!("something")), CliExitCode::Failed);
        let damaged = || repository::RepositoryError::Corrupt {
            key: crate::vault::repository::key::marker_key(),
            url: "file:///x".into(),
            why: "cut".to_owned(),
        };
        let table: [(anyhow::Error, CliExitCode); 8] = [
            (damaged().into(), CliExitCode::Integrity),
            (Arc::new(damaged()).into(), CliExitCode::Integrity),
            (repository::RepositoryError::NoRepository { url: "x".into() }.into(), CliExitCode::NotFound),
            (repository::RepositoryError::BadUrl { url: "x".into(), why: String::new() }.into(), CliExitCode::Usage),
            (
                vault::VaultError::Repository { name: "a".to_owned(), source: Arc::new(damaged()) }.into(),
                CliExitCode::Integrity,
            ),
            (vault::VaultError::NotAllAnswered { why: String::new() }.into(), CliExitCode::Unavailable),
            (vault::VaultError::KeyNotConfigured { name: String::new() }.into(), CliExitCode::Usage),
            (wire::ReplicationError::ConnectionClosed(None).into(), CliExitCode::Unavailable),
        ];
        for (error, expected) in table {
            assert_eq!(exit_code(&error), expected, "{error}");
        }
        let failure = CliError { code: CliExitCode::NotFound, message: "no such backup".to_owned() };
        assert_eq!(exit_code(&anyhow::Error::from(failure).context("x")), CliExitCode::NotFound);
    }
}

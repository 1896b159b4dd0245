//! How a command ends: one table from every flow's errors to the exit codes of the manual, and the line that says what was wrong.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::retry::Class;
use crate::config::{ConfigError, KeyError, PasswordError};
use crate::postgres::archive::ingest::IngestError;
use crate::postgres::archive::reindex::ReindexError;
use crate::postgres::archive_get::{self, GetError};
use crate::postgres::archive_push::PushError;
use crate::postgres::restore::destination::GroundError;
use crate::postgres::restore::placement::PlaceError;
use crate::postgres::restore::selective::Error as SingleError;
use crate::postgres::verify::VerifyError;
use crate::postgres::wire::ConninfoError;
use crate::postgres::{archive, backup, index, log, receive, restore, retention, sql, wire};
use crate::redis;
use crate::redis::archive::snapshot::error::Error as SnapshotError;
use crate::redis::log::error::LogError;
use crate::vault;
use crate::vault::repository;
use crate::vault::retention::RetentionError;

/// The exit codes that scripts rely on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Code {
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

impl Code {
    /// Which of several codes a command ends with, the highest: "worth trying again" only if nothing but that is wrong.
    pub(super) const fn severity(self) -> u8 {
        match self {
            Code::Done => 0,
            Code::Unavailable => 1,
            Code::NotFound | Code::Unreachable => 2,
            Code::Failed => 3,
            Code::Usage => 4,
            Code::Integrity => 5,
        }
    }
}

/// What failed of several things that are done one after the other: it does not keep the rest from being done, and the worst ends the command.
#[derive(Debug, Default)]
pub(super) struct Failures {
    several: bool,
    worst: Option<anyhow::Error>,
}

impl Failures {
    /// Of so many things. What fails of several is said at once.
    pub(super) const fn of(count: usize) -> Failures {
        Failures { several: count > 1, worst: None }
    }

    /// What came of one of them, if it did not fail.
    pub(super) fn note<T>(&mut self, result: anyhow::Result<T>) -> Option<T> {
        let error = match result {
            Ok(done) => return Some(done),
            Err(error) => error,
        };
        if self.several {
            tracing::error!(error = explain(&error), "going on with the rest");
        }
        let worse = |before: &anyhow::Error| code(&error).severity() > code(before).severity();
        if self.worst.as_ref().is_none_or(worse) {
            self.worst = Some(error);
        }
        None
    }

    /// Ends with the worst that was noted; with this code if nothing was, or nothing worse.
    pub(super) fn end(self, otherwise: Code) -> anyhow::Result<Code> {
        match self.worst {
            Some(error) if code(&error).severity() >= otherwise.severity() => Err(error),
            _ => Ok(otherwise),
        }
    }
}

/// An error that the edge itself found.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Failure {
    /// Something typed or configured that cannot be meant.
    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure { code: Code::Usage, message: message.into() }
    }
}

/// What an error ends a command with. To PostgreSQL, every code up to 125 of a `restore_command` means that the file does not exist, which
/// ends recovery and promotes the server (`RestoreArchivedFile`, xlogarchive.c); so there, trouble has a code of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// As the table says.
    Usual,
    /// `archive-get` in a restore: above 125, so that PostgreSQL stops, and no signal's 128 + n.
    StopRecovery,
    /// `archive-get --standby`: as if the file were not there, so that the standby asks again.
    AskAgain,
}

impl Trouble {
    /// Decided from the bare arguments, because it must hold even if they cannot be parsed.
    pub(super) fn of(arguments: &[OsString]) -> Trouble {
        let has = |word: &str| arguments.iter().any(|argument| argument == word);
        match (has("archive-get"), has("--standby")) {
            (false, _) => Trouble::Usual,
            (true, false) => Trouble::StopRecovery,
            (true, true) => Trouble::AskAgain,
        }
    }

    /// The exit code.
    pub(super) fn code(self, code: Code) -> u8 {
        match self {
            Trouble::Usual => code as u8,
            Trouble::StopRecovery => archive_get::exit_failure(code as u8, false),
            Trouble::AskAgain => archive_get::exit_failure(code as u8, true),
        }
    }
}

/// What clap says of a wrong line, in one: the first lines up to the usage, without its own prefix.
pub(super) fn of_clap(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let more = |line: &&str| !line.starts_with("For more information");
    let said: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Usage:")).filter(more).collect();
    let said = one_line(&said.join(" "));
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    let said = said.replace(" tip: ", "; ");
    format!("{said}; see --help")
}

/// The code for an error: that of the outermost cause which has one.
pub(super) fn code(error: &anyhow::Error) -> Code {
    error.chain().find_map(code_of).unwrap_or(Code::Failed)
}

/// The table. `None` for an error that says nothing by itself; what it wraps may.
fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if cause.is::<ConfigError>() || cause.is::<KeyError>() || cause.is::<ConninfoError>() || cause.is::<PasswordError>()
    {
        return Some(Code::Usage);
    }
    if let Some(error) = cause.downcast_ref::<repository::Error>() {
        return Some(of_repository(error));
    }
    if let Some(error) = cause.downcast_ref::<Arc<repository::Error>>() {
        return Some(of_repository(error));
    }
    if let Some(error) = cause.downcast_ref::<archive::Error>() {
        return Some(of_archive(error));
    }
    if let Some(error) = cause.downcast_ref::<vault::Error>() {
        return Some(of_vault(error));
    }
    if let Some(error) = cause.downcast_ref::<IngestError>() {
        return Some(of_ingest(error));
    }
    if let Some(error) = cause.downcast_ref::<PushError>() {
        return Some(match error {
            PushError::Ingest(error) => of_ingest(error),
            PushError::Refused { .. } => of_class(error.class()),
        });
    }
    if let Some(error) = cause.downcast_ref::<backup::Error>() {
        return Some(of_backup(error));
    }
    if let Some(error) = cause.downcast_ref::<GetError>() {
        return Some(match error {
            GetError::Archive(error) => of_archive(error),
            GetError::Hole { .. } => Code::Integrity,
            GetError::Name(_) => Code::Usage,
            other => of_class(other.class()),
        });
    }
    if let Some(error) = cause.downcast_ref::<restore::Error>() {
        return Some(of_restore(error));
    }
    if let Some(error) = cause.downcast_ref::<log::Error>() {
        return Some(of_explore(error));
    }
    if let Some(error) = cause.downcast_ref::<SingleError>() {
        return Some(of_single(error));
    }
    if let Some(error) = cause.downcast_ref::<VerifyError>() {
        return Some(of_verify(error));
    }
    if let Some(error) = cause.downcast_ref::<receive::Error>() {
        return Some(of_receive(error));
    }
    if let Some(error) = cause.downcast_ref::<index::Error>() {
        return Some(of_index(error));
    }
    if let Some(error) = cause.downcast_ref::<ReindexError>() {
        return Some(of_reindex(error));
    }
    if let Some(error) = cause.downcast_ref::<retention::Error>() {
        return Some(of_retention(error));
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
    if let Some(error) = cause.downcast_ref::<wire::Error>() {
        return Some(of_replication(error));
    }
    if let Some(error) = cause.downcast_ref::<sql::Error>() {
        return Some(match error {
            sql::Error::Connect(error) => of_replication(error),
            other => of_class(other.class()),
        });
    }
    of_instance(cause)
}

/// The errors of Redis instances.
fn of_instance(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    let by_snapshot = cause.downcast_ref::<SnapshotError>().map(of_snapshot);
    let by_restore = || cause.downcast_ref::<redis::restore::Error>().map(of_snapshot_out);
    by_snapshot.or_else(by_restore).or_else(|| cause.downcast_ref::<redis::wire::Error>().map(of_redis))
}

fn of_class(class: Class) -> Code {
    match class {
        Class::Transient => Code::Unavailable,
        Class::Permanent | Class::Conflict => Code::Failed,
    }
}

fn of_repository(error: &repository::Error) -> Code {
    use repository::Error;
    match error {
        Error::NotFound { .. } | Error::NoRepository { .. } => Code::NotFound,
        Error::Unavailable { .. } | Error::Full { .. } => Code::Unavailable,
        Error::Corrupt { .. } => Code::Integrity,
        Error::AlreadyThere { .. } | Error::BadUrl { .. } => Code::Usage,
        Error::Denied { .. } | Error::NewerFormat { .. } => Code::Failed,
    }
}

fn of_archive(error: &archive::Error) -> Code {
    match error {
        archive::Error::Vault(error) => of_vault(error),
        error if error.is_integrity() => Code::Integrity,
        other => of_class(other.class()),
    }
}

fn of_vault(error: &vault::Error) -> Code {
    use vault::Error;
    match error {
        error if error.is_integrity() => Code::Integrity,
        Error::Repository { source, .. } => of_repository(source),
        Error::KeyWanted { .. } | Error::NoPlace => Code::Usage,
        other => of_class(other.class()),
    }
}

fn of_ingest(error: &IngestError) -> Code {
    match error {
        IngestError::Archive(error) => of_archive(error),
        IngestError::NotThatSegment(_) => Code::Integrity,
        other => of_class(other.class()),
    }
}

fn of_restore(error: &restore::Error) -> Code {
    use restore::Error;
    match error {
        Error::UnknownBackup { .. } | Error::UnknownTimeline { .. } | Error::Nothing { .. } => Code::NotFound,
        Error::Unreachable { .. } => Code::Unreachable,
        Error::Index(error) => of_index(error),
        Error::Archive(error) => of_archive(error),
        Error::Manifest { .. } | Error::Label { .. } => Code::Integrity,
        Error::Place(error) => of_place(error),
        Error::Stopped => Code::Failed,
    }
}

fn of_explore(error: &log::Error) -> Code {
    use log::Error;
    match error {
        Error::Nothing { .. } | Error::UnknownTimeline { .. } => Code::NotFound,
        Error::Index(error) => of_index(error),
        Error::Archive(error) => of_archive(error),
        Error::Stopped => Code::Failed,
    }
}

fn of_single(error: &SingleError) -> Code {
    match error {
        SingleError::Exists { .. } | SingleError::NoTable { .. } | SingleError::Conninfo(_) => Code::Usage,
        SingleError::AbsentDatabase { .. } | SingleError::AbsentTable { .. } | SingleError::NoPlace { .. } => {
            Code::NotFound
        }
        SingleError::Unreachable(_) | SingleError::Tablespace { .. } => Code::Unreachable,
        SingleError::Log(_) | SingleError::Pages(_) | SingleError::Pack(_) => Code::Integrity,
        SingleError::Restore(error) => of_restore(error),
        SingleError::Sql(sql::Error::Connect(error)) => of_replication(error),
        other => of_class(other.class()),
    }
}

fn of_place(error: &PlaceError) -> Code {
    match error {
        PlaceError::Archive(error) => of_archive(error),
        PlaceError::Pack(error) if error.class() == Class::Transient => Code::Unavailable,
        PlaceError::Pack(_) | PlaceError::PackMissing(_) | PlaceError::Manifest { .. } => Code::Integrity,
        PlaceError::Differs { .. } | PlaceError::Control(_) => Code::Integrity,
        PlaceError::Ground(GroundError::Io { .. } | GroundError::NoRoom { .. })
        | PlaceError::Durable(_)
        | PlaceError::Stopped => Code::Failed,
        PlaceError::Ground(GroundError::WouldBeReplayedInto { .. }) => Code::Unreachable,
        PlaceError::Ground(_) => Code::Usage,
    }
}

fn of_backup(error: &backup::Error) -> Code {
    use backup::Error;
    match error {
        Error::Server(error) => of_replication(error),
        Error::Archive(error) => of_archive(error),
        Error::Ingest(error) => of_ingest(error),
        error if error.is_integrity() => Code::Integrity,
        other => of_class(other.class()),
    }
}

fn of_receive(error: &receive::Error) -> Code {
    use receive::Error;
    match error {
        Error::Replication(error) => of_replication(error),
        Error::Archive(error) => of_archive(error),
        Error::Ingest(error) => of_ingest(error),
        other => of_class(other.class()),
    }
}

fn of_snapshot(error: &SnapshotError) -> Code {
    use SnapshotError as Error;
    match error {
        Error::Server(error) => of_redis(error),
        Error::Vault(error) => of_vault(error),
        error if error.is_integrity() => Code::Integrity,
        Error::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Code::NotFound,
        other => of_class(other.class()),
    }
}

fn of_snapshot_out(error: &redis::restore::Error) -> Code {
    use redis::restore::Error;
    match error {
        Error::Server(error) => of_redis(error),
        Error::Vault(error) => of_vault(error),
        error if error.is_integrity() => Code::Integrity,
        Error::NotEmpty { .. } | Error::NoServer { .. } => Code::Usage,
        other => of_class(other.class()),
    }
}

fn of_redis(error: &redis::wire::Error) -> Code {
    match error {
        redis::wire::Error::Tls(_)
        | redis::wire::Error::Handshake { .. }
        | redis::wire::Error::UnknownMaster { .. } => Code::Usage,
        other => of_class(other.class()),
    }
}

fn of_retention(error: &retention::Error) -> Code {
    match error {
        retention::Error::Objects(error) => of_retention_objects(error),
        retention::Error::Archive(error) => of_archive(error),
        retention::Error::Index(error) => of_reindex(error),
        other => of_class(other.class()),
    }
}

fn of_retention_objects(error: &RetentionError) -> Code {
    match error {
        RetentionError::Repository { source, .. } => of_repository(source),
        RetentionError::Vault(error) => of_vault(error),
    }
}

fn of_verify_objects(error: &vault::verify::VerifyError) -> Code {
    use vault::verify::VerifyError;
    match error {
        VerifyError::Repository { source, .. } => of_repository(source),
        VerifyError::Vault(error) => of_vault(error),
        VerifyError::UnknownBackup { .. } => Code::NotFound,
    }
}

fn of_instance_log(error: &LogError) -> Code {
    match error {
        LogError::Nothing { .. } => Code::NotFound,
        LogError::Vault(error) => of_vault(error),
        LogError::Stopped => of_class(error.class()),
    }
}

fn of_verify(error: &VerifyError) -> Code {
    match error {
        VerifyError::Objects(error) => of_verify_objects(error),
        VerifyError::Archive(error) => of_archive(error),
        VerifyError::Index(error) => of_index(error),
    }
}

fn of_reindex(error: &ReindexError) -> Code {
    match error {
        ReindexError::Index(error) => of_index(error),
        ReindexError::Archive(error) => of_archive(error),
    }
}

fn of_index(error: &index::Error) -> Code {
    use index::Error;
    match error {
        Error::Absent(_) => Code::NotFound,
        Error::Locked(_) => Code::Unavailable,
        Error::Damaged { .. } | Error::Value(_) => Code::Integrity,
        other => of_class(other.class()),
    }
}

fn of_replication(error: &wire::Error) -> Code {
    use wire::Error;
    match error {
        Error::Conninfo(_) | Error::Tls(_) => Code::Usage,
        other => of_class(other.class()),
    }
}

/// The error in one line, outermost first: `what: cause; what to do next`. A cause that its parent has already quoted is left out.
pub(super) fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let message = one_line(&cause.to_string());
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
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::Arc;

    use anyhow::anyhow;
    use clap::{CommandFactory, Parser};

    use super::{Code, Failure, Failures, Trouble, code, explain, of_clap};
    use crate::cli::args::Line;
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
            explain(&error),
            "cannot check main: cannot read the configuration /x.toml: No such file or directory (os error 2); name another with \
             --config, or make one with walkeep init"
        );
        assert_eq!(explain(&anyhow!("one\n  two\x1b[31m").context("outer")), "outer: one two [31m");
    }

    #[test]
    fn trouble_of_a_restore_command_never_looks_like_a_missing_file() {
        let of = |line: &str| Trouble::of(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("walkeep list").code(Code::Unavailable), 5);
        assert_eq!(of("walkeep archive-push x").code(Code::Usage), 2);
        for line in ["walkeep archive-get a b", "walkeep --config x archive-get", "walkeep archive-get --nonsense"] {
            let code = of(line).code(Code::Usage);
            assert!(code > 125 && code != 128 + 15, "{line}: {code}");
        }
        assert_eq!(of("walkeep archive-get --standby a b").code(Code::Usage), 1);
    }

    #[test]
    fn the_worst_of_several_ends_the_command() {
        let fails = |code| Err::<(), _>(Failure { code, message: format!("{code:?}") }.into());
        let ends = |codes: &[Code], otherwise| {
            let mut failures = Failures::of(codes.len());
            codes.iter().for_each(|code| assert_eq!(failures.note(fails(*code)), None));
            assert_eq!(failures.note(Ok(5)), Some(5));
            failures.end(otherwise).map_err(|error| error.to_string())
        };
        assert_eq!(ends(&[], Code::Unavailable), Ok(Code::Unavailable));
        assert_eq!(ends(&[Code::Unavailable], Code::Done), Err("Unavailable".into()));
        assert_eq!(ends(&[Code::Unavailable, Code::Integrity, Code::Usage], Code::Done), Err("Integrity".into()));
        assert_eq!(ends(&[Code::NotFound, Code::Unreachable], Code::Done), Err("NotFound".into()), "the first of two");
        assert_eq!(ends(&[Code::Unavailable], Code::Failed), Ok(Code::Failed));
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
            let error = Line::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(of_clap(&error), says);
        }
        Line::command().debug_assert();
    }

    #[test]
    fn the_outermost_known_cause_decides() {
        let nowhere = || anyhow::Error::from(ConfigError::Nowhere(Vec::new()));
        assert_eq!(code(&nowhere()), Code::Usage);
        assert_eq!(code(&nowhere().context("while doing that")), Code::Usage);
        assert_eq!(code(&anyhow!("something")), Code::Failed);
        let damaged = || repository::Error::Corrupt {
            key: crate::vault::repository::key::marker(),
            url: "file:///x".into(),
            why: "cut".to_owned(),
        };
        let table: [(anyhow::Error, Code); 8] = [
            (damaged().into(), Code::Integrity),
            (Arc::new(damaged()).into(), Code::Integrity),
            (repository::Error::NoRepository { url: "x".into() }.into(), Code::NotFound),
            (repository::Error::BadUrl { url: "x".into(), why: String::new() }.into(), Code::Usage),
            (vault::Error::Repository { name: "a".to_owned(), source: Arc::new(damaged()) }.into(), Code::Integrity),
            (vault::Error::Unasked { why: String::new() }.into(), Code::Unavailable),
            (vault::Error::KeyWanted { name: String::new() }.into(), Code::Usage),
            (wire::Error::Closed(None).into(), Code::Unavailable),
        ];
        for (error, expected) in table {
            assert_eq!(code(&error), expected, "{error}");
        }
        let failure = Failure { code: Code::NotFound, message: "no such backup".to_owned() };
        assert_eq!(code(&anyhow::Error::from(failure).context("x")), Code::NotFound);
    }
}

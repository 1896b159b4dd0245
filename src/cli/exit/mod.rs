//! How a command ends: the exit code for each kind of error, and the line that says what was wrong.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::config::{ConfigError, KeySourceError, PasswordError};
use crate::joint::error::JointError;
use crate::postgres::{self, archive_get};
use crate::redis;
use crate::vault::VaultError;
use crate::vault::repository::RepositoryError;
use crate::vault::retention::RetentionError;
use crate::vault::verify::VerifyError;

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
    const fn of_kind(kind: ErrorKind) -> CliExitCode {
        match kind {
            ErrorKind::Failed | ErrorKind::Conflict => CliExitCode::Failed,
            ErrorKind::Usage | ErrorKind::AlreadyExists => CliExitCode::Usage,
            ErrorKind::TargetUnreachable => CliExitCode::Unreachable,
            ErrorKind::NotFound => CliExitCode::NotFound,
            ErrorKind::Unavailable => CliExitCode::Unavailable,
            ErrorKind::Integrity => CliExitCode::Integrity,
        }
    }

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

/// What failed of several things that are done one after the other: it does not keep the rest from being done, and the
/// worst ends the command.
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

/// What an error ends a command with. To PostgreSQL, every code up to 125 of a `restore_command` means that the file
/// does not exist, which ends recovery and promotes the server (`RestoreArchivedFile`, xlogarchive.c); so there,
/// trouble has a code of its own.
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

/// `None` for an error that has no kind; what it wraps may have one.
fn exit_code_of_cause(cause: &(dyn Error + 'static)) -> Option<CliExitCode> {
    let found_here = cause.downcast_ref::<CliError>().map(|error| error.code);
    found_here.or_else(|| KIND_OF_CAUSE.iter().find_map(|kind_of| kind_of(cause)).map(CliExitCode::of_kind))
}

/// The kind of a cause, if the cause is of one certain type.
type KindOfCause = fn(&(dyn Error + 'static)) -> Option<ErrorKind>;

/// The errors that decide an exit code by themselves. All others get the code of what they wrap, or
/// [`CliExitCode::Failed`].
const KIND_OF_CAUSE: [KindOfCause; 32] = [
    kind_if::<ConfigError>,
    kind_if::<KeySourceError>,
    kind_if::<PasswordError>,
    kind_if::<RepositoryError>,
    kind_if::<Arc<RepositoryError>>,
    kind_if::<VaultError>,
    kind_if::<RetentionError>,
    kind_if::<VerifyError>,
    kind_if::<postgres::wire::ConninfoError>,
    kind_if::<postgres::wire::ReplicationError>,
    kind_if::<postgres::sql::SqlError>,
    kind_if::<postgres::index::IndexError>,
    kind_if::<postgres::archive::ArchiveError>,
    kind_if::<postgres::archive::ingest::IngestError>,
    kind_if::<postgres::archive::reindex::ReindexError>,
    kind_if::<postgres::archive_push::ArchivePushError>,
    kind_if::<archive_get::ArchiveGetError>,
    kind_if::<postgres::receive::ReceiveError>,
    kind_if::<postgres::backup::BackupError>,
    kind_if::<postgres::restore::RestoreError>,
    kind_if::<postgres::restore::selective::SelectiveRestoreError>,
    kind_if::<postgres::restore::recovery_end::RecoveryEndError>,
    kind_if::<postgres::log::LogError>,
    kind_if::<postgres::retention::CleanupError>,
    kind_if::<postgres::verify::ClusterVerifyError>,
    kind_if::<redis::wire::RedisError>,
    kind_if::<redis::archive::snapshot::error::SnapshotError>,
    kind_if::<redis::restore::RestoreError>,
    kind_if::<redis::restore::plan::RedisPlanError>,
    kind_if::<redis::restore::destination::RedisDestinationError>,
    kind_if::<redis::log::error::LogError>,
    kind_if::<JointError>,
];

fn kind_if<E: Error + HasKind + 'static>(cause: &(dyn Error + 'static)) -> Option<ErrorKind> {
    cause.downcast_ref::<E>().map(HasKind::kind)
}

/// The error in one line, outermost first: `what: cause; what to do next`. A cause that its parent has already quoted
/// is left out.
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
mod error_table_tests;

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::Arc;

    use anyhow::anyhow;
    use clap::{CommandFactory, Parser};

    use super::{CliError, CliExitCode, ExitCodeRule, FailureTally, clap_error_line, error_line, exit_code};
    use crate::base::error_kind::ErrorKind;
    use crate::base::retry::ErrorClass;
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
    fn each_kind_has_an_exit_code_and_a_class() {
        use ErrorKind::{AlreadyExists, Conflict, Failed, Integrity, NotFound, TargetUnreachable, Unavailable, Usage};
        let kinds = [Failed, Conflict, Usage, AlreadyExists, TargetUnreachable, NotFound, Unavailable, Integrity];
        for kind in kinds {
            let expected = match kind {
                Failed => (1, ErrorClass::Permanent),
                Conflict => (1, ErrorClass::Conflict),
                Usage => (2, ErrorClass::Permanent),
                AlreadyExists => (2, ErrorClass::Conflict),
                TargetUnreachable => (3, ErrorClass::Permanent),
                NotFound => (4, ErrorClass::Permanent),
                Unavailable => (5, ErrorClass::Transient),
                Integrity => (6, ErrorClass::Permanent),
            };
            assert_eq!((CliExitCode::of_kind(kind) as u8, kind.class()), expected, "{kind:?}");
        }
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

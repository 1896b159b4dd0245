//! What is asked for: a target, on a timeline, and what the server does there.

use std::fmt;
use std::str::FromStr;

use crate::postgres::archive::manifest::BackupDefects;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::event::Xid;

/// The longest name a restore point can have, in bytes (`MAXFNAMELEN` in `xlog_internal.h`, less the final zero).
const MAX_RESTORE_POINT_NAME_BYTES: usize = 63;

/// A moment in the life of a cluster, named in one of PostgreSQL's ways.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTarget {
    /// The newest point that can be reached.
    Latest,
    /// As soon as the backup is consistent: its own end.
    Immediate,
    /// Before the first transaction that ended later than this (`recovery_target_time`).
    Time(PgTime),
    /// After the first record that starts here or later (`recovery_target_lsn`).
    Lsn(Lsn),
    /// After the end of this transaction (`recovery_target_xid`).
    Xid(Xid),
    /// At the restore point of this name (`recovery_target_name`).
    Name(String),
    /// Just before what the record at this position belongs to took effect: before the commit of its transaction, or
    /// before the record itself where it has none.
    BeforeEvent(Lsn),
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryTarget::Latest => f.write_str("the newest point"),
            RecoveryTarget::Immediate => f.write_str("the end of the backup"),
            RecoveryTarget::Time(time) => write!(f, "{time}"),
            RecoveryTarget::Lsn(lsn) => write!(f, "position {lsn}"),
            RecoveryTarget::Xid(xid) => write!(f, "transaction {xid}"),
            RecoveryTarget::Name(name) => write!(f, "restore point {name:?}"),
            RecoveryTarget::BeforeEvent(lsn) => write!(f, "just before the event at {lsn}"),
        }
    }
}

/// Which timeline to follow (`recovery_target_timeline`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetTimeline {
    /// The newest in the archive.
    Latest,
    /// The one the backup was taken on.
    Current,
    /// This one.
    Id(TimelineId),
}

/// What was given is no timeline to follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no timeline; write latest, current or a number from 1")]
pub struct ParseTargetTimelineError(String);

impl FromStr for TargetTimeline {
    type Err = ParseTargetTimelineError;

    /// `latest`, `current`, or a number in decimal; PostgreSQL's `0x…` works too, since file names show timelines in
    /// hexadecimal.
    fn from_str(text: &str) -> Result<TargetTimeline, ParseTargetTimelineError> {
        let number = match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        match text {
            "latest" => Ok(TargetTimeline::Latest),
            "current" => Ok(TargetTimeline::Current),
            _ => number
                .and_then(TimelineId::new)
                .map(TargetTimeline::Id)
                .ok_or_else(|| ParseTargetTimelineError(text.to_owned())),
        }
    }
}

/// What the server does when it has reached the target (`recovery_target_action`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryTargetAction {
    /// Ends recovery and takes writes, on a new timeline.
    #[default]
    Promote,
    /// Takes reads and waits for `pg_wal_replay_resume()`.
    Pause,
    /// Stops; the next start recovers to the same point again.
    Shutdown,
}

impl RecoveryTargetAction {
    /// The setting's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RecoveryTargetAction::Promote => "promote",
            RecoveryTargetAction::Pause => "pause",
            RecoveryTargetAction::Shutdown => "shutdown",
        }
    }
}

/// A whole wish, checked: [`RestoreRequest::new`] refuses what cannot be meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoreRequest {
    target: RecoveryTarget,
    exclusive: bool,
    /// Which timeline to follow.
    pub timeline: TargetTimeline,
    /// The backup to start from; the best one if none is named.
    pub backup: Option<String>,
    /// Whether the newest point before the target will do where the target itself cannot be reached.
    pub nearest: bool,
    /// Which backups that are not whole will do.
    pub accepted: AcceptedDefects,
}

/// Defects of a backup that a restore accepts: without being told so, it uses whole backups only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AcceptedDefects {
    /// Pages whose checksum is wrong.
    pub damaged_pages: bool,
    /// Files that the server left out of the backup.
    pub missing_files: bool,
}

impl AcceptedDefects {
    /// Whether a backup with these defects will do.
    #[must_use]
    pub const fn cover(self, defects: &BackupDefects) -> bool {
        (self.damaged_pages || defects.damaged_page_count == 0)
            && (self.missing_files || defects.missing_file_count == 0)
    }

    /// The options that accept a backup with these defects.
    #[must_use]
    pub fn options_for(defects: &BackupDefects) -> String {
        let damaged = (defects.damaged_page_count > 0).then_some("--accept-damaged-pages");
        let missing = (defects.missing_file_count > 0).then_some("--accept-missing-files");
        damaged.into_iter().chain(missing).collect::<Vec<_>>().join(" ")
    }
}

/// A wish that PostgreSQL has no meaning for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreRequestError {
    /// Before what has no before.
    #[error("exclusive needs a time, a position, a transaction or a restore point to stop before; {0} is none of them")]
    Exclusive(RecoveryTarget),
    /// A name that no restore point can have.
    #[error("{0:?} cannot name a restore point: names have 1 to {MAX_RESTORE_POINT_NAME_BYTES} bytes")]
    Name(String),
    /// A transaction that never ends by itself.
    #[error("{0} is no transaction that could end: ordinary transactions are numbered from 3")]
    Xid(Xid),
}

impl RestoreRequest {
    /// A target on the newest timeline, from the best backup.
    ///
    /// # Errors
    /// [`RestoreRequestError`] if nothing can be meant by it.
    pub fn new(target: RecoveryTarget, exclusive: bool) -> Result<RestoreRequest, RestoreRequestError> {
        match &target {
            RecoveryTarget::Latest | RecoveryTarget::Immediate if exclusive => {
                return Err(RestoreRequestError::Exclusive(target));
            }
            RecoveryTarget::Name(name) if !(1..=MAX_RESTORE_POINT_NAME_BYTES).contains(&name.len()) => {
                return Err(RestoreRequestError::Name(name.clone()));
            }
            // FirstNormalTransactionId; 1 and 2 are the bootstrap and the frozen one.
            RecoveryTarget::Xid(xid) if xid.get() < 3 => return Err(RestoreRequestError::Xid(*xid)),
            _ => {}
        }
        Ok(RestoreRequest { target, exclusive, ..RestoreRequest::at_time(PgTime::from_pg_micros(0)) })
    }

    /// The state at a time on the newest timeline, from the best backup.
    #[must_use]
    pub const fn at_time(time: PgTime) -> RestoreRequest {
        let target = RecoveryTarget::Time(time);
        let accepted = AcceptedDefects { damaged_pages: false, missing_files: false };
        let timeline = TargetTimeline::Latest;
        RestoreRequest { target, exclusive: false, timeline, backup: None, nearest: false, accepted }
    }

    /// The same along another timeline.
    #[must_use]
    pub fn on_timeline(self, timeline: TargetTimeline) -> RestoreRequest {
        RestoreRequest { timeline, ..self }
    }

    /// The same from this backup; from the best one for `None`.
    #[must_use]
    pub fn from_backup(self, backup: Option<String>) -> RestoreRequest {
        RestoreRequest { backup, ..self }
    }

    /// The same, or not, if the newest point before the target will do.
    #[must_use]
    pub fn or_nearest(self, nearest: bool) -> RestoreRequest {
        RestoreRequest { nearest, ..self }
    }

    /// The same, from a backup with these defects, too.
    #[must_use]
    pub fn accepting(self, accepted: AcceptedDefects) -> RestoreRequest {
        RestoreRequest { accepted, ..self }
    }

    /// What is wanted.
    #[must_use]
    pub const fn target(&self) -> &RecoveryTarget {
        &self.target
    }

    /// Whether the target itself is to be left out.
    #[must_use]
    pub const fn exclusive(&self) -> bool {
        self.exclusive
    }
}

/// Reads a transaction's number as `recovery_target_xid` does: the low 32 bits count, so that what
/// `pg_current_xact_id()` answers, epoch and all, can be given. `None` if it is no number.
#[must_use]
pub fn parse_xid(text: &str) -> Option<Xid> {
    let full: u64 = text.parse().ok()?;
    u32::try_from(full & 0xFFFF_FFFF).ok().map(Xid::new)
}

#[cfg(test)]
mod tests {
    use super::{RecoveryTarget, RestoreRequest, RestoreRequestError, TargetTimeline, parse_xid};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::timeline::TimelineId;
    use crate::postgres::wal::event::Xid;

    #[test]
    fn timelines_are_words_or_numbers() {
        let id = |number| Ok(TargetTimeline::Id(TimelineId::new(number).unwrap()));
        assert_eq!("latest".parse(), Ok(TargetTimeline::Latest));
        assert_eq!("current".parse(), Ok(TargetTimeline::Current));
        assert_eq!("16".parse(), id(16));
        assert_eq!("0x10".parse(), id(16));
        for wrong in ["", "0", "-1", "newest", "0x", "4294967296"] {
            assert!(wrong.parse::<TargetTimeline>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refused = |target: RecoveryTarget, exclusive| RestoreRequest::new(target, exclusive).unwrap_err();
        assert_eq!(refused(RecoveryTarget::Latest, true), RestoreRequestError::Exclusive(RecoveryTarget::Latest));
        assert_eq!(refused(RecoveryTarget::Immediate, true), RestoreRequestError::Exclusive(RecoveryTarget::Immediate));
        assert_eq!(refused(RecoveryTarget::Name("x".repeat(64)), false), RestoreRequestError::Name("x".repeat(64)));
        assert_eq!(refused(RecoveryTarget::Name(String::new()), false), RestoreRequestError::Name(String::new()));
        assert_eq!(refused(RecoveryTarget::Xid(Xid::new(2)), false), RestoreRequestError::Xid(Xid::new(2)));
        assert!(RestoreRequest::new(RecoveryTarget::Name("x".repeat(63)), true).is_ok());
        assert!(RestoreRequest::new(RecoveryTarget::Lsn(Lsn::new(8)), true).is_ok());
    }

    #[test]
    fn a_transaction_may_be_given_with_its_epoch() {
        assert_eq!(parse_xid("727"), Some(Xid::new(727)));
        assert_eq!(parse_xid("4294968023"), Some(Xid::new(727)), "epoch 1");
        assert_eq!(parse_xid("x"), None);
        assert_eq!(parse_xid("-3"), None);
    }
}

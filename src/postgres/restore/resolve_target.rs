//! From a target to the record where PostgreSQL stops (`recoveryStopsBefore` and `recoveryStopsAfter` in
//! `xlogrecovery.c`).
//!
//! The answer depends on where replay begins, because PostgreSQL stops at the first record that meets the target and
//! commit times are in no order: so it is asked anew for each backup. Whatever the target was, the server is then given
//! the record's position, which it stops at under every clock and setting.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelinePath;

use super::archived_log::ArchivedLog;
use super::error::RestoreError;
use super::target::{RecoveryTarget, RestoreRequest};

/// Where replay stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryStop {
    /// Before the record that starts here: `recovery_target_inclusive = off`.
    Before(Lsn),
    /// After the record that starts here: `recovery_target_inclusive = on`.
    After(Lsn),
    /// Where the backup is consistent, which is here: `recovery_target = 'immediate'`.
    Consistent(Lsn),
}

impl RecoveryStop {
    /// The position that names it.
    #[must_use]
    pub const fn lsn(self) -> Lsn {
        match self {
            RecoveryStop::Before(lsn) | RecoveryStop::After(lsn) | RecoveryStop::Consistent(lsn) => lsn,
        }
    }

    /// Records that start before this are replayed, the others not.
    #[must_use]
    pub const fn replayed_below(self) -> Lsn {
        match self {
            RecoveryStop::Before(lsn) | RecoveryStop::Consistent(lsn) => lsn,
            RecoveryStop::After(lsn) => lsn.saturating_add(1),
        }
    }

    /// Whether the record at [`RecoveryStop::lsn`] is replayed.
    #[must_use]
    pub const fn is_inclusive(self) -> bool {
        matches!(self, RecoveryStop::After(_))
    }
}

/// What a target came to, seen from one starting point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ResolvedTarget {
    /// PostgreSQL stops here, and must have read the log up to `until` to know it.
    At {
        /// Where it stops.
        stop: RecoveryStop,
        /// What it has read by then.
        until: Lsn,
    },
    /// Nothing that is archived meets the target, because it lies after everything: a time or a position.
    PastEnd,
    /// Nothing in the log from there on meets the target; something before might: a transaction or a name.
    Absent,
}

/// Resolves everything but [`RecoveryTarget::Latest`] and [`RecoveryTarget::Immediate`], which are a matter of the
/// backup.
pub(super) fn resolve_target(
    facts: &dyn ArchivedLog,
    path: &TimelinePath,
    request: &RestoreRequest,
    from: Lsn,
) -> Result<ResolvedTarget, RestoreError> {
    let before_or_after = |lsn, until| {
        let stop = if request.exclusive() { RecoveryStop::Before(lsn) } else { RecoveryStop::After(lsn) };
        ResolvedTarget::At { stop, until }
    };
    Ok(match request.target() {
        RecoveryTarget::Latest | RecoveryTarget::Immediate => ResolvedTarget::Absent,
        RecoveryTarget::Time(time) => {
            // Inclusive stops at the first time beyond the target, exclusive at the first that is not before it.
            let beyond =
                if request.exclusive() { PgTime::from_pg_micros(time.pg_micros().saturating_sub(1)) } else { *time };
            let found = facts.ending_after(path, from, beyond)?;
            found.map_or(ResolvedTarget::PastEnd, |ending| ResolvedTarget::At {
                stop: RecoveryStop::Before(ending.lsn),
                until: ending.end_lsn,
            })
        }
        RecoveryTarget::Lsn(lsn) => {
            // A position is one, wherever replay begins: a backup that begins after it is no way to it.
            let found = facts.record_from(path, *lsn)?;
            found.map_or(ResolvedTarget::PastEnd, |record| before_or_after(record.lsn, record.end))
        }
        RecoveryTarget::Xid(xid) => {
            let found = facts.ending_of(path, from, *xid)?;
            found.map_or(ResolvedTarget::Absent, |ending| before_or_after(ending.lsn, ending.end_lsn))
        }
        RecoveryTarget::BeforeEvent(lsn) => {
            let found = facts.effect_of(path, *lsn)?;
            found.map_or(ResolvedTarget::Absent, |record| ResolvedTarget::At {
                stop: RecoveryStop::Before(record.lsn),
                until: record.end,
            })
        }
        RecoveryTarget::Name(name) => {
            // PostgreSQL stops at the first one of the name. A plan refuses a name that more than one has.
            let found = facts.restore_points(path, from, name)?;
            found.first().map_or(ResolvedTarget::Absent, |record| before_or_after(record.lsn, record.end))
        }
    })
}

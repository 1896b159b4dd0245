//! The receiver's replication slot: that it exists and holds WAL before anything is streamed from it.
//!
//! PostgreSQL 13 to 17 stream from an invalidated slot as from any other. From 16 on such a slot holds no WAL, and
//! never will again: its `restart_lsn` moves on with each report, and the server ignores it. So the state of the slot is read
//! before each stream, and a slot that holds nothing is dropped and created again.
//!
//! `READ_REPLICATION_SLOT` (15 and later) shows `restart_lsn` alone, which is empty right after the invalidation. The
//! rest is in `pg_replication_slots`, which takes an SQL session. If the role may not open one, what the replication
//! connection shows has to do.

use std::time::Duration;

use super::error::ReceiveError;
use crate::base::clock::{Clock, timeout};
use crate::postgres::sql::{SlotState, SqlSession};
use crate::postgres::wire::{Conninfo, ReplicationConnection, ReplicationError, ReplicationSlot, SlotName};

/// How long the server may take to describe the slot in an SQL session: the answer is only another view of it.
const SQL_TIMEOUT: Duration = Duration::from_secs(10);

/// What makes a slot useless.
#[derive(Debug, PartialEq, Eq)]
enum SlotDefect {
    /// The server has invalidated it, for this reason.
    Invalidated(String),
    /// It has never held WAL.
    Unreserved,
}

/// Makes sure that the slot exists and holds WAL. Returns where it begins, as far as the server shows it.
pub(super) async fn ensure_slot(
    connection: &mut ReplicationConnection,
    info: &Conninfo,
    name: &SlotName,
    clock: &dyn Clock,
) -> Result<Option<ReplicationSlot>, ReceiveError> {
    let can_read = connection.version().can_read_slots();
    let shown = if can_read { connection.read_replication_slot(name).await? } else { None };
    if shown.is_none() {
        match connection.create_physical_slot(name, true).await {
            Ok(()) => tracing::info!(slot = %name, "created a replication slot"),
            Err(error) if error.is_duplicate() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let state = query_state(connection.peer(), info, name, clock).await;
    let Some(defect) = defect_of(shown, state.as_ref()) else {
        let of_sql = || state.map(|state| ReplicationSlot { restart: state.restart, timeline: None });
        return Ok(if can_read { connection.read_replication_slot(name).await? } else { of_sql() });
    };
    recreate_slot(connection, name, &defect).await?;
    if can_read {
        return Ok(connection.read_replication_slot(name).await?);
    }
    let state = query_state(connection.peer(), info, name, clock).await;
    Ok(state.map(|state| ReplicationSlot { restart: state.restart, timeline: None }))
}

/// Replaces the slot by one that holds WAL from now on.
async fn recreate_slot(
    connection: &mut ReplicationConnection,
    name: &SlotName,
    defect: &SlotDefect,
) -> Result<(), ReplicationError> {
    match defect {
        SlotDefect::Invalidated(reason) => tracing::error!(
            slot = %name,
            reason,
            "the server has invalidated the replication slot, so it no longer keeps WAL for the receiver; the slot is \
                dropped and created again, and WAL that is already gone is recorded as a gap"
        ),
        SlotDefect::Unreserved => {
            tracing::warn!(slot = %name, "the replication slot holds no WAL; it is dropped and created again");
        }
    }
    drop_and_create(connection, name).await
}

/// Drops the slot, if it exists, and creates one that holds WAL from now on.
pub(super) async fn drop_and_create(
    connection: &mut ReplicationConnection,
    name: &SlotName,
) -> Result<(), ReplicationError> {
    match connection.drop_slot(name).await {
        Err(error) if !error.is_no_slot() => return Err(error),
        Ok(()) | Err(_) => {}
    }
    connection.create_physical_slot(name, true).await
}

/// What makes the slot useless, if anything does, by both views of it. One of them may be absent.
fn defect_of(shown: Option<ReplicationSlot>, state: Option<&SlotState>) -> Option<SlotDefect> {
    if let Some(state) = state {
        if let Some(reason) = &state.invalidation {
            return Some(SlotDefect::Invalidated(reason.clone()));
        }
        if state.wal_status.as_deref() == Some("lost") {
            return Some(SlotDefect::Invalidated("wal_removed".to_owned()));
        }
        return state.restart.is_none().then_some(SlotDefect::Unreserved);
    }
    shown.filter(|slot| slot.restart.is_none()).map(|_| SlotDefect::Unreserved)
}

/// The slot as SQL shows it; `None` if the role may not look, or the server does not answer in time.
async fn query_state(peer: &str, info: &Conninfo, name: &SlotName, clock: &dyn Clock) -> Option<SlotState> {
    // Slots are of one server: of several, the one that the replication connection goes to.
    let mut info = info.clone();
    info.hosts.retain(|host| host.to_string() == peer);
    let asked =
        timeout(clock, SQL_TIMEOUT, async { SqlSession::connect(&info).await?.slot(name.as_str()).await }).await;
    match asked {
        Some(Ok(state)) => state,
        Some(Err(error)) => {
            tracing::debug!(slot = %name, %error, "the state of the slot cannot be read by SQL");
            None
        }
        None => {
            tracing::debug!(slot = %name, "the server did not show the state of the slot in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SlotDefect, defect_of};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::sql::SlotState;
    use crate::postgres::wire::ReplicationSlot;

    #[test]
    fn a_slot_that_holds_nothing_is_recognised_by_either_view() {
        let at = Some(Lsn::new(0x100_0000));
        let shown = |restart| Some(ReplicationSlot { restart, timeline: None });
        let state = |restart, status: &str, invalidation: Option<&str>| SlotState {
            active: false,
            restart,
            wal_status: Some(status.to_owned()).filter(|status| !status.is_empty()),
            invalidation: invalidation.map(str::to_owned),
        };
        let invalidated = |reason: &str| Some(SlotDefect::Invalidated(reason.to_owned()));
        for (shown, state, expected) in [
            (shown(at), Some(state(at, "reserved", None)), None),
            (shown(at), Some(state(at, "extended", None)), None),
            (shown(at), Some(state(at, "unreserved", None)), None),
            (shown(None), Some(state(None, "lost", None)), invalidated("wal_removed")),
            // It was streamed from after its invalidation: only the status still shows it (16), or the reason (17).
            (shown(at), Some(state(at, "lost", None)), invalidated("wal_removed")),
            (shown(at), Some(state(at, "lost", Some("idle_timeout"))), invalidated("idle_timeout")),
            (shown(None), Some(state(None, "", None)), Some(SlotDefect::Unreserved)),
            (shown(None), None, Some(SlotDefect::Unreserved)),
            (shown(at), None, None),
            (None, Some(state(None, "lost", None)), invalidated("wal_removed")),
            (None, None, None),
        ] {
            assert_eq!(defect_of(shown, state.as_ref()), expected, "{shown:?} {state:?}");
        }
    }
}

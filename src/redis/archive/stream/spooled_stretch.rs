//! What a spool file holds of a stretch, and the stretch that becomes of it.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::deletions::DeletionScanner;
use super::stretch::{ArrivalMark, PreviousHistory, ReadDelays, ServerRun, StreamStretch, StretchName, UntimedBacklog};
use crate::base::clock::ClockMeasurement;
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::format::resp::{CommandKind, CommandLimits, CommandParser};

/// What a stretch begins with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StretchStart {
    /// The history.
    pub replid: ReplicationId,
    /// The offset before its first byte, which begins a command.
    pub first: u64,
    /// The database that it acts on.
    pub db: u32,
    /// Whether a transaction is open.
    pub in_transaction: bool,
    /// The history before, if this is the first stretch under a new name.
    pub follows: Option<PreviousHistory>,
    /// When.
    pub started_at: Timestamp,
    /// From whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<ServerRun>,
    /// The offset to which the server had come when it was followed, if the stretch begins with that or what came of
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed_until: Option<u64>,
}

impl StretchStart {
    /// The name of the stretch.
    #[must_use]
    pub const fn name(&self) -> StretchName {
        StretchName { replid: self.replid, first: self.first }
    }

    /// The beginning of a history, of which nothing more is known.
    pub(crate) fn new(replid: ReplicationId, started_at: Timestamp) -> StretchStart {
        let (first, db, in_transaction) = (0, 0, false);
        StretchStart { replid, first, db, in_transaction, follows: None, started_at, run: None, missed_until: None }
    }
}

/// A file's content.
#[derive(Clone, Debug)]
pub struct SpooledStretch {
    /// What it begins with.
    pub beginning: StretchStart,
    /// Its bytes, which may end within a command.
    pub bytes: Bytes,
    /// Its marks.
    pub marks: Vec<ArrivalMark>,
    /// When the last of it had come.
    pub ended_at: Timestamp,
    /// What was measured of the server's clock meanwhile.
    pub clock: Option<ClockMeasurement>,
    /// How promptly it was read.
    pub reading: Option<ReadDelays>,
}

impl SpooledStretch {
    /// The offset before a transaction that is open at the end; `None` if none is, or it does not begin here.
    pub(super) fn last_cut_offset(&self) -> Option<u64> {
        let StretchStart { first, db, in_transaction, .. } = self.beginning;
        let mut parser = CommandParser::resume_at(first, db, in_transaction, CommandLimits::default());
        // What is wrong with the bytes is said when they are used.
        drop(parser.push(&self.bytes, &mut |_| {}));
        let cut = parser.cut().filter(|_| parser.in_transaction())?;
        Some(cut.offset)
    }

    /// The stretch up to its last whole command, and its bytes.
    #[must_use]
    pub fn into_stretch(self) -> (StreamStretch, Bytes) {
        let SpooledStretch { beginning, bytes, mut marks, ended_at, clock, reading } = self;
        let StretchStart { replid, first, db, in_transaction, follows, started_at, run, missed_until } = beginning;
        let mut parser = CommandParser::resume_at(first, db, in_transaction, CommandLimits::default());
        let (mut writes, mut missed) = (0_u64, missed_until.map(|until| UntimedBacklog { until, writes: 0 }));
        let mut scan = DeletionScanner::new(first, in_transaction, &marks, ended_at);
        let parsed = parser.push(&bytes, &mut |command| {
            scan.push_command(command);
            let write = u64::from(command.kind == CommandKind::Other);
            writes = writes.saturating_add(write);
            if let Some(missed) = missed.as_mut().filter(|missed| command.end <= missed.until) {
                missed.writes = missed.writes.saturating_add(write);
            }
        });
        if let Err(error) = parsed {
            tracing::error!(%replid, %error, "the spooled stream is used up to there");
        }
        let notable = Some(scan.finish());
        let last = parser.boundary();
        let len = usize::try_from(last.saturating_sub(first)).unwrap_or(0).min(bytes.len());
        marks.retain(|mark| mark.offset <= last);
        let stretch = StreamStretch {
            replid,
            first,
            last,
            db,
            in_transaction,
            db_after: parser.db(),
            in_transaction_after: parser.in_transaction(),
            follows,
            started_at,
            ended_at,
            writes,
            marks,
            run,
            notable,
            clock,
            missed,
            reading,
        };
        (stretch, bytes.slice(..len))
    }
}

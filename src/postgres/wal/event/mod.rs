//! What a record means to a restore: transactions that end, and everything else worth finding again.
//!
//! Endings are what PostgreSQL compares a target time or xid with (`recoveryStopsBefore` and `recoveryStopsAfter` in
//! `xlogrecovery.c`): COMMIT, ABORT and both of a prepared transaction, nothing else. Bodies are read as
//! `ParseCommitRecord` and its kin in `rmgrdesc/` do.

mod parse;
mod wal_event;

pub use super::identifiers::{RelFileLocator, Xid};
pub use parse::{RecordBodyError, RecordMeaning, fuzz, interpret};
pub(super) use parse::{interpret_front, may_matter};
pub use wal_event::{
    CheckpointRecord, DroppedObject, DroppedObjectKind, MAX_ITEMS, MAX_SUBTRANSACTIONS, RemovedObjects, TransactionEnd,
    TransactionEndKind, WalEvent, WalEventKind, WalLevel, WalParameters,
};

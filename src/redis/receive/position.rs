//! Where the stream is to go on.

use jiff::Timestamp;

use crate::redis::archive::StreamStretch;
use crate::redis::archive::stream::PreviousHistory;
use crate::redis::format::replication_id::ReplicationId;

/// Where the stream is to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivePosition {
    /// The history.
    pub replid: ReplicationId,
    /// The offset up to which everything is durable here, after a whole command.
    pub offset: u64,
    /// The database that the next command acts on.
    pub(super) db: u32,
    /// Whether a transaction is open.
    pub(super) in_transaction: bool,
    /// The history before, if nothing was stored under this name yet.
    pub(super) follows: Option<PreviousHistory>,
    /// When the last byte had come.
    pub(super) until: Option<Timestamp>,
}

impl ReceivePosition {
    pub(super) fn from_stretch(stretch: &StreamStretch) -> ReceivePosition {
        ReceivePosition {
            replid: stretch.replid,
            offset: stretch.last,
            db: stretch.db_after,
            in_transaction: stretch.in_transaction_after,
            follows: stretch.follows.filter(|_| stretch.first == stretch.last),
            until: Some(stretch.ended_at),
        }
    }
}

/// The position under the name that the server gave it.
pub(super) fn with_new_replid(position: ReceivePosition, name: Option<ReplicationId>) -> ReceivePosition {
    match name.filter(|name| *name != position.replid) {
        Some(replid) => {
            let before =
                position.follows.unwrap_or(PreviousHistory { replid: position.replid, offset: position.offset });
            ReceivePosition { replid, follows: Some(before), ..position }
        }
        None => position,
    }
}

#[cfg(test)]
mod tests {
    use super::{ReceivePosition, with_new_replid};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn position(offset: u64) -> ReceivePosition {
        let replid = A.parse().unwrap();
        ReceivePosition { replid, offset, db: 0, in_transaction: false, follows: None, until: None }
    }

    #[test]
    fn a_name_that_changes_twice_before_anything_comes_still_follows_the_first() {
        let b = with_new_replid(position(7), Some(B.parse().unwrap()));
        let c = with_new_replid(b, Some("cccccccccccccccccccccccccccccccccccccccc".parse().unwrap()));
        assert_eq!(c.follows.map(|follows| (follows.replid.to_string(), follows.offset)), Some((A.to_owned(), 7)));
        assert_eq!(with_new_replid(position(7), None), position(7));
    }
}

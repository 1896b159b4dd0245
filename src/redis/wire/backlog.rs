//! The replication backlog: from which offsets a server continues its stream (`masterTryPartialResynchronization`,
//! replication.c).
//!
//! A server counts the next byte that a replica asks for, walkeep the bytes before it: the next byte is one more.

use std::ops::RangeInclusive;

use super::info::ServerInfo;
use crate::redis::format::replication_id::ReplicationId;

/// The histories and the backlog of a server, as `INFO replication` reports them.
#[derive(Clone, Debug, Default)]
pub struct ReplicationBacklog {
    replid: Option<ReplicationId>,
    /// The history before, and the first next byte that is not in it.
    previous: Option<(ReplicationId, u64)>,
    /// The next bytes from which the server continues; `None` if it keeps no backlog.
    next_bytes: Option<RangeInclusive<u64>>,
    /// `repl-backlog-size`, in bytes.
    size: u64,
}

impl ReplicationBacklog {
    /// Reads the lines that describe it.
    #[must_use]
    pub fn from_info(info: &ServerInfo) -> ReplicationBacklog {
        let id = |name: &str| info.get(name).and_then(|id| id.parse().ok());
        let active = info.number("repl_backlog_active") == Some(1);
        let first = info.number("repl_backlog_first_byte_offset").filter(|_| active);
        let len = info.number("repl_backlog_histlen").unwrap_or(0);
        ReplicationBacklog {
            replid: id("master_replid"),
            previous: id("master_replid2").zip(info.number("second_repl_offset")),
            next_bytes: first.map(|first| first..=first.saturating_add(len)),
            size: info.number("repl_backlog_size").unwrap_or(0),
        }
    }

    /// How many bytes the server keeps at most (`repl-backlog-size`).
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The first next byte from which the server continues; `None` if it keeps no backlog.
    #[must_use]
    pub fn first_next_byte(&self) -> Option<u64> {
        self.next_bytes.as_ref().map(|next| *next.start())
    }

    /// Whether everything up to this offset of that history is in the server's own history.
    #[must_use]
    pub fn has_history(&self, replid: ReplicationId, offset: u64) -> bool {
        let before = self.previous.is_some_and(|(id, end)| id == replid && offset.saturating_add(1) <= end);
        self.replid == Some(replid) || before
    }

    /// Whether the server has the byte after this offset, or is at it.
    #[must_use]
    pub fn covers(&self, offset: u64) -> bool {
        self.next_bytes.as_ref().is_some_and(|next| next.contains(&offset.saturating_add(1)))
    }

    /// Whether the server continues that history after this offset. If it does not, asking it makes it begin a
    /// snapshot.
    #[must_use]
    pub fn can_continue(&self, replid: ReplicationId, offset: u64) -> bool {
        self.has_history(replid, offset) && self.covers(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::ReplicationBacklog;
    use crate::redis::wire::ServerInfo;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn can_continue(info: &ServerInfo, offset: u64) -> bool {
        ReplicationBacklog::from_info(info).can_continue(A.parse().unwrap(), offset)
    }

    /// As `masterTryPartialResynchronization` decides.
    #[test]
    fn a_server_continues_within_its_backlog_and_history() {
        let info = |id: &str, second: &str| {
            ServerInfo::parse(&format!(
                "master_replid:{id}\nmaster_replid2:{A}\nsecond_repl_offset:{second}\nrepl_backlog_active:1\n\
                 repl_backlog_first_byte_offset:101\nrepl_backlog_histlen:50\n"
            ))
        };
        for (offset, same, failed_over) in [
            (99, false, false),
            (100, true, true),
            (120, true, true),
            (121, true, false),
            (150, true, false),
            (151, false, false),
        ] {
            assert_eq!(can_continue(&info(A, "-1"), offset), same, "{offset}");
            assert_eq!(can_continue(&info(B, "121"), offset), failed_over, "{offset}");
        }
        assert!(!can_continue(&ServerInfo::parse(&format!("master_replid:{A}\nrepl_backlog_active:0")), 100));
    }

    #[test]
    fn an_inactive_backlog_has_a_size_and_no_beginning() {
        let backlog = |active: u8| {
            ReplicationBacklog::from_info(&ServerInfo::parse(&format!(
                "master_replid:{A}\nrepl_backlog_active:{active}\nrepl_backlog_size:16384\n\
                 repl_backlog_first_byte_offset:101\nrepl_backlog_histlen:50\n"
            )))
        };
        assert_eq!((backlog(1).size(), backlog(1).first_next_byte()), (16_384, Some(101)));
        assert_eq!((backlog(0).size(), backlog(0).first_next_byte()), (16_384, None));
    }
}

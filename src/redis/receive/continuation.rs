//! Whether a server continues the stream from a position, now or in a moment.

use super::position::{ReceivePosition, with_new_replid};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::wire::{RedisConnection, ReplicationBacklog, ServerInfo, SyncAnswer, SyncRequest};

/// The stream from the position on, under the name that it has now; `None` if the server cannot continue there.
pub(super) async fn request_continuation(
    mut connection: RedisConnection,
    info: &ServerInfo,
    position: ReceivePosition,
) -> Result<Option<(RedisConnection, ReceivePosition)>, SnapshotError> {
    if !ReplicationBacklog::from_info(info).can_continue(position.replid, position.offset) {
        return Ok(None);
    }
    let synced =
        connection.request_sync(SyncRequest::Continue(position.replid, position.offset), info.version()).await?;
    Ok(match synced {
        SyncAnswer::Continue(name) => Some((connection, with_new_replid(position, name))),
        SyncAnswer::Full(..) => None,
    })
}

/// Why the server may continue in a moment though it cannot now: a replica that has just begun has no backlog before
/// its own link is up, and one that lags comes to where we are. To begin anew would make a gap of that.
pub(super) fn waiting_reason(info: &ServerInfo, position: &ReceivePosition) -> Option<String> {
    let replica = info.get("role") == Some("slave");
    let same = info.get("master_replid") == Some(position.replid.to_string().as_str());
    let behind = info.number("master_repl_offset").is_some_and(|offset| offset < position.offset);
    match info.get("master_link_status") {
        Some(status) if replica && status != "up" => Some("it is a replica without its master".to_owned()),
        Some(_) if replica && same && behind => {
            Some(format!("it is a replica that has not come to offset {} yet", position.offset))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{ReceivePosition, waiting_reason};
    use crate::redis::wire::ServerInfo;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn position(offset: u64) -> ReceivePosition {
        let replid = A.parse().unwrap();
        ReceivePosition { replid, offset, db: 0, in_transaction: false, follows: None, until: None }
    }

    #[test]
    fn a_replica_that_comes_back_is_waited_for() {
        let info = |role: &str, link: &str, id: &str, offset: u64| {
            ServerInfo::parse(&format!(
                "role:{role}\nmaster_link_status:{link}\nmaster_replid:{id}\nmaster_repl_offset:{offset}"
            ))
        };
        for (role, link, id, offset, waits) in [
            ("slave", "down", A, 200, true),
            ("slave", "down", B, 200, true),
            ("slave", "up", A, 99, true),
            ("slave", "up", A, 100, false),
            // Another history does not come to where we are.
            ("slave", "up", B, 99, false),
            ("master", "up", A, 99, false),
        ] {
            assert_eq!(
                waiting_reason(&info(role, link, id, offset), &position(100)).is_some(),
                waits,
                "{role} {link} {id}"
            );
        }
        assert_eq!(waiting_reason(&ServerInfo::parse("role:master"), &position(100)), None);
    }
}

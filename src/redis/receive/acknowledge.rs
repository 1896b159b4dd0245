//! What may be acknowledged to the server. Pure.

/// The offset for `REPLCONF ACK`: nothing is acknowledged before a stored snapshot makes it restorable, and nothing
/// that is not durable on this machine. The server takes a smaller offset than before for a sign of life
/// (`replconfCommand`, replication.c).
pub(super) const fn acknowledgeable_offset(durable: u64, has_snapshot: bool) -> u64 {
    if has_snapshot { durable } else { 0 }
}

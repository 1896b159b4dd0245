//! The Redis protocol (RESP2) as bytes: replies to what was asked ([`RedisReply`]), and the stream of commands that a
//! server sends its replicas ([`CommandParser`]), each with its exact place in it.
//!
//! Offsets count every byte, as `master_repl_offset` does: commands of clients, `PING`, `REPLCONF GETACK` and empty
//! lines alike (`replicationFeedReplicas` in replication.c). The parser knows which database a command acts on, and
//! where the stream may be cut: never within a command, never between `MULTI` and `EXEC`, in which the effects of a
//! script or function arrive too (`propagatePendingCommands` in server.c).
//!
//! Nothing here allocates by what a length claims: of each command a bounded beginning is kept, the rest is counted and
//! passed over.

mod error;
mod replication_stream;
mod reply;

pub use error::RespError;
pub use replication_stream::{
    CommandArgument, CommandKind, CommandLimits, CommandParser, ReplicatedCommand, StreamCut,
};
pub use reply::{RedisReply, encode_command};

/// Any bytes: both parsers end, hold no more than they say, and see the same however the bytes are cut.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let whole = replication_stream::fuzz::seen(data, &[]);
    let cut = usize::from(data.first().copied().unwrap_or(0));
    assert_eq!(whole, replication_stream::fuzz::seen(data, &[cut.min(data.len())]), "another result when cut at {cut}");
    let bytes: Vec<usize> = (0..data.len().min(512)).collect();
    assert_eq!(whole, replication_stream::fuzz::seen(data, &bytes), "another result byte by byte");
    reply::fuzz(data);
}

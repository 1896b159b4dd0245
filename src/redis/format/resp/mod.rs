//! The Redis protocol (RESP2) as bytes: replies to what was asked ([`RedisReply`]), and the stream of commands that a server sends its replicas
//! ([`CommandParser`]), each with its exact place in it.
//!
//! Offsets count every byte, as `master_repl_offset` does: commands of clients, `PING`, `REPLCONF GETACK` and empty lines alike
//! (`replicationFeedReplicas` in replication.c). The parser knows which database a command acts on, and where the stream may be cut: never
//! within a command, never between `MULTI` and `EXEC`, in which the effects of a script or function arrive too (`propagatePendingCommands`
//! in server.c).
//!
//! Nothing here allocates by what a length claims: of each command a bounded beginning is kept, the rest is counted and passed over.

mod replication_stream;
mod reply;

pub use replication_stream::{
    CommandArgument, CommandKind, CommandLimits, CommandParser, ReplicatedCommand, StreamCut,
};
pub use reply::{RedisReply, encode_command};

/// Bytes that are no RESP, or beyond its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// A line did not end within its limit.
    #[error("a line of more than {limit} bytes in the Redis protocol at offset {at}")]
    Endless {
        /// Where it begins.
        at: u64,
        /// What is allowed.
        limit: usize,
    },
    /// A number that is none.
    #[error("{what} in the Redis protocol at offset {at} is no number: {found:?}")]
    Number {
        /// Where it is.
        at: u64,
        /// What it counts.
        what: &'static str,
        /// What was found, at most its first bytes.
        found: String,
    },
    /// A number beyond its limit.
    #[error("{what} in the Redis protocol at offset {at} is {found}, more than the {limit} that are allowed")]
    TooMuch {
        /// Where it is.
        at: u64,
        /// What it counts.
        what: &'static str,
        /// What was found.
        found: i128,
        /// What is allowed.
        limit: u64,
    },
    /// A byte that cannot stand where it does.
    #[error("expected {wanted} in the Redis protocol at offset {at}, found byte {found:#04x}")]
    Unexpected {
        /// Where it is.
        at: u64,
        /// What should be there.
        wanted: &'static str,
        /// What is.
        found: u8,
    },
    /// Replies within replies without end.
    #[error("replies are nested more than {limit} deep")]
    Deep {
        /// What is allowed.
        limit: usize,
    },
}

/// A decimal number as RESP writes it: digits, perhaps after a minus sign.
fn parse_number(text: &[u8], what: &'static str, at: u64) -> Result<i64, RespError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let wrong = || {
        let head = text.get(..text.len().min(32)).unwrap_or_default();
        RespError::Number { at, what, found: String::from_utf8_lossy(head).into_owned() }
    };
    if digits.is_empty() || digits.len() > 20 {
        return Err(wrong());
    }
    let mut value: i64 = 0;
    for digit in digits {
        let digit = if digit.is_ascii_digit() { i64::from(digit - b'0') } else { return Err(wrong()) };
        let signed = if negative { -digit } else { digit };
        value = value.checked_mul(10).and_then(|value| value.checked_add(signed)).ok_or_else(wrong)?;
    }
    Ok(value)
}

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

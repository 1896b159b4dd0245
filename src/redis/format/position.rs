//! How people name a position in the stream.

use std::fmt;
use std::str::FromStr;

use super::replication_id::ReplicationId;

/// Digits of a replication id that tell it from all others of an instance.
const REPLID_PREFIX_DIGITS: usize = 8;

/// A place in the stream: `OFFSET@HISTORY`, the beginning of the history's replication id, or `OFFSET` alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamPosition {
    /// How many bytes of the history come before.
    pub offset: u64,
    /// What the history's replication id begins with; empty for any.
    pub history: String,
}

/// What was given names no place in a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no place in a stream; write an offset and the beginning of its replication id, like 84213@1f3ac09b")]
pub struct BadStreamPosition(String);

impl FromStr for StreamPosition {
    type Err = BadStreamPosition;

    fn from_str(text: &str) -> Result<StreamPosition, BadStreamPosition> {
        let bad = || BadStreamPosition(text.chars().take(80).collect());
        let (offset, history) = text.split_once('@').unwrap_or((text, ""));
        let hexadecimal = history.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let named = text.contains('@') != history.is_empty();
        if !hexadecimal || !named || history.len() > 40 || !offset.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(StreamPosition { offset: offset.parse().map_err(|_number| bad())?, history: history.to_owned() })
    }
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.history.as_str() {
            "" => write!(f, "{}", self.offset),
            history => write!(f, "{}@{history}", self.offset),
        }
    }
}

impl StreamPosition {
    /// This place of this history, as short as it can be said.
    #[must_use]
    pub fn new(replid: ReplicationId, offset: u64) -> StreamPosition {
        StreamPosition { offset, history: replid.to_string().chars().take(REPLID_PREFIX_DIGITS).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::StreamPosition;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let replid = "0123456789abcdef0123456789abcdef01234567".parse().unwrap();
        assert_eq!(StreamPosition::new(replid, 84213).to_string(), "84213@01234567");
        for text in ["84213@01234567", "0", "18446744073709551615@f"] {
            assert_eq!(text.parse::<StreamPosition>().unwrap().to_string(), text);
        }
        for wrong in ["", "@", "1@", "@ab", "-1", "+1", "1@xyz", "1@AB", "1 @ab", "18446744073709551616", "1@a@b"] {
            assert!(wrong.parse::<StreamPosition>().is_err(), "{wrong}");
        }
    }
}

//! The name of a history of writes.

use std::fmt;
use std::str::FromStr;

/// Digits of a replication id (`CONFIG_RUN_ID_SIZE`, server.h).
const ID_DIGITS: usize = 40;

/// The name of a history of writes, which a server shares with its replicas.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReplicationId([u8; 20]);

/// What was given is no replication id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no replication id: 40 hexadecimal digits in lower case")]
pub struct BadReplicationId(String);

impl FromStr for ReplicationId {
    type Err = BadReplicationId;

    fn from_str(text: &str) -> Result<ReplicationId, BadReplicationId> {
        let bad = || BadReplicationId(text.chars().take(64).collect());
        if text.len() != ID_DIGITS || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut id = [0; 20];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = pair.ok_or_else(bad)?;
        }
        Ok(ReplicationId(id))
    }
}

impl fmt::Display for ReplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ReplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ReplicationId {
    type Error = BadReplicationId;

    fn try_from(text: String) -> Result<ReplicationId, BadReplicationId> {
        text.parse()
    }
}

impl From<ReplicationId> for String {
    fn from(id: ReplicationId) -> String {
        id.to_string()
    }
}

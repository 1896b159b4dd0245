//! The stream of commands, in stretches.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::notable::Notables;
use super::{Error, Instance};
use crate::redis::ReplicationId;
use crate::repository::Put;
use crate::repository::instance::InstanceObject;
use crate::repository::layout::ObjectKey;
use crate::seal::Kind;

/// By `time`, everything before `offset` had come; there the stream may be cut, and the next command acts on database `db`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "(u64, u32, i64)", into = "(u64, u32, i64)")]
pub struct Mark {
    /// The offset.
    pub offset: u64,
    /// The database.
    pub db: u32,
    /// When.
    pub time: Timestamp,
}

impl From<(u64, u32, i64)> for Mark {
    fn from((offset, db, time): (u64, u32, i64)) -> Mark {
        Mark { offset, db, time: Timestamp::from_microsecond(time).unwrap_or(Timestamp::UNIX_EPOCH) }
    }
}

impl From<Mark> for (u64, u32, i64) {
    fn from(mark: Mark) -> (u64, u32, i64) {
        (mark.offset, mark.db, mark.time.as_microsecond())
    }
}

/// The history that a history goes on from, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Follows {
    /// Its name before.
    pub replid: ReplicationId,
    /// The offset at which the name changed.
    pub offset: u64,
}

/// The server from which a stretch came.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its address.
    pub server: String,
    /// The name that it gave itself when it started.
    pub id: String,
}

/// A stretch of the stream: what the metadata of its object says. It begins and ends between two commands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// The history.
    pub replid: ReplicationId,
    /// The offset before its first byte.
    pub first: u64,
    /// The offset after its last byte.
    pub last: u64,
    /// The database that its first command acts on.
    pub db: u32,
    /// Whether it begins within a transaction.
    pub in_transaction: bool,
    /// The database that the command after it acts on.
    pub db_after: u32,
    /// Whether a transaction is open at its end.
    pub in_transaction_after: bool,
    /// The history before, if this is the first stretch under a new name.
    pub follows: Option<Follows>,
    /// When the stream was there, without its first byte.
    pub started_at: Timestamp,
    /// When its last byte had come.
    pub ended_at: Timestamp,
    /// Commands in it that change data.
    pub writes: u64,
    /// What had come when, in order.
    pub marks: Vec<Mark>,
    /// From whom it came. Not said by the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// What stands out in it. Not said by the first versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notable: Option<Notables>,
}

impl Instance {
    /// Stores a stretch and its bytes. Says whether that was new.
    ///
    /// # Errors
    /// A repository did not take it, or has something else in its place.
    pub async fn put_commands(&self, stretch: &Stretch, bytes: Bytes) -> Result<Put, Error> {
        let key = self.commands_key(stretch.replid, stretch.first)?;
        let metadata = serde_json::to_vec(stretch).map_err(|error| self.unreadable(&key, error.to_string()))?;
        let put = self.archive().put_object(Kind::Commands, &key, vec![bytes], metadata).await?;
        if put == Put::Exists {
            let there = self.stored_stretch(stretch.replid, stretch.first).await?;
            if there.is_none_or(|there| there.last < stretch.last) {
                let why = format!("it ends before offset {}, up to which the stream was received", stretch.last);
                return Err(self.unreadable(&key, why));
            }
        }
        Ok(put)
    }

    /// What a stored stretch says of itself.
    ///
    /// # Errors
    /// No repository gave it, or it does not open.
    pub async fn stored_stretch(&self, replid: ReplicationId, first: u64) -> Result<Option<Stretch>, Error> {
        let key = self.commands_key(replid, first)?;
        let Some(trailer) = self.archive().get_trailer(Kind::Commands, &key).await? else { return Ok(None) };
        let parsed = serde_json::from_slice(trailer.metadata());
        parsed.map(Some).map_err(|error| self.unreadable(&key, error.to_string()))
    }

    /// The bytes of a stored stretch.
    ///
    /// # Errors
    /// No repository gave them, or they do not open.
    pub async fn stored_commands(&self, replid: ReplicationId, first: u64) -> Result<Option<Bytes>, Error> {
        let key = self.commands_key(replid, first)?;
        Ok(self.archive().get_object(Kind::Commands, &key).await?.map(|opened| opened.plain))
    }

    /// History and first offset of all stretches in the repositories, by both, with the bytes of their objects.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn stored_stretches(&self) -> Result<Vec<(ReplicationId, u64, u64)>, Error> {
        let listing = self.archive().list(&self.layout().streams(), None).await?;
        let name = |key: &ObjectKey| match self.layout().object(key)? {
            InstanceObject::Commands(id, first) => Some((id.parse().ok()?, first)),
            _ => None,
        };
        let named =
            listing.objects.iter().filter_map(|object| name(&object.key).map(|(id, first)| (id, first, object.len)));
        let mut stretches: Vec<(ReplicationId, u64, u64)> = named.collect();
        stretches.sort_unstable();
        Ok(stretches)
    }

    fn commands_key(&self, replid: ReplicationId, first: u64) -> Result<ObjectKey, Error> {
        self.layout().commands(&replid.to_string(), first).map_err(|bad| self.unnamed(&bad))
    }
}

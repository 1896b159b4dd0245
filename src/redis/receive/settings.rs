//! What to receive, and what an observer hears of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::redis::archive::stream::PreviousHistory;
use crate::redis::archive::{Gap, SnapshotManifest, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::wire::RedisSource;

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct ReceiveSettings {
    /// Where the server is.
    pub source: RedisSource,
    /// Where the spool is.
    pub state_dir: PathBuf,
    /// A stretch ends when it has so many bytes.
    pub rotate_bytes: u64,
    /// A stretch in which anything was written ends after this time.
    pub rotate_after: Duration,
    /// Any stretch ends after this time.
    pub rotate_idle: Duration,
}

impl ReceiveSettings {
    /// The usual: 16 MiB, or half a minute, or four minutes of nothing but signs of life: five minutes are late to
    /// `walkeep health`, which may see the repository alone. What is younger is in the spool alone.
    #[must_use]
    pub fn new(source: RedisSource, state_dir: PathBuf) -> ReceiveSettings {
        let (rotate_after, rotate_idle) = (Duration::from_secs(30), Duration::from_secs(240));
        ReceiveSettings { source, state_dir, rotate_bytes: 16 << 20, rotate_after, rotate_idle }
    }
}

/// What an observer hears of.
#[derive(Debug)]
pub enum ReceiveEvent<'e> {
    /// The stream is followed.
    Streaming {
        /// Which server.
        server: &'e str,
        /// Which history.
        replid: ReplicationId,
        /// From where.
        from: u64,
    },
    /// The history goes on under another name.
    Renamed(PreviousHistory, ReplicationId),
    /// A stretch is in every repository.
    Stored(&'e StreamStretch),
    /// Everything up to here is durable, and the server knows.
    Acknowledged(u64),
    /// A snapshot to begin with is stored.
    Snapshot(&'e SnapshotManifest),
    /// The stream has a break.
    Gap(&'e Gap),
}

/// Who hears what happens. Called between two reads of the socket, so it must return at once.
pub trait ReceiveObserver: Send + std::marker::Sync {
    /// Something happened.
    fn event(&self, event: ReceiveEvent<'_>);
}

/// Nobody.
impl ReceiveObserver for () {
    fn event(&self, _event: ReceiveEvent<'_>) {}
}

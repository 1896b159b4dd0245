//! What a receiver is given: its settings, and who hears of what it does.

use std::path::PathBuf;
use std::time::Duration;

use super::acknowledge::AcknowledgePolicy;
use super::error::ReceiveError;
use crate::postgres::archive::gap::Gap;
use crate::postgres::archive::ingest::Ingested;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SegmentName;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wire::{Conninfo, SlotName};

/// What to receive, and how.
#[derive(Debug, Clone)]
pub struct ReceiveSettings {
    /// Where the server is.
    pub conninfo: Conninfo,
    /// The slot that makes the server keep WAL for us; made if it isn't there. Without one the server may remove WAL
    /// that we don't have yet.
    pub slot: Option<SlotName>,
    /// Where the spool is.
    pub state_dir: PathBuf,
    /// When WAL counts as safe.
    pub acknowledge: AcknowledgePolicy,
    /// How often new WAL of the segment under way is copied into the repositories; `None` for not before it is whole.
    pub copy_every: Option<Duration>,
    /// End when everything before this position is archived.
    pub end: Option<Lsn>,
    /// Bytes of segments that may be in memory on their way to the repository.
    pub memory: u64,
    /// Bytes of whole segments that may be spooled while the repository can't be reached; after that the server has to
    /// keep them.
    pub spool_limit: u64,
}

impl ReceiveSettings {
    /// 10 seconds: in a day some 8,600 small puts at the most, which object stores charge a few cents for.
    pub const DEFAULT_COPY_INTERVAL: Duration = Duration::from_secs(10);
    /// 48 MiB: two segments of the usual size being sealed, and one being put.
    const DEFAULT_MEMORY_BYTES: u64 = 48 << 20;
    /// 16 GiB: hours of a busy server, and a size that a state directory may have.
    const DEFAULT_SPOOL_BYTES: u64 = 16 << 30;

    /// The usual settings for a server.
    #[must_use]
    pub fn new(conninfo: Conninfo, slot: Option<SlotName>, state_dir: PathBuf) -> ReceiveSettings {
        ReceiveSettings {
            conninfo,
            slot,
            state_dir,
            acknowledge: AcknowledgePolicy::Spool,
            copy_every: Some(ReceiveSettings::DEFAULT_COPY_INTERVAL),
            end: None,
            memory: ReceiveSettings::DEFAULT_MEMORY_BYTES,
            spool_limit: ReceiveSettings::DEFAULT_SPOOL_BYTES,
        }
    }
}

/// What an observer hears of.
#[derive(Debug)]
pub enum ReceiveEvent {
    /// A stream has begun.
    Streaming {
        /// Which server.
        server: String,
        /// On which timeline.
        timeline: TimelineId,
        /// From where.
        from: Lsn,
    },
    /// A segment is in every repository.
    Archived {
        /// Which segment.
        name: SegmentName,
        /// What came of it; its digest is for the index.
        ingested: Ingested,
    },
    /// The server was told that everything before this is safe.
    Acknowledged {
        /// The position.
        until: Lsn,
    },
    /// The server goes on on another timeline.
    Timeline {
        /// The new one.
        timeline: TimelineId,
        /// Where it forked off.
        from: Lsn,
    },
    /// The server was asked for its clock.
    Clock {
        /// What is known of it since the segment under way began, as it is noted with segments
        /// ([`crate::postgres::archive::clock_notes`]). For whoever else puts them.
        note: Vec<u8>,
    },
    /// WAL is lost.
    Gap(Gap),
    /// The stream broke; it is begun again after a pause.
    Disconnected {
        /// Why.
        error: ReceiveError,
        /// How long is waited.
        pause: Duration,
    },
}

/// Who hears what happens, and logs what is worth it: the index, metrics, a progress bar. Called between two reads of
/// the socket, so it must return at once.
pub trait ReceiveObserver: Send + Sync {
    /// Something happened.
    fn event(&self, event: ReceiveEvent);
}

/// Nobody.
impl ReceiveObserver for () {
    fn event(&self, _event: ReceiveEvent) {}
}

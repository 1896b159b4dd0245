//! What is known of the server before anything is streamed.

use crate::postgres::fork_check::ComparedServer;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::wire::{ReplicationSlot, SystemIdentity};

/// The server, its timelines and its slot.
#[derive(Debug)]
pub(super) struct ResumeContext {
    pub(super) identity: SystemIdentity,
    /// Whether it is in recovery. Asked before the identity, so that a primary's position is its own.
    pub(super) standby: bool,
    /// Which server this is, for messages.
    pub(super) server: String,
    pub(super) size: SegmentSize,
    /// The server's timelines, up to its own.
    pub(super) path: TimelinePath,
    /// The slot, where the server can show it.
    pub(super) slot: Option<ReplicationSlot>,
}

impl ResumeContext {
    /// As a comparison with the archive needs it.
    pub(super) fn compared_server(&self) -> ComparedServer {
        let ResumeContext { identity, standby, server, size, path, .. } = self;
        ComparedServer { identity: *identity, standby: *standby, name: server.clone(), size: *size, path: path.clone() }
    }
}

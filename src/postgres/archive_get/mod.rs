//! `restore_command`: one file out of the archive, for PostgreSQL to replay.
//!
//! PostgreSQL cannot tell "there is no more" from "I could not get it": any exit code up to 125 ends recovery and
//! promotes, whatever is still in the archive. So 1 is only said once it is proved that the file is not there and
//! nothing that follows it is either ([`end_of_archive`]); everything else is above 125, which stops PostgreSQL. A
//! standby wants the reverse, since a fatal code would take it down and it asks again anyway (TRAPS 40 to 43).
//!
//! The file is written beside its destination, synced and renamed, so that PostgreSQL never sees a part of it. The
//! segments that it will ask for next are fetched ahead by a process of their own ([`prefetch`]).

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "repositories are moved away")]
mod tests;
mod end_of_archive;
mod error;
mod wal_file_write;
pub mod prefetch;

use std::path::PathBuf;
use std::sync::Arc;

use crate::postgres::archive::Archive;
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::segment::{SegmentName, WalFileName};
use prefetch::Prefetch;
use wal_file_write::write_file;

pub use error::ArchiveGetError;

/// What PostgreSQL asks for.
#[derive(Clone, Debug)]
pub struct ArchiveGetRequest {
    /// The file's name, `%f`.
    pub name: String,
    /// Where it shall be, `%p`.
    pub dest: PathBuf,
    /// Whether a standby asks, which asks again.
    pub standby: bool,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArchiveGetOutcome {
    /// The file is in its place, durable.
    Placed(WalFileSource),
    /// It is proved that neither the file nor anything after it is archived.
    Absent,
}

/// Where a file came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalFileSource {
    /// Its object in the archive.
    Archive,
    /// The same, fetched ahead.
    Prefetched,
    /// The end of a timeline that a promotion cut in the middle of a segment, put together from its `.partial` or from
    /// the next timeline's copy of it.
    Tail,
    /// What has been received of a segment that still grows.
    Received,
}

/// "There is no more": PostgreSQL ends recovery.
pub const EXIT_ABSENT: u8 = 1;

/// The exit code of a failure that `code` stands for elsewhere: above 125 unless a standby asks, so that
/// PostgreSQL stops instead of promoting. Also for failures before the archive is even open, like a configuration that
/// cannot be read.
#[must_use]
pub const fn failure_exit_code(code: u8, standby: bool) -> u8 {
    // 200 and the code of the same failure in other commands: 205 is a network, 206 damage.
    if standby { EXIT_ABSENT } else { 200_u8.saturating_add(code) }
}

/// Puts the file that PostgreSQL asks for into its place.
///
/// # Errors
/// It could not be had, and is not proved absent either. Never to be taken for [`ArchiveGetOutcome::Absent`] except for
/// a standby.
pub async fn archive_get(
    archive: &Arc<Archive>,
    request: &ArchiveGetRequest,
    prefetch: Option<&Prefetch>,
    spool: Option<&Spool>,
) -> Result<ArchiveGetOutcome, ArchiveGetError> {
    let name = WalFileName::parse(&request.name).ok_or_else(|| ArchiveGetError::Name(request.name.clone()))?;
    let WalFileName::Segment(segment) = name else {
        // PostgreSQL asks for histories when recovery begins and when it ends: what was fetched ahead is of no more
        // use.
        if let (WalFileName::History(_), Some(prefetch)) = (&name, prefetch) {
            prefetch.remove_dir();
        }
        return match archive.file(&name).await? {
            Some(bytes) => {
                write_file(bytes, &request.dest).await.map(|()| ArchiveGetOutcome::Placed(WalFileSource::Archive))
            }
            None => Ok(ArchiveGetOutcome::Absent),
        };
    };
    if let Some(source) = place_archived_segment(archive, segment, request, prefetch).await? {
        if let Some(prefetch) = prefetch {
            prefetch.ensure_fetching_after(segment);
        }
        return Ok(ArchiveGetOutcome::Placed(source));
    }
    end_of_archive::prove_end_of_archive(archive, segment).await?;
    if let Some(prefetch) = prefetch {
        prefetch.remove_dir();
    }
    if request.standby {
        // It streams the rest, or asks again when there is more.
        return Ok(ArchiveGetOutcome::Absent);
    }
    let (tail, received) = (archive.timeline_tail(segment).await?, archive.read_unfinished(spool, segment).await?);
    // What was received may go on beyond the point at which another timeline left.
    let (bytes, source) = match (tail, received) {
        (Some(tail), Some((_, end))) if tail.end > end => (tail.bytes, WalFileSource::Tail),
        (_, Some((bytes, _))) => (bytes, WalFileSource::Received),
        (Some(tail), None) => (tail.bytes, WalFileSource::Tail),
        (None, None) => return Ok(ArchiveGetOutcome::Absent),
    };
    write_file(bytes, &request.dest).await.map(|()| ArchiveGetOutcome::Placed(source))
}

/// Puts a segment that is archived into its place; `None` if it is not archived.
async fn place_archived_segment(
    archive: &Arc<Archive>,
    segment: SegmentName,
    request: &ArchiveGetRequest,
    prefetch: Option<&Prefetch>,
) -> Result<Option<WalFileSource>, ArchiveGetError> {
    if let Some(prefetch) = prefetch
        && prefetch.place_ready_segment(segment, &request.dest)?
    {
        return Ok(Some(WalFileSource::Prefetched));
    }
    match archive.segment(segment).await? {
        Some(bytes) => write_file(bytes, &request.dest).await.map(|()| Some(WalFileSource::Archive)),
        None => Ok(None),
    }
}

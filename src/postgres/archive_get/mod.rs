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

use crate::postgres::archive::beginning_source::BeginningSource;
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::unfinished::SegmentBeginning;
use crate::postgres::archive::{Archive, ArchiveError};
use crate::postgres::format::segment::{SegmentName, WalFileName};
use crate::vault::VaultError;
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
    /// Whether the server has a recovery target, so that PostgreSQL itself refuses to end recovery before it.
    pub has_target: bool,
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
    /// The beginning of a segment that was never completed, because its timeline ended there or WAL was lost: from a
    /// `.tail`, a `.partial` or the next timeline's copy.
    Tail,
    /// What was received so far of a segment: from this machine's spool or from pieces.
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

/// Places a segment that was fetched ahead, without a look at any repository; `None` if it does not lie ready.
///
/// # Errors
/// It cannot be moved to its destination.
pub fn place_prefetched(
    request: &ArchiveGetRequest,
    prefetch: Option<&Prefetch>,
) -> Result<Option<ArchiveGetOutcome>, ArchiveGetError> {
    let (Some(segment), Some(prefetch)) = (SegmentName::parse(&request.name), prefetch) else { return Ok(None) };
    if !prefetch.place_ready_segment(segment, &request.dest)? {
        return Ok(None);
    }
    prefetch.ensure_fetching_after(segment);
    Ok(Some(ArchiveGetOutcome::Placed(WalFileSource::Prefetched)))
}

/// Places a segment or a history that this archive has, if it has it whole. What is absent here, or cannot be read, may
/// be in a repository that is not asked here: `None`, and [`archive_get`] decides.
///
/// # Errors
/// It cannot be written to its destination.
pub async fn place_archived(
    archive: &Arc<Archive>,
    request: &ArchiveGetRequest,
    prefetch: Option<&Prefetch>,
) -> Result<Option<ArchiveGetOutcome>, ArchiveGetError> {
    let Some(name) = WalFileName::parse(&request.name) else { return Ok(None) };
    let bytes = match archive.file(&name).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::debug!(%error, file = request.name, "not read here; every repository is asked");
            return Ok(None);
        }
    };
    write_file(bytes, &request.dest).await?;
    match (&name, prefetch) {
        (WalFileName::Segment(segment), Some(prefetch)) => prefetch.ensure_fetching_after(*segment),
        // PostgreSQL asks for histories when recovery begins and when it ends.
        (WalFileName::History(_), Some(prefetch)) => prefetch.remove_dir(),
        _ => {}
    }
    Ok(Some(ArchiveGetOutcome::Placed(WalFileSource::Archive)))
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
    // The plan proved that the repositories that can be reached have all that the target needs, and PostgreSQL refuses
    // to end recovery before it. So an unreachable repository is not waited for, for example one whose disk is lost.
    let reachable = (request.has_target && !request.standby).then(|| archive.reachable_view()).flatten();
    let archive = reachable.as_ref().unwrap_or(archive);
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
    let hole = match end_of_archive::prove_end_of_archive(archive, segment).await {
        Ok(()) => None,
        // PostgreSQL would end recovery at the end of what is before the hole. Only its target prevents that.
        Err(error @ ArchiveGetError::Hole { .. }) if request.has_target && !request.standby => Some(error),
        Err(error) => return Err(error),
    };
    if let Some(prefetch) = prefetch {
        prefetch.remove_dir();
    }
    if request.standby {
        // It streams the rest, or asks again when there is more.
        return Ok(ArchiveGetOutcome::Absent);
    }
    if let Some(SegmentBeginning { bytes, source, .. }) = segment_beginning(archive, segment, request, spool).await? {
        let source = match source {
            BeginningSource::Spool | BeginningSource::Pieces => WalFileSource::Received,
            BeginningSource::Tail | BeginningSource::Partial | BeginningSource::Child(_) => WalFileSource::Tail,
        };
        return write_file(bytes, &request.dest).await.map(|()| ArchiveGetOutcome::Placed(source));
    }
    if let Some(hole) = hole {
        return Err(hole);
    }
    // The receiver may have archived the segment, and removed it from its spool, while we looked elsewhere.
    match place_archived_segment(archive, segment, request, None).await? {
        Some(source) => Ok(ArchiveGetOutcome::Placed(source)),
        None => Ok(ArchiveGetOutcome::Absent),
    }
}

/// What there is of a segment that is not archived. If the spool cannot be read, what the repositories have is of use
/// only to a server with a target: any other would end recovery there, without what the spool may have.
async fn segment_beginning(
    archive: &Arc<Archive>,
    segment: SegmentName,
    request: &ArchiveGetRequest,
    spool: Option<&Spool>,
) -> Result<Option<SegmentBeginning>, ArchiveGetError> {
    match archive.segment_beginning(spool, segment).await {
        Err(error @ ArchiveError::Vault(VaultError::Spool(_))) if request.has_target => {
            let stored = archive.segment_beginning(None, segment).await?;
            match stored {
                Some(stored) => {
                    tracing::warn!(%segment, %error, "the spool is not read; the repositories have this segment");
                    Ok(Some(stored))
                }
                None => Err(error.into()),
            }
        }
        found => Ok(found?),
    }
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

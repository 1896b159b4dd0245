//! The proof that a missing segment is the end of the archive and not a hole in it.

use super::error::ArchiveGetError;
use crate::postgres::archive::Archive;
use crate::postgres::format::segment::{SegmentName, SegmentSize};

/// Ends well if nothing that recovery could want after `missing` is archived: no later segment on its timeline, and no
/// timeline that left it beyond that segment. `missing` itself has been asked for already.
///
/// # Errors
/// [`ArchiveGetError::Hole`], or the archive could not say.
pub(super) async fn prove_end_of_archive(archive: &Archive, missing: SegmentName) -> Result<(), ArchiveGetError> {
    let Some(identity) = archive.identity().await? else { return Ok(()) };
    let size = identity.segment_size;
    let later = archive.last_segment(missing.timeline()).await?;
    if let Some(later) = later.filter(|later| *later > missing) {
        return Err(ArchiveGetError::Hole { name: missing, later });
    }
    for timeline in archive.timelines().await? {
        if timeline > missing.timeline()
            && let Some(later) = archive.last_segment(timeline).await?
            && path_requires(archive, later, missing, size).await?
        {
            return Err(ArchiveGetError::Hole { name: missing, later });
        }
    }
    Ok(archive.ensure_all_reachable()?)
}

/// Whether the way to `later`, on a younger timeline, leads through `missing`.
async fn path_requires(
    archive: &Archive,
    later: SegmentName,
    missing: SegmentName,
    size: SegmentSize,
) -> Result<bool, ArchiveGetError> {
    let (Some(wanted), Some(reached)) = (missing.number(size), later.number(size)) else { return Ok(false) };
    match archive.history(later.timeline()).await? {
        // The segment in which the timelines part is there under the younger one's name.
        Some(history) => Ok(history
            .entries
            .iter()
            .any(|entry| entry.timeline == missing.timeline() && size.segment_of(entry.end) > wanted)),
        // Nobody knows where it came from: only what lies before is surely not needed by it.
        None => Ok(reached > wanted),
    }
}

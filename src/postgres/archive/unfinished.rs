//! Segments that still grow: their beginning is in the spool of the machine that receives them, acknowledged, and in
//! the repository only in pieces that are some seconds old ([`super::pieces`]).
//!
//! A restore must not do without them. They are read as PostgreSQL would find them in `pg_wal`: what has come, then
//! zeros, where replay ends. They are never taken into the index nor into the repository, because they are not what
//! they will be.

use bytes::{Bytes, BytesMut};

use super::pieces::WalPiece;
use super::spool::Spool;
use super::{Archive, ArchiveIdentity};
use crate::base::blocking::run_blocking;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize, SystemId};
use crate::postgres::index::{self, IndexView, SegmentId};
use crate::postgres::wal::digest::{SegmentDigest, digest_segment};
use crate::vault;
use crate::vault::spool::SpoolError;

/// A segment that still grows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its bytes so far, filled up with zeros.
    pub bytes: Bytes,
    /// What is in it so far.
    pub digest: SegmentDigest,
}

impl UnfinishedSegment {
    /// Where it stands.
    #[must_use]
    pub const fn segment_id(&self) -> SegmentId {
        SegmentId { timeline: self.digest.timeline, segment: self.digest.segment }
    }
}

/// Segments that still grow or never will: each place once, with the copy that goes on longer.
#[must_use]
pub fn keep_longest(all: impl IntoIterator<Item = UnfinishedSegment>) -> Vec<UnfinishedSegment> {
    let mut kept: Vec<UnfinishedSegment> = Vec::new();
    for growing in all {
        match kept.iter_mut().find(|other| other.segment_id() == growing.segment_id()) {
            Some(other) if other.digest.valid_until < growing.digest.valid_until => *other = growing,
            Some(_) => {}
            None => kept.push(growing),
        }
    }
    kept
}

/// What has come of a segment, filled up to its size, and where that ends; `None` if nothing is spooled of it. Blocks.
///
/// # Errors
/// The spool can't be read.
fn read_spooled(spool: &Spool, name: SegmentName, size: SegmentSize) -> Result<Option<(Bytes, Lsn)>, SpoolError> {
    let held = spool.read_segment(name, size)?;
    let Some(number) = name.number(size).filter(|_| !held.is_empty()) else { return Ok(None) };
    let end = number.start(size).saturating_add(held.len() as u64);
    let mut bytes = BytesMut::from(held);
    bytes.resize(size.len(), 0);
    Ok(Some((bytes.freeze(), end)))
}

/// The segments in the spool that go on where what `view` knows ends. Others, such as what an earlier timeline left,
/// are no news. Blocks.
///
/// # Errors
/// The spool can't be read. What can't be understood is left out with a warning.
pub fn unfinished_in_spool(
    view: &IndexView<'_>,
    spool: &Spool,
    system: SystemId,
) -> Result<Vec<UnfinishedSegment>, SpoolError> {
    let Some(size) = view.segment_size() else { return Ok(Vec::new()) };
    let mut found: Vec<UnfinishedSegment> = Vec::new();
    for name in spool.list_segments()? {
        let (Some(number), timeline) = (name.number(size), name.timeline()) else { continue };
        let known = |segment| view.contains(SegmentId { timeline, segment }).unwrap_or(false);
        let continues = number.previous().is_some_and(|before| {
            known(before) || found.iter().any(|other| other.segment_id() == SegmentId { timeline, segment: before })
        });
        if known(number) || !continues {
            continue;
        }
        let Some((bytes, _)) = read_spooled(spool, name, size)? else { continue };
        match digest_segment(&bytes, name, size) {
            Ok(digest) if digest.system_id == system => found.push(UnfinishedSegment { name, bytes, digest }),
            Ok(_foreign) => tracing::warn!(segment = %name, "the spool holds another cluster's segment"),
            Err(error) => tracing::warn!(segment = %name, %error, "the spool's segment cannot be understood"),
        }
    }
    Ok(found)
}

impl Archive {
    /// What has come of a segment that is not archived, from this machine's spool or from pieces in the repositories,
    /// whichever goes on longer, and where it ends.
    ///
    /// # Errors
    /// The spool, the repositories or the cluster's identity can't be read.
    pub async fn read_unfinished(
        &self,
        spool: Option<&Spool>,
        name: SegmentName,
    ) -> Result<Option<(Bytes, Lsn)>, super::ArchiveError> {
        let Some(identity) = self.identity().await? else { return Ok(None) };
        let size = identity.segment_size;
        let spooled = match spool.cloned() {
            Some(spool) => {
                let read = run_blocking(move || read_spooled(&spool, name, size)).await?;
                read.map_err(|error| vault::VaultError::Spool(std::sync::Arc::new(error)))?
            }
            None => None,
        };
        let copied = self.read_pieces(name, size).await?;
        Ok(spooled.into_iter().chain(copied).max_by_key(|(_, end)| *end))
    }

    /// Segments of which the repositories have pieces, read and digested.
    ///
    /// # Errors
    /// The repositories can't be read. What can't be understood is left out with a warning.
    pub async fn unfinished_in_pieces(
        &self,
        names: &[SegmentName],
        identity: ArchiveIdentity,
    ) -> Result<Vec<UnfinishedSegment>, super::ArchiveError> {
        let (size, mut found) = (identity.segment_size, Vec::new());
        for name in names {
            let Some((bytes, _)) = self.read_pieces(*name, size).await? else { continue };
            let of = *name;
            let read = bytes.clone();
            match run_blocking(move || digest_segment(&read, of, size)).await? {
                Ok(digest) if digest.system_id == identity.system_id => {
                    found.push(UnfinishedSegment { name: of, bytes, digest })
                }
                Ok(_foreign) => tracing::warn!(segment = %name, "the pieces are another cluster's"),
                Err(error) => tracing::warn!(segment = %name, %error, "the pieces cannot be understood"),
            }
        }
        Ok(found)
    }
}

/// The segments with pieces that go on where what `view` knows, or `received`, ends.
///
/// # Errors
/// What the index says.
pub fn segments_continued_in_pieces(
    view: &IndexView<'_>,
    pieces: &[WalPiece],
    received: &[UnfinishedSegment],
) -> Result<Vec<SegmentName>, index::IndexError> {
    let Some(size) = view.segment_size() else { return Ok(Vec::new()) };
    let mut names: Vec<SegmentName> = Vec::new();
    for piece in pieces {
        let (timeline, segment) = (piece.timeline, size.segment_of(piece.start));
        let Some(name) = piece.segment(size).filter(|name| !names.contains(name)) else { continue };
        let Some(before) = segment.previous() else { continue };
        let known = |segment| view.contains(SegmentId { timeline, segment });
        let longer = received.iter().any(|other| other.name == name && other.digest.valid_until >= piece.end);
        if !known(segment)? && known(before)? && !longer {
            names.push(name);
        }
    }
    Ok(names)
}

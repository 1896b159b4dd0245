//! Segments of which no repository has the whole: what there is of them, and where that ends.
//!
//! The beginning of such a segment may be in several places: the spool of the machine that receives it, pieces in the
//! repositories ([`super::pieces`]), a `.tail` that the receiver archived before a gap or at the end of a timeline, the
//! `.partial` of a promotion, and the first segment of the timeline that left this one ([`super::timeline_tail`]).
//! [`Archive::segment_beginning`] looks into all of them. `plan`, `list`, `health` and `archive-get` ask it and nothing
//! else, so that a restore finds what the plan promised.
//!
//! The beginning is read as PostgreSQL would find it in `pg_wal`: what was received, then zeros, where replay ends. It
//! is never taken into the index nor into the repository, because it is not what the segment will be.

use bytes::{Bytes, BytesMut};

use super::beginning_source::BeginningSource;
use super::pieces::WalPiece;
use super::spool::Spool;
use super::timeline_tail::{CopiedTail, copied_tails_of, fork_within};
use super::{Archive, ArchiveError, ArchiveIdentity};
use crate::base::blocking::run_blocking;
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize, WalFileName};
use crate::postgres::format::timeline::TimelineHistory;
use crate::postgres::index::SegmentId;
use crate::postgres::wal::digest::{SegmentDigest, digest_segment};
use crate::postgres::wal::page::WalPageHeader;
use crate::vault;
use crate::vault::seal::SealedKind;

/// A segment that no repository has whole, with what is in its beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedSegment {
    /// Its name.
    pub name: SegmentName,
    /// Its beginning, filled up with zeros.
    pub bytes: Bytes,
    /// What is in it.
    pub digest: SegmentDigest,
}

impl UnfinishedSegment {
    /// Its place in the log.
    #[must_use]
    pub const fn segment_id(&self) -> SegmentId {
        SegmentId { timeline: self.digest.timeline, segment: self.digest.segment }
    }
}

/// The beginning of a segment that no repository has whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentBeginning {
    /// Its bytes, filled up with zeros to the size of a segment.
    pub bytes: Bytes,
    /// Where it ends and the zeros begin.
    pub end: Lsn,
    /// Where it was found.
    pub source: BeginningSource,
}

/// A copy of a segment's beginning.
struct Copy {
    source: BeginningSource,
    bytes: Bytes,
}

impl Copy {
    /// What must be equal in every copy. Trailing zeros may be padding: PostgreSQL fills up a `.partial` with them.
    fn compared(&self) -> &[u8] {
        let len = self.bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        self.bytes.get(..len).unwrap_or_default()
    }
}

/// What is asked of the beginnings of a cluster's segments: all of them belong to one size and to these timelines.
#[derive(Clone, Copy, Debug)]
pub struct BeginningContext<'a> {
    /// This machine's spool, if it has one.
    pub spool: Option<&'a Spool>,
    /// The size of the cluster's segments.
    pub size: SegmentSize,
    /// The histories of its timelines.
    pub histories: &'a [TimelineHistory],
}

impl Archive {
    /// The longest beginning of a segment that no repository has whole; `None` if there is none, or if it ends before
    /// its timeline begins: then all of it is the parent timeline's, and recovery reads it from there.
    ///
    /// # Errors
    /// The spool, the repositories or the cluster's identity can't be read; [`ArchiveError::CopiesDiffer`] if two
    /// copies differ.
    pub async fn segment_beginning(
        &self,
        spool: Option<&Spool>,
        name: SegmentName,
    ) -> Result<Option<SegmentBeginning>, ArchiveError> {
        let Some(ArchiveIdentity { segment_size: size, .. }) = self.identity_or_spooled(spool, name).await? else {
            return Ok(None);
        };
        let mut histories = Vec::new();
        for timeline in self.timelines().await?.into_iter().filter(|timeline| *timeline >= name.timeline()) {
            histories.extend(self.history(timeline).await?);
        }
        self.segment_beginning_in(BeginningContext { spool, size, histories: &histories }, name).await
    }

    /// The same, of a cluster whose size and histories are known.
    ///
    /// # Errors
    /// As [`Archive::segment_beginning`].
    async fn segment_beginning_in(
        &self,
        context: BeginningContext<'_>,
        name: SegmentName,
    ) -> Result<Option<SegmentBeginning>, ArchiveError> {
        let size = context.size;
        let Some(number) = name.number(size) else { return Ok(None) };
        let Some(Copy { source, bytes }) = self.longest_copy(context, name).await? else { return Ok(None) };
        let end = number.start(size).saturating_add(bytes.len() as u64);
        if fork_within(context.histories, name, size).is_some_and(|fork| end <= fork) {
            return Ok(None);
        }
        let mut bytes = BytesMut::from(bytes);
        bytes.resize(size.len(), 0);
        Ok(Some(SegmentBeginning { bytes: bytes.freeze(), end, source }))
    }

    /// The longest copy of a segment's beginning, wherever it ends.
    async fn longest_copy(
        &self,
        context: BeginningContext<'_>,
        name: SegmentName,
    ) -> Result<Option<Copy>, ArchiveError> {
        let size = context.size;
        let Some(start) = name.number(size).map(|number| number.start(size)) else { return Ok(None) };
        // Of equally long ones the last is given.
        let mut copies = self.copies_of_left_timeline(context, name).await?;
        for len in self.list_tails(Some(name)).await?.into_iter().filter(|(of, _)| *of == name).map(|(_, len)| len) {
            copies.extend(self.read_tail(name, len, size).await?);
        }
        if let Some((bytes, end)) = self.read_pieces(name, size).await? {
            let len = usize::try_from(end.bytes_since(start)).unwrap_or(usize::MAX);
            copies.push(Copy { source: BeginningSource::Pieces, bytes: bytes.slice(..len.min(bytes.len())) });
        }
        let spooled = read_spooled(context.spool, name, size).await?;
        copies.extend(
            Some(spooled).filter(|bytes| !bytes.is_empty()).map(|bytes| Copy { source: BeginningSource::Spool, bytes }),
        );
        if copies.len() <= 1 {
            return Ok(copies.pop());
        }
        run_blocking(move || longest_of(name, start, copies)).await?
    }

    /// The copies that exist because timelines left this one within the segment: PostgreSQL renames its own to
    /// `.partial`, and the first segment of the new timeline begins with a copy.
    async fn copies_of_left_timeline(
        &self,
        context: BeginningContext<'_>,
        name: SegmentName,
    ) -> Result<Vec<Copy>, ArchiveError> {
        let (size, mut copies) = (context.size, Vec::new());
        let left = copied_tails_of(context.histories, name, size);
        let Some(last) = left.iter().map(|left| left.end).max() else { return Ok(copies) };
        let until = |bytes: &Bytes, end: Lsn| {
            let len = usize::try_from(size.offset_of(end)).unwrap_or(usize::MAX);
            bytes.slice(..len.min(bytes.len()))
        };
        if let Some(bytes) = self.file(&WalFileName::Partial(name)).await? {
            copies.push(Copy { source: BeginningSource::Partial, bytes: until(&bytes, last) });
        }
        for CopiedTail { child, end } in left {
            let Some(first) = name.number(size).and_then(|number| SegmentName::new(child, number, size)) else {
                continue;
            };
            let bytes = match self.segment(first).await? {
                Some(bytes) => Some(bytes),
                // It is not complete either.
                None => Box::pin(self.longest_copy(context, first)).await?.map(|copy| copy.bytes),
            };
            let source = BeginningSource::Child(child);
            copies.extend(bytes.map(|bytes| Copy { source, bytes: until(&bytes, end) }));
        }
        Ok(copies)
    }

    /// The `.tail`s in the repositories, by segment and length: those of `from` and of what sorts after it, or all.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn list_tails(&self, from: Option<SegmentName>) -> Result<Vec<(SegmentName, u32)>, ArchiveError> {
        let layout = self.layout();
        let after = from.map(|from| layout.file(&WalFileName::Tail { segment: from, len: 0 }));
        let listed = self.vault().list(&layout.other_files(), after.as_ref()).await?.objects;
        let tail = |key| match layout.object_of_key(key)? {
            ClusterObject::File(WalFileName::Tail { segment, len }) => Some((segment, len)),
            _ => None,
        };
        Ok(listed.iter().filter_map(|object| tail(&object.key)).collect())
    }

    /// A `.tail`; `None` if it is gone since it was listed.
    async fn read_tail(&self, segment: SegmentName, len: u32, size: SegmentSize) -> Result<Option<Copy>, ArchiveError> {
        let key = self.layout().file(&WalFileName::Tail { segment, len });
        let Some(opened) = self.vault().get_object(SealedKind::WalFile, &key).await? else { return Ok(None) };
        let bytes = opened.plain;
        if bytes.len() as u64 != u64::from(len) || bytes.len() > size.len() {
            let (name, why) = (self.cluster().to_string(), "its length is not the one in its name".to_owned());
            return Err(vault::VaultError::MalformedContent { name, key, why }.into());
        }
        Ok(Some(Copy { source: BeginningSource::Tail, bytes }))
    }

    /// What the cluster is, by the repositories or, as long as they have nothing, by the spooled beginning of a
    /// segment.
    async fn identity_or_spooled(
        &self,
        spool: Option<&Spool>,
        name: SegmentName,
    ) -> Result<Option<ArchiveIdentity>, ArchiveError> {
        if let Some(identity) = self.identity().await? {
            return Ok(Some(identity));
        }
        let Ok(largest) = SegmentSize::new(SegmentSize::MAX_BYTES) else { return Ok(None) };
        let bytes = read_spooled(spool, name, largest).await?;
        let header = WalPageHeader::parse(&bytes).and_then(|header| header.long);
        Ok(header.and_then(|header| {
            let segment_size = SegmentSize::new(u64::from(header.segment_size)).ok()?;
            Some(ArchiveIdentity { system_id: header.system_id, segment_size })
        }))
    }

    /// The beginnings of these segments, digested. Those that cannot be used are left out with a warning:
    /// `archive-get` does not give them to PostgreSQL either.
    ///
    /// # Errors
    /// The spool or the repositories can't be read.
    pub async fn unfinished(
        &self,
        context: BeginningContext<'_>,
        names: &[SegmentName],
        identity: ArchiveIdentity,
    ) -> Result<Vec<UnfinishedSegment>, ArchiveError> {
        let mut found = Vec::new();
        for name in names.iter().copied() {
            let bytes = match self.segment_beginning_in(context, name).await {
                Ok(Some(SegmentBeginning { bytes, .. })) => bytes,
                Ok(None) => continue,
                Err(error) if error.is_integrity() => {
                    tracing::warn!(segment = %name, %error, "the beginning of this segment cannot be used");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (read, size) = (bytes.clone(), identity.segment_size);
            match run_blocking(move || digest_segment(&read, name, size)).await? {
                Ok(digest) if digest.system_id == identity.system_id => {
                    found.push(UnfinishedSegment { name, bytes, digest })
                }
                Ok(_foreign) => tracing::warn!(segment = %name, "the beginning of this segment is another cluster's"),
                Err(error) => {
                    tracing::warn!(segment = %name, %error, "the beginning of this segment cannot be understood")
                }
            }
        }
        Ok(found)
    }
}

/// What is spooled of a segment.
async fn read_spooled(spool: Option<&Spool>, name: SegmentName, size: SegmentSize) -> Result<Bytes, ArchiveError> {
    let Some(spool) = spool.cloned() else { return Ok(Bytes::new()) };
    let read = run_blocking(move || spool.read_segment(name, size)).await?;
    Ok(read.map_err(|error| vault::VaultError::Spool(std::sync::Arc::new(error)))?)
}

/// The longest copy, with which all others must agree.
fn longest_of(name: SegmentName, start: Lsn, copies: Vec<Copy>) -> Result<Option<Copy>, ArchiveError> {
    let mut longest: Option<&Copy> = None;
    for copy in &copies {
        longest = longest.filter(|other| other.bytes.len() > copy.bytes.len()).or(Some(copy));
    }
    let Some(longest) = longest else { return Ok(None) };
    for copy in &copies {
        let differ = copy.compared().iter().zip(&longest.bytes).position(|(one, other)| one != other);
        if let Some(at) = differ {
            return Err(ArchiveError::CopiesDiffer {
                name: name.to_string(),
                at: start.saturating_add(at as u64),
                one: copy.source,
                other: longest.source,
            });
        }
    }
    Ok(Some(Copy { source: longest.source, bytes: longest.bytes.clone() }))
}

/// The segments that pieces belong to.
pub(super) fn segments_of_pieces(pieces: &[WalPiece], size: SegmentSize) -> Vec<SegmentName> {
    let mut names: Vec<SegmentName> = pieces.iter().filter_map(|piece| piece.segment(size)).collect();
    names.dedup();
    names
}

//! Pieces of a segment that still grows, in the repositories: what would be lost with this machine and the server
//! together before the segment is whole.
//!
//! A piece is an object of its own that is named by its range, and holds nothing but WAL of one segment. The first
//! begins with the segment. Each later one goes on where those before it end, or swallows some of them and goes on
//! ([`count_merged_pieces`]); so pieces may lie over one another, and hold the same bytes there, because a server sends
//! only what it has flushed. They go when the segment is archived whole.
//!
//! Read back they are what the spool is on the machine of the receiver ([`super::unfinished`]): the segment's
//! beginning, then zeros, where replay ends.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::{Archive, ArchiveError};
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
use crate::postgres::format::timeline::TimelineId;
use crate::vault;
use crate::vault::repository::PutOutcome;
use crate::vault::repository::key::{KeyPrefix, ObjectKey};
use crate::vault::seal::SealedKind;

/// How often a listing is made anew because a piece was gone when it was read. They are swallowed seconds apart.
const LISTING_ATTEMPTS: usize = 5;

/// Where a piece stands in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalPiece {
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// The position after its last byte.
    pub end: Lsn,
}

impl WalPiece {
    /// The segment that it is of.
    #[must_use]
    pub fn segment(&self, size: SegmentSize) -> Option<SegmentName> {
        SegmentName::new(self.timeline, size.segment_of(self.start), size)
    }

    const fn len(&self) -> u64 {
        self.end.bytes_since(self.start)
    }
}

/// How many of `pieces`, counted from the last, the next one swallows, if it is to reach from their end to `end` and to
/// be no longer than `longest`: those that are no longer than what has come after them. So there are never more than
/// some twenty of 16 MiB, and a byte is stored that often at the most.
#[must_use]
pub fn count_merged_pieces(pieces: &[WalPiece], end: Lsn, longest: u64) -> usize {
    let fits = |piece: &&WalPiece| piece.len() <= end.bytes_since(piece.end) && end.bytes_since(piece.start) <= longest;
    pieces.iter().rev().take_while(fits).count()
}

impl Archive {
    /// Puts a piece of WAL that begins at `start` into every repository.
    ///
    /// # Errors
    /// A repository did not take it, or has another content under that name.
    pub async fn put_piece(&self, timeline: TimelineId, start: Lsn, bytes: Bytes) -> Result<WalPiece, ArchiveError> {
        self.put_piece_with_note(timeline, start, bytes, Vec::new()).await
    }

    /// The same, with a note of how its segment came ([`super::clock_notes`]).
    ///
    /// # Errors
    /// As [`Archive::put_piece`].
    pub async fn put_piece_with_note(
        &self,
        timeline: TimelineId,
        start: Lsn,
        bytes: Bytes,
        note: Vec<u8>,
    ) -> Result<WalPiece, ArchiveError> {
        let piece = WalPiece { timeline, start, end: start.saturating_add(bytes.len() as u64) };
        let key = self.piece_key(piece);
        if self.vault().put_object(SealedKind::Piece, &key, vec![bytes.clone()], note).await? == PutOutcome::Exists {
            // Of an earlier run, that ended before it knew.
            let there = self.vault().get_object(SealedKind::Piece, &key).await?;
            if there.is_none_or(|there| there.plain != bytes) {
                return Err(self.wrong(
                    &key,
                    "it is there already, with another content; was the server set back to an older state?",
                ));
            }
        }
        Ok(piece)
    }

    /// All pieces that any repository has, of one timeline or of all.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn list_pieces(&self, timeline: Option<TimelineId>) -> Result<Vec<WalPiece>, ArchiveError> {
        let prefix: KeyPrefix = match timeline {
            Some(timeline) => self.layout().timeline_pieces(timeline),
            None => self.layout().pieces(),
        };
        let listed = self.vault().list(&prefix, None).await?.objects;
        Ok(listed.iter().filter_map(|object| piece_of_object(self.layout().object_of_key(&object.key)?)).collect())
    }

    /// What there is of a segment in pieces, filled up to its size, and where that ends; `None` if its beginning is not
    /// there.
    ///
    /// # Errors
    /// The repositories could not say. From a damaged piece on nothing is used, with a warning.
    pub async fn read_pieces(
        &self,
        name: SegmentName,
        size: SegmentSize,
    ) -> Result<Option<(Bytes, Lsn)>, ArchiveError> {
        let Some(number) = name.number(size) else { return Ok(None) };
        // One may be swallowed between the listing and the reading; a new listing shows what holds its bytes.
        for _ in 0..LISTING_ATTEMPTS {
            let mut pieces = self.list_pieces(Some(name.timeline())).await?;
            pieces.retain(|piece| piece.segment(size) == Some(name) && piece.end <= number.end(size));
            pieces.sort_unstable_by_key(|piece| (piece.start, Reverse(piece.end)));
            if let Some((mut bytes, end)) = self.joined(pieces, number.start(size)).await? {
                bytes.resize(size.len(), 0);
                return Ok(Some((bytes.freeze(), end)).filter(|(_, end)| *end > number.start(size)));
            }
        }
        Err(vault::VaultError::WorkerLost.into())
    }

    /// The bytes of sorted pieces from `start` on without a hole, and where they end; `None` if one of them is gone.
    ///
    /// Where pieces lie over one another they are compared. They differ where a server was set back to an older state
    /// and went on from there on the same timeline: then nobody can tell which of them are of this history, and what
    /// they have in common is of both.
    async fn joined(&self, pieces: Vec<WalPiece>, start: Lsn) -> Result<Option<(BytesMut, Lsn)>, ArchiveError> {
        let (mut bytes, mut agreed) = (BytesMut::new(), None);
        for piece in pieces {
            let end = start.saturating_add(bytes.len() as u64);
            if piece.start > end || (agreed.is_some() && piece.start >= end) {
                break;
            }
            let key = self.piece_key(piece);
            let opened = match self.vault().get_object(SealedKind::Piece, &key).await {
                Ok(Some(opened)) if opened.plain.len() as u64 == piece.len() => Ok(opened),
                Ok(Some(_)) => Err(self.wrong(&key, "it is not as long as its name says")),
                // What swallowed it has been read.
                Ok(None) if piece.end <= end => continue,
                Ok(None) => return Ok(None),
                Err(error) => Err(error.into()),
            };
            match opened {
                Ok(opened) => {
                    let at = usize::try_from(piece.start.bytes_since(start)).unwrap_or(usize::MAX);
                    let over = bytes.get(at..).unwrap_or_default();
                    if let Some(same) = over.iter().zip(&opened.plain).position(|(one, other)| one != other) {
                        bytes.truncate(at.saturating_add(same));
                        agreed = Some(key);
                    } else if agreed.is_none() {
                        let new = opened.plain.get(over.len()..).unwrap_or_default();
                        bytes.extend_from_slice(new);
                    }
                }
                Err(error) if error.is_integrity() && piece.end <= end => {
                    tracing::warn!(%key, %error, "a piece of the newest WAL is damaged; others have what is in it");
                }
                // The plan of a restore was told the same, and promises no more.
                Err(error) if error.is_integrity() => {
                    tracing::warn!(%key, %error, "a piece of the newest WAL is damaged; what follows it is not used");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let end = start.saturating_add(bytes.len() as u64);
        if let Some(key) = agreed {
            tracing::warn!(
                %key, from = %end,
                "the pieces of the newest WAL are of two histories, as of a server that was set back to an older \
                    state; from where they differ on none is used"
            );
        }
        Ok(Some((bytes, end)))
    }

    /// Removes pieces.
    ///
    /// # Errors
    /// A repository did not do it.
    pub async fn remove_pieces(&self, pieces: &[WalPiece]) -> Result<(), ArchiveError> {
        for piece in pieces {
            self.vault().delete(&self.piece_key(*piece)).await?;
        }
        Ok(())
    }

    /// Removes the pieces of segments that are archived whole, or of which the end of a timeline is archived and has
    /// all that they have.
    ///
    /// # Errors
    /// The repositories could not say, or not do it.
    pub async fn sweep_pieces(&self, size: SegmentSize) -> Result<(), ArchiveError> {
        let mut segments: BTreeMap<(TimelineId, SegmentNo), Vec<WalPiece>> = BTreeMap::new();
        for piece in self.list_pieces(None).await? {
            segments.entry((piece.timeline, size.segment_of(piece.start))).or_default().push(piece);
        }
        for ((timeline, number), pieces) in segments {
            let Some(name) = SegmentName::new(timeline, number, size) else { continue };
            if self.stored_copies(name).await?.is_some() || self.is_in_partial(name, size, &pieces).await? {
                self.remove_pieces(&pieces).await?;
            }
        }
        Ok(())
    }

    /// Whether the end of a timeline, archived as a `.partial`, has all that is in these pieces of its segment. One
    /// that a copy of the cluster has left on its promotion has not: its original goes on in this segment, and what it
    /// has acknowledged is in the pieces.
    async fn is_in_partial(
        &self,
        name: SegmentName,
        size: SegmentSize,
        pieces: &[WalPiece],
    ) -> Result<bool, ArchiveError> {
        let partial = WalFileName::Partial(name);
        if self.vault().get_trailer(SealedKind::WalFile, &self.layout().file(&partial)).await?.is_none() {
            return Ok(false);
        }
        let (Some(partial), Some((bytes, end))) = (self.file(&partial).await?, self.read_pieces(name, size).await?)
        else {
            return Ok(false);
        };
        let len = usize::try_from(size.offset_of(end)).unwrap_or(usize::MAX);
        let len = if len == 0 { size.len() } else { len };
        let all = pieces.iter().all(|piece| piece.end <= end);
        Ok(all && partial.get(..len).is_some_and(|kept| bytes.get(..len) == Some(kept)))
    }

    pub(super) fn piece_key(&self, piece: WalPiece) -> ObjectKey {
        self.layout().piece(piece.timeline, piece.start, piece.end)
    }

    fn wrong(&self, key: &ObjectKey, why: &str) -> ArchiveError {
        vault::VaultError::MalformedContent { name: self.cluster().to_string(), key: key.clone(), why: why.to_owned() }
            .into()
    }
}

fn piece_of_object(object: ClusterObject) -> Option<WalPiece> {
    match object {
        ClusterObject::Piece { timeline, start, end } => Some(WalPiece { timeline, start, end }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{WalPiece, count_merged_pieces};
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::{SegmentSize, WalFileName};
    use crate::postgres::format::timeline::TimelineId;
    use crate::vault::seal::keys::KeyEncryptionKey;

    const MIB: u64 = 1 << 20;

    fn piece(start: u64, end: u64) -> WalPiece {
        WalPiece { timeline: TimelineId::FIRST, start: Lsn::new(start), end: Lsn::new(end) }
    }

    proptest! {
        /// However the log grows, pieces are few, without holes, and no byte is stored often.
        #[test]
        fn pieces_are_few_and_cover_all(steps in proptest::collection::vec(1_u64..200_000, 1..400)) {
            let (mut made, mut end): (Vec<WalPiece>, u64) = (Vec::new(), 16 * MIB);
            let mut stored: HashMap<u64, u32> = HashMap::new();
            for step in steps {
                let (copied, next) = (end, (end + step).min(32 * MIB));
                let keep = made.len() - count_merged_pieces(&made, Lsn::new(next), 16 * MIB);
                let from = made.get(keep).map_or(copied, |piece| piece.start.get());
                made.truncate(keep);
                if next == copied {
                    break;
                }
                made.push(piece(from, next));
                (from / 8192..next.div_ceil(8192)).for_each(|page| *stored.entry(page).or_default() += 1);
                end = next;
                prop_assert!(made.windows(2).all(|pair| pair[0].end == pair[1].start), "{:?}", made);
                prop_assert_eq!((made[0].start.get(), made.last().unwrap().end.get()), (16 * MIB, end));
                prop_assert!(made.windows(2).all(|pair| pair[0].len() > pair[1].len()), "{:?}", made);
                prop_assert!(made.len() <= 25, "{}", made.len());
            }
            prop_assert!(stored.values().all(|times| *times <= 40), "{:?}", stored.values().max());
        }
    }

    #[tokio::test]
    async fn a_segment_is_put_together_from_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], Some(&KeyEncryptionKey::generate().unwrap())).await;
        let size = SegmentSize::new(MIB).unwrap();
        let (name, whole) = segment(7, 5, b"a", 9);
        let at = |offset: u64| Lsn::new(5 * MIB + offset);
        let piece_at = |from: u64, to: u64| WalPiece { timeline: name.timeline(), start: at(from), end: at(to) };
        let part = |from: usize, to: usize| Bytes::copy_from_slice(&whole[from..to]);
        let put = |from: usize, to: usize| archive.put_piece(name.timeline(), at(from as u64), part(from, to));
        assert_eq!(archive.read_pieces(name, size).await.unwrap(), None);

        put(3000, 5000).await.unwrap();
        assert_eq!(archive.read_pieces(name, size).await.unwrap(), None, "its beginning is not there");
        put(0, 1000).await.unwrap();
        assert_eq!(archive.read_pieces(name, size).await.unwrap().unwrap().1, at(1000), "2000 to 3000 is not there");
        for (from, to) in [(1000, 2000), (500, 1500), (0, 3000), (4000, 6000)] {
            put(from, to).await.unwrap();
        }
        put(0, 3000).await.unwrap();
        let other = Bytes::from(vec![7; 3000]);
        let error = archive.put_piece(name.timeline(), at(0), other).await.unwrap_err().to_string();
        assert!(error.contains("another content"), "{error}");
        let (bytes, end) = archive.read_pieces(name, size).await.unwrap().unwrap();
        assert_eq!((end, &bytes[..6000], bytes.len() as u64), (at(6000), &whole[..6000], MIB));
        assert!(bytes[6000..].iter().all(|&byte| byte == 0));

        let last = dir.path().join("repository").join(archive.piece_key(piece_at(4000, 6000)).as_str());
        let kept = std::fs::read(&last).unwrap();
        std::fs::write(&last, [&kept[..kept.len() / 2], &[1; 9], &kept[kept.len() / 2 + 9..]].concat()).unwrap();
        assert_eq!(archive.read_pieces(name, size).await.unwrap().unwrap().1, at(5000), "up to the damaged one");
        std::fs::write(&last, kept).unwrap();

        // Sealed under the name of another range it is as good as damaged.
        let misnamed = vec![part(6000, 6100)];
        let key = archive.piece_key(piece_at(6000, 7000));
        archive.vault().put_object(crate::vault::seal::SealedKind::Piece, &key, misnamed, Vec::new()).await.unwrap();
        assert_eq!(
            archive.read_pieces(name, size).await.unwrap().unwrap().1,
            at(6000),
            "up to the one of a wrong length"
        );

        archive.sweep_pieces(size).await.unwrap();
        assert_eq!(archive.list_pieces(None).await.unwrap().len(), 7, "the segment is not archived");
        archive.put_segment(name, whole.clone()).await.unwrap();
        archive.sweep_pieces(size).await.unwrap();
        assert_eq!(archive.list_pieces(None).await.unwrap(), []);

        // The end of a timeline is archived as a `.partial`.
        let (next, bytes) = segment(7, 6, b"a", 9);
        archive.put_piece(next.timeline(), Lsn::new(6 * MIB), bytes.slice(..100)).await.unwrap();
        archive.put_file(&WalFileName::Partial(next), bytes).await.unwrap();
        archive.sweep_pieces(size).await.unwrap();
        assert_eq!(archive.list_pieces(None).await.unwrap(), []);
    }

    /// What a copy left on its promotion is less than what its original went on to write in the same segment.
    #[tokio::test]
    async fn a_shorter_end_of_a_timeline_does_not_take_the_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        let size = SegmentSize::new(MIB).unwrap();
        let (name, bytes) = segment(7, 6, b"a", 9);
        archive.put_piece(name.timeline(), Lsn::new(6 * MIB), bytes.slice(..3000)).await.unwrap();
        let mut left = bytes.to_vec();
        left[2000..].fill(0);
        archive.put_file(&WalFileName::Partial(name), Bytes::from(left)).await.unwrap();
        archive.sweep_pieces(size).await.unwrap();
        assert_eq!(archive.read_pieces(name, size).await.unwrap().unwrap().1, Lsn::new(6 * MIB + 3000));
    }

    /// A server that was set back goes on beside what it had written before: only what both have is used.
    #[tokio::test]
    async fn pieces_of_two_histories_are_used_up_to_where_they_part() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        let size = SegmentSize::new(MIB).unwrap();
        let (name, first) = segment(7, 6, b"a", 9);
        let mut second = first.to_vec();
        second[2500..].fill(7);
        let second = Bytes::from(second);
        let put = |from: u64, bytes: Bytes| archive.put_piece(name.timeline(), Lsn::new(6 * MIB + from), bytes);
        put(0, first.slice(..5000)).await.unwrap();
        put(0, second.slice(..2000)).await.unwrap();
        let end = async || archive.read_pieces(name, size).await.unwrap().unwrap();
        assert_eq!(end().await.1, Lsn::new(6 * MIB + 5000), "nothing shows yet that they part");
        put(2000, second.slice(2000..4000)).await.unwrap();
        put(4000, second.slice(4000..9000)).await.unwrap();
        let (bytes, until) = end().await;
        assert_eq!((until, &bytes[..2500]), (Lsn::new(6 * MIB + 2500), &first[..2500]));
        assert!(bytes[2500..].iter().all(|&byte| byte == 0));
    }
}

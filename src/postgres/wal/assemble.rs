//! A stream into whole segments: contiguous pieces in, segments out.
//!
//! Where pieces begin and end means nothing. A gap is refused; bytes that were there before are accepted again if they
//! are the same, as after a reconnection, and refused if they differ. What has come of the segment that is not whole
//! yet can be looked at and is never given out as whole.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::postgres::format::timeline::TimelineId;

/// A piece that does not belong where the stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// Something is missing before it.
    #[error("the log goes on at {found}, but was received up to {expected} only")]
    NotContiguous {
        /// Where it should go on.
        expected: Lsn,
        /// Where it does.
        found: Lsn,
    },
    /// It differs from what came before in its place.
    #[error("the byte at {at} was received again, and is another one")]
    Differs {
        /// The first byte that differs.
        at: Lsn,
    },
    /// It begins in a segment that was given out already.
    #[error("the log goes on at {found}, before the segment that begins at {held}, and can no longer be compared")]
    BeforeHeldSegment {
        /// Where it begins.
        found: Lsn,
        /// What is held begins here.
        held: Lsn,
    },
    /// Positions or names end here.
    #[error("the log at {at} is beyond the last segment that has a name")]
    OutOfNames {
        /// Where.
        at: Lsn,
    },
}

/// A whole segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalSegment {
    /// Its name.
    pub name: SegmentName,
    /// All its bytes.
    pub bytes: Bytes,
}

/// A part of a segment, from its first byte on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartialSegment<'a> {
    /// The segment's name.
    pub name: SegmentName,
    /// Its bytes so far.
    pub bytes: &'a [u8],
}

/// Makes segments of one timeline's stream. It holds one segment and what [`SegmentAssembler::poll`] was not asked for
/// yet.
#[derive(Debug)]
pub struct SegmentAssembler {
    timeline: TimelineId,
    size: SegmentSize,
    /// The segment under way, from its first byte on.
    partial: BytesMut,
    /// Its first byte's position.
    begins: Lsn,
    whole: VecDeque<WalSegment>,
    /// Buffers given back, to be filled again instead of new ones.
    spare: Vec<BytesMut>,
}

/// The most buffers kept for another segment: one is filled while one is sealed.
const MAX_SPARE_BUFFERS: usize = 2;

impl SegmentAssembler {
    /// An assembler of the stream that begins with the segment which `start` lies in. The first piece has to begin
    /// where that segment does; that is where a receiver asks the server to start, and what it had of the segment
    /// before it stopped comes first if it kept it.
    #[must_use]
    pub fn new(timeline: TimelineId, size: SegmentSize, start: Lsn) -> SegmentAssembler {
        let begins = size.segment_of(start).start(size);
        SegmentAssembler { timeline, size, partial: BytesMut::new(), begins, whole: VecDeque::new(), spare: Vec::new() }
    }

    /// The position of the next byte.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.begins.saturating_add(self.partial.len() as u64)
    }

    /// The segment under way, unless nothing of it has come yet.
    #[must_use]
    pub fn partial(&self) -> Option<PartialSegment<'_>> {
        let name = SegmentName::new(self.timeline, self.size.segment_of(self.begins), self.size)?;
        (!self.partial.is_empty()).then_some(PartialSegment { name, bytes: &self.partial })
    }

    /// Takes the piece that begins at `start`.
    ///
    /// # Errors
    /// [`AssembleError`] if it does not belong there; then nothing of it was taken.
    pub fn push(&mut self, start: Lsn, piece: &[u8]) -> Result<(), AssembleError> {
        let expected = self.position();
        if start > expected {
            return Err(AssembleError::NotContiguous { expected, found: start });
        }
        let mut new = self.compare_repeated(start, piece)?;
        let end = expected.checked_add(new.len() as u64).ok_or(AssembleError::OutOfNames { at: expected })?;
        let last = self.size.segment_of(Lsn::new(end.get().saturating_sub(1)));
        SegmentName::new(self.timeline, last, self.size).ok_or(AssembleError::OutOfNames { at: end })?;
        while !new.is_empty() {
            if self.partial.capacity() == 0 {
                self.partial = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(self.size.len()));
            }
            let room = self.size.len().saturating_sub(self.partial.len());
            let (here, rest) = new.split_at(room.min(new.len()));
            self.partial.extend_from_slice(here);
            new = rest;
            if here.len() == room {
                self.complete_segment();
            }
        }
        Ok(())
    }

    /// Compares what of `piece` is already there; answers the rest.
    fn compare_repeated<'a>(&self, start: Lsn, piece: &'a [u8]) -> Result<&'a [u8], AssembleError> {
        let Ok(offset) = usize::try_from(start.bytes_since(self.begins)) else { return Ok(piece) };
        if start < self.begins {
            return Err(AssembleError::BeforeHeldSegment { found: start, held: self.begins });
        }
        let held = self.partial.get(offset..).unwrap_or(&[]);
        let (again, new) = piece.split_at(held.len().min(piece.len()));
        if held.starts_with(again) {
            return Ok(new);
        }
        let at = again.iter().zip(held).take_while(|(one, other)| one == other).count();
        Err(AssembleError::Differs { at: start.saturating_add(at as u64) })
    }

    fn complete_segment(&mut self) {
        let number = self.size.segment_of(self.begins);
        let bytes = std::mem::take(&mut self.partial).freeze();
        self.begins = number.end(self.size);
        // `push` has made sure that there is a name.
        self.whole.extend(SegmentName::new(self.timeline, number, self.size).map(|name| WalSegment { name, bytes }));
    }

    /// The next whole segment, oldest first.
    pub fn poll(&mut self) -> Option<WalSegment> {
        self.whole.pop_front()
    }

    /// Gives a segment's bytes back when they are no longer needed, so that the next segment need not be allocated.
    /// They are just dropped if somebody else still holds them.
    pub fn recycle(&mut self, bytes: Bytes) {
        if self.spare.len() < MAX_SPARE_BUFFERS
            && let Ok(mut buffer) = bytes.try_into_mut()
            && buffer.capacity() >= self.size.len()
        {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::{collection, proptest};

    use super::{AssembleError, SegmentAssembler};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::SegmentSize;
    use crate::postgres::format::timeline::TimelineId;

    const SIZE: usize = 1 << 20;

    fn assembler(start: u64) -> SegmentAssembler {
        SegmentAssembler::new(TimelineId::FIRST, SegmentSize::new(SIZE as u64).unwrap(), Lsn::new(start))
    }

    fn log(len: usize) -> Vec<u8> {
        (0..u32::MAX).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).take(len).collect()
    }

    #[test]
    fn pieces_of_any_size_make_the_same_segments() {
        let log = log(3 * SIZE + 100);
        for piece in [1 << 10, 8192, 131_072, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE + 100] {
            let mut assembler = assembler(2 * SIZE as u64);
            for (i, bytes) in log.chunks(piece).enumerate() {
                assembler.push(Lsn::new((2 * SIZE + i * piece) as u64), bytes).unwrap();
            }
            let mut whole = Vec::new();
            while let Some(segment) = assembler.poll() {
                assert_eq!(segment.name.to_string(), format!("00000001000000000000000{}", 2 + whole.len() / SIZE));
                whole.extend_from_slice(&segment.bytes);
                assembler.recycle(segment.bytes);
            }
            assert_eq!(whole, log[..3 * SIZE], "pieces of {piece}");
            let partial = assembler.partial().unwrap();
            assert_eq!(
                (partial.name.to_string().as_str(), partial.bytes),
                ("000000010000000000000005", &log[3 * SIZE..])
            );
        }
    }

    #[test]
    fn gaps_and_other_bytes_are_refused_and_leave_all_as_it_was() {
        let log = log(SIZE + 1000);
        let mut assembler = assembler(0);
        assembler.push(Lsn::new(0), &log[..SIZE + 500]).unwrap();
        let position = assembler.position();
        assert_eq!(
            assembler.push(Lsn::new(SIZE as u64 + 501), &[1]),
            Err(AssembleError::NotContiguous { expected: position, found: Lsn::new(SIZE as u64 + 501) })
        );
        let mut other = log[SIZE + 100..SIZE + 600].to_vec();
        other[7] ^= 1;
        assert_eq!(
            assembler.push(Lsn::new(SIZE as u64 + 100), &other),
            Err(AssembleError::Differs { at: Lsn::new(SIZE as u64 + 107) })
        );
        assert_eq!(
            assembler.push(Lsn::new(SIZE as u64 - 1), &log[SIZE - 1..]),
            Err(AssembleError::BeforeHeldSegment { found: Lsn::new(SIZE as u64 - 1), held: Lsn::new(SIZE as u64) })
        );
        assert_eq!(assembler.position(), position);
        assembler.push(Lsn::new(SIZE as u64 + 100), &log[SIZE + 100..SIZE + 600]).unwrap();
        assert_eq!(assembler.partial().unwrap().bytes, &log[SIZE..SIZE + 600]);
    }

    #[test]
    fn a_start_within_a_segment_means_its_beginning() {
        assert_eq!(assembler(SIZE as u64 + 77).position(), Lsn::new(SIZE as u64));
        assert!(assembler(SIZE as u64 + 77).partial().is_none());
    }

    #[test]
    fn the_log_ends_where_names_do() {
        let mut assembler = assembler(u64::MAX);
        let at = assembler.position();
        assert_eq!(assembler.push(at, &log(SIZE)), Err(AssembleError::OutOfNames { at }));
        assembler.push(at, &log(SIZE)[1..]).unwrap();
        assert!(assembler.poll().is_none());
    }

    proptest! {
        #[test]
        fn repeats_change_nothing(steps in collection::vec((0_usize..300_000, 0_usize..300_000), 1..20)) {
            static LOG: LazyLock<Vec<u8>> = LazyLock::new(|| log(4 * SIZE));
            let log = &*LOG;
            let mut assembler = assembler(0);
            let mut whole = Vec::new();
            for (back, len) in steps {
                let at = usize::try_from(assembler.position().get()).unwrap();
                let from = at.saturating_sub(back).max(at / SIZE * SIZE);
                let to = (from + len).min(log.len());
                assembler.push(Lsn::new(from as u64), &log[from..to]).unwrap();
                while let Some(segment) = assembler.poll() {
                    whole.extend_from_slice(&segment.bytes);
                }
            }
            whole.extend_from_slice(assembler.partial().map_or(&[][..], |partial| partial.bytes));
            assert_eq!(whole, log[..usize::try_from(assembler.position().get()).unwrap()]);
        }
    }
}

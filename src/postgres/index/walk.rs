//! What a walk over segments and blocks comes to, and how it continues.

use std::ops::ControlFlow;

use super::error::IndexError;
use super::keys::SegmentId;
use super::summary::{FullBlock, SegmentSummary};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;

/// How a walk goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkNext {
    /// With what follows.
    Next,
    /// With what the block is made of.
    Into,
}

/// A segment as a path uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathSegment {
    /// Which segment.
    pub place: SegmentId,
    /// Its first byte.
    pub from: Lsn,
    /// The position after the last byte that the path takes from it: its end, or where the path leaves its timeline.
    pub to: Lsn,
    /// What is in it.
    pub summary: SegmentSummary,
}

/// What a walk in long strides comes to.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
pub enum WalkStep<'s> {
    /// A segment.
    Segment(PathSegment),
    /// All segments of a block.
    Block(WholeBlock<'s>),
}

/// A block all of whose segments are there.
pub struct WholeBlock<'s> {
    /// How many there are.
    pub segments: u64,
    /// What they are together.
    pub full: FullBlock,
    /// The largest time of an ending in it, or later.
    pub latest: Option<PgTime>,
    /// Its first and its last segment.
    pub ends: &'s dyn Fn() -> Result<Option<(PathSegment, PathSegment)>, IndexError>,
}

impl std::fmt::Debug for WalkStep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WalkStep::Segment(stretch) => f.debug_tuple("Segment").field(&stretch.place).finish(),
            WalkStep::Block(block) => block.fmt(f),
        }
    }
}

impl std::fmt::Debug for WholeBlock<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeBlock").field("full", &self.full).finish_non_exhaustive()
    }
}

/// Who is shown the steps of a walk, and says how it goes on.
pub(super) type StepVisitor<'v> = dyn FnMut(WalkStep<'_>) -> ControlFlow<(), WalkNext> + 'v;

/// What neighbouring segments are together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SegmentRunSum {
    /// How many they are.
    pub(super) segments: u64,
    pub(super) full: FullBlock,
    /// The largest time of an ending in them, or later.
    pub(super) latest: Option<PgTime>,
    /// The first and the last of them.
    pub(super) ends: (PathSegment, PathSegment),
}

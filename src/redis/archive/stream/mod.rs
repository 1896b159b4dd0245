//! The stream of commands, in stretches.

pub mod deletions;
pub mod spool;
mod stored;
mod stretch;

pub use stretch::{
    ArrivalMark, Deletion, DeletionKind, PreviousHistory, ReadDelays, ServerRun, StreamStretch, StretchDeletions,
    UntimedBacklog,
};

//! The stream of commands, in stretches.

pub mod deletions;
pub mod spool;
mod spooled_stretch;
mod stored;
mod stretch;

pub use spooled_stretch::{SpooledStretch, StretchStart};
pub use stored::{ListedStretch, StretchToStore};
pub use stretch::{
    ArrivalMark, Deletion, DeletionKind, PreviousHistory, ReadDelays, ServerRun, StreamStretch, StretchDeletions,
    StretchName, UntimedBacklog,
};

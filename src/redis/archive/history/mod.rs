//! From a moment to what leads there: a snapshot, and the stream behind it up to a place where it may be cut.
//!
//! What the stream had brought by a time is told by its marks, in the order of the stream: the target is the last mark
//! before the first one that is later than the time asked for. So a clock that was set back makes the target earlier,
//! never one that holds what came after. A time counts as covered only if something shows that the stream was followed
//! at that time ([`unrecorded_intervals`]) and beyond it. Every stretch on the way is looked at: a hole between two of
//! them, or one that is damaged, ends the way there.

mod chain;
mod holes;
mod known_stretches;
pub mod last_command;
pub(crate) mod offset_target;
mod route;
mod targets;
#[cfg(test)]
mod tests;

pub use holes::{StreamHole, unrecorded_intervals};
pub use known_stretches::KnownStretches;
pub use route::{RedisTarget, RestoreRoute, UnreachableState};
pub use targets::remove_foreign_snapshots;

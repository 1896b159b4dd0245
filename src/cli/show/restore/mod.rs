//! What `walkeep restore` prints besides the plan.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;
pub(in crate::cli) mod selective;

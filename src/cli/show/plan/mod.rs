//! What `walkeep plan` shows.

pub(in crate::cli) mod postgres;

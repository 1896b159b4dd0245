//! What `walkeep list` shows.

pub(in crate::cli) mod redis;

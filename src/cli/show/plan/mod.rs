//! What `walkeep plan` prints.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;
pub(in crate::cli) mod all;

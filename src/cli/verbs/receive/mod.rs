//! `walkeep receive`.

pub(in crate::cli) mod redis;

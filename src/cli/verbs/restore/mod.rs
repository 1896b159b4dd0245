//! `walkeep restore`.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod selective;
pub(in crate::cli) mod redis;
pub(in crate::cli) mod all;

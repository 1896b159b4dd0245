//! `walkeep backup`.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;

//! What `walkeep log` shows: one line for each entry.

mod page;
mod postgres;
mod redis;

pub(in crate::cli) use page::{LogPage, LogSubject};

//! What everything else stands on: time, files, locks, retries, threads. Knows nothing of databases or object stores.

pub mod clock;
pub mod durable;
pub(crate) mod disk;
pub mod lock;
pub mod retry;
pub mod error_kind;
pub mod pipeline;
pub(crate) mod blocking;
pub mod scoped_threads;
pub mod schedule;
pub mod pem;
pub mod findings;
pub(crate) mod units;
pub mod restore_estimate;

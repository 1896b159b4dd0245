//! Time-outs and pauses that always pass in real time, because what they wait for is another process or a socket.

use std::future::Future;
use std::time::{Duration, Instant};

/// The output of `future`, or `None` if `limit` passes first. The future is then dropped.
pub async fn real_timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

/// Ends when `pause` has passed.
pub async fn real_sleep(pause: Duration) {
    tokio::time::sleep(pause).await;
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

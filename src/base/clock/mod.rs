//! Wall time, monotonic time and sleep: real ([`SystemClock`]) or moved by hand ([`ManualClock`]). Nothing else asks
//! the time, so that a test can replay any schedule. Beside it, whose clock it is ([`Machine`]), and how far other
//! machines' clocks are from it ([`ClockOffset`]).

mod machine;
mod offset;
mod real_time;

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use jiff::Timestamp;
use tokio::sync::watch;

pub use machine::{Machine, ParseMachineError};
pub use offset::{
    CLOCK_PROBE_INTERVAL, ClockMeasurement, ClockOffset, MAX_ROUND_TRIP, OFFSET_WARNING, append_measurement,
};
pub use real_time::{Stopwatch, real_sleep, real_timeout};

/// Where time comes from.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Wall time. It may be stepped, forwards or back, while the program runs.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment; never goes back. For durations and deadlines.
    fn elapsed(&self) -> Duration;

    /// Ends when `pause` has passed on this clock.
    fn sleep(&self, pause: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Whose clock this is; `None` where nobody says.
    fn machine(&self) -> Option<Machine>;
}

/// The clock that a program hands down to all its parts.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock. Its `sleep` needs a tokio runtime with time enabled.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    machine: Option<Machine>,
}

impl SystemClock {
    /// The machine's clock, whose [`Clock::elapsed`] counts from now.
    #[must_use]
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now(), machine: Machine::current() }
    }

    /// The same, to be shared.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(SystemClock::new())
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, pause: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(pause))
    }

    fn machine(&self) -> Option<Machine> {
        self.machine
    }
}

/// A clock for tests: it stands still until moved, or jumps to the end of every sleep.
#[derive(Debug)]
pub struct ManualClock {
    start: Timestamp,
    /// How far the clock has been moved; sleepers wait for it.
    moved: watch::Sender<Duration>,
    jumps: bool,
}

impl ManualClock {
    /// A clock that stands at `start` until [`ManualClock::advance`] moves it.
    #[must_use]
    pub fn standing_at(start: Timestamp) -> ManualClock {
        ManualClock { start, moved: watch::Sender::new(Duration::ZERO), jumps: false }
    }

    /// A clock whose sleeps end at once, having moved it by their length.
    #[must_use]
    pub fn jumping_from(start: Timestamp) -> ManualClock {
        ManualClock { start, moved: watch::Sender::new(Duration::ZERO), jumps: true }
    }

    /// Moves the clock and wakes those whose sleep is over.
    pub fn advance(&self, by: Duration) {
        self.moved.send_modify(|moved| *moved = moved.saturating_add(by));
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.start.checked_add(self.elapsed()).unwrap_or(Timestamp::MAX)
    }

    fn elapsed(&self) -> Duration {
        *self.moved.borrow()
    }

    fn sleep(&self, pause: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let until = self.elapsed().saturating_add(pause);
        if self.jumps {
            return Box::pin(async move {
                // Let whatever races against this sleep run first: only one that is really stuck is timed out.
                for _ in 0..64 {
                    tokio::task::yield_now().await;
                }
                self.moved.send_modify(|moved| *moved = until.max(*moved));
            });
        }
        let mut moved = self.moved.subscribe();
        Box::pin(async move {
            // The sender lives as long as `self`, so waiting can't fail.
            drop(moved.wait_for(|moved| *moved >= until).await);
        })
    }

    fn machine(&self) -> Option<Machine> {
        None
    }
}

/// What `future` gives, or `None` if `limit` passes on `clock` first. The future is then dropped.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let future = pin!(future);
    match select(future, clock.sleep(limit)).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(((), _)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, ManualClock, timeout};
    use jiff::Timestamp;
    use std::time::Duration;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_standing_clock_wakes_only_those_whose_time_has_come() {
        let clock = ManualClock::standing_at(Timestamp::UNIX_EPOCH);
        let mut short = clock.sleep(MINUTE);
        let mut long = clock.sleep(2 * MINUTE);
        clock.advance(MINUTE);
        short.as_mut().await;
        assert!(futures_util::poll!(long.as_mut()).is_pending());
        clock.advance(MINUTE);
        long.await;
        assert_eq!(clock.now().as_second(), 120);
    }

    #[tokio::test]
    async fn a_timeout_ends_what_is_stuck_and_nothing_else() {
        let clock = ManualClock::jumping_from(Timestamp::UNIX_EPOCH);
        assert_eq!(timeout(&clock, MINUTE, async { 7 }).await, Some(7));
        assert_eq!(clock.elapsed(), Duration::ZERO);
        assert_eq!(timeout(&clock, MINUTE, std::future::pending::<()>()).await, None);
        assert_eq!(clock.elapsed(), MINUTE);
    }
}

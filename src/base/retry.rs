//! What may be tried again, and how long to wait before it is.

use std::future::Future;
use std::time::Duration;

use crate::base::clock::Clock;

/// What a failed operation's caller can do about it. Every adapter's error answers `class()`; nothing else decides a
/// retry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorClass {
    /// The same call may succeed later: network, time-out, a server that is starting.
    Transient,
    /// The same call will fail again: wrong password, damaged data, a full name space.
    Permanent,
    /// Another content already stands under the name.
    Conflict,
}

/// How to pause between attempts: each pause is twice the one before, cut at `longest`, and a random half of it is left
/// out so that many clients of a server that comes back don't arrive together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// The pause after the first failure.
    pub first: Duration,
    /// No pause is longer than this.
    pub longest: Duration,
    /// No attempt begins later than this after the first one; `None` tries for ever.
    pub total: Option<Duration>,
}

/// The pauses of one operation under a [`RetryPolicy`].
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: RetryPolicy,
    deadline: Option<Duration>,
    pause: Duration,
    random: u64,
}

impl Backoff {
    /// Begins at `now`, the clock's [`Clock::elapsed`]. `seed` decides the random part: the same seed gives the same
    /// pauses.
    #[must_use]
    pub fn new(policy: RetryPolicy, now: Duration, seed: u64) -> Backoff {
        let deadline = policy.total.map(|total| now.saturating_add(total));
        Backoff { policy, deadline, pause: policy.first, random: seed | 1 }
    }

    /// How long to wait before the next attempt, or `None` if it would begin after the deadline.
    pub fn next_pause(&mut self, now: Duration) -> Option<Duration> {
        let whole = self.pause.min(self.policy.longest);
        self.pause = whole.saturating_mul(2);
        // xorshift64: good enough to spread clients, and the same everywhere.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let half = whole / 2;
        let left_out = half.mul_f64((self.random >> 32) as f64 / f64::from(u32::MAX));
        let pause = whole.saturating_sub(left_out);
        match self.deadline {
            Some(deadline) if now.saturating_add(pause) > deadline => None,
            _ => Some(pause),
        }
    }

    /// After a success: the next failure begins a new series.
    pub fn reset(&mut self, now: Duration) {
        self.pause = self.policy.first;
        self.deadline = self.policy.total.map(|total| now.saturating_add(total));
    }
}

/// Runs `attempt` until it succeeds, fails for good, or the policy's time is over; then gives the last error.
///
/// # Errors
/// The error of the last attempt.
pub async fn retry<T, E, F, A>(
    clock: &dyn Clock,
    mut backoff: Backoff,
    class: impl Fn(&E) -> ErrorClass,
    mut attempt: A,
) -> Result<T, E>
where
    A: FnMut() -> F,
    F: Future<Output = Result<T, E>>,
{
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if class(&error) == ErrorClass::Transient => match backoff.next_pause(clock.elapsed()) {
                Some(pause) => clock.sleep(pause).await,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, ErrorClass, RetryPolicy, retry};
    use crate::base::clock::{Clock, ManualClock};
    use jiff::Timestamp;
    use std::time::Duration;

    const POLICY: RetryPolicy = RetryPolicy {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(1),
        total: Some(Duration::from_secs(10)),
    };

    #[test]
    fn pauses_double_up_to_the_longest_and_lose_at_most_half() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(POLICY, Duration::ZERO, seed);
            for whole in [100, 200, 400, 800, 1000, 1000] {
                let pause = backoff.next_pause(Duration::ZERO).unwrap();
                let whole = Duration::from_millis(whole);
                assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
            }
        }
    }

    #[tokio::test]
    async fn tries_again_what_is_transient_until_the_time_is_over() {
        let clock = ManualClock::jumping_from(Timestamp::UNIX_EPOCH);
        let mut attempts = 0;
        let result: Result<(), ErrorClass> = retry(
            &clock,
            Backoff::new(POLICY, clock.elapsed(), 7),
            |class| *class,
            || {
                attempts += 1;
                std::future::ready(Err(ErrorClass::Transient))
            },
        )
        .await;
        assert_eq!(result, Err(ErrorClass::Transient));
        assert!(attempts > 10, "{attempts} attempts");
        assert!(clock.elapsed() <= Duration::from_secs(10));
    }

    #[tokio::test]
    async fn does_not_try_again_what_is_not() {
        let clock = ManualClock::jumping_from(Timestamp::UNIX_EPOCH);
        for class in [ErrorClass::Permanent, ErrorClass::Conflict] {
            let mut attempts = 0;
            let result: Result<(), ErrorClass> = retry(
                &clock,
                Backoff::new(POLICY, clock.elapsed(), 7),
                |c| *c,
                || {
                    attempts += 1;
                    std::future::ready(Err(class))
                },
            )
            .await;
            assert_eq!((result, attempts), (Err(class), 1));
        }
    }
}

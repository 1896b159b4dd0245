//! The moment that PostgreSQL and Redis both go to where one of them cannot reach the one that was asked for.
//!
//! Each goes back to the nearest that it reaches itself, which the other may have to go back from again: so both are
//! asked anew until they are asked for the same. And a server that has had no commit for hours reaches no moment since,
//! though its state is that of all of them: that is for people to know.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::postgres::restore::plan::{PlanOutcome, RestorePlan};

/// How often both are asked for one moment. The second time is that of a point that one of them went back to; more is
/// for a log with holes.
pub const MAX_AGREEMENT_ROUNDS: usize = 4;

/// A server that has had no commit for longer is idle, and nobody expects Redis to go back so far for it.
const MIN_IDLE_TIME: SignedDuration = SignedDuration::from_secs(60);

/// What came of asking one of the two for a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MomentAnswer {
    /// It goes there.
    Reached,
    /// It goes to this one before it at best.
    ReachedEarlier(Timestamp),
    /// It goes nowhere, and its plan says why.
    Unreachable,
}

impl MomentAnswer {
    /// Where PostgreSQL goes that was asked for a moment or the nearest before.
    #[must_use]
    pub fn from_plan(plan: &RestorePlan, moment: Timestamp) -> MomentAnswer {
        let restore = match &plan.outcome {
            PlanOutcome::Unreachable(_) | PlanOutcome::Refused { .. } => return MomentAnswer::Unreachable,
            PlanOutcome::Target(_) => return MomentAnswer::Reached,
            PlanOutcome::OtherPoint { restore, .. } => restore,
        };
        // Its newest state is that of its last commit's time. For how much longer nobody knows.
        let last = restore.commits.last.and_then(|commit| commit.time.to_timestamp());
        match last {
            Some(last) if last == moment => MomentAnswer::Reached,
            // Without a time before the moment there is none to ask Redis for.
            last => MomentAnswer::ReachedEarlier(last.unwrap_or(moment).min(moment)),
        }
    }
}

/// Asks both for a moment, and if one of them goes further back, both for where that one went, until they go to the
/// same one or one of them nowhere: the moment that was asked for last. `None` if they come to no agreement.
///
/// # Errors
/// Those of `ask`.
pub async fn find_common_moment<E>(
    first: Timestamp,
    mut ask: impl AsyncFnMut(Timestamp) -> Result<[MomentAnswer; 2], E>,
) -> Result<Option<Timestamp>, E> {
    let mut moment = first;
    for _ in 0..MAX_AGREEMENT_ROUNDS {
        let went = ask(moment).await?;
        let back = went.into_iter().filter_map(|went| match went {
            MomentAnswer::ReachedEarlier(to) => Some(to),
            MomentAnswer::Reached | MomentAnswer::Unreachable => None,
        });
        match back.min() {
            Some(to) if !went.contains(&MomentAnswer::Unreachable) => moment = to,
            _ => return Ok(Some(moment)),
        }
    }
    Ok(None)
}

/// No commit of PostgreSQL is archived for so long before what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdleInterval {
    /// The last commit.
    pub since: Timestamp,
    /// Redis by itself can be brought there.
    pub until: Timestamp,
}

impl IdleInterval {
    /// If Redis goes back further than anybody expects.
    #[must_use]
    pub fn new(since: Timestamp, until: Timestamp) -> Option<IdleInterval> {
        (until.duration_since(since) > MIN_IDLE_TIME).then_some(IdleInterval { since, until })
    }

    /// How far Redis goes back.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::try_from(self.until.duration_since(self.since)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::{IdleInterval, MAX_AGREEMENT_ROUNDS, MomentAnswer, find_common_moment};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The moments that were asked for, and the one that both go to.
    async fn settled(first: i64, went: impl Fn(i64) -> [MomentAnswer; 2]) -> (Vec<i64>, Option<i64>) {
        let mut asked = Vec::new();
        let settled = find_common_moment(at(first), async |moment: Timestamp| {
            asked.push(moment.as_second());
            Ok::<_, std::convert::Infallible>(went(moment.as_second()))
        });
        let settled = settled.await.unwrap().map(Timestamp::as_second);
        (asked, settled)
    }

    /// Goes to any moment up to this one.
    fn up_to(end: i64) -> impl Fn(i64) -> MomentAnswer {
        move |moment| if moment > end { MomentAnswer::ReachedEarlier(at(end)) } else { MomentAnswer::Reached }
    }

    #[tokio::test]
    async fn where_one_of_them_goes_further_back_the_other_goes_with_it() {
        let (postgres, redis) = (up_to(10), up_to(12));
        assert_eq!(settled(12, |moment| [postgres(moment), redis(moment)]).await, (vec![12, 10], Some(10)));
        assert_eq!(settled(9, |moment| [postgres(moment), redis(moment)]).await, (vec![9], Some(9)));
        // A time at which nobody received: Redis goes to before it.
        let paused = |moment| {
            if (5..11).contains(&moment) { MomentAnswer::ReachedEarlier(at(4)) } else { MomentAnswer::Reached }
        };
        assert_eq!(settled(12, |moment| [postgres(moment), paused(moment)]).await, (vec![12, 10, 4], Some(4)));
        let nowhere = |moment| if moment < 11 { MomentAnswer::Unreachable } else { MomentAnswer::Reached };
        assert_eq!(settled(12, |moment| [postgres(moment), nowhere(moment)]).await, (vec![12, 10], Some(10)));
    }

    #[tokio::test]
    async fn two_that_never_agree_are_not_asked_for_ever() {
        let ever = |moment| [MomentAnswer::ReachedEarlier(at(moment - 1)), MomentAnswer::Reached];
        let (asked, settled) = settled(12, ever).await;
        assert_eq!((asked.len(), settled), (MAX_AGREEMENT_ROUNDS, None));
    }

    #[test]
    fn a_server_is_idle_after_a_minute() {
        assert_eq!((IdleInterval::new(at(0), at(60)), IdleInterval::new(at(90), at(0))), (None, None));
        let night = IdleInterval::new(at(0), at(11 * 3600)).unwrap();
        assert_eq!(night.duration(), Duration::from_secs(11 * 3600));
    }
}

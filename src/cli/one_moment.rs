//! The moment that PostgreSQL and Redis both go to where one of them cannot reach the one that was asked for.
//!
//! Each goes back to the nearest that it reaches itself, which the other may have to go back from again: so both are asked anew until they are asked for
//! the same. And a server that has had no commit for hours reaches no moment since, though its state is that of all of them: that is for people to know.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::postgres::restore::plan::RestorePlan;

/// How often both are asked for one moment. The second time is that of a point that one of them went back to; more is for a log with holes.
pub(super) const ROUNDS: usize = 4;

/// A server that has had no commit for longer is idle, and nobody expects Redis to go back so far for it.
const IDLE: SignedDuration = SignedDuration::from_secs(60);

/// What came of asking one of the two for a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MomentAnswer {
    /// It goes there.
    There,
    /// It goes to this one before it at best.
    Back(Timestamp),
    /// It goes nowhere, and its plan says why.
    Nowhere,
}

impl MomentAnswer {
    /// Where PostgreSQL goes that was asked for a moment or the nearest before.
    pub(super) fn of(plan: &RestorePlan, moment: Timestamp) -> MomentAnswer {
        if !plan.reachable {
            return MomentAnswer::Nowhere;
        }
        if !plan.goes_elsewhere() {
            return MomentAnswer::There;
        }
        // Its newest state is that of its last commit's time. For how much longer nobody knows.
        let last = plan.last_commit_before.and_then(|commit| commit.time.to_timestamp());
        match last {
            Some(last) if last == moment => MomentAnswer::There,
            // Without a time before the moment there is none to ask Redis for.
            last => MomentAnswer::Back(last.unwrap_or(moment).min(moment)),
        }
    }
}

/// Asks both for a moment, and if one of them goes further back, both for where that one went, until they go to the same one or one of them nowhere:
/// the moment that was asked for last. `None` if they come to no agreement.
pub(super) async fn settle(
    first: Timestamp,
    mut ask: impl AsyncFnMut(Timestamp) -> anyhow::Result<[MomentAnswer; 2]>,
) -> anyhow::Result<Option<Timestamp>> {
    let mut moment = first;
    for _ in 0..ROUNDS {
        let went = ask(moment).await?;
        let back = went.into_iter().filter_map(|went| match went {
            MomentAnswer::Back(to) => Some(to),
            MomentAnswer::There | MomentAnswer::Nowhere => None,
        });
        match back.min() {
            Some(to) if !went.contains(&MomentAnswer::Nowhere) => moment = to,
            _ => return Ok(Some(moment)),
        }
    }
    Ok(None)
}

/// No commit of PostgreSQL is archived for so long before what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IdleInterval {
    /// The last commit.
    pub(super) since: Timestamp,
    /// Redis by itself can be brought there.
    pub(super) until: Timestamp,
}

impl IdleInterval {
    /// If Redis goes back further than anybody expects.
    pub(super) fn of(since: Timestamp, until: Timestamp) -> Option<IdleInterval> {
        (until.duration_since(since) > IDLE).then_some(IdleInterval { since, until })
    }

    pub(super) fn span(self) -> Duration {
        Duration::try_from(self.until.duration_since(self.since)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::{IdleInterval, MomentAnswer, ROUNDS, settle};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// The moments that were asked for, and the one that both go to.
    async fn settled(first: i64, went: impl Fn(i64) -> [MomentAnswer; 2]) -> (Vec<i64>, Option<i64>) {
        let mut asked = Vec::new();
        let settled = settle(at(first), async |moment: Timestamp| {
            asked.push(moment.as_second());
            Ok(went(moment.as_second()))
        });
        let settled = settled.await.unwrap().map(Timestamp::as_second);
        (asked, settled)
    }

    /// Goes to any moment up to this one.
    fn up_to(end: i64) -> impl Fn(i64) -> MomentAnswer {
        move |moment| if moment > end { MomentAnswer::Back(at(end)) } else { MomentAnswer::There }
    }

    #[tokio::test]
    async fn where_one_of_them_goes_further_back_the_other_goes_with_it() {
        let (postgres, redis) = (up_to(10), up_to(12));
        assert_eq!(settled(12, |moment| [postgres(moment), redis(moment)]).await, (vec![12, 10], Some(10)));
        assert_eq!(settled(9, |moment| [postgres(moment), redis(moment)]).await, (vec![9], Some(9)));
        // A time at which nobody received: Redis goes to before it.
        let paused = |moment| if (5..11).contains(&moment) { MomentAnswer::Back(at(4)) } else { MomentAnswer::There };
        assert_eq!(settled(12, |moment| [postgres(moment), paused(moment)]).await, (vec![12, 10, 4], Some(4)));
        let nowhere = |moment| if moment < 11 { MomentAnswer::Nowhere } else { MomentAnswer::There };
        assert_eq!(settled(12, |moment| [postgres(moment), nowhere(moment)]).await, (vec![12, 10], Some(10)));
    }

    #[tokio::test]
    async fn two_that_never_agree_are_not_asked_for_ever() {
        let ever = |moment| [MomentAnswer::Back(at(moment - 1)), MomentAnswer::There];
        let (asked, settled) = settled(12, ever).await;
        assert_eq!((asked.len(), settled), (ROUNDS, None));
    }

    #[test]
    fn a_server_is_idle_after_a_minute() {
        assert_eq!((IdleInterval::of(at(0), at(60)), IdleInterval::of(at(90), at(0))), (None, None));
        let night = IdleInterval::of(at(0), at(11 * 3600)).unwrap();
        assert_eq!(night.span(), Duration::from_secs(11 * 3600));
    }
}

//! How far apart PostgreSQL and Redis may be after both were brought to one moment, and what that rests on.
//!
//! PostgreSQL goes to the moment by its server's clock, Redis by that of the machine which received its commands. Where the first is ahead of the
//! second, PostgreSQL comes to an earlier state, so that Redis may have what PostgreSQL has not; where it is behind, Redis lacks so much more.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;

use crate::archive::Archive;
use crate::archive::instance::{Origin, Reach};
use crate::clock::{FAR, Measured, Offset};
use crate::postgres::lsn::Lsn;
use crate::postgres::segment::{SegmentName, SegmentNo};
use crate::postgres::timeline::TimelinePath;
use crate::restore::plan::Plan;

/// The receiver notes the time of what it has read; what arrives meanwhile may have come so much earlier than it says.
const NOTED: Duration = Duration::from_millis(10);

/// Segments between the two commits beside the moment that are looked into. Between two commits lie few, unless the server is idle for hours.
const SEGMENTS: u64 = 64;

/// How far apart the two may be, and why.
#[derive(serde::Serialize)]
pub(super) struct Skew {
    /// Neither store is further from the other. Without [`Skew::clocks_known`], but for what the two clocks differed by.
    at_most_seconds: f64,
    /// Redis lacks at most what it did in so many seconds before the state of PostgreSQL.
    redis_behind_at_most_seconds: f64,
    /// Redis has at most what it did in so many seconds after it.
    redis_ahead_at_most_seconds: f64,
    /// Whether it is known what the clock of PostgreSQL's server and the receiver's differed by.
    clocks_known: bool,
    /// How far the clock of PostgreSQL's server was ahead of the receiver's, in microseconds.
    postgres_clock: Option<Measured>,
    /// How far that of the Redis server was.
    redis_clock: Option<Measured>,
    /// Everything that the receiver had by then is in Redis.
    redis_complete_up_to: Timestamp,
    /// When it had what comes next.
    redis_next_came_at: Option<Timestamp>,
    rests_on: Vec<String>,
}

/// What was measured of the clock of PostgreSQL's server at the moment, which is by that clock: all that speaks of it together.
pub(super) async fn clock_at(archive: &Archive, plan: &Plan, moment: Timestamp) -> anyhow::Result<Option<Measured>> {
    let unread = || format!("cannot tell what is known of the clock of {}'s server", plan.cluster);
    let Some(identity) = archive.identity().await.with_context(unread)? else { return Ok(None) };
    let path = match archive.history(plan.timeline).await.with_context(unread)? {
        Some(history) => history.path(),
        None => TimelinePath::first(),
    };
    let size = identity.segment_size;
    let beside = plan.last_commit_before.into_iter().chain(plan.first_commit_after).map(|commit| commit.lsn);
    let numbers: Vec<SegmentNo> = beside.map(|lsn: Lsn| size.segment_of(lsn)).collect();
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok(None) };
    // From the segment before: of one that has just begun there may be nothing in the repository, only in this machine's spool.
    let from = first.get().saturating_sub(1).max(last.get().saturating_sub(SEGMENTS));
    let mut found: Option<Measured> = None;
    for number in (from..=last.get()).map(SegmentNo::new) {
        // A segment in which a timeline ended is there on two of them.
        let ends = [number.start(size), Lsn::new(number.end(size).get().saturating_sub(1))];
        let mut timelines = ends.map(|lsn| path.timeline_at(lsn)).to_vec();
        timelines.dedup();
        for name in timelines.into_iter().filter_map(|timeline| SegmentName::new(timeline, number, size)) {
            for span in archive.clocks(name).await.with_context(unread)? {
                if let Some(span) = span.when_shown(moment) {
                    found = Some(found.map_or(span, |other| other.or(span)));
                }
            }
        }
    }
    Ok(found)
}

/// How far Redis may be behind PostgreSQL and ahead of it, if it lacks so much by the receiver's clock and PostgreSQL's is so far ahead of that.
fn apart(lack: Duration, ahead: Offset) -> (Duration, Duration) {
    let micros = |micros: i64| Duration::from_micros(micros.unsigned_abs());
    let behind =
        if ahead.low < 0 { lack.saturating_add(micros(ahead.low)) } else { lack.saturating_sub(micros(ahead.low)) };
    (behind, micros(ahead.high.max(0)))
}

/// A span as it is printed.
fn short(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{:.3} ms", span.as_secs_f64() * 1000.0),
        _ => format!("{:.3} s", span.as_secs_f64()),
    }
}

impl Skew {
    /// Of the cluster `main` and the instance `cache`.
    pub(super) fn of(reach: &Reach, moment: Timestamp, clock: Option<Measured>, (main, cache): (&str, &str)) -> Skew {
        let noted = Duration::try_from(moment.duration_since(reach.at)).unwrap_or_default();
        let mut lack = noted.saturating_add(NOTED);
        let mut rests_on = vec![
            "PostgreSQL's commits carry the time of its server's clock; it stops before the first that is later than the moment"
                .to_owned(),
            format!(
                "the commands of {cache} carry the time at which walkeep's receiver had them, by its machine's clock: it had the last that is \
                 kept {:.3} s before the moment, and takes at most 10 ms to note one",
                noted.as_secs_f64()
            ),
            of_postgres(main, clock),
        ];
        let redis_clock = reach.stretches.last().and_then(|stretch| stretch.clock);
        let redis_clock = redis_clock.filter(|clock| clock.is_near(reach.at));
        rests_on.push(match redis_clock {
            Some(Measured { offset, .. }) => {
                format!("the clock of {cache}'s server was {offset} the receiver's; nothing here goes by it but when keys expire")
            }
            None => format!(
                "how far the clock of {cache}'s server was off is not known; nothing here goes by it but when keys expire"
            ),
        });
        rests_on.push("not measured, so to be added: how long a command was under way to the receiver".to_owned());
        if let (Origin::File { path }, true) = (&reach.snapshot.origin, reach.stretches.is_empty()) {
            lack = lack.saturating_add(Duration::from_secs(1));
            rests_on.push(format!(
                "the snapshot was imported from {path}, which says its time only to the second, and by the clock of the server that wrote it"
            ));
        }
        let (behind, ahead) = clock.map_or((lack, Duration::ZERO), |clock| apart(lack, clock.offset));
        Skew {
            at_most_seconds: behind.max(ahead).as_secs_f64(),
            redis_behind_at_most_seconds: behind.as_secs_f64(),
            redis_ahead_at_most_seconds: ahead.as_secs_f64(),
            clocks_known: clock.is_some(),
            postgres_clock: clock,
            redis_clock,
            redis_complete_up_to: reach.at,
            redis_next_came_at: reach.before,
            rests_on,
        }
    }

    /// The bound in a sentence.
    pub(super) fn say(&self, main: &str, cache: &str) -> String {
        let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let (behind, ahead) = (span(self.redis_behind_at_most_seconds), span(self.redis_ahead_at_most_seconds));
        let (bound, lacks, has) = (short(behind.max(ahead)), short(behind), short(ahead));
        match (self.clocks_known, behind.is_zero(), ahead.is_zero()) {
            (false, ..) => format!(
                "NOT KNOWN in full: {bound}, and by how much the clocks of {main}'s server and of the receiver differed; by the \
                 receiver's clock {cache} may lack what it did in the last {lacks} before the moment"
            ),
            (true, true, _) => {
                format!("at most {bound}: {cache} may have what it did in the {has} after the state of {main}")
            }
            (true, false, true) => {
                format!("at most {bound}: {cache} may lack what it did in the last {lacks} before the state of {main}")
            }
            (true, false, false) => format!(
                "at most {bound}: {cache} may lack what it did in the last {lacks} before the state of {main}, or have what it did in the \
                 {has} after it"
            ),
        }
    }

    /// What the bound rests on.
    pub(super) fn rests_on(&self) -> &[String] {
        &self.rests_on
    }
}

fn of_postgres(main: &str, clock: Option<Measured>) -> String {
    match clock {
        Some(Measured { offset, .. }) => {
            let advice = if offset.certain() > FAR {
                ". So the moment is the one that its clock showed: see to NTP on both machines"
            } else {
                ""
            };
            format!(
                "the clock of {main}'s server was {offset} the receiver's, asked every 10 s while this WAL came; the bound has that in it{advice}"
            )
        }
        None => format!(
            "not known, so to be added: by how much the clock of {main}'s server and the receiver's differed at the moment. It is asked \
             where walkeep receive streams the WAL; this WAL came otherwise, with an earlier version, or long after it was written"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::apart;
    use crate::clock::Offset;

    #[test]
    fn a_clock_that_is_off_shifts_the_one_against_the_other() {
        for ((low, high), expected) in [
            ((0, 0), (30, 0)),
            ((-5, 7), (35, 7)),
            // Ahead: PostgreSQL comes to an earlier state.
            ((10, 20), (20, 20)),
            ((100, 101), (0, 101)),
            ((-5000, -4000), (5030, 0)),
        ] {
            let millis = Duration::from_millis;
            let offset = Offset { low: low * 1000, high: high * 1000 };
            assert_eq!(apart(millis(30), offset), (millis(expected.0), millis(expected.1)), "{low} {high}");
        }
    }

    proptest! {
        /// True times of both states, for any offset in the interval.
        #[test]
        fn no_offset_in_the_interval_takes_them_further_apart(
            lack in 0_u32..100_000, used in 0_u32..100_000, low in -90_000_i64..90_000, width in 0_i64..90_000, at in 0_i64..90_000,
        ) {
            let (lack, low, width) = (i64::from(lack), low * 1000, width * 1000);
            let offset = low + (at * 1000).min(width);
            let (behind, ahead) = apart(Duration::from_micros(lack.unsigned_abs()), Offset { low, high: low + width });
            // By the receiver's clock, of the moment zero: where PostgreSQL comes to, and where Redis does.
            let (postgres, redis) = (-offset, -i64::from(used).min(lack));
            prop_assert!(postgres - redis <= i64::try_from(behind.as_micros()).unwrap());
            prop_assert!(redis - postgres <= i64::try_from(ahead.as_micros()).unwrap());
        }
    }
}

//! How far apart PostgreSQL and Redis may be after both were brought to one moment, and what that rests on.
//!
//! PostgreSQL goes to the moment by its server's clock, Redis by that of the machine which received its commands. Where
//! the first is ahead of the second, PostgreSQL comes to an earlier state, so that Redis may have what PostgreSQL has
//! not; where it is behind, Redis lacks so much more.
//!
//! That is measured by the machine which received PostgreSQL's WAL. It says nothing of another one's clock, so it must
//! have been the same machine.

use std::time::Duration;

use jiff::Timestamp;

use crate::base::clock::{ClockMeasurement, ClockOffset, Machine, OFFSET_WARNING};
use crate::base::units::format_precise;
use crate::postgres::archive::{self, Archive};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo};
use crate::postgres::format::timeline::{TimelineId, TimelinePath};
use crate::postgres::restore::plan::ProvedRestore;
use crate::redis::archive::{RestoreRoute, SnapshotOrigin, StreamStretch};

/// The receiver notes the time of what it has read so often, and so much may be read in between; where it read more
/// slowly, that counts.
const MARK_PRECISION: Duration = Duration::from_millis(10);

/// Segments between the two commits beside the moment that are looked into. Between two commits lie few, unless the
/// server is idle for hours.
const MAX_SEGMENTS_SEARCHED: u64 = 64;

/// A server that is writing a snapshot already says since when, in whole seconds of which each end may be cut: the
/// state is so much older at most.
const RUNNING_SNAPSHOT_PRECISION: Duration = Duration::from_secs(2);

/// A file says its time only to the second.
const FILE_TIME_PRECISION: Duration = Duration::from_secs(1);

/// How far apart the two may be, and why.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ClockSkew {
    /// Neither store is further from the other. Without [`ClockSkew::clocks_known`], but for what clocks differed by
    /// that [`ClockSkew::assumptions`] names.
    at_most_seconds: f64,
    /// Redis lacks at most what it did in so many seconds before the state of PostgreSQL.
    redis_behind_at_most_seconds: f64,
    /// Redis has at most what it did in so many seconds after it.
    redis_ahead_at_most_seconds: f64,
    /// Whether it is known what the clock of PostgreSQL's server and that of the receiver of Redis differed by.
    clocks_known: bool,
    /// How far the clock of PostgreSQL's server was ahead of its receiver's, in microseconds.
    postgres_clock: Option<ClockMeasurement>,
    /// Whether both were received on one machine, if that is known.
    received_on_one_machine: Option<bool>,
    /// How far that of the Redis server was.
    redis_clock: Option<ClockMeasurement>,
    /// Everything that the receiver had by then is in Redis.
    redis_complete_up_to: Timestamp,
    /// When it had what comes next.
    redis_next_came_at: Option<Timestamp>,
    rests_on: Vec<String>,
}

/// What was measured of the clock of PostgreSQL's server at the moment, which is by that clock.
#[derive(Debug, Default)]
pub struct PostgresClockReading {
    /// Each of them speaks of the moment.
    spans: Vec<ClockMeasurement>,
    /// Why not all that may speak of it could be read.
    unread: Option<archive::ArchiveError>,
}

/// Looks for it beside the WAL. Nothing depends on it but how much is known, so that what cannot be read is no error.
pub async fn read_clock_at(archive: &Archive, proved: &ProvedRestore, moment: Timestamp) -> PostgresClockReading {
    let beside = proved.commits.last.into_iter().chain(proved.commits.next).map(|commit| commit.lsn);
    let found = match segments_around(archive, proved.timeline, beside).await {
        Ok(names) => read_measurements(archive, &names, moment).await,
        Err(error) => PostgresClockReading { unread: Some(error), ..PostgresClockReading::default() },
    };
    if let Some(error) = &found.unread {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            cluster = archive.cluster().as_str(),
            "what was measured of the server's clock cannot be read"
        );
    }
    found
}

/// Those between two commits, and the one before.
async fn segments_around(
    archive: &Archive,
    timeline: TimelineId,
    beside: impl Iterator<Item = Lsn>,
) -> Result<Vec<SegmentName>, archive::ArchiveError> {
    let Some(identity) = archive.identity().await? else { return Ok(Vec::new()) };
    let path = match archive.history(timeline).await? {
        Some(history) => history.path(),
        None => TimelinePath::first(),
    };
    let size = identity.segment_size;
    let numbers: Vec<SegmentNo> = beside.map(|lsn| size.segment_of(lsn)).collect();
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return Ok(Vec::new()) };
    // From the segment before: of one that has just begun there may be nothing in the repository, only in this
    // machine's spool.
    let from = first.get().saturating_sub(1).max(last.get().saturating_sub(MAX_SEGMENTS_SEARCHED));
    let names = (from..=last.get()).map(SegmentNo::new).flat_map(|number| {
        // A segment in which a timeline ended is there on two of them.
        let ends = [number.start(size), Lsn::new(number.end(size).get().saturating_sub(1))];
        let mut timelines = ends.map(|lsn| path.timeline_at(lsn)).to_vec();
        timelines.dedup();
        timelines.into_iter().filter_map(move |timeline| SegmentName::new(timeline, number, size))
    });
    Ok(names.collect())
}

async fn read_measurements(archive: &Archive, names: &[SegmentName], moment: Timestamp) -> PostgresClockReading {
    let mut found = PostgresClockReading::default();
    for name in names {
        match archive.clock_measurements(*name).await {
            Ok(spans) => found.spans.extend(spans.into_iter().filter_map(|span| span.at_shown_time(moment))),
            Err(error) => {
                // Of one that is damaged another may say it too. Who does not answer is not asked for each: that takes
                // minutes every time.
                let damaged = error.is_integrity();
                found.unread = Some(error);
                if !damaged {
                    break;
                }
            }
        }
    }
    found
}

/// By whose clock the state of Redis has its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum RedisTimeSource {
    /// That of the receiver, on this machine.
    ReceiverOnMachine(Machine),
    /// That of the receiver. Its machine is said with the server's clock, and that was not measured.
    ReceiverClockUnmeasured,
    /// That of the receiver, which measured the server's clock and did not say on which machine.
    ReceiverMachineUnknown,
    /// That of the server, which wrote it into a file.
    Server,
}

impl RedisTimeSource {
    fn new(last: Option<&StreamStretch>, origin: &SnapshotOrigin) -> RedisTimeSource {
        match (last.map(|stretch| stretch.clock), origin) {
            (Some(clock), _) => RedisTimeSource::from_measurement(clock),
            (None, SnapshotOrigin::Replication { .. }) => RedisTimeSource::ReceiverClockUnmeasured,
            (None, SnapshotOrigin::File { .. }) => RedisTimeSource::Server,
        }
    }

    fn from_measurement(clock: Option<ClockMeasurement>) -> RedisTimeSource {
        match clock {
            Some(clock) => {
                clock.machine.map_or(RedisTimeSource::ReceiverMachineUnknown, RedisTimeSource::ReceiverOnMachine)
            }
            None => RedisTimeSource::ReceiverClockUnmeasured,
        }
    }
}

/// Whether PostgreSQL's clock was measured against the one by which Redis has its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClockComparison {
    /// It was.
    Same,
    /// Nothing says otherwise.
    AssumedSame,
    /// It was not.
    Other,
    /// That is not known.
    Unknown,
    /// Redis has its time from nobody's receiver.
    Server,
}

impl ClockComparison {
    fn is_same_clock(self) -> bool {
        matches!(self, ClockComparison::Same | ClockComparison::AssumedSame)
    }
}

/// All that speaks of PostgreSQL's clock together; only what the machine that received Redis has measured, if there is
/// such.
fn compare_clocks(spans: &[ClockMeasurement], dated: RedisTimeSource) -> Option<(ClockMeasurement, ClockComparison)> {
    let together = |spans: &mut dyn Iterator<Item = ClockMeasurement>| spans.reduce(ClockMeasurement::merged_with);
    let all = together(&mut spans.iter().copied())?;
    let same = match dated {
        RedisTimeSource::ReceiverOnMachine(machine) => {
            together(&mut spans.iter().copied().filter(|span| span.machine == Some(machine)))
        }
        RedisTimeSource::ReceiverClockUnmeasured
        | RedisTimeSource::ReceiverMachineUnknown
        | RedisTimeSource::Server => None,
    };
    let against = match dated {
        RedisTimeSource::ReceiverOnMachine(_) if same.is_some() => ClockComparison::Same,
        RedisTimeSource::ReceiverOnMachine(_) if spans.iter().all(|span| span.machine.is_some()) => {
            ClockComparison::Other
        }
        RedisTimeSource::ReceiverOnMachine(_) | RedisTimeSource::ReceiverMachineUnknown => ClockComparison::Unknown,
        RedisTimeSource::ReceiverClockUnmeasured => ClockComparison::AssumedSame,
        RedisTimeSource::Server => ClockComparison::Server,
    };
    Some((same.unwrap_or(all), against))
}

/// How far Redis may be behind PostgreSQL and ahead of it, if it lacks so much by the receiver's clock and PostgreSQL's
/// is so far ahead of that.
fn skew_bounds(lack: Duration, ahead: ClockOffset) -> (Duration, Duration) {
    let micros = |micros: i64| Duration::from_micros(micros.unsigned_abs());
    let behind =
        if ahead.low < 0 { lack.saturating_add(micros(ahead.low)) } else { lack.saturating_sub(micros(ahead.low)) };
    (behind, micros(ahead.high.max(0)))
}

impl ClockSkew {
    /// Of the cluster `main` and the instance `cache`.
    #[must_use]
    pub fn new(
        reach: &RestoreRoute,
        moment: Timestamp,
        found: &PostgresClockReading,
        (main, cache): (&str, &str),
    ) -> ClockSkew {
        let noted = Duration::try_from(moment.duration_since(reach.at)).unwrap_or_default();
        let late = MARK_PRECISION.max(reach.late);
        let mut lack = noted.saturating_add(late);
        let last = reach.stretches.last();
        let (clock, against) = compare_clocks(&found.spans, RedisTimeSource::new(last, &reach.snapshot.origin)).unzip();
        let mut rests_on = vec![
            "PostgreSQL's commits carry the time of its server's clock; it stops before the first that is later than \
             the moment"
                .to_owned(),
            format!(
                "the commands of {cache} carry the time at which walkeep's receiver had them, by its machine's clock: \
                 it had the last that is kept {:.3} s before the moment, and what comes lay unread for at most {}",
                noted.as_secs_f64(),
                format_precise(late)
            ),
            "that clock was not set back since the moment; nothing here would show it".to_owned(),
            postgres_clock_assumption(main, clock),
        ];
        if let Some(error) = &found.unread {
            let what = if clock.is_some() { "part of what" } else { "what" };
            rests_on.push(format!("{what} was measured of the clock of {main}'s server could not be read: {error}"));
        }
        rests_on.extend(against.and_then(|against| receiver_clock_assumption(against, main, cache)));
        let redis_clock = last.and_then(|stretch| stretch.clock).filter(|clock| clock.is_near(reach.at));
        rests_on.push(redis_clock_assumption(cache, redis_clock));
        rests_on.push("not measured, so to be added: how long a command was under way to the receiver".to_owned());
        if last.is_none() {
            let (more, why) = snapshot_time_assumption(&reach.snapshot.origin, cache);
            lack = lack.saturating_add(more);
            rests_on.push(why);
        }
        let (behind, ahead) = clock.map_or((lack, Duration::ZERO), |clock| skew_bounds(lack, clock.offset));
        ClockSkew {
            at_most_seconds: behind.max(ahead).as_secs_f64(),
            redis_behind_at_most_seconds: behind.as_secs_f64(),
            redis_ahead_at_most_seconds: ahead.as_secs_f64(),
            clocks_known: against.is_some_and(ClockComparison::is_same_clock),
            postgres_clock: clock,
            received_on_one_machine: match against {
                Some(ClockComparison::Same) => Some(true),
                Some(ClockComparison::Other) => Some(false),
                _ => None,
            },
            redis_clock,
            redis_complete_up_to: reach.at,
            redis_next_came_at: reach.before,
            rests_on,
        }
    }

    /// The bound in a sentence.
    #[must_use]
    pub fn describe(&self, main: &str, cache: &str) -> String {
        let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let (behind, ahead) = (span(self.redis_behind_at_most_seconds), span(self.redis_ahead_at_most_seconds));
        let (bound, lacks, has) = (format_precise(behind.max(ahead)), format_precise(behind), format_precise(ahead));
        let what = match (behind.is_zero(), ahead.is_zero()) {
            (true, _) => format!("{cache} may have what it did in the {has} after the state of {main}"),
            (false, true) => format!("{cache} may lack what it did in the last {lacks} before the state of {main}"),
            (false, false) => format!(
                "{cache} may lack what it did in the last {lacks} before the state of {main}, or have what it did in \
                 the {has} after it"
            ),
        };
        match (self.clocks_known, self.postgres_clock) {
            (true, _) => format!("at most {bound}: {what}"),
            (false, None) => format!(
                "NOT KNOWN in full: {bound}, and by how much the clocks of {main}'s server and of the receiver \
                 differed; by the receiver's clock {cache} may lack what it did in the last {lacks} before the moment"
            ),
            (false, Some(_)) => format!(
                "NOT KNOWN in full: {bound}, and by how much the clocks differed by which {main} and {cache} were \
                 received; but for that {what}"
            ),
        }
    }

    /// What the bound rests on.
    #[must_use]
    pub fn assumptions(&self) -> &[String] {
        &self.rests_on
    }
}

fn postgres_clock_assumption(main: &str, clock: Option<ClockMeasurement>) -> String {
    match clock {
        Some(ClockMeasurement { offset, .. }) => {
            let advice = if offset.certain_skew() > OFFSET_WARNING {
                ". So the moment is the one that its clock showed: see to NTP on both machines"
            } else {
                ""
            };
            format!(
                "the clock of {main}'s server was {offset} the receiver's, asked every 10 s while this WAL came; the \
                 bound has that in it{advice}"
            )
        }
        None => format!(
            "not known, so to be added: by how much the clock of {main}'s server and the receiver's differed at the \
             moment. It is asked where walkeep receive streams the WAL from the primary; this WAL came otherwise, \
             from a standby, with an earlier version, or long after it was written"
        ),
    }
}

/// What is to be said of the machines that received both; nothing where it was one.
fn receiver_clock_assumption(against: ClockComparison, main: &str, cache: &str) -> Option<String> {
    let differed = "not known, so to be added: by how much the clocks differed";
    match against {
        ClockComparison::Same => None,
        ClockComparison::AssumedSame => Some(format!(
            "{cache} is taken to have been received on the machine that received {main}, as nothing says on which one \
             it was"
        )),
        ClockComparison::Other => Some(format!("{differed} of the two machines that received {main} and {cache}")),
        ClockComparison::Unknown => Some(format!(
            "{differed} of the machines that received {main} and {cache}, if they were two: it is not said of both \
             which they were"
        )),
        ClockComparison::Server => Some(format!(
            "{differed} of {cache}'s server, which has given its snapshot the time, and of the machine that received \
             {main}"
        )),
    }
}

fn redis_clock_assumption(cache: &str, clock: Option<ClockMeasurement>) -> String {
    match clock {
        Some(ClockMeasurement { offset, .. }) => {
            let wrong = if offset.certain_skew() > OFFSET_WARNING {
                ". One of the two was wrong: see to NTP on both machines"
            } else {
                ""
            };
            format!(
                "the clock of {cache}'s server was {offset} the receiver's; nothing here goes by it but when keys \
                 expire{wrong}"
            )
        }
        None => format!(
            "how far the clock of {cache}'s server was off is not known; nothing here goes by it but when keys expire"
        ),
    }
}

/// How much older the state of a snapshot may be than the time that it has, and why.
fn snapshot_time_assumption(origin: &SnapshotOrigin, cache: &str) -> (Duration, String) {
    match origin {
        SnapshotOrigin::Replication { .. } => (
            RUNNING_SNAPSHOT_PRECISION,
            format!(
                "a snapshot of {cache} is the target itself: if the server was writing one already, it is up to {} \
                 older than said",
                format_precise(RUNNING_SNAPSHOT_PRECISION)
            ),
        ),
        SnapshotOrigin::File { path } => (
            FILE_TIME_PRECISION,
            format!(
                "the snapshot was imported from {path}, which says its time only to the second, and by the clock of \
                 the server that wrote it"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::{
        ClockComparison, RedisTimeSource, compare_clocks, read_measurements, redis_clock_assumption, skew_bounds,
        snapshot_time_assumption,
    };
    use crate::base::clock::{ClockMeasurement, ClockOffset, Machine};
    use crate::postgres::archive::clock_notes::encode_clock_note;
    use crate::postgres::archive::ingest::{NotedSegment, prepare_segment_with_note};
    use crate::postgres::archive::tests::{create, segment};
    use crate::redis::archive::SnapshotOrigin;
    use crate::vault::seal::CompressionLevel;

    fn span(high: i64, machine: Option<Machine>) -> ClockMeasurement {
        ClockMeasurement::single(Timestamp::from_second(1000).unwrap(), ClockOffset { low: 0, high })
            .against_machine(machine)
    }

    #[test]
    fn another_machine_s_clock_is_not_the_one_that_was_measured() {
        let [here, there] = ["here", "there"].map(Machine::from_boot_id);
        let by = |machine: Option<Machine>| RedisTimeSource::ReceiverOnMachine(machine.unwrap());
        for (spans, dated, expected) in [
            (vec![], by(here), None),
            (vec![span(1, here), span(2, here)], by(here), Some((2, ClockComparison::Same))),
            (vec![span(1, here)], by(there), Some((1, ClockComparison::Other))),
            // The receiver of PostgreSQL was moved to the other machine: what that one has measured counts, and nothing
            // else.
            (vec![span(9, here), span(2, there)], by(there), Some((2, ClockComparison::Same))),
            (vec![span(9, here), span(2, None)], by(there), Some((9, ClockComparison::Unknown))),
            (vec![span(9, None)], by(there), Some((9, ClockComparison::Unknown))),
            (vec![span(9, here)], RedisTimeSource::ReceiverMachineUnknown, Some((9, ClockComparison::Unknown))),
            (vec![span(9, here)], RedisTimeSource::ReceiverClockUnmeasured, Some((9, ClockComparison::AssumedSame))),
            (vec![span(9, None)], RedisTimeSource::ReceiverClockUnmeasured, Some((9, ClockComparison::AssumedSame))),
            (vec![span(9, here)], RedisTimeSource::Server, Some((9, ClockComparison::Server))),
        ] {
            let found = compare_clocks(&spans, dated).map(|(clock, against)| (clock.offset.high, against));
            assert_eq!(found, expected, "{spans:?} {dated:?}");
        }
        assert_eq!(
            [None, Some(span(1, None)), Some(span(1, here))].map(RedisTimeSource::from_measurement),
            [RedisTimeSource::ReceiverClockUnmeasured, RedisTimeSource::ReceiverMachineUnknown, by(here)]
        );
    }

    #[test]
    fn a_snapshot_may_be_older_than_said() {
        let seconds = |origin| snapshot_time_assumption(&origin, "cache").0.as_secs();
        assert_eq!(seconds(SnapshotOrigin::Replication { server: "s".into(), role: "master".into() }), 2);
        assert_eq!(seconds(SnapshotOrigin::File { path: "p".into() }), 1);
    }

    #[test]
    fn a_clock_of_redis_that_is_far_off_is_warned_of() {
        let seconds = |seconds: i64| ClockOffset { low: seconds * 1_000_000 - 5, high: seconds * 1_000_000 };
        for (off, warned) in [(0, false), (1, false), (3, true), (-3, true)] {
            let clock = ClockMeasurement::single(Timestamp::UNIX_EPOCH, seconds(off));
            assert_eq!(
                redis_clock_assumption("cache", Some(clock)).contains("One of the two was wrong"),
                warned,
                "{off}"
            );
        }
    }

    /// A restore must not fail for what only says how exact it is.
    #[tokio::test]
    async fn a_damaged_note_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], None).await;
        let mut names = Vec::new();
        for number in [5, 6] {
            let (name, bytes) = segment(7, number, b"a", 9);
            let note = encode_clock_note(&[span(i64::try_from(number).unwrap(), None)]);
            let noted = NotedSegment { name, bytes: &bytes, note: &note };
            let prepared = prepare_segment_with_note(&archive, noted, CompressionLevel::Fixed(1), 1).unwrap();
            archive.commit_segment(prepared).await.unwrap();
            names.push(name);
        }
        let moment = Timestamp::from_second(1000).unwrap();
        let highs = |spans: &[ClockMeasurement]| spans.iter().map(|span| span.offset.high).collect::<Vec<_>>();
        let found = read_measurements(&archive, &names, moment).await;
        assert_eq!((highs(&found.spans), found.unread.is_some()), (vec![6, 7], false));
        let late = read_measurements(&archive, &names, moment + Duration::from_secs(100)).await;
        assert!(late.spans.is_empty() && late.unread.is_none());
        let key = archive.layout().segment(names[0]);
        let path = dir.path().join("repository").join(key.as_str());
        let mut stored = std::fs::read(&path).unwrap();
        let footer = stored.len() - 64;
        stored[footer..].fill(0);
        std::fs::write(&path, stored).unwrap();
        let found = read_measurements(&archive, &names, moment).await;
        assert_eq!(highs(&found.spans), [7]);
        assert!(found.unread.is_some_and(|error| error.is_integrity()));
    }

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
            let offset = ClockOffset { low: low * 1000, high: high * 1000 };
            assert_eq!(skew_bounds(millis(30), offset), (millis(expected.0), millis(expected.1)), "{low} {high}");
        }
    }

    proptest! {
        /// True times of both states, for any offset in the interval.
        #[test]
        fn no_offset_in_the_interval_takes_them_further_apart(
            lack in 0_u32..100_000, used in 0_u32..100_000,
            low in -90_000_i64..90_000, width in 0_i64..90_000, at in 0_i64..90_000,
        ) {
            let (lack, low, width) = (i64::from(lack), low * 1000, width * 1000);
            let offset = low + (at * 1000).min(width);
            let clock = ClockOffset { low, high: low + width };
            let (behind, ahead) = skew_bounds(Duration::from_micros(lack.unsigned_abs()), clock);
            // By the receiver's clock, of the moment zero: where PostgreSQL comes to, and where Redis does.
            let (postgres, redis) = (-offset, -i64::from(used).min(lack));
            prop_assert!(postgres - redis <= i64::try_from(behind.as_micros()).unwrap());
            prop_assert!(redis - postgres <= i64::try_from(ahead.as_micros()).unwrap());
        }
    }
}

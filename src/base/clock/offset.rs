//! How far another machine's clock is from ours, as far as asking it tells.
//!
//! A question leaves, the answer says what the other clock showed, and comes. It showed that at some moment between the
//! two, so its offset lies in an interval as wide as the round trip ([`ClockOffset::from_answer`]). Nothing is assumed
//! of how the trip divides into way there and way back, as NTP must to name one number: the truth is in the interval
//! whatever the delays are. The trip is measured by the clock that is never set, so it does not matter if ours is set
//! while the question is under way.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// How often a clock is asked that is followed: often enough to notice within seconds that it was set.
pub const CLOCK_PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// An answer that took longer says more about the way than about the clock, and is not used.
pub const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);

/// A clock that is certainly further away is worth a warning: machines on NTP are within milliseconds.
pub const OFFSET_WARNING: Duration = Duration::from_secs(1);

/// For so long before and after a measurement the clock is taken not to have been set.
const MEASUREMENT_VALIDITY: Duration = Duration::from_secs(60);

/// By so many microseconds in a second two clocks may part that are not set: either may be slewed by 500, which is the
/// most that the kernel does (adjtimex(2)). A daemon that is told to may do more (chrony, for a clock that it finds far
/// off); then its offset says so at the next question.
const MAX_DRIFT_MICROS_PER_SECOND: u128 = 1_000;

/// The most spans that are kept of one segment. There are more only if its receiver is interrupted again and again.
const MAX_SPANS: usize = 16;

/// How far another clock is ahead of ours: between `low` and `high` microseconds. Negative where it is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClockOffset {
    /// It is at least so far ahead.
    pub low: i64,
    /// It is at most so far ahead.
    pub high: i64,
}

impl ClockOffset {
    /// What an answer tells: the other clock showed `shown`, cut to microseconds; the answer came at `came`, `trip`
    /// after the question had left.
    #[must_use]
    pub fn from_answer(shown: Timestamp, came: Timestamp, trip: Duration) -> ClockOffset {
        let low = shown.as_nanosecond().saturating_sub(came.as_nanosecond());
        let cut_off = i128::from(1_000_u16);
        let high = low.saturating_add(cut_off).saturating_add(i128::try_from(trip.as_nanos()).unwrap_or(i128::MAX));
        // Both rounded away from the truth.
        let micros = |nanos: i128| i64::try_from(nanos.div_euclid(1_000)).unwrap_or(i64::MAX);
        ClockOffset { low: micros(low), high: micros(high).saturating_add(1) }
    }

    /// Holds whenever one of the two does.
    #[must_use]
    pub fn union(self, other: ClockOffset) -> ClockOffset {
        ClockOffset { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// What is left of it `later`, or so long before.
    #[must_use]
    fn widened_by_drift(self, later: Duration) -> ClockOffset {
        let parted = later.as_micros().saturating_mul(MAX_DRIFT_MICROS_PER_SECOND).div_ceil(1_000_000);
        let parted = i64::try_from(parted).unwrap_or(i64::MAX);
        ClockOffset { low: self.low.saturating_sub(parted), high: self.high.saturating_add(parted) }
    }

    /// How much is not known of it.
    #[must_use]
    pub fn width(self) -> Duration {
        Duration::from_micros(u64::try_from(self.high.saturating_sub(self.low)).unwrap_or(0))
    }

    /// How far the clock is away at least: zero if it may be right.
    #[must_use]
    pub fn certain_skew(self) -> Duration {
        Duration::from_micros(u64::try_from(self.low.max(self.high.saturating_neg())).unwrap_or(0))
    }
}

/// `5.000 s ahead of`, `at most 0.4 ms away from`: to be followed by whose clock it is compared with.
impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |micros: i64| match micros.unsigned_abs() {
            short @ 0..1_000_000 => format!("{}.{:03} ms", short / 1_000, short % 1_000),
            long => format!("{}.{:03} s", long / 1_000_000, long % 1_000_000 / 1_000),
        };
        let (nearest, furthest) = if self.low > 0 { (self.low, self.high) } else { (self.high, self.low) };
        match (self.low > 0, self.high < 0) {
            (true, _) => write!(f, "{} to {} ahead of", span(nearest), span(furthest)),
            (_, true) => write!(f, "{} to {} behind", span(nearest), span(furthest)),
            _ => write!(f, "at most {} from", span(self.high.max(self.low.saturating_neg()))),
        }
    }
}

/// What was measured of another clock over some time, without a pause in which it might have been set unnoticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClockMeasurement {
    /// The first measurement, by our clock.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
    /// What all of them say together.
    #[serde(flatten)]
    pub offset: ClockOffset,
    /// Whose clock ours is. Not said by the first versions, nor where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

impl ClockMeasurement {
    /// One measurement.
    #[must_use]
    pub const fn single(at: Timestamp, offset: ClockOffset) -> ClockMeasurement {
        ClockMeasurement { from: at, to: at, offset, machine: None }
    }

    /// The same, measured against the clock of this machine.
    #[must_use]
    pub const fn against_machine(self, machine: Option<Machine>) -> ClockMeasurement {
        ClockMeasurement { machine, ..self }
    }

    /// Both together, if the later one is near enough to the end of this one, and measured against the same clock.
    #[must_use]
    pub fn extended_by(self, later: ClockMeasurement) -> Option<ClockMeasurement> {
        let near = later.from >= self.from && later.from <= time_after(self.to, MEASUREMENT_VALIDITY);
        (near && later.machine == self.machine).then(|| self.merged_with(later))
    }

    /// Either of two, where it does not matter which. Of two machines nobody knows which it is then.
    #[must_use]
    pub fn merged_with(self, other: ClockMeasurement) -> ClockMeasurement {
        ClockMeasurement {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
            offset: self.offset.union(other.offset),
            machine: self.machine.filter(|_| self.machine == other.machine),
        }
    }

    /// Whether a moment by our clock is within it, or nearly so.
    #[must_use]
    pub fn is_near(&self, moment: Timestamp) -> bool {
        time_after(moment, MEASUREMENT_VALIDITY) >= self.from && moment <= time_after(self.to, MEASUREMENT_VALIDITY)
    }

    /// What it says of the moment at which the other clock showed `shown`; nothing if that is too far from it. The
    /// further it is, the less.
    #[must_use]
    pub fn at_shown_time(self, shown: Timestamp) -> Option<ClockMeasurement> {
        let (ours_from, ours_to) = (local_time_at(shown, self.offset.high), local_time_at(shown, self.offset.low));
        let away = elapsed_between(ours_from, self.from).max(elapsed_between(self.to, ours_to));
        (away <= MEASUREMENT_VALIDITY).then(|| ClockMeasurement { offset: self.offset.widened_by_drift(away), ..self })
    }
}

/// How long after `start` it is; zero if it is before.
fn elapsed_between(start: Timestamp, time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(start)).unwrap_or_default()
}

fn time_after(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// What our clock showed when the other one, `ahead` microseconds ahead, showed `shown`.
fn local_time_at(shown: Timestamp, ahead: i64) -> Timestamp {
    let micros = shown.as_microsecond().saturating_sub(ahead);
    let end = if ahead > 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(micros).unwrap_or(end)
}

/// Adds what was measured next to what was before: to the last span, or as a new one after a pause.
pub fn append_measurement(spans: &mut Vec<ClockMeasurement>, measured: ClockMeasurement) {
    match spans.last_mut().and_then(|last| Some((last.extended_by(measured)?, last))) {
        Some((joined, last)) => *last = joined,
        None => {
            if spans.len() == MAX_SPANS {
                spans.remove(0);
            }
            spans.push(measured);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::{SignedDuration, Timestamp};
    use proptest::prelude::*;

    use super::{ClockMeasurement, ClockOffset, MAX_SPANS, Machine, append_measurement};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn moved(time: Timestamp, nanos: i64) -> Timestamp {
        time + SignedDuration::from_nanos(nanos)
    }

    proptest! {
        /// Whatever the delays of question and answer, and however far the clock is off.
        #[test]
        fn the_truth_is_in_the_interval(
            offset in -100_000_000_000_i64..100_000_000_000,
            asked in 0_i64..2_000_000_000,
            there in 0_i64..3_000_000_000,
            back in 0_i64..3_000_000_000,
        ) {
            let asked = moved(at(0), asked);
            let shown = moved(asked, there + offset);
            let cut = Timestamp::from_microsecond(shown.as_nanosecond().div_euclid(1000).try_into().unwrap()).unwrap();
            let trip = Duration::from_nanos((there + back).try_into().unwrap());
            let found = ClockOffset::from_answer(cut, moved(asked, there + back), trip);
            prop_assert!(i128::from(found.low) * 1000 <= i128::from(offset), "{found:?}");
            prop_assert!(i128::from(offset) <= i128::from(found.high) * 1000, "{found:?}");
            prop_assert!(found.width() <= trip + Duration::from_micros(4), "{found:?} after {trip:?}");
            prop_assert!(found.certain_skew().as_nanos() <= u128::from(offset.unsigned_abs()), "{found:?}");
        }

        /// Every measurement is within what is kept of it, and every span within reach of all its measurements.
        #[test]
        fn nothing_measured_is_lost_in_a_span(
            steps in proptest::collection::vec((0_i64..90, -50_i64..50, 0_i64..20), 1..12),
        ) {
            let (mut spans, mut all, mut now) = (Vec::new(), Vec::new(), 0);
            for (pause, low, width) in steps {
                now += pause;
                let measured = ClockMeasurement::single(at(now), ClockOffset { low, high: low + width });
                append_measurement(&mut spans, measured);
                all.push(measured);
            }
            for one in all {
                let within = |span: &&ClockMeasurement| span.from <= one.from && one.to <= span.to;
                let span = spans.iter().find(within).expect("a span");
                prop_assert!(span.offset.union(one.offset) == span.offset, "{one:?} in {span:?}");
            }
            prop_assert!(spans.windows(2).all(|pair| pair[1].from > pair[0].to + Duration::from_secs(60)), "{spans:?}");
        }
    }

    #[test]
    fn a_pause_begins_a_new_span_and_the_oldest_go() {
        let mut spans = Vec::new();
        for nth in 0..40 {
            append_measurement(&mut spans, ClockMeasurement::single(at(100 * nth), ClockOffset { low: 0, high: 1 }));
        }
        assert_eq!((spans.len(), spans[0].from), (MAX_SPANS, at(100 * (40 - MAX_SPANS as i64))));
    }

    #[test]
    fn a_span_speaks_of_its_time_by_the_other_clock() {
        // The other clock is an hour behind.
        let hour = -3600;
        let offset = ClockOffset { low: hour * 1_000_000, high: hour * 1_000_000 + 50 };
        let span = ClockMeasurement { from: at(0), to: at(1000), offset, machine: None };
        for (shown, speaks) in [
            (hour, true),
            (hour + 1000, true),
            (hour - 59, true),
            (hour - 61, false),
            (hour + 1061, false),
            (500, false),
        ] {
            assert_eq!(span.at_shown_time(at(shown)).is_some(), speaks, "{shown}");
        }
    }

    #[test]
    fn the_further_from_a_measurement_the_less_it_says() {
        let span =
            ClockMeasurement { from: at(0), to: at(1000), offset: ClockOffset { low: -5, high: 7 }, machine: None };
        for (shown, parted) in [(0, 1), (500, 0), (1000, 1), (1010, 10_001), (1059, 59_001), (-30, 30_001)] {
            let offset = span.at_shown_time(at(shown)).unwrap().offset;
            assert_eq!((offset.low, offset.high), (-5 - parted, 7 + parted), "{shown}");
        }
    }

    #[test]
    fn what_two_machines_measured_is_not_one_measurement() {
        let offset = |high| ClockOffset { low: 0, high };
        let [one, two] = ["one", "two"].map(Machine::from_boot_id);
        let mut spans = Vec::new();
        for (second, machine) in [(0, one), (10, one), (20, two), (30, two), (40, None), (50, one)] {
            append_measurement(
                &mut spans,
                ClockMeasurement::single(at(second), offset(second)).against_machine(machine),
            );
        }
        let found: Vec<_> = spans.iter().map(|span| (span.to, span.offset.high, span.machine)).collect();
        assert_eq!(found, [(at(10), 10, one), (at(30), 30, two), (at(40), 40, None), (at(50), 50, one)]);
        assert_eq!((spans[0].merged_with(spans[1]).machine, spans[0].merged_with(spans[3]).machine), (None, one));
        for span in spans {
            let text = serde_json::to_string(&span).unwrap();
            assert_eq!(serde_json::from_str::<ClockMeasurement>(&text).unwrap(), span, "{text}");
        }
        let first = r#"{"from":"2026-11-23T00:00:00Z","to":"2026-11-23T00:00:10Z","low":-5,"high":7}"#;
        assert_eq!(serde_json::from_str::<ClockMeasurement>(first).unwrap().machine, None);
    }

    #[test]
    fn an_offset_reads_well() {
        for (low, high, text, certain) in [
            (-120, 300, "at most 0.300 ms from", 0),
            (-400, 300, "at most 0.400 ms from", 0),
            (4_999_800, 5_000_100, "4.999 s to 5.000 s ahead of", 4_999_800),
            (-2_500, -1_500, "1.500 ms to 2.500 ms behind", 1_500),
        ] {
            let offset = ClockOffset { low, high };
            assert_eq!((offset.to_string().as_str(), offset.certain_skew()), (text, Duration::from_micros(certain)));
        }
    }
}

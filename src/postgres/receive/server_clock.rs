//! How far the server's clock is from ours, asked every few seconds, and what of it belongs to which segment.
//!
//! The server is asked by a status that wants a reply; it answers with a sign of life that carries its time and wants
//! none (`ProcessStandbyReplyMessage` and `WalSndKeepalive` in `walsender.c`). A physical stream has no others that
//! want none, and one question is under way at a time, so question and answer are never mistaken.
//!
//! A standby is asked as well, to see that it is alive, but what its clock shows is not kept: commits carry the time of
//! the primary's.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::clock::{
    CLOCK_PROBE_INTERVAL, ClockMeasurement, ClockOffset, MAX_ROUND_TRIP, Machine, OFFSET_WARNING, append_measurement,
};
use crate::postgres::archive::clock_notes::encode_clock_note;
use crate::postgres::format::segment::SegmentName;
use crate::postgres::format::time::PgTime;

/// Notes of segments that are not in the repository yet. More segments than this are never between: it is the spool's
/// limit in segments of a megabyte.
const MAX_KEPT_NOTES: usize = 16 << 10;

/// What is known of the server's clock.
#[derive(Debug, Default)]
pub(super) struct ServerClockNotes {
    /// Since the segment under way began.
    spans: Vec<ClockMeasurement>,
    last: Option<ClockMeasurement>,
    /// Notes of whole segments on their way into the repository.
    whole: BTreeMap<SegmentName, Vec<u8>>,
    far: bool,
    /// Whose clock ours is.
    machine: Option<Machine>,
    /// Whether the server is one.
    standby: bool,
}

impl ServerClockNotes {
    /// What earlier runs have measured for the segment under way.
    pub(super) fn resume(&mut self, spans: Vec<ClockMeasurement>) {
        self.spans = spans;
    }

    /// A stream begins that comes to this machine, perhaps from a standby.
    pub(super) fn begin_stream(&mut self, machine: Option<Machine>, standby: bool) {
        (self.machine, self.standby) = (machine, standby);
    }

    /// Takes in an answer that was asked for, and came `trip` after the question.
    pub(super) fn add_answer(&mut self, sent: PgTime, came: Timestamp, trip: Duration) {
        let tells = trip <= MAX_ROUND_TRIP && !self.standby;
        let Some(sent) = sent.to_timestamp().filter(|_| tells) else { return };
        let offset = ClockOffset::from_answer(sent, came, trip);
        let measured = ClockMeasurement::single(came, offset).against_machine(self.machine);
        tracing::trace!(%offset, "asked the server for its clock");
        append_measurement(&mut self.spans, measured);
        self.last = Some(measured);
        let far = offset.certain_skew() > OFFSET_WARNING;
        if far && !self.far {
            tracing::warn!(
                "the server's clock is {offset} this machine's; times of commits are by the server's clock, so a \
                    target time is too: see to NTP on both"
            );
        } else if self.far && !far {
            tracing::info!("the server's clock is {offset} this machine's again");
        }
        self.far = far;
    }

    /// What there is to say of the segment under way.
    pub(super) fn current_note(&self) -> Vec<u8> {
        encode_clock_note(&self.spans)
    }

    /// A segment is whole: what was measured since it began is its own, and the last of it also that of the next one.
    pub(super) fn close_segment(&mut self, name: SegmentName) {
        if self.whole.len() < MAX_KEPT_NOTES {
            self.whole.insert(name, self.current_note());
        }
        self.spans = self.last.into_iter().collect();
    }

    /// What there is to say of a whole segment.
    pub(super) fn segment_note(&self, name: SegmentName) -> Vec<u8> {
        self.whole.get(&name).cloned().unwrap_or_default()
    }

    /// A segment is in the repository.
    pub(super) fn forget_segment(&mut self, name: SegmentName) {
        self.whole.remove(&name);
    }
}

/// A question for the server's clock.
#[derive(Debug)]
pub(super) struct ClockProbe {
    /// When the one under way was sent.
    sent: Option<Duration>,
    due: Duration,
}

impl ClockProbe {
    /// The first one is due.
    pub(super) const fn first_due_at(now: Duration) -> ClockProbe {
        ClockProbe { sent: None, due: now }
    }

    /// How long until another is due; `None` while one is under way.
    pub(super) fn until_due(&self, now: Duration) -> Option<Duration> {
        self.sent.is_none().then(|| self.due.saturating_sub(now))
    }

    /// Whether one is to be sent.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.until_due(now).is_some_and(|left| left.is_zero())
    }

    /// One is sent.
    pub(super) fn mark_sent(&mut self, now: Duration) {
        *self = ClockProbe { sent: Some(now), due: now.saturating_add(CLOCK_PROBE_INTERVAL) };
    }

    /// The answer has come; how long after the question. `None` if nothing was asked.
    pub(super) fn mark_answered(&mut self, now: Duration) -> Option<Duration> {
        self.sent.take().map(|sent| now.saturating_sub(sent))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ClockProbe, ServerClockNotes};
    use crate::base::clock::{CLOCK_PROBE_INTERVAL, Clock, MAX_ROUND_TRIP, Machine, ManualClock};
    use crate::postgres::archive::clock_notes::parse_clock_note;
    use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
    use crate::postgres::format::time::PgTime;
    use crate::postgres::format::timeline::TimelineId;

    #[test]
    fn one_question_at_a_time() {
        let second = Duration::from_secs(1);
        let mut question = ClockProbe::first_due_at(second);
        assert!(!question.is_due(Duration::ZERO) && question.is_due(second));
        assert_eq!(question.mark_answered(second), None, "an answer to no question");
        question.mark_sent(second);
        assert_eq!(
            (question.until_due(20 * CLOCK_PROBE_INTERVAL), question.mark_answered(3 * second)),
            (None, Some(2 * second))
        );
        assert_eq!(question.until_due(second), Some(CLOCK_PROBE_INTERVAL));
    }

    #[test]
    fn a_segment_has_what_was_measured_from_just_before_it_to_its_end() {
        let clock = ManualClock::standing_at("2026-11-23T00:00:00Z".parse().unwrap());
        let mut clocks = ServerClockNotes::default();
        let name = |number| {
            SegmentName::new(TimelineId::FIRST, SegmentNo::new(number), SegmentSize::new(1 << 20).unwrap()).unwrap()
        };
        let ask = |clocks: &mut ServerClockNotes, ahead: u64, trip: Duration| {
            clock.advance(CLOCK_PROBE_INTERVAL);
            let shown = clock.now() + Duration::from_secs(ahead);
            clocks.add_answer(PgTime::from_timestamp(shown), clock.now(), trip);
        };
        let at = |spans: &[crate::base::clock::ClockMeasurement]| -> Vec<(i64, i64, i64)> {
            let start = clock.now().as_second() / 86_400 * 86_400;
            spans.iter().map(|m| (m.from.as_second() - start, m.to.as_second() - start, m.offset.low)).collect()
        };
        ask(&mut clocks, 1, Duration::ZERO);
        ask(&mut clocks, 2, Duration::ZERO);
        ask(&mut clocks, 900, MAX_ROUND_TRIP * 2);
        clocks.close_segment(name(1));
        clocks.close_segment(name(2));
        ask(&mut clocks, 3, Duration::ZERO);
        for (number, expected) in [(1, (10, 20, 1_000_000)), (2, (20, 20, 2_000_000))] {
            assert_eq!(at(&parse_clock_note(&clocks.segment_note(name(number)))), [expected]);
            clocks.forget_segment(name(number));
            assert!(clocks.segment_note(name(number)).is_empty());
        }
        assert_eq!(at(&parse_clock_note(&clocks.current_note())), [(20, 40, 2_000_000)]);
    }

    #[test]
    fn the_clock_of_a_standby_is_not_kept() {
        let clock = ManualClock::standing_at("2026-11-23T00:00:00Z".parse().unwrap());
        let mut clocks = ServerClockNotes::default();
        let machine = Machine::from_boot_id("one");
        let answer = |clocks: &mut ServerClockNotes| {
            clock.advance(CLOCK_PROBE_INTERVAL);
            clocks.add_answer(PgTime::from_timestamp(clock.now()), clock.now(), Duration::ZERO);
        };
        clocks.begin_stream(machine, true);
        answer(&mut clocks);
        assert!(clocks.current_note().is_empty(), "of a standby");
        // It is promoted.
        clocks.begin_stream(machine, false);
        answer(&mut clocks);
        answer(&mut clocks);
        let spans = parse_clock_note(&clocks.current_note());
        assert_eq!(spans.iter().map(|span| span.machine).collect::<Vec<_>>(), [machine]);
    }
}

//! Timelines: their numbers, and the history files that say where each one forked off.

use super::lsn::Lsn;
use super::segment::{SegmentNo, SegmentSize};

pub use super::timeline_id::{ParseTimelineIdError, TimelineId};

/// The longest history file that is read, in bytes. One line is some 50 bytes and each stands for a promotion, so this
/// is room for 20 000 of them.
const MAX_HISTORY_BYTES: usize = 1 << 20;

/// One line of a history file: a timeline that the file's own timeline descends from, and where it was left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryEntry {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// The switch point: the first position that is no longer on `timeline`.
    pub end: Lsn,
    /// Why, in the server's words, such as `before 2026-11-22 18:14:23.608131+00`. For people only.
    pub reason: String,
}

/// A timeline's history file, `00000003.history`: its ancestors, oldest first. Timeline 1 has no file and no entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineHistory {
    /// The timeline whose history this is.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first.
    pub entries: Vec<HistoryEntry>,
}

/// A history file that PostgreSQL would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineHistoryError {
    /// A line that is no comment and not of the form `<timeline> <switch point> <reason>`.
    #[error("line {line} of the history of timeline {timeline} is not of the form <timeline> <position> <reason>")]
    Line {
        /// The file's timeline.
        timeline: TimelineId,
        /// Counted from one.
        line: usize,
    },
    /// A line's timeline is not above the one before it, or not below the file's own (`readTimeLineHistory`).
    #[error(
        "line {line} of the history of timeline {timeline} names timeline {found}; ancestors must rise and stay below \
            their child"
    )]
    Order {
        /// The file's timeline.
        timeline: TimelineId,
        /// Counted from one.
        line: usize,
        /// The timeline that stands there.
        found: TimelineId,
    },
    /// Longer than [`MAX_HISTORY_BYTES`].
    #[error("the history of timeline {timeline} has {len} bytes; more than {MAX_HISTORY_BYTES} is not a history file")]
    TooLong {
        /// The file's timeline.
        timeline: TimelineId,
        /// What was given.
        len: usize,
    },
}

impl TimelineHistory {
    /// The history of the timeline a cluster starts on, which has no file.
    #[must_use]
    pub const fn first() -> TimelineHistory {
        TimelineHistory { timeline: TimelineId::FIRST, entries: Vec::new() }
    }

    /// Reads the history file of `timeline`, as `readTimeLineHistory` in `timeline.c` does: blank lines and comments
    /// are skipped.
    ///
    /// # Errors
    /// [`TimelineHistoryError`] where PostgreSQL would refuse the file too.
    pub fn parse(timeline: TimelineId, text: &str) -> Result<TimelineHistory, TimelineHistoryError> {
        if text.len() > MAX_HISTORY_BYTES {
            return Err(TimelineHistoryError::TooLong { timeline, len: text.len() });
        }
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line_text = line.trim();
            if line_text.is_empty() || line_text.starts_with('#') {
                continue;
            }
            let line = number.saturating_add(1);
            let entry = parse_line(line_text).ok_or(TimelineHistoryError::Line { timeline, line })?;
            let risen = entries.last().is_none_or(|last| entry.timeline > last.timeline);
            if !risen || entry.timeline >= timeline {
                return Err(TimelineHistoryError::Order { timeline, line, found: entry.timeline });
            }
            entries.push(entry);
        }
        Ok(TimelineHistory { timeline, entries })
    }

    /// The timelines from the first to this one, each with the stretch of log that is read from it.
    #[must_use]
    pub fn path(&self) -> TimelinePath {
        let mut begin = Lsn::INVALID;
        let mut spans = Vec::with_capacity(self.entries.len().saturating_add(1));
        for entry in &self.entries {
            spans.push(TimelineSpan { timeline: entry.timeline, begin, end: Some(entry.end) });
            begin = entry.end;
        }
        spans.push(TimelineSpan { timeline: self.timeline, begin, end: None });
        TimelinePath { spans, departures: Vec::new() }
    }

    /// Where this timeline forked off; `None` for one without ancestors.
    #[must_use]
    fn fork_point(&self) -> Option<Lsn> {
        self.entries.last().map(|entry| entry.end)
    }

    /// The timelines that end in the middle of this one's first segment, and where: it holds a copy of each one's last
    /// bytes.
    pub fn copied_tails(&self, size: SegmentSize) -> impl Iterator<Item = (TimelineId, Lsn)> + '_ {
        let first = self.fork_point().map(|begin| size.segment_of(begin));
        let within = move |end: Lsn| size.offset_of(end) > 0 && Some(size.segment_of(end)) == first;
        self.entries.iter().filter(move |entry| within(entry.end)).map(|entry| (entry.timeline, entry.end))
    }
}

/// `<timeline>\t<position>\t<reason>`, any white space between (`sscanf("%u\t%X/%X")`).
fn parse_line(line: &str) -> Option<HistoryEntry> {
    let (timeline, rest) = line.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let (end, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some(HistoryEntry {
        timeline: timeline.parse().ok()?,
        end: end.parse().ok()?,
        reason: reason.trim_start().to_owned(),
    })
}

/// A stretch of log and the timeline it is read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TimelineSpan {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first position; zero for the oldest.
    pub begin: Lsn,
    /// The first position that is no longer on it; `None` for the path's own timeline, which is open.
    pub end: Option<Lsn>,
}

/// A timeline that left another one, and took a copy of its last bytes along: the first segment of the new timeline
/// begins as the old one's segment of the same number does, up to the switch point (`XLogInitNewTimeline` in `xlog.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimelineDeparture {
    /// The timeline with the copy.
    pub by: TimelineId,
    /// Where the old timeline was left.
    pub at: Lsn,
    /// Where the one with the copy begins: further on where timelines were left again at once.
    pub begin: Lsn,
}

/// The way from the first timeline to a target timeline, oldest first and without gaps. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelinePath {
    spans: Vec<TimelineSpan>,
    departures: Vec<TimelineDeparture>,
}

impl TimelinePath {
    /// The path of a cluster that was never promoted.
    #[must_use]
    pub fn first() -> TimelinePath {
        TimelineHistory::first().path()
    }

    /// The same path, knowing by which timelines its last one was left: where that one ends in the middle of a segment,
    /// they have the rest.
    #[must_use]
    pub fn with_departures(mut self, histories: &[TimelineHistory]) -> TimelinePath {
        let target = self.target();
        let departure = |history: &TimelineHistory| {
            let entry = history.entries.iter().find(|entry| entry.timeline == target)?;
            Some(TimelineDeparture { by: history.timeline, at: entry.end, begin: history.fork_point()? })
        };
        self.departures = histories.iter().filter_map(departure).collect();
        self
    }

    /// The path as it was when `timeline` was its last one. Unchanged if it does not go through `timeline`.
    #[must_use]
    pub fn truncated_to(&self, timeline: TimelineId) -> TimelinePath {
        let Some(last) = self.spans.iter().position(|span| span.timeline == timeline) else { return self.clone() };
        let mut spans: Vec<TimelineSpan> = self.spans.iter().take(last + 1).copied().collect();
        if let Some(span) = spans.last_mut() {
            span.end = None;
        }
        TimelinePath { spans, departures: Vec::new() }
    }

    /// The timelines that left the path's last one.
    #[must_use]
    pub fn departures(&self) -> &[TimelineDeparture] {
        &self.departures
    }

    /// The stretches, oldest first.
    #[must_use]
    pub fn spans(&self) -> &[TimelineSpan] {
        &self.spans
    }

    /// The timeline the path leads to.
    #[must_use]
    pub fn target(&self) -> TimelineId {
        self.spans.last().map_or(TimelineId::FIRST, |span| span.timeline)
    }

    /// The timeline that the byte at `lsn` is read from (`tliOfPointInHistory`).
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        // A timeline may have ended where it began; then the later one has the byte.
        self.spans.iter().rev().find(|span| span.begin <= lsn).map_or(TimelineId::FIRST, |span| span.timeline)
    }

    /// Whether the byte before `lsn`, written on `timeline`, is part of this path: a backup that ended at `lsn` on
    /// `timeline` can be replayed along it. PostgreSQL asks the same before it starts ("requested timeline is not a
    /// child of this server's history").
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.spans
            .iter()
            .any(|span| span.timeline == timeline && span.begin <= lsn && span.end.is_none_or(|end| lsn <= end))
    }

    /// Whether the path goes through `timeline` at all (`tliInHistory`).
    #[must_use]
    pub fn contains_timeline(&self, timeline: TimelineId) -> bool {
        self.spans.iter().any(|span| span.timeline == timeline)
    }

    /// Where the path leaves `timeline`; `None` if it never does, or never was on it (`tliSwitchPoint`).
    #[must_use]
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.spans.iter().find(|span| span.timeline == timeline)?.end
    }

    /// The timelines in whose name recovery looks for segment `number`, in its order: newest first, down to the oldest
    /// (`XLogFileReadAnyTLI`). A segment in which a timeline begins is looked for on that timeline first, whose first
    /// segment holds a copy of the parent's bytes up to the switch point.
    pub fn candidates(&self, number: SegmentNo, size: SegmentSize) -> impl Iterator<Item = TimelineId> + '_ {
        let begun = move |span: &&TimelineSpan| size.segment_of(span.begin) <= number;
        self.spans.iter().rev().filter(begun).map(|span| span.timeline)
    }
}

/// The body of a fuzz target: any bytes as a history file, and every question asked of it.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some(timeline) = TimelineId::new(u32::MAX) else { return };
    let Ok(history) = std::str::from_utf8(data).map(|text| TimelineHistory::parse(timeline, text)) else { return };
    let Ok(history) = history else { return };
    let path = history.path();
    assert_eq!(path.target(), timeline);
    assert_eq!(path.spans().len(), history.entries.len().saturating_add(1));
    for span in path.spans() {
        assert!(path.contains_timeline(path.timeline_at(span.begin)));
        assert_eq!(path.candidates(SegmentNo::new(u64::MAX), SegmentSize::DEFAULT).count(), path.spans().len());
    }
}

#[cfg(test)]
mod tests {
    use super::{TimelineHistory, TimelineHistoryError, TimelineId};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::{SegmentNo, SegmentSize};
    use proptest::prelude::*;

    const FIVE: &str = include_str!("../../../tests/fixtures/history/00000005.history");

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn reads_what_a_server_wrote_after_four_restores() {
        let history = TimelineHistory::parse(tli(5), FIVE).unwrap();
        let seen: Vec<_> =
            history.entries.iter().map(|e| (e.timeline.get(), e.end.to_string(), e.reason.as_str())).collect();
        let expected = [
            (1, "0/3018080", "at restore point \"before the release\""),
            (2, "0/5000160", "after transaction 727"),
            (3, "0/7000170", "before 2026-11-22 18:14:23.608131+00"),
            (4, "0/90001B8", "after LSN 0/9000178"),
        ];
        assert_eq!(seen, expected.map(|(number, end, reason)| (number, end.to_owned(), reason)));
    }

    #[test]
    fn a_position_belongs_to_the_timeline_that_wrote_it() {
        let path = TimelineHistory::parse(tli(5), FIVE).unwrap().path();
        for (position, timeline) in [
            ("0/0", 1),
            ("0/301807F", 1),
            ("0/3018080", 2),
            ("0/5000160", 3),
            ("0/90001B7", 4),
            ("0/90001B8", 5),
            ("1/0", 5),
        ] {
            assert_eq!(path.timeline_at(lsn(position)), tli(timeline), "{position}");
        }
        assert!(path.contains(tli(1), lsn("0/3018080")), "a backup may end exactly at the switch point");
        assert!(!path.contains(tli(1), lsn("0/3018081")));
        assert!(path.contains(tli(5), lsn("2/0")) && !path.contains(tli(6), lsn("2/0")));
        assert_eq!(path.switch_point(tli(3)), Some(lsn("0/7000170")));
        assert_eq!(path.switch_point(tli(5)), None);
    }

    #[test]
    fn a_segment_is_looked_for_on_the_newest_timeline_that_had_begun() {
        let path = TimelineHistory::parse(tli(5), FIVE).unwrap().path();
        let names = |number| {
            path.candidates(SegmentNo::new(number), SegmentSize::DEFAULT).map(TimelineId::get).collect::<Vec<_>>()
        };
        assert_eq!(names(2), [1]);
        assert_eq!(names(3), [2, 1], "timeline 2 begins within segment 3");
        assert_eq!(names(6), [3, 2, 1]);
        assert_eq!(names(9), [5, 4, 3, 2, 1]);
    }

    #[test]
    fn blank_lines_and_comments_are_skipped_and_disorder_refused() {
        let ok = |text| TimelineHistory::parse(tli(16), text).unwrap().entries.len();
        assert_eq!(ok(""), 0);
        assert_eq!(ok("# note\n\n 1\t0/10\n2 0/20 why\n"), 2);
        for (text, line) in [("1\n", 1), ("\n1 0\n", 2), ("x\t0/0\n", 1), ("0\t0/0\n", 1)] {
            assert_eq!(
                TimelineHistory::parse(tli(16), text),
                Err(TimelineHistoryError::Line { timeline: tli(16), line }),
                "{text:?}"
            );
        }
        for (text, line, found) in [("16\t0/0\n", 1, 16), ("2\t0/1\n2\t0/2\n", 2, 2), ("3\t0/1\n2\t0/2\n", 2, 2)] {
            let error = TimelineHistoryError::Order { timeline: tli(16), line, found: tli(found) };
            assert_eq!(TimelineHistory::parse(tli(16), text), Err(error), "{text:?}");
        }
        assert!(matches!(
            TimelineHistory::parse(tli(2), &"#\n".repeat(1 << 20)),
            Err(TimelineHistoryError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::fuzz(&data);
        }

        #[test]
        fn any_lines_are_read_or_refused(text in "([0-9#]{1,3}[\t ][0-9A-F]{1,3}/[0-9A-F]{1,9}(\t[a-z \
            ]{0,5})?\r?\n){0,6}") {
            super::fuzz(text.as_bytes());
        }
    }
}

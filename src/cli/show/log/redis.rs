//! A log entry of a Redis instance as one line.

use super::page::{LOG_COLUMNS, LogRow};
use crate::cli::show::output::{TerminalOutput, TextTone, format_count, format_number};
use crate::postgres::format::time::PgTime;
use crate::redis::log::{LogEntry, LogEntryKind};

impl LogRow for LogEntry {
    const WIDTH: usize = 100;

    /// Time, kind, where and how much, and the way back.
    fn cells(&self, out: &TerminalOutput) -> [String; LOG_COLUMNS] {
        let time = out.format_time_millis(PgTime::from_timestamp(self.time));
        let place = self.database.map(|db| format!("db {db}"));
        let place = place.or_else(|| (self.kind == LogEntryKind::FlushAll).then(|| "all".to_owned()));
        let much = [self.format_amount(), self.detail.clone()].into_iter().flatten().collect::<Vec<_>>().join(", ");
        let what = place.map_or_else(|| much.clone(), |place| format!("{place:<5}  {much}"));
        let back = match (&self.target, self.offset) {
            (Some(target), _) => target.clone(),
            (None, Some(offset)) => format!("at {offset}"),
            (None, None) => String::new(),
        };
        [time, self.kind.name().to_owned(), what.trim_end().to_owned(), String::new(), String::new(), back]
    }

    fn tones(&self) -> [Option<TextTone>; LOG_COLUMNS] {
        let quiet = Some(TextTone::Quiet);
        // Red where data were lost, yellow where they may have been.
        let kind = match self.kind {
            LogEntryKind::FlushAll | LogEntryKind::FlushDb | LogEntryKind::Delete | LogEntryKind::Gap => TextTone::Bad,
            LogEntryKind::Restart | LogEntryKind::Failover => TextTone::Warning,
            LogEntryKind::Snapshot => TextTone::Quiet,
        };
        [quiet, Some(kind), None, None, None, if self.target.is_some() { None } else { quiet }]
    }

    fn leads_back(&self) -> bool {
        self.target.is_some()
    }
}

impl LogEntry {
    /// How many keys, and how they went.
    fn format_amount(&self) -> Option<String> {
        let keys = format_count(self.keys?, "key");
        if self.kind != LogEntryKind::Delete {
            return Some(keys);
        }
        let seconds = self.end_time.map_or(0, |end| end.duration_since(self.time).as_secs());
        let how = match self.commands.unwrap_or_default() {
            1 => "at once".to_owned(),
            _ if seconds > 0 => format!("in {} s", format_number(seconds.unsigned_abs())),
            commands if self.keys == Some(commands) => "one by one".to_owned(),
            commands => format!("in {}", format_count(commands, "command")),
        };
        Some(format!("{keys} {how}"))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::{LogEntry, LogEntryKind};
    use crate::cli::show::log::page::{LOG_COLUMNS, LogRow, format_row};
    use crate::cli::show::output::TerminalOutput;

    fn flushed() -> LogEntry {
        LogEntry {
            time: Timestamp::from_millisecond(6_998).unwrap(),
            end_time: None,
            offset: Some(84213),
            replid: Some("1f3ac09b0123456789abcdef0123456789abcdef".to_owned()),
            kind: LogEntryKind::FlushDb,
            database: Some(3),
            keys: None,
            commands: Some(1),
            detail: Some("the snapshot 38 s before had 2 keys".to_owned()),
            target: Some("--target-offset 84213@1f3ac09b".to_owned()),
        }
    }

    fn shown(happening: &LogEntry, out: &TerminalOutput) -> String {
        let row = happening.cells(out);
        let widths: [usize; LOG_COLUMNS] = std::array::from_fn(|nth| row[nth].len());
        format_row(happening, &row, widths, out)
    }

    #[test]
    fn an_event_is_one_line_that_ends_with_the_way_back() {
        let plain = TerminalOutput { styled: false, zone: TimeZone::UTC };
        let start = "1970-01-01 00:00:06.998+00  ";
        let back = "  --target-offset 84213@1f3ac09b";
        let snapshot = "the snapshot 38 s before had 2 keys";
        assert_eq!(shown(&flushed(), &plain), format!("{start}flush-db  db 3   {snapshot}{back}"));
        let all = LogEntry { kind: LogEntryKind::FlushAll, database: None, ..flushed() };
        assert_eq!(shown(&all, &plain), format!("{start}flush-all  all    {snapshot}{back}"));
        let end_time = Some(Timestamp::from_millisecond(81_998).unwrap());
        let keys = Some(3000);
        for (commands, end_time, amount) in [
            (3000, end_time, "3 000 keys in 75 s"),
            (3000, None, "3 000 keys one by one"),
            (30, None, "3 000 keys in 30 commands"),
            (1, None, "3 000 keys at once"),
        ] {
            let commands = Some(commands);
            let deleted = LogEntry { kind: LogEntryKind::Delete, keys, commands, end_time, detail: None, ..flushed() };
            let line = shown(&deleted, &plain);
            assert_eq!(line, format!("{start}delete  db 3   {amount}{back}"));
            assert!(line.len() <= 100, "{line}");
        }
        let lost = LogEntry { target: None, ..flushed() };
        assert!(shown(&lost, &plain).ends_with("had 2 keys  at 84213"), "{}", shown(&lost, &plain));
        let styled = TerminalOutput { styled: true, zone: TimeZone::UTC };
        assert!(shown(&flushed(), &styled).contains("\x1b[1;31mflush-db\x1b[0m"));
    }
}

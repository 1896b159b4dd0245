//! A log entry of a PostgreSQL cluster as one line.

use super::page::{LOG_COLUMNS, LogRow};
use crate::cli::show::output::{TerminalOutput, TextTone, format_number};
use crate::postgres::log::{LogEntry, LogEntryKind};

impl LogRow for LogEntry {
    /// Time, kind, where, how much, who, and the way back.
    fn cells(&self, out: &TerminalOutput) -> [String; LOG_COLUMNS] {
        let time = self.time.map_or_else(|| "?".to_owned(), |time| out.format_time_millis(time));
        let whose = [self.database.as_deref(), self.relation.as_deref()];
        let mut what = whose.into_iter().flatten().collect::<Vec<_>>().join("  ");
        if let Some(detail) = &self.detail {
            what = if what.is_empty() { detail.clone() } else { format!("{what}  ({detail})") };
        }
        let rows = self.rows.map_or_else(String::new, |rows| match rows {
            1 => "1 row".to_owned(),
            rows => format!("{} rows", format_number(rows)),
        });
        let xid = self.xid.map_or_else(String::new, |xid| format!("xid {xid}"));
        let back = self.target.clone().unwrap_or_else(|| format!("at {}", self.lsn));
        [time, self.kind.name().to_owned(), what, rows, xid, back]
    }

    fn tones(&self) -> [Option<TextTone>; LOG_COLUMNS] {
        [
            Some(TextTone::Quiet),
            Some(kind_tone(self.kind)),
            self.relation.as_ref().or(self.database.as_ref()).map(|_| TextTone::Strong),
            None,
            Some(TextTone::Quiet),
            if self.target.is_some() { None } else { Some(TextTone::Quiet) },
        ]
    }

    fn leads_back(&self) -> bool {
        self.target.is_some()
    }
}

/// Red where data were lost, yellow where many changed, green where somebody made a way back.
const fn kind_tone(kind: LogEntryKind) -> TextTone {
    match kind {
        LogEntryKind::Drop
        | LogEntryKind::Truncate
        | LogEntryKind::DropOrTruncate
        | LogEntryKind::DropDatabase
        | LogEntryKind::Delete
        | LogEntryKind::Crash => TextTone::Bad,
        LogEntryKind::Rewrite
        | LogEntryKind::TruncateOrRewrite
        | LogEntryKind::Update
        | LogEntryKind::LargeTransaction => TextTone::Warning,
        LogEntryKind::RestorePoint | LogEntryKind::CreateDatabase => TextTone::Good,
        LogEntryKind::Promotion | LogEntryKind::Restart | LogEntryKind::Parameters => TextTone::Strong,
        LogEntryKind::Checkpoint | LogEntryKind::Backup => TextTone::Quiet,
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use crate::cli::show::log::page::{LOG_COLUMNS, LogRow as _, format_row};
    use crate::cli::show::output::TerminalOutput;
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::time::PgTime;
    use crate::postgres::format::timeline::TimelineId;
    use crate::postgres::log::{LogEntry, LogEntryKind};
    use crate::postgres::wal::event::Xid;

    fn dropped() -> LogEntry {
        LogEntry {
            time: Some(PgTime::from_pg_micros(6_998_123)),
            lsn: Lsn::new(0x3A2_B3C8),
            timeline: TimelineId::FIRST,
            xid: Some(Xid::new(743)),
            kind: LogEntryKind::Drop,
            database: Some("shop".to_owned()),
            relation: Some("public.orders".to_owned()),
            rows: None,
            detail: None,
            target: Some("--before-event 0/3A2B3C8".to_owned()),
        }
    }

    #[test]
    fn an_event_is_one_line_that_ends_with_the_way_back() {
        let plain = TerminalOutput { styled: false, zone: TimeZone::UTC };
        let row = dropped().cells(&plain);
        let widths: [usize; LOG_COLUMNS] = std::array::from_fn(|nth| row[nth].len());
        let shown = format_row(&dropped(), &row, widths, &plain);
        assert_eq!(shown, "2000-01-01 00:00:06.998+00  drop  shop  public.orders  xid 743  --before-event 0/3A2B3C8");
        let wider = format_row(&dropped(), &row, [28, 8, 20, 0, 8, 0], &plain);
        assert!(wider.contains("drop      shop  public.orders"), "{wider}");
        let styled = TerminalOutput { styled: true, zone: TimeZone::UTC };
        let coloured = format_row(&dropped(), &row, widths, &styled);
        assert!(coloured.contains("\x1b[1;31mdrop\x1b[0m"), "{coloured:?}");
    }
}

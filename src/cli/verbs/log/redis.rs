//! `walkeep log redis`: what happened to an instance, one line an event, each with the target that undoes it.

use anyhow::Context;
use clap::Args;
use clap::builder::TypedValueParser;
use jiff::Timestamp;

use crate::cli::CliContext;
use crate::cli::args::help;
use crate::cli::args::time;
use crate::cli::args::{LogTimeArgs, named_value_parser};
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::output::{TerminalOutput, TextTone, format_count, format_number};
use crate::cli::verbs::log::{LOG_COLUMNS, LogPage, LogRow, LogSubject};
use crate::postgres::format::time::PgTime;
use crate::redis::log::{self, DEFAULT_MIN_DELETED_KEYS, LogEntry, LogEntryKind, LogQuery};

/// In a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::LOG_REDIS_HELP)]
pub(in crate::cli) struct LogRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(in crate::cli) instance: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) span: LogTimeArgs,
    /// Only events of this kind; may be given again [default: all but snapshot]
    #[arg(long = "event", value_name = "KIND", value_parser = event_kind_parser())]
    pub(in crate::cli) events: Vec<LogEntryKind>,
    /// Tell deletions of so many keys in one command, in one transaction, or one after the other
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MIN_DELETED_KEYS, value_parser = clap::value_parser!(u64).range(1..))]
    pub(in crate::cli) keys: u64,
    /// Print one JSON object a line
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

fn event_kind_parser() -> impl TypedValueParser<Value = LogEntryKind> {
    named_value_parser(LogEntryKind::ALL, LogEntryKind::name)
}

/// `several`: each event says whose it is.
pub(in crate::cli) async fn run(args: LogRedisArgs, several: bool, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let of = config.instance(args.instance.as_deref())?;
    let question = LogQuery {
        since: parse_time_option("--since", args.span.since.as_deref(), around)?,
        until: parse_time_option("--until", args.span.until.as_deref(), around)?,
        kinds: args.events,
        keys: args.keys,
    };
    let archived = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &archived).await?;
    let command = format!("walkeep restore redis {} --dir DIR --start", of.name);
    let whose = several.then(|| LogSubject::Instance(of.name.to_string()));
    let mut page = LogPage::new(&around.output, args.json, command).with_subject(whose);
    let told = log::read_instance_log(&archived, &question, &mut |happening| page.add(happening)).await;
    // What was found until then is told in any case.
    page.finish()?;
    told.with_context(|| format!("cannot tell what happened in {}", of.name))?;
    Ok(CliExitCode::Done)
}

fn parse_time_option(option: &str, text: Option<&str>, around: &CliContext) -> Result<Option<Timestamp>, CliError> {
    let usage = |why: String| CliError::usage(format!("{option}: {why}"));
    let Some(text) = text else { return Ok(None) };
    let time = time::parse_time(text, around.clock.now(), &around.local_zone()).map_err(usage)?;
    time.to_timestamp().map(Some).ok_or_else(|| usage("beyond every calendar".to_owned()))
}

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
    use crate::cli::show::output::TerminalOutput;
    use crate::cli::verbs::log::{LOG_COLUMNS, LogRow, format_row};

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

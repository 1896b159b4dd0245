//! `walkeep log`: what happened, one line an event, each with the target that undoes it.

pub(in crate::cli) mod redis;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

use crate::cli::CliContext;
use crate::cli::args::time;
use crate::cli::args::{LogArgs, LogCommand, LogFilterArgs};
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::output::{TerminalOutput, TextTone, format_number};
use crate::cli::verbs::log::redis::LogRedisArgs;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::reindex;
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::log::{self, LogEntry, LogEntryKind, LogQuery};
use crate::redis::log::DEFAULT_MIN_DELETED_KEYS;

/// Lines whose columns are made to fit together. What comes after them keeps to their widths.
const MAX_ALIGNED_ROWS: usize = 500;

pub(in crate::cli) async fn run(args: LogArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let (name, args) = match args.of {
        Some(LogCommand::Redis(of)) => return crate::cli::verbs::log::redis::run(of, false, around).await,
        Some(LogCommand::Postgres(of)) => (of.cluster, of.log),
        None => return log_all_stores(&args.log, around).await,
    };
    let config = around.read_config()?;
    log_cluster(&config, config.cluster(name.as_deref())?, (&args, false), around).await
}

/// What happened in everything that is configured, one after the other, like `walkeep list`.
async fn log_all_stores(args: &LogFilterArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (clusters, mut instances) = config.find_all_named(None)?;
    // These ask for what only PostgreSQL has.
    if !args.events.is_empty() || args.relation.is_some() || args.timeline.is_some() {
        if !instances.is_empty() {
            tracing::warn!("Redis is not asked with --event, --relation or --timeline; see walkeep log redis");
        }
        instances.clear();
        config.cluster(clusters.first().map(|cluster| cluster.name.as_str())).map_err(|_none| {
            CliError::usage(
                "--event, --relation and --timeline of walkeep log are about PostgreSQL; see walkeep log redis --help",
            )
        })?;
    }
    let several = clusters.len().saturating_add(instances.len()) > 1;
    if clusters.is_empty() && instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    let title = |nth: usize, name: &str| match (several && !args.json, nth) {
        (false, _) => Ok(()),
        (true, 0) => around.output.print_line(around.output.style(TextTone::Strong, name)),
        (true, _) => around.output.print_line(format!("\n{}", around.output.style(TextTone::Strong, name))),
    };
    let mut told = Vec::new();
    for (nth, cluster) in clusters.iter().enumerate() {
        title(nth, cluster.name.as_str())?;
        told.push(report_log_result(
            log_cluster(&config, cluster, (args, several), around).await,
            (several, args.json),
            around,
        )?);
    }
    for (nth, instance) in instances.iter().enumerate() {
        title(nth.saturating_add(clusters.len()), instance.name.as_str())?;
        let of = LogRedisArgs {
            instance: Some(instance.name.to_string()),
            span: args.span.clone(),
            events: Vec::new(),
            keys: DEFAULT_MIN_DELETED_KEYS,
            json: args.json,
        };
        told.push(report_log_result(
            crate::cli::verbs::log::redis::run(of, several, around).await,
            (several, args.json),
            around,
        )?);
    }
    Ok(if told.contains(&CliExitCode::Done) { CliExitCode::Done } else { CliExitCode::NotFound })
}

/// That nothing is archived of one of several is said where its events would stand, and the others are told.
fn report_log_result(
    told: anyhow::Result<CliExitCode>,
    (several, json): (bool, bool),
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    match told {
        Err(error) if several && exit::exit_code(&error) == CliExitCode::NotFound => {
            if json {
                tracing::warn!(error = exit::error_line(&error), "nothing to tell");
                return Ok(CliExitCode::NotFound);
            }
            around.output.print_line(around.output.style(TextTone::Quiet, exit::error_line(&error)))?;
            Ok(CliExitCode::NotFound)
        }
        told => told,
    }
}

/// `several`: each event says whose it is.
async fn log_cluster(
    config: &Config,
    cluster: &ClusterConfig,
    (args, several): (&LogFilterArgs, bool),
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let question = build_query(args, around)?;
    let archive = Arc::new(open::open_archive(config, cluster, around).await?);
    let (index, _) = reindex::open_index(&archive, &open::index_dir(config)).await.context("cannot open the index")?;
    let spool = Spool::existing(&config.state_dir, &archive);
    let command = format!("walkeep restore postgres {} --pgdata DIR --start", cluster.name);
    let whose = several.then(|| LogSubject::Cluster(cluster.name.to_string()));
    let page = Arc::new(Mutex::new(LogPage::new(&around.output, args.json, command).with_subject(whose)));
    let lines = Arc::clone(&page);
    let told = log::read_log(&archive, &index, spool, question, move |happening| {
        lines.lock().unwrap_or_else(PoisonError::into_inner).add(happening)
    });
    told.await.with_context(|| format!("cannot tell what happened in {}", cluster.name))?;
    page.lock().unwrap_or_else(PoisonError::into_inner).finish()?;
    Ok(CliExitCode::Done)
}

fn build_query(args: &LogFilterArgs, around: &CliContext) -> Result<LogQuery, CliError> {
    let moment = |option: &str, text: &Option<String>| -> Result<Option<PgTime>, CliError> {
        let read = |text: &String| time::parse_time(text, around.clock.now(), &around.local_zone());
        text.as_ref().map(read).transpose().map_err(|why| CliError::usage(format!("{option}: {why}")))
    };
    let timeline = |text: &String| {
        let number = text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
        let wrong = || CliError::usage(format!("--timeline: {text:?} is no timeline; write latest or a number from 1"));
        number.and_then(TimelineId::new).ok_or_else(wrong)
    };
    Ok(LogQuery {
        since: moment("--since", &args.span.since)?,
        until: moment("--until", &args.span.until)?,
        kinds: args.events.clone(),
        relation: args.relation.clone(),
        rows: args.rows,
        timeline: args.timeline.as_ref().filter(|text| *text != "latest").map(timeline).transpose()?,
    })
}

/// An event as people see it.
pub(in crate::cli) trait LogRow: serde::Serialize {
    /// Lines of no more than this are made to fit together; a longer one goes beyond its columns rather than making the others as long.
    const WIDTH: usize = usize::MAX;
    fn cells(&self, out: &TerminalOutput) -> [String; LOG_COLUMNS];
    fn tones(&self) -> [Option<TextTone>; LOG_COLUMNS];
    /// Whether its last cell is a target.
    fn leads_back(&self) -> bool;
}

/// Of what an event is told.
#[derive(serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum LogSubject {
    Cluster(String),
    Instance(String),
}

/// An event as `--json` prints it.
#[derive(serde::Serialize)]
struct LogEntryJson<'n, T> {
    #[serde(flatten)]
    whose: Option<&'n LogSubject>,
    #[serde(flatten)]
    happening: &'n T,
}

/// What is shown, as it comes.
pub(in crate::cli) struct LogPage<T> {
    out: TerminalOutput,
    json: bool,
    whose: Option<LogSubject>,
    /// What a target is given to.
    restore: String,
    waiting: Vec<T>,
    widths: Option<[usize; LOG_COLUMNS]>,
    undoable: bool,
    /// Whether there was a line that has no target.
    lost: bool,
    failed: Option<anyhow::Error>,
}

pub(in crate::cli) const LOG_COLUMNS: usize = 6;
/// The column of words, which may be of any length.
const TEXT_COLUMN: usize = 2;

impl<T: LogRow> LogPage<T> {
    pub(in crate::cli) fn new(out: &TerminalOutput, json: bool, restore: String) -> LogPage<T> {
        let out = out.clone();
        let (whose, waiting, widths) = (None, Vec::new(), None);
        LogPage { out, json, whose, restore, waiting, widths, undoable: false, lost: false, failed: None }
    }

    /// The same with the name beside each event, where that is not clear.
    pub(in crate::cli) fn with_subject(self, whose: Option<LogSubject>) -> LogPage<T> {
        LogPage { whose, ..self }
    }

    /// Shows one more event; breaks where nothing can be shown any longer.
    pub(in crate::cli) fn add(&mut self, happening: T) -> ControlFlow<()> {
        let shown = if self.json {
            let told = LogEntryJson { whose: self.whose.as_ref(), happening: &happening };
            serde_json::to_string(&told).map_err(Into::into).and_then(|text| self.out.print_line(text))
        } else {
            self.undoable |= happening.leads_back();
            self.lost |= !happening.leads_back();
            self.waiting.push(happening);
            if self.widths.is_some() || self.waiting.len() >= MAX_ALIGNED_ROWS { self.print_rows() } else { Ok(()) }
        };
        match shown {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    pub(in crate::cli) fn finish(&mut self) -> anyhow::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.json {
            return Ok(());
        }
        if self.waiting.is_empty() && self.widths.is_none() {
            return self.out.print_line("nothing that was asked for happened in what is archived");
        }
        self.print_rows()?;
        if self.undoable {
            let command = &self.restore;
            let hint =
                format!("To go back to just before one of them, with the option its line ends with: {command} TARGET");
            self.out.print_line("")?;
            self.out.print_line(self.out.style(TextTone::Quiet, hint))?;
            if self.lost {
                let none = "A line that ends otherwise has no way back.".to_owned();
                self.out.print_line(self.out.style(TextTone::Quiet, none))?;
            }
        }
        Ok(())
    }

    fn print_rows(&mut self) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let rows: Vec<[String; LOG_COLUMNS]> = waiting.iter().map(|happening| happening.cells(&self.out)).collect();
        let measured = || {
            let mut widths = [0; LOG_COLUMNS];
            for row in &rows {
                for (width, cell) in widths.iter_mut().zip(row) {
                    *width = cell.chars().count().max(*width);
                }
            }
            let gaps = widths.iter().filter(|width| **width > 0).count().saturating_sub(1).saturating_mul(2);
            let beyond = widths.iter().sum::<usize>().saturating_add(gaps).saturating_sub(T::WIDTH);
            if let Some(what) = widths.get_mut(TEXT_COLUMN) {
                *what = what.saturating_sub(beyond).max((*what).min(1));
            }
            widths
        };
        let widths = *self.widths.get_or_insert_with(measured);
        for (happening, row) in waiting.iter().zip(&rows) {
            self.out.print_line(format_row(happening, row, widths, &self.out))?;
        }
        Ok(())
    }
}

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

/// One line of columns of these widths.
pub(in crate::cli) fn format_row(
    happening: &impl LogRow,
    cells: &[String; LOG_COLUMNS],
    widths: [usize; LOG_COLUMNS],
    out: &TerminalOutput,
) -> String {
    let tones = happening.tones();
    let mut line = String::new();
    for (nth, (cell, (width, tone))) in cells.iter().zip(widths.into_iter().zip(tones)).enumerate() {
        if width == 0 {
            continue;
        }
        let last = nth.saturating_add(1) == LOG_COLUMNS;
        let padded = match nth {
            _ if last => cell.clone(),
            // Numbers stand at the right.
            3 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        };
        line.push_str(&tone.map_or(padded.clone(), |tone| out.style(tone, padded)));
        if !last {
            line.push_str("  ");
        }
    }
    line
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

    use super::{LOG_COLUMNS, LogRow as _, format_row};
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

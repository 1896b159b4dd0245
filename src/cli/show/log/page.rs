//! The entries of `walkeep log` as aligned lines or as JSON.

use std::ops::ControlFlow;

use crate::cli::show::output::{TerminalOutput, TextTone};

/// Lines whose columns are made to fit together. What comes after them keeps to their widths.
const MAX_ALIGNED_ROWS: usize = 500;

/// An event as people see it.
pub(in crate::cli) trait LogRow: serde::Serialize {
    /// Lines of no more than this are made to fit together; a longer one goes beyond its columns rather than making
    /// the others as long.
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

//! What people see: text, tables and JSON on standard output.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};
use jiff::tz::TimeZone;

use crate::cli::show::time;
use crate::postgres::format::time::PgTime;

pub(in crate::cli) use crate::base::units::{format_bytes, format_count, format_duration, format_number};

/// The width that tables keep to where there is no terminal to ask.
pub(in crate::cli) const MAX_ALIGNED_WIDTH: u16 = 100;

/// Standard output, with or without colours, and the zone in which times are printed.
#[derive(Clone, Debug)]
pub(in crate::cli) struct TerminalOutput {
    pub(in crate::cli) styled: bool,
    pub(in crate::cli) zone: TimeZone,
}

/// What a piece of text is, which decides its colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum TextTone {
    Strong,
    Quiet,
    Good,
    Bad,
    Warning,
}

impl TerminalOutput {
    /// Colours only on a terminal, and not where `NO_COLOR` is set (no-color.org) or the terminal is dumb.
    pub(in crate::cli) fn new(zone: TimeZone, no_color: bool) -> TerminalOutput {
        TerminalOutput { styled: io::stdout().is_terminal() && !no_color, zone }
    }

    /// Whether people look at a terminal that can do more than plain text.
    pub(in crate::cli) const fn is_styled(&self) -> bool {
        self.styled
    }

    /// `text` in the colour of its tone.
    pub(in crate::cli) fn style(&self, tone: TextTone, text: impl std::fmt::Display) -> String {
        let code = match tone {
            TextTone::Strong => "1",
            TextTone::Quiet => "2",
            TextTone::Good => "32",
            TextTone::Bad => "1;31",
            TextTone::Warning => "33",
        };
        if self.styled { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Prints one line. A reader that went away (`| head`) is no error.
    pub(in crate::cli) fn print_line(&self, text: impl std::fmt::Display) -> anyhow::Result<()> {
        self.write(format_args!("{text}\n"))
    }

    /// Prints a value as one JSON document.
    pub(in crate::cli) fn print_json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value).context("cannot write the answer as JSON")?;
        self.print_line(text)
    }

    fn write(&self, text: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
        match io::stdout().lock().write_fmt(text) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("cannot write to standard output")
            }
            _ => Ok(()),
        }
    }

    /// A moment in the zone asked for.
    pub(in crate::cli) fn format_time(&self, moment: PgTime) -> String {
        time::format_time(moment, &self.zone)
    }

    /// A moment to the second, for tables; the JSON has the microseconds.
    pub(in crate::cli) fn format_short_time(&self, moment: PgTime) -> String {
        let text = self.format_time(moment);
        match text.split_once('.') {
            Some((seconds, rest)) => format!("{seconds}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit())),
            None => text,
        }
    }

    /// A moment to the millisecond.
    pub(in crate::cli) fn format_time_millis(&self, moment: PgTime) -> String {
        let text = self.format_time(moment);
        match text.split_once('.') {
            Some((seconds, rest)) => {
                let (millis, rest) = rest.split_at_checked(3).unwrap_or((rest, ""));
                format!("{seconds}.{millis}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
            }
            None => text,
        }
    }

    /// A table with these headings; those that begin with `>` stand at the right of their column.
    pub(in crate::cli) fn print_table<const N: usize>(
        &self,
        headings: [&str; N],
        rows: &[[String; N]],
    ) -> anyhow::Result<()> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, ' ');
        if !io::stdout().is_terminal() {
            table.set_width(MAX_ALIGNED_WIDTH);
        }
        if self.styled {
            table.enforce_styling()
        } else {
            table.force_no_tty()
        };
        table.set_header(
            headings.map(|heading| Cell::new(heading.trim_start_matches('>')).add_attribute(Attribute::Bold)),
        );
        for (column, heading) in table.column_iter_mut().zip(headings) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in rows {
            table.add_row(row.iter().map(Cell::new));
        }
        let lines: Vec<String> = table.lines().map(|line| format!("  {}", line.trim_end())).collect();
        self.print_line(lines.join("\n"))
    }
}

/// How many columns prose may take: those of the terminal, up to what reads well; the usual where there is none.
pub(in crate::cli) fn text_width() -> usize {
    terminal_width().map_or(usize::from(MAX_ALIGNED_WIDTH), |columns| columns.min(usize::from(MAX_ALIGNED_WIDTH)))
}

/// The columns of the terminal that standard output is.
pub(in crate::cli) fn terminal_width() -> Option<usize> {
    if io::stdout().is_terminal() { Table::new().width().map(usize::from) } else { None }
}

/// Breaks a text into lines of at most `width` characters, at blanks where it has any.
pub(in crate::cli) fn wrap_text(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrap_text;

    #[test]
    fn long_texts_break_at_blanks() {
        assert_eq!(wrap_text("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap_text("incomprehensibilities it is", 5), ["incomprehensibilities", "it is"]);
        assert_eq!(wrap_text("", 5), [""]);
    }
}

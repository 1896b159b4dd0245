//! What people see: text, tables and JSON on standard output, and the words for sizes and spans of time.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets};
use jiff::tz::TimeZone;

use crate::cli::show::time;
use crate::postgres::format::time::PgTime;

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

/// Bytes as people say them: `512 B`, `1.5 MB`, in powers of 1000, so that they agree with rates and with `ls --si`.
pub(in crate::cli) fn format_bytes(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes;
    let mut remainder = 0;
    let mut unit = "B";
    for name in units {
        if scaled < 1000 {
            break;
        }
        remainder = scaled % 1000;
        scaled /= 1000;
        unit = name;
    }
    if scaled < 10 {
        format!("{scaled}.{:02} {unit}", remainder / 10)
    } else if scaled < 100 {
        format!("{scaled}.{} {unit}", remainder / 100)
    } else {
        format!("{scaled} {unit}")
    }
}

/// A span of time as people say it: `85 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub(in crate::cli) fn format_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..=9 if time.subsec_millis() >= 100 => format!("{seconds}.{} s", time.subsec_millis() / 100),
        1..=9 => format!("{seconds} s"),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
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

/// `1 segment`, `2 segments`.
pub(in crate::cli) fn format_count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", format_number(number))
}

/// A number with thin groups of three, `12 345`.
pub(in crate::cli) fn format_number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{format_bytes, format_count, format_duration, format_number, wrap_text};

    #[test]
    fn long_texts_break_at_blanks() {
        assert_eq!(wrap_text("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap_text("incomprehensibilities it is", 5), ["incomprehensibilities", "it is"]);
        assert_eq!(wrap_text("", 5), [""]);
    }

    #[test]
    fn sizes_and_spans_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (16_777_216, "16.7 MB"),
            (999_999, "999 kB"),
            (1_500_000_000, "1.50 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
        for (millis, text) in [
            (85, "85 ms"),
            (4_250, "4.2 s"),
            (4_050, "4 s"),
            (59_900, "59 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(
            (format_number(7), format_number(1_234), format_number(12_345_678)),
            ("7".into(), "1 234".into(), "12 345 678".into())
        );
        assert_eq!(
            (format_count(1, "segment"), format_count(2_000, "segment")),
            ("1 segment".into(), "2 000 segments".into())
        );
    }
}

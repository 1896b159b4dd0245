//! How far long work is: a bar on a terminal, and otherwise a plain line now and then. Both go to standard error.

use std::io::{IsTerminal, Write, stderr};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::clock::Stopwatch;
use crate::cli::show::output::{format_bytes, format_duration};

/// How often a plain line is written: often enough to see that work goes on, seldom enough for a log.
const PLAIN_LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one piece of work, counted in bytes. It may be told from any thread.
#[derive(Debug)]
pub(in crate::cli) struct ProgressDisplay {
    what: String,
    shown: ProgressMode,
    begun: Stopwatch,
}

#[derive(Debug)]
enum ProgressMode {
    Nothing,
    Bar(ProgressBar),
    Lines(Mutex<Stopwatch>),
}

impl ProgressDisplay {
    /// Begins to show `what` with a total of `total` bytes, zero if it is not known.
    pub(in crate::cli) fn new(what: &str, total: u64, quiet: bool) -> ProgressDisplay {
        let begun = Stopwatch::start();
        let shown = if quiet {
            ProgressMode::Nothing
        } else if stderr().is_terminal() {
            ProgressMode::Bar(new_bar(what, total))
        } else {
            ProgressMode::Lines(Mutex::new(begun))
        };
        ProgressDisplay { what: what.to_owned(), shown, begun }
    }

    /// So much is done, of so much in all.
    pub(in crate::cli) fn set_done(&self, done: u64, total: u64) {
        match &self.shown {
            ProgressMode::Nothing => {}
            ProgressMode::Bar(bar) => {
                bar.set_length(total.max(done));
                bar.set_position(done);
            }
            ProgressMode::Lines(last) => {
                let Ok(mut last) = last.lock() else { return };
                if last.elapsed() >= PLAIN_LINE_INTERVAL {
                    *last = Stopwatch::start();
                    self.print_line(&plain_line(&self.what, done, total, self.begun.elapsed()));
                }
            }
        }
    }

    /// What is being done now has another name.
    pub(in crate::cli) fn set_stage(&self, what: &str) {
        match &self.shown {
            ProgressMode::Nothing => {}
            ProgressMode::Bar(bar) => bar.set_prefix(what.to_owned()),
            ProgressMode::Lines(_) => self.print_line(what),
        }
    }

    /// Takes the bar away, so that what is printed next stands on a clean line.
    pub(in crate::cli) fn finish(&self) {
        if let ProgressMode::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    fn print_line(&self, text: &str) {
        // Progress that cannot be shown must not stop the work.
        let _shown = writeln!(stderr().lock(), "{text}");
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.finish();
    }
}

fn new_bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
    let pattern = "{prefix}  {bar:32} {percent:>3}%  {decimal_bytes:>9} of {decimal_total_bytes:<9}  \
        {decimal_bytes_per_sec:>12}  {eta:>4}";
    if let Ok(style) = ProgressStyle::with_template(pattern) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.set_prefix(what.to_owned());
    bar
}

fn plain_line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let share = match total {
        0 => String::new(),
        total => format!(" of {}, {}%", format_bytes(total), done.saturating_mul(100) / total),
    };
    format!("{what}: {}{share}, {}", format_bytes(done), format_duration(elapsed))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::plain_line;

    #[test]
    fn plain_lines_say_how_far() {
        let elapsed = Duration::from_secs(70);
        assert_eq!(plain_line("backup", 500, 0, elapsed), "backup: 500 B, 1 min 10 s");
        assert_eq!(plain_line("restore", 250_000, 1_000_000, elapsed), "restore: 250 kB of 1.00 MB, 25%, 1 min 10 s");
    }
}

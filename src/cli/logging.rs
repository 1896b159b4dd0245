//! Logs on standard error, as text or as JSON.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use super::args::global::{GlobalArgs, LogFormat};

/// How much is logged unless the user asks otherwise: a command that runs for ever says what it does, the others only
/// what goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DefaultLogLevel {
    Quiet,
    Verbose,
}

/// Starts logging. Other crates' logs are shown only when debugging.
pub(super) fn init_logging(global: &GlobalArgs, usual: DefaultLogLevel, no_color: bool) {
    let levels = ["error", "warn", "info", "debug", "trace"];
    let base = usize::from(!global.quiet) + usize::from(!global.quiet && usual == DefaultLogLevel::Verbose);
    let level = levels.get(base + usize::from(global.verbose)).unwrap_or(&"trace");
    let others = if matches!(*level, "debug" | "trace") { "info" } else { "error" };
    let filter = EnvFilter::new(format!("{others},walkeep={level}"));
    let logs = fmt().with_env_filter(filter).with_writer(stderr);
    // A second call, which only a test makes, finds a subscriber in place and leaves it.
    let _already = match global.log_format {
        LogFormat::Text => logs.with_target(false).with_ansi(stderr().is_terminal() && !no_color).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
}

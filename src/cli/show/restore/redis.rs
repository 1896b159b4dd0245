//! `walkeep restore redis`: what was restored, and how the server is started.

use std::path::Path;

use super::super::plan::redis::RedisPlanJson;
use crate::cli::show::output::{
    TerminalOutput, TextTone, format_bytes, format_count, format_duration, text_width, wrap_text,
};
use crate::cli::show::shell;
use crate::redis::restore::checked_restore::{FinishedRedisRestore, PlacedRestore};
use crate::redis::restore::destination::program_name;
use crate::redis::restore::server_start::LoadedData;
use crate::redis::restore::{PlacedFiles, RedisVersion};

/// What `restore --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct RedisRestoreJson<'r> {
    plan: &'r RedisPlanJson,
    restored: Option<&'r PlacedFiles>,
    start: Option<&'r [String]>,
    warnings: &'r [String],
    loaded: Option<&'r LoadedData>,
}

impl<'r> RedisRestoreJson<'r> {
    /// A plan, and what was done by it.
    pub(in crate::cli) fn new(plan: &'r RedisPlanJson, done: Option<&'r FinishedRedisRestore>) -> RedisRestoreJson<'r> {
        RedisRestoreJson {
            plan,
            restored: done.map(|done| &done.placed),
            start: done.map(|done| done.options.as_slice()),
            warnings: done.map_or(&[], |done| done.warnings.as_slice()),
            loaded: done.and_then(|done| done.loaded.as_ref()),
        }
    }
}

/// Prints what was placed where, and what to know of it.
pub(in crate::cli) fn print_placed(placed: &PlacedRestore, dir: &Path, out: &TerminalOutput) -> anyhow::Result<()> {
    let (files, bytes) = (format_count(placed.files.files.len() as u64, "file"), format_bytes(placed.files.bytes));
    let (dir, took) = (dir.display(), format_duration(placed.took));
    out.print_line(format!("\nrestored {files}, {bytes}, into {dir} in {took}"))?;
    let label = out.style(TextTone::Warning, "warning");
    placed.warnings.iter().try_for_each(|warning| out.print_line(format!("{label}: {warning}")))
}

pub(in crate::cli) fn print_next_command(
    done: &FinishedRedisRestore,
    version: RedisVersion,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    if let Some(loaded) = &done.loaded {
        let keys: u64 = loaded.keys.values().sum();
        let how = if loaded.compared { ", as the snapshot says" } else { " after the commands behind the snapshot" };
        let checked = out.style(TextTone::Good, "checked");
        out.print_line(format!("{checked}: {} loads it and has {}{how}", loaded.server, format_count(keys, "key")))?;
    }
    let program = program_name(version.flavour);
    let words: Vec<String> = done.options.iter().map(|word| shell::quote_for_shell(word)).collect();
    out.print_line(format!("start it with: {program} {}", words.join(" ")))?;
    let note = "Keep these options in its configuration: started without them it ignores these files, and loads \
                something else or nothing.";
    wrap_text(note, text_width()).iter().try_for_each(|line| out.print_line(out.style(TextTone::Quiet, line)))
}

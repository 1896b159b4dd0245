//! `walkeep repository sync`: fills one repository from the others.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::compared_archives::{self, ComparedArchive, as_unreachable};
use super::configured_name::ensure_configured;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode, FailureTally};
use crate::cli::open;
use crate::cli::show::progress::ProgressDisplay;
use crate::cli::show::repository::{SyncJson, SyncedArchive, print_synced};
use crate::vault::Vault;
use crate::vault::shipper::SeedScope;
use crate::vault::shipper::sync::{SyncProgress, SyncReport, sync_repository};

/// Copy what a repository lacks from the others
#[derive(Args, Debug)]
#[command(after_help = help::REPOSITORY_SYNC_HELP)]
pub(in crate::cli) struct SyncArgs {
    /// The repository to fill; with two names, the first one is the only source [default source: all others]
    #[arg(value_name = "[FROM] TO", num_args = 1..=2, required = true)]
    pub(in crate::cli) names: Vec<String>,
    /// Fill a new repository with the newest backup and the WAL since then, instead of everything
    #[arg(long)]
    pub(in crate::cli) from_newest_backup: bool,
    /// Only show what would be copied
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: SyncArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (from, to) = match args.names.as_slice() {
        [from, to] => (Some(from.as_str()), to.as_str()),
        [to] => (None, to.as_str()),
        _ => return Err(CliError::usage("name the repository to fill").into()),
    };
    for name in from.into_iter().chain([to]) {
        ensure_configured(&config, name)?;
    }
    if from == Some(to) {
        return Err(CliError::usage(format!("{to} cannot be filled from itself; name another source")).into());
    }
    if config.repositories.len() < 2 {
        let message = format!("{to} is the only repository; add another with walkeep repository add");
        return Err(CliError::usage(message).into());
    }
    let vault = Vault::open(open::archive_settings(&config, around)?).await.context("cannot open the repositories")?;
    let vault = Arc::new(vault.view(|name| name == to || from.is_none_or(|from| name == from)));
    for name in from.into_iter().chain([to]) {
        let opened = vault.reopened_id(name).await.with_context(|| format!("cannot use {name}"));
        opened.map_err(as_unreachable)?;
    }
    let archives: Vec<ComparedArchive<'_>> = compared_archives::all(&config).collect();
    let mut failures = FailureTally::new(archives.len());
    let mut done = Vec::new();
    for archive in archives {
        let Some(synced) = failures.record(sync_archive(&args, archive, &vault, to, around).await) else { continue };
        if !args.json {
            print_synced(&synced, to, args.dry_run, &around.output)?;
        }
        done.push(synced);
    }
    let worst = done.iter().map(SyncedArchive::exit_code).max_by_key(|code| code.severity());
    if args.json {
        around.output.print_json(&SyncJson { from, to, dry_run: args.dry_run, archives: done })?;
    }
    failures.finish(worst.unwrap_or(CliExitCode::Done))
}

async fn sync_archive<'c>(
    args: &SyncArgs,
    archive: ComparedArchive<'c>,
    vault: &Arc<Vault>,
    to: &str,
    around: &CliContext,
) -> anyhow::Result<SyncedArchive<'c>> {
    let scope = if args.from_newest_backup { SeedScope::NewestBackup } else { SeedScope::All };
    let name = archive.name();
    let began = around.clock.elapsed();
    let lacking = archive.lacking(vault, to, scope).await?;
    let report = if args.dry_run {
        SyncReport::default()
    } else {
        let total = lacking.items.len();
        let display = ProgressDisplay::new(&format!("{name}: {total} objects to {to}"), 0, around.quiet || total == 0);
        let tell = |progress: SyncProgress| display.set_done(progress.bytes, 0);
        let report = Box::pin(sync_repository(vault, &lacking, to, &tell)).await;
        display.finish();
        report
    };
    let took = around.clock.elapsed().saturating_sub(began);
    Ok(SyncedArchive::new(name, &lacking, report, took))
}

//! PostgreSQL servers on restored files.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::args::target::PostgresServerArgs;
use crate::cli::context::CliContext;
use crate::cli::show::progress::ProgressDisplay;
use crate::cli::show::restore::postgres::print_server_log;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::restore::plan::ProvedRestore;
use crate::postgres::restore::recovery_end::remove_recovery_settings;
use crate::postgres::restore::server_start::{ReachedTarget, ReplayProgress, ServerStart};
use crate::postgres::restore::target::RecoveryTargetAction;

/// Where the servers' programs may be besides their usual places.
pub(in crate::cli) fn program_search_path(around: &CliContext) -> Vec<PathBuf> {
    std::env::split_paths(around.environment.get("PATH").unwrap_or_default()).collect()
}

/// The server of a restored data directory, as the options name it.
pub(in crate::cli) fn configured_server(
    pgdata: &Path,
    args: &PostgresServerArgs,
    config_file: Option<PathBuf>,
    around: &CliContext,
) -> ServerStart {
    ServerStart {
        bindir: args.pg_bindir.clone(),
        search: program_search_path(around),
        options: args.server_options.iter().cloned().collect(),
        config_file,
        timeout: args.start_timeout,
        ..ServerStart::new(pgdata.to_owned())
    }
}

/// Starts a server and waits until it has reached its target.
pub(in crate::cli) async fn start_server(
    start: &ServerStart,
    proved: &ProvedRestore,
    action: RecoveryTargetAction,
    quiet: bool,
    around: &CliContext,
) -> anyhow::Result<ReachedTarget> {
    let total = proved.work.wal_bytes;
    let bar = ProgressDisplay::new("replay WAL", total, around.quiet || quiet);
    let begin = Lsn::new(proved.stop.lsn().get().saturating_sub(total));
    let tell = |progress: ReplayProgress| {
        let done = progress.replayed.map_or(0, |lsn| lsn.get().saturating_sub(begin.get()));
        bar.set_done(done.min(total), total);
    };
    let reached = start.run_watched(proved, action, &around.clock, &tell).await;
    bar.finish();
    if let Err(error) = &reached
        && let Some(log) = error.log()
    {
        print_server_log(log);
    }
    let reached = reached.context("the files are restored, but the server did not get to its target")?;
    if action == RecoveryTargetAction::Promote {
        // The server has done this itself, unless its recovery_end_command failed.
        remove_recovery_settings(&start.pgdata).context("recovery has ended, but its settings are left")?;
    }
    Ok(reached)
}

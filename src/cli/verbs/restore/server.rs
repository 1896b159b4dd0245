//! PostgreSQL servers on restored files.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::args::target::PostgresServerArgs;
use crate::cli::context::CliContext;
use crate::postgres::restore::plan::ProvedRestore;
use crate::postgres::restore::recovery_end::remove_recovery_settings;
use crate::postgres::restore::server_start::{ReachedTarget, ServerStart};
use crate::postgres::restore::target::RecoveryTargetAction;

/// Where the servers' programs may be besides their usual places.
pub(in crate::cli) fn program_search_path(around: &CliContext) -> Vec<PathBuf> {
    std::env::split_paths(around.environment.get("PATH").unwrap_or_default()).collect()
}

/// Starts a server on the data directory and waits until it has reached its target.
pub(in crate::cli) async fn start_server(
    pgdata: &Path,
    args: &PostgresServerArgs,
    proved: &ProvedRestore,
    action: RecoveryTargetAction,
    around: &CliContext,
) -> anyhow::Result<ReachedTarget> {
    let start = ServerStart {
        pgdata: pgdata.to_owned(),
        bindir: args.pg_bindir.clone(),
        search: program_search_path(around),
        options: args.server_options.iter().cloned().collect(),
    };
    let reached = start.run(proved, action, &around.clock).await;
    let reached = reached.context("the files are restored, but the server did not get to its target")?;
    if action == RecoveryTargetAction::Promote {
        // The server has done this itself, unless its recovery_end_command failed.
        remove_recovery_settings(pgdata).context("recovery has ended, but its settings are left")?;
    }
    Ok(reached)
}

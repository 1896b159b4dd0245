//! `walkeep archive-push`: PostgreSQL waits for this once per segment, so nothing is opened that is not needed.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::CliContext;
use super::args::ArchivePushArgs;
use super::exit::{CliError, CliExitCode};
use super::open;
use crate::postgres::archive_push;

pub(super) async fn run(args: ArchivePushArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    // PostgreSQL gives a path relative to its data directory, which is where it runs us; a service runs elsewhere.
    let path = std::path::absolute(&args.path).context("cannot tell where the file is")?;
    let name = wal_file_name(&path)?;
    let doing = || format!("cannot archive {name}");
    let handed =
        archive_push::push_through_service(&config.state_dir, cluster.name.as_str(), &path, name, &*around.clock).await;
    if let Some(identical) = handed.with_context(doing)? {
        tracing::info!(file = name, identical, "archived by the running service");
        return Ok(CliExitCode::Done);
    }
    let archive = Arc::new(open::open_archive(&config, cluster, around).await.with_context(doing)?);
    let ingested = archive_push::archive_push(&archive, &path, name, &[]).await.with_context(doing)?;
    if let Some(alarm) = &ingested.alarm {
        tracing::error!(file = name, %alarm, "archived, but somebody should look at it");
    }
    tracing::info!(file = name, outcome = ?ingested.outcome, stored_bytes = ingested.stored_bytes, "archived");
    Ok(CliExitCode::Done)
}

/// `%f` is the last part of `%p`.
fn wal_file_name(path: &Path) -> Result<&str, CliError> {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    name.ok_or_else(|| CliError::usage(format!("{} names no file of pg_wal; give it as %p", path.display())))
}

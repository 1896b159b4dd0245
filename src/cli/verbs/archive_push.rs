//! `walkeep archive-push`: PostgreSQL waits for this once per segment, so nothing is opened that is not needed.
//!
//! If a service runs, the file is handed over to it through the control socket, so that neither keys nor repositories
//! are opened here. If none does, this process archives the file. Either way, success means durable in every
//! repository.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::base::clock::Clock;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::control::{self, ControlError, ControlRequest, ControlResponse};
use crate::postgres::archive::ingest::LackingRepository;
use crate::postgres::archive_push::{self, ArchivePushError};

/// Archive one file: for archive_command
#[derive(Args, Debug)]
#[command(after_help = help::ARCHIVE_PUSH_HELP)]
pub(in crate::cli) struct ArchivePushArgs {
    /// The file, as PostgreSQL gives it in %p
    #[arg(value_name = "PATH")]
    pub(in crate::cli) path: PathBuf,
    /// The cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
}

/// How long a service may take for one file that it has accepted. PostgreSQL waits without a limit, and a service
/// that dies is noticed at once by its connection. This limit is for one that hangs; it is longer than a repository's
/// retries.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(600);

pub(in crate::cli) async fn run(args: ArchivePushArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    // PostgreSQL gives a path relative to its data directory, which is where it runs us; a service runs elsewhere.
    let path = std::path::absolute(&args.path).context("cannot tell where the file is")?;
    let name = wal_file_name(&path)?;
    let doing = || format!("cannot archive {name}");
    let handed = push_through_service(&config.state_dir, cluster.name.as_str(), (&path, name), &*around.clock).await;
    if let Some(identical) = handed.with_context(doing)? {
        tracing::info!(file = name, identical, "archived by the running service");
        return Ok(CliExitCode::Done);
    }
    let opened = open::open_archive_briefly(&config, cluster, around).await.with_context(doing)?;
    let (archive, mut notes, held_off) = opened;
    let archive = Arc::new(archive);
    let ingested = archive_push::archive_push(&archive, &path, name, &[]).await;
    notes.update(archive.vault().unreachable(), &held_off, around.clock.now());
    let ingested = ingested.with_context(doing)?;
    for LackingRepository { name: repository, why } in &ingested.lacking {
        tracing::warn!(
            file = name,
            repository,
            why,
            "archived, but not in this repository: walkeep repository sync \
            fills it when it is back"
        );
    }
    if let Some(alarm) = &ingested.alarm {
        tracing::error!(file = name, %alarm, "archived, but somebody should look at it");
    }
    tracing::info!(file = name, outcome = ?ingested.outcome, stored_bytes = ingested.stored_bytes, "archived");
    Ok(CliExitCode::Done)
}

/// Hands the file over to the service of this state directory, if one listens. `Some` once the file is archived, with
/// whether it was identical to an archived one; `None` if this process has to archive it.
async fn push_through_service(
    state_dir: &Path,
    cluster: &str,
    (path, name): (&Path, &str),
    clock: &dyn Clock,
) -> Result<Option<bool>, ArchivePushError> {
    let request = ControlRequest::Push { cluster: cluster.to_owned(), path: path.to_owned(), name: name.to_owned() };
    match control::send_request(state_dir, &request, clock, SERVICE_TIMEOUT).await {
        Ok(ControlResponse::Pushed { identical }) => Ok(Some(identical)),
        Ok(ControlResponse::Refused { why, transient }) => Err(ArchivePushError::Refused { why, transient }),
        Ok(
            ControlResponse::NotMine
            | ControlResponse::Pong { .. }
            | ControlResponse::Status { .. }
            | ControlResponse::Accepted,
        ) => Ok(None),
        Err(ControlError::NotListening { .. }) => Ok(None),
        Err(error) => {
            // Archiving must not depend on a service that hangs. If it has archived the file, the file is found to be
            // identical.
            tracing::warn!(%error, file = name, "the service does not take the file; archiving it without");
            Ok(None)
        }
    }
}

/// `%f` is the last part of `%p`.
fn wal_file_name(path: &Path) -> Result<&str, CliError> {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    name.ok_or_else(|| CliError::usage(format!("{} names no file of pg_wal; give it as %p", path.display())))
}

//! `walkeep receive`: the receiver in the foreground, with what belongs around it.
//!
//! While it runs, `archive-push` hands its files over to it through the control socket, and it keeps the index.
//! Neither can hold the receiver up: the index takes in what it can, and reads the rest from the repository when it
//! has time. A segment that is handed over gets the note of the server's clock that the receiver's own would have,
//! because whichever is first stays.

mod index_feed;
mod push_handler;
pub(in crate::cli) mod redis;
mod stop_signal;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use tokio::sync::watch;

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::config::NamedStore;
use crate::control::ControlListener;
use crate::postgres::archive::Archive;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::receive::{self, ReceiveSettings};
use index_feed::IndexFeed;
use push_handler::PushHandler;
use stop_signal::stop_on_signal;

/// Stream WAL from a cluster, or the commands of a Redis instance, into the repository, in the foreground
#[derive(Args, Debug)]
#[command(after_help = help::RECEIVE_HELP)]
pub(in crate::cli) struct ReceiveArgs {
    /// The cluster or Redis instance [default: the only one configured]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// End when everything before this position is archived
    #[arg(long, value_name = "LSN")]
    pub(in crate::cli) end_lsn: Option<String>,
}

pub(in crate::cli) async fn run(args: ReceiveArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = match config.find_named(args.cluster.as_deref())? {
        NamedStore::Cluster(cluster) => cluster,
        NamedStore::Instance(_) if args.end_lsn.is_some() => {
            return Err(CliError::usage("--end-lsn is a position of PostgreSQL; a Redis instance has none").into());
        }
        NamedStore::Instance(instance) => return redis::run(&config, instance, around).await,
    };
    let Some(conninfo) = cluster.conninfo(&around.environment)? else {
        let message = format!(
            "[postgres.{}] has no connection to receive from; add one to {}",
            cluster.name,
            config.path.display()
        );
        return Err(CliError::usage(message).into());
    };
    let end = args.end_lsn.as_deref().map(str::parse::<Lsn>).transpose();
    let end = end.map_err(|why| CliError::usage(format!("--end-lsn: {why}")))?;
    let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
    let settings = ReceiveSettings {
        acknowledge: cluster.acknowledge,
        copy_every: cluster.copy_every,
        end,
        ..ReceiveSettings::new(conninfo, Some(cluster.slot.clone()), config.state_dir.clone())
    };
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    let (note, noted) = watch::channel(Vec::new());
    let service = serve_control_socket(&archive, config.state_dir.clone(), noted);
    let indexer = IndexFeed::start(Arc::clone(&archive), open::index_dir(&config), note);
    let finished = receive::receive(&archive, &settings, &indexer, stopped).await;
    if let Some(service) = service {
        service.abort();
    }
    indexer.finish().await;
    let finished = finished.with_context(|| format!("receiving {} has ended", cluster.name))?;
    tracing::info!(until = %finished.until, timeline = %finished.timeline, "everything up to here is safe");
    if let (Some(end), false) = (end, finished.reached) {
        let message = format!("stopped at {}, before {end} was archived", finished.until);
        return Err(CliError { code: CliExitCode::Failed, message }.into());
    }
    Ok(CliExitCode::Done)
}

/// Takes files from `archive-push`. Archiving does not depend on it: without, each push archives its file itself.
fn serve_control_socket(
    archive: &Arc<Archive>,
    state_dir: PathBuf,
    noted: watch::Receiver<Vec<u8>>,
) -> Option<tokio::task::JoinHandle<()>> {
    let listener = match ControlListener::bind(&state_dir) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "archive-push will do its work without this receiver");
            return None;
        }
    };
    let (handler, clock) =
        (Arc::new(PushHandler { archive: Arc::clone(archive), noted }), Arc::clone(archive.vault().clock()));
    Some(tokio::spawn(async move { listener.serve(handler, clock).await }))
}

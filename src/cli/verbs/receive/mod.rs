//! `walkeep receive`: receivers in the foreground, with what belongs around them.
//!
//! One process follows every cluster and instance that is configured, or those that are named. They share the
//! repositories, the index and the control socket. One that fails does not end the others: it is started again after a
//! pause.
//!
//! While receivers run, `archive-push` hands its files over through the control socket, and the index is kept. Neither
//! delays a receiver: the index takes in what it can, and reads the rest from the repository later. A segment that is
//! handed over gets the note of the server's clock that the receiver's own would have, because the first one stays.

mod index_feed;
mod postgres;
mod push_handler;
mod redis;
mod stop_signal;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::watch;

use crate::base::retry::{Backoff, RetryPolicy};
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::open;
use crate::config::{Config, NamedStore};
use crate::control::ControlListener;
use crate::postgres::format::lsn::Lsn;
use crate::vault::{Vault, VaultError};
use index_feed::SharedIndex;
use postgres::ClusterReceiver;
use push_handler::{PushHandler, PushTarget};
use stop_signal::stop_on_signal;

/// Pauses before one of several receivers that failed is started again. A failure that stays is in the log each minute.
const RESTART_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(5), longest: Duration::from_secs(60), total: None };

/// Pauses before the repositories are opened again, if none can be at the start.
const OPEN_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(30), total: None };

/// Stream WAL from clusters, and the commands of Redis instances, into the repositories, in the foreground
#[derive(Args, Debug)]
#[command(after_help = help::RECEIVE_HELP)]
pub(in crate::cli) struct ReceiveArgs {
    /// The clusters and Redis instances [default: all that are configured]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) names: Vec<String>,
    /// End when everything before this position is archived; for a single cluster
    #[arg(long, value_name = "LSN")]
    pub(in crate::cli) end_lsn: Option<String>,
}

pub(in crate::cli) async fn run(args: ReceiveArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let stores = wanted_stores(&config, &args, around)?;
    let end = args.end_lsn.as_deref().map(str::parse::<Lsn>).transpose();
    let end = end.map_err(|why| CliError::usage(format!("--end-lsn: {why}")))?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    let Some(vault) = open_vault_patiently(&config, around, stopped.clone()).await? else {
        return Ok(CliExitCode::Done);
    };
    let index = SharedIndex::new(open::index_dir(&config));
    let mut clusters = Vec::new();
    for store in &stores {
        if let NamedStore::Cluster(cluster) = store {
            clusters.push(ClusterReceiver::new(&vault, cluster, &config, around, end, &index)?);
        }
    }
    let service = serve_control_socket(&config.state_dir, clusters.iter().map(ClusterReceiver::push_target).collect());
    let alone = stores.len() == 1;
    let mut running = Vec::new();
    for cluster in &clusters {
        let attempt = || cluster.receive(stopped.clone()).boxed_local();
        running.push(keep_running(cluster.name(), attempt, alone, stopped.clone(), around).boxed_local());
    }
    for store in &stores {
        if let NamedStore::Instance(instance) = store {
            let receiver = redis::InstanceReceiver::new(&vault, instance, &config, around)?;
            let (name, stopped) = (instance.name.to_string(), stopped.clone());
            running.push(
                async move {
                    let attempt = || receiver.receive(stopped.clone()).boxed_local();
                    keep_running(&name, attempt, alone, stopped.clone(), around).await
                }
                .boxed_local(),
            );
        }
    }
    let ended = join_all(running).await;
    if let Some(service) = service {
        service.abort();
    }
    for cluster in clusters {
        cluster.finish().await;
    }
    ended.into_iter().find(|ended| !matches!(ended, Ok(CliExitCode::Done))).unwrap_or(Ok(CliExitCode::Done))
}

/// What is to be received: what is named, or everything that is configured and can be.
fn wanted_stores<'c>(
    config: &'c Config,
    args: &ReceiveArgs,
    around: &CliContext,
) -> anyhow::Result<Vec<NamedStore<'c>>> {
    let mut stores = Vec::new();
    for name in &args.names {
        stores.push(config.find_named(Some(name))?);
    }
    if args.names.is_empty() {
        let (clusters, instances) = config.find_all_named(None)?;
        for cluster in clusters {
            // A cluster without a connection is fed by archive_command alone.
            if cluster.conninfo(&around.environment)?.is_some() {
                stores.push(NamedStore::Cluster(cluster));
            }
        }
        stores.extend(instances.into_iter().map(NamedStore::Instance));
        if stores.is_empty() {
            // It has the words for what is missing.
            stores.push(config.find_named(None)?);
        }
    }
    let mut names: Vec<&str> = stores.iter().map(NamedStore::name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find_map(|pair| if pair.first() == pair.last() { pair.first() } else { None })
    {
        return Err(CliError::usage(format!("{twice} is named twice")).into());
    }
    if args.end_lsn.is_some() && !matches!(stores.as_slice(), [NamedStore::Cluster(_)]) {
        let message = "--end-lsn is a position of one PostgreSQL cluster; name that cluster, and nothing else";
        return Err(CliError::usage(message).into());
    }
    Ok(stores)
}

/// The vault, as soon as any repository can be opened; `None` if walkeep is to stop first. Until then nothing is
/// received, and the servers keep their WAL.
async fn open_vault_patiently(
    config: &Config,
    around: &CliContext,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<Option<Arc<Vault>>> {
    let clock = &around.clock;
    let mut backoff = Backoff::new(OPEN_POLICY, clock.elapsed(), 1);
    loop {
        let error = match open::open_vault(config, around).await {
            Ok(vault) => return Ok(Some(vault)),
            Err(error) => error,
        };
        let passing = error.downcast_ref::<VaultError>().is_some_and(VaultError::may_pass);
        if !passing {
            return Err(error);
        }
        let pause = backoff.next_pause(clock.elapsed()).unwrap_or(OPEN_POLICY.longest);
        tracing::error!(error = exit::error_line(&error), ?pause, "no repository can be opened; nothing is received");
        tokio::select! {
            () = clock.sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => return Ok(None),
        }
    }
}

/// Runs a receiver until it ends well or is to stop. Beside others, one that fails is started again after a pause.
async fn keep_running<'a, A, F>(
    name: &str,
    attempt: A,
    alone: bool,
    mut stopped: watch::Receiver<bool>,
    around: &CliContext,
) -> anyhow::Result<CliExitCode>
where
    A: Fn() -> F,
    F: Future<Output = anyhow::Result<CliExitCode>> + 'a,
{
    let clock = &around.clock;
    let mut backoff = Backoff::new(RESTART_POLICY, clock.elapsed(), name.len() as u64);
    loop {
        let ended = attempt().await.with_context(|| format!("receiving {name} has ended"));
        let error = match ended {
            Err(error) if !alone && !*stopped.borrow() => error,
            ended => return ended,
        };
        let pause = backoff.next_pause(clock.elapsed()).unwrap_or(RESTART_POLICY.longest);
        tracing::error!(name, error = exit::error_line(&error), ?pause, "the receiver is started again after a pause");
        tokio::select! {
            () = clock.sleep(pause) => {}
            _ = stopped.wait_for(|stop| *stop) => return Err(error),
        }
    }
}

/// Takes files from `archive-push`. Archiving does not depend on it: without, each push archives its file itself.
fn serve_control_socket(state_dir: &Path, targets: Vec<PushTarget>) -> Option<tokio::task::JoinHandle<()>> {
    let clock = Arc::clone(targets.first()?.archive.vault().clock());
    let listener = match ControlListener::bind(state_dir) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "archive-push will do its work without this receiver");
            return None;
        }
    };
    let handler = Arc::new(PushHandler { targets });
    Some(tokio::spawn(async move { listener.serve(handler, clock).await }))
}

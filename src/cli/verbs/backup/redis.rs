//! `walkeep backup redis`, `backup all`: snapshots, taken now; `walkeep receive` of an instance: the stream behind them.
//!
//! As with `backup postgres`, only the label goes to standard output.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::postgres;
use crate::cli::CliContext;
use crate::cli::args::{BackupPostgresArgs, BackupRedisArgs, CheckpointMode};
use crate::cli::exit::{CliError, CliExitCode, FailureTally};
use crate::cli::open;
use crate::cli::output::{format_bytes, format_count};
use crate::cli::progress::ProgressDisplay;
use crate::cli::redis_list::ListedSnapshot;
use crate::config::{Config, InstanceConfig};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::snapshot::take::{SnapshotProgress as Step, SnapshotSource, take_snapshot};
use crate::redis::archive::{Archive as Archived, SnapshotManifest};
use crate::redis::format::rdb;
use crate::redis::receive as redis_receive;
use crate::redis::receive::{ReceiveEvent, ReceiveObserver, ReceiveSettings};
use crate::vault::SkippedRepositories;

/// How often a repository that was away at the start is looked for.
const REOPEN_INTERVAL: Duration = Duration::from_secs(20);

pub(in crate::cli) async fn run_backup(args: BackupRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let instance = config.instance(args.instance.as_deref())?;
    back_up_instance(&config, instance, &args, around).await?;
    Ok(CliExitCode::Done)
}

/// Everything in the order of the file. What fails does not keep the rest from being backed up; the worst code is the command's.
pub(in crate::cli) async fn backup_all(around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let clusters: Vec<_> = config.clusters.iter().filter(|cluster| cluster.connection.is_some()).collect();
    let count = clusters.len().saturating_add(config.instances.len());
    if count == 0 {
        let path = config.path.display();
        return Err(CliError::usage(match config.clusters.is_empty() {
            true => format!("nothing is configured in {path}"),
            false => format!("no cluster in {path} has a connection to take a backup over; add one"),
        })
        .into());
    }
    let mut failures = FailureTally::new(count);
    for cluster in clusters {
        let args = BackupPostgresArgs {
            cluster: Some(cluster.name.to_string()),
            checkpoint: CheckpointMode::default(),
            json: false,
        };
        let done = postgres::run(args, around).await;
        failures.record(done.with_context(|| format!("{} was not backed up", cluster.name)));
    }
    for instance in &config.instances {
        let args = BackupRedisArgs { instance: None, from_file: None, json: false };
        let done = back_up_instance(&config, instance, &args, around).await;
        failures.record(done.with_context(|| format!("{} was not backed up", instance.name)));
    }
    failures.finish(CliExitCode::Done)
}

async fn back_up_instance(
    config: &Config,
    of: &InstanceConfig,
    args: &BackupRedisArgs,
    around: &CliContext,
) -> anyhow::Result<()> {
    let instance = open::open_instance(config, of, around).await?;
    let source = of.redis_source(&around.environment, &around.clock)?;
    let input = match &args.from_file {
        Some(path) => SnapshotSource::File(path),
        None => SnapshotSource::Server(&source),
    };
    let quiet = around.quiet || args.json;
    let bar = ProgressDisplay::new("snapshot", 0, quiet);
    let mut reading = false;
    let mut tell = |step: Step| match step {
        Step::Waiting => bar.set_stage("waiting for the server's snapshot"),
        Step::Bytes(done, total) => {
            if !std::mem::replace(&mut reading, true) {
                bar.set_stage("snapshot");
            }
            bar.set_done(done, total.unwrap_or(done));
        }
        Step::Storing => bar.set_stage("storing the last parts"),
    };
    let absent = Arc::new(SkippedRepositories::default());
    let taken = take_snapshot(&instance, input, None, &absent, &mut tell).await;
    bar.finish();
    if let (Some(path), Err(SnapshotError::Rdb { source: source @ rdb::RdbError::Header { .. }, .. })) =
        (&args.from_file, &taken)
    {
        return Err(CliError::usage(format!("{}: {source}", path.display())).into());
    }
    let snapshot = taken.with_context(|| format!("cannot take a backup of {}", of.name))?;
    print_snapshot(&snapshot, args, quiet, around)?;
    match absent.errors().into_values().next() {
        None => Ok(()),
        Some(error) => Err(error).with_context(|| {
            format!("the backup of {} is not in every repository; take one again when it is there", of.name)
        }),
    }
}

fn print_snapshot(
    snapshot: &SnapshotManifest,
    args: &BackupRedisArgs,
    quiet: bool,
    around: &CliContext,
) -> anyhow::Result<()> {
    if args.json {
        return around.output.print_json(&ListedSnapshot::from_manifest(snapshot));
    }
    let (keys, bytes, stored) = (
        format_count(snapshot.walk.keys(), "key"),
        format_bytes(snapshot.logical_bytes),
        format_bytes(snapshot.stored_bytes),
    );
    let text = |took| format!("snapshot: {keys}, {bytes} in {took}, stored as {stored}");
    postgres::print_label_and_summary(&snapshot.label, (snapshot.started_at, snapshot.finished_at), text, quiet, around)
}

/// Follows an instance's stream of commands, in the foreground.
pub(in crate::cli) async fn run_receive(
    config: &Config,
    of: &InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let mut instance = open::open_instance(config, of, around).await?;
    let settings = ReceiveSettings::new(of.redis_source(&around.environment, &around.clock)?, config.state_dir.clone());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(crate::cli::receive::stop_on_signal(stop)?);
    let position = loop {
        let (again, ended) = {
            let (end, ends) = watch::channel(false);
            let mut run = pin!(redis_receive::receive_stream(&instance, &settings, &StreamEventLogger, ends));
            let mut signal = stopped.clone();
            let again = tokio::select! {
                ended = &mut run => break ended,
                _ = signal.wait_for(|stop| *stop) => None,
                opened = await_all_repositories(config, of, &instance, around) => Some(opened),
            };
            end.send_replace(true);
            (again, run.await)
        };
        match again {
            // It goes on where it was, with all of them.
            Some(opened) if ended.is_ok() && !*stopped.borrow() => instance = opened,
            _ => break ended,
        }
    };
    let position = position.with_context(|| format!("receiving {} has ended", of.name))?;
    if let Some(position) = position {
        tracing::info!(replid = %position.replid, offset = position.offset, "everything up to here is safe");
    }
    Ok(CliExitCode::Done)
}

/// Waits until all repositories can be reached, where one could not be when they were opened: nothing comes to that one until it is opened again.
/// Where all could, it waits for ever.
async fn await_all_repositories(
    config: &Config,
    of: &InstanceConfig,
    opened: &Archived,
    around: &CliContext,
) -> Archived {
    if opened.vault().unreachable().next().is_none() {
        std::future::pending::<()>().await;
    }
    loop {
        around.clock.sleep(REOPEN_INTERVAL).await;
        if let Ok(again) = open::open_instance(config, of, around).await
            && again.vault().unreachable().next().is_none()
        {
            tracing::info!("all repositories can be reached now");
            return again;
        }
    }
}

/// Logs what happens to the stream.
struct StreamEventLogger;

impl ReceiveObserver for StreamEventLogger {
    fn event(&self, event: ReceiveEvent<'_>) {
        match event {
            ReceiveEvent::Streaming { server, replid, from } => {
                tracing::info!(server, %replid, from, "following the stream")
            }
            ReceiveEvent::Renamed(before, now) => {
                tracing::info!(from = %before.replid, to = %now, offset = before.offset, "the history goes on under a new name, after a failover or a restart");
            }
            ReceiveEvent::Stored(stretch) => {
                tracing::debug!(replid = %stretch.replid, first = stretch.first, last = stretch.last, "stored");
            }
            ReceiveEvent::Acknowledged(offset) => tracing::trace!(offset, "acknowledged"),
            ReceiveEvent::Snapshot(snapshot) => {
                tracing::info!(label = snapshot.label, "a snapshot to begin with is stored")
            }
            ReceiveEvent::Gap(gap) => {
                tracing::error!(replid = %gap.replid, offset = gap.offset, reason = gap.reason, "the stream has a gap; a new snapshot is taken");
            }
        }
    }
}

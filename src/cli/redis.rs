//! `walkeep backup redis`, `backup all`: snapshots, taken now; `walkeep receive` of an instance: the stream behind them.
//!
//! As with `backup postgres`, only the label goes to standard output.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::Surroundings;
use super::args::{BackupPostgres, BackupRedis, Checkpoint};
use super::exit::{Code, Failure, Failures};
use super::output::{count, size};
use super::progress::Progress;
use super::redis_list::Backup;
use super::{backup as postgres, open};
use crate::config::{Config, Instance};
use crate::redis::archive::snapshot::error::Error as SnapshotError;
use crate::redis::archive::snapshot::take::{Input, Progress as Step, take as take_snapshot};
use crate::redis::archive::{Instance as Archived, Snapshot};
use crate::redis::format::rdb;
use crate::redis::receive as redis_receive;
use crate::redis::receive::{Event, Observer, Settings};
use crate::vault::Absent;

/// How often a repository that was away at the start is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

pub(super) async fn backup(args: BackupRedis, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let instance = config.instance(args.instance.as_deref())?;
    take(&config, instance, &args, around).await?;
    Ok(Code::Done)
}

/// Everything in the order of the file. What fails does not keep the rest from being backed up; the worst code is the command's.
pub(super) async fn backup_all(around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let clusters: Vec<_> = config.clusters.iter().filter(|cluster| cluster.connection.is_some()).collect();
    let count = clusters.len().saturating_add(config.instances.len());
    if count == 0 {
        let path = config.path.display();
        return Err(Failure::usage(match config.clusters.is_empty() {
            true => format!("nothing is configured in {path}"),
            false => format!("no cluster in {path} has a connection to take a backup over; add one"),
        })
        .into());
    }
    let mut failures = Failures::of(count);
    for cluster in clusters {
        let args =
            BackupPostgres { cluster: Some(cluster.name.to_string()), checkpoint: Checkpoint::default(), json: false };
        let done = postgres::run(args, around).await;
        failures.note(done.with_context(|| format!("{} was not backed up", cluster.name)));
    }
    for instance in &config.instances {
        let args = BackupRedis { instance: None, from_file: None, json: false };
        let done = take(&config, instance, &args, around).await;
        failures.note(done.with_context(|| format!("{} was not backed up", instance.name)));
    }
    failures.end(Code::Done)
}

async fn take(config: &Config, of: &Instance, args: &BackupRedis, around: &Surroundings) -> anyhow::Result<()> {
    let instance = open::instance(config, of, around).await?;
    let source = of.source(&around.environment, &around.clock)?;
    let input = match &args.from_file {
        Some(path) => Input::File(path),
        None => Input::Server(&source),
    };
    let quiet = around.quiet || args.json;
    let bar = Progress::begin("snapshot", 0, quiet);
    let mut reading = false;
    let mut tell = |step: Step| match step {
        Step::Waiting => bar.stage("waiting for the server's snapshot"),
        Step::Bytes(done, total) => {
            if !std::mem::replace(&mut reading, true) {
                bar.stage("snapshot");
            }
            bar.at(done, total.unwrap_or(done));
        }
        Step::Storing => bar.stage("storing the last parts"),
    };
    let absent = Arc::new(Absent::default());
    let taken = take_snapshot(&instance, input, None, &absent, &mut tell).await;
    bar.end();
    if let (Some(path), Err(SnapshotError::Rdb { source: source @ rdb::Error::Header { .. }, .. })) =
        (&args.from_file, &taken)
    {
        return Err(Failure::usage(format!("{}: {source}", path.display())).into());
    }
    let snapshot = taken.with_context(|| format!("cannot take a backup of {}", of.name))?;
    show(&snapshot, args, quiet, around)?;
    match absent.places().into_values().next() {
        None => Ok(()),
        Some(error) => Err(error).with_context(|| {
            format!("the backup of {} is not in every repository; take one again when it is there", of.name)
        }),
    }
}

fn show(snapshot: &Snapshot, args: &BackupRedis, quiet: bool, around: &Surroundings) -> anyhow::Result<()> {
    if args.json {
        return around.output.json(&Backup::of(snapshot));
    }
    let (keys, bytes, stored) =
        (count(snapshot.walk.keys(), "key"), size(snapshot.logical_bytes), size(snapshot.stored_bytes));
    let text = |took| format!("snapshot: {keys}, {bytes} in {took}, stored as {stored}");
    postgres::tell(&snapshot.label, (snapshot.started_at, snapshot.finished_at), text, quiet, around)
}

/// Follows an instance's stream of commands, in the foreground.
pub(super) async fn receive(config: &Config, of: &Instance, around: &Surroundings) -> anyhow::Result<Code> {
    let mut instance = open::instance(config, of, around).await?;
    let settings = Settings::new(of.source(&around.environment, &around.clock)?, config.state_dir.clone());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(super::receive::stop_on_signal(stop)?);
    let position = loop {
        let (again, ended) = {
            let (end, ends) = watch::channel(false);
            let mut run = pin!(redis_receive::run(&instance, &settings, &Log, ends));
            let mut signal = stopped.clone();
            let again = tokio::select! {
                ended = &mut run => break ended,
                _ = signal.wait_for(|stop| *stop) => None,
                opened = all_there(config, of, &instance, around) => Some(opened),
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
    Ok(Code::Done)
}

/// Waits until all repositories can be reached, where one could not be when they were opened: nothing comes to that one until it is opened again.
/// Where all could, it waits for ever.
async fn all_there(config: &Config, of: &Instance, opened: &Archived, around: &Surroundings) -> Archived {
    if opened.vault().unreachable().next().is_none() {
        std::future::pending::<()>().await;
    }
    loop {
        around.clock.sleep(LOOK_AGAIN).await;
        if let Ok(again) = open::instance(config, of, around).await
            && again.vault().unreachable().next().is_none()
        {
            tracing::info!("all repositories can be reached now");
            return again;
        }
    }
}

/// Logs what happens to the stream.
struct Log;

impl Observer for Log {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Streaming { server, replid, from } => tracing::info!(server, %replid, from, "following the stream"),
            Event::Renamed(before, now) => {
                tracing::info!(from = %before.replid, to = %now, offset = before.offset, "the history goes on under a new name, after a failover or a restart");
            }
            Event::Stored(stretch) => {
                tracing::debug!(replid = %stretch.replid, first = stretch.first, last = stretch.last, "stored");
            }
            Event::Acknowledged(offset) => tracing::trace!(offset, "acknowledged"),
            Event::Snapshot(snapshot) => tracing::info!(label = snapshot.label, "a snapshot to begin with is stored"),
            Event::Gap(gap) => {
                tracing::error!(replid = %gap.replid, offset = gap.offset, reason = gap.reason, "the stream has a gap; a new snapshot is taken");
            }
        }
    }
}

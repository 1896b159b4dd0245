//! `walkeep backup redis`, `backup all`: snapshots, taken now; `walkeep receive` of an instance: the stream behind them.
//!
//! As with `backup postgres`, only the label goes to standard output.

use anyhow::Context;
use tokio::sync::watch;

use super::Surroundings;
use super::args::{BackupPostgres, BackupRedis, Checkpoint};
use super::exit::{Code, Failure};
use super::output::{count, size};
use super::progress::Progress;
use super::redis_list::Backup;
use super::{backup as postgres, open};
use crate::archive::instance::Snapshot;
use crate::config::{Config, Instance};
use crate::snapshot::receive::{Event, Observer, Settings};
use crate::snapshot::{self, Input, Progress as Step};

pub(super) async fn backup(args: BackupRedis, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let instance = config.instance(args.instance.as_deref())?;
    take(&config, instance, &args, around).await?;
    Ok(Code::Done)
}

/// Everything in the order of the file. What fails does not keep the rest from being backed up; the worst code is the command's.
pub(super) async fn backup_all(around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let mut failed = None;
    let mut note = |name: &str, result: anyhow::Result<Code>| {
        if let Err(error) = result {
            let error = error.context(format!("{name} was not backed up"));
            tracing::error!(error = super::exit::explain(&error), "going on with the rest");
            failed.get_or_insert(error);
        }
    };
    for cluster in config.clusters.iter().filter(|cluster| cluster.connection.is_some()) {
        let name = cluster.name.to_string();
        let args = BackupPostgres { cluster: Some(name.clone()), checkpoint: Checkpoint::default(), json: false };
        note(&name, postgres::run(args, around).await);
    }
    for instance in &config.instances {
        let args = BackupRedis { instance: None, from_file: None, json: false };
        note(instance.name.as_str(), take(&config, instance, &args, around).await.map(|()| Code::Done));
    }
    match failed {
        Some(error) => Err(error),
        None if config.clusters.is_empty() && config.instances.is_empty() => {
            Err(Failure::usage(format!("nothing is configured in {}", config.path.display())).into())
        }
        None => Ok(Code::Done),
    }
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
    let taken = snapshot::take(&instance, input, None, &mut tell).await;
    bar.end();
    let snapshot = taken.with_context(|| format!("cannot take a backup of {}", of.name))?;
    show(&snapshot, args, quiet, around)
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
    let instance = open::instance(config, of, around).await?;
    let settings = Settings::new(of.source(&around.environment, &around.clock)?, config.state_dir.clone());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(super::receive::stop_on_signal(stop)?);
    let ended = snapshot::receive::run(&instance, &settings, &Log, stopped).await;
    let position = ended.with_context(|| format!("receiving {} has ended", of.name))?;
    if let Some(position) = position {
        tracing::info!(replid = %position.replid, offset = position.offset, "everything up to here is safe");
    }
    Ok(Code::Done)
}

/// Logs what happens to the stream.
struct Log;

impl Observer for Log {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Streaming { server, replid, from } => tracing::info!(server, %replid, from, "following the stream"),
            Event::Renamed(before, now) => {
                tracing::info!(from = %before.replid, to = %now, offset = before.offset, "the history has a new name: a failover");
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

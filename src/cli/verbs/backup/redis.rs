//! `walkeep backup redis`: a snapshot, taken now or imported from a file.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::backup::print_snapshot;
use crate::cli::show::progress::ProgressDisplay;
use crate::config::{Config, InstanceConfig};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::snapshot::take::{SnapshotProgress as Step, SnapshotSource, take_snapshot};
use crate::redis::format::rdb;
use crate::vault::SkippedRepositories;

/// Of a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::BACKUP_HELP)]
pub(in crate::cli) struct BackupRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(in crate::cli) instance: Option<String>,
    /// Import this RDB file instead of asking the server
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) from_file: Option<PathBuf>,
    /// Print one JSON document instead of the label
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: BackupRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let instance = config.instance(args.instance.as_deref())?;
    back_up_instance(&config, instance, &args, around).await?;
    Ok(CliExitCode::Done)
}

pub(in crate::cli) async fn back_up_instance(
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
    print_snapshot(&snapshot, args.json, quiet, around)?;
    match absent.errors().into_values().next() {
        None => Ok(()),
        Some(error) => Err(error).with_context(|| {
            format!(
                "the backup of {} is not in every repository; walkeep receive copies it when that one answers again, \
                 and so does walkeep repository sync",
                of.name
            )
        }),
    }
}

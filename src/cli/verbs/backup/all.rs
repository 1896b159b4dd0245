//! `walkeep backup all`: everything that is configured, in the order of the file.

use anyhow::Context;

use super::postgres::{self, BackupPostgresArgs, CheckpointMode};
use super::redis::{BackupRedisArgs, back_up_instance};
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode, FailureTally};
use crate::config::{ClusterConfig, InstanceConfig};
use crate::joint::backup::{BackupAll, NothingToBackUp};

/// What fails does not keep the rest from being backed up; the worst code is the command's.
pub(in crate::cli) async fn run(around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let all = BackupAll::new(&config.clusters, &config.instances, |cluster| cluster.connection.is_some());
    let all = all.map_err(|why| {
        let path = config.path.display();
        CliError::usage(match why {
            NothingToBackUp::Nothing => format!("nothing is configured in {path}"),
            NothingToBackUp::NoConnection => {
                format!("no cluster in {path} has a connection to take a backup over; add one")
            }
        })
    })?;
    let mut failures = FailureTally::new(all.count());
    let postgres = async |cluster: &ClusterConfig| {
        let args = BackupPostgresArgs {
            cluster: Some(cluster.name.to_string()),
            checkpoint: CheckpointMode::default(),
            json: false,
        };
        let done = postgres::run(args, around).await;
        done.map(drop).with_context(|| format!("backup of {}", cluster.name))
    };
    let redis = async |instance: &InstanceConfig| {
        let args = BackupRedisArgs { instance: None, from_file: None, json: false };
        let done = back_up_instance(&config, instance, &args, around).await;
        done.with_context(|| format!("{} was not backed up", instance.name))
    };
    all.run(postgres, redis, |error| {
        failures.record::<()>(Err(error));
    })
    .await;
    failures.finish(CliExitCode::Done)
}

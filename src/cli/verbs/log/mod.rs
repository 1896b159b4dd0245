//! `walkeep log`: what happened, one line an event, each with the target that undoes it.

mod postgres;
mod redis;
mod time_range;

use clap::{Args, Subcommand};

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::show::output::TextTone;
use crate::redis::log::DEFAULT_MIN_DELETED_KEYS;
use postgres::{LogFilterArgs, LogPostgresArgs, log_cluster};
use redis::LogRedisArgs;

/// Show what happened, with the target that restores to just before it
#[derive(Args, Debug)]
#[command(after_help = help::LOG_HELP, args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct LogArgs {
    #[command(subcommand)]
    pub(in crate::cli) of: Option<LogCommand>,
    #[command(flatten)]
    pub(in crate::cli) log: LogFilterArgs,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum LogCommand {
    Postgres(LogPostgresArgs),
    Redis(LogRedisArgs),
}

pub(in crate::cli) async fn run(args: LogArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let (name, args) = match args.of {
        Some(LogCommand::Redis(of)) => return redis::run(of, false, around).await,
        Some(LogCommand::Postgres(of)) => (of.cluster, of.log),
        None => return log_all_stores(&args.log, around).await,
    };
    let config = around.read_config()?;
    log_cluster(&config, config.cluster(name.as_deref())?, (&args, false), around).await
}

/// What happened in everything that is configured, one after the other, like `walkeep list`.
async fn log_all_stores(args: &LogFilterArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (clusters, mut instances) = config.find_all_named(None)?;
    // These ask for what only PostgreSQL has.
    if !args.events.is_empty() || args.relation.is_some() || args.timeline.is_some() {
        if !instances.is_empty() {
            tracing::warn!("Redis is not asked with --event, --relation or --timeline; see walkeep log redis");
        }
        instances.clear();
        config.cluster(clusters.first().map(|cluster| cluster.name.as_str())).map_err(|_none| {
            CliError::usage(
                "--event, --relation and --timeline of walkeep log are about PostgreSQL; see walkeep log redis --help",
            )
        })?;
    }
    let several = clusters.len().saturating_add(instances.len()) > 1;
    if clusters.is_empty() && instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    let title = |nth: usize, name: &str| match (several && !args.json, nth) {
        (false, _) => Ok(()),
        (true, 0) => around.output.print_line(around.output.style(TextTone::Strong, name)),
        (true, _) => around.output.print_line(format!("\n{}", around.output.style(TextTone::Strong, name))),
    };
    let mut told = Vec::new();
    for (nth, cluster) in clusters.iter().enumerate() {
        title(nth, cluster.name.as_str())?;
        told.push(report_log_result(
            log_cluster(&config, cluster, (args, several), around).await,
            (several, args.json),
            around,
        )?);
    }
    for (nth, instance) in instances.iter().enumerate() {
        title(nth.saturating_add(clusters.len()), instance.name.as_str())?;
        let of = LogRedisArgs {
            instance: Some(instance.name.to_string()),
            span: args.span.clone(),
            events: Vec::new(),
            keys: DEFAULT_MIN_DELETED_KEYS,
            json: args.json,
        };
        told.push(report_log_result(redis::run(of, several, around).await, (several, args.json), around)?);
    }
    Ok(if told.contains(&CliExitCode::Done) { CliExitCode::Done } else { CliExitCode::NotFound })
}

/// That nothing is archived of one of several is said where its events would stand, and the others are told.
fn report_log_result(
    told: anyhow::Result<CliExitCode>,
    (several, json): (bool, bool),
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    match told {
        Err(error) if several && exit::exit_code(&error) == CliExitCode::NotFound => {
            if json {
                tracing::warn!(error = exit::error_line(&error), "nothing to tell");
                return Ok(CliExitCode::NotFound);
            }
            around.output.print_line(around.output.style(TextTone::Quiet, exit::error_line(&error)))?;
            Ok(CliExitCode::NotFound)
        }
        told => told,
    }
}

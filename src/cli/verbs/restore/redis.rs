//! `walkeep restore redis`: resolves the target, proves it, writes what a server starts from, and checks that one does.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::server::program_search_path;
use crate::base::restore_estimate::RestoreEstimator;
use crate::cli::args::help;
use crate::cli::args::target::{RedisServerArgs, RedisTargetArgs, read_redis_target};
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::show::plan::redis::{RedisPlanJson, print_plan};
use crate::cli::show::progress::ProgressDisplay;
use crate::cli::show::restore::redis::{RedisRestoreJson, print_next_command, print_placed};
use crate::cli::show::shell;
use crate::redis::archive::{Archive, RestoreRoute};
use crate::redis::restore::checked_restore::FinishedRedisRestore;
use crate::redis::restore::destination::{RedisDestination, RedisDestinationRequest, check_destination};
use crate::redis::restore::plan::plan_restore;

/// A Redis or Valkey instance: write what a stock server starts from
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_REDIS_HELP)]
pub(in crate::cli) struct RestoreRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(in crate::cli) instance: Option<String>,
    /// The empty or new folder to restore into, which becomes the server's dir
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) dir: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) target: RedisTargetArgs,
    /// Start a server on it that nobody can reach, wait until it has loaded, compare its keys, and end it
    #[arg(long)]
    pub(in crate::cli) start: bool,
    #[command(flatten)]
    pub(in crate::cli) server: RedisServerArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: RestoreRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let target = read_redis_target(&args.target, around)?;
    let reached = plan_restore(&instance, &target.request).await?;
    let pace = RestoreEstimator::load(&config.state_dir, of.name.as_str());
    let plan = RedisPlanJson::from_route(&reached, &pace);
    if !args.json {
        let prefix = shell::shell_command_prefix(&config, around);
        print_plan(&reached, &pace, (&prefix, of.name.as_str()), None, &around.output)?;
    }
    let Ok(route) = reached else {
        if args.json {
            around.output.print_json(&RedisRestoreJson::new(&plan, None))?;
        }
        return Ok(CliExitCode::Unreachable);
    };
    let destination = find_destination((args.dir.clone(), &args.server), args.start, &route, around).await?;
    let done = restore_and_check(&instance, &route, &destination, (args.start, args.json), around).await?;
    if let Some(measured) = done.measured {
        RestoreEstimator::record(&config.state_dir, instance.name().as_str(), measured);
    }
    if args.json {
        around.output.print_json(&RedisRestoreJson::new(&plan, Some(&done)))?;
    } else {
        print_next_command(&done, destination.version, &around.output)?;
    }
    Ok(CliExitCode::Done)
}

/// Checks the folder, and finds the server that the files are for.
pub(in crate::cli) async fn find_destination(
    (dir, server): (PathBuf, &RedisServerArgs),
    start: bool,
    route: &RestoreRoute,
    around: &CliContext,
) -> anyhow::Result<RedisDestination> {
    let request = RedisDestinationRequest {
        dir,
        program: server.redis_server.clone(),
        conf: server.redis_conf.clone(),
        search: program_search_path(around),
        start,
    };
    Ok(check_destination(&request, route).await?)
}

/// Places the files, prints that it did, and starts a server on them if that is wanted.
pub(in crate::cli) async fn restore_and_check(
    instance: &Archive,
    route: &RestoreRoute,
    destination: &RedisDestination,
    (start, json): (bool, bool),
    around: &CliContext,
) -> anyhow::Result<FinishedRedisRestore> {
    let bar = ProgressDisplay::new("restore", 0, around.quiet || json);
    let placed = destination.place(instance, route, &mut |done, total| bar.set_done(done, total)).await;
    bar.finish();
    let placed = placed.with_context(|| format!("cannot restore into {}", destination.dir.display()))?;
    if !json {
        print_placed(&placed, &destination.dir, &around.output)?;
    }
    let done = destination.finish(route, placed, start, &around.clock).await;
    done.context("the files are restored, but a server does not come up on them as it should")
}

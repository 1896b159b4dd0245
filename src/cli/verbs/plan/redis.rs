//! `walkeep plan redis`.

use clap::Args;

use crate::base::restore_estimate::RestoreEstimator;
use crate::cli::args::help;
use crate::cli::args::target::{RedisTargetArgs, parse_redis_request};
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::show::plan::redis::RedisPlanJson;
use crate::cli::show::shell;
use crate::redis::archive::{Archive, RestoreRoute, UnreachableState};
use crate::redis::restore::plan::plan_restore;

/// For a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::PLAN_REDIS_HELP)]
pub(in crate::cli) struct PlanRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(in crate::cli) instance: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) target: RedisTargetArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(mut args: PlanRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    args.target.target_time = args.target.target_time.map(|time| around.absolute_time(&time));
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let pace = RestoreEstimator::load(&config.state_dir, of.name.as_str());
    let plan = RedisPlanJson::from_route(&plan_instance(&instance, &args.target, around).await?, &pace);
    if args.json {
        around.output.print_json(&plan)?;
    } else {
        plan.print_plan(
            (&shell::shell_command_prefix(&config, around), of.name.as_str()),
            Some(&args.target),
            &around.output,
        )?;
    }
    Ok(if plan.reachable { CliExitCode::Done } else { CliExitCode::Unreachable })
}

/// Plans what the options ask for.
pub(in crate::cli) async fn plan_instance(
    instance: &Archive,
    args: &RedisTargetArgs,
    around: &CliContext,
) -> anyhow::Result<Result<RestoreRoute, UnreachableState>> {
    let request = parse_redis_request(args, around)?;
    Ok(plan_restore(instance, &request).await?)
}

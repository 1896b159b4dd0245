//! `walkeep plan redis`.

use clap::Args;

use crate::base::restore_estimate::RestoreEstimator;
use crate::cli::args::help;
use crate::cli::args::target::{RedisTargetArgs, read_redis_target};
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::show::plan::redis::{RedisPlanJson, print_plan};
use crate::cli::show::shell;
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

pub(in crate::cli) async fn run(args: PlanRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let pace = RestoreEstimator::load(&config.state_dir, of.name.as_str());
    let target = read_redis_target(&args.target, around)?;
    let reached = plan_restore(&instance, &target.request).await?;
    if args.json {
        around.output.print_json(&RedisPlanJson::from_route(&reached, &pace))?;
    } else {
        let prefix = shell::shell_command_prefix(&config, around);
        print_plan(&reached, &pace, (&prefix, of.name.as_str()), Some(&target.options), &around.output)?;
    }
    Ok(if reached.is_ok() { CliExitCode::Done } else { CliExitCode::Unreachable })
}

//! `walkeep plan all`: a PostgreSQL cluster and a Redis instance to one moment.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::postgres::open_planner;
use crate::base::restore_estimate::RestoreEstimator;
use crate::cli::args::help;
use crate::cli::args::role::{RequestedRole, SuccessorArgs};
use crate::cli::args::target::calendar_time;
use crate::cli::args::time::WrittenMoment;
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::show::output::{TerminalOutput, TextTone};
use crate::cli::show::plan::all::{JointRestoreJson, print_plan};
use crate::cli::show::shell;
use crate::config::{ClusterConfig, Config, InstanceConfig};
use crate::joint::plan::{JointPlan, JointRequest};

/// PostgreSQL and Redis to one moment: would both reach it, and how near to each other; touches nothing
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_ALL_HELP)]
pub(in crate::cli) struct PlanAllArgs {
    #[command(flatten)]
    pub(in crate::cli) which: JointTargetArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    pub(in crate::cli) successor: SuccessorArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct JointTargetArgs {
    /// The moment: RFC 3339, PostgreSQL's spelling with a zone, "now", or "5 minutes ago"
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) target_time: String,
    /// Take the newest moment before that both can reach if one of them cannot reach it
    #[arg(long)]
    pub(in crate::cli) nearest: bool,
    /// The PostgreSQL cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// The Redis instance [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) instance: Option<String>,
}

pub(in crate::cli) async fn run(args: PlanAllArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let moment = around.read_moment("--target-time", &args.which.target_time)?;
    let plan = make_joint_plan(&config, (&args.which, &moment), None, around).await?;
    let role = RequestedRole::successor(&args.successor);
    if args.json {
        let estimator = RestoreEstimator::load(&config.state_dir, plan.instance_name());
        around.output.print_json(&JointRestoreJson::new(&plan, &estimator, &role))?;
    } else {
        print_plan(&plan, &role, &around.output)?;
        print_next_command(
            &plan,
            (&args.which, &moment, &role),
            &shell::shell_command_prefix(&config, around),
            &around.output,
        )?;
    }
    Ok(if plan.restores().is_some() { CliExitCode::Done } else { CliExitCode::Unreachable })
}

/// Plans both stores. With `pgdata`, also checks that the cluster fits there.
pub(in crate::cli) async fn make_joint_plan(
    config: &Config,
    (which, moment): (&JointTargetArgs, &WrittenMoment),
    pgdata: Option<PathBuf>,
    around: &CliContext,
) -> anyhow::Result<JointPlan> {
    let (cluster, of) = named_stores(config, which)?;
    let moment = calendar_time(moment)?;
    let instance = open::open_instance(config, of, around).await?;
    open::ensure_archived(config, &instance).await?;
    let planner = open_planner(config, cluster, around).await?;
    let request = JointRequest { moment, nearest: which.nearest, pgdata };
    Ok(JointPlan::make(planner, instance, &request).await?)
}

/// The two that are meant; which option names them is said where that is unclear.
fn named_stores<'c>(
    config: &'c Config,
    which: &JointTargetArgs,
) -> anyhow::Result<(&'c ClusterConfig, &'c InstanceConfig)> {
    let cluster = config.cluster(which.cluster.as_deref()).context("which one is meant is said with --cluster")?;
    let of = config.instance(which.instance.as_deref()).context("which one is meant is said with --instance")?;
    Ok((cluster, of))
}

/// How to carry out what was only asked for.
fn print_next_command(
    plan: &JointPlan,
    (which, moment, role): (&JointTargetArgs, &WrittenMoment, &RequestedRole),
    program: &str,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    if plan.restores().is_none() {
        return Ok(());
    }
    let pairs = [("--cluster", &which.cluster), ("--instance", &which.instance)];
    let mut words = vec![format!("{program} restore all --pgdata DIR --redis-dir DIR")];
    let named = pairs.iter().filter_map(|(option, value)| Some(format!("{option} {}", value.as_ref()?)));
    words.extend(named);
    words.push(format!("--target-time {}", shell::quote_for_shell(&moment.lasting)));
    words.extend(which.nearest.then(|| "--nearest".to_owned()));
    words.extend(Some(role.options.clone()).filter(|options| !options.is_empty()));
    out.print_line("\nTo do it:")?;
    out.print_line(format!("  {} --start", out.style(TextTone::Strong, words.join(" "))))
}

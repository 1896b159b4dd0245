//! `walkeep restore all`: a PostgreSQL cluster and a Redis instance to one moment.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::postgres::{RestorePlaces, build_options, place_files};
use super::redis::{find_destination, restore_and_check};
use super::server::{configured_server, start_server};
use crate::base::restore_estimate::{MeasuredRestore, RestoreEstimator};
use crate::cli::args::help;
use crate::cli::args::role::{RequestedRole, SuccessorArgs};
use crate::cli::args::target::{PostgresServerArgs, RedisServerArgs, TargetActionArg, target_action};
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::show::plan::all::{JointRestoreJson, print_plan, print_skew};
use crate::cli::show::restore::{postgres, redis};
use crate::cli::verbs::plan::all::{JointTargetArgs, make_joint_plan};
use crate::config::Config;
use crate::joint::plan::JointPlan;
use crate::joint::restore::{JointFailure, check_destinations, check_free_space, restore_in_order};
use crate::postgres::restore::plan::ProvedRestore;
use crate::postgres::restore::server_start::ReachedTarget;
use crate::postgres::restore::{RestoreOptions, RestoredCluster, backup_major_version};

/// PostgreSQL and Redis to one moment
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_ALL_HELP)]
pub(in crate::cli) struct RestoreAllArgs {
    /// The empty or new folder for PostgreSQL
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) pgdata: PathBuf,
    /// The empty or new folder for Redis, which becomes the server's dir
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) redis_dir: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) which: JointTargetArgs,
    /// What PostgreSQL does at the moment
    #[arg(long, value_enum, default_value_t, value_name = "ACTION")]
    pub(in crate::cli) target_action: TargetActionArg,
    /// Put the tablespace that was in OLD into NEW; once for each
    #[arg(long = "tablespace-mapping", value_name = "OLD=NEW")]
    pub(in crate::cli) tablespaces: Vec<String>,
    /// Put PostgreSQL's pg_wal into DIR, an empty or new folder, and make it a link
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) waldir: Option<PathBuf>,
    /// Start PostgreSQL and wait until it is there; start a Redis on its files that nobody can reach, compare, and end
    /// it
    #[arg(long)]
    pub(in crate::cli) start: bool,
    #[command(flatten)]
    pub(in crate::cli) server: PostgresServerArgs,
    #[command(flatten)]
    pub(in crate::cli) redis_server: RedisServerArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    pub(in crate::cli) successor: SuccessorArgs,
}

pub(in crate::cli) async fn run(args: RestoreAllArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let whole = |path: &Path| std::path::absolute(path).context("cannot tell where the files go");
    let (pgdata, redis_dir) = (whole(&args.pgdata)?, whole(&args.redis_dir)?);
    check_destinations(&pgdata, &redis_dir)?;
    let moment = around.read_moment("--target-time", &args.which.target_time)?;
    let plan = make_joint_plan(&config, (&args.which, &moment), Some(pgdata.clone()), around).await?;
    let estimator = RestoreEstimator::load(&config.state_dir, plan.instance_name());
    let role = RequestedRole::successor(&args.successor);
    if !args.json {
        print_plan(&plan, &role, &around.output)?;
    }
    let Some(restores) = plan.restores() else {
        if args.json {
            around.output.print_json(&JointRestoreJson::new(&plan, &estimator, &role))?;
        }
        return Ok(CliExitCode::Unreachable);
    };
    if args.start {
        let archive = plan.planner.archive();
        let major = backup_major_version(archive, &restores.postgres.backup).await?;
        configured_server(&pgdata, &args.server, None, around).check(major)?;
    }
    let action = target_action(args.target_action);
    let places = RestorePlaces { pgdata: &pgdata, waldir: args.waldir.as_deref(), tablespaces: &args.tablespaces };
    let options = build_options(&places, action, &role, &config, plan.cluster_name())?;
    let redis_folder = (redis_dir.clone(), &args.redis_server);
    let route = restores.redis;
    let destination = find_destination(redis_folder, args.start, route, around).await?;
    check_free_space(&plan, restores, &pgdata, &redis_dir)?;
    let restored = restore_in_order(
        async || restore_postgres(&config, (&plan, restores.postgres), (&args, &options), around).await,
        async || restore_and_check(&plan.instance, route, &destination, (args.start, args.json), around).await,
    );
    let ((restored, reached), done) = restored.await.map_err(|failure| match failure {
        JointFailure::Postgres(error) => error,
        JointFailure::Redis(error) => {
            let (main, cache) = (plan.cluster_name(), plan.instance_name());
            error.context(format!("{main} is restored into {}, {cache} is not", pgdata.display()))
        }
    })?;
    if let Some(measured) = done.measured {
        RestoreEstimator::record(&config.state_dir, plan.instance_name(), measured);
    }
    if args.json {
        let report = JointRestoreJson::new(&plan, &estimator, &role).with_restored(&restored, reached.as_ref(), &done);
        around.output.print_json(&report)?;
        return Ok(CliExitCode::Done);
    }
    redis::print_next_command(&done, destination.version, &around.output)?;
    around.output.print_line("")?;
    print_skew(&plan, &around.output)?;
    Ok(CliExitCode::Done)
}

/// Places PostgreSQL's files, and starts its server if that is wanted.
async fn restore_postgres(
    config: &Config,
    (plan, proved): (&JointPlan, &ProvedRestore),
    (args, options): (&RestoreAllArgs, &RestoreOptions),
    around: &CliContext,
) -> anyhow::Result<(RestoredCluster, Option<ReachedTarget>)> {
    let began = around.clock.elapsed();
    let restored = place_files(plan.planner.archive(), proved, options, false, around).await?;
    let took = around.clock.elapsed().saturating_sub(began);
    if !args.json {
        postgres::print_placed(&restored, false, took, &around.output)?;
        postgres::print_role(&restored, &around.output)?;
    }
    if !args.start {
        if !args.json {
            postgres::print_next_command(&restored, options.action, &around.output)?;
        }
        return Ok((restored, None));
    }
    let config_file = restored.config_file.clone();
    let server = configured_server(&options.destination.pgdata, &args.server, config_file, around);
    let reached = start_server(&server, proved, options.action, args.json, around).await;
    let reached = reached.with_context(|| format!("{} is not restored", plan.instance_name()))?;
    let (work, replay_seconds) = (proved.work, reached.seconds);
    let measured = MeasuredRestore { work, file_seconds: took.as_secs_f64(), replay_seconds };
    RestoreEstimator::record(&config.state_dir, plan.cluster_name(), measured);
    if !args.json {
        postgres::print_reached(&reached, &around.output)?;
    }
    Ok((restored, Some(reached)))
}

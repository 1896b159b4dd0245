//! `walkeep plan postgres`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use crate::cli::args::help;
use crate::cli::args::role::{RequestedRole, StandbyArgs, SuccessorArgs};
use crate::cli::args::target::{PostgresTargetArgs, read_postgres_target};
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::output::{TextTone, format_count};
use crate::cli::show::plan::postgres::{PostgresPlanJson, print_server_plan};
use crate::cli::show::shell;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::Archive;
use crate::postgres::archive::spool::Spool;
use crate::postgres::restore::delta;
use crate::postgres::restore::plan::RestorePlan;
use crate::postgres::restore::planner::RestorePlanner;
use crate::postgres::restore::target::RestoreRequest;

/// For a PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::PLAN_HELP)]
pub(in crate::cli) struct PlanPostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(in crate::cli) cluster: Option<String>,
    /// Where it would be restored to: also proves that there is room
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) pgdata: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
    #[command(flatten)]
    pub(in crate::cli) target: PostgresTargetArgs,
    #[command(flatten)]
    pub(in crate::cli) successor: SuccessorArgs,
    #[command(flatten)]
    pub(in crate::cli) standby: StandbyArgs,
}

pub(in crate::cli) async fn run(args: PlanPostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    let target = read_postgres_target(&args.target, around)?;
    let role = RequestedRole::read(&args.successor, &args.standby, &args.target)?;
    let (planner, mut plan) = make_plan(&config, cluster, &target.request, around).await?;
    if let Some(pgdata) = &args.pgdata {
        let pgdata = std::path::absolute(pgdata).context("cannot tell where the data directory goes")?;
        plan = planner.check_destination(plan, &pgdata).await?;
    }
    if args.json {
        around.output.print_json(&PostgresPlanJson::new(&plan, &role))?;
    } else {
        print_server_plan(
            &plan,
            &target,
            &role,
            (&shell::shell_command_prefix(&config, around), true),
            &around.output,
        )?;
        if let Some(pgdata) = &args.pgdata {
            let lines = lost_wal_warning(&config, planner.archive(), pgdata, around).await?;
            lines.iter().try_for_each(|line| around.output.print_line(line))?;
        }
    }
    Ok(if plan.is_reachable() { CliExitCode::Done } else { CliExitCode::Unreachable })
}

/// Opens what a restore of the cluster is planned from. Suggests other names if nothing of the cluster is archived.
pub(in crate::cli) async fn open_planner(
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<RestorePlanner> {
    let archive = Arc::new(open::open_archive(config, cluster, around).await?);
    let identity = archive.identity().await?;
    if identity.is_none()
        && let Some(asked) = open::suggest_other_names(open::StoreKind::Cluster, config, archive.vault()).await
    {
        let message = format!("nothing of {} is archived; {asked}", cluster.name);
        return Err(CliError { code: CliExitCode::NotFound, message }.into());
    }
    let planner = RestorePlanner::open(archive, identity, &open::index_dir(config), &config.state_dir).await;
    planner.context("cannot open the index")
}

/// Plans a request.
pub(in crate::cli) async fn make_plan(
    config: &Config,
    cluster: &ClusterConfig,
    request: &RestoreRequest,
    around: &CliContext,
) -> anyhow::Result<(RestorePlanner, RestorePlan)> {
    let planner = open_planner(config, cluster, around).await?;
    let plan = planner.plan(request.clone()).await;
    let plan = plan.with_context(|| format!("cannot plan a restore of {}", cluster.name))?;
    Ok((planner, plan))
}

/// What is said, before anything is touched, of the log in a data directory that a restore over it removes and nobody
/// else has.
pub(in crate::cli) async fn lost_wal_warning(
    config: &Config,
    archive: &Archive,
    pgdata: &Path,
    around: &CliContext,
) -> anyhow::Result<Vec<String>> {
    let spool = Spool::existing(&config.state_dir, archive);
    let segments = delta::wal_only_in_pgdata(archive, spool.as_ref(), pgdata).await;
    let segments = segments.context("cannot tell whether all WAL in the data directory is archived")?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(Vec::new()) };
    let which = if first == last { first.to_string() } else { format!("{first} to {last}") };
    let what =
        format!("--delta removes {} of WAL that no repository has", format_count(segments.len() as u64, "segment"));
    let log = pgdata.join("pg_wal");
    Ok(vec![
        around.output.style(TextTone::Bad, what),
        format!("  {which} in {}", log.display()),
        "  copy it elsewhere first if what was committed last is wanted".to_owned(),
    ])
}

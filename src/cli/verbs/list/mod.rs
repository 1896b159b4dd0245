//! `walkeep list`: what is archived, and to which moments it can be restored.

mod redis;

use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::cli::open::StoreKind;
use crate::cli::show::list::ListJson;
use crate::cli::show::list::{postgres as show_postgres, redis as show_redis};
use crate::cli::show::output::TextTone;
use crate::config::Config;
use crate::postgres::archive::coverage::{self, CoverageScope};
use crate::postgres::archive::reindex;
use crate::postgres::archive::spool::Spool;
use crate::vault::Vault;

/// Show backups, restorable windows, timelines and gaps
#[derive(Args, Debug)]
#[command(after_help = help::LIST_HELP, args_conflicts_with_subcommands = true)]
pub(in crate::cli) struct ListArgs {
    #[command(subcommand)]
    pub(in crate::cli) of: Option<ListCommand>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum ListCommand {
    Postgres(ListPostgresArgs),
    Redis(ListRedisArgs),
}

/// Of Redis instances
#[derive(Args, Debug)]
#[command(after_help = help::LIST_HELP)]
pub(in crate::cli) struct ListRedisArgs {
    /// One instance [default: all]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) instance: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Of PostgreSQL clusters
#[derive(Args, Debug)]
#[command(after_help = help::LIST_HELP)]
pub(in crate::cli) struct ListPostgresArgs {
    /// One cluster [default: all]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: ListArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let all = || (config.clusters.iter().collect(), config.instances.iter().collect());
    let (clusters, instances, json): (Vec<_>, Vec<_>, bool) = match &args.of {
        None => (all().0, all().1, args.json),
        Some(ListCommand::Postgres(of)) => match &of.cluster {
            Some(name) => (vec![config.cluster(Some(name))?], Vec::new(), of.json || args.json),
            None => (all().0, Vec::new(), of.json || args.json),
        },
        Some(ListCommand::Redis(of)) => match &of.instance {
            Some(name) => (Vec::new(), vec![config.instance(Some(name))?], of.json || args.json),
            None => (Vec::new(), all().1, of.json || args.json),
        },
    };
    let mut overviews = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
        let (index, _) = reindex::open_index_or_scratch(&archive, &open::index_dir(&config))
            .await
            .context("cannot open the index")?;
        let spool = Spool::existing(&config.state_dir, &archive);
        let overview = coverage::gather_coverage(&archive, &index, spool, CoverageScope::All).await;
        overviews.push(overview.with_context(|| format!("cannot list what is archived of {}", cluster.name))?);
    }
    let mut instance_overviews = Vec::new();
    for instance in &instances {
        instance_overviews.push(redis::read_inventory(&config, instance, around).await?);
    }
    if json {
        around.output.print_json(&ListJson { clusters: &overviews, instances: &instance_overviews })?;
        return Ok(CliExitCode::Done);
    }
    if overviews.is_empty() && instance_overviews.is_empty() {
        around.output.print_line(format!("nothing is configured in {}", config.path.display()))?;
    }
    for (nth, overview) in overviews.iter().enumerate() {
        if nth > 0 {
            around.output.print_line("")?;
        }
        show_postgres::print_inventory(overview, &around.output)?;
        if overview.together.system_id.is_none() {
            let cluster = config.cluster(Some(&overview.together.cluster))?;
            print_other_names(
                &config,
                open::open_archive(&config, cluster, around).await?.vault(),
                StoreKind::Cluster,
                around,
            )
            .await?;
        }
    }
    for (nth, (overview, instance)) in instance_overviews.iter().zip(instances).enumerate() {
        if nth > 0 || !overviews.is_empty() {
            around.output.print_line("")?;
        }
        show_redis::print_inventory(overview, &around.output)?;
        if overview.is_empty() {
            let instance = open::open_instance(&config, instance, around).await?;
            print_other_names(&config, instance.vault(), StoreKind::Instance, around).await?;
        }
    }
    Ok(CliExitCode::Done)
}

/// What is archived under another name.
async fn print_other_names(config: &Config, vault: &Vault, what: StoreKind, around: &CliContext) -> anyhow::Result<()> {
    let asked = open::suggest_other_names(what, config, vault).await;
    asked.map_or(Ok(()), |asked| around.output.print_line(around.output.style(TextTone::Warning, format!("  {asked}"))))
}

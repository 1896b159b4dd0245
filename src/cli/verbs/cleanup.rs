//! `walkeep cleanup`: retention of clusters and instances.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use clap::Args;
use jiff::SignedDuration;

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode, FailureTally};
use crate::cli::open;
use crate::cli::show::cleanup::{
    CleanupJson, ClusterCleanupJson, InstanceCleanupJson, instance_sweep, print_cluster, print_report,
};
use crate::cli::show::progress::ProgressDisplay;
use crate::config::{self, Config};
use crate::postgres::archive::reindex;
use crate::postgres::retention::{self, ClusterCleanup};
use crate::redis;
use crate::vault::retention::{CleanupReport, RetentionOptions};

/// Apply retention: take away what no moment of the last days needs
#[derive(Args, Debug)]
#[command(after_help = help::CLEANUP_HELP)]
pub(in crate::cli) struct CleanupArgs {
    /// Keep every moment of so many days restorable [default: each repository's retention]
    #[arg(value_name = "DAYS", value_parser = parse_days)]
    pub(in crate::cli) days: Option<u32>,
    /// Only say what would go, and why
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// One cluster or Redis instance [default: all that are configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// Hours for which data and WAL outlive the last backup that used them
    #[arg(long, value_name = "HOURS", default_value_t = 48)]
    pub(in crate::cli) grace: u32,
    /// Go on although a store's clock shows another time than this machine's, because this machine's is right
    #[arg(long)]
    pub(in crate::cli) trust_this_clock: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// `30`, or `30d` as a retention is written in the configuration.
fn parse_days(text: &str) -> Result<u32, &'static str> {
    let number = text.strip_suffix('d').unwrap_or(text).parse().ok();
    number.filter(|days| (1..=36_500).contains(days)).ok_or("write a number of days, like 30")
}

/// What is said when a repository stands in the way.
const RERUN_ADVICE: &str = "what was removed so far does no harm; run it again";

pub(in crate::cli) async fn run(args: CleanupArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (clusters, instances) = config.find_all_named(args.cluster.as_deref())?;
    if clusters.is_empty() && instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    let wish = build_request(&args, &config)?;
    let (mut reports, mut of_instances) = (Vec::new(), Vec::new());
    let mut failures = FailureTally::new(clusters.len().saturating_add(instances.len()));
    for cluster in clusters {
        let report = failures.record(clean_up_cluster(&config, cluster, &wish, around).await);
        reports.extend(report.map(|report| (cluster.name.as_str(), report)));
    }
    for instance in instances {
        let report = failures.record(clean_up_instance(&config, instance, &wish, around).await);
        of_instances.extend(report.map(|report| (instance.name.as_str(), report)));
    }
    if args.json {
        let clusters = reports.iter().map(|(cluster, report)| ClusterCleanupJson { cluster, report }).collect();
        let instances =
            of_instances.iter().map(|(instance, report)| InstanceCleanupJson { instance, report }).collect();
        around.output.print_json(&CleanupJson { clusters, instances })?;
    } else {
        reports.iter().try_for_each(|(name, report)| print_report(name, report, print_cluster, &around.output))?;
        of_instances
            .iter()
            .try_for_each(|(name, report)| print_report(name, report, instance_sweep, &around.output))?;
    }
    let unreachable = reports.iter().map(|(_, report)| &report.unreachable);
    let all = unreachable.chain(of_instances.iter().map(|(_, report)| &report.unreachable)).all(Vec::is_empty);
    failures.finish(if all { CliExitCode::Done } else { CliExitCode::Unavailable })
}

async fn clean_up_cluster(
    config: &Config,
    cluster: &config::ClusterConfig,
    wish: &RetentionOptions,
    around: &CliContext,
) -> anyhow::Result<CleanupReport<ClusterCleanup>> {
    let archive = Arc::new(open::open_archive(config, cluster, around).await?);
    let (index, _) =
        reindex::open_index_or_scratch(&archive, &open::index_dir(config)).await.context("cannot open the index")?;
    let (progress, removed) = (ProgressDisplay::new("cleanup", 0, around.quiet), AtomicU64::new(0));
    let tell = |bytes: u64| progress.set_done(removed.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes), 0);
    let report = retention::clean_up(&archive, &index, wish, &tell).await;
    progress.finish();
    report.with_context(|| format!("the cleanup of {} did not come to its end ({RERUN_ADVICE})", cluster.name))
}

async fn clean_up_instance(
    config: &Config,
    of: &config::InstanceConfig,
    wish: &RetentionOptions,
    around: &CliContext,
) -> anyhow::Result<CleanupReport<redis::retention::InstanceCleanup>> {
    let archived = open::open_instance(config, of, around).await?;
    let (progress, removed) = (ProgressDisplay::new("cleanup", 0, around.quiet), AtomicU64::new(0));
    let tell = |bytes: u64| progress.set_done(removed.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes), 0);
    let report = redis::retention::clean_up_instance(&archived, wish, &tell).await;
    progress.finish();
    report.with_context(|| format!("the cleanup of {} did not come to its end ({RERUN_ADVICE})", of.name))
}

fn build_request(args: &CleanupArgs, config: &Config) -> Result<RetentionOptions, CliError> {
    let days = args.days.map(|days| SignedDuration::from_hours(i64::from(days).saturating_mul(24)));
    let of =
        |repository: &crate::config::RepositoryConfig| Some((repository.name.clone(), days.or(repository.retention)?));
    let retention: BTreeMap<String, SignedDuration> = config.repositories.iter().filter_map(of).collect();
    if retention.is_empty() {
        let first = config.repositories.first().map_or("local", |repository| repository.name.as_str());
        return Err(CliError::usage(format!(
            "no repository has a retention, so everything is kept; give a number of days, or set retention = \"30d\" \
             in [repository.{first}]"
        )));
    }
    let minimum = config.repositories.iter().map(|one| (one.name.clone(), one.minimum_backups));
    Ok(RetentionOptions {
        retention,
        minimum: minimum.collect(),
        dry_run: args.dry_run,
        grace: SignedDuration::from_hours(i64::from(args.grace)),
        trust_clock: args.trust_this_clock,
    })
}

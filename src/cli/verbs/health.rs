//! `walkeep health`: how protected every cluster and every instance is now.

use std::sync::Arc;

use jiff::Timestamp;

use crate::base::findings::{Finding, FindingLevel};
use crate::cli::CliContext;
use crate::cli::args::HealthArgs as Args;
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::output::{TerminalOutput, TextTone, text_width, wrap_text};
use crate::config::{self, Config};
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::time::PgTime;
use crate::{postgres, redis};

/// What `--json` prints.
#[derive(serde::Serialize)]
struct HealthJson<'d> {
    healthy: bool,
    clusters: &'d [postgres::health::HealthReport],
    instances: &'d [redis::health::HealthReport],
}

pub(in crate::cli) async fn run(args: Args, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (of_clusters, of_instances) = config.find_all_named(args.name.as_deref())?;
    if of_clusters.is_empty() && of_instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    // What cannot be looked at is not healthy, and keeps nothing else from being told.
    let why = |error: anyhow::Error| exit::error_line(&error);
    let (mut clusters, mut instances) = (Vec::new(), Vec::new());
    for of in of_clusters {
        let looked = cluster_health(&config, of, around).await;
        clusters.push(
            looked.unwrap_or_else(|error| postgres::health::HealthReport::unreachable(of.name.as_str(), why(error))),
        );
    }
    for of in of_instances {
        let looked = instance_health(&config, of, around).await;
        instances
            .push(looked.unwrap_or_else(|error| redis::health::HealthReport::unknown(of.name.as_str(), why(error))));
    }
    let healthy = clusters
        .iter()
        .map(|health| health.healthy)
        .chain(instances.iter().map(|health| health.healthy))
        .all(|well| well);
    if args.json {
        around.output.print_json(&HealthJson { healthy, clusters: &clusters, instances: &instances })?;
    } else {
        print_health(&clusters, &instances, &around.output)?;
    }
    Ok(if healthy { CliExitCode::Done } else { CliExitCode::Failed })
}

async fn cluster_health(
    config: &Config,
    of: &config::ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<postgres::health::HealthReport> {
    let archive = Arc::new(open::open_archive(config, of, around).await?);
    let places = postgres::health::HealthSources {
        index: open::index_dir(config),
        server: of.conninfo(&around.environment)?,
        slot: of.slot.to_string(),
        schedule: of.backup.clone(),
        disks: watched_folders(config),
    };
    let spool = Spool::existing(&config.state_dir, &archive);
    Ok(postgres::health::check_health(&archive, spool, &places).await?)
}

async fn instance_health(
    config: &Config,
    of: &config::InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<redis::health::HealthReport> {
    let opened = open::open_instance(config, of, around).await?;
    let source = of.redis_source(&around.environment, &around.clock);
    let places = redis::health::InstanceHealthSources {
        server: source.map_err(|error| exit::error_line(&error.into())),
        schedule: of.backup.clone(),
        disks: watched_folders(config),
    };
    Ok(redis::health::check_instance_health(&opened, &places).await?)
}

fn watched_folders(config: &Config) -> Vec<(String, std::path::PathBuf)> {
    let mut places = vec![("the spool and the index".to_owned(), config.state_dir.clone())];
    let local = |repository: &crate::config::RepositoryConfig| {
        let path = repository.url.to_file_path().ok().filter(|_| repository.url.scheme() == "file")?;
        Some((format!("repository {}", repository.name), path))
    };
    places.extend(config.repositories.iter().filter_map(local));
    places
}

fn print_health(
    clusters: &[postgres::health::HealthReport],
    instances: &[redis::health::HealthReport],
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    for health in clusters {
        let newest = health.newest.map(|newest| {
            let time = newest.time.map_or_else(String::new, |time| format!(", last commit {}", out.format_time(time)));
            format!("can be restored up to {} on timeline {}{time}", newest.lsn, newest.timeline)
        });
        print_store((&health.cluster, health.healthy), newest, &health.findings, out)?;
    }
    for health in instances {
        let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
        let newest = health.newest.map(|newest| format!("can be restored up to {}", time(newest.time)));
        print_store((&health.instance, health.healthy), newest, &health.findings, out)?;
    }
    Ok(())
}

fn print_store(
    (name, healthy): (&str, bool),
    newest: Option<String>,
    findings: &[Finding],
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let state = if healthy { out.style(TextTone::Good, "healthy") } else { out.style(TextTone::Bad, "NOT healthy") };
    out.print_line(format!("{}  {state}", out.style(TextTone::Strong, name)))?;
    if let Some(newest) = newest {
        out.print_line(format!("  {:<12} {newest}", "newest"))?;
    }
    for finding in findings {
        let mark = match finding.level {
            FindingLevel::Good => out.style(TextTone::Good, "ok "),
            FindingLevel::Warning => out.style(TextTone::Warning, "!  "),
            FindingLevel::Bad => out.style(TextTone::Bad, "BAD"),
        };
        for (nth, line) in wrap_text(&finding.text, text_width().saturating_sub(19)).iter().enumerate() {
            match nth {
                0 => out.print_line(format!("  {:<12} {mark} {line}", finding.subject))?,
                _ => out.print_line(format!("  {:<12}     {line}", ""))?,
            }
        }
    }
    Ok(())
}

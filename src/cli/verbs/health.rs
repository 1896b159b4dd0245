//! `walkeep health`: how protected every cluster and every instance is now.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::base::findings::{Finding, FindingLevel};
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::health::{HealthJson, print_health};
use crate::config::{self, Config};
use crate::control::{self, ControlRequest, ControlResponse};
use crate::postgres::archive::spool::Spool;
use crate::{postgres, redis};

/// How long a receiver may take to answer whether it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Say how protected we are now; ends with 0 if all is well, else with 1
#[derive(Args, Debug)]
#[command(after_help = help::HEALTH_HELP)]
pub(in crate::cli) struct HealthArgs {
    /// One cluster or instance [default: all that are configured]
    pub(in crate::cli) name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: HealthArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (of_clusters, of_instances) = config.find_all_named(args.name.as_deref())?;
    if of_clusters.is_empty() && of_instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    // What cannot be looked at is not healthy, and keeps nothing else from being told.
    let why = |error: anyhow::Error| exit::error_line(&error);
    let (mut clusters, mut instances) = (Vec::new(), Vec::new());
    for of in of_clusters {
        let looked = Box::pin(cluster_health(&config, of, around)).await;
        clusters
            .push(looked.unwrap_or_else(|error| postgres::health::HealthReport::unknown(of.name.as_str(), why(error))));
    }
    for of in of_instances {
        instances.push(Box::pin(instance_health(&config, of, around)).await);
    }
    add_unknown_repositories(&config, &mut clusters, around).await;
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

/// A receiver reads the configuration at its start: it does not store in a repository that was added later.
async fn add_unknown_repositories(
    config: &Config,
    clusters: &mut [postgres::health::HealthReport],
    around: &CliContext,
) {
    let asked = control::send_request(&config.state_dir, &ControlRequest::Ping, &*around.clock, PING_TIMEOUT).await;
    let Ok(ControlResponse::Pong { clusters: served, repositories: known, .. }) = asked else { return };
    if known.is_empty() {
        return;
    }
    let unknown = config.repositories.iter().filter(|repository| !known.contains(&repository.name));
    for repository in unknown {
        for report in clusters.iter_mut().filter(|report| served.contains(&report.cluster)) {
            let text = format!(
                "{}: the receiver does not store in it, because it was started before this repository was configured; \
                    restart walkeep receive",
                repository.name
            );
            report.findings.insert(0, Finding { level: FindingLevel::Bad, subject: "repository", text });
            report.healthy = false;
        }
    }
}

async fn cluster_health(
    config: &Config,
    of: &config::ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<postgres::health::HealthReport> {
    let places = postgres::health::HealthSources {
        index: open::index_dir(config),
        server: of.conninfo(&around.environment)?,
        slot: of.slot.to_string(),
        schedule: of.backup.clone(),
        disks: watched_folders(config),
    };
    match open::open_archive(config, of, around).await {
        Ok(archive) => {
            let archive = Arc::new(archive);
            let spool = Spool::existing(&config.state_dir, &archive);
            Ok(Box::pin(postgres::health::check_health(&archive, spool, &places)).await)
        }
        Err(error) => {
            let (name, why) = (of.name.as_str(), exit::error_line(&error));
            Ok(postgres::health::check_health_without_archive(name, why, &places, &*around.clock).await)
        }
    }
}

async fn instance_health(
    config: &Config,
    of: &config::InstanceConfig,
    around: &CliContext,
) -> redis::health::HealthReport {
    let source = of.redis_source(&around.environment, &around.clock);
    let places = redis::health::InstanceHealthSources {
        server: source.map_err(|error| exit::error_line(&error.into())),
        schedule: of.backup.clone(),
        disks: watched_folders(config),
    };
    let looked = async {
        let opened = open::open_instance(config, of, around).await?;
        Ok::<_, anyhow::Error>(redis::health::check_instance_health(&opened, &places).await?)
    };
    match looked.await {
        Ok(report) => report,
        Err(error) => {
            let (name, why) = (of.name.as_str(), exit::error_line(&error));
            redis::health::check_instance_health_without_archive(name, why, &places, &*around.clock).await
        }
    }
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

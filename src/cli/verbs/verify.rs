//! `walkeep verify`: reads back and authenticates everything, and names whatever is damaged or missing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::base::clock::Clock;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open::{self, StoreKind};
use crate::cli::show::progress::ProgressDisplay;
use crate::cli::show::verify::{
    ClusterVerifyJson, InstanceVerifyJson, VerifyJson, print_cluster, print_instance, print_nothing_archived,
};
use crate::config::{Config, InstanceConfig, NamedStore};
use crate::postgres::archive::Archive;
use crate::postgres::verify::{self, VerifyReport};
use crate::redis::verify::verify_instance;
use crate::vault::verify::{VerifyOptions, VerifyProgress as Seen};

/// How often the progress is looked at.
const PROGRESS_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Read everything back and authenticate it
#[derive(Args, Debug)]
#[command(after_help = help::VERIFY_HELP)]
pub(in crate::cli) struct VerifyArgs {
    /// The cluster or Redis instance [default: all that are configured]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// Only this backup and the WAL it needs
    #[arg(long, value_name = "LABEL")]
    pub(in crate::cli) backup: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: VerifyArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (clusters, instances) = match (args.cluster.as_deref(), &args.backup) {
        // A backup is one thing's.
        (name, Some(_)) => match config.find_named(name)? {
            NamedStore::Cluster(cluster) => (vec![cluster], Vec::new()),
            NamedStore::Instance(instance) => (Vec::new(), vec![instance]),
        },
        (name, None) => config.find_all_named(name)?,
    };
    if clusters.is_empty() && instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    let mut ending = VerifyEnding::default();
    let mut all = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
        let options = VerifyOptions { backup: args.backup.clone() };
        let began = around.clock.elapsed();
        let report = verify_with_progress(&archive, &options, around).await;
        let report = report.with_context(|| format!("cannot verify {}", cluster.name))?;
        let took = around.clock.elapsed().saturating_sub(began);
        let read: u64 = report.repositories.iter().map(|counts| counts.bytes).sum();
        let (sound, complete) = (report.is_whole(), report.is_complete());
        let (archived, whole) = (read > 0 || !sound || !complete, read > 0 && sound && complete);
        ending.note(archived, sound, complete);
        if !args.json && archived {
            print_cluster(cluster.name.as_str(), &report, took, &around.output)?;
        } else if !args.json {
            print_nothing_archived(
                cluster.name.as_str(),
                open::suggest_other_names(StoreKind::Cluster, &config, archive.vault()).await,
                &around.output,
            )?;
        }
        all.push(ClusterVerifyJson { cluster: cluster.name.to_string(), whole, archived, report });
    }
    let mut redis = Vec::new();
    for instance in instances {
        redis.push(verify_instance_and_show(&config, instance, &args, around, &mut ending).await?);
    }
    let whole = all.iter().all(|verified| verified.whole) && redis.iter().all(|verified| verified.whole);
    if args.json {
        around.output.print_json(&VerifyJson { whole, clusters: &all, instances: &redis })?;
    }
    Ok(ending.0)
}

/// The code to end with: the worst of what was found.
struct VerifyEnding(CliExitCode);

impl Default for VerifyEnding {
    fn default() -> VerifyEnding {
        VerifyEnding(CliExitCode::Done)
    }
}

impl VerifyEnding {
    /// Takes in what was found of one store. Damage outweighs a repository that was not looked at.
    fn note(&mut self, archived: bool, sound: bool, complete: bool) {
        let code = match (sound, complete, archived) {
            (false, _, _) => CliExitCode::Integrity,
            (true, false, _) => CliExitCode::Unavailable,
            (true, true, false) => CliExitCode::NotFound,
            (true, true, true) => CliExitCode::Done,
        };
        if code.severity() > self.0.severity() {
            self.0 = code;
        }
    }
}

async fn verify_instance_and_show(
    config: &Config,
    of: &InstanceConfig,
    args: &VerifyArgs,
    around: &CliContext,
    ending: &mut VerifyEnding,
) -> anyhow::Result<InstanceVerifyJson> {
    let instance = open::open_instance(config, of, around).await?;
    let options = VerifyOptions { backup: args.backup.clone() };
    let began = around.clock.elapsed();
    let seen = Seen::default();
    let report = await_with_progress(verify_instance(&instance, &options, &seen), &seen, around).await;
    let report = report.with_context(|| format!("cannot verify {}", of.name))?;
    let took = around.clock.elapsed().saturating_sub(began);
    let read: u64 = report.repositories.iter().map(|counts| counts.bytes).sum();
    let (sound, complete) = (report.is_whole(), report.unreachable.is_empty());
    let (archived, whole) = (read > 0 || !sound || !complete, read > 0 && sound && complete);
    ending.note(archived, sound, complete);
    if !args.json && archived {
        print_instance(of.name.as_str(), &report, took, &around.output)?;
    } else if !args.json {
        print_nothing_archived(
            of.name.as_str(),
            open::suggest_other_names(StoreKind::Instance, config, instance.vault()).await,
            &around.output,
        )?;
    }
    Ok(InstanceVerifyJson { instance: of.name.to_string(), whole, archived, report })
}

/// Verifies, and shows how far it is.
async fn verify_with_progress(
    archive: &Arc<Archive>,
    options: &VerifyOptions,
    around: &CliContext,
) -> Result<VerifyReport, verify::ClusterVerifyError> {
    let seen = Seen::default();
    await_with_progress(Box::pin(verify::verify_cluster(archive, options, &seen)), &seen, around).await
}

async fn await_with_progress<T, E>(
    work: impl Future<Output = Result<T, E>>,
    seen: &Seen,
    around: &CliContext,
) -> Result<T, E> {
    let bar = ProgressDisplay::new("verify", 0, around.quiet);
    let clock: &dyn Clock = &*around.clock;
    let mut work = std::pin::pin!(work);
    let report = loop {
        tokio::select! {
            report = &mut work => break report,
            () = clock.sleep(PROGRESS_POLL_INTERVAL) => bar.set_done(seen.bytes(), 0),
        }
    };
    bar.finish();
    report
}

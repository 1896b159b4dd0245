//! `walkeep verify`: reads back and authenticates everything, and names whatever is damaged or missing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::CliContext;
use super::args::VerifyArgs;
use super::exit::{CliError, CliExitCode};
use super::open::{self, StoreKind};
use super::output::{TerminalOutput, TextTone, count, grouped, size, span};
use super::progress::ProgressDisplay;
use crate::base::clock::Clock;
use crate::config::{Config, InstanceConfig, NamedStore};
use crate::postgres::archive::Archive;
use crate::postgres::archive::inventory::MissingWal;
use crate::postgres::verify::{self, VerifyReport};
use crate::redis::verify::{InstanceObjectCounts as InstanceCounts, InstanceVerifyReport, verify_instance};
use crate::vault::verify::{VerifyOptions, VerifyProgress as Seen};

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `--json` prints of a cluster.
#[derive(serde::Serialize)]
struct ClusterVerifyJson {
    cluster: String,
    whole: bool,
    /// Whether there is anything under this name.
    archived: bool,
    #[serde(flatten)]
    report: VerifyReport,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct VerifyJson<'r> {
    whole: bool,
    clusters: &'r [ClusterVerifyJson],
    instances: &'r [InstanceVerifyJson],
}

/// What `--json` prints of a Redis instance.
#[derive(serde::Serialize)]
struct InstanceVerifyJson {
    instance: String,
    whole: bool,
    archived: bool,
    #[serde(flatten)]
    report: InstanceVerifyReport,
}

pub(super) async fn run(args: VerifyArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.config()?;
    let (clusters, instances) = match (args.cluster.as_deref(), &args.backup) {
        // A backup is one thing's.
        (name, Some(_)) => match config.meant(name)? {
            NamedStore::Cluster(cluster) => (vec![cluster], Vec::new()),
            NamedStore::Instance(instance) => (Vec::new(), vec![instance]),
        },
        (name, None) => config.all_meant(name)?,
    };
    if clusters.is_empty() && instances.is_empty() {
        return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into());
    }
    let mut all = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::archive(&config, cluster, around).await?);
        let options = VerifyOptions { backup: args.backup.clone() };
        let began = around.clock.elapsed();
        let report = watched(&archive, &options, around).await;
        let report = report.with_context(|| format!("cannot verify {}", cluster.name))?;
        let took = around.clock.elapsed().saturating_sub(began);
        let read: u64 = report.repositories.iter().map(|counts| counts.bytes).sum();
        let (archived, whole) = (read > 0 || !report.is_whole(), read > 0 && report.is_whole());
        if !args.json && archived {
            show(cluster.name.as_str(), &report, took, &around.output)?;
        } else if !args.json {
            show_nothing(
                cluster.name.as_str(),
                open::is_it(StoreKind::Cluster, &config, archive.vault()).await,
                &around.output,
            )?;
        }
        all.push(ClusterVerifyJson { cluster: cluster.name.to_string(), whole, archived, report });
    }
    let mut redis = Vec::new();
    for instance in instances {
        redis.push(of_instance(&config, instance, &args, around).await?);
    }
    let whole = all.iter().all(|verified| verified.whole) && redis.iter().all(|verified| verified.whole);
    if args.json {
        around.output.json(&VerifyJson { whole, clusters: &all, instances: &redis })?;
    }
    let damaged = all.iter().any(|verified| verified.archived && !verified.whole)
        || redis.iter().any(|verified| verified.archived && !verified.whole);
    Ok(match (whole, damaged) {
        (true, _) => CliExitCode::Done,
        (false, true) => CliExitCode::Integrity,
        (false, false) => CliExitCode::NotFound,
    })
}

async fn of_instance(
    config: &Config,
    of: &InstanceConfig,
    args: &VerifyArgs,
    around: &CliContext,
) -> anyhow::Result<InstanceVerifyJson> {
    let instance = open::instance(config, of, around).await?;
    let options = VerifyOptions { backup: args.backup.clone() };
    let began = around.clock.elapsed();
    let seen = Seen::default();
    let report = watching(verify_instance(&instance, &options, &seen), &seen, around).await;
    let report = report.with_context(|| format!("cannot verify {}", of.name))?;
    let took = around.clock.elapsed().saturating_sub(began);
    let read: u64 = report.repositories.iter().map(|counts| counts.bytes).sum();
    let (archived, whole) = (read > 0 || !report.is_whole(), read > 0 && report.is_whole());
    if !args.json && archived {
        show_instance(of.name.as_str(), &report, took, &around.output)?;
    } else if !args.json {
        show_nothing(
            of.name.as_str(),
            open::is_it(StoreKind::Instance, config, instance.vault()).await,
            &around.output,
        )?;
    }
    Ok(InstanceVerifyJson { instance: of.name.to_string(), whole, archived, report })
}

/// Nothing that is there and right is no good news.
fn show_nothing(name: &str, asked: Option<String>, out: &TerminalOutput) -> anyhow::Result<()> {
    let said = out.tone(TextTone::Bad, "nothing is archived under this name");
    let asked = asked.map_or_else(String::new, |asked| format!("; {asked}"));
    out.line(format!("{}: {said}{asked}", out.tone(TextTone::Strong, name)))
}

/// Verifies, and shows how far it is.
async fn watched(
    archive: &Arc<Archive>,
    options: &VerifyOptions,
    around: &CliContext,
) -> Result<VerifyReport, verify::ClusterVerifyError> {
    let seen = Seen::default();
    watching(verify::verify(archive, options, &seen), &seen, around).await
}

async fn watching<T, E>(work: impl Future<Output = Result<T, E>>, seen: &Seen, around: &CliContext) -> Result<T, E> {
    let bar = ProgressDisplay::begin("verify", 0, around.quiet);
    let clock: &dyn Clock = &*around.clock;
    let mut work = std::pin::pin!(work);
    let report = loop {
        tokio::select! {
            report = &mut work => break report,
            () = clock.sleep(LOOK_EVERY) => bar.at(seen.bytes(), 0),
        }
    };
    bar.end();
    report
}

fn show_instance(
    name: &str,
    report: &InstanceVerifyReport,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    verdict(name, report.is_whole(), report.repositories.iter().map(|counts| counts.bytes).sum(), took, out)?;
    let row = |counts: &InstanceCounts| {
        let [snapshots, parts, stretches] = [counts.snapshots, counts.parts, counts.stretches].map(grouped);
        [counts.repository.clone(), snapshots, parts, stretches, size(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.table(["repository", ">snapshots", ">parts", ">stretches of commands", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.line(format!("  {}  {object} in {repository}: {}", out.tone(TextTone::Bad, "damaged"), damage.what))?;
    }
    for hole in &report.holes {
        out.line(format!("  {}  in {}: {}", out.tone(TextTone::Bad, "missing"), hole.repository, hole.what))?;
    }
    for gap in &report.gaps {
        let gone = out.tone(TextTone::Warning, "gap");
        out.line(format!("  {gone}      commands after offset {} of {}: {}", gap.offset, gap.replid, gap.reason))?;
    }
    Ok(())
}

fn verdict(name: &str, whole: bool, read: u64, took: Duration, out: &TerminalOutput) -> anyhow::Result<()> {
    let verdict = if whole {
        out.tone(TextTone::Good, "everything is there and right")
    } else {
        out.tone(TextTone::Bad, "NOT WHOLE")
    };
    out.line(format!("{}: {verdict}, {} read in {}", out.tone(TextTone::Strong, name), size(read), span(took)))?;
    out.line("")
}

fn show(cluster: &str, report: &VerifyReport, took: Duration, out: &TerminalOutput) -> anyhow::Result<()> {
    verdict(cluster, report.is_whole(), report.repositories.iter().map(|counts| counts.bytes).sum(), took, out)?;
    let row = |counts: &verify::VerifyCounts| {
        let numbers = [counts.segments, counts.files, counts.backups, counts.packs, counts.chunks].map(grouped);
        let [segments, files, backups, packs, chunks] = numbers;
        [counts.repository.clone(), segments, files, backups, packs, chunks, size(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.table(["repository", ">segments", ">files", ">backups", ">packs", ">chunks", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.line(format!("  {}  {object} in {repository}: {}", out.tone(TextTone::Bad, "damaged"), damage.what))?;
    }
    let gap = |gap: &MissingWal, what: &str, then: &str| {
        let lost = size(gap.to_lsn.bytes_since(gap.from_lsn));
        let (from, to, timeline, reason) = (gap.from_lsn, gap.to_lsn, gap.timeline, &gap.reason);
        out.line(format!("  {what}      WAL from {from} to {to} on timeline {timeline}, {lost}: {reason}{then}"))
    };
    report.gaps.iter().try_for_each(|missing| gap(missing, &out.tone(TextTone::Bad, "gap"), ""))?;
    let bridged = |missing| gap(missing, &out.tone(TextTone::Warning, "gap"), "; newer backups do without it");
    report.bridged.iter().try_for_each(bridged)?;
    for label in &report.stranded {
        out.line(format!(
            "  {}  {label} cannot become consistent: WAL that it needs is missing",
            out.tone(TextTone::Bad, "useless")
        ))?;
    }
    if !report.is_whole() {
        let found = report.damage.len() + report.gaps.len() + report.stranded.len();
        out.line(format!(
            "\n{}; take a new backup, and look for the cause before anything is deleted",
            count(found as u64, "finding")
        ))?;
    }
    Ok(())
}

//! `walkeep verify`: reads back and authenticates everything, and names whatever is damaged or missing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::base::clock::Clock;
use crate::cli::CliContext;
use crate::cli::args::VerifyArgs;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open::{self, StoreKind};
use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_count, format_duration, format_number};
use crate::cli::show::progress::ProgressDisplay;
use crate::config::{Config, InstanceConfig, NamedStore};
use crate::postgres::archive::Archive;
use crate::postgres::archive::inventory::MissingWal;
use crate::postgres::verify::{self, VerifyReport};
use crate::redis::verify::{InstanceObjectCounts as InstanceCounts, InstanceVerifyReport, verify_instance};
use crate::vault::verify::{VerifyOptions, VerifyProgress as Seen};

/// How often the progress is looked at.
const PROGRESS_POLL_INTERVAL: Duration = Duration::from_millis(200);

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
    let mut all = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
        let options = VerifyOptions { backup: args.backup.clone() };
        let began = around.clock.elapsed();
        let report = verify_with_progress(&archive, &options, around).await;
        let report = report.with_context(|| format!("cannot verify {}", cluster.name))?;
        let took = around.clock.elapsed().saturating_sub(began);
        let read: u64 = report.repositories.iter().map(|counts| counts.bytes).sum();
        let (archived, whole) = (read > 0 || !report.is_whole(), read > 0 && report.is_whole());
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
        redis.push(verify_instance_and_show(&config, instance, &args, around).await?);
    }
    let whole = all.iter().all(|verified| verified.whole) && redis.iter().all(|verified| verified.whole);
    if args.json {
        around.output.print_json(&VerifyJson { whole, clusters: &all, instances: &redis })?;
    }
    let damaged = all.iter().any(|verified| verified.archived && !verified.whole)
        || redis.iter().any(|verified| verified.archived && !verified.whole);
    Ok(match (whole, damaged) {
        (true, _) => CliExitCode::Done,
        (false, true) => CliExitCode::Integrity,
        (false, false) => CliExitCode::NotFound,
    })
}

async fn verify_instance_and_show(
    config: &Config,
    of: &InstanceConfig,
    args: &VerifyArgs,
    around: &CliContext,
) -> anyhow::Result<InstanceVerifyJson> {
    let instance = open::open_instance(config, of, around).await?;
    let options = VerifyOptions { backup: args.backup.clone() };
    let began = around.clock.elapsed();
    let seen = Seen::default();
    let report = await_with_progress(verify_instance(&instance, &options, &seen), &seen, around).await;
    let report = report.with_context(|| format!("cannot verify {}", of.name))?;
    let took = around.clock.elapsed().saturating_sub(began);
    let read: u64 = report.repositories.iter().map(|counts| counts.bytes).sum();
    let (archived, whole) = (read > 0 || !report.is_whole(), read > 0 && report.is_whole());
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

/// Nothing that is there and right is no good news.
fn print_nothing_archived(name: &str, asked: Option<String>, out: &TerminalOutput) -> anyhow::Result<()> {
    let said = out.style(TextTone::Bad, "nothing is archived under this name");
    let asked = asked.map_or_else(String::new, |asked| format!("; {asked}"));
    out.print_line(format!("{}: {said}{asked}", out.style(TextTone::Strong, name)))
}

/// Verifies, and shows how far it is.
async fn verify_with_progress(
    archive: &Arc<Archive>,
    options: &VerifyOptions,
    around: &CliContext,
) -> Result<VerifyReport, verify::ClusterVerifyError> {
    let seen = Seen::default();
    await_with_progress(verify::verify_cluster(archive, options, &seen), &seen, around).await
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

fn print_instance(
    name: &str,
    report: &InstanceVerifyReport,
    took: Duration,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    print_verdict(name, report.is_whole(), report.repositories.iter().map(|counts| counts.bytes).sum(), took, out)?;
    let row = |counts: &InstanceCounts| {
        let [snapshots, parts, stretches] = [counts.snapshots, counts.parts, counts.stretches].map(format_number);
        [counts.repository.clone(), snapshots, parts, stretches, format_bytes(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.print_table(["repository", ">snapshots", ">parts", ">stretches of commands", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.print_line(format!(
            "  {}  {object} in {repository}: {}",
            out.style(TextTone::Bad, "damaged"),
            damage.what
        ))?;
    }
    for hole in &report.holes {
        out.print_line(format!("  {}  in {}: {}", out.style(TextTone::Bad, "missing"), hole.repository, hole.what))?;
    }
    for gap in &report.gaps {
        let gone = out.style(TextTone::Warning, "gap");
        out.print_line(format!(
            "  {gone}      commands after offset {} of {}: {}",
            gap.offset, gap.replid, gap.reason
        ))?;
    }
    Ok(())
}

fn print_verdict(name: &str, whole: bool, read: u64, took: Duration, out: &TerminalOutput) -> anyhow::Result<()> {
    let verdict = if whole {
        out.style(TextTone::Good, "everything is there and right")
    } else {
        out.style(TextTone::Bad, "NOT WHOLE")
    };
    out.print_line(format!(
        "{}: {verdict}, {} read in {}",
        out.style(TextTone::Strong, name),
        format_bytes(read),
        format_duration(took)
    ))?;
    out.print_line("")
}

fn print_cluster(cluster: &str, report: &VerifyReport, took: Duration, out: &TerminalOutput) -> anyhow::Result<()> {
    print_verdict(cluster, report.is_whole(), report.repositories.iter().map(|counts| counts.bytes).sum(), took, out)?;
    let row = |counts: &verify::VerifyCounts| {
        let numbers = [counts.segments, counts.files, counts.backups, counts.packs, counts.chunks].map(format_number);
        let [segments, files, backups, packs, chunks] = numbers;
        [counts.repository.clone(), segments, files, backups, packs, chunks, format_bytes(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.print_table(["repository", ">segments", ">files", ">backups", ">packs", ">chunks", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.print_line(format!(
            "  {}  {object} in {repository}: {}",
            out.style(TextTone::Bad, "damaged"),
            damage.what
        ))?;
    }
    let gap = |gap: &MissingWal, what: &str, then: &str| {
        let lost = format_bytes(gap.to_lsn.bytes_since(gap.from_lsn));
        let (from, to, timeline, reason) = (gap.from_lsn, gap.to_lsn, gap.timeline, &gap.reason);
        out.print_line(format!("  {what}      WAL from {from} to {to} on timeline {timeline}, {lost}: {reason}{then}"))
    };
    report.gaps.iter().try_for_each(|missing| gap(missing, &out.style(TextTone::Bad, "gap"), ""))?;
    let bridged = |missing| gap(missing, &out.style(TextTone::Warning, "gap"), "; newer backups do without it");
    report.bridged.iter().try_for_each(bridged)?;
    for label in &report.stranded {
        out.print_line(format!(
            "  {}  {label} cannot become consistent: WAL that it needs is missing",
            out.style(TextTone::Bad, "useless")
        ))?;
    }
    if !report.is_whole() {
        let found = report.damage.len() + report.gaps.len() + report.stranded.len();
        out.print_line(format!(
            "\n{}; take a new backup, and look for the cause before anything is deleted",
            format_count(found as u64, "finding")
        ))?;
    }
    Ok(())
}

//! `walkeep cleanup`: retention of clusters and instances, and what it takes away and why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};

use crate::cli::CliContext;
use crate::cli::args::CleanupArgs;
use crate::cli::exit::{CliError, CliExitCode, FailureTally};
use crate::cli::open;
use crate::cli::output::{TerminalOutput, TextTone, format_bytes, format_count};
use crate::cli::progress::ProgressDisplay;
use crate::config::{self, Config};
use crate::postgres::archive::reindex;
use crate::postgres::format::time::PgTime;
use crate::postgres::retention::{self, ClusterCleanup};
use crate::redis;
use crate::vault::retention::{CleanupReport, KeepReason, ObjectTotals, RetentionOptions};

/// What `--json` prints.
#[derive(serde::Serialize)]
struct CleanupJson<'d> {
    clusters: Vec<ClusterCleanupJson<'d>>,
    instances: Vec<InstanceCleanupJson<'d>>,
}

#[derive(serde::Serialize)]
struct ClusterCleanupJson<'d> {
    cluster: &'d str,
    #[serde(flatten)]
    report: &'d CleanupReport<ClusterCleanup>,
}

#[derive(serde::Serialize)]
struct InstanceCleanupJson<'d> {
    instance: &'d str,
    #[serde(flatten)]
    report: &'d CleanupReport<redis::retention::InstanceCleanup>,
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
    let (index, _) = reindex::open_index(&archive, &open::index_dir(config)).await.context("cannot open the index")?;
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
            "no repository has a retention, so everything is kept; give a number of days, or set retention = \"30d\" in [repository.{first}]"
        )));
    }
    Ok(RetentionOptions { retention, dry_run: args.dry_run, grace: SignedDuration::from_hours(i64::from(args.grace)) })
}

/// What was done to each repository, by one that knows what it holds.
fn print_report<C>(
    name: &str,
    report: &CleanupReport<C>,
    each: fn(&str, &C, bool, &TerminalOutput) -> anyhow::Result<()>,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    report.repositories.iter().try_for_each(|cleaned| each(name, cleaned, report.dry_run, out))?;
    for repository in &report.without_retention {
        out.print_line(format!("{name} in repository {repository}: no retention is configured, everything is kept"))?;
    }
    for (name, why) in &report.unreachable {
        out.print_line(format!("{}: {why}", out.style(TextTone::Bad, format!("repository {name} was not cleaned"))))?;
    }
    Ok(())
}

fn print_title(name: &str, repository: &str, since: Timestamp, out: &TerminalOutput) -> anyhow::Result<()> {
    let since = out.format_short_time(PgTime::from_timestamp(since));
    let title = out.style(TextTone::Strong, format!("{name} in repository {repository}"));
    out.print_line(format!("{title}  every moment since {since} stays restorable"))
}

fn print_notes(notes: &[String], out: &TerminalOutput) -> anyhow::Result<()> {
    notes.iter().try_for_each(|note| out.print_line(format!("  {}  {note}", out.style(TextTone::Warning, "note"))))
}

const fn past_verb(dry_run: bool) -> &'static str {
    if dry_run { "would go" } else { "went" }
}

fn print_cluster(name: &str, cleaned: &ClusterCleanup, dry_run: bool, out: &TerminalOutput) -> anyhow::Result<()> {
    print_title(name, &cleaned.repository, cleaned.since, out)?;
    let of = |backup: &retention::RetainedBackup| (backup.label.clone(), backup.finished_at, backup.kept);
    print_backups(["backup", "ended"], "WAL", cleaned.backups.iter().map(of), dry_run, out)?;
    print_row("WAL", cleaned.wal, cleaned.wal_kept, "segment", past_verb(dry_run), out)?;
    print_row("backup data", cleaned.packs, cleaned.packs_waiting, "pack", past_verb(dry_run), out)?;
    print_notes(&cleaned.notes, out)
}

fn instance_sweep(
    name: &str,
    cleaned: &redis::retention::InstanceCleanup,
    dry_run: bool,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    print_title(name, &cleaned.repository, cleaned.since, out)?;
    let of = |snapshot: &redis::retention::SnapshotRetention| (snapshot.label.clone(), snapshot.at, snapshot.kept);
    print_backups(["snapshot", "as of"], "commands", cleaned.snapshots.iter().map(of), dry_run, out)?;
    print_row("commands", cleaned.stream, cleaned.stream_kept, "stretch", past_verb(dry_run), out)?;
    print_row("snapshots", cleaned.parts, cleaned.parts_waiting, "part", past_verb(dry_run), out)?;
    print_notes(&cleaned.notes, out)
}

/// Backups or snapshots, and why they stay.
fn print_backups(
    [noun, when]: [&str; 2],
    log: &str,
    bases: impl Iterator<Item = (String, Timestamp, Option<KeepReason>)>,
    dry_run: bool,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let rows: Vec<[String; 4]> = bases
        .map(|(label, at, kept)| {
            let (fate, why) = match kept {
                Some(why) => ("stays".to_owned(), retention_reason(why)),
                None => (out.style(TextTone::Warning, past_verb(dry_run)), "a newer one serves all of the window"),
            };
            [label, out.format_short_time(PgTime::from_timestamp(at)), fate, why.to_owned()]
        })
        .collect();
    if rows.is_empty() {
        return out.print_line(format!("  no {noun} yet, so no {log} goes either"));
    }
    out.print_table([noun, when, "", "why"], &rows)
}

fn retention_reason(why: KeepReason) -> &'static str {
    match why {
        KeepReason::Young => "made within the window",
        KeepReason::Anchor => "serves the window's beginning",
        KeepReason::Irreplaceable => "no other could take its place",
        KeepReason::Unknown => "its timeline's history is missing",
    }
}

fn print_row(
    name: &str,
    gone: ObjectTotals,
    left: ObjectTotals,
    noun: &str,
    did: &str,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let what = if noun == "stretch" { format_stretch_count(gone.objects) } else { format_count(gone.objects, noun) };
    let bytes = format_bytes(gone.bytes);
    let rest = match (noun, left.objects) {
        (_, 0) => String::new(),
        ("pack" | "part", n) => {
            format!(
                "; {} of {} more when no backup under way can need them",
                format_count(n, noun),
                format_bytes(left.bytes)
            )
        }
        ("stretch", n) => format!("; {} of {} stay", format_stretch_count(n), format_bytes(left.bytes)),
        (_, n) => format!("; {} of {} stay", format_count(n, noun), format_bytes(left.bytes)),
    };
    out.print_line(format!("  {name:<12} {what}, {bytes}, {did}{rest}"))
}

/// The one noun here whose plural is no plain `s`.
fn format_stretch_count(number: u64) -> String {
    if number == 1 { format_count(1, "stretch") } else { format_count(number, "stretche") }
}

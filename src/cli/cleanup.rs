//! `walkeep cleanup`: retention, and what it takes away and why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use jiff::SignedDuration;

use super::Surroundings;
use super::args::Cleanup;
use super::exit::{Code, Failure};
use super::open;
use super::output::{Output, Tone, count, size};
use super::progress::Progress;
use crate::archive::reindex;
use crate::config::Config;
use crate::postgres::time::PgTime;
use crate::retention::policy::Why;
use crate::retention::{self, Amount, Cleaned, Report, Wish};

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Document<'d> {
    clusters: Vec<Of<'d>>,
}

#[derive(serde::Serialize)]
struct Of<'d> {
    cluster: &'d str,
    #[serde(flatten)]
    report: &'d Report,
}

pub(super) async fn run(args: Cleanup, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let clusters = match &args.cluster {
        Some(name) => vec![config.cluster(Some(name))?],
        None => config.clusters.iter().collect(),
    };
    let wish = wish(&args, &config)?;
    let mut reports = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::archive(&config, cluster, around).await?);
        let (index, _) = reindex::open(&archive, &open::index_dir(&config)).await.context("cannot open the index")?;
        let (progress, removed) = (Progress::begin("cleanup", 0, around.quiet), AtomicU64::new(0));
        let tell = |bytes: u64| progress.at(removed.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes), 0);
        let report = retention::run(&archive, &index, &wish, &tell).await;
        progress.end();
        let again = "what was removed so far does no harm; run it again";
        let report =
            report.with_context(|| format!("the cleanup of {} did not come to its end ({again})", cluster.name))?;
        reports.push((cluster.name.as_str(), report));
    }
    if args.json {
        let clusters = reports.iter().map(|(cluster, report)| Of { cluster, report }).collect();
        around.output.json(&Document { clusters })?;
    } else {
        reports.iter().try_for_each(|(cluster, report)| show(cluster, report, &around.output))?;
    }
    let all = reports.iter().all(|(_, report)| report.unreachable.is_empty());
    Ok(if all { Code::Done } else { Code::Unavailable })
}

fn wish(args: &Cleanup, config: &Config) -> Result<Wish, Failure> {
    let days = args.days.map(|days| SignedDuration::from_hours(i64::from(days).saturating_mul(24)));
    let of = |repository: &crate::config::Repository| Some((repository.name.clone(), days.or(repository.retention)?));
    let retention: BTreeMap<String, SignedDuration> = config.repositories.iter().filter_map(of).collect();
    if retention.is_empty() {
        let first = config.repositories.first().map_or("local", |repository| repository.name.as_str());
        return Err(Failure::usage(format!(
            "no repository has a retention, so everything is kept; give a number of days, or set retention = \"30d\" in [repository.{first}]"
        )));
    }
    Ok(Wish { retention, dry_run: args.dry_run, grace: SignedDuration::from_hours(i64::from(args.grace)) })
}

fn show(cluster: &str, report: &Report, out: &Output) -> anyhow::Result<()> {
    let did = if report.dry_run { "would go" } else { "went" };
    for cleaned in &report.repositories {
        let since = out.short_time(PgTime::from_timestamp(cleaned.since));
        let title = format!("{cluster} in repository {}", cleaned.repository);
        out.line(format!("{}  every moment since {since} stays restorable", out.tone(Tone::Strong, title)))?;
        backups(cleaned, report.dry_run, out)?;
        row("WAL", cleaned.wal, cleaned.wal_kept, "segment", did, out)?;
        row("backup data", cleaned.packs, cleaned.packs_waiting, "pack", did, out)?;
        for note in &cleaned.notes {
            out.line(format!("  {}  {note}", out.tone(Tone::Warning, "note")))?;
        }
    }
    for name in &report.without_retention {
        out.line(format!("{cluster} in repository {name}: no retention is configured, everything is kept"))?;
    }
    for (name, why) in &report.unreachable {
        out.line(format!("{}: {why}", out.tone(Tone::Bad, format!("repository {name} was not cleaned"))))?;
    }
    Ok(())
}

fn backups(cleaned: &Cleaned, dry_run: bool, out: &Output) -> anyhow::Result<()> {
    if cleaned.backups.is_empty() {
        return out.line("  no backup yet, so no WAL goes either");
    }
    let rows: Vec<[String; 4]> = cleaned
        .backups
        .iter()
        .map(|backup| {
            let (fate, why) = match backup.kept {
                Some(why) => ("stays".to_owned(), reason(why)),
                None => (
                    out.tone(Tone::Warning, if dry_run { "would go" } else { "went" }),
                    "a newer one serves all of the window",
                ),
            };
            let ended = out.short_time(PgTime::from_timestamp(backup.finished_at));
            [backup.label.clone(), ended, fate, why.to_owned()]
        })
        .collect();
    out.table(["backup", "ended", "", "why"], &rows)
}

fn reason(why: Why) -> &'static str {
    match why {
        Why::Young => "made within the window",
        Why::Anchor => "serves the window's beginning",
        Why::Irreplaceable => "no other could take its place",
        Why::Unknown => "its timeline's history is missing",
    }
}

fn row(name: &str, gone: Amount, left: Amount, noun: &str, did: &str, out: &Output) -> anyhow::Result<()> {
    let (bytes, what) = (size(gone.bytes), count(gone.objects, noun));
    let rest = match (noun, left.objects) {
        (_, 0) => String::new(),
        ("pack", n) => {
            format!("; {} of {} more when no backup under way can need them", count(n, noun), size(left.bytes))
        }
        (_, n) => format!("; {} of {} stay", count(n, noun), size(left.bytes)),
    };
    out.line(format!("  {name:<12} {what}, {bytes}, {did}{rest}"))
}

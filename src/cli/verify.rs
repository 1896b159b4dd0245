//! `walkeep verify`: reads back and authenticates everything, and names whatever is damaged or missing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::Surroundings;
use super::args::Verify;
use super::exit::{Code, Failure};
use super::open;
use super::output::{Output, Tone, count, grouped, size, span};
use super::progress::Progress;
use crate::archive::Archive;
use crate::clock::Clock;
use crate::config::{Cluster, ConfigError};
use crate::verify::{self, Options, Report};

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `--json` prints of a cluster.
#[derive(serde::Serialize)]
struct Verified {
    cluster: String,
    whole: bool,
    #[serde(flatten)]
    report: Report,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct All<'r> {
    whole: bool,
    clusters: &'r [Verified],
}

pub(super) async fn run(args: Verify, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let clusters: Result<Vec<&Cluster>, ConfigError> = match &args.cluster {
        Some(name) => config.cluster(Some(name)).map(|cluster| vec![cluster]),
        None if args.backup.is_some() => config.cluster(None).map(|cluster| vec![cluster]),
        None => Ok(config.clusters.iter().collect()),
    };
    let clusters = clusters?;
    if clusters.is_empty() {
        return Err(Failure::usage(format!("no cluster is configured in {}", config.path.display())).into());
    }
    let mut all = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::archive(&config, cluster, around).await?);
        let options = Options { backup: args.backup.clone() };
        let began = around.clock.elapsed();
        let report = watched(&archive, &options, around).await;
        let report = report.with_context(|| format!("cannot verify {}", cluster.name))?;
        let took = around.clock.elapsed().saturating_sub(began);
        if !args.json {
            show(cluster.name.as_str(), &report, took, &around.output)?;
        }
        all.push(Verified { cluster: cluster.name.to_string(), whole: report.is_whole(), report });
    }
    let whole = all.iter().all(|verified| verified.whole);
    if args.json {
        around.output.json(&All { whole, clusters: &all })?;
    }
    Ok(if whole { Code::Done } else { Code::Integrity })
}

/// Verifies, and shows how far it is.
async fn watched(
    archive: &Arc<Archive>,
    options: &Options,
    around: &Surroundings,
) -> Result<Report, verify::VerifyError> {
    let (seen, bar) = (verify::Progress::default(), Progress::begin("verify", 0, around.quiet));
    let clock: &dyn Clock = &*around.clock;
    let mut work = std::pin::pin!(verify::verify(archive, options, &seen));
    let report = loop {
        tokio::select! {
            report = &mut work => break report,
            () = clock.sleep(LOOK_EVERY) => bar.at(seen.bytes(), 0),
        }
    };
    bar.end();
    report
}

fn show(cluster: &str, report: &Report, took: Duration, out: &Output) -> anyhow::Result<()> {
    let verdict = if report.is_whole() {
        out.tone(Tone::Good, "everything is there and right")
    } else {
        out.tone(Tone::Bad, "NOT WHOLE")
    };
    let read = report.repositories.iter().map(|counts| counts.bytes).sum();
    out.line(format!("{}: {verdict}, {} read in {}", out.tone(Tone::Strong, cluster), size(read), span(took)))?;
    out.line("")?;
    let row = |counts: &verify::Counts| {
        let numbers = [counts.segments, counts.files, counts.backups, counts.packs, counts.chunks].map(grouped);
        let [segments, files, backups, packs, chunks] = numbers;
        [counts.repository.clone(), segments, files, backups, packs, chunks, size(counts.bytes)]
    };
    let rows: Vec<_> = report.repositories.iter().map(row).collect();
    out.table(["repository", ">segments", ">files", ">backups", ">packs", ">chunks", ">read"], &rows)?;
    for damage in &report.damage {
        let (repository, object) = (&damage.repository, &damage.object);
        out.line(format!("  {}  {object} in {repository}: {}", out.tone(Tone::Bad, "damaged"), damage.what))?;
    }
    for gap in &report.gaps {
        let lost = size(gap.to_lsn.bytes_since(gap.from_lsn));
        let (from, to, timeline, reason) = (gap.from_lsn, gap.to_lsn, gap.timeline, &gap.reason);
        out.line(format!(
            "  {}      WAL from {from} to {to} on timeline {timeline}, {lost}: {reason}",
            out.tone(Tone::Bad, "gap")
        ))?;
    }
    for label in &report.stranded {
        out.line(format!(
            "  {}  {label} cannot become consistent: WAL that it needs is missing",
            out.tone(Tone::Bad, "useless")
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

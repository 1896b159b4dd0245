//! `walkeep health`: how protected every cluster is now.

use std::sync::Arc;

use anyhow::Context;

use super::Surroundings;
use super::args::Health as Args;
use super::exit::Code;
use super::open;
use super::output::{Output, Tone, WIDTH, wrap};
use crate::archive::reindex;
use crate::archive::spool::Spool;
use crate::config::Config;
use crate::health::{self, Health, Level, Places};

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Document<'d> {
    healthy: bool,
    clusters: &'d [Health],
}

pub(super) async fn run(args: Args, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let clusters = match &args.cluster {
        Some(name) => vec![config.cluster(Some(name))?],
        None => config.clusters.iter().collect(),
    };
    let mut all = Vec::new();
    for cluster in clusters {
        let archive = Arc::new(open::archive(&config, cluster, around).await?);
        let (index, _) = reindex::open(&archive, &open::index_dir(&config)).await.context("cannot open the index")?;
        let places = Places {
            server: cluster.conninfo(&around.environment)?,
            slot: cluster.slot.to_string(),
            schedule: cluster.backup.clone(),
            disks: disks(&config),
        };
        let spool = Spool::existing(&config.state_dir, &archive);
        let health = health::look(&archive, &index, spool, &places).await;
        all.push(health.with_context(|| format!("cannot tell how {} is", cluster.name))?);
    }
    let healthy = all.iter().all(|health| health.healthy);
    if args.json {
        around.output.json(&Document { healthy, clusters: &all })?;
    } else {
        all.iter().try_for_each(|health| show(health, &around.output))?;
    }
    Ok(if healthy { Code::Done } else { Code::Failed })
}

fn disks(config: &Config) -> Vec<(String, std::path::PathBuf)> {
    let mut places = vec![("the spool and the index".to_owned(), config.state_dir.clone())];
    let local = |repository: &crate::config::Repository| {
        let path = repository.url.to_file_path().ok().filter(|_| repository.url.scheme() == "file")?;
        Some((format!("repository {}", repository.name), path))
    };
    places.extend(config.repositories.iter().filter_map(local));
    places
}

fn show(health: &Health, out: &Output) -> anyhow::Result<()> {
    let state = if health.healthy { out.tone(Tone::Good, "healthy") } else { out.tone(Tone::Bad, "NOT healthy") };
    out.line(format!("{}  {state}", out.tone(Tone::Strong, &health.cluster)))?;
    if let Some(newest) = &health.newest {
        let time = newest.time.map_or_else(String::new, |time| format!(", last commit {}", out.time(time)));
        out.line(format!(
            "  {:<12} can be restored up to {} on timeline {}{time}",
            "newest", newest.lsn, newest.timeline
        ))?;
    }
    for finding in &health.findings {
        let mark = match finding.level {
            Level::Good => out.tone(Tone::Good, "ok "),
            Level::Warning => out.tone(Tone::Warning, "!  "),
            Level::Bad => out.tone(Tone::Bad, "BAD"),
        };
        for (nth, line) in wrap(&finding.text, usize::from(WIDTH).saturating_sub(19)).iter().enumerate() {
            match nth {
                0 => out.line(format!("  {:<12} {mark} {line}", finding.subject))?,
                _ => out.line(format!("  {:<12}     {line}", ""))?,
            }
        }
    }
    Ok(())
}

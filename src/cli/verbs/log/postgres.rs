//! `walkeep log postgres`: what happened in a cluster.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::Args;
use clap::builder::TypedValueParser;

use super::time_range::LogTimeArgs;
use crate::cli::args::help;
use crate::cli::args::named_values::named_value_parser;
use crate::cli::args::time;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::log::{LogPage, LogSubject};
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::reindex;
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::log::{self, DEFAULT_MIN_ROWS, LogEntryKind, LogQuery};

/// In a PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::LOG_HELP)]
pub(in crate::cli) struct LogPostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(in crate::cli) cluster: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) log: LogFilterArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct LogFilterArgs {
    #[command(flatten)]
    pub(in crate::cli) span: LogTimeArgs,
    /// Only events of this kind; may be given again [default: all but checkpoint and backup]
    #[arg(long = "event", value_name = "KIND", value_parser = event_kind_parser())]
    pub(in crate::cli) events: Vec<LogEntryKind>,
    /// Only what befell this table: schema.table, or table
    #[arg(long, value_name = "TABLE")]
    pub(in crate::cli) relation: Option<String>,
    /// Tell a DELETE or UPDATE that changes so many rows of a table in one transaction
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MIN_ROWS, value_parser = clap::value_parser!(u64).range(100..))]
    pub(in crate::cli) rows: u64,
    /// Look back from this timeline instead of the newest
    #[arg(long, value_name = "TLI")]
    pub(in crate::cli) timeline: Option<String>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

fn event_kind_parser() -> impl TypedValueParser<Value = LogEntryKind> {
    named_value_parser(LogEntryKind::ALL, LogEntryKind::name)
}

/// `several`: each event says whose it is.
pub(super) async fn log_cluster(
    config: &Config,
    cluster: &ClusterConfig,
    (args, several): (&LogFilterArgs, bool),
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let question = build_query(args, around)?;
    let mut archive = Arc::new(open::open_archive(config, cluster, around).await?);
    for (repository, why) in archive.vault().unreachable() {
        tracing::warn!(repository, error = %why, "what only this repository has is not in the log");
    }
    if let Some(reachable) = archive.reachable_view() {
        archive = reachable;
    }
    let (index, _) =
        reindex::open_index_or_scratch(&archive, &open::index_dir(config)).await.context("cannot open the index")?;
    let spool = Spool::existing(&config.state_dir, &archive);
    let command = format!("walkeep restore postgres {} --pgdata DIR --start", cluster.name);
    let whose = several.then(|| LogSubject::Cluster(cluster.name.to_string()));
    let page = Arc::new(Mutex::new(LogPage::new(&around.output, args.json, command).with_subject(whose)));
    let lines = Arc::clone(&page);
    let told = log::read_log(&archive, &index, spool, question, move |happening| {
        lines.lock().unwrap_or_else(PoisonError::into_inner).add(happening)
    });
    told.await.with_context(|| format!("cannot tell what happened in {}", cluster.name))?;
    page.lock().unwrap_or_else(PoisonError::into_inner).finish()?;
    Ok(CliExitCode::Done)
}

fn build_query(args: &LogFilterArgs, around: &CliContext) -> Result<LogQuery, CliError> {
    let moment = |option: &str, text: &Option<String>| -> Result<Option<PgTime>, CliError> {
        let read = |text: &String| time::parse_time(text, around.clock.now(), &around.local_zone());
        text.as_ref().map(read).transpose().map_err(|why| CliError::usage(format!("{option}: {why}")))
    };
    let timeline = |text: &String| {
        let number = text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
        let wrong = || CliError::usage(format!("--timeline: {text:?} is no timeline; write latest or a number from 1"));
        number.and_then(TimelineId::new).ok_or_else(wrong)
    };
    Ok(LogQuery {
        since: moment("--since", &args.span.since)?,
        until: moment("--until", &args.span.until)?,
        kinds: args.events.clone(),
        relation: args.relation.clone(),
        rows: args.rows,
        timeline: args.timeline.as_ref().filter(|text| *text != "latest").map(timeline).transpose()?,
    })
}

//! `walkeep log redis`: what happened to an instance, one line an event, each with the target that undoes it.

use anyhow::Context;
use clap::Args;
use clap::builder::TypedValueParser;
use jiff::Timestamp;

use super::time_range::LogTimeArgs;
use crate::cli::args::help;
use crate::cli::args::named_values::named_value_parser;
use crate::cli::args::time;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::log::{LogPage, LogSubject};
use crate::redis::log::{self, DEFAULT_MIN_DELETED_KEYS, LogEntryKind, LogQuery};

/// In a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::LOG_REDIS_HELP)]
pub(in crate::cli) struct LogRedisArgs {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(in crate::cli) instance: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) span: LogTimeArgs,
    /// Only events of this kind; may be given again [default: all but snapshot]
    #[arg(long = "event", value_name = "KIND", value_parser = event_kind_parser())]
    pub(in crate::cli) events: Vec<LogEntryKind>,
    /// Tell deletions of so many keys in one command, in one transaction, or one after the other
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MIN_DELETED_KEYS, value_parser = clap::value_parser!(u64).range(1..))]
    pub(in crate::cli) keys: u64,
    /// Print one JSON object a line
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

fn event_kind_parser() -> impl TypedValueParser<Value = LogEntryKind> {
    named_value_parser(LogEntryKind::ALL, LogEntryKind::name)
}

/// `several`: each event says whose it is.
pub(in crate::cli) async fn run(args: LogRedisArgs, several: bool, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let of = config.instance(args.instance.as_deref())?;
    let question = LogQuery {
        since: parse_time_option("--since", args.span.since.as_deref(), around)?,
        until: parse_time_option("--until", args.span.until.as_deref(), around)?,
        kinds: args.events,
        keys: args.keys,
    };
    let archived = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &archived).await?;
    let command = format!("walkeep restore redis {} --dir DIR --start", of.name);
    let whose = several.then(|| LogSubject::Instance(of.name.to_string()));
    let mut page = LogPage::new(&around.output, args.json, command).with_subject(whose);
    let told = log::read_instance_log(&archived, &question, &mut |happening| page.add(happening)).await;
    // What was found until then is told in any case.
    page.finish()?;
    told.with_context(|| format!("cannot tell what happened in {}", of.name))?;
    Ok(CliExitCode::Done)
}

fn parse_time_option(option: &str, text: Option<&str>, around: &CliContext) -> Result<Option<Timestamp>, CliError> {
    let usage = |why: String| CliError::usage(format!("{option}: {why}"));
    let Some(text) = text else { return Ok(None) };
    let time = time::parse_time(text, around.clock.now(), &around.local_zone()).map_err(usage)?;
    time.to_timestamp().map(Some).ok_or_else(|| usage("beyond every calendar".to_owned()))
}

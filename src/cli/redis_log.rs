//! `walkeep log redis`: what happened to an instance, one line an event, each with the target that undoes it.

use anyhow::Context;
use clap::Args;
use clap::builder::TypedValueParser;
use jiff::Timestamp;

use super::Surroundings;
use super::args::{Span, named};
use super::exit::{Code, Failure};
use super::log::{COLUMNS, Page, Told};
use super::output::{Output, Tone, count};
use super::{help, moment, open};
use crate::explore::instance::{self, Happening, Kind, MANY_KEYS, Question};
use crate::postgres::time::PgTime;

/// In a Redis or Valkey instance
#[derive(Args, Debug)]
#[command(after_help = help::LOG_REDIS)]
pub(super) struct LogRedis {
    /// The instance [default: the only one configured]
    #[arg(value_name = "INSTANCE")]
    pub(super) instance: Option<String>,
    #[command(flatten)]
    pub(super) span: Span,
    /// Only events of this kind; may be given again [default: all but snapshot]
    #[arg(long = "event", value_name = "KIND", value_parser = kinds())]
    pub(super) events: Vec<Kind>,
    /// Tell deletions of so many keys in one command, in one transaction, or one after the other
    #[arg(long, value_name = "N", default_value_t = MANY_KEYS, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) keys: u64,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

fn kinds() -> impl TypedValueParser<Value = Kind> {
    named(Kind::ALL, Kind::name)
}

pub(super) async fn run(args: LogRedis, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let of = config.instance(args.instance.as_deref())?;
    let question = Question {
        since: time("--since", args.span.since.as_deref(), around)?,
        until: time("--until", args.span.until.as_deref(), around)?,
        kinds: args.events,
        keys: args.keys,
    };
    let archived = open::instance(&config, of, around).await?;
    let command = format!("walkeep restore redis {} --dir DIR --start", of.name);
    let mut page = Page::new(&around.output, args.json, command);
    let told = instance::explore(&archived, &question, &mut |happening| page.add(happening)).await;
    told.with_context(|| format!("cannot tell what happened in {}", of.name))?;
    page.end()?;
    Ok(Code::Done)
}

fn time(option: &str, text: Option<&str>, around: &Surroundings) -> Result<Option<Timestamp>, Failure> {
    let usage = |why: String| Failure::usage(format!("{option}: {why}"));
    let Some(text) = text else { return Ok(None) };
    let time = moment::read(text, around.clock.now(), &around.local_zone()).map_err(usage)?;
    time.to_timestamp().map(Some).ok_or_else(|| usage("beyond every calendar".to_owned()))
}

impl Told for Happening {
    /// Time, kind, where, how much, by how many commands, and the way back.
    fn cells(&self, out: &Output) -> [String; COLUMNS] {
        let time = out.milli_time(PgTime::from_timestamp(self.time));
        let mut what = self.database.map_or_else(String::new, |db| format!("db {db}"));
        if let Some(detail) = &self.detail {
            what = if what.is_empty() { detail.clone() } else { format!("{what}  ({detail})") };
        }
        let keys = self.keys.map_or_else(String::new, |keys| count(keys, "key"));
        let commands = self.commands.filter(|n| *n > 1 && self.kind == Kind::Delete);
        let commands = commands.map_or_else(String::new, |n| count(n, "command"));
        let place = self.offset.map_or_else(String::new, |offset| format!("at {offset}"));
        [time, self.kind.name().to_owned(), what, keys, commands, self.target.clone().unwrap_or(place)]
    }

    fn tones(&self) -> [Option<Tone>; COLUMNS] {
        let quiet = Some(Tone::Quiet);
        // Red where data were lost, yellow where they may have been.
        let kind = match self.kind {
            Kind::FlushAll | Kind::FlushDb | Kind::Delete | Kind::Gap => Tone::Bad,
            Kind::Restart | Kind::Failover => Tone::Warning,
            Kind::Snapshot => Tone::Quiet,
        };
        let what = self.database.map(|_| Tone::Strong);
        [quiet, Some(kind), what, None, quiet, if self.target.is_some() { None } else { quiet }]
    }

    fn leads_back(&self) -> bool {
        self.target.is_some()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::{Happening, Kind};
    use crate::cli::log::{COLUMNS, Told, line};
    use crate::cli::output::Output;

    #[test]
    fn an_event_is_one_line_that_ends_with_the_way_back() {
        let flushed = Happening {
            time: Timestamp::from_millisecond(6_998).unwrap(),
            offset: Some(84213),
            replid: Some("1f3ac09b0123456789abcdef0123456789abcdef".to_owned()),
            kind: Kind::FlushDb,
            database: Some(3),
            keys: None,
            commands: Some(1),
            detail: Some("7 keys in snapshot x before".to_owned()),
            target: Some("--target-offset 84213@1f3ac09b".to_owned()),
        };
        let plain = Output { styled: false, zone: TimeZone::UTC };
        let row = flushed.cells(&plain);
        let widths: [usize; COLUMNS] = std::array::from_fn(|nth| row[nth].len());
        let shown = line(&flushed, &row, widths, &plain);
        let expected =
            "1970-01-01 00:00:06.998+00  flush-db  db 3  (7 keys in snapshot x before)  --target-offset 84213@1f3ac09b";
        assert_eq!(shown, expected);
        let styled = Output { styled: true, zone: TimeZone::UTC };
        assert!(line(&flushed, &row, widths, &styled).contains("\x1b[1;31mflush-db\x1b[0m"));
    }
}

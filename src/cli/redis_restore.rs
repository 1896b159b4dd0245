//! `walkeep plan redis` and `walkeep restore redis`: resolve the target, prove it, write what a server starts from, and see that one does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};

use super::Surroundings;
use super::args::{PlanRedis, RestoreRedis, TargetRedis};
use super::exit::{Code, Failure};
use super::output::{Output, Tone, count, size, span, width, wrap};
use super::progress::Progress;
use super::restore::keep_pace;
use super::{moment, open, plan};
use crate::base::restore_estimate::{Measured, Pace, Work};
use crate::config::Config;
use crate::postgres::format::time::PgTime;
use crate::redis::archive::{Instance, Position, Reach, Unreachable, Wanted};
use crate::redis::restore::server_start::{self, Loaded};
use crate::redis::restore::{Conf, Placed, Version, Wishes, check_room, restore, server_options};
use crate::redis::wire::Flavour;

/// Where distributions keep the server's configuration.
const CONFIGURATIONS: [&str; 4] =
    ["/etc/redis/redis.conf", "/etc/redis.conf", "/etc/valkey/valkey.conf", "/etc/valkey.conf"];

/// What `plan --json` prints.
#[derive(serde::Serialize)]
pub(super) struct Plan {
    reachable: bool,
    reason: Option<String>,
    backup: Option<String>,
    /// The state reached is the one after the commands that had come by then.
    at: Option<Timestamp>,
    /// And it is that of every moment before this one.
    before: Option<Timestamp>,
    /// What is archived behind it and cannot be reached, because something is missing between.
    hole: Option<String>,
    replid: Option<String>,
    offset: Option<u64>,
    snapshot_bytes: u64,
    command_bytes: u64,
    keys_in_snapshot: u64,
    /// About how long it takes to write the files and to load them.
    estimated_seconds: u64,
    /// Restores on this machine that the estimate was made from; with none it is a guess for a modest one.
    estimated_from_restores: u64,
    nearest_before: Option<Timestamp>,
    nearest_after: Option<Timestamp>,
}

impl Plan {
    pub(super) fn of(reach: &Result<Reach, Unreachable>, pace: &Pace) -> Plan {
        let to = reach.as_ref().ok();
        let not = reach.as_ref().err();
        Plan {
            reachable: to.is_some(),
            reason: not.map(|not| not.reason.clone()),
            backup: to.map(|reach| reach.snapshot.label.clone()),
            at: to.map(|reach| reach.at),
            before: to.and_then(|reach| reach.before),
            hole: to.and_then(|reach| reach.hole).map(|hole| hole.to_string()),
            replid: to.and_then(Reach::replid).map(|id| id.to_string()),
            offset: to.and_then(|reach| reach.to).map(|cut| cut.offset),
            snapshot_bytes: to.map_or(0, |reach| reach.snapshot.logical_bytes),
            command_bytes: to.map_or(0, Reach::command_bytes),
            keys_in_snapshot: to.map_or(0, |reach| reach.snapshot.walk.keys()),
            estimated_seconds: to.map_or(0, |reach| pace.seconds(&work(reach))),
            estimated_from_restores: pace.restores(),
            nearest_before: not.and_then(|not| not.nearest_before),
            nearest_after: not.and_then(|not| not.nearest_after),
        }
    }

    /// `asked`: it was only asked for, so it ends with how `program` carries it out.
    fn show(&self, (program, instance): (&str, &str), asked: Option<&TargetRedis>, out: &Output) -> anyhow::Result<()> {
        let time = |time: Timestamp| out.time(PgTime::from_timestamp(time));
        let command = |options: &str| {
            let line = format!("{program} restore redis {instance} --dir DIR {options}");
            out.tone(Tone::Strong, line.trim_end())
        };
        let (Some(backup), Some(at)) = (&self.backup, self.at) else {
            let reason = self.reason.as_deref().unwrap_or_default();
            out.line(format!(
                "{}: {instance} cannot be restored there: {reason}",
                out.tone(Tone::Bad, "NOT REACHABLE")
            ))?;
            // Times are shown to the microsecond: rounded up, and with --nearest, they lead to the very moment, also where nothing follows it.
            let up = |time: Timestamp| time.checked_add(SignedDuration::from_nanos(999)).unwrap_or(time);
            let points = [("before", self.nearest_before.map(up)), ("after", self.nearest_after.map(up))];
            if points.iter().all(|(_, point)| point.is_none()) {
                return out
                    .line(format!("No moment near it can be reached. walkeep list redis {instance} shows which can."));
            }
            out.line("\nWhat can be reached instead:")?;
            for (side, point) in points {
                let Some(point) = point else { continue };
                out.line(format!("  {side} it: {}", time(point)))?;
                out.line(format!("    {}", command(&format!("--target-time '{}' --nearest", time(point)))))?;
            }
            return Ok(());
        };
        out.line(format!("{}: {instance} as of {}", out.tone(Tone::Good, "reachable"), time(at)))?;
        out.line(format!(
            "  snapshot  {backup}, {}, {}",
            count(self.keys_in_snapshot, "key"),
            size(self.snapshot_bytes)
        ))?;
        out.line(format!("  commands  {} behind it", size(self.command_bytes)))?;
        let basis = out.tone(Tone::Quiet, format!("  {}", plan::basis(self.estimated_from_restores)));
        out.line(format!("  takes     about {}{basis}", span(Duration::from_secs(self.estimated_seconds))))?;
        if let (Some(replid), Some(offset)) = (&self.replid, self.offset) {
            out.line(format!("  position  offset {offset} of {replid}"))?;
        }
        if let Some(before) = self.before {
            out.line(format!("  the next commands came at {}", time(before)))?;
        }
        if let Some(hole) = &self.hole {
            let warning = out.tone(Tone::Warning, "warning");
            out.line(format!("  {warning}: this is not all that is archived: {hole}"))?;
        }
        let Some(args) = asked else { return Ok(()) };
        out.line("\nTo do it:")?;
        out.line(format!("  {} --start", command(&options(args))))
    }
}

/// What a restore has to do: everything is written, and then a server loads all of it, which takes it time as replay does.
fn work(reach: &Reach) -> Work {
    let bytes = reach.snapshot.logical_bytes.saturating_add(reach.command_bytes());
    Work { file_bytes: bytes, wal_bytes: bytes, wal_records: 0 }
}

/// The options that name the same target again, for a line to copy.
fn options(args: &TargetRedis) -> String {
    let mut words = Vec::new();
    let pairs =
        [("--target-time", &args.target_time), ("--target-offset", &args.target_offset), ("--backup", &args.backup)];
    for (option, value) in pairs {
        words.extend(value.as_ref().map(|value| format!("{option} {}", open::shell_word(value))));
    }
    words.extend(args.target_immediate.then(|| "--target-immediate".to_owned()));
    words.extend(args.nearest.then(|| "--nearest".to_owned()));
    words.join(" ")
}

/// What `restore --json` prints.
#[derive(serde::Serialize)]
struct Report<'r> {
    plan: &'r Plan,
    restored: Option<&'r Placed>,
    start: Option<Vec<String>>,
    warnings: &'r [String],
    loaded: Option<&'r Loaded>,
}

pub(super) async fn plan(mut args: PlanRedis, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    args.target.target_time = args.target.target_time.map(|time| around.lasting(&time));
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let pace = Pace::load(&config.state_dir, of.name.as_str());
    let plan = Plan::of(&reach(&instance, &args.target, around).await?, &pace);
    if args.json {
        around.output.json(&plan)?;
    } else {
        plan.show((&open::again(&config, around), of.name.as_str()), Some(&args.target), &around.output)?;
    }
    Ok(if plan.reachable { Code::Done } else { Code::Unreachable })
}

pub(super) async fn run(args: RestoreRedis, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let reached = reach(&instance, &args.target, around).await?;
    let plan = Plan::of(&reached, &Pace::load(&config.state_dir, of.name.as_str()));
    if !args.json {
        plan.show((&open::again(&config, around), of.name.as_str()), None, &around.output)?;
    }
    let Ok(reach) = reached else {
        if args.json {
            around.output.json(&Report { plan: &plan, restored: None, start: None, warnings: &[], loaded: None })?;
        }
        return Ok(Code::Unreachable);
    };
    let prepared = prepare(&args, &reach, around).await?;
    let done = carry_out(&instance, &reach, (&args, &prepared), around).await?;
    done.keep_pace(&config, &instance);
    let loaded = done.loaded.as_ref();
    if args.json {
        let (start, warnings) = (Some(done.options.clone()), &done.warnings);
        let report = Report { plan: &plan, restored: Some(&done.placed), start, warnings, loaded };
        around.output.json(&report)?;
    } else {
        say_what_next(&done.options, prepared.version, loaded, &around.output)?;
    }
    Ok(Code::Done)
}

/// What a restore must know before it begins.
pub(super) struct Prepared {
    program: Option<PathBuf>,
    pub(super) version: Version,
    conf: Option<(String, Conf)>,
    dir: PathBuf,
}

pub(super) async fn prepare(args: &RestoreRedis, reach: &Reach, around: &Surroundings) -> anyhow::Result<Prepared> {
    let (program, version) = server(args, reach, around).await?;
    if args.start && program.is_none() {
        let snapshot = &reach.snapshot;
        let (name, of) = (program_name(snapshot.flavour), format!("{} {}", snapshot.flavour, snapshot.version));
        let message = format!("no {name} in $PATH, and this snapshot is {of}'s; name one with --redis-server");
        return Err(Failure::usage(message).into());
    }
    let dir = std::path::absolute(&args.dir).context("cannot tell where the files go")?;
    check_room(reach, &dir).with_context(|| format!("cannot restore into {}", dir.display()))?;
    Ok(Prepared { program, version, conf: configuration(args)?, dir })
}

/// What a restore came to.
#[derive(serde::Serialize)]
pub(super) struct Done {
    #[serde(rename = "restored")]
    pub(super) placed: Placed,
    pub(super) warnings: Vec<String>,
    pub(super) loaded: Option<Loaded>,
    /// The options that a server is to be started with.
    #[serde(rename = "start")]
    pub(super) options: Vec<String>,
    /// How long it took, if a server was started.
    #[serde(skip)]
    measured: Option<Measured>,
}

impl Done {
    pub(super) fn keep_pace(&self, config: &Config, instance: &Instance) {
        if let Some(measured) = self.measured {
            keep_pace(config, instance.name().as_str(), measured);
        }
    }
}

/// Places the files, says so, and starts a server on them if that is wanted.
pub(super) async fn carry_out(
    instance: &Instance,
    reach: &Reach,
    (args, prepared): (&RestoreRedis, &Prepared),
    around: &Surroundings,
) -> anyhow::Result<Done> {
    let Prepared { program, version, conf, dir } = prepared;
    let names = conf.as_ref().map(|(_, conf)| conf.names.clone()).unwrap_or_default();
    let began = around.clock.elapsed();
    let bar = Progress::begin("restore", 0, around.quiet || args.json);
    let wishes = Wishes { dir: dir.clone(), version: *version, names: names.clone() };
    let placed = restore(instance, reach, wishes, &mut |done, total| bar.at(done, total)).await;
    bar.end();
    let placed = placed.with_context(|| format!("cannot restore into {}", dir.display()))?;
    let took = around.clock.elapsed().saturating_sub(began);
    let mut warnings = if conf.is_none() { unread(&CONFIGURATIONS) } else { Vec::new() };
    warnings.extend(server_options::warnings(
        &placed,
        conf.as_ref().map(|(name, conf)| (name.as_str(), conf)),
        *version,
    ));
    if !args.json {
        let (files, bytes) = (count(placed.files.len() as u64, "file"), size(placed.bytes));
        around.output.line(format!("\nrestored {files}, {bytes}, into {} in {}", dir.display(), span(took)))?;
        for warning in &warnings {
            around.output.line(format!("{}: {warning}", around.output.tone(Tone::Warning, "warning")))?;
        }
    }
    let began = around.clock.elapsed();
    let loaded = match program.as_ref().filter(|_| args.start) {
        Some(program) => {
            let loaded = server_start::check(program, &placed, &names, &around.clock).await;
            Some(loaded.context("the files are restored, but a server does not come up on them as it should")?)
        }
        None => None,
    };
    let options = server_options::options(&placed, &names);
    let loading = around.clock.elapsed().saturating_sub(began);
    let measured = loaded.as_ref().map(|_| Measured {
        work: work(reach),
        file_seconds: took.as_secs_f64(),
        replay_seconds: loading.as_secs_f64(),
    });
    Ok(Done { placed, warnings, loaded, options, measured })
}

async fn reach(
    instance: &Instance,
    args: &TargetRedis,
    around: &Surroundings,
) -> anyhow::Result<Result<Reach, Unreachable>> {
    let usage = |why: &dyn std::fmt::Display| Failure::usage(format!("--target-time: {why}"));
    let wanted = match &args.target_time {
        Some(text) => {
            let time = moment::read(text, around.clock.now(), &around.local_zone()).map_err(|why| usage(&why))?;
            Wanted::Time(time.to_timestamp().ok_or_else(|| usage(&"beyond every calendar"))?)
        }
        None if args.target_offset.is_some() => {
            place(instance, args.target_offset.as_deref().unwrap_or_default()).await?
        }
        None if args.target_immediate => Wanted::Snapshot,
        None => Wanted::Newest,
    };
    let from = args.backup.as_deref();
    let failed = || format!("cannot plan a restore of {}", instance.name());
    if let Some(label) = from
        && !instance.has_snapshot(label).await.with_context(failed)?
    {
        let name = instance.name();
        let message =
            format!("there is no snapshot {label:?} of {name}; walkeep list redis {name} shows which there are");
        return Err(Failure { code: Code::NotFound, message }.into());
    }
    let found = instance.reach(wanted, from).await.with_context(failed)?;
    match &found {
        Err(Unreachable { nearest_before: Some(nearest), .. }) if args.nearest => {
            Ok(instance.reach(Wanted::Time(*nearest), from).await.with_context(failed)?)
        }
        _ => Ok(found),
    }
}

/// The place that is meant: its history must be the only one of that name that has it.
async fn place(instance: &Instance, text: &str) -> anyhow::Result<Wanted> {
    let position: Position = text.parse().map_err(|why| Failure::usage(format!("--target-offset: {why}")))?;
    let found = instance.histories_at(&position).await;
    let found = found.with_context(|| format!("cannot plan a restore of {}", instance.name()))?;
    match found.as_slice() {
        [replid] => Ok(Wanted::Offset(*replid, position.offset)),
        [] => {
            let why = format!("--target-offset: nothing that is archived of {} has offset {position}", instance.name());
            Err(Failure { code: Code::NotFound, message: why }.into())
        }
        several => {
            let named: Vec<String> =
                several.iter().map(|replid| Position::of(*replid, position.offset).to_string()).collect();
            Err(Failure::usage(format!("--target-offset: say which history: {}", named.join(" or "))).into())
        }
    }
}

/// The server to restore for: the one named or found, else one like that of the snapshot.
async fn server(
    args: &RestoreRedis,
    reach: &Reach,
    around: &Surroundings,
) -> anyhow::Result<(Option<PathBuf>, Version)> {
    if let Some(program) = &args.server.redis_server {
        return Ok((Some(program.clone()), server_start::version_of(program).await?));
    }
    let snapshot = &reach.snapshot;
    let name = program_name(snapshot.flavour);
    let path = around.environment.get("PATH").unwrap_or_default();
    let found = std::env::split_paths(path).map(|folder| folder.join(name)).find(|program| program.is_file());
    if let Some(program) = found
        && let Ok(version) = server_start::version_of(&program).await
    {
        return Ok((Some(program), version));
    }
    let version = Version::parse(snapshot.flavour, &snapshot.version);
    let unknown = || {
        let version = &snapshot.version;
        Failure::usage(format!(
            "the snapshot does not say for which server it is ({version}); name one with --redis-server"
        ))
    };
    Ok((None, version.ok_or_else(unknown)?))
}

/// The server's configuration: the one named, or the one where distributions keep it.
fn configuration(args: &RestoreRedis) -> anyhow::Result<Option<(String, Conf)>> {
    let name = |path: &Path| path.display().to_string();
    if let Some(path) = &args.server.redis_conf {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(Some((name(path), Conf::parse(&text))));
    }
    // Nothing depends on it but advice.
    let read = |path: &str| Some((path.to_owned(), Conf::parse(&std::fs::read_to_string(path).ok()?)));
    Ok(CONFIGURATIONS.iter().find_map(|path| read(path)))
}

/// Configurations that are there and cannot be read, so that nobody can say what they would have the server ignore.
fn unread(places: &[&str]) -> Vec<String> {
    let mut said = Vec::new();
    for path in places {
        match std::fs::File::open(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                said.push(format!("{path} is not checked: cannot read it ({error}); name one with --redis-conf"));
            }
            _ => {}
        }
    }
    said
}

pub(super) fn say_what_next(
    options: &[String],
    version: Version,
    loaded: Option<&Loaded>,
    out: &Output,
) -> anyhow::Result<()> {
    if let Some(loaded) = loaded {
        let keys: u64 = loaded.keys.values().sum();
        let how = if loaded.compared { ", as the snapshot says" } else { " after the commands behind the snapshot" };
        let checked = out.tone(Tone::Good, "checked");
        out.line(format!("{checked}: {} loads it and has {}{how}", loaded.server, count(keys, "key")))?;
    }
    let program = program_name(version.flavour);
    let words: Vec<String> = options.iter().map(|word| open::shell_word(word)).collect();
    out.line(format!("start it with: {program} {}", words.join(" ")))?;
    let note = "Keep these options in its configuration: started without them it ignores these files, and loads something else or nothing.";
    wrap(note, width()).iter().try_for_each(|line| out.line(out.tone(Tone::Quiet, line)))
}

/// What the server's program is called.
const fn program_name(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Valkey => "valkey-server",
        Flavour::Redis => "redis-server",
    }
}

#[cfg(test)]
mod tests {
    use super::{TargetRedis, options, unread};

    #[test]
    fn a_configuration_that_cannot_be_read_is_said_and_one_that_is_not_there_is_not() {
        // Neither can be opened, by root either.
        let said = unread(&["/nowhere/redis.conf", "/dev/null/redis.conf"]);
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("/dev/null/redis.conf is not checked: cannot read it ("), "{said:?}");
    }

    #[test]
    fn the_same_target_is_named_again() {
        let time = Some("2026-11-22 14:00:00+00".into());
        let target = TargetRedis { target_time: time, nearest: true, ..TargetRedis::default() };
        assert_eq!(options(&target), "--target-time '2026-11-22 14:00:00+00' --nearest");
    }
}

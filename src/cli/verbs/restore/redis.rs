//! `walkeep plan redis` and `walkeep restore redis`: resolve the target, prove it, write what a server starts from, and see that one does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};

use super::postgres::save_restore_speed;
use crate::base::restore_estimate::{MeasuredRestore, RestoreEstimator, RestoreWork};
use crate::cli::CliContext;
use crate::cli::args::{PlanRedisArgs, RedisTargetArgs, RestoreRedisArgs};
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::output::{
    TerminalOutput, TextTone, format_bytes, format_count, format_duration, text_width, wrap_text,
};
use crate::cli::progress::ProgressDisplay;
use crate::cli::show::plan::postgres as plan;
use crate::cli::{moment, open};
use crate::config::Config;
use crate::postgres::format::time::PgTime;
use crate::redis::archive::{Archive, RedisTarget, RestoreRoute, StreamPosition, UnreachableState};
use crate::redis::restore::server_start::{self, LoadedData};
use crate::redis::restore::{
    PlacedFiles, RedisConf, RedisVersion, RestoreOptions, check_free_space, restore_instance, server_options,
};
use crate::redis::wire::ServerFlavour;

/// Where distributions keep the server's configuration.
const REDIS_CONF_PATHS: [&str; 4] =
    ["/etc/redis/redis.conf", "/etc/redis.conf", "/etc/valkey/valkey.conf", "/etc/valkey.conf"];

/// What `plan --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct RedisPlanJson {
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

impl RedisPlanJson {
    pub(in crate::cli) fn from_route(
        reach: &Result<RestoreRoute, UnreachableState>,
        pace: &RestoreEstimator,
    ) -> RedisPlanJson {
        let to = reach.as_ref().ok();
        let not = reach.as_ref().err();
        RedisPlanJson {
            reachable: to.is_some(),
            reason: not.map(|not| not.reason.clone()),
            backup: to.map(|reach| reach.snapshot.label.clone()),
            at: to.map(|reach| reach.at),
            before: to.and_then(|reach| reach.before),
            hole: to.and_then(|reach| reach.hole).map(|hole| hole.to_string()),
            replid: to.and_then(RestoreRoute::replid).map(|id| id.to_string()),
            offset: to.and_then(|reach| reach.to).map(|cut| cut.offset),
            snapshot_bytes: to.map_or(0, |reach| reach.snapshot.logical_bytes),
            command_bytes: to.map_or(0, RestoreRoute::command_bytes),
            keys_in_snapshot: to.map_or(0, |reach| reach.snapshot.walk.keys()),
            estimated_seconds: to.map_or(0, |reach| pace.estimated_seconds(&estimated_work(reach))),
            estimated_from_restores: pace.restores(),
            nearest_before: not.and_then(|not| not.nearest_before),
            nearest_after: not.and_then(|not| not.nearest_after),
        }
    }

    /// `asked`: it was only asked for, so it ends with how `program` carries it out.
    fn print_plan(
        &self,
        (program, instance): (&str, &str),
        asked: Option<&RedisTargetArgs>,
        out: &TerminalOutput,
    ) -> anyhow::Result<()> {
        let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
        let command = |options: &str| {
            let line = format!("{program} restore redis {instance} --dir DIR {options}");
            out.style(TextTone::Strong, line.trim_end())
        };
        let (Some(backup), Some(at)) = (&self.backup, self.at) else {
            let reason = self.reason.as_deref().unwrap_or_default();
            out.print_line(format!(
                "{}: {instance} cannot be restored there: {reason}",
                out.style(TextTone::Bad, "NOT REACHABLE")
            ))?;
            // Times are shown to the microsecond: rounded up, and with --nearest, they lead to the very moment, also where nothing follows it.
            let up = |time: Timestamp| time.checked_add(SignedDuration::from_nanos(999)).unwrap_or(time);
            let points = [("before", self.nearest_before.map(up)), ("after", self.nearest_after.map(up))];
            if points.iter().all(|(_, point)| point.is_none()) {
                return out.print_line(format!(
                    "No moment near it can be reached. walkeep list redis {instance} shows which can."
                ));
            }
            out.print_line("\nWhat can be reached instead:")?;
            for (side, point) in points {
                let Some(point) = point else { continue };
                out.print_line(format!("  {side} it: {}", time(point)))?;
                out.print_line(format!("    {}", command(&format!("--target-time '{}' --nearest", time(point)))))?;
            }
            return Ok(());
        };
        out.print_line(format!("{}: {instance} as of {}", out.style(TextTone::Good, "reachable"), time(at)))?;
        out.print_line(format!(
            "  snapshot  {backup}, {}, {}",
            format_count(self.keys_in_snapshot, "key"),
            format_bytes(self.snapshot_bytes)
        ))?;
        out.print_line(format!("  commands  {} behind it", format_bytes(self.command_bytes)))?;
        let basis = out.style(TextTone::Quiet, format!("  {}", plan::estimate_basis(self.estimated_from_restores)));
        out.print_line(format!(
            "  takes     about {}{basis}",
            format_duration(Duration::from_secs(self.estimated_seconds))
        ))?;
        if let (Some(replid), Some(offset)) = (&self.replid, self.offset) {
            out.print_line(format!("  position  offset {offset} of {replid}"))?;
        }
        if let Some(before) = self.before {
            out.print_line(format!("  the next commands came at {}", time(before)))?;
        }
        if let Some(hole) = &self.hole {
            let warning = out.style(TextTone::Warning, "warning");
            out.print_line(format!("  {warning}: this is not all that is archived: {hole}"))?;
        }
        let Some(args) = asked else { return Ok(()) };
        out.print_line("\nTo do it:")?;
        out.print_line(format!("  {} --start", command(&target_options(args))))
    }
}

/// What a restore has to do: everything is written, and then a server loads all of it, which takes it time as replay does.
fn estimated_work(reach: &RestoreRoute) -> RestoreWork {
    let bytes = reach.snapshot.logical_bytes.saturating_add(reach.command_bytes());
    RestoreWork { file_bytes: bytes, wal_bytes: bytes, wal_records: 0 }
}

/// The options that name the same target again, for a line to copy.
fn target_options(args: &RedisTargetArgs) -> String {
    let mut words = Vec::new();
    let pairs =
        [("--target-time", &args.target_time), ("--target-offset", &args.target_offset), ("--backup", &args.backup)];
    for (option, value) in pairs {
        words.extend(value.as_ref().map(|value| format!("{option} {}", open::quote_for_postgres_command(value))));
    }
    words.extend(args.target_immediate.then(|| "--target-immediate".to_owned()));
    words.extend(args.nearest.then(|| "--nearest".to_owned()));
    words.join(" ")
}

/// What `restore --json` prints.
#[derive(serde::Serialize)]
struct RedisRestoreJson<'r> {
    plan: &'r RedisPlanJson,
    restored: Option<&'r PlacedFiles>,
    start: Option<Vec<String>>,
    warnings: &'r [String],
    loaded: Option<&'r LoadedData>,
}

pub(in crate::cli) async fn run_plan(mut args: PlanRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    args.target.target_time = args.target.target_time.map(|time| around.absolute_time(&time));
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let pace = RestoreEstimator::load(&config.state_dir, of.name.as_str());
    let plan = RedisPlanJson::from_route(&resolve_target(&instance, &args.target, around).await?, &pace);
    if args.json {
        around.output.print_json(&plan)?;
    } else {
        plan.print_plan(
            (&open::shell_command_prefix(&config, around), of.name.as_str()),
            Some(&args.target),
            &around.output,
        )?;
    }
    Ok(if plan.reachable { CliExitCode::Done } else { CliExitCode::Unreachable })
}

pub(in crate::cli) async fn run_restore(args: RestoreRedisArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let of = config.instance(args.instance.as_deref())?;
    let instance = open::open_instance(&config, of, around).await?;
    open::ensure_archived(&config, &instance).await?;
    let reached = resolve_target(&instance, &args.target, around).await?;
    let plan = RedisPlanJson::from_route(&reached, &RestoreEstimator::load(&config.state_dir, of.name.as_str()));
    if !args.json {
        plan.print_plan((&open::shell_command_prefix(&config, around), of.name.as_str()), None, &around.output)?;
    }
    let Ok(reach) = reached else {
        if args.json {
            around.output.print_json(&RedisRestoreJson {
                plan: &plan,
                restored: None,
                start: None,
                warnings: &[],
                loaded: None,
            })?;
        }
        return Ok(CliExitCode::Unreachable);
    };
    let prepared = prepare_restore(&args, &reach, around).await?;
    let done = restore_and_check(&instance, &reach, (&args, &prepared), around).await?;
    done.save_restore_speed(&config, &instance);
    let loaded = done.loaded.as_ref();
    if args.json {
        let (start, warnings) = (Some(done.options.clone()), &done.warnings);
        let report = RedisRestoreJson { plan: &plan, restored: Some(&done.placed), start, warnings, loaded };
        around.output.print_json(&report)?;
    } else {
        print_next_command(&done.options, prepared.version, loaded, &around.output)?;
    }
    Ok(CliExitCode::Done)
}

/// What a restore must know before it begins.
pub(in crate::cli) struct PreparedRedisRestore {
    program: Option<PathBuf>,
    pub(in crate::cli) version: RedisVersion,
    conf: Option<(String, RedisConf)>,
    dir: PathBuf,
}

pub(in crate::cli) async fn prepare_restore(
    args: &RestoreRedisArgs,
    reach: &RestoreRoute,
    around: &CliContext,
) -> anyhow::Result<PreparedRedisRestore> {
    let (program, version) = find_server_program(args, reach, around).await?;
    if args.start && program.is_none() {
        let snapshot = &reach.snapshot;
        let (name, of) = (program_name(snapshot.flavour), format!("{} {}", snapshot.flavour, snapshot.version));
        let message = format!("no {name} in $PATH, and this snapshot is {of}'s; name one with --redis-server");
        return Err(CliError::usage(message).into());
    }
    let dir = std::path::absolute(&args.dir).context("cannot tell where the files go")?;
    check_free_space(reach, &dir).with_context(|| format!("cannot restore into {}", dir.display()))?;
    Ok(PreparedRedisRestore { program, version, conf: read_redis_conf(args)?, dir })
}

/// What a restore came to.
#[derive(serde::Serialize)]
pub(in crate::cli) struct FinishedRedisRestore {
    #[serde(rename = "restored")]
    pub(in crate::cli) placed: PlacedFiles,
    pub(in crate::cli) warnings: Vec<String>,
    pub(in crate::cli) loaded: Option<LoadedData>,
    /// The options that a server is to be started with.
    #[serde(rename = "start")]
    pub(in crate::cli) options: Vec<String>,
    /// How long it took, if a server was started.
    #[serde(skip)]
    measured: Option<MeasuredRestore>,
}

impl FinishedRedisRestore {
    pub(in crate::cli) fn save_restore_speed(&self, config: &Config, instance: &Archive) {
        if let Some(measured) = self.measured {
            save_restore_speed(config, instance.name().as_str(), measured);
        }
    }
}

/// Places the files, says so, and starts a server on them if that is wanted.
pub(in crate::cli) async fn restore_and_check(
    instance: &Archive,
    reach: &RestoreRoute,
    (args, prepared): (&RestoreRedisArgs, &PreparedRedisRestore),
    around: &CliContext,
) -> anyhow::Result<FinishedRedisRestore> {
    let PreparedRedisRestore { program, version, conf, dir } = prepared;
    let names = conf.as_ref().map(|(_, conf)| conf.names.clone()).unwrap_or_default();
    let began = around.clock.elapsed();
    let bar = ProgressDisplay::new("restore", 0, around.quiet || args.json);
    let wishes = RestoreOptions { dir: dir.clone(), version: *version, names: names.clone() };
    let placed = restore_instance(instance, reach, wishes, &mut |done, total| bar.set_done(done, total)).await;
    bar.finish();
    let placed = placed.with_context(|| format!("cannot restore into {}", dir.display()))?;
    let took = around.clock.elapsed().saturating_sub(began);
    let mut warnings = if conf.is_none() { unreadable_configurations(&REDIS_CONF_PATHS) } else { Vec::new() };
    warnings.extend(server_options::configuration_warnings(
        &placed,
        conf.as_ref().map(|(name, conf)| (name.as_str(), conf)),
        *version,
    ));
    if !args.json {
        let (files, bytes) = (format_count(placed.files.len() as u64, "file"), format_bytes(placed.bytes));
        around.output.print_line(format!(
            "\nrestored {files}, {bytes}, into {} in {}",
            dir.display(),
            format_duration(took)
        ))?;
        for warning in &warnings {
            around.output.print_line(format!("{}: {warning}", around.output.style(TextTone::Warning, "warning")))?;
        }
    }
    let began = around.clock.elapsed();
    let loaded = match program.as_ref().filter(|_| args.start) {
        Some(program) => {
            let loaded = server_start::check_server_loads(program, &placed, &names, &around.clock).await;
            Some(loaded.context("the files are restored, but a server does not come up on them as it should")?)
        }
        None => None,
    };
    let options = server_options::server_options(&placed, &names);
    let loading = around.clock.elapsed().saturating_sub(began);
    let measured = loaded.as_ref().map(|_| MeasuredRestore {
        work: estimated_work(reach),
        file_seconds: took.as_secs_f64(),
        replay_seconds: loading.as_secs_f64(),
    });
    Ok(FinishedRedisRestore { placed, warnings, loaded, options, measured })
}

async fn resolve_target(
    instance: &Archive,
    args: &RedisTargetArgs,
    around: &CliContext,
) -> anyhow::Result<Result<RestoreRoute, UnreachableState>> {
    let usage = |why: &dyn std::fmt::Display| CliError::usage(format!("--target-time: {why}"));
    let wanted = match &args.target_time {
        Some(text) => {
            let time = moment::parse_time(text, around.clock.now(), &around.local_zone()).map_err(|why| usage(&why))?;
            RedisTarget::Time(time.to_timestamp().ok_or_else(|| usage(&"beyond every calendar"))?)
        }
        None if args.target_offset.is_some() => {
            resolve_position(instance, args.target_offset.as_deref().unwrap_or_default()).await?
        }
        None if args.target_immediate => RedisTarget::Snapshot,
        None => RedisTarget::Newest,
    };
    let from = args.backup.as_deref();
    let failed = || format!("cannot plan a restore of {}", instance.name());
    if let Some(label) = from
        && !instance.has_snapshot(label).await.with_context(failed)?
    {
        let name = instance.name();
        let message =
            format!("there is no snapshot {label:?} of {name}; walkeep list redis {name} shows which there are");
        return Err(CliError { code: CliExitCode::NotFound, message }.into());
    }
    let found = instance.resolve_target(wanted, from).await.with_context(failed)?;
    match &found {
        Err(UnreachableState { nearest_before: Some(nearest), .. }) if args.nearest => {
            Ok(instance.resolve_target(RedisTarget::Time(*nearest), from).await.with_context(failed)?)
        }
        _ => Ok(found),
    }
}

/// The place that is meant: its history must be the only one of that name that has it.
async fn resolve_position(instance: &Archive, text: &str) -> anyhow::Result<RedisTarget> {
    let position: StreamPosition = text.parse().map_err(|why| CliError::usage(format!("--target-offset: {why}")))?;
    let found = instance.find_histories_at(&position).await;
    let found = found.with_context(|| format!("cannot plan a restore of {}", instance.name()))?;
    match found.as_slice() {
        [replid] => Ok(RedisTarget::Offset(*replid, position.offset)),
        [] => {
            let why = format!("--target-offset: nothing that is archived of {} has offset {position}", instance.name());
            Err(CliError { code: CliExitCode::NotFound, message: why }.into())
        }
        several => {
            let named: Vec<String> =
                several.iter().map(|replid| StreamPosition::new(*replid, position.offset).to_string()).collect();
            Err(CliError::usage(format!("--target-offset: say which history: {}", named.join(" or "))).into())
        }
    }
}

/// The server to restore for: the one named or found, else one like that of the snapshot.
async fn find_server_program(
    args: &RestoreRedisArgs,
    reach: &RestoreRoute,
    around: &CliContext,
) -> anyhow::Result<(Option<PathBuf>, RedisVersion)> {
    if let Some(program) = &args.server.redis_server {
        return Ok((Some(program.clone()), server_start::query_server_version(program).await?));
    }
    let snapshot = &reach.snapshot;
    let name = program_name(snapshot.flavour);
    let path = around.environment.get("PATH").unwrap_or_default();
    let found = std::env::split_paths(path).map(|folder| folder.join(name)).find(|program| program.is_file());
    if let Some(program) = found
        && let Ok(version) = server_start::query_server_version(&program).await
    {
        return Ok((Some(program), version));
    }
    let version = RedisVersion::parse(snapshot.flavour, &snapshot.version);
    let unknown = || {
        let version = &snapshot.version;
        CliError::usage(format!(
            "the snapshot does not say for which server it is ({version}); name one with --redis-server"
        ))
    };
    Ok((None, version.ok_or_else(unknown)?))
}

/// The server's configuration: the one named, or the one where distributions keep it.
fn read_redis_conf(args: &RestoreRedisArgs) -> anyhow::Result<Option<(String, RedisConf)>> {
    let name = |path: &Path| path.display().to_string();
    if let Some(path) = &args.server.redis_conf {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(Some((name(path), RedisConf::parse(&text))));
    }
    // Nothing depends on it but advice.
    let read = |path: &str| Some((path.to_owned(), RedisConf::parse(&std::fs::read_to_string(path).ok()?)));
    Ok(REDIS_CONF_PATHS.iter().find_map(|path| read(path)))
}

/// Configurations that are there and cannot be read, so that nobody can say what they would have the server ignore.
fn unreadable_configurations(places: &[&str]) -> Vec<String> {
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

pub(in crate::cli) fn print_next_command(
    options: &[String],
    version: RedisVersion,
    loaded: Option<&LoadedData>,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    if let Some(loaded) = loaded {
        let keys: u64 = loaded.keys.values().sum();
        let how = if loaded.compared { ", as the snapshot says" } else { " after the commands behind the snapshot" };
        let checked = out.style(TextTone::Good, "checked");
        out.print_line(format!("{checked}: {} loads it and has {}{how}", loaded.server, format_count(keys, "key")))?;
    }
    let program = program_name(version.flavour);
    let words: Vec<String> = options.iter().map(|word| open::quote_for_postgres_command(word)).collect();
    out.print_line(format!("start it with: {program} {}", words.join(" ")))?;
    let note = "Keep these options in its configuration: started without them it ignores these files, and loads something else or nothing.";
    wrap_text(note, text_width()).iter().try_for_each(|line| out.print_line(out.style(TextTone::Quiet, line)))
}

/// What the server's program is called.
const fn program_name(flavour: ServerFlavour) -> &'static str {
    match flavour {
        ServerFlavour::Valkey => "valkey-server",
        ServerFlavour::Redis => "redis-server",
    }
}

#[cfg(test)]
mod tests {
    use super::{RedisTargetArgs, target_options, unreadable_configurations};

    #[test]
    fn a_configuration_that_cannot_be_read_is_said_and_one_that_is_not_there_is_not() {
        // Neither can be opened, by root either.
        let said = unreadable_configurations(&["/nowhere/redis.conf", "/dev/null/redis.conf"]);
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("/dev/null/redis.conf is not checked: cannot read it ("), "{said:?}");
    }

    #[test]
    fn the_same_target_is_named_again() {
        let time = Some("2026-11-22 14:00:00+00".into());
        let target = RedisTargetArgs { target_time: time, nearest: true, ..RedisTargetArgs::default() };
        assert_eq!(target_options(&target), "--target-time '2026-11-22 14:00:00+00' --nearest");
    }
}

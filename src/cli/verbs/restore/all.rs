//! `walkeep plan all` and `walkeep restore all`: a PostgreSQL cluster and a Redis instance to one moment.
//!
//! Both are planned before either is touched. PostgreSQL stops before the first commit that its server's clock stamped later than the moment;
//! Redis holds the commands that the receiver had by the last mark up to the moment, by the clock of the receiver's machine. What Redis may lack
//! lies between that mark and the moment; with what the two clocks differed by, this is the bound on the skew that is printed ([`super::skew`]).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;

use super::{postgres as restore, redis as redis_restore};
use crate::base::restore_estimate::{MeasuredRestore, RestoreEstimator};
use crate::cli::CliContext;
use crate::cli::args::{
    ArchiveModeAfterRestore, PostgresServerArgs, PostgresTargetArgs, RedisServerArgs, RedisTargetArgs,
    RestorePostgresArgs, RestoreRedisArgs, SelectiveRestoreArgs, TargetActionArg,
};
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::output::{TerminalOutput, TextTone, format_bytes, format_count, format_duration, wrap_text};
use crate::cli::{help, moment, open};
use crate::config::{self, ClusterConfig, Config};
use crate::joint::common_moment::{IdleInterval, MAX_AGREEMENT_ROUNDS, MomentAnswer, find_common_moment};
use crate::joint::skew::{self, ClockSkew};
use crate::postgres::archive::Archive;
use crate::postgres::format::time::PgTime;
use crate::postgres::restore::destination::{check_created_tablespaces, free_bytes_at};
use crate::postgres::restore::plan::{CommitPoint, RestorePlan};
use crate::postgres::restore::server_start::{ReachedTarget, ServerStart};
use crate::postgres::restore::{RestoreOptions, RestoredCluster};
use crate::redis;
use crate::redis::archive::{RedisTarget, RestoreRoute, UnreachableState};
use crate::redis::format::resp::{CommandKind, CommandLimits, CommandParser};

/// The column at which what is said begins, after its name.
const VALUE_COLUMN: usize = 17;

/// PostgreSQL and Redis to one moment: would both reach it, and how near to each other; touches nothing
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_ALL_HELP)]
pub(in crate::cli) struct PlanAllArgs {
    #[command(flatten)]
    pub(in crate::cli) which: JointTargetArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct JointTargetArgs {
    /// The moment: RFC 3339, PostgreSQL's spelling with a zone, "now", or "5 minutes ago"
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) target_time: String,
    /// Take the newest moment before that both can reach if one of them cannot reach it
    #[arg(long)]
    pub(in crate::cli) nearest: bool,
    /// The PostgreSQL cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// The Redis instance [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) instance: Option<String>,
}

/// PostgreSQL and Redis to one moment
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_ALL_HELP)]
pub(in crate::cli) struct RestoreAllArgs {
    /// The empty or new folder for PostgreSQL
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) pgdata: PathBuf,
    /// The empty or new folder for Redis, which becomes the server's dir
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) redis_dir: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) which: JointTargetArgs,
    /// What PostgreSQL does at the moment
    #[arg(long, value_enum, default_value_t, value_name = "ACTION")]
    pub(in crate::cli) target_action: TargetActionArg,
    /// Put the tablespace that was in OLD into NEW; once for each
    #[arg(long = "tablespace-mapping", value_name = "OLD=NEW")]
    pub(in crate::cli) tablespaces: Vec<String>,
    /// Start PostgreSQL and wait until it is there; start a Redis on its files that nobody can reach, compare, and end it
    #[arg(long)]
    pub(in crate::cli) start: bool,
    #[command(flatten)]
    pub(in crate::cli) server: PostgresServerArgs,
    #[command(flatten)]
    pub(in crate::cli) redis_server: RedisServerArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// The last command that changed anything.
#[derive(serde::Serialize)]
struct LastCommand {
    name: String,
    database: u32,
    /// The offset after it.
    offset: u64,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct JointRestoreJson<'r> {
    reachable: bool,
    reason: Option<String>,
    asked: PgTime,
    /// The moment that both go to: another than asked for only with `--nearest`.
    moment: PgTime,
    /// The newest moment before that both can reach.
    nearest: Option<PgTime>,
    /// By so much Redis goes back to there only because no later commit of PostgreSQL is archived.
    redis_goes_back_seconds: Option<f64>,
    skew: Option<&'r ClockSkew>,
    postgres: JointPostgresJson<'r>,
    redis: JointRedisJson<'r>,
}

#[derive(serde::Serialize)]
struct JointPostgresJson<'r> {
    cluster: &'r str,
    plan: &'r RestorePlan,
    restored: Option<&'r RestoredCluster>,
    reached: Option<&'r ReachedTarget>,
}

#[derive(serde::Serialize)]
struct JointRedisJson<'r> {
    instance: &'r str,
    plan: redis_restore::RedisPlanJson,
    last_command: Option<&'r LastCommand>,
    #[serde(flatten)]
    done: Option<&'r redis_restore::FinishedRedisRestore>,
}

/// Both, planned to one moment.
struct JointPlan<'c> {
    cluster: &'c ClusterConfig,
    instance_config: &'c config::InstanceConfig,
    archive: Arc<Archive>,
    instance: redis::archive::Archive,
    asked: Timestamp,
    moment: Timestamp,
    plan: RestorePlan,
    reach: Result<RestoreRoute, UnreachableState>,
    /// Whether both plans are for one moment.
    moment_agreed: bool,
    idle: Option<IdleInterval>,
    last_command: Option<LastCommand>,
    skew: Option<ClockSkew>,
    /// How fast this machine restores the instance.
    pace: RestoreEstimator,
}

impl<'c> JointPlan<'c> {
    async fn make(
        config: &'c Config,
        which: &JointTargetArgs,
        pgdata: Option<&Path>,
        around: &CliContext,
    ) -> anyhow::Result<JointPlan<'c>> {
        let (cluster, of) = named_stores(config, which)?;
        let usage = |why: &dyn std::fmt::Display| CliError::usage(format!("--target-time: {why}"));
        let read = moment::parse_time(&which.target_time, around.clock.now(), &around.local_zone());
        let asked = read.map_err(|why| usage(&why))?;
        let asked = asked.to_timestamp().ok_or_else(|| usage(&"beyond every calendar"))?;
        let instance = open::open_instance(config, of, around).await?;
        open::ensure_archived(config, &instance).await?;
        let (archive, plan) = plan_postgres(config, cluster, (asked, false, pgdata), around).await?;
        let reach = resolve_redis_target(&instance, asked).await?;
        let pace = RestoreEstimator::load(&config.state_dir, of.name.as_str());
        let mut both = JointPlan {
            cluster,
            instance_config: of,
            archive,
            instance,
            asked,
            moment: asked,
            plan,
            reach,
            moment_agreed: true,
            idle: None,
            last_command: None,
            skew: None,
            pace,
        };
        both.idle = both.idle_interval();
        if let (true, false, Some(nearest)) = (which.nearest, both.is_reachable(), both.nearest_common_moment()) {
            let settled = find_common_moment(nearest, async |moment| {
                both.moment = moment;
                (_, both.plan) = plan_postgres(config, cluster, (moment, true, pgdata), around).await?;
                both.reach = resolve_redis_target(&both.instance, moment).await?;
                Ok::<_, anyhow::Error>([MomentAnswer::from_plan(&both.plan, moment), both.redis_answer()])
            });
            let settled = settled.await?;
            both.moment_agreed = settled.is_some();
        }
        if let (true, Ok(reach)) = (both.is_reachable(), &both.reach) {
            both.last_command = find_last_command(&both.instance, reach).await?;
            let found = skew::read_clock_at(&both.archive, &both.plan, both.moment).await;
            both.skew = Some(ClockSkew::new(reach, both.moment, &found, (cluster.name.as_str(), of.name.as_str())));
        }
        Ok(both)
    }

    fn is_reachable(&self) -> bool {
        self.moment_agreed && self.plan.reachable && self.reach.is_ok()
    }

    /// Where Redis goes that was asked for the moment.
    fn redis_answer(&self) -> MomentAnswer {
        match &self.reach {
            Ok(_) => MomentAnswer::Reached,
            Err(not) => not.nearest_before.map_or(MomentAnswer::Unreachable, MomentAnswer::ReachedEarlier),
        }
    }

    /// Only PostgreSQL keeps both from what was asked for, and only as it has had no commit since.
    fn idle_interval(&self) -> Option<IdleInterval> {
        let until = match &self.reach {
            Ok(_) => Some(self.asked),
            Err(not) => not.nearest_before,
        };
        IdleInterval::new(self.plan.idle_since()?.to_timestamp()?, until?)
    }

    /// The newest moment up to the one that was asked for that both reach, as far as each of them tells.
    fn nearest_common_moment(&self) -> Option<Timestamp> {
        if !self.moment_agreed {
            return None;
        }
        let postgres = match (self.plan.reachable, &self.plan.nearest_before) {
            (true, _) => Some(self.moment),
            (false, point) => point.as_ref().and_then(|point| point.time?.to_timestamp()),
        };
        let redis = match &self.reach {
            Ok(_) => Some(self.moment),
            Err(not) => not.nearest_before,
        };
        Some(postgres?.min(redis?))
    }

    /// Who cannot reach it, and why.
    fn unreachable_reason(&self) -> Option<String> {
        let (main, cache) = (&self.cluster.name, &self.instance_config.name);
        match (self.plan.reachable, &self.reach) {
            (true, Ok(_)) if self.moment_agreed => None,
            (true, Ok(_)) => Some(format!(
                "there is no moment to which both go: of {MAX_AGREEMENT_ROUNDS} that both were asked for, each was one to which {main} or {cache} \
                 can only be brought by going further back; restore each by itself"
            )),
            (true, Err(not)) => Some(format!("{main} can be restored there, {cache} cannot: {}", not.reason)),
            (false, Ok(_)) => Some(format!("{cache} can be restored there, {main} cannot: {}", self.plan.reason)),
            (false, Err(not)) => {
                Some(format!("neither can be restored there. {main}: {}; {cache}: {}", self.plan.reason, not.reason))
            }
        }
    }

    fn to_json<'r>(
        &'r self,
        postgres: Option<(&'r RestoredCluster, Option<&'r ReachedTarget>)>,
        done: Option<&'r redis_restore::FinishedRedisRestore>,
    ) -> JointRestoreJson<'r> {
        let nearest = self.nearest_common_moment().filter(|_| !self.is_reachable());
        JointRestoreJson {
            reachable: self.is_reachable(),
            reason: self.unreachable_reason(),
            asked: PgTime::from_timestamp(self.asked),
            moment: PgTime::from_timestamp(self.moment),
            nearest: nearest.map(PgTime::from_timestamp),
            redis_goes_back_seconds: self.idle.map(|idle| idle.duration().as_secs_f64()),
            skew: self.skew.as_ref(),
            postgres: JointPostgresJson {
                cluster: self.cluster.name.as_str(),
                plan: &self.plan,
                restored: postgres.map(|(restored, _)| restored),
                reached: postgres.and_then(|(_, reached)| reached),
            },
            redis: JointRedisJson {
                instance: self.instance_config.name.as_str(),
                plan: redis_restore::RedisPlanJson::from_route(&self.reach, &self.pace),
                last_command: self.last_command.as_ref(),
                done,
            },
        }
    }
}

/// The two that are meant; which option names them is said where that is unclear.
fn named_stores<'c>(
    config: &'c Config,
    which: &JointTargetArgs,
) -> anyhow::Result<(&'c ClusterConfig, &'c config::InstanceConfig)> {
    let cluster = config.cluster(which.cluster.as_deref()).context("which one is meant is said with --cluster")?;
    let of = config.instance(which.instance.as_deref()).context("which one is meant is said with --instance")?;
    Ok((cluster, of))
}

async fn plan_postgres(
    config: &Config,
    cluster: &ClusterConfig,
    (time, nearest, pgdata): (Timestamp, bool, Option<&Path>),
    around: &CliContext,
) -> anyhow::Result<(Arc<Archive>, RestorePlan)> {
    let target = PostgresTargetArgs {
        target_time: Some(PgTime::from_timestamp(time).to_string()),
        target_timeline: "latest".to_owned(),
        nearest,
        ..PostgresTargetArgs::default()
    };
    let (archive, mut plan) = restore::make_plan(config, cluster, &target, around).await?;
    if let (Some(pgdata), Some(identity)) = (pgdata, archive.identity().await?) {
        plan = plan.with_free_space(free_bytes_at(pgdata)?, identity.segment_size);
        if let (true, Err(error)) = (plan.reachable, check_created_tablespaces(&plan.tablespaces_made)) {
            plan = plan.made_unreachable(&error);
        }
    }
    Ok((archive, plan))
}

async fn resolve_redis_target(
    instance: &redis::archive::Archive,
    time: Timestamp,
) -> anyhow::Result<Result<RestoreRoute, UnreachableState>> {
    let found = instance.resolve_target(RedisTarget::Time(time), None).await;
    found.with_context(|| format!("cannot plan a restore of {}", instance.name()))
}

/// The last command of the last stretch that changes anything; `None` if there is none in it, or the snapshot itself is the target.
async fn find_last_command(
    instance: &redis::archive::Archive,
    reach: &RestoreRoute,
) -> anyhow::Result<Option<LastCommand>> {
    let (Some((stretch, before)), Some(from)) = (reach.stretches.split_last(), reach.from) else { return Ok(None) };
    let bytes = instance.read_route_commands(reach, before.len()).await;
    let bytes = bytes.with_context(|| format!("cannot read the commands of {}", instance.name()))?;
    let mut parser = match before.last() {
        // The last one may begin before this one ends.
        Some(before) if before.last > stretch.first => CommandParser::resume_at(
            before.last,
            before.db_after,
            before.in_transaction_after,
            CommandLimits::default(),
        ),
        _ if from.offset > stretch.first => CommandParser::new(from, CommandLimits::default()),
        _ => CommandParser::resume_at(stretch.first, stretch.db, stretch.in_transaction, CommandLimits::default()),
    };
    let mut last = None;
    let parsed = parser.push(&bytes, &mut |command| {
        if command.kind == CommandKind::Other {
            let name = String::from_utf8_lossy(command.name()).to_uppercase();
            last = Some(LastCommand { name, database: command.db, offset: command.end });
        }
    });
    parsed.with_context(|| format!("cannot read the commands of {}", instance.name()))?;
    Ok(last)
}

pub(in crate::cli) async fn run_plan(mut args: PlanAllArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    args.which.target_time = around.absolute_time(&args.which.target_time);
    let both = JointPlan::make(&config, &args.which, None, around).await?;
    if args.json {
        around.output.print_json(&both.to_json(None, None))?;
    } else {
        print_plan(&both, &around.output)?;
        print_next_command(&both, &args.which, &open::shell_command_prefix(&config, around), &around.output)?;
    }
    Ok(if both.is_reachable() { CliExitCode::Done } else { CliExitCode::Unreachable })
}

/// How to carry out what was only asked for.
fn print_next_command(
    both: &JointPlan<'_>,
    which: &JointTargetArgs,
    program: &str,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    if !both.is_reachable() {
        return Ok(());
    }
    let pairs = [("--cluster", &which.cluster), ("--instance", &which.instance)];
    let mut words = vec![format!("{program} restore all --pgdata DIR --redis-dir DIR")];
    let named = pairs.iter().filter_map(|(option, value)| Some(format!("{option} {}", value.as_ref()?)));
    words.extend(named);
    words.push(format!("--target-time {}", open::quote_for_postgres_command(&which.target_time)));
    words.extend(which.nearest.then(|| "--nearest".to_owned()));
    out.print_line("\nTo do it:")?;
    out.print_line(format!("  {} --start", out.style(TextTone::Strong, words.join(" "))))
}

pub(in crate::cli) async fn run_restore(args: RestoreAllArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let whole = |path: &Path| std::path::absolute(path).context("cannot tell where the files go");
    let (pgdata, redis_dir) = (whole(&args.pgdata)?, whole(&args.redis_dir)?);
    check_destinations(&pgdata, &redis_dir)?;
    let both = JointPlan::make(&config, &args.which, Some(&pgdata), around).await?;
    if !args.json {
        print_plan(&both, &around.output)?;
    }
    let (true, Ok(reach)) = (both.is_reachable(), &both.reach) else {
        if args.json {
            around.output.print_json(&both.to_json(None, None))?;
        }
        return Ok(CliExitCode::Unreachable);
    };
    let (of_postgres, of_redis) = (args.postgres_args(pgdata.clone()), args.redis_args(redis_dir));
    let wishes = restore::build_request(&of_postgres, &pgdata, &config, both.cluster)?;
    let prepared = redis_restore::prepare_restore(&of_redis, reach, around).await?;
    check_free_space(&both, reach, &pgdata, &of_redis.dir)?;
    let (main, cache) = (&both.cluster.name, &both.instance_config.name);
    let (restored, reached) = restore_postgres(&config, &both, (&of_postgres, &wishes), around).await?;
    let done = redis_restore::restore_and_check(&both.instance, reach, (&of_redis, &prepared), around).await;
    let done = done.with_context(|| format!("{main} is restored into {}, {cache} is not", pgdata.display()))?;
    done.save_restore_speed(&config, &both.instance);
    if args.json {
        around.output.print_json(&both.to_json(Some((&restored, reached.as_ref())), Some(&done)))?;
        return Ok(CliExitCode::Done);
    }
    redis_restore::print_next_command(&done.options, prepared.version, done.loaded.as_ref(), &around.output)?;
    around.output.print_line("")?;
    print_skew(&both, &around.output)?;
    Ok(CliExitCode::Done)
}

impl RestoreAllArgs {
    fn postgres_args(&self, pgdata: PathBuf) -> RestorePostgresArgs {
        RestorePostgresArgs {
            cluster: self.which.cluster.clone(),
            pgdata: Some(pgdata),
            single: SelectiveRestoreArgs::default(),
            target: PostgresTargetArgs { target_action: self.target_action, ..PostgresTargetArgs::default() },
            tablespaces: self.tablespaces.clone(),
            delta: false,
            archive_mode: ArchiveModeAfterRestore::Off,
            start: self.start,
            server: self.server.clone(),
            json: self.json,
        }
    }

    fn redis_args(&self, dir: PathBuf) -> RestoreRedisArgs {
        RestoreRedisArgs {
            instance: self.which.instance.clone(),
            dir,
            target: RedisTargetArgs::default(),
            start: self.start,
            server: self.redis_server.clone(),
            json: self.json,
        }
    }
}

/// PostgreSQL's files, and its server if that is wanted.
async fn restore_postgres(
    config: &Config,
    both: &JointPlan<'_>,
    (args, wishes): (&RestorePostgresArgs, &RestoreOptions),
    around: &CliContext,
) -> anyhow::Result<(RestoredCluster, Option<ReachedTarget>)> {
    let began = around.clock.elapsed();
    let restored = restore::place_files(&both.archive, &both.plan, wishes, false, around).await?;
    let took = around.clock.elapsed().saturating_sub(began);
    if !args.json {
        let (files, bytes, pgdata) =
            (format_count(restored.files, "file"), format_bytes(restored.bytes), restored.pgdata.display());
        around.output.print_line(format!("\nrestored {files}, {bytes}, into {pgdata} in {}", format_duration(took)))?;
    }
    if !args.start {
        if !args.json {
            restore::print_next_command(&restored, wishes.action, around)?;
        }
        return Ok((restored, None));
    }
    let start = ServerStart {
        pgdata: wishes.destination.pgdata.clone(),
        bindir: args.server.pg_bindir.clone(),
        search: restore::program_search_path(around),
        options: args.server.server_options.iter().cloned().collect(),
    };
    let reached = restore::start_server(&start, &both.plan, wishes.action, around).await;
    let reached = reached.with_context(|| format!("{} is not restored", both.instance_config.name))?;
    let (work, replay_seconds) = (both.plan.work(), reached.seconds);
    let measured = MeasuredRestore { work, file_seconds: took.as_secs_f64(), replay_seconds };
    restore::save_restore_speed(config, both.cluster.name.as_str(), measured);
    if !args.json {
        restore::print_reached(&reached, around)?;
    }
    Ok((restored, Some(reached)))
}

/// Both places must be free, and neither within the other, before anything is written to one of them.
fn check_destinations(pgdata: &Path, redis_dir: &Path) -> anyhow::Result<()> {
    if pgdata.starts_with(redis_dir) || redis_dir.starts_with(pgdata) {
        let (one, two) = (pgdata.display(), redis_dir.display());
        return Err(CliError::usage(format!("{one} and {two} lie within each other; name two folders apart")).into());
    }
    for (option, dir) in [("--pgdata", pgdata), ("--redis-dir", redis_dir)] {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
        };
        for entry in entries {
            let found = entry.with_context(|| format!("cannot read {}", dir.display()))?.file_name();
            // What file systems put into the root of a volume; PostgreSQL takes no such directory, Redis does.
            if option == "--pgdata" || found != "lost+found" {
                let (dir, found) = (dir.display(), found.to_string_lossy());
                let why =
                    format!("{option} {dir} is not empty, it has {found}; nothing was touched, name another folder");
                return Err(CliError::usage(why).into());
            }
        }
    }
    Ok(())
}

/// Each fits where it goes; on one file system both must.
fn check_free_space(both: &JointPlan<'_>, reach: &RestoreRoute, pgdata: &Path, redis_dir: &Path) -> anyhow::Result<()> {
    let device = |dir: &Path| {
        let existing = dir.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
        existing.metadata().map(|known| known.dev()).with_context(|| format!("cannot read {}", existing.display()))
    };
    let Some(room) = &both.plan.room else { return Ok(()) };
    let of_redis = reach.snapshot.logical_bytes.saturating_add(reach.command_bytes());
    let (needed, free) = (room.needed_bytes.saturating_add(of_redis), room.free_bytes);
    if needed <= free || device(pgdata)? != device(redis_dir)? {
        return Ok(());
    }
    let (main, cache, dir) = (&both.cluster.name, &both.instance_config.name, redis_dir.to_owned());
    Err(redis::restore::RestoreError::NotEnoughSpace { dir, needed, free })
        .with_context(|| format!("{main} and {cache} go to one file system"))
}

fn print_plan(both: &JointPlan<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let (main, cache) = (&both.cluster.name, &both.instance_config.name);
    let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
    out.print_line(out.style(TextTone::Strong, format!("{main} and {cache} to {}", time(both.moment))))?;
    if both.moment != both.asked && both.is_reachable() {
        let note = format!("the newest moment that both can reach before {}", time(both.asked));
        print_row(out, "note", out.style(TextTone::Warning, note))?;
    }
    if let Some(reason) = both.unreachable_reason() {
        print_row(out, "reachable", out.style(TextTone::Bad, "NO"))?;
        print_paragraph(out, "why", &reason)?;
        match both.nearest_common_moment() {
            Some(nearest) => {
                print_row(out, "both reach", time(nearest))?;
                print_row(out, "", "--nearest goes there")?;
            }
            None => print_row(out, "both reach", "nothing before it; walkeep list shows what each can")?,
        }
        print_idle(both, out)?;
        if let Err(UnreachableState { nearest_after: Some(after), .. }) = &both.reach {
            print_row(out, "oldest after", format!("{cache}: {}", time(*after)))?;
        }
        if let Some(after) = both.plan.nearest_after.as_ref().and_then(|point| point.time) {
            print_row(out, "oldest after", format!("{main}: {}", out.format_time(after)))?;
        }
        return Ok(());
    }
    print_row(out, "reachable", out.style(TextTone::Good, "both"))?;
    if both.plan.reaches_other_point() {
        print_paragraph(out, "but", &both.plan.reason)?;
    }
    print_idle(both, out)?;
    print_postgres(both, out)?;
    print_redis(both, out)?;
    print_skew(both, out)
}

/// How far Redis goes back with a server that is idle, and how it need not.
fn print_idle(both: &JointPlan<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let Some(idle) = both.idle else { return Ok(()) };
    let (main, cache) = (&both.cluster.name, &both.instance_config.name);
    let (since, until) = (PgTime::from_timestamp(idle.since), PgTime::from_timestamp(idle.until));
    let goes = format!(
        "with --nearest {cache} goes back by {}, to the last commit of {main} that is archived, {}. If {main} was idle since, its newest \
         state is also that of the time asked for. Then restore each by itself:",
        format_duration(idle.duration()),
        out.format_time(since)
    );
    print_paragraph(out, "idle", &goes)?;
    let until = open::quote_for_postgres_command(&until.to_string());
    let commands = [
        format!("walkeep restore postgres {main} --pgdata DIR"),
        format!("walkeep restore redis {cache} --dir DIR --target-time {until}"),
    ];
    commands.into_iter().try_for_each(|command| out.print_line(format!("    {}", out.style(TextTone::Strong, command))))
}

fn print_postgres(both: &JointPlan<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let (plan, name) = (&both.plan, both.cluster.name.as_str());
    let commit =
        |commit: CommitPoint| format!("transaction {} at {}, {}", commit.xid, commit.lsn, out.format_time(commit.time));
    let backup = plan.backup.as_deref().unwrap_or("none");
    let log = format!("{}, {} of WAL", format_count(plan.wal_segments, "segment"), format_bytes(plan.wal_bytes));
    print_row(out, name, format!("backup {backup}, {log}"))?;
    print_row(out, "  last kept", plan.last_commit_before.map_or_else(|| "none since the backup".to_owned(), commit))?;
    print_row(out, "  first undone", plan.first_commit_after.map_or_else(|| "none is archived".to_owned(), commit))
}

fn print_redis(both: &JointPlan<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let Ok(reach) = &both.reach else { return Ok(()) };
    let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
    let snapshot = &reach.snapshot;
    let keys = format_count(snapshot.walk.keys(), "key");
    let behind = format_bytes(reach.command_bytes());
    print_row(
        out,
        both.instance_config.name.as_str(),
        format!("snapshot {}, {keys}, {behind} of commands", snapshot.label),
    )?;
    let offset = reach.to.map_or_else(String::new, |to| format!("offset {}, ", to.offset));
    let last = match &both.last_command {
        Some(last) => format!("{} in db{}, {offset}come by {}", last.name, last.database, time(reach.at)),
        None if reach.stretches.is_empty() => format!("{offset}the snapshot itself, {}", time(reach.at)),
        None => format!("{offset}come by {}", time(reach.at)),
    };
    print_row(out, "  last kept", last)?;
    print_row(
        out,
        "  first undone",
        reach.before.map_or_else(|| "none is archived".to_owned(), |at| format!("come by {}", time(at))),
    )
}

fn print_skew(both: &JointPlan<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let Some(skew) = &both.skew else { return Ok(()) };
    print_paragraph(out, "skew", &skew.describe(both.cluster.name.as_str(), both.instance_config.name.as_str()))?;
    skew.assumptions()
        .iter()
        .enumerate()
        .try_for_each(|(nth, why)| print_paragraph(out, if nth == 0 { "rests on" } else { "" }, why))
}

fn print_row(out: &TerminalOutput, name: &str, text: impl std::fmt::Display) -> anyhow::Result<()> {
    out.print_line(format!("  {name:<14} {text}"))
}

/// A row of many words, broken to fit.
fn print_paragraph(out: &TerminalOutput, name: &str, text: &str) -> anyhow::Result<()> {
    let lines = wrap_text(text, usize::from(crate::cli::output::MAX_ALIGNED_WIDTH).saturating_sub(VALUE_COLUMN));
    lines.iter().enumerate().try_for_each(|(nth, line)| print_row(out, if nth == 0 { name } else { "" }, line))
}

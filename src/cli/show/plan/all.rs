//! `walkeep plan all` and `walkeep restore all`: both plans and the skew between them, as text and as JSON.

use jiff::Timestamp;

use super::redis::RedisPlanJson;
use crate::base::restore_estimate::RestoreEstimator;
use crate::cli::args::role::RequestedRole;
use crate::cli::show::output::{
    MAX_ALIGNED_WIDTH, TerminalOutput, TextTone, format_bytes, format_count, format_duration, wrap_text,
};
use crate::cli::show::shell;
use crate::joint::plan::{JointPlan, JointRestores};
use crate::joint::skew::ClockSkew;
use crate::postgres::format::time::PgTime;
use crate::postgres::restore::RestoredCluster;
use crate::postgres::restore::plan::{CommitPoint, PlanOutcome, ProvedRestore, RestorePlanDocument};
use crate::postgres::restore::server_start::ReachedTarget;
use crate::redis::archive::history::last_command::LastCommand;
use crate::redis::archive::{RestoreRoute, UnreachableState};
use crate::redis::restore::checked_restore::FinishedRedisRestore;

/// The column at which the text of a row begins.
const VALUE_COLUMN: usize = 17;

/// What `--json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct JointRestoreJson<'r> {
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
    plan: RestorePlanDocument<'r>,
    role: &'static str,
    role_summary: &'static str,
    restored: Option<&'r RestoredCluster>,
    reached: Option<&'r ReachedTarget>,
}

#[derive(serde::Serialize)]
struct JointRedisJson<'r> {
    instance: &'r str,
    plan: RedisPlanJson,
    last_command: Option<&'r LastCommand>,
    #[serde(flatten)]
    done: Option<&'r FinishedRedisRestore>,
}

impl<'r> JointRestoreJson<'r> {
    /// A plan that is not carried out.
    pub(in crate::cli) fn new(
        plan: &'r JointPlan,
        estimator: &RestoreEstimator,
        role: &RequestedRole,
    ) -> JointRestoreJson<'r> {
        let reachable = plan.restores().is_some();
        let nearest = plan.nearest_common_moment().filter(|_| !reachable);
        JointRestoreJson {
            reachable,
            reason: plan.unreachable_reason(),
            asked: PgTime::from_timestamp(plan.asked),
            moment: PgTime::from_timestamp(plan.moment),
            nearest: nearest.map(PgTime::from_timestamp),
            redis_goes_back_seconds: plan.idle.map(|idle| idle.duration().as_secs_f64()),
            skew: plan.skew(),
            postgres: JointPostgresJson {
                cluster: plan.cluster_name(),
                plan: RestorePlanDocument::from(&plan.plans.postgres),
                role: role.role.as_str(),
                role_summary: role.summary(),
                restored: None,
                reached: None,
            },
            redis: JointRedisJson {
                instance: plan.instance_name(),
                plan: RedisPlanJson::from_route(&plan.plans.redis, estimator),
                last_command: plan.last_command(),
                done: None,
            },
        }
    }

    /// The same after both restores.
    pub(in crate::cli) fn with_restored(
        mut self,
        restored: &'r RestoredCluster,
        reached: Option<&'r ReachedTarget>,
        done: &'r FinishedRedisRestore,
    ) -> JointRestoreJson<'r> {
        self.postgres.restored = Some(restored);
        self.postgres.reached = reached;
        self.redis.done = Some(done);
        self
    }
}

pub(in crate::cli) fn print_plan(plan: &JointPlan, role: &RequestedRole, out: &TerminalOutput) -> anyhow::Result<()> {
    let (main, cache) = (plan.cluster_name(), plan.instance_name());
    let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
    out.print_line(out.style(TextTone::Strong, format!("{main} and {cache} to {}", time(plan.moment))))?;
    let unseen = plan.plans.redis.as_ref().map_or_else(|not| &not.unseen, |route| &route.unseen);
    unseen.describe().iter().try_for_each(|text| print_paragraph(out, "note", text))?;
    if plan.moment != plan.asked && plan.restores().is_some() {
        let note = format!("the newest moment that both can reach before {}", time(plan.asked));
        print_row(out, "note", out.style(TextTone::Warning, note))?;
    }
    if let Some(reason) = plan.unreachable_reason() {
        print_row(out, "reachable", out.style(TextTone::Bad, "NO"))?;
        print_paragraph(out, "why", &reason)?;
        match plan.nearest_common_moment() {
            Some(nearest) => {
                print_row(out, "both reach", time(nearest))?;
                print_row(out, "", "--nearest goes there")?;
            }
            None => print_row(out, "both reach", "nothing before it; walkeep list shows what each can")?,
        }
        print_idle(plan, out)?;
        if let Err(UnreachableState { nearest_after: Some(after), .. }) = &plan.plans.redis {
            print_row(out, "oldest after", format!("{cache}: {}", time(*after)))?;
        }
        if let Some(after) = plan.plans.postgres.nearest_after().and_then(|point| point.time) {
            print_row(out, "oldest after", format!("{main}: {}", out.format_time(after)))?;
        }
        return Ok(());
    }
    print_row(out, "reachable", out.style(TextTone::Good, "both"))?;
    if let PlanOutcome::OtherPoint { .. } = plan.plans.postgres.outcome {
        print_paragraph(out, "but", &plan.plans.postgres.reason())?;
    }
    print_idle(plan, out)?;
    if let Some(JointRestores { postgres, redis }) = plan.restores() {
        print_postgres(plan.cluster_name(), postgres, out)?;
        print_paragraph(out, "  role", role.summary())?;
        print_redis(plan, redis, out)?;
    }
    print_skew(plan, out)
}

/// How far Redis goes back with a server that is idle, and how it need not.
fn print_idle(plan: &JointPlan, out: &TerminalOutput) -> anyhow::Result<()> {
    let Some(idle) = plan.idle else { return Ok(()) };
    let (main, cache) = (plan.cluster_name(), plan.instance_name());
    let (since, until) = (PgTime::from_timestamp(idle.since), PgTime::from_timestamp(idle.until));
    let goes = format!(
        "with --nearest {cache} goes back by {}, to the last commit of {main} that is archived, {}. If {main} was \
         idle since, its newest state is also that of the time asked for. Then restore each by itself:",
        format_duration(idle.duration()),
        out.format_time(since)
    );
    print_paragraph(out, "idle", &goes)?;
    let until = shell::quote_for_shell(&until.to_string());
    let commands = [
        format!("walkeep restore postgres {main} --pgdata DIR"),
        format!("walkeep restore redis {cache} --dir DIR --target-time {until}"),
    ];
    commands.into_iter().try_for_each(|command| out.print_line(format!("    {}", out.style(TextTone::Strong, command))))
}

fn print_postgres(name: &str, restore: &ProvedRestore, out: &TerminalOutput) -> anyhow::Result<()> {
    let commit =
        |commit: CommitPoint| format!("transaction {} at {}, {}", commit.xid, commit.lsn, out.format_time(commit.time));
    let log =
        format!("{}, {} of WAL", format_count(restore.wal_segments, "segment"), format_bytes(restore.work.wal_bytes));
    print_row(out, name, format!("backup {}, {log}", restore.backup))?;
    print_row(out, "  last kept", restore.commits.last.map_or_else(|| "none since the backup".to_owned(), commit))?;
    print_row(out, "  first undone", restore.commits.next.map_or_else(|| "none is archived".to_owned(), commit))
}

fn print_redis(plan: &JointPlan, reach: &RestoreRoute, out: &TerminalOutput) -> anyhow::Result<()> {
    let time = |time: Timestamp| out.format_time(PgTime::from_timestamp(time));
    let snapshot = &reach.snapshot;
    let keys = format_count(snapshot.walk.keys(), "key");
    let behind = format_bytes(reach.command_bytes());
    print_row(out, plan.instance_name(), format!("snapshot {}, {keys}, {behind} of commands", snapshot.label))?;
    let offset = reach.to.map_or_else(String::new, |to| format!("offset {}, ", to.offset));
    let last = match plan.last_command() {
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

pub(in crate::cli) fn print_skew(plan: &JointPlan, out: &TerminalOutput) -> anyhow::Result<()> {
    let Some(skew) = plan.skew() else { return Ok(()) };
    print_paragraph(out, "skew", &skew.describe(plan.cluster_name(), plan.instance_name()))?;
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
    let lines = wrap_text(text, usize::from(MAX_ALIGNED_WIDTH).saturating_sub(VALUE_COLUMN));
    lines.iter().enumerate().try_for_each(|(nth, line)| print_row(out, if nth == 0 { name } else { "" }, line))
}

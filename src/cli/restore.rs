//! `walkeep plan postgres` and `walkeep restore postgres`: resolve the target, prove it, show the plan, and for a restore carry it out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::CliContext;
use super::args::{ArchiveModeAfterRestore, PlanPostgresArgs, PostgresTargetArgs, RestorePostgresArgs};
use super::exit::{CliError, CliExitCode};
use super::output::{TextTone, count, size, span};
use super::progress::ProgressDisplay;
use super::{open, plan, single, target};
use crate::base::restore_estimate::{MeasuredRestore, RestoreEstimator};
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, reindex};
use crate::postgres::restore::delta;
use crate::postgres::restore::destination::{Destination, check_made, free_at};
use crate::postgres::restore::plan::RestorePlan;
use crate::postgres::restore::recovery_settings::restore_command;
use crate::postgres::restore::server_start::{ReachedTarget, ServerStart};
use crate::postgres::restore::target::RecoveryTargetAction;
use crate::postgres::restore::{self, RestoreOptions, RestoredCluster};

pub(super) async fn plan(mut args: PlanPostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.config()?;
    args.target.target_time = args.target.target_time.map(|time| around.lasting(&time));
    let cluster = config.cluster(args.cluster.as_deref())?;
    let (archive, mut plan) = make(&config, cluster, &args.target, around).await?;
    if let (Some(pgdata), Some(identity)) = (&args.pgdata, archive.identity().await?) {
        let pgdata = std::path::absolute(pgdata).context("cannot tell where the data directory goes")?;
        plan = plan.placed_where(free_at(&pgdata)?, identity.segment_size);
        if let (true, Err(error)) = (plan.reachable, check_made(&plan.tablespaces_made)) {
            plan = plan.prevented_by(&error);
        }
    }
    if args.json {
        around.output.json(&plan)?;
    } else {
        show(&plan, &args.target, (&open::again(&config, around), true), around)?;
        if let Some(pgdata) = &args.pgdata {
            let lines = lost(&config, &archive, pgdata, around).await?;
            lines.iter().try_for_each(|line| around.output.line(line))?;
        }
    }
    Ok(if plan.reachable { CliExitCode::Done } else { CliExitCode::Unreachable })
}

/// What `restore --json` prints.
#[derive(serde::Serialize)]
struct PostgresRestoreJson<'r> {
    plan: &'r RestorePlan,
    restored: Option<&'r RestoredCluster>,
    reached: Option<&'r ReachedTarget>,
}

pub(super) async fn run(args: RestorePostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    let Some(pgdata) = args.pgdata.clone() else { return single::run(&args, &config, cluster, around).await };
    let wishes = wishes(&args, &pgdata, &config, cluster)?;
    let (archive, plan) = make(&config, cluster, &args.target, around).await?;
    if !args.json {
        show(&plan, &args.target, (&open::again(&config, around), false), around)?;
    }
    if !plan.reachable {
        if args.json {
            around.output.json(&PostgresRestoreJson { plan: &plan, restored: None, reached: None })?;
        }
        return Ok(CliExitCode::Unreachable);
    }
    if args.delta {
        let lines = lost(&config, &archive, &wishes.destination.pgdata, around).await?;
        if args.json {
            lines.iter().for_each(|line| tracing::warn!("{line}"));
        } else {
            lines.iter().try_for_each(|line| around.output.line(line))?;
        }
    }
    let began = around.clock.elapsed();
    let restored = place(&archive, &plan, &wishes, args.delta, around).await?;
    let took = around.clock.elapsed().saturating_sub(began);
    let (files, bytes) = (count(restored.files, "file"), size(restored.bytes));
    if !args.json {
        let pgdata = restored.pgdata.display();
        let kept = if args.delta { kept(&restored) } else { String::new() };
        around.output.line(format!("\nrestored {files}, {bytes}{kept}, into {pgdata} in {}", span(took)))?;
        restored.notes.iter().try_for_each(|note| around.output.line(format!("  {note}")))?;
    }
    let start = ServerStart {
        pgdata: wishes.destination.pgdata.clone(),
        bindir: args.server.pg_bindir.clone(),
        search: search(around),
        options: args.server.server_options.iter().cloned().collect(),
    };
    let reached = if args.start { Some(started(&start, &plan, wishes.action, around).await?) } else { None };
    if let Some(reached) = &reached {
        let replay_seconds = reached.seconds;
        let measured = MeasuredRestore { work: plan.work(), file_seconds: took.as_secs_f64(), replay_seconds };
        keep_pace(&config, cluster.name.as_str(), measured);
    }
    if args.json {
        around.output.json(&PostgresRestoreJson {
            plan: &plan,
            restored: Some(&restored),
            reached: reached.as_ref(),
        })?;
        return Ok(CliExitCode::Done);
    }
    match &reached {
        Some(reached) => say_reached(reached, around)?,
        None => say_what_next(&restored, wishes.action, around)?,
    }
    Ok(CliExitCode::Done)
}

/// What is said, before anything is touched, of the log in a data directory that a restore over it removes and nobody else has.
async fn lost(config: &Config, archive: &Archive, pgdata: &Path, around: &CliContext) -> anyhow::Result<Vec<String>> {
    let spool = Spool::existing(&config.state_dir, archive);
    let segments = delta::only_there(archive, spool.as_ref(), pgdata).await;
    let segments = segments.context("cannot tell whether all WAL in the data directory is archived")?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(Vec::new()) };
    let which = if first == last { first.to_string() } else { format!("{first} to {last}") };
    let what = format!("--delta removes {} of WAL that no repository has", count(segments.len() as u64, "segment"));
    let log = pgdata.join("pg_wal");
    Ok(vec![
        around.output.tone(TextTone::Bad, what),
        format!("  {which} in {}", log.display()),
        "  copy it elsewhere first if what was committed last is wanted".to_owned(),
    ])
}

/// Keeps what a restore of a cluster or an instance took, for later estimates. That it can't be kept is no reason to call the restore a failure.
pub(super) fn keep_pace(config: &Config, name: &str, restore: MeasuredRestore) {
    let state_dir = &config.state_dir;
    if let Err(error) = RestoreEstimator::load(state_dir, name).with(restore).save(state_dir, name) {
        tracing::warn!(%error, "how long the restore took is not kept for later estimates");
    }
}

pub(super) async fn make(
    config: &Config,
    cluster: &ClusterConfig,
    args: &PostgresTargetArgs,
    around: &CliContext,
) -> anyhow::Result<(Arc<Archive>, RestorePlan)> {
    let request = target::request(args, around)?;
    let archive = Arc::new(open::archive(config, cluster, around).await?);
    if archive.identity().await?.is_none()
        && let Some(asked) = open::is_it(open::StoreKind::Cluster, config, archive.vault()).await
    {
        let message = format!("nothing of {} is archived; {asked}", cluster.name);
        return Err(CliError { code: CliExitCode::NotFound, message }.into());
    }
    let (index, _) = reindex::open(&archive, &open::index_dir(config)).await.context("cannot open the index")?;
    let spool = Spool::existing(&config.state_dir, &archive);
    let plan = restore::plan(&archive, &index, spool, request).await;
    let plan = plan.with_context(|| format!("cannot plan a restore of {}", cluster.name))?;
    let pace = RestoreEstimator::load(&config.state_dir, cluster.name.as_str());
    Ok((archive, plan.paced(&pace)))
}

pub(super) fn show(
    plan: &RestorePlan,
    args: &PostgresTargetArgs,
    asked: (&str, bool),
    around: &CliContext,
) -> anyhow::Result<()> {
    plan::page(plan, args, asked, &around.output).iter().try_for_each(|line| around.output.line(line))
}

pub(super) fn wishes(
    args: &RestorePostgresArgs,
    pgdata: &Path,
    config: &Config,
    cluster: &ClusterConfig,
) -> anyhow::Result<RestoreOptions> {
    let pgdata = std::path::absolute(pgdata).context("cannot tell where the data directory goes")?;
    let program = std::env::current_exe().context("cannot tell where the program itself is")?;
    Ok(RestoreOptions {
        destination: Destination { pgdata, mapping: mapping(&args.tablespaces)? },
        action: target::action(&args.target),
        restore_command: restore_command(&program, Some(&config.path), cluster.name.as_str()),
        keep_archiving: args.archive_mode == ArchiveModeAfterRestore::Preserve,
    })
}

/// `OLD=NEW`, once for each tablespace. A `\=` is an equals sign in a path, as in `pg_basebackup`.
fn mapping(tablespaces: &[String]) -> Result<Vec<(PathBuf, PathBuf)>, CliError> {
    let parse = |text: &String| {
        let hidden = text.replace("\\=", "\0");
        let (old, new) =
            hidden.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty() && !new.contains('='))?;
        Some((PathBuf::from(old.replace('\0', "=")), PathBuf::from(new.replace('\0', "="))))
    };
    let read = |text| {
        parse(text)
            .ok_or_else(|| CliError::usage(format!("--tablespace-mapping {text:?}: write OLD=NEW, two absolute paths")))
    };
    tablespaces.iter().map(read).collect()
}

/// How much there was to do.
fn kept(restored: &RestoredCluster) -> String {
    let fetched = restored.bytes.saturating_sub(restored.reused_bytes);
    format!(" ({} were there, {} fetched)", size(restored.reused_bytes), size(fetched))
}

pub(super) async fn place(
    archive: &Arc<Archive>,
    plan: &RestorePlan,
    wishes: &RestoreOptions,
    delta: bool,
    around: &CliContext,
) -> anyhow::Result<RestoredCluster> {
    let progress = ProgressDisplay::begin("restore", 0, around.quiet);
    let told = |done, total| progress.at(done, total);
    let restored = if delta {
        restore::restore_over(archive, plan, wishes, told).await
    } else {
        restore::restore(archive, plan, wishes, told).await
    };
    progress.end();
    restored.with_context(|| format!("cannot restore into {}", wishes.destination.pgdata.display()))
}

/// Where PostgreSQL's programs may be besides their usual places.
pub(super) fn search(around: &CliContext) -> Vec<PathBuf> {
    std::env::split_paths(around.environment.get("PATH").unwrap_or_default()).collect()
}

pub(super) async fn started(
    start: &ServerStart,
    plan: &RestorePlan,
    action: RecoveryTargetAction,
    around: &CliContext,
) -> anyhow::Result<ReachedTarget> {
    let reached = start.run(plan, action, &around.clock).await;
    reached.context("the files are restored, but the server did not get to its target")
}

pub(super) fn say_reached(reached: &ReachedTarget, around: &CliContext) -> anyhow::Result<()> {
    let out = &around.output;
    let did = match reached.action {
        RecoveryTargetAction::Promote => format!("takes writes on timeline {}", reached.timeline),
        RecoveryTargetAction::Pause => "is paused and takes reads; go on with SELECT pg_wal_replay_resume()".to_owned(),
        RecoveryTargetAction::Shutdown => "has stopped at the target".to_owned(),
    };
    let took = std::time::Duration::try_from_secs_f64(reached.seconds).unwrap_or_default();
    out.line(format!("{} in {}: the server {did}", out.tone(TextTone::Good, "target reached"), span(took)))?;
    if let Some(lsn) = reached.lsn {
        out.line(format!("  replayed up to  {lsn}"))?;
    }
    match reached.last_commit {
        Some(last) => {
            let (xid, lsn, time) = (last.xid, last.lsn, out.time(last.time));
            out.line(format!("  last commit     transaction {xid} at {lsn}, {time}"))
        }
        None => out.line("  last commit     none since the backup"),
    }
}

pub(super) fn say_what_next(
    restored: &RestoredCluster,
    action: RecoveryTargetAction,
    around: &CliContext,
) -> anyhow::Result<()> {
    let pgdata = open::shell_word(&restored.pgdata.display().to_string());
    let then = match action {
        RecoveryTargetAction::Promote => "it replays WAL up to the target and then takes writes",
        RecoveryTargetAction::Pause => "it replays WAL up to the target and pauses there",
        RecoveryTargetAction::Shutdown => "it replays WAL up to the target and stops there",
    };
    around.output.line(format!("start it with: pg_ctl -D {pgdata} start"))?;
    around
        .output
        .line(around.output.tone(TextTone::Quiet, format!("  {then}; it does not archive (archive_mode = off)")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::mapping;

    #[test]
    fn mappings_are_two_paths() {
        let read = |text: &str| mapping(&[text.to_owned()]).map(|pairs| pairs[0].clone());
        let paths = |old: &str, new: &str| (PathBuf::from(old), PathBuf::from(new));
        assert_eq!(read("/a=/b").unwrap(), paths("/a", "/b"));
        assert_eq!(read("/a\\=x=/b").unwrap(), paths("/a=x", "/b"));
        for wrong in ["/a", "=/b", "/a=", "/a=/b=/c"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

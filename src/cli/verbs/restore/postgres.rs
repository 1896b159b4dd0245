//! `walkeep plan postgres` and `walkeep restore postgres`: resolve the target, prove it, show the plan, and for a restore carry it out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::selective as single;
use crate::base::restore_estimate::{MeasuredRestore, RestoreEstimator};
use crate::cli::CliContext;
use crate::cli::args::target;
use crate::cli::args::{ArchiveModeAfterRestore, PlanPostgresArgs, PostgresTargetArgs, RestorePostgresArgs};
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::output::{TextTone, format_bytes, format_count, format_duration};
use crate::cli::progress::ProgressDisplay;
use crate::cli::show::plan::postgres as plan;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, reindex};
use crate::postgres::restore::delta;
use crate::postgres::restore::destination::{Destination, check_created_tablespaces, free_bytes_at};
use crate::postgres::restore::plan::RestorePlan;
use crate::postgres::restore::recovery_settings::restore_command_line;
use crate::postgres::restore::server_start::{ReachedTarget, ServerStart};
use crate::postgres::restore::target::RecoveryTargetAction;
use crate::postgres::restore::{self, RestoreOptions, RestoredCluster};

pub(in crate::cli) async fn run_plan(mut args: PlanPostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    args.target.target_time = args.target.target_time.map(|time| around.absolute_time(&time));
    let cluster = config.cluster(args.cluster.as_deref())?;
    let (archive, mut plan) = make_plan(&config, cluster, &args.target, around).await?;
    if let (Some(pgdata), Some(identity)) = (&args.pgdata, archive.identity().await?) {
        let pgdata = std::path::absolute(pgdata).context("cannot tell where the data directory goes")?;
        plan = plan.with_free_space(free_bytes_at(&pgdata)?, identity.segment_size);
        if let (true, Err(error)) = (plan.reachable, check_created_tablespaces(&plan.tablespaces_made)) {
            plan = plan.made_unreachable(&error);
        }
    }
    if args.json {
        around.output.print_json(&plan)?;
    } else {
        print_plan(&plan, &args.target, (&open::shell_command_prefix(&config, around), true), around)?;
        if let Some(pgdata) = &args.pgdata {
            let lines = lost_wal_warning(&config, &archive, pgdata, around).await?;
            lines.iter().try_for_each(|line| around.output.print_line(line))?;
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

pub(in crate::cli) async fn run_restore(args: RestorePostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    let Some(pgdata) = args.pgdata.clone() else { return single::run(&args, &config, cluster, around).await };
    let wishes = build_request(&args, &pgdata, &config, cluster)?;
    let (archive, plan) = make_plan(&config, cluster, &args.target, around).await?;
    if !args.json {
        print_plan(&plan, &args.target, (&open::shell_command_prefix(&config, around), false), around)?;
    }
    if !plan.reachable {
        if args.json {
            around.output.print_json(&PostgresRestoreJson { plan: &plan, restored: None, reached: None })?;
        }
        return Ok(CliExitCode::Unreachable);
    }
    if args.delta {
        let lines = lost_wal_warning(&config, &archive, &wishes.destination.pgdata, around).await?;
        if args.json {
            lines.iter().for_each(|line| tracing::warn!("{line}"));
        } else {
            lines.iter().try_for_each(|line| around.output.print_line(line))?;
        }
    }
    let began = around.clock.elapsed();
    let restored = place_files(&archive, &plan, &wishes, args.delta, around).await?;
    let took = around.clock.elapsed().saturating_sub(began);
    let (files, bytes) = (format_count(restored.files, "file"), format_bytes(restored.bytes));
    if !args.json {
        let pgdata = restored.pgdata.display();
        let kept = if args.delta { reused_bytes_note(&restored) } else { String::new() };
        around
            .output
            .print_line(format!("\nrestored {files}, {bytes}{kept}, into {pgdata} in {}", format_duration(took)))?;
        restored.notes.iter().try_for_each(|note| around.output.print_line(format!("  {note}")))?;
    }
    let start = ServerStart {
        pgdata: wishes.destination.pgdata.clone(),
        bindir: args.server.pg_bindir.clone(),
        search: program_search_path(around),
        options: args.server.server_options.iter().cloned().collect(),
    };
    let reached = if args.start { Some(start_server(&start, &plan, wishes.action, around).await?) } else { None };
    if let Some(reached) = &reached {
        let replay_seconds = reached.seconds;
        let measured = MeasuredRestore { work: plan.work(), file_seconds: took.as_secs_f64(), replay_seconds };
        save_restore_speed(&config, cluster.name.as_str(), measured);
    }
    if args.json {
        around.output.print_json(&PostgresRestoreJson {
            plan: &plan,
            restored: Some(&restored),
            reached: reached.as_ref(),
        })?;
        return Ok(CliExitCode::Done);
    }
    match &reached {
        Some(reached) => print_reached(reached, around)?,
        None => print_next_command(&restored, wishes.action, around)?,
    }
    Ok(CliExitCode::Done)
}

/// What is said, before anything is touched, of the log in a data directory that a restore over it removes and nobody else has.
async fn lost_wal_warning(
    config: &Config,
    archive: &Archive,
    pgdata: &Path,
    around: &CliContext,
) -> anyhow::Result<Vec<String>> {
    let spool = Spool::existing(&config.state_dir, archive);
    let segments = delta::wal_only_in_pgdata(archive, spool.as_ref(), pgdata).await;
    let segments = segments.context("cannot tell whether all WAL in the data directory is archived")?;
    let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(Vec::new()) };
    let which = if first == last { first.to_string() } else { format!("{first} to {last}") };
    let what =
        format!("--delta removes {} of WAL that no repository has", format_count(segments.len() as u64, "segment"));
    let log = pgdata.join("pg_wal");
    Ok(vec![
        around.output.style(TextTone::Bad, what),
        format!("  {which} in {}", log.display()),
        "  copy it elsewhere first if what was committed last is wanted".to_owned(),
    ])
}

/// Keeps what a restore of a cluster or an instance took, for later estimates. That it can't be kept is no reason to call the restore a failure.
pub(in crate::cli) fn save_restore_speed(config: &Config, name: &str, restore: MeasuredRestore) {
    let state_dir = &config.state_dir;
    if let Err(error) = RestoreEstimator::load(state_dir, name).with_measurement(restore).save(state_dir, name) {
        tracing::warn!(%error, "how long the restore took is not kept for later estimates");
    }
}

pub(in crate::cli) async fn make_plan(
    config: &Config,
    cluster: &ClusterConfig,
    args: &PostgresTargetArgs,
    around: &CliContext,
) -> anyhow::Result<(Arc<Archive>, RestorePlan)> {
    let request = target::parse_target_request(args, around)?;
    let archive = Arc::new(open::open_archive(config, cluster, around).await?);
    if archive.identity().await?.is_none()
        && let Some(asked) = open::suggest_other_names(open::StoreKind::Cluster, config, archive.vault()).await
    {
        let message = format!("nothing of {} is archived; {asked}", cluster.name);
        return Err(CliError { code: CliExitCode::NotFound, message }.into());
    }
    let (index, _) = reindex::open_index(&archive, &open::index_dir(config)).await.context("cannot open the index")?;
    let spool = Spool::existing(&config.state_dir, &archive);
    let plan = restore::plan_restore(&archive, &index, spool, request).await;
    let plan = plan.with_context(|| format!("cannot plan a restore of {}", cluster.name))?;
    let pace = RestoreEstimator::load(&config.state_dir, cluster.name.as_str());
    Ok((archive, plan.with_estimate(&pace)))
}

pub(in crate::cli) fn print_plan(
    plan: &RestorePlan,
    args: &PostgresTargetArgs,
    asked: (&str, bool),
    around: &CliContext,
) -> anyhow::Result<()> {
    plan::plan_lines(plan, args, asked, &around.output).iter().try_for_each(|line| around.output.print_line(line))
}

pub(in crate::cli) fn build_request(
    args: &RestorePostgresArgs,
    pgdata: &Path,
    config: &Config,
    cluster: &ClusterConfig,
) -> anyhow::Result<RestoreOptions> {
    let pgdata = std::path::absolute(pgdata).context("cannot tell where the data directory goes")?;
    let program = std::env::current_exe().context("cannot tell where the program itself is")?;
    Ok(RestoreOptions {
        destination: Destination { pgdata, mapping: parse_tablespace_mappings(&args.tablespaces)? },
        action: target::target_action(&args.target),
        restore_command: restore_command_line(&program, Some(&config.path), cluster.name.as_str()),
        keep_archiving: args.archive_mode == ArchiveModeAfterRestore::Preserve,
    })
}

/// `OLD=NEW`, once for each tablespace. A `\=` is an equals sign in a path, as in `pg_basebackup`.
fn parse_tablespace_mappings(tablespaces: &[String]) -> Result<Vec<(PathBuf, PathBuf)>, CliError> {
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
fn reused_bytes_note(restored: &RestoredCluster) -> String {
    let fetched = restored.bytes.saturating_sub(restored.reused_bytes);
    format!(" ({} were there, {} fetched)", format_bytes(restored.reused_bytes), format_bytes(fetched))
}

pub(in crate::cli) async fn place_files(
    archive: &Arc<Archive>,
    plan: &RestorePlan,
    wishes: &RestoreOptions,
    delta: bool,
    around: &CliContext,
) -> anyhow::Result<RestoredCluster> {
    let progress = ProgressDisplay::new("restore", 0, around.quiet);
    let told = |done, total| progress.set_done(done, total);
    let restored = if delta {
        restore::restore_delta(archive, plan, wishes, told).await
    } else {
        restore::restore(archive, plan, wishes, told).await
    };
    progress.finish();
    restored.with_context(|| format!("cannot restore into {}", wishes.destination.pgdata.display()))
}

/// Where PostgreSQL's programs may be besides their usual places.
pub(in crate::cli) fn program_search_path(around: &CliContext) -> Vec<PathBuf> {
    std::env::split_paths(around.environment.get("PATH").unwrap_or_default()).collect()
}

pub(in crate::cli) async fn start_server(
    start: &ServerStart,
    plan: &RestorePlan,
    action: RecoveryTargetAction,
    around: &CliContext,
) -> anyhow::Result<ReachedTarget> {
    let reached = start.run(plan, action, &around.clock).await;
    reached.context("the files are restored, but the server did not get to its target")
}

pub(in crate::cli) fn print_reached(reached: &ReachedTarget, around: &CliContext) -> anyhow::Result<()> {
    let out = &around.output;
    let did = match reached.action {
        RecoveryTargetAction::Promote => format!("takes writes on timeline {}", reached.timeline),
        RecoveryTargetAction::Pause => "is paused and takes reads; go on with SELECT pg_wal_replay_resume()".to_owned(),
        RecoveryTargetAction::Shutdown => "has stopped at the target".to_owned(),
    };
    let took = std::time::Duration::try_from_secs_f64(reached.seconds).unwrap_or_default();
    out.print_line(format!(
        "{} in {}: the server {did}",
        out.style(TextTone::Good, "target reached"),
        format_duration(took)
    ))?;
    if let Some(lsn) = reached.lsn {
        out.print_line(format!("  replayed up to  {lsn}"))?;
    }
    match reached.last_commit {
        Some(last) => {
            let (xid, lsn, time) = (last.xid, last.lsn, out.format_time(last.time));
            out.print_line(format!("  last commit     transaction {xid} at {lsn}, {time}"))
        }
        None => out.print_line("  last commit     none since the backup"),
    }
}

pub(in crate::cli) fn print_next_command(
    restored: &RestoredCluster,
    action: RecoveryTargetAction,
    around: &CliContext,
) -> anyhow::Result<()> {
    let pgdata = open::quote_for_postgres_command(&restored.pgdata.display().to_string());
    let then = match action {
        RecoveryTargetAction::Promote => "it replays WAL up to the target and then takes writes",
        RecoveryTargetAction::Pause => "it replays WAL up to the target and pauses there",
        RecoveryTargetAction::Shutdown => "it replays WAL up to the target and stops there",
    };
    around.output.print_line(format!("start it with: pg_ctl -D {pgdata} start"))?;
    around
        .output
        .print_line(around.output.style(TextTone::Quiet, format!("  {then}; it does not archive (archive_mode = off)")))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::parse_tablespace_mappings;

    #[test]
    fn mappings_are_two_paths() {
        let read = |text: &str| parse_tablespace_mappings(&[text.to_owned()]).map(|pairs| pairs[0].clone());
        let paths = |old: &str, new: &str| (PathBuf::from(old), PathBuf::from(new));
        assert_eq!(read("/a=/b").unwrap(), paths("/a", "/b"));
        assert_eq!(read("/a\\=x=/b").unwrap(), paths("/a=x", "/b"));
        for wrong in ["/a", "=/b", "/a=", "/a=/b=/c"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}

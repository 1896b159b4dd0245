//! `walkeep restore postgres --database` and `--table`: one of them, brought back into a running server under another name.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::postgres::{make_plan, print_plan, program_search_path};
use crate::cli::CliContext;
use crate::cli::args::RestorePostgresArgs;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::output::{TextTone, format_bytes, format_duration, text_width, wrap_text};
use crate::cli::progress::ProgressDisplay;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::spool::Spool;
use crate::postgres::restore::plan::RestorePlan;
use crate::postgres::restore::recovery_settings::restore_command_line;
use crate::postgres::restore::selective::{
    RestoreLeftovers, SelectedObject, SelectiveRestore, SelectiveRestoreOptions, SelectiveRestoreReport,
    SelectiveRestoreStep, TableName,
};
use crate::postgres::wire::Conninfo;

/// What `--json` prints.
#[derive(serde::Serialize)]
struct SelectiveRestoreJson<'r> {
    plan: &'r RestorePlan,
    returned: Option<&'r SelectiveRestoreReport>,
}

pub(in crate::cli) async fn run(
    args: &RestorePostgresArgs,
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let wish = build_request(args, config, cluster, around)?;
    let (part, into) = (wish.part.clone(), wish.into.to_string());
    let wanted = describe_part(&part);
    let begun = around.clock.elapsed();
    let (mut single, found) =
        SelectiveRestore::begin(wish).await.with_context(|| format!("cannot bring back {wanted}"))?;
    log_found(&found);
    let made = make_plan(config, cluster, &args.target, around).await;
    let (archive, plan) = match made {
        Ok(made) => made,
        Err(error) => {
            single.clean_up().await;
            return Err(error);
        }
    };
    if !args.json {
        print_plan(&plan, &args.target, (&open::shell_command_prefix(config, around), false), around)?;
    }
    if !plan.reachable {
        single.clean_up().await;
        if args.json {
            around.output.print_json(&SelectiveRestoreJson { plan: &plan, returned: None })?;
        }
        return Ok(CliExitCode::Unreachable);
    }
    let shown = SelectiveRestoreProgress {
        progress: ProgressDisplay::new("read WAL", 0, around.quiet),
        stage: AtomicU8::new(0),
    };
    let spool = Spool::existing(&config.state_dir, &archive);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let tell = |step| shown.show_step(step);
    let returned = tokio::select! {
        returned = single.run(&archive, spool.as_ref(), &plan, &tell) => Some(returned),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    shown.progress.finish();
    single.clean_up().await;
    let Some(returned) = returned else {
        let message =
            format!("interrupted: {wanted} was not brought back, and nothing of it is left here or on {into}");
        return Err(CliError { code: CliExitCode::Failed, message }.into());
    };
    let returned = returned.with_context(|| format!("cannot bring back {wanted}"))?;
    if args.json {
        around.output.print_json(&SelectiveRestoreJson { plan: &plan, returned: Some(&returned) })?;
        return Ok(CliExitCode::Done);
    }
    print_returned(&returned, &part, &into, around.clock.elapsed().saturating_sub(begun), around)?;
    Ok(CliExitCode::Done)
}

fn build_request(
    args: &RestorePostgresArgs,
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<SelectiveRestoreOptions> {
    let single = &args.single;
    let into = match &single.into {
        Some(text) => {
            let mut into = Conninfo::parse(text, &around.environment.postgres_variables())?;
            into.dbname.get_or_insert_with(|| "postgres".to_owned());
            Some(into)
        }
        None => cluster.conninfo(&around.environment)?,
    };
    let none = || {
        CliError::usage(format!(
            "cluster {} has no connection; name the running server with --into CONNINFO",
            cluster.name
        ))
    };
    let into = into.ok_or_else(none)?;
    let scratch = single.scratch_dir.clone().unwrap_or_else(|| config.state_dir.join("scratch"));
    let program = std::env::current_exe().context("cannot tell where the program itself is")?;
    let jobs = single.jobs.map_or_else(|| open::worker_threads().min(4), usize::from);
    Ok(SelectiveRestoreOptions {
        part: selected_part(args, &into)?,
        into,
        scratch: std::path::absolute(&scratch).context("cannot tell where the scratch directory goes")?,
        bindir: args.server.pg_bindir.clone(),
        search: program_search_path(around),
        jobs,
        restore_command: restore_command_line(&program, Some(&config.path), cluster.name.as_str()),
    })
}

fn selected_part(args: &RestorePostgresArgs, into: &Conninfo) -> Result<SelectedObject, CliError> {
    let single = &args.single;
    let Some(table) = &single.table else {
        let name = single.database.clone().unwrap_or_default();
        let new = single.new_name.clone().unwrap_or_else(|| format!("{name}_restored"));
        if name.is_empty() || new.is_empty() || new.len() > 63 {
            return Err(CliError::usage("--database and --as take names of 1 to 63 bytes"));
        }
        return Ok(SelectedObject::Database { name, new });
    };
    let read = |option: &str, text: &str, schema: &str| {
        let wrong = || {
            CliError::usage(format!("{option} {text:?}: write schema.name, with double quotes as in SQL where needed"))
        };
        TableName::parse(text, schema).ok_or_else(wrong)
    };
    let name = read("--table", table, "public")?;
    let new = match &single.new_name {
        Some(text) => read("--as", text, &name.schema)?,
        None => TableName { schema: name.schema.clone(), name: format!("{}_restored", name.name) },
    };
    let database = single.database.clone().or_else(|| into.dbname.clone()).or_else(|| into.user.clone());
    let database = database.ok_or_else(|| CliError::usage("name the table's database with --database"))?;
    Ok(SelectedObject::Table { database, name, new })
}

fn describe_part(part: &SelectedObject) -> String {
    match part {
        SelectedObject::Database { name, new } => format!("database {name} as {new}"),
        SelectedObject::Table { database, name, new } => format!("table {name} of database {database} as {new}"),
    }
}

/// On standard error, beside what was asked for.
fn log_found(found: &RestoreLeftovers) {
    for left in &found.scratch {
        let dir = open::quote_for_postgres_command(&left.dir.display().to_string());
        match left.server {
            Some(pid) => tracing::warn!(
                "{dir} was left by a run that was killed, and its server still runs (process {pid}); to clean up: kill -QUIT {pid}; rm -r {dir}"
            ),
            None => tracing::warn!("{dir} was left by a run that was killed; to clean up: rm -r {dir}"),
        }
    }
    for name in &found.databases {
        tracing::warn!(
            "database {name} is half filled, by a run that was killed or one under way; to clean up: DROP DATABASE {name}"
        );
    }
}

/// What is on the screen.
struct SelectiveRestoreProgress {
    progress: ProgressDisplay,
    stage: AtomicU8,
}

impl SelectiveRestoreProgress {
    fn show_step(&self, step: SelectiveRestoreStep) {
        let (number, name, done, total) = match step {
            SelectiveRestoreStep::Note(note) => {
                tracing::warn!("{note}");
                return;
            }
            SelectiveRestoreStep::Reading(done, total) => (0, "read WAL", done, total),
            SelectiveRestoreStep::Placing(done, total) => (1, "fetch files", done, total),
            SelectiveRestoreStep::Replaying(done, total) => (2, "replay WAL", done, total),
            SelectiveRestoreStep::Dumping(done, total) => (3, "copy out", done, total),
            SelectiveRestoreStep::Loading(done, total) => (4, "copy in", done, total),
        };
        if self.stage.swap(number, Ordering::Relaxed) != number {
            self.progress.set_stage(name);
        }
        self.progress.set_done(done, total);
    }
}

fn print_returned(
    returned: &SelectiveRestoreReport,
    part: &SelectedObject,
    into: &str,
    took: std::time::Duration,
    around: &CliContext,
) -> anyhow::Result<()> {
    let out = &around.output;
    let what = match &returned.table {
        Some(table) => format!("table {table} is in database {}", returned.database),
        None => format!("database {} is there", returned.database),
    };
    out.print_line("")?;
    out.print_line(format!(
        "{}: {what}, {}, in {}",
        out.style(TextTone::Good, "brought back"),
        format_bytes(returned.bytes),
        format_duration(took)
    ))?;
    out.print_line(format!("  on           {into}"))?;
    if let Some(last) = returned.reached.last_commit {
        out.print_line(format!(
            "  last commit  transaction {} at {}, {}",
            last.xid,
            last.lsn,
            out.format_time(last.time)
        ))?;
    }
    out.print_line(format!(
        "  fetched      {} of the backup's {}",
        format_bytes(returned.fetched_bytes),
        format_bytes(returned.backup_bytes)
    ))?;
    for note in &returned.notes {
        for (nth, line) in wrap_text(note, text_width().saturating_sub(15)).iter().enumerate() {
            out.print_line(format!("  {:<11}  {line}", if nth == 0 { "note" } else { "" }))?;
        }
    }
    if let SelectedObject::Database { new, .. } = part {
        let advice = format!(
            "it has no planner statistics yet: vacuumdb --analyze-only {}",
            open::quote_for_postgres_command(new)
        );
        out.print_line(out.style(TextTone::Quiet, advice))?;
    }
    Ok(())
}

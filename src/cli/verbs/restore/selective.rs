//! `walkeep restore postgres --database` and `--table`: one of them, into a running server under another name.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::server::program_search_path;
use crate::cli::args::target::{PostgresServerArgs, TargetRequest};
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::plan::postgres::print_plan;
use crate::cli::show::progress::ProgressDisplay;
use crate::cli::show::restore::selective::{SelectiveRestoreJson, describe_part, log_found, print_returned};
use crate::cli::show::shell;
use crate::cli::verbs::plan::postgres::make_plan;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::spool::Spool;
use crate::postgres::restore::plan::RestorePlanDocument;
use crate::postgres::restore::recovery_settings::restore_command_line;
use crate::postgres::restore::selective::{
    SelectedObject, SelectiveRestore, SelectiveRestoreOptions, SelectiveRestoreStep, TableName,
};
use crate::postgres::restore::target::RestoreRequest;
use crate::postgres::wire::Conninfo;

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "One database or table, into a running server (instead of --pgdata)")]
pub(in crate::cli) struct SelectiveRestoreArgs {
    /// Bring back this database alone; with --table, the database that the table is in
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) database: Option<String>,
    /// Bring back this table alone, into the same database
    #[arg(long, value_name = "SCHEMA.NAME")]
    pub(in crate::cli) table: Option<String>,
    /// What it is to be called [default: its name and _restored; a dropped table keeps its name]
    #[arg(long = "as", value_name = "NAME")]
    pub(in crate::cli) new_name: Option<String>,
    /// The running server [default: the cluster's connection]
    #[arg(long, value_name = "CONNINFO")]
    pub(in crate::cli) into: Option<String>,
    /// Where the scratch server's files go for the while [default: scratch in the state directory]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) scratch_dir: Option<PathBuf>,
    /// Tables that are copied at a time [default: one a processor, up to 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(in crate::cli) jobs: Option<u8>,
}

/// What was typed.
pub(in crate::cli) struct SelectiveRestoreCommand<'a> {
    pub(in crate::cli) part: &'a SelectiveRestoreArgs,
    pub(in crate::cli) target: &'a TargetRequest<RestoreRequest>,
    pub(in crate::cli) server: &'a PostgresServerArgs,
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(
    args: &SelectiveRestoreCommand<'_>,
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let wish = build_request(args, config, cluster, around)?;
    let into = wish.into.to_string();
    let wanted = describe_part(&wish.part);
    let begun = around.clock.elapsed();
    let (mut single, found) =
        SelectiveRestore::begin(wish).await.with_context(|| format!("cannot bring back {wanted}"))?;
    log_found(&found);
    let part = single.part().clone();
    let wanted = describe_part(&part);
    let made = make_plan(config, cluster, &args.target.request, around).await;
    let (planner, plan) = match made {
        Ok(made) => made,
        Err(error) => {
            single.clean_up().await;
            return Err(error);
        }
    };
    if !args.json {
        print_plan(&plan, args.target, (&shell::shell_command_prefix(config, around), false), &around.output)?;
    }
    let document = RestorePlanDocument::from(&plan);
    let Some(proved) = plan.restore() else {
        single.clean_up().await;
        if args.json {
            around.output.print_json(&SelectiveRestoreJson { plan: document, returned: None })?;
        }
        return Ok(CliExitCode::Unreachable);
    };
    let shown = SelectiveRestoreProgress {
        progress: ProgressDisplay::new("read WAL", 0, around.quiet),
        stage: AtomicU8::new(0),
    };
    let archive = planner.archive();
    let spool = Spool::existing(&config.state_dir, archive);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let tell = |step| shown.show_step(step);
    let returned = tokio::select! {
        returned = single.run(archive, spool.as_ref(), proved, &tell) => Some(returned),
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
        around.output.print_json(&SelectiveRestoreJson { plan: document, returned: Some(&returned) })?;
    } else {
        print_returned(&returned, &part, &into, around.clock.elapsed().saturating_sub(begun), &around.output)?;
    }
    if returned.failures.is_empty() {
        return Ok(CliExitCode::Done);
    }
    let count = returned.failures.len();
    let message = format!("the rows of {wanted} are there, but {count} things could not be brought back with them");
    Err(CliError { code: CliExitCode::Failed, message }.into())
}

fn build_request(
    args: &SelectiveRestoreCommand<'_>,
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<SelectiveRestoreOptions> {
    let single = args.part;
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
        part: selected_part(single, &into)?,
        own_name_if_free: single.new_name.is_none(),
        into,
        scratch: std::path::absolute(&scratch).context("cannot tell where the scratch directory goes")?,
        bindir: args.server.pg_bindir.clone(),
        search: program_search_path(around),
        jobs,
        restore_command: restore_command_line(&program, Some(&config.path), cluster.name.as_str()),
    })
}

fn selected_part(single: &SelectiveRestoreArgs, into: &Conninfo) -> Result<SelectedObject, CliError> {
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

//! `walkeep backup postgres`.

use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::backup::print_backup;
use crate::cli::show::progress::ProgressDisplay;
use crate::postgres::archive::manifest::BackupDefects;
use crate::postgres::backup::{self, BackupOptions, BackupProgress as Step};
use crate::postgres::restore::target::AcceptedDefects;

/// Of a PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::BACKUP_HELP)]
pub(in crate::cli) struct BackupPostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(in crate::cli) cluster: Option<String>,
    /// How the server makes its first checkpoint: at once, or spread over checkpoint_completion_target
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub(in crate::cli) checkpoint: CheckpointMode,
    /// Print one JSON document instead of the label
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::cli) enum CheckpointMode {
    /// At once
    #[default]
    Fast,
    /// Gently, which may take minutes
    Spread,
}

pub(in crate::cli) async fn run(args: BackupPostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    let Some(server) = cluster.conninfo(&around.environment)? else {
        let path = config.path.display();
        let message = format!("[postgres.{}] has no connection to take a backup over; add one to {path}", cluster.name);
        return Err(CliError::usage(message).into());
    };
    let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
    let options =
        BackupOptions { fast_checkpoint: args.checkpoint == CheckpointMode::Fast, ..BackupOptions::default() };
    let quiet = around.quiet || args.json;
    let bar = ProgressDisplay::new("checkpoint", 0, quiet);
    let mut reading = false;
    let mut tell = |step: Step| match step {
        Step::Checkpoint => bar.set_stage("waiting for the server's checkpoint"),
        Step::Reading { done, total, .. } => {
            if !std::mem::replace(&mut reading, true) {
                bar.set_stage("backup");
            }
            bar.set_done(done, total);
        }
        Step::WaitingForWal => bar.set_stage("waiting for the WAL that the backup needs"),
    };
    let taken = backup::take_backup(&archive, &server, &options, &mut tell).await;
    bar.finish();
    let summary = taken.with_context(|| format!("cannot take a backup of {}", cluster.name))?;
    print_backup(&summary, args.json, quiet, around)?;
    if summary.defects.is_empty() {
        return Ok(CliExitCode::Done);
    }
    let message = format!(
        "backup {} of {} is stored, but it is not whole: {}; {}",
        summary.label,
        cluster.name,
        summary.defects,
        remedy(&summary.defects)
    );
    Err(CliError { code: CliExitCode::Integrity, message }.into())
}

/// What to do about a backup that is not whole.
fn remedy(defects: &BackupDefects) -> String {
    let mut steps = Vec::new();
    if defects.missing_file_count > 0 {
        steps.push(
            "the server leaves out symbolic links: with the server stopped, put the file or directory back in place \
             of the link, and use a tablespace to move tables to another disk",
        );
    }
    if defects.damaged_page_count > 0 {
        steps.push(
            "pg_amcheck and pg_filenode_relation() show which relations are damaged: restore them from an older \
             backup, whose WAL restores their pages, too",
        );
    }
    let options = AcceptedDefects::options_for(defects);
    format!("{}; then take a backup again. A restore uses this one only with {options}", steps.join("; "))
}

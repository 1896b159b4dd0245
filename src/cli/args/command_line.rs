//! The whole command line. Nothing is looked up here; `cli::dispatch` turns it into usable values.

use clap::{Parser, Subcommand};

use super::global::GlobalArgs;
use super::help;
use crate::cli::verbs::archive_get::ArchiveGetArgs;
use crate::cli::verbs::archive_push::ArchivePushArgs;
use crate::cli::verbs::backup::BackupArgs;
use crate::cli::verbs::check::CheckArgs;
use crate::cli::verbs::cleanup::CleanupArgs;
use crate::cli::verbs::fork::ForkArgs;
use crate::cli::verbs::health::HealthArgs;
use crate::cli::verbs::index::IndexArgs;
use crate::cli::verbs::init::InitArgs;
use crate::cli::verbs::list::ListArgs;
use crate::cli::verbs::log::LogArgs;
use crate::cli::verbs::plan::PlanArgs;
use crate::cli::verbs::receive::ReceiveArgs;
use crate::cli::verbs::recovery_ended::RecoveryEndedArgs;
use crate::cli::verbs::repository::RepositoryArgs;
use crate::cli::verbs::restore::RestoreArgs;
use crate::cli::verbs::verify::VerifyArgs;

/// Keep PostgreSQL clusters and Redis instances restorable to any moment.
#[derive(Parser, Debug)]
#[command(name = "walkeep", version, max_term_width = 100, after_help = help::OVERVIEW_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub(in crate::cli) struct CommandLine {
    #[command(flatten)]
    pub(in crate::cli) global: GlobalArgs,
    #[command(subcommand)]
    pub(in crate::cli) command: CliCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum CliCommand {
    Init(InitArgs),
    Check(CheckArgs),
    Receive(ReceiveArgs),
    ArchivePush(ArchivePushArgs),
    ArchiveGet(ArchiveGetArgs),
    Backup(BackupArgs),
    List(ListArgs),
    Plan(PlanArgs),
    Restore(RestoreArgs),
    #[command(hide = true)]
    RecoveryEnded(RecoveryEndedArgs),
    Log(LogArgs),
    Verify(VerifyArgs),
    Cleanup(CleanupArgs),
    Health(HealthArgs),
    Fork(ForkArgs),
    Index(IndexArgs),
    Repository(RepositoryArgs),
}

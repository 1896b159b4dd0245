//! `walkeep repository`: more than one repository.

pub(in crate::cli) mod add;
pub(in crate::cli) mod check;
mod compared_archives;
mod config_file;
mod configured_name;
pub(in crate::cli) mod list;
mod probed_repository;
pub(in crate::cli) mod remove;
pub(in crate::cli) mod sync;

use clap::{Args, Subcommand};

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;

/// Add, compare, fill, check and remove repositories
#[derive(Args, Debug)]
#[command(after_help = help::REPOSITORY_HELP)]
pub(in crate::cli) struct RepositoryArgs {
    #[command(subcommand)]
    pub(in crate::cli) of: RepositoryCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum RepositoryCommand {
    /// Create or take over a repository, prove that it works, and add it to the configuration
    Add(add::AddArgs),
    /// Show each repository, and what it lacks compared with the others
    List(list::ListRepositoriesArgs),
    /// Copy what a repository lacks from the others
    Sync(sync::SyncArgs),
    /// Prove that a repository works and lacks nothing
    Check(check::CheckRepositoryArgs),
    /// Take a repository out of the configuration; its objects stay
    Remove(remove::RemoveArgs),
}

pub(in crate::cli) async fn run(args: RepositoryArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    match args.of {
        RepositoryCommand::Add(args) => add::run(args, around).await,
        RepositoryCommand::List(args) => list::run(args, around).await,
        RepositoryCommand::Sync(args) => sync::run(args, around).await,
        RepositoryCommand::Check(args) => check::run(args, around).await,
        RepositoryCommand::Remove(args) => remove::run(args, around).await,
    }
}

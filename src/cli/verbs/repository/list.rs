//! `walkeep repository list`: each repository, and what it lacks compared with the others.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::compared_archives;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliExitCode};
use crate::cli::open;
use crate::cli::show::repository::{LackingSummary, ListedRepository, RepositoryListJson, print_list};
use crate::config::{Config, RepositoryConfig};
use crate::vault::Vault;
use crate::vault::shipper::SeedScope;

/// Show each repository, and what it lacks compared with the others
#[derive(Args, Debug)]
#[command(after_help = help::REPOSITORY_LIST_HELP)]
pub(in crate::cli) struct ListRepositoriesArgs {
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: ListRepositoriesArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let vault = Vault::open(open::archive_settings(&config, around)?).await.context("cannot open the repositories")?;
    let vault = Arc::new(vault);
    let mut repositories = Vec::new();
    for repository in &config.repositories {
        repositories.push(listed_repository(&config, &vault, repository).await);
    }
    if args.json {
        around.output.print_json(&RepositoryListJson { repositories })?;
    } else {
        print_list(&repositories, &around.output)?;
    }
    Ok(CliExitCode::Done)
}

async fn listed_repository<'c>(
    config: &'c Config,
    vault: &Arc<Vault>,
    repository: &'c RepositoryConfig,
) -> ListedRepository<'c> {
    let name = repository.name.as_str();
    let id = vault.repositories().find(|(other, _)| *other == name).map(|(_, open)| open.id().to_string());
    let unreachable = vault.unreachable().find(|(other, _)| *other == name);
    let unreachable = unreachable.map(|(_, why)| exit::error_line(&anyhow::Error::from(why)));
    let mut lacking = Vec::new();
    if unreachable.is_none() && config.repositories.len() > 1 {
        for archive in compared_archives::all(config) {
            let found = archive.lacking(vault, name, SeedScope::default()).await;
            let summary = match found {
                Ok(found) => LackingSummary::new(archive.name(), &found),
                Err(error) => LackingSummary::failed(archive.name(), exit::error_line(&error)),
            };
            lacking.push(summary);
        }
    }
    let hours = repository.retention.map(|retention| retention.as_hours());
    ListedRepository { name, url: repository.url.as_str(), id, unreachable, retention_hours: hours, lacking }
}

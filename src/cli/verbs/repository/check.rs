//! `walkeep repository check`: does each repository work, and does it lack anything?

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::compared_archives::{self, as_unreachable};
use super::configured_name::ensure_configured;
use super::probed_repository::probe_repository;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliExitCode};
use crate::cli::open;
use crate::cli::show::repository::{CheckedRepository, LackingSummary, RepositoryCheckJson, print_checked};
use crate::config::Config;
use crate::vault::Vault;
use crate::vault::shipper::SeedScope;

/// Prove that a repository works and lacks nothing
#[derive(Args, Debug)]
#[command(after_help = help::REPOSITORY_CHECK_HELP)]
pub(in crate::cli) struct CheckRepositoryArgs {
    /// The repository [default: all that are configured]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: CheckRepositoryArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    if let Some(name) = &args.name {
        ensure_configured(&config, name)?;
    }
    let vault = Vault::open(open::archive_settings(&config, around)?).await.context("cannot open the repositories")?;
    let vault = Arc::new(vault);
    let mut checked = Vec::new();
    for repository in &config.repositories {
        let name = repository.name.as_str();
        if args.name.as_ref().is_none_or(|wanted| wanted == name) {
            checked.push(check_repository(&config, &vault, name).await);
        }
    }
    let worst = checked.iter().map(|checked| checked.code).max_by_key(|code| code.severity());
    if args.json {
        around.output.print_json(&RepositoryCheckJson { repositories: &checked })?;
    } else {
        checked.iter().try_for_each(|checked| print_checked(checked, &around.output))?;
    }
    Ok(worst.unwrap_or(CliExitCode::Done))
}

async fn check_repository<'c>(config: &'c Config, vault: &Arc<Vault>, name: &'c str) -> CheckedRepository<'c> {
    let mut checked = CheckedRepository::new(name);
    match probe_repository(config, vault, name).await {
        Ok(lines) => checked.works = lines,
        Err(error) => {
            let error = as_unreachable(error);
            checked.fail(exit::exit_code(&error), exit::error_line(&error));
            return checked;
        }
    }
    if config.repositories.len() < 2 {
        return checked;
    }
    for archive in compared_archives::all(config) {
        match archive.lacking(vault, name, SeedScope::default()).await {
            Ok(found) => checked.add_lacking(LackingSummary::new(archive.name(), &found)),
            Err(error) => checked.fail(exit::exit_code(&error), exit::error_line(&error)),
        }
    }
    checked
}

//! `walkeep repository remove`: a repository is taken out of the configuration, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use clap::Args;

use super::compared_archives::as_unreachable;
use super::config_file::ConfigFile;
use super::configured_name::ensure_configured;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::repository::print_removed;
use crate::config::{self, Config};
use crate::vault::Vault;
use crate::vault::repository::key::KeyPrefix;

/// Folders of an archive with objects that are temporary in each repository.
const TEMPORARY_FOLDERS: [&str; 2] = ["piece", "probe"];

/// Take a repository out of the configuration; its objects stay
#[derive(Args, Debug)]
#[command(after_help = help::REPOSITORY_REMOVE_HELP)]
pub(in crate::cli) struct RemoveArgs {
    /// The repository
    #[arg(value_name = "NAME")]
    pub(in crate::cli) name: String,
    /// Remove it even if it has something that no other repository has
    #[arg(long)]
    pub(in crate::cli) force: bool,
}

pub(in crate::cli) async fn run(args: RemoveArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let path = around.read_config()?.path;
    let file = ConfigFile::read(&path)?;
    let old = Config::parse(&path, &file.text)?;
    ensure_configured(&old, &args.name)?;
    let name = args.name.as_str();
    let by_hand = || format!("take the lines of [repository.{name}] out of {} by hand", path.display());
    let text = config::remove_repository(&file.text, name).ok_or_else(|| CliError::usage(by_hand()))?;
    let new = Config::parse(&path, &text).with_context(|| format!("cannot do without [repository.{name}]"))?;
    let names = |config: &Config| -> Vec<String> {
        let names = config.repositories.iter().map(|repository| repository.name.clone());
        names.filter(|other| other != name).collect()
    };
    if names(&old) != names(&new) || new.repositories.len() >= old.repositories.len() {
        return Err(CliError::usage(by_hand()).into());
    }
    let vault = Vault::open(open::archive_settings(&old, around)?).await.context("cannot open the repositories")?;
    let only_here = match objects_only_in(&vault, name).await {
        Ok(only_here) => only_here,
        Err(error) if args.force => {
            tracing::warn!(error = crate::cli::exit::error_line(&error), "what is only in this repository is unknown");
            BTreeMap::new()
        }
        Err(error) => {
            let message =
                format!("cannot prove that the other repositories have all that {name} has; --force removes it");
            return Err(as_unreachable(error).context(message));
        }
    };
    if !only_here.is_empty() && !args.force {
        let what: Vec<String> = only_here.iter().map(|(folder, count)| format!("{count} in {folder}")).collect();
        let message = format!(
            "only {name} has these objects: {}; copy them with walkeep repository sync, or give them up with --force",
            what.join(", ")
        );
        return Err(CliError { code: CliExitCode::Failed, message }.into());
    }
    file.replace(&text)?;
    let url = old.repositories.iter().find(|repository| repository.name == name).map(|repository| &repository.url);
    print_removed(name, url.map_or("", |url| url.as_str()), &path, &only_here, &around.output)?;
    Ok(CliExitCode::Done)
}

/// How many objects only this repository has, by the folder of their archive.
async fn objects_only_in(vault: &Vault, name: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    vault.reopened_id(name).await?;
    let (alone, others) = (vault.view(|other| other == name), vault.view(|other| other != name));
    let mut counts = BTreeMap::new();
    for (_, repository) in alone.repositories() {
        for archive in repository.list_level(&KeyPrefix::all()).await?.prefixes {
            if archive.as_str() == "keys" {
                continue;
            }
            for folder in repository.list_level(&archive).await?.prefixes {
                let last = folder.as_str().rsplit('/').next().unwrap_or_default();
                if TEMPORARY_FOLDERS.contains(&last) {
                    continue;
                }
                // The others are listed later, so that what a receiver stores meanwhile is no difference.
                let ours = repository.list(&folder).await?;
                let theirs = others.list(&folder, None).await?.objects;
                let theirs: BTreeSet<_> = theirs.into_iter().map(|object| object.key).collect();
                let only = ours.iter().filter(|object| !theirs.contains(&object.key)).count();
                if only > 0 {
                    counts.insert(folder.as_str().to_owned(), only);
                }
            }
        }
    }
    Ok(counts)
}

//! `walkeep repository add`: one more repository.
//!
//! The configuration is written last, when the repository has its keys and has been tried. An attempt that fails
//! half-way can be repeated: a repository that it created is taken over by the next attempt.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::config_file::ConfigFile;
use super::probed_repository::probe_repository;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::repository::{AddedRepository, print_added};
use crate::config::{self, Config, NewRepository};
use crate::postgres::archive::Archive;
use crate::postgres::archive::layout::ClusterName;
use crate::vault::repository::{Repository, RepositoryError};
use crate::vault::{RepositoryLocation, Vault, VaultError};

/// Create or take over a repository, prove that it works, and add it to the configuration
#[derive(Args, Debug)]
#[command(after_help = help::REPOSITORY_ADD_HELP)]
pub(in crate::cli) struct AddArgs {
    /// The name it is to have in the configuration
    #[arg(value_name = "NAME")]
    pub(in crate::cli) name: String,
    /// Where it is: file:///folder, s3://bucket/folder, gs://bucket/folder or az://container/folder
    #[arg(value_name = "URL")]
    pub(in crate::cli) url: String,
    /// A key of its section, like endpoint=http://host:9000; may be given several times
    #[arg(long = "setting", value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub(in crate::cli) settings: Vec<(String, String)>,
    /// For how long every moment stays restorable, like 90d [default: indefinitely]
    #[arg(long, value_name = "SPAN")]
    pub(in crate::cli) retention: Option<String>,
}

/// `KEY=VALUE`. An error never repeats the value, which may be a secret.
fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, like region=eu-central-1")?;
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
        return Err("a key has small letters and dashes, like access-key-id".to_owned());
    }
    if matches!(key, "url" | "retention") {
        return Err(format!("{key} is not a setting; give it as an argument of its own"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

pub(in crate::cli) async fn run(args: AddArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let path = around.read_config()?.path;
    let file = ConfigFile::read(&path)?;
    let old = Config::parse(&path, &file.text)?;
    let text = extended_config(&args, &old, &file.text)?;
    let new = Config::parse(&path, &text).with_context(|| format!("cannot add [repository.{}]", args.name))?;
    let vault = Vault::open(open::archive_settings(&old, around)?).await;
    let vault = Arc::new(vault.context("cannot open the repositories that are configured")?);
    let settings = open::archive_settings(&new, around)?;
    let location = settings.places.iter().find(|place| place.name == args.name).ok_or(VaultError::NoRepository)?;
    let (repository, created) = open_or_create(location).await?;
    if let Some((twin, _)) = vault.repositories().find(|(_, known)| known.id() == repository.id()) {
        let message = format!(
            "{} is [repository.{twin}], or a copy of it that another program made (id {}); nothing was changed",
            repository.url(),
            repository.id()
        );
        return Err(CliError::usage(message).into());
    }
    if !created {
        refuse_other_clusters(&new, &vault, &args.name, around).await?;
    }
    // Opening all of them brings the keys of each to the others.
    let both = Vault::open(settings).await.context("cannot open the repositories")?;
    if let Some((_, why)) = both.unreachable().find(|(name, _)| *name == args.name) {
        return Err(anyhow::Error::from(why).context("the new repository cannot be used"));
    }
    let proved = probe_repository(&new, &both, &args.name).await.context("the new repository does not work")?;
    file.replace(&text)?;
    let unreachable: Vec<String> = both.unreachable().map(|(name, _)| name.to_owned()).collect();
    let added = AddedRepository {
        name: &args.name,
        url: repository.url(),
        id: repository.id(),
        created,
        proved,
        unreachable,
        config: &path,
    };
    print_added(&added, &around.output)?;
    Ok(CliExitCode::Done)
}

/// The text of the configuration with the new section.
fn extended_config(args: &AddArgs, old: &Config, text: &str) -> Result<String, CliError> {
    config::parse_name::<ClusterName>(&args.name).map_err(CliError::usage)?;
    if old.repositories.iter().any(|repository| repository.name == args.name) {
        let message = "is configured already; choose another name, or see walkeep repository list";
        return Err(CliError::usage(format!("[repository.{}] {message}", args.name)));
    }
    let url = config::parse_repository_url(&args.url).map_err(CliError::usage)?;
    let new =
        NewRepository { name: &args.name, url: &url, retention: args.retention.as_deref(), settings: &args.settings };
    Ok(config::append_repository(text, &new))
}

/// The repository, and whether it was created now.
async fn open_or_create(location: &RepositoryLocation) -> anyhow::Result<(Repository, bool)> {
    match Repository::open(&location.url, &location.options).await {
        Err(RepositoryError::NoRepository { .. }) => {
            let created = Repository::create(&location.url, &location.options).await;
            Ok((created.context("cannot create the repository")?, true))
        }
        opened => Ok((opened.context("cannot open the repository")?, false)),
    }
}

/// A repository that another installation used may have another cluster under the same name. It is opened alone, before
/// any key of it reaches the others.
async fn refuse_other_clusters(
    config: &Config,
    others: &Arc<Vault>,
    name: &str,
    around: &CliContext,
) -> anyhow::Result<()> {
    let mut settings = open::archive_settings(config, around)?;
    settings.places.retain(|place| place.name == name);
    let alone = match Vault::open(settings).await {
        Ok(alone) => Arc::new(alone),
        // An earlier attempt created it and ended. It is empty, or is refused when it gets its keys.
        Err(VaultError::KeysMissing { .. }) => return Ok(()),
        Err(error) => return Err(anyhow::Error::from(error).context("the new repository cannot be used")),
    };
    for cluster in &config.clusters {
        let archive = |vault: &Arc<Vault>| Archive::new(Arc::clone(vault), cluster.name.clone());
        let (ours, theirs) = (archive(&alone).identity().await?, archive(others).identity().await?);
        if ours.is_some() && theirs.is_some() && ours != theirs {
            let message = format!(
                "{name} has another cluster under the name {} than the repositories that are configured; choose an \
                 empty folder for it",
                cluster.name
            );
            return Err(CliError { code: CliExitCode::Integrity, message }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse_setting;

    #[test]
    fn settings_are_keys_with_values_and_errors_have_no_secret() {
        let read = parse_setting("endpoint=http://h:9?a=b").unwrap();
        assert_eq!((read.0.as_str(), read.1.as_str()), ("endpoint", "http://h:9?a=b"));
        for wrong in ["hunter2", "=hunter2", "a b=hunter2", "x]\n[y=hunter2", "url=hunter2"] {
            let why = parse_setting(wrong).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}

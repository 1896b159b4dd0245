//! From the configuration to the things that flows work with.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use super::context::CliContext;
use super::exit::{CliError, CliExitCode};
use crate::config::{self, ClusterConfig, Config, KeySource, ProcessEnvironment, Secret};
use crate::postgres::archive::Archive;
use crate::postgres::archive::layout::{ClusterName, Layout};
use crate::redis;
use crate::redis::archive::layout::InstanceName;
use crate::vault::repository::RepositoryOptions;
use crate::vault::repository::key::KeyPrefix;
use crate::vault::seal::keys::KeyEncryptionKey;
use crate::vault::{HeldOffRepository, RepositoryLocation, UnreachableNotes, Vault, VaultSettings};

/// Threads that seal or open one object; more than this and the repository is what one waits for.
const MAX_WORKER_THREADS: usize = 8;

/// The archive of one cluster, in all its repositories.
pub(super) async fn open_archive(
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<Archive> {
    let opened = Vault::open(archive_settings(config, around)?).await;
    let vault = opened.with_context(|| format!("cannot open the archive of {}", cluster.name))?;
    Ok(archive_in(&Arc::new(vault), cluster))
}

/// The archive of one cluster for a process that lives only a moment: in the repositories that answered the last one.
/// The caller notes afterwards how they are now, with [`UnreachableNotes::update`].
pub(super) async fn open_archive_briefly(
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> anyhow::Result<(Archive, UnreachableNotes, Vec<HeldOffRepository>)> {
    let notes = UnreachableNotes::read(&config.state_dir);
    let held_off = notes.held_off(around.clock.now());
    let answering = |name: &str| held_off.iter().all(|held| held.name != name);
    let names = config.repositories.iter().map(|repository| repository.name.as_str());
    // If they are required, nothing is gained by not asking them.
    let held_off = if cluster.required.are_met(names, answering) { held_off } else { Vec::new() };
    let opened = Vault::open_except(archive_settings(config, around)?, &held_off).await;
    let vault = opened.with_context(|| format!("cannot open the archive of {}", cluster.name))?;
    Ok((archive_in(&Arc::new(vault), cluster), notes, held_off))
}

/// The archive of one cluster in the repositories of this machine's own disks, if there are others beside them: they
/// give what they have without a word from the network. `None` if that is of no use, or they cannot be opened.
pub(super) async fn open_local_archive(
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
) -> Option<Archive> {
    let mut settings = archive_settings(config, around).ok()?;
    let all = settings.places.len();
    settings.places.retain(|place| place.url.starts_with("file:"));
    if settings.places.is_empty() || settings.places.len() == all {
        return None;
    }
    match Vault::open(settings).await {
        Ok(vault) => Some(archive_in(&Arc::new(vault), cluster)),
        Err(error) => {
            tracing::debug!(%error, "the local repositories cannot be opened");
            None
        }
    }
}

/// The repositories and keys of this configuration, for several archives.
pub(super) async fn open_vault(config: &Config, around: &CliContext) -> anyhow::Result<Arc<Vault>> {
    let opened = Vault::open(archive_settings(config, around)?).await;
    Ok(Arc::new(opened.context("cannot open the repositories")?))
}

/// The archive of one cluster in an open vault.
pub(super) fn archive_in(vault: &Arc<Vault>, cluster: &ClusterConfig) -> Archive {
    Archive::new(Arc::clone(vault), cluster.name.clone()).with_required(cluster.required.clone())
}

/// The archive of one instance in an open vault, with what this machine's receiver has of it.
pub(super) fn instance_in(vault: &Arc<Vault>, of: &config::InstanceConfig, config: &Config) -> redis::archive::Archive {
    redis::archive::Archive::new(Arc::clone(vault), of.name.clone()).with_spool(config.state_dir.clone())
}

/// A Redis instance in all its repositories, with what this machine's receiver has of it.
pub(super) async fn open_instance(
    config: &Config,
    instance: &config::InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<redis::archive::Archive> {
    let opened = Vault::open(archive_settings(config, around)?).await;
    let vault = opened.with_context(|| format!("cannot open the archive of {}", instance.name))?;
    Ok(instance_in(&Arc::new(vault), instance, config))
}

/// What may be named in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StoreKind {
    Cluster,
    Instance,
}

/// Whoever restores after a disaster may have written the configuration anew, with another name: where nothing is
/// archived under it, what is there that this configuration does not name. `None` if there is nothing, or nobody can
/// say.
pub(super) async fn suggest_other_names(what: StoreKind, config: &Config, vault: &Vault) -> Option<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (_, repository) in vault.repositories() {
        for folder in repository.list_level(&KeyPrefix::all()).await.ok()?.prefixes {
            let name = folder.as_str();
            let (named, identity) = match what {
                StoreKind::Cluster => {
                    let Ok(cluster) = name.parse::<ClusterName>() else { continue };
                    (config.clusters.iter().any(|known| known.name == cluster), Layout::new(cluster).identity())
                }
                StoreKind::Instance => {
                    let Ok(instance) = name.parse::<InstanceName>() else { continue };
                    let named = config.instances.iter().any(|known| known.name == instance);
                    (named, redis::archive::layout::Layout::new(instance).identity())
                }
            };
            if !named && repository.head(&identity).await.ok()?.is_some() {
                names.insert(name.to_string());
            }
        }
    }
    other_names_sentence(&names.into_iter().collect::<Vec<_>>())
}

fn other_names_sentence(names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [only] => Some(format!("the repository has {only}: is it this one?")),
        [first @ .., last] => Some(format!("the repository has {} and {last}: is this one of them?", first.join(", "))),
    }
}

/// Goes on only if something is archived of the instance.
pub(super) async fn ensure_archived(config: &Config, instance: &redis::archive::Archive) -> anyhow::Result<()> {
    let name = instance.name();
    if instance.is_archived().await.with_context(|| format!("cannot tell what is archived of {name}"))? {
        return Ok(());
    }
    let message = match suggest_other_names(StoreKind::Instance, config, instance.vault()).await {
        Some(asked) => format!("nothing of {name} is archived; {asked}"),
        None => format!("nothing of {name} is archived yet; take a snapshot with walkeep backup redis {name}"),
    };
    Err(CliError { code: CliExitCode::NotFound, message }.into())
}

/// What the vault of this configuration is opened with.
pub(super) fn archive_settings(config: &Config, around: &CliContext) -> anyhow::Result<VaultSettings> {
    let places = config.repositories.iter().map(|repository| repository_settings(repository, around)).collect();
    Ok(VaultSettings {
        places,
        key: config.key.as_ref().map(|source| read_key(source, &around.environment)).transpose()?,
        level: config.compression,
        threads: worker_threads(),
        clock: Arc::clone(&around.clock),
    })
}

fn repository_settings(repository: &config::RepositoryConfig, around: &CliContext) -> RepositoryLocation {
    let revealed = |(name, value): (&String, &Secret)| (name.clone(), value.reveal().to_owned());
    let options = RepositoryOptions {
        environment: around.environment.object_store_variables(),
        settings: repository.settings.iter().map(revealed).collect(),
        clock: Arc::clone(&around.clock),
        ..RepositoryOptions::new()
    };
    RepositoryLocation { name: repository.name.clone(), url: repository.url.to_string(), options }
}

/// The key that the repositories' own keys are wrapped with.
fn read_key(source: &KeySource, environment: &ProcessEnvironment) -> anyhow::Result<KeyEncryptionKey> {
    let text = source.fetch(environment)?;
    let place = match source {
        KeySource::File(path) => path.display().to_string(),
        KeySource::Env(name) => format!("the variable {name}"),
        KeySource::Command(_) => "the output of key-command".to_owned(),
    };
    KeyEncryptionKey::from_text(text.reveal())
        .map_err(|why| CliError::usage(format!("{place} holds no key: {why}")).into())
}

/// One thread for each processor, within reason.
pub(super) fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_WORKER_THREADS)
}

/// Where the index of all clusters is.
pub(super) fn index_dir(config: &Config) -> PathBuf {
    config.state_dir.join("index")
}

#[cfg(test)]
mod tests {
    use super::other_names_sentence;

    #[test]
    fn what_may_be_meant_is_asked() {
        let asked =
            |names: &[&str]| other_names_sentence(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&["cache"]).unwrap(), "the repository has cache: is it this one?");
        assert_eq!(asked(&["a", "b", "c"]).unwrap(), "the repository has a, b and c: is this one of them?");
    }
}

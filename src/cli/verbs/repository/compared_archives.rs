//! The archives of a configuration, each of which one repository is compared with the others.

use std::sync::Arc;

use anyhow::Context;

use crate::cli::exit::{self, CliError, CliExitCode};
use crate::config::{ClusterConfig, Config, InstanceConfig};
use crate::postgres::archive::Archive;
use crate::redis;
use crate::vault::Vault;
use crate::vault::shipper::{Lacking, SeedScope};

/// A cluster or a Redis instance in the repositories.
#[derive(Clone, Copy, Debug)]
pub(super) enum ComparedArchive<'c> {
    Cluster(&'c ClusterConfig),
    Instance(&'c InstanceConfig),
}

/// All of them, in the order of the configuration.
pub(super) fn all(config: &Config) -> impl Iterator<Item = ComparedArchive<'_>> {
    let clusters = config.clusters.iter().map(ComparedArchive::Cluster);
    clusters.chain(config.instances.iter().map(ComparedArchive::Instance))
}

impl<'c> ComparedArchive<'c> {
    pub(super) fn name(&self) -> &'c str {
        match self {
            ComparedArchive::Cluster(cluster) => cluster.name.as_str(),
            ComparedArchive::Instance(instance) => instance.name.as_str(),
        }
    }

    /// What the repository lacks of it, compared with the others of the vault.
    pub(super) async fn lacking(
        &self,
        vault: &Arc<Vault>,
        repository: &str,
        scope: SeedScope,
    ) -> anyhow::Result<Lacking> {
        let name = self.name();
        match self {
            ComparedArchive::Cluster(cluster) => {
                let archive = Archive::new(Arc::clone(vault), cluster.name.clone());
                let lacking = Box::pin(archive.lacking(repository, None, scope)).await;
                let lacking = lacking.with_context(|| format!("cannot compare {name} in {repository} with the others"));
                Ok(lacking.map_err(as_unreachable)?)
            }
            ComparedArchive::Instance(instance) => {
                let archive = redis::archive::Archive::new(Arc::clone(vault), instance.name.clone());
                let lacking = Box::pin(archive.lacking(repository, scope)).await;
                let lacking = lacking.with_context(|| format!("cannot compare {name} in {repository} with the others"));
                Ok(lacking.map_err(as_unreachable)?)
            }
        }
    }
}

/// A repository that is not at its configured place may return with its disk: that is exit code 5, as for one that
/// does not answer.
pub(super) fn as_unreachable(error: anyhow::Error) -> anyhow::Error {
    match exit::exit_code(&error) {
        CliExitCode::NotFound => CliError { code: CliExitCode::Unavailable, message: exit::error_line(&error) }.into(),
        _ => error,
    }
}

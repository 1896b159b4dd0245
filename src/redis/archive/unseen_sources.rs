//! What could not be looked at when something was found out. What only that has is unknown, and not absent.

use std::sync::Arc;

use crate::vault::spool::SpoolError;
use crate::vault::{UnreachableRepositories, Vault, VaultError};

/// What could not be looked at, each with the reason, for a report.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct UnseenSources {
    /// Repositories that did not answer.
    pub unreachable: UnreachableRepositories,
    /// Why this machine's spool, or a file of it, could not be read.
    pub unread_spool: Option<String>,
}

impl UnseenSources {
    /// Reports them, if what the others have is shown all the same.
    pub fn log_warnings(&self) {
        self.unreachable.log_warnings();
        if let Some(error) = &self.unread_spool {
            tracing::warn!(error, "the spool could not be read; what only it has is not shown");
        }
    }

    /// A sentence for each.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let repository = |(name, why): (&str, &str)| {
            format!("repository {name} is unreachable, and what only it has does not count here: {why}")
        };
        let spool = self.unread_spool.iter().map(|why| {
            format!("the spool cannot be read, and what only it has does not count here: {why}; {SPOOL_ADVICE}")
        });
        self.unreachable.iter().map(repository).chain(spool).collect()
    }
}

/// What the user can do about an unreadable spool.
pub const SPOOL_ADVICE: &str = "run this as the user of walkeep receive";

/// The same while it is being found out.
#[derive(Clone, Debug, Default)]
pub(in crate::redis::archive) struct UnseenErrors {
    pub(in crate::redis::archive) unreachable: UnreachableRepositories,
    pub(in crate::redis::archive) spool: Option<Arc<SpoolError>>,
}

impl UnseenErrors {
    /// The repositories that are unreachable now.
    pub(in crate::redis::archive) fn of_vault(vault: &Vault) -> UnseenErrors {
        let mut unreachable = UnreachableRepositories::default();
        unreachable.insert(vault.unreachable().map(|(name, why)| (name.to_owned(), why.to_string())));
        UnseenErrors { unreachable, spool: None }
    }

    pub(in crate::redis::archive) fn merge(&mut self, more: &UnseenErrors) {
        self.unreachable.merge(&more.unreachable);
        self.spool = self.spool.take().or_else(|| more.spool.clone());
    }

    /// Continues only if the spool was read.
    pub(in crate::redis::archive) fn ensure_spool_was_read(&self) -> Result<(), VaultError> {
        self.spool.as_ref().map_or(Ok(()), |error| Err(VaultError::Spool(Arc::clone(error))))
    }

    pub(in crate::redis::archive) fn to_sources(&self) -> UnseenSources {
        let unread_spool = self.spool.as_ref().map(ToString::to_string);
        UnseenSources { unreachable: self.unreachable.clone(), unread_spool }
    }
}

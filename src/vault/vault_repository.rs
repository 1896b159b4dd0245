//! One repository of a vault, reachable or not.

use std::sync::Arc;

use super::error::VaultError;
use crate::vault::repository::{Repository, RepositoryError};

/// A repository of the vault, open, or with the reason why it is not.
#[derive(Debug)]
pub struct VaultRepository {
    pub(crate) name: String,
    /// The error from opening this repository. Reads skip it; writes fail.
    pub(crate) repository: Result<Repository, Arc<RepositoryError>>,
}

impl VaultRepository {
    pub(crate) fn repository(&self) -> Result<&Repository, VaultError> {
        match &self.repository {
            Ok(repository) => Ok(repository),
            Err(source) => Err(VaultError::Repository { name: self.name.clone(), source: Arc::clone(source) }),
        }
    }

    /// Names this place in a repository's error.
    pub(crate) fn repository_error(&self, source: RepositoryError) -> VaultError {
        VaultError::Repository { name: self.name.clone(), source: Arc::new(source) }
    }
}

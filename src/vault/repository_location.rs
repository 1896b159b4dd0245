//! Where a configured repository is.

use crate::vault::repository::RepositoryOptions;

/// A configured repository.
#[derive(Clone, Debug)]
pub struct RepositoryLocation {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// How to get there.
    pub options: RepositoryOptions,
}

//! Which repositories were asked. An object that only an unasked one has is not known to be missing, and which object
//! is the newest is not known either.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::error::VaultError;

/// Repositories that could not be asked, by name, each with what was in the way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnreachableRepositories(BTreeMap<String, String>);

impl Serialize for UnreachableRepositories {
    /// A list of objects with `repository` and `why`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Unreachable<'r> {
            repository: &'r str,
            why: &'r str,
        }
        serializer.collect_seq(self.iter().map(|(repository, why)| Unreachable { repository, why }))
    }
}

impl UnreachableRepositories {
    pub(crate) fn insert(&mut self, unasked: impl IntoIterator<Item = (String, String)>) {
        for (name, why) in unasked {
            let prefix = format!("repository {name}: ");
            let why = why.strip_prefix(&prefix).map(str::to_owned).unwrap_or(why);
            self.0.entry(name).or_insert(why);
        }
    }

    pub(crate) fn insert_error(&mut self, repository: &str, error: &impl std::fmt::Display) {
        self.insert([(repository.to_owned(), error.to_string())]);
    }

    /// Whether all were asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn merge(&mut self, more: &UnreachableRepositories) {
        self.insert(more.0.clone());
    }

    /// Name and reason of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, why)| (name.as_str(), why.as_str()))
    }

    /// Goes on only if all were asked.
    ///
    /// # Errors
    /// [`VaultError::NotAllAnswered`].
    pub fn ensure_empty(&self) -> Result<(), VaultError> {
        let said: Vec<String> = self.iter().map(|(name, why)| format!("repository {name}: {why}")).collect();
        if said.is_empty() { Ok(()) } else { Err(VaultError::NotAllAnswered { why: said.join("; ") }) }
    }

    /// Says so, where what the others have is told all the same.
    pub fn log_warnings(&self) {
        for (repository, why) in self.iter() {
            tracing::warn!(repository, why, "this repository could not be asked; what only it has is not told");
        }
    }
}

//! The process's environment, read once. Nothing below the edge looks at it again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::secret::Secret;

/// The environment variables walkeep looks at: its own, PostgreSQL's `PG*`, and the object stores' credentials.
#[derive(Clone, Debug, Default)]
pub struct ProcessEnvironment(BTreeMap<String, Secret>);

impl ProcessEnvironment {
    /// What the process was started with. Variables that are not UTF-8 are left out.
    #[must_use]
    pub fn from_process() -> ProcessEnvironment {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, Secret::new(value.into_string().ok()?))))
            .collect()
    }

    /// The value of one variable; an empty one counts as not set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::reveal).filter(|value| !value.is_empty())
    }

    /// The same as a path.
    #[must_use]
    pub fn get_path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// The variables whose names begin with one of `prefixes`.
    fn with_prefix<'e>(&'e self, prefixes: &'e [&str]) -> impl Iterator<Item = (&'e str, &'e str)> {
        self.0
            .iter()
            .filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, value)| (name.as_str(), value.reveal()))
    }

    /// `PGHOST`, `PGPASSFILE` and the rest, as libpq takes them, with `HOME` and `USER` to find `~/.pgpass` and the
    /// default user.
    #[must_use]
    pub fn postgres_variables(&self) -> BTreeMap<String, String> {
        self.with_prefix(&["PG", "HOME", "USER", "LOGNAME"])
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The object stores' own variables, as they stand.
    #[must_use]
    pub fn object_store_variables(&self) -> BTreeMap<String, String> {
        self.with_prefix(&["AWS_", "GOOGLE_", "AZURE_"])
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

impl FromIterator<(String, Secret)> for ProcessEnvironment {
    fn from_iter<I: IntoIterator<Item = (String, Secret)>>(variables: I) -> ProcessEnvironment {
        ProcessEnvironment(variables.into_iter().collect())
    }
}

impl<'v> FromIterator<(&'v str, &'v str)> for ProcessEnvironment {
    fn from_iter<I: IntoIterator<Item = (&'v str, &'v str)>>(variables: I) -> ProcessEnvironment {
        variables.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value))).collect()
    }
}

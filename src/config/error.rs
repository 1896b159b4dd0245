//! What can be wrong with a configuration, said with file, line and what would be right.

use std::path::PathBuf;

use crate::base::error_kind::{ErrorKind, HasKind};

/// A configuration that cannot be used. Each message names the place and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No configuration was named and none of the usual places has one.
    #[error("no configuration: looked for {}; run walkeep init, or name a file with --config", list_paths(.0))]
    Nowhere(Vec<PathBuf>),
    /// The file exists but could not be read, or is not there although it was named.
    #[error("cannot read the configuration {}: {source}; name another with --config, or make one with walkeep init", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// One line of it is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there, and what would be right.
        message: String,
    },
    /// It says nothing wrong, but lacks something.
    #[error("{}: {message}", path.display())]
    Whole {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        message: String,
    },
}

impl HasKind for ConfigError {
    fn kind(&self) -> ErrorKind {
        match self {
            ConfigError::Nowhere(_)
            | ConfigError::Unreadable { .. }
            | ConfigError::Line { .. }
            | ConfigError::Whole { .. } => ErrorKind::Usage,
        }
    }
}

fn list_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

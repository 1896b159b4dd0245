//! What connection strings are read with, and what is wrong with one.

use crate::base::error_kind::{ErrorKind, HasKind};
use std::collections::BTreeMap;

/// The environment variables that count, by name. The edge reads them once and hands them down.
pub type LibpqEnvironment = BTreeMap<String, String>;

/// What is wrong with a connection string. Messages never quote a value: it could be the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConninfoError {
    /// The text breaks the grammar.
    #[error("connection string: {0}")]
    Syntax(String),
    /// No such key.
    #[error("connection string: there is no parameter {key:?}{}", nearest.map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The known key that is spelled most like it.
        nearest: Option<&'static str>,
    },
    /// A key has a value that it can't have.
    #[error("connection string: {key} {problem}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What it must be instead.
        problem: String,
    },
}

impl HasKind for ConninfoError {
    fn kind(&self) -> ErrorKind {
        match self {
            ConninfoError::Syntax(_) | ConninfoError::UnknownKey { .. } | ConninfoError::BadValue { .. } => {
                ErrorKind::Usage
            }
        }
    }
}

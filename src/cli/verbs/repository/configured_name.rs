//! The name of a repository as it was typed.

use crate::cli::exit::CliError;
use crate::config::{self, Config};

/// Continues only if a repository of this name is configured.
pub(super) fn ensure_configured(config: &Config, name: &str) -> Result<(), CliError> {
    let names: Vec<&str> = config.repositories.iter().map(|repository| repository.name.as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let advice = match config::nearest_name(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("there is {}", names.join(", ")),
    };
    Err(CliError::usage(format!("no repository {name:?} is configured; {advice}")))
}

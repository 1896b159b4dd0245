//! Where the configuration is: `--config`, `$WALKEEP_CONFIG`, `./walkeep.toml`, `/etc/walkeep/walkeep.toml`.

use std::path::{Path, PathBuf};

use super::environment::ProcessEnvironment;
use super::error::ConfigError;

/// The variable that names the file.
const CONFIG_VARIABLE: &str = "WALKEEP_CONFIG";
/// The file looked for in the working directory.
const CONFIG_FILE_NAME: &str = "walkeep.toml";
/// The file of the machine.
pub const SYSTEM_CONFIG_PATH: &str = "/etc/walkeep/walkeep.toml";

/// The file to read. One that was named is taken even if it does not exist, so that the error names it.
///
/// # Errors
/// [`ConfigError::Nowhere`] if none was named and neither usual place has one.
pub fn locate_config(named: Option<&Path>, environment: &ProcessEnvironment) -> Result<PathBuf, ConfigError> {
    if let Some(path) = named.map(Path::to_path_buf).or_else(|| environment.get_path(CONFIG_VARIABLE)) {
        return Ok(path);
    }
    let usual = [PathBuf::from(CONFIG_FILE_NAME), PathBuf::from(SYSTEM_CONFIG_PATH)];
    match usual.iter().find(|path| path.exists()) {
        Some(path) => Ok(path.clone()),
        None => Err(ConfigError::Nowhere(usual.to_vec())),
    }
}

/// Whether the file was named, or is one that is looked for.
#[must_use]
pub fn is_config_named(named: Option<&Path>, environment: &ProcessEnvironment) -> bool {
    named.is_some() || environment.get_path(CONFIG_VARIABLE).is_some()
}

/// Where `init` writes: the file that was named, or `./walkeep.toml`.
#[must_use]
pub fn new_config_path(named: Option<&Path>, environment: &ProcessEnvironment) -> PathBuf {
    named
        .map(Path::to_path_buf)
        .or_else(|| environment.get_path(CONFIG_VARIABLE))
        .unwrap_or_else(|| PathBuf::from(CONFIG_FILE_NAME))
}

//! `[encryption]`: where the key comes from, and fetching it.

use std::path::{Path, PathBuf};

use super::environment::ProcessEnvironment;
use super::error::ConfigError;
use super::secret::Secret;
use super::section::ConfigSection;
use crate::base::error_kind::{ErrorKind, HasKind};

/// The three ways to name a key, and the one to do without.
pub(super) const ENCRYPTION_KEYS: [&str; 4] = ["key-file", "key-env", "key-command", "enabled"];
/// A key is one short line; more than this is some other file.
const MAX_KEY_BYTES: usize = 4096;

/// Where the key that protects the repository's keys comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that only its owner may read.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// The output of a command, so that any key service fits.
    Command(String),
}

impl std::fmt::Debug for KeySource {
    /// The command may carry a token, so only its kind is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeySource::File(path) => write!(f, "File({})", path.display()),
            KeySource::Env(name) => write!(f, "Env({name})"),
            KeySource::Command(_) => f.write_str("Command([redacted])"),
        }
    }
}

/// Reads the section: a source, or `None` where encryption is switched off in so many words.
pub(super) fn read_section(section: &ConfigSection<'_, '_>, folder: &Path) -> Result<Option<KeySource>, ConfigError> {
    let mut sources = Vec::new();
    if let Some(path) = section.text("key-file")? {
        sources.push(("key-file", KeySource::File(folder.join(path.value))));
    }
    if let Some(name) = section.text("key-env")? {
        sources.push(("key-env", KeySource::Env(name.value.to_owned())));
    }
    if let Some(command) = section.text("key-command")? {
        sources.push(("key-command", KeySource::Command(command.value.to_owned())));
    }
    let enabled = section.flag("enabled")?.unwrap_or(true);
    match (sources.as_slice(), enabled) {
        ([], false) => Ok(None),
        ([(_, source)], true) => Ok(Some(source.clone())),
        ([], true) => {
            let message =
                "[encryption] names no key; add key-file, key-env or key-command, or enabled = false to do without";
            Err(section.error("enabled", message))
        }
        ([(key, _), ..], false) => {
            Err(section.error("enabled", format!("enabled = false and {key} contradict each other; keep one")))
        }
        ([(one, _), (two, _), ..], true) => {
            Err(section.error(two, format!("{one} and {two} both name a key; keep one of them")))
        }
    }
}

/// A key that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeySourceError {
    /// The file cannot be read.
    #[error("cannot read the key file {}: {source}; without its key an encrypted repository cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others than its owner can read it.
    #[error("the key file {} can be read by others (mode {mode:03o}); run chmod 600 on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The variable is not set.
    #[error("the key's variable {0} is not set; set it in the environment of every walkeep command")]
    Variable(String),
    /// The command did not give a key.
    #[error("the key-command failed: {0}")]
    Command(String),
    /// What came is no single short line.
    #[error("{0} holds no key: it is empty or longer than {MAX_KEY_BYTES} bytes")]
    Shape(String),
}

impl HasKind for KeySourceError {
    fn kind(&self) -> ErrorKind {
        match self {
            KeySourceError::File { .. }
            | KeySourceError::Exposed { .. }
            | KeySourceError::Variable(_)
            | KeySourceError::Command(_)
            | KeySourceError::Shape(_) => ErrorKind::Usage,
        }
    }
}

impl KeySource {
    /// Fetches the key's text.
    ///
    /// # Errors
    /// [`KeySourceError`] says which source failed and why; the key itself is never part of it.
    pub fn fetch(&self, environment: &ProcessEnvironment) -> Result<Secret, KeySourceError> {
        match self {
            KeySource::File(path) => key_from_file(path),
            KeySource::Env(name) => {
                let text = environment.get(name).ok_or_else(|| KeySourceError::Variable(name.clone()))?;
                trim_key(text, name)
            }
            KeySource::Command(command) => key_from_command(command),
        }
    }
}

fn key_from_file(path: &Path) -> Result<Secret, KeySourceError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| KeySourceError::File { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    // A group may be let in deliberately (a service's key); the world never.
    if mode & 0o007 != 0 {
        return Err(KeySourceError::Exposed { path: path.to_owned(), mode });
    }
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    trim_key(&text, &path.display().to_string())
}

fn key_from_command(command: &str) -> Result<Secret, KeySourceError> {
    let failed = |why: &dyn std::fmt::Display| KeySourceError::Command(why.to_string());
    let mut shell = std::process::Command::new("/bin/sh");
    let shell = shell.args(["-c", command]).stdin(std::process::Stdio::null()).stderr(std::process::Stdio::inherit());
    let output = shell.output().map_err(|why| failed(&why))?;
    if !output.status.success() {
        return Err(failed(&format!("it ended with {}", output.status)));
    }
    let bytes = zeroize::Zeroizing::new(output.stdout);
    let text = std::str::from_utf8(&bytes).map_err(|why| failed(&format!("its output is no text: {why}")))?;
    trim_key(text, "the output of key-command")
}

fn trim_key(text: &str, place: &str) -> Result<Secret, KeySourceError> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_KEY_BYTES {
        return Err(KeySourceError::Shape(place.to_owned()));
    }
    Ok(Secret::new(text))
}

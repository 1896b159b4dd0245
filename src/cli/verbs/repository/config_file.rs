//! The configuration file as something that a command changes: all of it or nothing, and only as it was read.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::base::durable;
use crate::cli::exit::{CliError, CliExitCode};

/// The text of the file, to be replaced by another one.
#[derive(Debug)]
pub(super) struct ConfigFile {
    /// Without symbolic links, so that a link is not replaced by a file.
    path: PathBuf,
    pub(super) text: String,
    mode: u32,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> anyhow::Result<ConfigFile> {
        let unreadable = || format!("cannot read the configuration {}", path.display());
        let path = std::fs::canonicalize(path).with_context(unreadable)?;
        let metadata = std::fs::metadata(&path).with_context(unreadable)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            let message = format!(
                "{} belongs to user {}; run this as that user, who must be able to read it and the new repository",
                path.display(),
                metadata.uid()
            );
            return Err(CliError::usage(message).into());
        }
        let text = std::fs::read_to_string(&path).with_context(unreadable)?;
        Ok(ConfigFile { path, text, mode: metadata.permissions().mode() & 0o7777 })
    }

    /// Writes the new text durably. Readers see the old text or the new one.
    pub(super) fn replace(&self, text: &str) -> anyhow::Result<()> {
        let now = std::fs::read_to_string(&self.path);
        if now.with_context(|| format!("cannot read the configuration {}", self.path.display()))? != self.text {
            let message = format!("{} was changed meanwhile; run the command again", self.path.display());
            return Err(CliError { code: CliExitCode::Failed, message }.into());
        }
        durable::replace_file(&self.path, text.as_bytes(), self.mode)
            .with_context(|| format!("cannot write the configuration {}", self.path.display()))
    }
}

//! A file's way to its place.

use std::path::Path;

use bytes::Bytes;

use super::error::ArchiveGetError;
use crate::base::blocking::run_blocking;
use crate::base::durable::StagedFile;

/// Writes the file beside its destination, syncs and renames it.
pub(super) async fn write_file(bytes: Bytes, dest: &Path) -> Result<(), ArchiveGetError> {
    let dest = dest.to_owned();
    let placed = run_blocking(move || {
        let name = dest.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut staged =
            StagedFile::begin(&dest.with_file_name(format!(".walkeep-{name}.{}", std::process::id())), 0o600)?;
        staged.write(&bytes)?;
        staged.publish(&dest)
    });
    Ok(placed.await??)
}

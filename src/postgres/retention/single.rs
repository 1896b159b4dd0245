//! One backup by its label: pinned, so that no cleanup removes it, or removed before its time.
//!
//! A pin is an object `keep/<label>` in each repository. What removes a backup is what a cleanup does to one whose time
//! is up: its packs and its WAL go with later cleanups.

use std::sync::Arc;

use bytes::Bytes;

use super::{CleanupError, expire_backup};
use crate::postgres::archive::Archive;
use crate::postgres::archive::inventory;
use crate::postgres::index::WalIndex;
use crate::vault::retention::RetentionError;

/// Pins a backup in every repository.
///
/// # Errors
/// [`CleanupError`]; the repositories before the one that failed have the pin.
pub async fn keep_backup(archive: &Archive, label: &str) -> Result<(), CleanupError> {
    require_backup(archive, label).await?;
    archive.ensure_all_reachable()?;
    let pin = archive.layout().pin(label)?;
    for (name, repository) in archive.vault().repositories() {
        let put = repository.put_new(&pin, vec![Bytes::from_static(b"kept\n")]).await;
        put.map_err(|error| RetentionError::in_repository(name, error))?;
    }
    Ok(())
}

/// Takes the pin off again. A backup that has none stays as it is.
///
/// # Errors
/// [`CleanupError`].
pub async fn unkeep_backup(archive: &Archive, label: &str) -> Result<(), CleanupError> {
    archive.ensure_all_reachable()?;
    let pin = archive.layout().pin(label)?;
    for (name, repository) in archive.vault().repositories() {
        repository.delete(&pin).await.map_err(|error| RetentionError::in_repository(name, error))?;
    }
    Ok(())
}

/// Removes a backup from every repository. A pinned one stays, and, unless it is `forced`, the only one that can be
/// restored.
///
/// # Errors
/// [`CleanupError`].
pub async fn delete_backup(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    label: &str,
    forced: bool,
) -> Result<(), CleanupError> {
    require_backup(archive, label).await?;
    archive.ensure_all_reachable()?;
    let pin = archive.layout().pin(label)?;
    for (name, repository) in archive.vault().repositories() {
        let pinned = repository.head(&pin).await.map_err(|error| RetentionError::in_repository(name, error))?;
        if pinned.is_some() {
            return Err(CleanupError::Pinned { label: label.to_owned() });
        }
    }
    let overview = inventory::gather_inventory(archive, index, None).await?;
    let (this, others): (Vec<_>, Vec<_>) = overview.backups.iter().partition(|backup| backup.label == label);
    let is_only = this.iter().any(|backup| backup.restorable) && !others.iter().any(|backup| backup.restorable);
    if is_only && !forced {
        return Err(CleanupError::OnlyBackup { label: label.to_owned() });
    }
    for (name, repository) in archive.vault().repositories() {
        tracing::info!(repository = name, backup = label, "removing a backup");
        expire_backup(archive, (name, &repository), label).await?;
    }
    Ok(())
}

async fn require_backup(archive: &Archive, label: &str) -> Result<(), CleanupError> {
    let unknown = || CleanupError::UnknownBackup { label: label.to_owned() };
    let key = archive.layout().backup(label).map_err(|_malformed| unknown())?;
    let listed = archive.vault().list(&archive.layout().backups(), None).await?.objects;
    if listed.iter().any(|object| object.key == key) { Ok(()) } else { Err(unknown()) }
}

//! What every restore reads of a backup before it places anything.

use std::path::Path;

use super::error::RestoreError;
use super::placement::{Placement, PlacementError, fetch_pack};
use crate::base::blocking::run_blocking;
use crate::postgres::archive::Archive;
use crate::postgres::archive::manifest::{BackupSummary, EntryContent, Manifest};
use crate::postgres::format::backup_label::{TablespaceMap, TablespaceMapEscapes};
use crate::vault::seal::SealedKind;

/// How often progress is told.
pub(super) const PROGRESS_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// The map byte for byte; with the new places where tablespaces were mapped, because recovery makes the links by it.
pub(super) fn tablespace_map(placement: &Placement, manifest: &Manifest) -> Result<Option<Vec<u8>>, RestoreError> {
    let Some(bytes) = &manifest.tablespace_map else { return Ok(None) };
    let escapes = TablespaceMapEscapes::for_major_version(manifest.summary.major_version);
    let wrong = |source| RestoreError::Label { label: manifest.summary.label.clone(), source };
    let mut map = TablespaceMap::parse(bytes, escapes).map_err(wrong)?;
    let before = map.clone();
    for space in &mut map.tablespaces {
        if let Some(path) = placement.tablespace_path(space.oid) {
            space.path = path.to_string_lossy().into_owned();
        }
    }
    Ok(Some(if map == before { bytes.clone() } else { map.serialise(escapes) }))
}

pub(super) async fn read_manifest(archive: &Archive, label: &str) -> Result<Manifest, RestoreError> {
    let unknown = || RestoreError::UnknownBackup { label: label.to_owned() };
    // A label that cannot stand in a key is one of no backup.
    let key = archive.layout().backup(label).map_err(|_bad_key| unknown())?;
    let opened = archive.vault().get_object(SealedKind::Manifest, &key).await?.ok_or_else(unknown)?;
    let wrong = |source| RestoreError::Manifest { label: label.to_owned(), source };
    let summary = BackupSummary::from_bytes(&opened.metadata).map_err(wrong)?;
    run_blocking(move || Manifest::from_bytes(summary, &opened.plain)).await?.map_err(wrong)
}

/// The text of a small file of a backup; `None` if the backup does not have it.
pub(super) async fn read_backup_file(
    archive: &Archive,
    manifest: &Manifest,
    path: &str,
) -> Result<Option<String>, RestoreError> {
    let broken = |what| PlacementError::Manifest { label: manifest.summary.label.clone(), what };
    let found = manifest.entries.iter().find(|entry| entry.path == Path::new(path));
    let Some(EntryContent::File { chunks, .. }) = found.map(|entry| &entry.content) else { return Ok(None) };
    let mut bytes = Vec::new();
    for &number in chunks {
        let chunk = manifest.chunks.get(number as usize).ok_or_else(|| broken("a chunk"))?;
        let id = *manifest.packs.get(chunk.pack as usize).ok_or_else(|| broken("a pack"))?;
        let pack = fetch_pack(archive, id).await?;
        bytes.extend_from_slice(&pack.chunk(chunk).map_err(PlacementError::from)?);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

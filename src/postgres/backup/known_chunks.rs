//! What older backups have stored already.

use std::collections::HashSet;

use super::error::BackupError;
use super::packer;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{KnownChunks, PackId};
use crate::postgres::archive::manifest::{BackupSummary, Manifest};
use crate::postgres::format::segment::SystemId;
use crate::vault::SkippedRepositories;
use crate::vault::seal::{EpochKeyId, SealedKind};

/// No more manifests are read once so many chunks are known: 8 million chunks, 1 TB, take some 800 MB of memory. The
/// newest manifests come first, and hold nearly all that can be used again.
const MAX_KNOWN_CHUNKS: usize = 8 << 20;

/// Every chunk of a readable backup of this cluster whose pack is in each repository that is not left out, and whose
/// name is derived from the current key. A manifest that cannot be read is passed over: it costs space, and must not
/// prevent a new backup.
pub(super) async fn known_chunks(
    archive: &Archive,
    system: SystemId,
    key: EpochKeyId,
    skipped: &SkippedRepositories,
) -> Result<KnownChunks, BackupError> {
    let mut known = KnownChunks::default();
    let manifests = archive.vault().list(&archive.layout().backups(), None).await?.objects;
    if manifests.is_empty() {
        return Ok(known);
    }
    let packs = packer::packs_everywhere(archive, skipped).await?;
    for object in manifests.iter().rev() {
        if known.len() >= MAX_KNOWN_CHUNKS {
            break;
        }
        let opened = match archive.vault().get_object(SealedKind::Manifest, &object.key).await {
            Ok(Some(opened)) => opened,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(cluster = %archive.cluster(), manifest = %object.key, %error, "passing over a manifest \
                    that cannot be read");
                continue;
            }
        };
        let manifest = BackupSummary::from_bytes(&opened.metadata)
            .and_then(|summary| Manifest::from_bytes(summary, &opened.plain));
        match manifest {
            Ok(manifest) => add_known_chunks(&mut known, &manifest, system, key, &packs),
            Err(error) => {
                tracing::warn!(cluster = %archive.cluster(), manifest = %object.key, %error, "passing over a manifest \
                    that makes no sense");
            }
        }
    }
    Ok(known)
}

fn add_known_chunks(
    known: &mut KnownChunks,
    manifest: &Manifest,
    system: SystemId,
    key: EpochKeyId,
    packs: &HashSet<PackId>,
) {
    if manifest.summary.system_id != system || manifest.summary.naming_key != key {
        return;
    }
    for chunk in &manifest.chunks {
        if let Some(pack) = manifest.packs.get(chunk.pack as usize).filter(|pack| packs.contains(pack)) {
            known.insert(chunk.name, *pack, chunk.offset, chunk.len);
        }
    }
}

//! Backups: manifests, the packs they name, every chunk by its name and every file by its hash.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::objects::read_summary;
use super::{ClusterVerifyError, RepositoryVerifier};
use crate::base::blocking::run_blocking;
use crate::postgres::archive::chunks::{self, CHUNK_BYTES, ChunkName, ChunkNamer, ChunkSubtreeHash, Pack, PackId};
use crate::postgres::archive::manifest::{EntryContent, Manifest, ManifestChunk};
use crate::vault::repository::ObjectInfo;
use crate::vault::seal::SealedKind;
use crate::vault::verify::open_checked;

/// Packs at the same time; each is 32 MiB, stored and opened.
const PACKS_IN_FLIGHT: usize = 4;

/// What was read of all packs so far.
#[derive(Default)]
struct SeenPacks {
    /// What each chunk that has its name contributes to its file's hash.
    values: HashMap<ChunkName, ChunkSubtreeHash>,
    /// Packs that a backup named.
    packs: HashSet<PackId>,
    /// Of those, the ones that don't open.
    damaged: HashSet<PackId>,
}

/// A chunk of a pack, and where in a file it stands: its value depends on that.
struct WantedChunk {
    chunk: ManifestChunk,
    offset: u64,
    file_len: u64,
}

/// A pack to read, and what to check in it.
struct PackRequest {
    id: PackId,
    /// The chunks to check. If there are none, all are checked.
    wanted: Vec<WantedChunk>,
    /// Without it no chunk's name can be checked.
    namer: Option<Arc<ChunkNamer>>,
}

/// What a pack gave: the chunks that are right, and what is wrong.
type PackContents = (Vec<(ChunkName, ChunkSubtreeHash)>, Vec<String>);

impl RepositoryVerifier<'_> {
    /// Verifies backups, one after the other, then the packs that none of them needs.
    pub(super) async fn verify_backups(
        &self,
        manifests: Vec<(String, ObjectInfo)>,
        packs: Vec<ObjectInfo>,
    ) -> Result<(), ClusterVerifyError> {
        let mut seen = SeenPacks::default();
        for (_, object) in manifests {
            if let Some(manifest) = self.read_manifest(&object).await? {
                self.verify_backup(&object, &manifest, &mut seen).await?;
            }
        }
        let unneeded = packs.into_iter().filter_map(|object| {
            let id = PackId::parse(object.key.file_name())?;
            (!seen.packs.contains(&id)).then_some(PackRequest { id, wanted: Vec::new(), namer: None })
        });
        let mut running = stream::iter(unneeded).map(|work| self.read_pack(work)).buffer_unordered(PACKS_IN_FLIGHT);
        while let Some(read) = running.next().await {
            read?;
        }
        Ok(())
    }

    async fn read_manifest(&self, object: &ObjectInfo) -> Result<Option<Manifest>, ClusterVerifyError> {
        let _room = self.reserve_memory(object.len, object.len.saturating_mul(8)).await;
        let Some(bytes) = self.read_object(object).await? else { return Ok(None) };
        let (protection, key) = (Arc::clone(self.archive.vault().protection()), object.key.clone());
        let read = run_blocking(move || {
            let opened = open_checked(SealedKind::Manifest, &key, &bytes, &protection)?;
            Manifest::from_bytes(read_summary(&opened)?, &opened.plain).map_err(|error| error.to_string())
        });
        match read.await {
            Ok(Ok(manifest)) if manifest.summary.label == object.key.file_name() => Ok(Some(manifest)),
            Ok(Ok(manifest)) => {
                self.record_damage(object.key.as_str(), format!("it is the manifest of {}", manifest.summary.label));
                Ok(None)
            }
            Ok(Err(what)) => {
                self.record_damage(object.key.as_str(), what);
                Ok(None)
            }
            Err(lost) => Err(lost.into()),
        }
    }

    async fn verify_backup(
        &self,
        object: &ObjectInfo,
        manifest: &Manifest,
        seen: &mut SeenPacks,
    ) -> Result<(), ClusterVerifyError> {
        let label = &manifest.summary.label;
        self.record(|found| found.summaries.push(manifest.summary.clone()));
        let Some(namer) = ChunkNamer::for_epoch_key(self.archive.vault().protection(), manifest.summary.naming_key)
        else {
            let key = manifest.summary.naming_key;
            self.record_damage(
                object.key.as_str(),
                format!("the key {key}, which names its chunks, is not in the repository"),
            );
            return Ok(());
        };
        let namer = Arc::new(namer);
        let before = seen.damaged.len();
        let work: Vec<_> = wanted_chunks(manifest, seen)
            .into_iter()
            .map(|(id, wanted)| PackRequest { id, wanted, namer: Some(Arc::clone(&namer)) })
            .collect();
        let mut running = stream::iter(work).map(|work| self.read_pack(work)).buffer_unordered(PACKS_IN_FLIGHT);
        while let Some(read) = running.next().await {
            let (pack, read) = read?;
            seen.packs.insert(pack);
            match read {
                Some((chunks, wrong)) => {
                    if !wrong.is_empty() {
                        seen.damaged.insert(pack);
                    }
                    seen.values.extend(chunks);
                }
                None => {
                    seen.damaged.insert(pack);
                }
            }
        }
        drop(running);
        seen.packs.extend(&manifest.packs);
        let needs_damaged = manifest.packs.iter().any(|pack| seen.damaged.contains(pack));
        let wrong = damaged_files(manifest, &seen.values);
        for path in wrong.iter().take(10) {
            self.record_damage(
                object.key.as_str(),
                format!("its file {path} cannot be restored: its chunks are damaged or missing"),
            );
        }
        if wrong.len() > 10 {
            self.record_damage(object.key.as_str(), format!("and {} files more", wrong.len() - 10));
        }
        if wrong.is_empty() && !needs_damaged {
            self.record(|found| found.counts.backups = found.counts.backups.saturating_add(1));
        }
        tracing::info!(label, files = manifest.entries.len(), damaged = seen.damaged.len() - before, "backup verified");
        Ok(())
    }

    /// Reads one pack, and of it the wanted chunks; all it has, if none is wanted in particular. `None` for what it
    /// gave if it does not open.
    async fn read_pack(
        &self,
        PackRequest { id, wanted, namer }: PackRequest,
    ) -> Result<(PackId, Option<PackContents>), ClusterVerifyError> {
        let Ok(key) = self.archive.layout().pack(&id.to_string()) else { return Ok((id, None)) };
        let _room = self.reserve_memory(chunks::PACK_BYTES as u64, chunks::PACK_BYTES as u64).await;
        let Some(bytes) =
            self.read_object(&ObjectInfo { key: key.clone(), len: 0, modified: jiff::Timestamp::UNIX_EPOCH }).await?
        else {
            return Ok((id, None));
        };
        let (object, protection) = (key.clone(), Arc::clone(self.archive.vault().protection()));
        let read = run_blocking(move || {
            let opened = open_checked(SealedKind::Pack, &object, &bytes, &protection)?;
            let pack = Pack::from_opened(id, opened).map_err(|error| error.to_string())?;
            Ok::<PackContents, String>(
                namer.map_or_else(PackContents::default, |namer| check_chunks(&pack, &wanted, &namer)),
            )
        });
        match read.await {
            Ok(Ok((chunks, wrong))) => {
                wrong.iter().for_each(|what| self.record_damage(key.as_str(), what));
                self.record(|found| {
                    found.counts.packs = found.counts.packs.saturating_add(1);
                    found.counts.chunks = found.counts.chunks.saturating_add(chunks.len() as u64);
                });
                Ok((id, Some((chunks, wrong))))
            }
            Ok(Err(what)) => {
                self.record_damage(key.as_str(), what);
                Ok((id, None))
            }
            Err(lost) => Err(lost.into()),
        }
    }
}

/// The chunks of a manifest that were not read yet, by the pack they are in.
fn wanted_chunks(manifest: &Manifest, seen: &SeenPacks) -> HashMap<PackId, Vec<WantedChunk>> {
    let mut found: HashMap<PackId, Vec<WantedChunk>> = HashMap::new();
    let mut taken: HashSet<u32> = HashSet::new();
    for entry in &manifest.entries {
        let EntryContent::File { len, chunks, .. } = &entry.content else { continue };
        for (number, index) in (0_u64..).zip(chunks) {
            let Some(chunk) = manifest.chunks.get(*index as usize) else { continue };
            let Some(pack) = manifest.packs.get(chunk.pack as usize) else { continue };
            if seen.values.contains_key(&chunk.name) || seen.damaged.contains(pack) || !taken.insert(*index) {
                continue;
            }
            let offset = number.saturating_mul(u64::from(CHUNK_BYTES));
            found.entry(*pack).or_default().push(WantedChunk { chunk: *chunk, offset, file_len: *len });
        }
    }
    found
}

/// The chunks whose content has their name, and what is wrong with the others.
fn check_chunks(pack: &Pack, wanted: &[WantedChunk], namer: &ChunkNamer) -> PackContents {
    let (mut right, mut wrong) = (Vec::with_capacity(wanted.len()), Vec::new());
    for WantedChunk { chunk, offset, file_len } in wanted {
        match pack.chunk(chunk) {
            Ok(content) => {
                let value = chunks::chunk_subtree_hash(&[&content], *offset, *file_len);
                if namer.name(&value) == chunk.name {
                    right.push((chunk.name, value));
                } else {
                    wrong.push(format!("the content of chunk {} is not what its name says", chunk.name));
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    (right, wrong)
}

/// The files that their chunks don't make up.
fn damaged_files(manifest: &Manifest, values: &HashMap<ChunkName, ChunkSubtreeHash>) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in &manifest.entries {
        let EntryContent::File { len, hash, chunks } = &entry.content else { continue };
        let found: Option<Vec<ChunkSubtreeHash>> =
            chunks.iter().map(|index| values.get(&manifest.chunks.get(*index as usize)?.name).copied()).collect();
        if found.is_none_or(|values| chunks::file_hash(&values, *len) != *hash) {
            wrong.push(entry.path.display().to_string());
        }
    }
    wrong
}

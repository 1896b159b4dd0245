//! Where chunks go: those that are stored already are only named, the rest fill packs that are sealed and put away
//! while reading goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::chunker::HashedChunk;
use super::error::BackupError;
use crate::base::pipeline::{StageLostError, WorkerStage};
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{
    ChunkName, KnownChunks, PACK_BYTES, PackBuilder, PackError, PackId, SealedPack,
};
use crate::postgres::archive::manifest::ManifestChunk;
use crate::vault::{SkippedRepositories, VaultError, VaultRepository};

/// Packs that are being sealed or put away at once. With the one being filled this bounds what a backup holds in
/// memory: four times [`PACK_BYTES`] of chunks, and as much again where they don't compress.
const PACKS_IN_FLIGHT: usize = 3;

/// The chunks of one backup.
pub(super) struct Packer {
    archive: Arc<Archive>,
    /// Repositories that get nothing of this backup: its manifest must not be where a pack of it is not.
    skipped: Arc<SkippedRepositories>,
    known: KnownChunks,
    sealing: WorkerStage<PackBuilder, Result<SealedPack, PackError>>,
    filling: PackBuilder,
    puts: JoinSet<Result<u64, BackupError>>,
    /// Where each chunk stands in `chunks`.
    places: HashMap<ChunkName, u32>,
    pack_places: HashMap<PackId, u32>,
    stored: PackedChunks,
}

/// What became of the chunks.
#[derive(Debug, Default)]
pub(super) struct PackedChunks {
    pub(super) chunks: Vec<ManifestChunk>,
    pub(super) packs: Vec<PackId>,
    pub(super) new_chunks: u64,
    pub(super) stored_bytes: u64,
}

impl Packer {
    pub(super) fn new(
        archive: &Arc<Archive>,
        known: KnownChunks,
        skipped: &Arc<SkippedRepositories>,
    ) -> Result<Packer, BackupError> {
        let (layout, protection) = (archive.layout().clone(), Arc::clone(archive.vault().protection()));
        // Not faster when behind, as WAL is: a pack is kept for long, and zstd's -5 took a fifth off the time and put
        // 220 % on the size.
        let level = archive.vault().level();
        // One thread a pack: several packs at once keep all of them busy.
        let seal = move |pack: PackBuilder| pack.seal(&layout, &protection, level, 1);
        Ok(Packer {
            archive: Arc::clone(archive),
            skipped: Arc::clone(skipped),
            known,
            sealing: WorkerStage::start("seal-pack", archive.vault().threads(), PACKS_IN_FLIGHT, seal)?,
            filling: PackBuilder::new()?,
            puts: JoinSet::new(),
            places: HashMap::new(),
            pack_places: HashMap::new(),
            stored: PackedChunks::default(),
        })
    }

    /// Takes the next chunk and answers its place in the manifest's list.
    pub(super) async fn add_chunk(&mut self, chunk: &HashedChunk) -> Result<u32, BackupError> {
        if let Some(place) = self.places.get(&chunk.name) {
            return Ok(*place);
        }
        let (pack, offset, len) = match self.known.get(&chunk.name) {
            Some(known) => known,
            None => {
                self.stored.new_chunks = self.stored.new_chunks.saturating_add(1);
                (self.filling.id(), self.filling.push(chunk.name, &chunk.parts), chunk.len)
            }
        };
        let packs = &mut self.stored.packs;
        let pack = *self.pack_places.entry(pack).or_insert_with(|| {
            packs.push(pack);
            last_index(packs.len())
        });
        self.stored.chunks.push(ManifestChunk { name: chunk.name, pack, offset, len });
        let place = last_index(self.stored.chunks.len());
        self.places.insert(chunk.name, place);
        if self.filling.len() >= PACK_BYTES {
            self.seal_and_store_pack().await?;
        }
        Ok(place)
    }

    /// Bytes that have been put into the repositories so far.
    pub(super) const fn stored_bytes(&self) -> u64 {
        self.stored.stored_bytes
    }

    async fn seal_and_store_pack(&mut self) -> Result<(), BackupError> {
        let full = std::mem::replace(&mut self.filling, PackBuilder::new()?);
        while self.puts.len() >= PACKS_IN_FLIGHT {
            self.await_one_put().await?;
        }
        let sealing = self.sealing.submit(full).await?;
        let (archive, skipped) = (Arc::clone(&self.archive), Arc::clone(&self.skipped));
        self.puts.spawn(async move {
            let sealed = sealing.wait().await??;
            archive.vault().put_where_not_skipped(&sealed.key, &sealed.object, &skipped).await?;
            Ok(sealed.object.len)
        });
        Ok(())
    }

    async fn await_one_put(&mut self) -> Result<(), BackupError> {
        let Some(done) = self.puts.join_next().await else { return Ok(()) };
        let len = done.map_err(|_panicked| StageLostError)??;
        self.stored.stored_bytes = self.stored.stored_bytes.saturating_add(len);
        Ok(())
    }

    /// Waits until every pack is durable in every repository.
    pub(super) async fn finish(mut self) -> Result<PackedChunks, BackupError> {
        if !self.filling.is_empty() {
            self.seal_and_store_pack().await?;
        }
        while !self.puts.is_empty() {
            self.await_one_put().await?;
        }
        Ok(self.stored)
    }
}

/// The place of the last of `len`. A manifest of 2^32 chunks would be of 500 TB.
fn last_index(len: usize) -> u32 {
    u32::try_from(len.saturating_sub(1)).unwrap_or(u32::MAX)
}

/// The packs that a repository has.
async fn packs_in(archive: &Archive, place: &VaultRepository) -> Result<HashSet<PackId>, VaultError> {
    let listed = place.list(&archive.layout().packs()).await?;
    Ok(listed.iter().filter_map(|object| PackId::parse(object.key.file_name())).collect())
}

/// The packs that every repository has which is not left out. One that does not answer is left out from now on.
pub(super) async fn packs_everywhere(
    archive: &Archive,
    skipped: &SkippedRepositories,
) -> Result<HashSet<PackId>, BackupError> {
    let mut everywhere: Option<HashSet<PackId>> = None;
    for (nth, place) in archive.vault().not_skipped(skipped) {
        let here = match packs_in(archive, place).await {
            Ok(here) => here,
            Err(error) if error.may_pass() => {
                skipped.skip(nth, error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        everywhere = Some(match everywhere {
            None => here,
            Some(others) => others.intersection(&here).copied().collect(),
        });
    }
    match (everywhere, skipped.errors().into_values().next()) {
        (Some(packs), _) => Ok(packs),
        (None, Some(error)) => Err(error.into()),
        (None, None) => Ok(HashSet::new()),
    }
}

/// Leaves out every repository that lacks one of the packs, new or used again: the manifest must not be where they are
/// not. It is an error if none is left.
pub(super) async fn require_packs(
    archive: &Archive,
    packs: &[PackId],
    skipped: &SkippedRepositories,
) -> Result<(), BackupError> {
    let mut whole = false;
    for (nth, place) in archive.vault().not_skipped(skipped) {
        match packs_in(archive, place).await {
            Ok(here) => {
                let mut gone = packs.iter().filter(|pack| !here.contains(pack));
                match gone.next() {
                    None => whole = true,
                    Some(first) => {
                        let (name, count) = (place.name.clone(), gone.count().saturating_add(1));
                        skipped.skip(nth, VaultError::ObjectsGone { name, count, example: first.to_string() });
                    }
                }
            }
            Err(error) if error.may_pass() => skipped.skip(nth, error),
            Err(error) => return Err(error.into()),
        }
    }
    match skipped.errors().into_values().next_back() {
        Some(error) if !whole => Err(error.into()),
        _ => Ok(()),
    }
}

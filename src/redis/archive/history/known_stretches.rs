//! Which stretches the repositories and this machine's spool have.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::base::blocking::run_blocking;
use crate::redis::archive::instance::Archive;
use crate::redis::archive::stream::spool::Spool;
use crate::redis::archive::stream::{SpooledStretch, StreamStretch, StretchName};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::spool::SpoolError;
use crate::vault::{UnreachableRepositories, VaultError};

/// Stretches asked about at once.
pub(super) const MAX_PARALLEL_STRETCH_READS: usize = 16;
/// Stretches that may begin within another one: as many as a second receiver cuts whose connection breaks four times a
/// second, in the half minute that a stretch with writes takes.
const MAX_OVERLAPPING_STRETCHES: usize = 128;

/// What this machine's spool has, by name.
type SpooledStretches = BTreeMap<StretchName, StreamStretch>;

/// All stretches by name, and what this machine's spool adds.
#[derive(Clone, Debug)]
pub struct KnownStretches {
    pub(super) stretch_firsts: BTreeMap<ReplicationId, Vec<u64>>,
    pub(super) spooled: SpooledStretches,
    unreachable: UnreachableRepositories,
}

impl KnownStretches {
    /// The histories, each with the offsets before the first bytes of its stretches, in order.
    pub fn histories(&self) -> impl Iterator<Item = (ReplicationId, &[u64])> {
        self.stretch_firsts.iter().map(|(replid, firsts)| (*replid, firsts.as_slice()))
    }

    /// The repositories that may have more.
    #[must_use]
    pub fn unreachable(&self) -> &UnreachableRepositories {
        &self.unreachable
    }

    /// Where stretches begin that may hold the byte after `offset`, in order.
    pub(super) fn firsts_up_to(&self, replid: ReplicationId, offset: u64) -> std::slice::Iter<'_, u64> {
        let firsts = self.stretch_firsts.get(&replid).map(Vec::as_slice).unwrap_or_default();
        let end = firsts.partition_point(|first| *first <= offset);
        firsts.get(..end).unwrap_or_default().iter()
    }
}

impl Archive {
    /// All bytes of a stretch, from the repositories or the spool; perhaps more than the stretch was seen to have.
    ///
    /// # Errors
    /// Neither gave them.
    pub async fn read_stretch_bytes(&self, stretch: &StreamStretch) -> Result<Bytes, VaultError> {
        if let Some(bytes) = self.stored_commands(stretch.replid, stretch.first).await? {
            return Ok(bytes);
        }
        let what = format!("the stream behind offset {} of history {}", stretch.first, stretch.replid);
        Ok(self.read_spooled(stretch.name()).await?.ok_or(VaultError::Vanished { what })?.bytes)
    }

    /// Which stretches there are, in the repositories and the spool.
    ///
    /// # Errors
    /// No repository could be asked, or the spool can't be read.
    pub async fn list_known_stretches(&self) -> Result<KnownStretches, VaultError> {
        let mut names: BTreeMap<ReplicationId, Vec<u64>> = BTreeMap::new();
        let mut spooled = SpooledStretches::new();
        // The spool first: what is uploaded in between is then found in both, not in neither.
        if let Some(spool) = self.spool() {
            let read = move || -> Result<Vec<StreamStretch>, SpoolError> {
                let mut all = Vec::new();
                for name in spool.list()? {
                    // One after the other: while a repository is away, there may be more of them than memory.
                    match spool.read(name) {
                        Ok(spooled) => all.extend(spooled.map(|spooled| spooled.into_stretch().0)),
                        Err(error @ SpoolError::Key(_)) => return Err(error),
                        // What the others hold is told without it.
                        Err(error) => {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "going on without this part of the spool"
                            );
                        }
                    }
                }
                Ok(all)
            };
            let read = run_blocking(read).await?;
            for stretch in read.map_err(|error| VaultError::Spool(Arc::new(error)))? {
                if stretch.last > stretch.first {
                    names.entry(stretch.replid).or_default().push(stretch.first);
                    spooled.insert(stretch.name(), stretch);
                }
            }
        }
        let mut unasked = UnreachableRepositories::default();
        for listed in self.list_stored_stretches(&mut unasked).await? {
            names.entry(listed.name.replid).or_default().push(listed.name.first);
        }
        for firsts in names.values_mut() {
            firsts.sort_unstable();
            firsts.dedup();
        }
        Ok(KnownStretches { stretch_firsts: names, spooled, unreachable: unasked })
    }

    /// What this machine's receiver has; `None` if it has nothing, or its state directory is not known.
    #[must_use]
    pub fn spool(&self) -> Option<Spool> {
        Spool::open_existing(self.state_dir.as_deref()?, self)
    }

    async fn read_spooled(&self, name: StretchName) -> Result<Option<SpooledStretch>, VaultError> {
        let Some(spool) = self.spool() else { return Ok(None) };
        let read = run_blocking(move || spool.read(name)).await?;
        read.map_err(|error| VaultError::Spool(Arc::new(error)))
    }

    /// A stretch by its name.
    ///
    /// # Errors
    /// No repository gave it, or it does not open.
    pub async fn stretch(
        &self,
        known: &KnownStretches,
        replid: ReplicationId,
        first: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        match self.stored_stretch(replid, first).await? {
            Some(stretch) => Ok(Some(stretch)),
            None => Ok(known.spooled.get(&StretchName { replid, first }).cloned()),
        }
    }

    /// Of the last stretches that begin at or before `offset` one that reaches beyond it, or else the one that reaches
    /// furthest. Two receivers that run at once cut the same stream at places of their own, so that one stretch may lie
    /// within another; of [`MAX_OVERLAPPING_STRETCHES`] that begin later an older one is found behind. One that does
    /// not open is none.
    ///
    /// # Errors
    /// No repository could be asked.
    pub(super) async fn find_covering_stretch(
        &self,
        known: &KnownStretches,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        let last: Vec<u64> =
            known.firsts_up_to(replid, offset).rev().take(MAX_OVERLAPPING_STRETCHES).copied().collect();
        let mut found: Option<StreamStretch> = None;
        for some in last.chunks(MAX_PARALLEL_STRETCH_READS) {
            for stretch in join_all(some.iter().map(|first| self.stretch(known, replid, *first))).await {
                match stretch {
                    Ok(stretch) => found = found.into_iter().chain(stretch).max_by_key(|stretch| stretch.last),
                    Err(error) if error.is_integrity() => {}
                    Err(error) => return Err(error),
                }
            }
            if found.as_ref().is_some_and(|stretch| stretch.last > offset) {
                break;
            }
        }
        Ok(found)
    }
}

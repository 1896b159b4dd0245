//! Which stretches the repositories and this machine's spool have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::base::blocking::run_blocking;
use crate::redis::archive::instance::Archive;
use crate::redis::archive::stream::spool::Spool;
use crate::redis::archive::stream::{ListedStretch, SpooledStretch, StreamStretch, StretchName};
use crate::redis::archive::unseen_sources::{UnseenErrors, UnseenSources};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::VaultError;
use crate::vault::spool::SpoolError;

/// Stretches asked about at once.
pub(super) const MAX_PARALLEL_STRETCH_READS: usize = 16;
/// Stretches that may begin within another one: as many as a second receiver cuts whose connection breaks four times a
/// second, in the half minute that a stretch with writes takes.
const MAX_OVERLAPPING_STRETCHES: usize = 128;

/// What this machine's spool has, by name.
type SpooledStretches = BTreeMap<StretchName, StreamStretch>;

/// What stretches say of themselves that were read already, by name and length of the object.
type ReadMetadata = Arc<Mutex<BTreeMap<(StretchName, u64), StreamStretch>>>;

/// All stretches by name, and what this machine's spool adds.
#[derive(Clone, Debug)]
pub struct KnownStretches {
    pub(super) stretch_firsts: BTreeMap<ReplicationId, Vec<u64>>,
    pub(super) spooled: SpooledStretches,
    /// The bytes of the objects that the repositories have.
    listed: BTreeMap<StretchName, u64>,
    read: ReadMetadata,
    unseen: UnseenErrors,
}

impl KnownStretches {
    /// The histories, each with the offsets before the first bytes of its stretches, in order.
    pub fn histories(&self) -> impl Iterator<Item = (ReplicationId, &[u64])> {
        self.stretch_firsts.iter().map(|(replid, firsts)| (*replid, firsts.as_slice()))
    }

    /// The repositories, and the spool, that may have more.
    #[must_use]
    pub fn unseen(&self) -> UnseenSources {
        self.unseen.to_sources()
    }

    pub(in crate::redis::archive) const fn unseen_errors(&self) -> &UnseenErrors {
        &self.unseen
    }

    /// Continues only if all of this machine's spool was read.
    ///
    /// # Errors
    /// [`VaultError::Spool`].
    pub fn ensure_spool_was_read(&self) -> Result<(), VaultError> {
        self.unseen.ensure_spool_was_read()
    }

    /// The same as one repository alone has it, without the spool. What was read of a stretch counts for it, if its
    /// object has the same length: a stretch is sealed once for all repositories.
    pub(in crate::redis::archive) fn of_repository(&self, listed: &[ListedStretch]) -> KnownStretches {
        let alone = KnownStretches { read: Arc::clone(&self.read), ..KnownStretches::empty() };
        alone.with_listed(listed)
    }

    fn empty() -> KnownStretches {
        KnownStretches {
            stretch_firsts: BTreeMap::new(),
            spooled: SpooledStretches::new(),
            listed: BTreeMap::new(),
            read: ReadMetadata::default(),
            unseen: UnseenErrors::default(),
        }
    }

    pub(in crate::redis::archive) fn with_listed(mut self, listed: &[ListedStretch]) -> KnownStretches {
        let names = listed.iter().map(|listed| listed.name).chain(self.spooled.keys().copied());
        for StretchName { replid, first } in names {
            self.stretch_firsts.entry(replid).or_default().push(first);
        }
        for firsts in self.stretch_firsts.values_mut() {
            firsts.sort_unstable();
            firsts.dedup();
        }
        self.listed = listed.iter().map(|listed| (listed.name, listed.stored_bytes)).collect();
        self
    }

    fn known_metadata(&self, name: StretchName) -> Option<StreamStretch> {
        let len = *self.listed.get(&name)?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).get(&(name, len)).cloned()
    }

    fn keep_metadata(&self, stretch: &StreamStretch) {
        if let Some(len) = self.listed.get(&stretch.name()) {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            read.insert((stretch.name(), *len), stretch.clone());
        }
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
        let stored = self.stored_commands(stretch.replid, stretch.first).await;
        if let Ok(Some(bytes)) = stored {
            return Ok(bytes);
        }
        if let Some(spooled) = self.read_spooled(stretch.name()).await? {
            return Ok(spooled.bytes);
        }
        let what = format!("the stream behind offset {} of history {}", stretch.first, stretch.replid);
        Err(stored.err().unwrap_or(VaultError::Vanished { what }))
    }

    /// Which stretches there are, in the repositories and the spool. A part of the spool that cannot be read is noted
    /// in [`KnownStretches::unseen`].
    ///
    /// # Errors
    /// No repository could be asked, or the spool's key cannot be unwrapped.
    pub async fn list_known_stretches(&self) -> Result<KnownStretches, VaultError> {
        // The spool first: what is uploaded in between is then found in both, not in neither.
        let mut known = self.list_spooled_stretches().await?;
        let listed = self.list_stored_stretches(&mut known.unseen.unreachable).await?;
        Ok(known.with_listed(&listed))
    }

    /// Which stretches this machine's spool has.
    ///
    /// # Errors
    /// The spool's key cannot be unwrapped.
    pub(in crate::redis::archive) async fn list_spooled_stretches(&self) -> Result<KnownStretches, VaultError> {
        let mut known = KnownStretches::empty();
        if let Some(spool) = self.spool() {
            let (read, failed) = run_blocking(move || read_spool(&spool)).await?;
            known.spooled = read.into_iter().map(|stretch| (stretch.name(), stretch)).collect();
            match failed {
                Some(error @ SpoolError::Key(_)) => return Err(VaultError::Spool(Arc::new(error))),
                failed => known.unseen.spool = failed.map(Arc::new),
            }
        }
        Ok(known)
    }

    /// What this machine's receiver has; `None` if it certainly has nothing, or its state directory is not known.
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
        let name = StretchName { replid, first };
        if let Some(read) = known.known_metadata(name) {
            return Ok(Some(read));
        }
        let spooled = known.spooled.get(&name).cloned();
        if spooled.is_some() && !known.listed.contains_key(&name) {
            return Ok(spooled);
        }
        let stored = self.stored_stretch(replid, first).await?;
        stored.iter().for_each(|stretch| known.keep_metadata(stretch));
        Ok(stored.or(spooled))
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

/// What the files of a spool have, but for empty ones, and the first error. One file after the other: while a
/// repository is unreachable, there may be more of them than memory.
fn read_spool(spool: &Spool) -> (Vec<StreamStretch>, Option<SpoolError>) {
    let names = match spool.list() {
        Ok(names) => names,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (mut all, mut failed) = (Vec::new(), None);
    for name in names {
        match spool.read(name) {
            Ok(spooled) => all.extend(spooled.map(|spooled| spooled.into_stretch().0)),
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    all.retain(|stretch| stretch.last > stretch.first);
    (all, failed)
}

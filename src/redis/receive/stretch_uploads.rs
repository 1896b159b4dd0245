//! Stretches on their way from the spool to the repositories, beside the stream.
//!
//! Each repository takes them one after the other, and for itself: one that is away or full for a day keeps none from
//! the others. A stretch that all have leaves the spool. What a repository lacks and the spool does not have is copied
//! from another repository ([`super::repository_filling`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinSet;

use super::repository_filling::start_filling;
use crate::base::blocking::run_blocking;
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::stream::StretchName;
use crate::redis::archive::stream::spool::Spool;
use crate::redis::archive::stream::{SpooledStretch, StretchToStore};
use crate::redis::archive::{Archive, Gap, StreamStretch};
use crate::vault;
use crate::vault::shipper::fillers::RepositoryFillers;
use crate::vault::spool::SpoolError;

/// For as long as a repository is away, the stream is spooled.
const UPLOAD_RETRY_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(500), longest: Duration::from_secs(30), total: None };

/// The stretches on their way. Dropped, it leaves what did not arrive in the spool.
pub(super) struct StretchUploads {
    /// One for each repository.
    lanes: Vec<mpsc::UnboundedSender<StretchUploadItem>>,
    results: mpsc::UnboundedReceiver<(StretchName, Result<Option<StreamStretch>, SnapshotError>)>,
    /// In how many repositories each is not yet.
    outstanding: OutstandingStretches,
    /// What is in the way of those that take nothing now.
    unavailable: UnavailableRepositories,
    fillers: Fillers,
    _workers: JoinSet<()>,
}

/// What is brought to a repository.
enum StretchUploadItem {
    Stretch(StretchName),
    /// A break that other repositories have recorded already.
    Gap(Box<Gap>),
}

type UnavailableRepositories = Arc<Mutex<BTreeMap<usize, vault::VaultError>>>;
type OutstandingStretches = Arc<Mutex<BTreeMap<StretchName, usize>>>;
/// Empty until it is known what the spool has.
type Fillers = Arc<OnceLock<RepositoryFillers>>;
/// Which file, and how long.
type SpoolFileExtent = (u64, u64);

/// A stretch that was read from the spool.
struct ReadStretch {
    seen: SpoolFileExtent,
    stretch: StretchToStore,
}

/// The stretches that repositories take now, each read, parsed and sealed once for all that take it at the same time. A
/// repository that lags reads it again, so that memory holds one stretch for each repository, however far apart they
/// are.
type ReadStretches = Arc<Mutex<BTreeMap<StretchName, Weak<OnceCell<ReadStretch>>>>>;

impl StretchUploads {
    /// The queues hold one entry a spool file, so it is the disk that bounds them.
    pub(super) fn start(instance: &Archive, spool: &Spool) -> StretchUploads {
        let (done, results) = mpsc::unbounded_channel();
        let (missing, away, mut workers) =
            (OutstandingStretches::default(), UnavailableRepositories::default(), JoinSet::new());
        let reading = ReadStretches::default();
        let fillers = Fillers::default();
        let lanes = (0..instance.place_count()).map(|place| {
            let (items, mut wanted) = mpsc::unbounded_channel();
            let (missing, away) = (Arc::clone(&missing), Arc::clone(&away));
            let lane = RepositoryUploader {
                instance: instance.clone(),
                spool: spool.clone(),
                place,
                outstanding: missing,
                unavailable: away,
                fillers: Arc::clone(&fillers),
                reading: Arc::clone(&reading),
            };
            let done = done.clone();
            workers.spawn(async move {
                while let Some(item) = wanted.recv().await {
                    let name = match item {
                        StretchUploadItem::Stretch(name) => name,
                        StretchUploadItem::Gap(gap) => {
                            lane.put_gap(&gap).await;
                            continue;
                        }
                    };
                    let Some(result) = lane.upload(name).await.transpose() else { continue };
                    if done.send((name, result)).is_err() {
                        break;
                    }
                }
            });
            items
        });
        let lanes = lanes.collect();
        StretchUploads { lanes, results, outstanding: missing, unavailable: away, fillers, _workers: workers }
    }

    /// Begins to fill the repositories from one another. What the spool had at the start is enqueued by now.
    pub(super) fn begin_filling(&self, instance: &Archive) {
        let outstanding = Arc::clone(&self.outstanding);
        let names =
            move || outstanding.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect::<Vec<_>>();
        self.fillers.get_or_init(|| start_filling(instance, Box::new(names)));
    }

    /// A snapshot was stored, perhaps not in every repository.
    pub(super) fn look_for_lacking(&self) {
        self.fillers.get().inspect(|fillers| fillers.look_again());
    }

    /// A stretch to which nothing is appended any more. Once is enough.
    pub(super) fn enqueue(&mut self, name: StretchName) {
        let mut missing = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.contains_key(&name) {
            return;
        }
        missing.insert(name, self.lanes.len());
        drop(missing);
        for lane in &self.lanes {
            // The worker is there as long as this is.
            let _sent = lane.send(StretchUploadItem::Stretch(name));
        }
    }

    /// A break that is recorded in the repository of this number when it is there again; the next start does not know
    /// of it.
    pub(super) fn enqueue_gap(&mut self, place: usize, gap: &Gap) {
        if let Some(lane) = self.lanes.get(place) {
            let _sent = lane.send(StretchUploadItem::Gap(Box::new(gap.clone())));
        }
    }

    /// The repositories that take nothing now, by number.
    pub(super) fn unavailable(&self) -> BTreeMap<usize, vault::VaultError> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn outstanding_count(&self) -> usize {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether the file of that name is being read and may be removed at any moment.
    pub(super) fn is_uploading(&self, name: StretchName) -> bool {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name)
    }

    /// The next stretch that is stored everywhere. Cancel safe.
    pub(super) async fn next_stored(&mut self) -> Result<StreamStretch, SnapshotError> {
        loop {
            let Some((name, result)) = self.results.recv().await else { return Err(SnapshotError::WorkerPanicked) };
            self.outstanding.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            if let Some(stretch) = result? {
                return Ok(stretch);
            }
        }
    }
}

/// The way to one repository.
struct RepositoryUploader {
    instance: Archive,
    spool: Spool,
    place: usize,
    outstanding: OutstandingStretches,
    unavailable: UnavailableRepositories,
    fillers: Fillers,
    reading: ReadStretches,
}

impl RepositoryUploader {
    /// Puts a stretch, however long that takes. Where it was the last to have it, the file goes and the stretch is
    /// given; `Some(None)` if there was nothing in it.
    async fn upload(&self, name: StretchName) -> Result<Option<Option<StreamStretch>>, SnapshotError> {
        let clock = self.instance.vault().clock();
        let mut backoff = Backoff::new(UPLOAD_RETRY_POLICY, clock.elapsed(), name.first);
        let (seen, stored) = loop {
            match self.put_stretch(name).await {
                Ok(put) => break put,
                Err(error) => self.pause_after_error(&mut backoff, error).await?,
            }
        };
        let before = self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.place);
        if before.is_some() {
            // Snapshots and gaps may have been stored in the others meanwhile.
            self.fillers.get().inspect(|fillers| fillers.look_again());
        }
        if !self.is_last_copy(name) {
            return Ok(None);
        }
        loop {
            match self.remove_spooled(name, seen).await {
                Ok(()) => return Ok(Some(stored)),
                Err(error) => self.pause_after_error(&mut backoff, error).await?,
            }
        }
    }

    /// Records a break, however long that takes.
    async fn put_gap(&self, gap: &Gap) {
        let clock = self.instance.vault().clock();
        let mut backoff = Backoff::new(UPLOAD_RETRY_POLICY, clock.elapsed(), gap.offset);
        while let Err(error) = self.instance.record_gap_in(self.place, gap).await {
            if let Err(error) = self.pause_after_error(&mut backoff, error.into()).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, offset = gap.offset, "a gap is recorded in other repositories alone");
                return;
            }
        }
    }

    /// Waits for what is in the way to pass, or gives it back if it is nothing of the kind.
    async fn pause_after_error(&self, backoff: &mut Backoff, error: SnapshotError) -> Result<(), SnapshotError> {
        let clock = self.instance.vault().clock();
        if !is_retryable(&error) {
            return Err(error);
        }
        if let SnapshotError::Vault(error) = &error {
            self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).insert(self.place, error.clone());
        }
        let pause = backoff.next_pause(clock.elapsed()).unwrap_or(UPLOAD_RETRY_POLICY.longest);
        if error.class() == ErrorClass::Transient {
            tracing::warn!(error = &error as &dyn std::error::Error, ?pause, "a stretch of the stream stays spooled");
        } else {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, ?pause, "a stretch of the stream stays spooled until somebody mends this");
        }
        clock.sleep(pause).await;
        Ok(())
    }

    async fn put_stretch(&self, name: StretchName) -> Result<(SpoolFileExtent, Option<StreamStretch>), SnapshotError> {
        let shared = self.share_read_stretch(name);
        let ReadStretch { seen, stretch: given } = shared.get_or_try_init(|| self.read_spooled(name)).await?;
        let stretch = given.stretch();
        if stretch.last == stretch.first {
            return Ok((*seen, None));
        }
        self.instance.put_commands(self.place, given).await?;
        Ok((*seen, Some(stretch.clone())))
    }

    /// The place for what is read under this name, which another repository may have filled already.
    fn share_read_stretch(&self, name: StretchName) -> Arc<OnceCell<ReadStretch>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = reading.get(&name).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::default();
        reading.insert(name, Arc::downgrade(&shared));
        shared
    }

    async fn read_spooled(&self, name: StretchName) -> Result<ReadStretch, SnapshotError> {
        let StretchName { replid, first } = name;
        let spool = self.spool.clone();
        let read = move || {
            let seen = spool.extent(name)?;
            Ok::<_, SpoolError>(seen.zip(spool.read(name)?.map(SpooledStretch::into_stretch)))
        };
        let found = run_blocking(read).await??;
        // It was read before it was put here; without it, somebody took acknowledged bytes away.
        let Some((seen, (stretch, bytes))) = found else {
            return Err(SnapshotError::SpoolFileChanged { replid, first });
        };
        Ok(ReadStretch { seen, stretch: StretchToStore::new(stretch, bytes) })
    }

    /// Whether all others have it.
    fn is_last_copy(&self, name: StretchName) -> bool {
        let mut missing = self.outstanding.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get_mut(&name).is_some_and(|places| {
            *places = places.saturating_sub(1);
            *places == 0
        })
    }

    /// Removes the file, if that is still the one that was read.
    async fn remove_spooled(&self, name: StretchName, seen: SpoolFileExtent) -> Result<(), SnapshotError> {
        let spool = self.spool.clone();
        let remove = move || match spool.extent(name)? {
            Some(now) if now != seen => Ok(false),
            _ => spool.discard(name).map(|()| true),
        };
        let removed = run_blocking(remove).await?.map_err(SnapshotError::Spool)?;
        if removed { Ok(()) } else { Err(SnapshotError::SpoolFileChanged { replid: name.replid, first: name.first }) }
    }
}

/// Whether it may pass, or somebody may mend it: a right that was taken away also, for whoever stops following loses
/// what comes meanwhile.
fn is_retryable(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::Vault(error) if error.may_pass() => true,
        error => error.class() == ErrorClass::Transient,
    }
}

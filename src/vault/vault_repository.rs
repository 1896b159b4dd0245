//! One repository of a vault: open, or unreachable since a moment and for a reason.
//!
//! A repository that fails while others work is not asked again until a pause has passed, so that no command waits for
//! it call after call. The pause grows from one second to half a minute. The only repository of a vault is asked each
//! time, because nothing can take its place.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;

use super::error::VaultError;
use super::key_objects::VaultKeys;
use super::opened_ids::OpenedIds;
use super::repository_location::RepositoryLocation;
use super::unreachable_notes::HeldOffRepository;
use crate::base::clock::SharedClock;
use crate::base::retry::{Backoff, RetryPolicy};
use crate::vault::repository::{Repository, RepositoryError};

/// Pauses between attempts to open an unreachable repository, for as long as the process lives. Half a minute is short
/// beside the time that an operator needs to notice that it is back.
const REOPEN_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(1), longest: Duration::from_secs(30), total: None };

/// A repository of the vault.
pub struct VaultRepository {
    pub(crate) name: String,
    /// `None` in tests that bring an open repository: it cannot be opened again.
    location: Option<RepositoryLocation>,
    /// The ids of all repositories of the vault.
    ids: Arc<OpenedIds>,
    clock: SharedClock,
    /// Whether other repositories can do its work.
    replaceable: bool,
    reach: RwLock<Reach>,
    /// Held by the one task that opens it.
    opening: Mutex<()>,
}

#[derive(Clone)]
struct Reach {
    repository: Option<Repository>,
    /// Why it is unreachable, and since when.
    failure: Option<(VaultError, Timestamp)>,
    backoff: Backoff,
    /// On the clock's [`crate::base::clock::Clock::elapsed`]: no attempt before.
    next_attempt: Duration,
}

impl fmt::Debug for VaultRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = self.reach();
        f.debug_struct("VaultRepository")
            .field("name", &self.name)
            .field("repository", &reach.repository)
            .field("failure", &reach.failure)
            .finish_non_exhaustive()
    }
}

impl VaultRepository {
    /// A repository that is to be opened; until then it is unreachable.
    pub(super) fn new(
        location: RepositoryLocation,
        clock: &SharedClock,
        replaceable: bool,
        ids: &Arc<OpenedIds>,
    ) -> VaultRepository {
        let name = location.name.clone();
        let ids = Arc::clone(ids);
        VaultRepository { location: Some(location), ids, ..VaultRepository::unopened(name, clock, replaceable) }
    }

    /// A repository that is open.
    #[cfg(test)]
    pub(super) fn opened(name: &str, repository: Repository, clock: &SharedClock) -> VaultRepository {
        let place = VaultRepository::unopened(name.to_owned(), clock, false);
        place.update(|reach| reach.repository = Some(repository));
        place
    }

    fn unopened(name: String, clock: &SharedClock, replaceable: bool) -> VaultRepository {
        let seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let reach = Reach {
            repository: None,
            failure: None,
            backoff: Backoff::new(REOPEN_POLICY, clock.elapsed(), seed),
            next_attempt: Duration::ZERO,
        };
        VaultRepository {
            name,
            location: None,
            ids: Arc::default(),
            clock: Arc::clone(clock),
            replaceable,
            reach: RwLock::new(reach),
            opening: Mutex::new(()),
        }
    }

    /// The repository as it is now. Does not wait.
    pub(crate) fn repository(&self) -> Result<Repository, VaultError> {
        let reach = self.reach();
        match (reach.repository, reach.failure) {
            (Some(repository), _) => Ok(repository),
            (None, Some((failure, _))) => Err(failure),
            (None, None) => Err(VaultError::NoRepository),
        }
    }

    /// Why it is unreachable, and since when; `None` if it is open.
    pub(crate) fn failure(&self) -> Option<(VaultError, Timestamp)> {
        let reach = self.reach();
        if reach.repository.is_some() { None } else { reach.failure }
    }

    /// The repository; one that is unreachable is opened again first, if it is time.
    pub(crate) async fn reopened(&self, keys: &VaultKeys) -> Result<Repository, VaultError> {
        if self.failure().is_some() && self.reach().next_attempt <= self.clock.elapsed() {
            // One task tries; the others have the answer of the last attempt.
            if let Ok(_alone) = self.opening.try_lock() {
                self.open(keys).await;
            }
        }
        self.repository()
    }

    /// Counts as unreachable without having been asked: another process has found that out.
    pub(super) fn hold_off(&self, held: &HeldOffRepository) {
        let (now, elapsed) = (self.clock.now(), self.clock.elapsed());
        self.update(|reach| {
            reach.failure = Some((held.failure(), held.since(now)));
            reach.next_attempt = elapsed.saturating_add(held.pause);
        });
    }

    /// Opens it for the first time; its keys are looked at later.
    pub(super) async fn connect(&self) {
        if let Some(opened) = self.open_location().await {
            self.settle(opened);
        }
    }

    /// Opens it and proves its keys. What is in the way is remembered.
    async fn open(&self, keys: &VaultKeys) {
        let Some(opened) = self.open_location().await else { return };
        let proved = match opened.and_then(|repository| self.ids.claim(&self.name, repository)) {
            Ok(repository) => keys.prove(&self.name, &repository).await.map(|()| repository),
            Err(failure) => Err(failure),
        };
        self.settle(proved);
    }

    /// Refuses it if an earlier repository of the configuration is the same one.
    pub(super) fn refuse_if_twin(&self) {
        if let Ok(repository) = self.repository()
            && let Err(failure) = self.ids.claim(&self.name, repository)
        {
            tracing::error!(repository = self.name, error = %failure, "the repository is left out");
            self.fail(failure);
        }
    }

    async fn open_location(&self) -> Option<Result<Repository, VaultError>> {
        let location = self.location.as_ref()?;
        let opened = Repository::open(&location.url, &location.options).await;
        Some(opened.map_err(|source| VaultError::Repository { name: self.name.clone(), source: Arc::new(source) }))
    }

    /// Takes the result of an attempt to open it.
    pub(super) fn settle(&self, opened: Result<Repository, VaultError>) {
        match opened {
            Ok(repository) => {
                let before = self.failure();
                self.update(|reach| {
                    reach.repository = Some(repository);
                    reach.failure = None;
                });
                if let Some((_, since)) = before {
                    tracing::info!(repository = self.name, %since, "the repository is reachable again");
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Counts as unreachable from now on. Reported once, until it is reachable again.
    fn fail(&self, failure: VaultError) {
        if self.replaceable && self.failure().is_none() {
            tracing::warn!(repository = self.name, error = %failure, "the repository is unreachable");
        }
        let (now, elapsed) = (self.clock.now(), self.clock.elapsed());
        self.update(|reach| {
            reach.repository = None;
            let since = reach.failure.as_ref().map_or(now, |(_, since)| *since);
            reach.failure = Some((failure, since));
            let pause = reach.backoff.next_pause(elapsed).unwrap_or(REOPEN_POLICY.longest);
            reach.next_attempt = elapsed.saturating_add(pause);
        });
    }

    /// Names this repository in an error of it. One that does not answer counts as unreachable from now on, if others
    /// can do its work.
    pub(crate) fn repository_error(&self, source: RepositoryError) -> VaultError {
        let lost = matches!(source, RepositoryError::Unavailable { .. } | RepositoryError::NoRepository { .. });
        let error = VaultError::Repository { name: self.name.clone(), source: Arc::new(source) };
        if lost && self.replaceable && self.location.is_some() && self.failure().is_none() {
            self.fail(error.clone());
        }
        error
    }

    /// Something was stored in it or read from it: the next failure is the first of a new series.
    pub(crate) fn note_success(&self) {
        if self.reach().next_attempt > Duration::ZERO {
            let elapsed = self.clock.elapsed();
            self.update(|reach| {
                reach.backoff.reset(elapsed);
                reach.next_attempt = Duration::ZERO;
            });
        }
    }

    fn reach(&self) -> Reach {
        self.reach.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, change: impl FnOnce(&mut Reach)) {
        change(&mut self.reach.write().unwrap_or_else(PoisonError::into_inner));
    }
}

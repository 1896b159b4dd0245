//! Backups under way, as objects that a cleanup in another process sees.
//!
//! A backup uses objects that no manifest names yet: those that it has just put, and those of older backups that it is
//! going to name again. It puts a mark into each repository, `running/<name>/<number>`. Number 0 is created
//! before the backup looks which objects there are, and stays until the backup is over: its time, by the store's clock,
//! is when the backup began. A renewal is the next number, because an object is never changed; the renewal before it is
//! then removed.
//!
//! A cleanup lists the marks after it has taken manifests away and before it removes what they named. What was there
//! when a live backup began, or arrived since, stays. A mark that was not renewed for [`LEASE`] is of a process that
//! has ended. A backup that could not renew for [`MAX_SILENCE`] does not trust its mark any more and fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::error::VaultError;
use super::repositories::Vault;
use super::skipped_repositories::SkippedRepositories;
use crate::base::clock::real_sleep;
use crate::vault::repository::key::{KeyPrefix, ObjectKey, ObjectKeyError};
use crate::vault::repository::{ObjectInfo, Repository, RepositoryError};

/// Time between two renewals: three fail before [`MAX_SILENCE`] has passed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// A backup whose last renewal is older does not count on its mark. It is half of [`LEASE`], so that no cleanup has
/// taken the mark for dead before, even if clocks run apart.
const MAX_SILENCE: SignedDuration = SignedDuration::from_mins(30);
/// A mark whose last renewal is older, by the store's clock, is of a process that has ended.
const LEASE: SignedDuration = SignedDuration::from_hours(1);
/// Clocks of the nodes of one store may differ by so much.
const STORE_CLOCK_MARGIN: SignedDuration = SignedDuration::from_mins(1);
/// What a mark holds. Its name and its time are what counts.
const MARK_CONTENT: &[u8] = b"a backup is under way\n";

/// The mark of this process's backup. Dropped before [`RunningMark::remove`], it stays and expires.
#[derive(Debug)]
pub(crate) struct RunningMark {
    shared: Arc<MarkState>,
    /// Ends with the mark.
    _renewing: JoinSet<()>,
}

#[derive(Debug)]
struct MarkState {
    vault: Vault,
    prefix: KeyPrefix,
    skipped: Arc<SkippedRepositories>,
    /// Locked for the length of a renewal.
    renewals: Mutex<Renewals>,
}

#[derive(Debug)]
struct Renewals {
    number: u32,
    /// When each repository took the last one, on both clocks: either may have stood still while the machine slept.
    taken: BTreeMap<usize, (Duration, Timestamp)>,
}

impl RunningMark {
    /// Puts the mark `name` into every repository that is not skipped, below `running`. A repository that does not take
    /// it is skipped from now on.
    pub(crate) async fn create(
        vault: &Vault,
        running: &KeyPrefix,
        name: &str,
        skipped: &Arc<SkippedRepositories>,
    ) -> Result<RunningMark, VaultError> {
        let unique = format!("{name}-{:08x}", rand::random::<u32>());
        let prefix = running.child(&unique).map_err(|error| malformed_name(&error))?;
        let shared = Arc::new(MarkState {
            vault: vault.clone(),
            prefix,
            skipped: Arc::clone(skipped),
            renewals: Mutex::new(Renewals { number: 0, taken: BTreeMap::new() }),
        });
        let mut renewals = shared.renewals.lock().await;
        shared.put(&mut renewals).await?;
        drop(renewals);
        let mut renewing = JoinSet::new();
        let state = Arc::clone(&shared);
        renewing.spawn(async move {
            loop {
                real_sleep(RENEWAL_INTERVAL).await;
                if let Err(error) = state.renew().await {
                    tracing::warn!(%error, "the mark of the backup under way cannot be renewed");
                }
            }
        });
        Ok(RunningMark { shared, _renewing: renewing })
    }

    /// Renews the mark just before the manifest is put. A repository in which it was not renewed for too long is
    /// skipped: a cleanup may have removed there what the backup needs.
    pub(crate) async fn confirm(&self) -> Result<(), VaultError> {
        let state = &self.shared;
        let before = state.renewals.lock().await.taken.clone();
        for (nth, (elapsed, wall)) in before {
            let clock = state.vault.clock();
            let silence = SignedDuration::try_from(clock.elapsed().saturating_sub(elapsed));
            let silence = silence.unwrap_or(SignedDuration::MAX).max(clock.now().duration_since(wall));
            if silence > MAX_SILENCE {
                state.leave_out(nth, |name| VaultError::MarkExpired { name });
            }
        }
        state.renew().await
    }

    /// Removes the mark: the manifest names everything now, or the backup was given up.
    pub(crate) async fn remove(self) {
        let RunningMark { shared, _renewing } = self;
        drop(_renewing);
        let renewals = shared.renewals.lock().await;
        for (_, place) in shared.vault.not_skipped(&shared.skipped) {
            let Ok(repository) = place.repository() else { continue };
            // The newest first: what is left otherwise looks younger than it is.
            for number in [renewals.number, 0] {
                let Ok(key) = shared.key(number) else { continue };
                if let Err(error) = repository.delete(&key).await {
                    tracing::info!(repository = place.name, %error, "the mark of the backup stays, and expires");
                }
            }
        }
    }
}

impl MarkState {
    fn key(&self, number: u32) -> Result<ObjectKey, VaultError> {
        self.prefix.object_key(&format!("{number:06}")).map_err(|error| malformed_name(&error))
    }

    async fn renew(&self) -> Result<(), VaultError> {
        let mut renewals = self.renewals.lock().await;
        let last = renewals.number;
        renewals.number = last.saturating_add(1);
        self.put(&mut renewals).await?;
        if last == 0 {
            return Ok(());
        }
        let old = self.key(last)?;
        for (_, place) in self.vault.not_skipped(&self.skipped) {
            if let Ok(repository) = place.repository()
                && let Err(error) = repository.delete(&old).await
            {
                tracing::debug!(repository = place.name, %error, "an old renewal of a backup's mark stays");
            }
        }
        Ok(())
    }

    /// Puts the current number. Before the first one has been taken everywhere, who does not take it is skipped; a
    /// later one may be lost, as long as not too many are.
    async fn put(&self, renewals: &mut Renewals) -> Result<(), VaultError> {
        let key = self.key(renewals.number)?;
        let places: Vec<(usize, Result<Repository, VaultError>)> =
            self.vault.not_skipped(&self.skipped).map(|(nth, place)| (nth, place.repository())).collect();
        let (mut taken, mut failed) = (0_usize, None);
        for (nth, repository) in places {
            let put = match repository {
                Ok(repository) => match repository.put_new(&key, vec![Bytes::from_static(MARK_CONTENT)]).await {
                    Ok(_) => Ok(()),
                    Err(source) => Err(self.repository_error(nth, source)),
                },
                Err(error) => Err(error),
            };
            match put {
                Ok(()) => {
                    taken = taken.saturating_add(1);
                    let clock = self.vault.clock();
                    renewals.taken.insert(nth, (clock.elapsed(), clock.now()));
                }
                Err(error) if error.may_pass() => {
                    if renewals.number == 0 {
                        self.skipped.skip(nth, error.clone());
                    }
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match failed {
            Some(error) if taken == 0 => Err(error),
            _ => Ok(()),
        }
    }

    fn leave_out(&self, nth: usize, error: impl FnOnce(String) -> VaultError) {
        if let Some(place) = self.vault.places.get(nth) {
            self.skipped.skip(nth, error(place.name.clone()));
        }
    }

    fn repository_error(&self, nth: usize, source: RepositoryError) -> VaultError {
        match self.vault.places.get(nth) {
            Some(place) => place.repository_error(source),
            None => VaultError::NoRepository,
        }
    }
}

fn malformed_name(error: &ObjectKeyError) -> VaultError {
    tracing::error!(%error, "the mark of a backup cannot be named");
    VaultError::NoRepository
}

/// The backups that are under way in one repository.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RunningBackups {
    /// Their names, each with when it began.
    pub(crate) live: BTreeMap<String, Timestamp>,
    /// Marks of processes that have ended.
    pub(crate) dead: Vec<ObjectInfo>,
}

impl RunningBackups {
    /// Lists the marks below `running`; `now` is the store's time.
    pub(crate) async fn list(
        repository: &Repository,
        running: &KeyPrefix,
        now: Timestamp,
    ) -> Result<RunningBackups, RepositoryError> {
        let mut marks: BTreeMap<String, Vec<ObjectInfo>> = BTreeMap::new();
        for object in repository.list(running).await? {
            let name = object.key.as_str().rsplit('/').nth(1).unwrap_or_default().to_owned();
            marks.entry(name).or_default().push(object);
        }
        let mut found = RunningBackups::default();
        for (name, objects) in marks {
            let times = || objects.iter().map(|object| object.modified);
            match (times().min(), times().max()) {
                (Some(begun), Some(renewed)) if now.duration_since(renewed) < LEASE => {
                    found.live.insert(name, begun);
                }
                _ => found.dead.extend(objects),
            }
        }
        Ok(found)
    }

    /// Objects that the store has had since before this moment are used by no backup under way, unless a manifest names
    /// them; `None` if no backup is under way.
    pub(crate) fn protected_since(&self) -> Option<Timestamp> {
        let first = self.live.values().min()?;
        Some(first.checked_sub(STORE_CLOCK_MARGIN).unwrap_or(Timestamp::MIN))
    }
}

//! Fills each repository of an archive from the others, for as long as the process lives.
//!
//! It carries out the steps of [`super::rules`] for a process that holds nothing itself: what a repository lacks is
//! found by comparing it with the others, and copied. Each repository has a task of its own, so that none waits for
//! another one. Nothing is kept on disk: the first comparison after a start looks at all names.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::copy::CopyOutcome;
use super::item::{Lacking, ShipItem};
use super::rules::{Follower, Step};
use crate::vault::{Vault, VaultError};

/// An archive whose repositories can be compared.
pub trait ComparableArchive: Send + Sync {
    /// What the repository of this name lacks of what the others have.
    fn lacking<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, Result<Lacking, VaultError>>;
}

/// The tasks that fill the repositories of one archive. Dropped, they end.
#[derive(Debug)]
pub struct RepositoryFillers {
    lanes: Vec<Arc<FillerLane>>,
    _tasks: JoinSet<()>,
}

impl RepositoryFillers {
    /// Begins to fill each repository of the vault. A lone one has nothing to be filled from.
    #[must_use]
    pub fn start(vault: &Arc<Vault>, archive: &Arc<dyn ComparableArchive>) -> RepositoryFillers {
        let names: Vec<String> = vault.repository_names().map(str::to_owned).collect();
        let alone = names.len() < 2;
        let lane = |(nth, name): (usize, String)| {
            Arc::new(FillerLane {
                vault: Arc::clone(vault),
                archive: Arc::clone(archive),
                name,
                follower: Mutex::new(Follower::new(None, alone, nth as u64 + 1)),
                changed: Notify::new(),
            })
        };
        let lanes: Vec<Arc<FillerLane>> = names.into_iter().enumerate().map(lane).collect();
        let mut tasks = JoinSet::new();
        for lane in &lanes {
            tasks.spawn(Arc::clone(lane).run());
        }
        RepositoryFillers { lanes, _tasks: tasks }
    }

    /// Something was stored that a repository may not have got: all of them are compared again soon.
    pub fn look_again(&self) {
        for lane in &self.lanes {
            let now = lane.vault.clock().elapsed();
            lane.change(|follower| follower.look_again(now));
        }
    }
}

/// One repository.
struct FillerLane {
    vault: Arc<Vault>,
    archive: Arc<dyn ComparableArchive>,
    name: String,
    follower: Mutex<Follower>,
    changed: Notify,
}

impl std::fmt::Debug for FillerLane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FillerLane").field("name", &self.name).finish_non_exhaustive()
    }
}

impl FillerLane {
    /// Carries out what the rules ask for, for as long as it is polled.
    async fn run(self: Arc<Self>) {
        let clock = Arc::clone(self.vault.clock());
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let now = clock.elapsed();
            let step = self.follower().next(now);
            let pause = match step {
                Step::Ship(item) => {
                    let lane = Arc::clone(&self);
                    tasks.spawn(async move { lane.ship(item).await });
                    continue;
                }
                Step::Compare(_) => {
                    let lane = Arc::clone(&self);
                    tasks.spawn(async move { lane.compare().await });
                    continue;
                }
                Step::Wait(until) => Some(until.saturating_sub(now)),
                Step::Idle => None,
            };
            let slept = async {
                match pause {
                    Some(pause) => clock.sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = slept => {}
                () = self.changed.notified() => {}
                Some(_ended) = tasks.join_next() => {}
            }
        }
    }

    fn follower(&self) -> MutexGuard<'_, Follower> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the follower, and has its next step carried out.
    fn change(&self, change: impl FnOnce(&mut Follower)) {
        change(&mut self.follower());
        self.changed.notify_one();
    }

    async fn ship(&self, item: ShipItem) {
        let copied = self.vault.copy_object(&item, &self.name).await;
        let (repository, now) = (&self.name, self.vault.clock().elapsed());
        match copied {
            Ok(CopyOutcome::Copied(bytes)) => {
                tracing::debug!(repository, key = %item.key, bytes, "filled from another repository");
                self.change(|follower| follower.shipped(&item, now));
            }
            Ok(CopyOutcome::Exists) => self.change(|follower| follower.shipped(&item, now)),
            Ok(CopyOutcome::Gone) => self.change(|follower| follower.unobtainable(&item, now)),
            Err(error) if error.is_integrity() => {
                tracing::error!(repository, key = %item.key, %error, "this object cannot be filled");
                self.change(|follower| follower.unobtainable(&item, now));
            }
            Err(error) => {
                tracing::debug!(repository, key = %item.key, %error, "not stored yet");
                self.change(|follower| follower.failed(&item, now));
            }
        }
    }

    async fn compare(&self) {
        let compared = self.archive.lacking(&self.name).await;
        let (repository, now) = (&self.name, self.vault.clock().elapsed());
        match compared {
            Ok(lacking) => {
                for (other, why) in &lacking.unasked {
                    tracing::debug!(repository, other, why, "not compared with this repository");
                }
                if let Some(first) = lacking.items.first() {
                    let (lacking, first) = (lacking.items.len(), &first.key);
                    tracing::info!(repository, lacking, %first, "the repository is filled from the others");
                }
                self.change(|follower| follower.compared(lacking, now));
            }
            Err(error) => {
                let unreachable = self.vault.unreachable().any(|(name, _)| name == self.name);
                tracing::debug!(repository, %error, unreachable, "not compared with the others yet");
                self.change(|follower| follower.not_compared(unreachable, now));
            }
        }
    }
}

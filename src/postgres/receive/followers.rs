//! The repositories as followers of the stream: each gets every segment by itself, however slow it is or far it lags.
//!
//! A sealed segment is offered to all repositories at once, and counts as archived when the required ones have it. One
//! that does not take it gets it later from another repository. [`crate::vault::shipper::rules`] decides what each gets
//! next; here its steps are carried out, and its cursor is written.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::base::blocking::run_blocking;
use crate::postgres::archive::ingest::{
    IngestError, IngestOutcome, Ingested, LackingRepository, PreparedSegment, alarm_of_digest,
};
use crate::postgres::archive::{Archive, ArchiveError};
use crate::vault::VaultError;
use crate::vault::repository::RepositoryId;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;
use crate::vault::shipper::cursor::CursorFile;
use crate::vault::shipper::rules::{Follower, Step};
use crate::vault::shipper::{CopyOutcome, Lacking, SeedScope, ShipItem, ShipStage};

/// Sealed segments that are kept for repositories that lag only a moment. A repository that lags more reads them from
/// another one.
const KEPT_SEGMENTS: usize = 2;

/// How long to wait before the cursors are written again. Only a segment that fills a hole waits for that.
const RETRACT_RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The followers of one cluster's stream. Dropped, they end; what a repository lacks then is found at the next start.
pub(super) struct Followers {
    archive: Arc<Archive>,
    lanes: Vec<Arc<Lane>>,
    tickets: Arc<Tickets>,
    cursors: Arc<Mutex<CursorFile>>,
    _tasks: JoinSet<()>,
}

/// A sealed segment on its way.
struct Ticket {
    prepared: PreparedSegment,
    progress: watch::Sender<Progress>,
}

impl Ticket {
    /// Whether it is not known yet if this repository has the segment.
    fn waits_for(&self, place: usize) -> bool {
        let progress = self.progress.borrow();
        progress.refused.is_none() && !progress.stored.contains_key(&place)
    }
}

/// In which repositories a segment is, by their number.
#[derive(Clone, Default)]
struct Progress {
    stored: BTreeMap<usize, IngestOutcome>,
    lacking: BTreeMap<usize, String>,
    refused: Option<IngestError>,
}

/// The segments that this process can provide.
#[derive(Default)]
struct Tickets {
    open: Mutex<BTreeMap<ObjectKey, Weak<Ticket>>>,
    /// The last of them, so that a repository that lags a moment need not read what another has stored.
    kept: Mutex<VecDeque<Arc<Ticket>>>,
}

impl Tickets {
    fn add(&self, ticket: &Arc<Ticket>, kept_segments: usize) {
        let mut open = lock(&self.open);
        open.retain(|_, ticket| ticket.strong_count() > 0);
        open.insert(ticket.prepared.key().clone(), Arc::downgrade(ticket));
        drop(open);
        let mut kept = lock(&self.kept);
        kept.push_back(Arc::clone(ticket));
        while kept.len() > kept_segments {
            kept.pop_front();
        }
    }

    fn get(&self, key: &ObjectKey) -> Option<Arc<Ticket>> {
        lock(&self.open).get(key).and_then(Weak::upgrade)
    }
}

impl Followers {
    pub(super) fn start(archive: &Arc<Archive>, state_dir: &Path) -> Followers {
        let names: Vec<String> = archive.vault().repository_names().map(str::to_owned).collect();
        let cursors = Arc::new(Mutex::new(CursorFile::read(state_dir, archive.cluster().as_str())));
        let tickets = Arc::<Tickets>::default();
        let alone = names.len() < 2;
        let lane = |(place, name): (usize, String)| {
            Arc::new(Lane {
                archive: Arc::clone(archive),
                place,
                name,
                follower: Mutex::new(Follower::new(None, alone, place as u64 + 1)),
                changed: Notify::new(),
                tickets: Arc::clone(&tickets),
                cursors: Arc::clone(&cursors),
                followed: Mutex::default(),
            })
        };
        let lanes: Vec<Arc<Lane>> = names.into_iter().enumerate().map(lane).collect();
        let mut tasks = JoinSet::new();
        for lane in &lanes {
            tasks.spawn(Arc::clone(lane).run());
        }
        Followers { archive: Arc::clone(archive), lanes, tickets, cursors, _tasks: tasks }
    }

    /// Brings a segment into the repositories. When this returns it is durable in all that are required; the others get
    /// it later. Waits as long as they do not take it.
    ///
    /// # Errors
    /// A repository has another content under this name, or it is another cluster's.
    pub(super) async fn store(&self, prepared: PreparedSegment) -> Result<Ingested, IngestError> {
        self.archive.check_prepared(&prepared).await?;
        let (digest, stored_bytes) = (Arc::clone(prepared.digest()), prepared.stored_bytes());
        let item = ShipItem { stage: ShipStage::Log, key: prepared.key().clone(), kind: SealedKind::Wal };
        let ticket = Arc::new(Ticket { prepared, progress: watch::Sender::new(Progress::default()) });
        let mut progress = ticket.progress.subscribe();
        // A lone repository has no one to wait for.
        self.tickets.add(&ticket, if self.lanes.len() > 1 { KEPT_SEGMENTS } else { 0 });
        self.lanes.iter().for_each(|lane| lock(&lane.follower).announce(&item));
        self.retract_saved_cursors(&item.key).await?;
        self.lanes.iter().for_each(|lane| lane.change(|follower| follower.hold(item.clone())));
        let has = |progress: &Progress, name: &str| {
            self.lanes.iter().any(|lane| lane.name == name && progress.stored.contains_key(&lane.place))
        };
        let names = || self.lanes.iter().map(|lane| lane.name.as_str());
        let enough = |progress: &Progress| self.archive.required().are_met(names(), |name| has(progress, name));
        let reached = progress.wait_for(|progress| progress.refused.is_some() || enough(progress)).await;
        // The sender lives in the ticket.
        let progress = reached.map(|progress| progress.clone()).map_err(|_closed| VaultError::WorkerLost)?;
        self.lanes.iter().for_each(|lane| lane.change(|follower| follower.release(&item)));
        if let Some(refused) = progress.refused {
            return Err(refused);
        }
        let lacking = self.lanes.iter().filter(|lane| !progress.stored.contains_key(&lane.place)).map(|lane| {
            let why = progress.lacking.get(&lane.place).cloned();
            LackingRepository { name: lane.name.clone(), why: why.unwrap_or_else(|| "it is slower".to_owned()) }
        });
        let created = progress.stored.values().any(|outcome| *outcome == IngestOutcome::Created);
        Ok(Ingested {
            outcome: if created { IngestOutcome::Created } else { IngestOutcome::Identical },
            stored_bytes,
            lacking: lacking.collect(),
            alarm: alarm_of_digest(&digest),
            digest: Some(digest),
        })
    }
}

impl Followers {
    /// Takes the cursors on disk back that are past this key, before any repository has its object.
    async fn retract_saved_cursors(&self, key: &ObjectKey) -> Result<(), VaultError> {
        if !lock(&self.cursors).is_past(key) {
            return Ok(());
        }
        loop {
            let (cursors, key) = (Arc::clone(&self.cursors), key.clone());
            let retracted = run_blocking(move || lock(&cursors).retract_to(&key)).await?;
            let Err(error) = retracted else { return Ok(()) };
            tracing::error!(%error, "an older segment waits until the state directory can be written");
            self.archive.vault().clock().sleep(RETRACT_RETRY_INTERVAL).await;
        }
    }
}

/// One repository, and what is on its way there.
struct Lane {
    archive: Arc<Archive>,
    place: usize,
    name: String,
    follower: Mutex<Follower>,
    changed: Notify,
    tickets: Arc<Tickets>,
    cursors: Arc<Mutex<CursorFile>>,
    /// The repository that the follower's cursor belongs to: another one may be mounted at the same place.
    followed: Mutex<Option<RepositoryId>>,
}

impl Lane {
    /// Carries out what the rules ask for, for as long as it is polled.
    async fn run(self: Arc<Self>) {
        let clock = Arc::clone(self.archive.vault().clock());
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let now = clock.elapsed();
            let step = lock(&self.follower).next(now);
            let pause = match step {
                Step::Ship(item) => {
                    let lane = Arc::clone(&self);
                    tasks.spawn(async move { lane.ship(item).await });
                    continue;
                }
                Step::Compare(from) => {
                    let lane = Arc::clone(&self);
                    tasks.spawn(async move { lane.compare(from).await });
                    continue;
                }
                Step::Wait(until) => Some(until.saturating_sub(now)),
                Step::Idle => None,
            };
            self.advance_saved_cursor().await;
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

    /// Changes the follower, and has its next step carried out.
    fn change(&self, change: impl FnOnce(&mut Follower)) {
        change(&mut lock(&self.follower));
        self.changed.notify_one();
    }

    async fn ship(&self, item: ShipItem) {
        let ticket = self.tickets.get(&item.key);
        let is_copied = ticket.is_none();
        let shipped = match ticket {
            Some(ticket) => self.store_ticket(&ticket).await.map(|()| true),
            None => self.copy(&item).await.map_err(IngestError::from),
        };
        let now = self.archive.vault().clock().elapsed();
        match shipped {
            Ok(true) => self.change(|follower| follower.shipped(&item, now)),
            Ok(false) => self.change(|follower| follower.unobtainable(&item, now)),
            Err(error) => {
                tracing::debug!(repository = self.name, key = %item.key, %error, "not stored yet");
                self.change(|follower| follower.failed(&item, now));
            }
        }
        // The segment may have been received while it was copied: then its ticket waits for this repository, and the
        // follower knows of one item alone.
        if is_copied
            && let Some(ticket) = self.tickets.get(&item.key)
            && ticket.waits_for(self.place)
        {
            self.change(|follower| follower.hold(item));
        }
    }

    /// Stores what this process holds. An error may pass; what does not is the ticket's.
    async fn store_ticket(&self, ticket: &Ticket) -> Result<(), IngestError> {
        let stored = self.archive.commit_segment_in(self.place, &ticket.prepared).await;
        let mut passing = None;
        ticket.progress.send_modify(|progress| match stored {
            Ok(outcome) => {
                progress.lacking.remove(&self.place);
                progress.stored.insert(self.place, outcome);
            }
            Err(error) if error.may_pass() => {
                progress.lacking.insert(self.place, error.to_string());
                passing = Some(error);
            }
            Err(error) => progress.refused = Some(error),
        });
        passing.map_or(Ok(()), Err)
    }

    /// Copies what another repository has; `false` if none gives it.
    async fn copy(&self, item: &ShipItem) -> Result<bool, VaultError> {
        match self.archive.vault().copy_object(item, &self.name).await {
            Ok(CopyOutcome::Copied(bytes)) => {
                tracing::debug!(repository = self.name, key = %item.key, bytes, "filled from another repository");
                Ok(true)
            }
            Ok(CopyOutcome::Exists) => Ok(true),
            Ok(CopyOutcome::Gone) => Ok(false),
            Err(error) if error.is_integrity() => {
                tracing::error!(repository = self.name, key = %item.key, %error, "this object cannot be filled");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn compare(&self, from: Option<ObjectKey>) {
        let now = || self.archive.vault().clock().elapsed();
        match self.lacking(from).await {
            Ok(Lacking { items, needs, through, unasked }) => {
                for (name, why) in &unasked {
                    tracing::debug!(repository = self.name, other = name, why, "not compared with this repository");
                }
                if !items.is_empty() {
                    let (lacking, first) = (items.len(), items.first().map(|item| item.key.to_string()));
                    tracing::info!(repository = self.name, lacking, first, "the repository is filled from the others");
                }
                // What an unasked repository alone has is still lacking, so nothing is proved.
                let through = through.filter(|_| unasked.is_empty());
                let lacking = Lacking { items, needs, through, unasked };
                self.change(|follower| follower.compared(lacking, now()));
            }
            Err(error) => {
                let unreachable = self.archive.vault().unreachable().any(|(name, _)| name == self.name);
                tracing::debug!(repository = self.name, %error, unreachable, "not compared with the others yet");
                self.change(|follower| follower.not_compared(unreachable, now()));
            }
        }
    }

    async fn lacking(&self, from: Option<ObjectKey>) -> Result<Lacking, ArchiveError> {
        let id = self.archive.vault().reopened_id(&self.name).await?;
        let known = lock(&self.followed).replace(id);
        let from = match known {
            Some(known) if known == id => from,
            Some(_another) => None,
            None => lock(&self.cursors).cursor(id),
        };
        self.archive.lacking(&self.name, from.as_ref(), SeedScope::default()).await
    }

    /// Writes a cursor that has moved forward. One that is not written costs the next start time, and nothing else.
    async fn advance_saved_cursor(self: &Arc<Self>) {
        let Some(id) = *lock(&self.followed) else { return };
        let now = lock(&self.follower).cursor().cloned();
        if now.is_none() || lock(&self.cursors).cursor(id) == now {
            return;
        }
        let lane = Arc::clone(self);
        // Read again under the file's lock: an older object may have taken the cursor back meanwhile.
        let save = move || {
            let mut cursors = lock(&lane.cursors);
            let cursor = lock(&lane.follower).cursor().cloned();
            cursors.set(id, cursor.as_ref())
        };
        if let Ok(Err(error)) = run_blocking(save).await {
            tracing::debug!(repository = self.name, %error, "the cursor is not written; the next start compares more");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What is shipped to one repository, and when: a pure state machine. Events go in, the next step comes out; time is a
//! number that the caller hands in.
//!
//! A follower is *compared* with the other repositories first, from its cursor on, and gets what it lacks. After that
//! it gets what this process stores elsewhere, by name. A failure ends that: what was known is forgotten, and after a
//! pause the follower is compared again. So a repository that was down for a week, one that was full, one that lost
//! objects, and a new one are the same case.
//!
//! An item is *held* while only this process can provide it, because no repository has it yet. Held items survive a
//! failure, for no comparison could find them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::base::retry::{Backoff, RetryPolicy};
use crate::vault::repository::key::ObjectKey;
use crate::vault::shipper::item::{Lacking, ManifestNeeds, ShipItem, ShipStage};

/// How many items are shipped to one repository at once: at 50 ms a request, 64 MiB of WAL a second.
pub const MAX_UNDER_WAY: usize = 4;

/// How many names of waiting items are kept. With more, the rest is found by another comparison. A name takes some 100
/// bytes.
const MAX_WAITING: usize = 10_000;

/// How long after one comparison the next one begins: another process may have stored something where this repository
/// could not be reached. At six listings each that is 40 requests an hour.
pub const COMPARE_INTERVAL: Duration = Duration::from_secs(600);

/// Pauses after failures, for as long as the process lives.
const RETRY: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(200), longest: Duration::from_secs(30), total: None };

/// What to do next for one repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Compare it with the others, from this key on; from the beginning if there is none.
    Compare(Option<ObjectKey>),
    /// Ship this item.
    Ship(ShipItem),
    /// Nothing before this moment, unless an event arrives.
    Wait(Duration),
    /// Nothing until an event arrives.
    Idle,
}

/// How far a comparison has come.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Comparison {
    /// It begins at this moment.
    Due(Duration),
    /// `stale`: what it finds does not count any more.
    UnderWay { stale: bool },
    /// What it found is being shipped; then the cursor moves here. `cut`: there was more than fits.
    Shipping { through: Option<ObjectKey>, cut: bool },
    /// All of it is shipped. The next one begins at this moment.
    Settled(Duration),
}

/// One repository of an archive.
#[derive(Debug)]
pub struct Follower {
    cursor: Option<ObjectKey>,
    comparison: Comparison,
    waiting: BTreeSet<ShipItem>,
    under_way: BTreeSet<ShipItem>,
    held: BTreeSet<ShipItem>,
    /// What a comparison found and has not been shipped.
    found: BTreeSet<ShipItem>,
    /// Which of that data each manifest needs.
    needs: ManifestNeeds,
    /// Nothing is shipped before this moment.
    paused_until: Duration,
    backoff: Backoff,
    /// Pauses between comparisons that the others did not answer.
    compare_backoff: Backoff,
    alone: bool,
}

impl Follower {
    /// A repository of which everything before `cursor` is known to be complete. `alone`: there is no other repository
    /// to compare it with. `seed` spreads the pauses of several followers.
    #[must_use]
    pub fn new(cursor: Option<ObjectKey>, alone: bool, seed: u64) -> Follower {
        Follower {
            cursor,
            comparison: Comparison::Due(Duration::ZERO),
            waiting: BTreeSet::new(),
            under_way: BTreeSet::new(),
            held: BTreeSet::new(),
            found: BTreeSet::new(),
            needs: ManifestNeeds::default(),
            paused_until: Duration::ZERO,
            backoff: Backoff::new(RETRY, Duration::ZERO, seed),
            compare_backoff: Backoff::new(RETRY, Duration::ZERO, seed),
            alone,
        }
    }

    /// The key before which everything that the others had is in this repository.
    #[must_use]
    pub const fn cursor(&self) -> Option<&ObjectKey> {
        self.cursor.as_ref()
    }

    /// Whether it lacks something, or may lack something.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
            || !self.under_way.is_empty()
            || !(self.alone || matches!(self.comparison, Comparison::Settled(_)))
    }

    /// This process will hold an item. One that sorts before the cursor takes the cursor back. The caller must make
    /// that durable before [`Follower::hold`]: after a crash, no comparison from the old cursor would find that this
    /// repository lacks the item.
    pub fn announce(&mut self, item: &ShipItem) {
        self.retract_cursor(item);
        self.held.insert(item.clone());
    }

    /// An item that this process holds is to be stored.
    pub fn hold(&mut self, item: ShipItem) {
        self.announce(&item);
        if !self.under_way.contains(&item) {
            self.waiting.insert(item);
        }
    }

    fn retract_cursor(&mut self, item: &ShipItem) {
        if item.stage == ShipStage::Log && self.cursor.as_ref().is_some_and(|cursor| item.key <= *cursor) {
            self.cursor = None;
        }
    }

    /// Other repositories have the item now: this one gets it from them if need be.
    pub fn release(&mut self, item: &ShipItem) {
        self.held.remove(item);
        if self.waiting.len() > MAX_WAITING && self.waiting.remove(item) {
            self.compare_again(Duration::ZERO);
        }
    }

    /// What to do now. The caller does it, and reports the result.
    pub fn next(&mut self, now: Duration) -> Step {
        if now < self.paused_until {
            return Step::Wait(self.paused_until);
        }
        let due = match &self.comparison {
            Comparison::Due(at) | Comparison::Settled(at) if !self.alone => Some(*at),
            _ => None,
        };
        if due.is_some_and(|at| at <= now) {
            self.comparison = Comparison::UnderWay { stale: false };
            return Step::Compare(self.cursor.clone());
        }
        if let Some(item) = self.next_item() {
            self.waiting.remove(&item);
            self.under_way.insert(item.clone());
            return Step::Ship(item);
        }
        due.map_or(Step::Idle, Step::Wait)
    }

    /// The waiting item whose turn it is. One place is kept for backups, so that a stream of WAL does not keep them
    /// out.
    fn next_item(&self) -> Option<ShipItem> {
        if self.under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        let first_of = |stage: ShipStage| self.waiting.iter().find(|item| item.stage == stage);
        let under_way = |stage: ShipStage| self.under_way.iter().filter(|item| item.stage == stage).count();
        let log = self.waiting.first().filter(|item| item.stage <= ShipStage::Log);
        let data = first_of(ShipStage::Data);
        // One manifest at a time, oldest first: what is older than a repository's first backup counts as removed there.
        let complete = data.is_none() && under_way(ShipStage::Data) == 0 && under_way(ShipStage::Manifest) == 0;
        let backup = data.or_else(|| first_of(ShipStage::Manifest).filter(|_| complete));
        let log_has_room = backup.is_none() || under_way(ShipStage::Log) < MAX_UNDER_WAY - 1;
        log.filter(|_| log_has_room).or(backup).cloned()
    }

    /// A comparison ended: these items are lacking, and with them everything before `through` is complete.
    pub fn compared(&mut self, lacking: Lacking, now: Duration) {
        if self.comparison != (Comparison::UnderWay { stale: false }) {
            self.comparison = Comparison::Due(self.paused_until);
            return;
        }
        let Lacking { items, needs, through, .. } = lacking;
        self.needs = needs;
        let mut items = items.into_iter();
        self.found = items.by_ref().take(MAX_WAITING).collect();
        let cut = items.next().is_some();
        let through = if cut { self.cursor.clone() } else { through.or_else(|| self.cursor.clone()) };
        self.waiting.extend(self.found.difference(&self.under_way).cloned());
        self.comparison = Comparison::Shipping { through, cut };
        self.compare_backoff.reset(now);
        self.settle(now);
    }

    /// The item is in the repository, or in none any more.
    pub fn shipped(&mut self, item: &ShipItem, now: Duration) {
        self.under_way.remove(item);
        self.held.remove(item);
        self.found.remove(item);
        self.backoff.reset(now);
        self.settle(now);
    }

    /// No repository gives the item whole, or none has it any more. The manifests that need it are not shipped; a later
    /// comparison finds them again.
    pub fn unobtainable(&mut self, item: &ShipItem, now: Duration) {
        let needing: BTreeSet<ObjectKey> = self.needs.of_data(&item.key).cloned().collect();
        let stays = |item: &ShipItem| item.stage != ShipStage::Manifest || !needing.contains(&item.key);
        self.waiting.retain(stays);
        self.found.retain(stays);
        self.shipped(item, now);
    }

    /// Something was stored while this repository may have been unreachable: it is compared again soon.
    pub fn look_again(&mut self, now: Duration) {
        self.compare_again(now);
    }

    /// The repository did not take an item: what is not held is forgotten, and after a pause it is compared again.
    pub fn failed(&mut self, item: &ShipItem, now: Duration) {
        self.under_way.remove(item);
        self.start_over(now);
        self.compare_again(self.paused_until);
    }

    /// A comparison did not succeed, because the repository did not say what it has (`own_fault`) or because the others
    /// did not. It is made again after a pause; only in the first case nothing is shipped meanwhile.
    pub fn not_compared(&mut self, own_fault: bool, now: Duration) {
        let again = if own_fault {
            self.start_over(now);
            self.paused_until
        } else {
            now.saturating_add(self.compare_backoff.next_pause(now).unwrap_or(RETRY.longest))
        };
        self.comparison = Comparison::Due(again);
    }

    /// Forgets what is not held, and pauses.
    fn start_over(&mut self, now: Duration) {
        self.found.clear();
        self.waiting = self.held.difference(&self.under_way).cloned().collect();
        let pause = self.backoff.next_pause(now).unwrap_or(RETRY.longest);
        self.paused_until = now.saturating_add(pause);
    }

    /// Something may have been stored that this repository lacks and this process does not know of.
    fn compare_again(&mut self, at: Duration) {
        self.comparison = match self.comparison {
            // There is only one comparison at a time.
            Comparison::UnderWay { .. } => Comparison::UnderWay { stale: true },
            _ => Comparison::Due(at),
        };
    }

    /// Moves the cursor once everything that a comparison found is shipped.
    fn settle(&mut self, now: Duration) {
        if let Comparison::Shipping { through, cut } = &self.comparison
            && self.found.is_empty()
        {
            let next = if *cut { now } else { now.saturating_add(COMPARE_INTERVAL) };
            // An older item may be under way while a newer one is in the others already.
            let mut open = self.waiting.iter().chain(&self.under_way).chain(&self.held);
            let overtaken = open.any(|item| {
                item.stage == ShipStage::Log && through.as_ref().is_some_and(|through| item.key <= *through)
            });
            if !overtaken {
                self.cursor.clone_from(through);
            }
            self.comparison = Comparison::Settled(next);
        }
    }
}

#[cfg(test)]
mod tests;

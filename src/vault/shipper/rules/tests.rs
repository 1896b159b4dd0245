//! The rules against a model: repositories that fail, lose objects and come back, a process that crashes at any step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{COMPARE_INTERVAL, Follower, MAX_UNDER_WAY, Step};
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;
use crate::vault::shipper::item::{Lacking, ManifestNeeds, ShipItem, ShipStage};

fn segment(number: u64) -> ShipItem {
    ShipItem { stage: ShipStage::Log, key: key(&format!("main/wal/{number:08}")), kind: SealedKind::Wal }
}

/// A backup's pack, and the manifest that names it.
fn backup(number: u64) -> [ShipItem; 2] {
    [
        ShipItem { stage: ShipStage::Data, key: key(&format!("main/pack/{number:08}")), kind: SealedKind::Pack },
        ShipItem {
            stage: ShipStage::Manifest,
            key: key(&format!("main/backup/{number:08}")),
            kind: SealedKind::Manifest,
        },
    ]
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

fn lacking(items: impl IntoIterator<Item = ShipItem>, through: Option<ObjectKey>) -> Lacking {
    Lacking { items: items.into_iter().collect(), through, ..Lacking::default() }
}

const NOW: Duration = Duration::from_secs(1);

#[test]
fn a_new_repository_is_compared_first_and_gets_manifests_last() {
    let mut follower = Follower::new(None, false, 1);
    assert_eq!(follower.next(NOW), Step::Compare(None));
    let [pack, manifest] = backup(1);
    let all = [segment(1), segment(2), pack.clone(), manifest.clone()];
    follower.compared(lacking(all, Some(segment(2).key)), NOW);
    let mut shipped = Vec::new();
    while let Step::Ship(item) = follower.next(NOW) {
        shipped.push(item);
    }
    assert_eq!(shipped, [segment(1), segment(2), pack.clone()], "the manifest waits for its pack");
    assert_eq!(follower.cursor(), None, "nothing is proved yet");
    follower.shipped(&pack, NOW);
    assert_eq!(follower.next(NOW), Step::Ship(manifest.clone()));
    for item in [segment(1), segment(2), manifest] {
        assert!(follower.is_behind());
        follower.shipped(&item, NOW);
    }
    assert_eq!(follower.cursor(), Some(&segment(2).key));
    assert!(!follower.is_behind());
    assert_eq!(follower.next(NOW), Step::Wait(NOW + COMPARE_INTERVAL));
}

#[test]
fn what_this_process_holds_survives_a_failure_and_the_rest_is_compared_again() {
    let mut follower = Follower::new(None, false, 1);
    assert_eq!(follower.next(NOW), Step::Compare(None));
    follower.compared(lacking([segment(1)], Some(segment(1).key)), NOW);
    follower.hold(segment(5));
    assert_eq!(follower.next(NOW), Step::Ship(segment(1)));
    follower.failed(&segment(1), NOW);
    let Step::Wait(until) = follower.next(NOW) else { panic!("it must pause") };
    assert_eq!(follower.next(until), Step::Compare(None));
    assert_eq!(follower.next(until), Step::Ship(segment(5)));
    follower.not_compared(true, until);
    follower.release(&segment(5));
    follower.failed(&segment(5), until);
    let Step::Wait(until) = follower.next(until) else { panic!("it must pause") };
    assert_eq!(follower.next(until), Step::Compare(None), "released: a comparison finds it");
    assert_eq!(follower.next(until), Step::Idle);
}

#[test]
fn a_lone_repository_is_compared_with_nothing() {
    let mut follower = Follower::new(None, true, 1);
    assert_eq!(follower.next(NOW), Step::Idle);
    for number in 0..9 {
        follower.hold(segment(number));
    }
    let steps = (0..9).take_while(|_| matches!(follower.next(NOW), Step::Ship(_))).count();
    assert_eq!(steps, MAX_UNDER_WAY);
}

#[test]
fn a_stream_of_wal_does_not_keep_a_backup_out() {
    let mut follower = Follower::new(None, false, 1);
    follower.next(NOW);
    let [pack, manifest] = backup(1);
    follower.compared(lacking([pack.clone(), manifest.clone()], None), NOW);
    let mut shipped = BTreeSet::new();
    for number in 0..100 {
        follower.hold(segment(number));
        if let Step::Ship(item) = follower.next(NOW) {
            follower.shipped(&item, NOW);
            shipped.insert(item);
        }
    }
    let mut under_way = Vec::new();
    for number in 1000..1010 {
        follower.hold(segment(number));
    }
    while let Step::Ship(item) = follower.next(NOW) {
        under_way.push(item);
    }
    let all: BTreeSet<_> = shipped.iter().chain(&under_way).collect();
    assert!(all.contains(&pack), "{under_way:?}");
}

/// A pack that no repository gives holds back the manifest that names it, and no other. The next comparison finds both
/// again.
#[test]
fn data_that_cannot_be_had_holds_back_only_what_needs_it() {
    let mut follower = Follower::new(None, false, 1);
    follower.next(NOW);
    let ([lost, held_back], [pack, manifest]) = (backup(1), backup(2));
    let mut needs = ManifestNeeds::default();
    needs.add(&held_back.key, &lost.key);
    needs.add(&held_back.key, &pack.key);
    needs.add(&manifest.key, &pack.key);
    let items = vec![lost.clone(), pack.clone(), held_back, manifest.clone()];
    let all = Lacking { items, needs, ..Lacking::default() };
    follower.compared(all.clone(), NOW);
    assert_eq!((follower.next(NOW), follower.next(NOW)), (Step::Ship(lost.clone()), Step::Ship(pack.clone())));
    follower.unobtainable(&lost, NOW);
    follower.shipped(&pack, NOW);
    assert_eq!(follower.next(NOW), Step::Ship(manifest.clone()));
    follower.shipped(&manifest, NOW);
    assert_eq!(follower.next(NOW), Step::Wait(NOW + COMPARE_INTERVAL));
    follower.look_again(NOW);
    assert_eq!(follower.next(NOW), Step::Compare(None));
    follower.compared(all, NOW);
    assert_eq!(follower.next(NOW), Step::Ship(lost));
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// A source, a target that is shipped to, and the process in between.
struct Model {
    random: Random,
    source: BTreeSet<ShipItem>,
    target: BTreeSet<ShipItem>,
    /// The cursor on disk.
    saved: Option<ObjectKey>,
    follower: Follower,
    /// What this process alone has, as after sealing and before anything is stored.
    held: BTreeSet<ShipItem>,
    under_way: Vec<ShipItem>,
    comparing: Option<(Vec<ShipItem>, Option<ObjectKey>)>,
    now: Duration,
    next: u64,
    up: bool,
    /// Whether the other repositories do not answer.
    others_silent: bool,
    /// The source as each comparison saw it, by the cursor that it leads to.
    proofs: BTreeMap<Option<ObjectKey>, BTreeSet<ShipItem>>,
    seen: BTreeSet<ShipItem>,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            source: BTreeSet::new(),
            target: BTreeSet::new(),
            saved: None,
            follower: Follower::new(None, false, seed),
            held: BTreeSet::new(),
            under_way: Vec::new(),
            comparing: None,
            now: Duration::ZERO,
            next: 0,
            up: true,
            others_silent: false,
            proofs: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Carries out one step that the rules ask for.
    fn follow(&mut self) {
        match self.follower.next(self.now) {
            Step::Compare(from) => {
                assert!(self.comparing.is_none(), "two comparisons at once");
                // The source is listed first: what is stored meanwhile is in neither list, or shipped in vain.
                let after = |item: &&ShipItem| {
                    item.stage != ShipStage::Log || from.as_ref().is_none_or(|from| item.key > *from)
                };
                let listed: BTreeSet<ShipItem> = self.source.iter().filter(after).cloned().collect();
                let last = self.source.iter().rfind(|item| item.stage == ShipStage::Log);
                let through = last.map(|item| item.key.clone());
                self.seen = self.source.clone();
                let items = listed.difference(&self.target).cloned().collect();
                self.comparing = Some((items, through));
            }
            Step::Ship(item) => self.under_way.push(item),
            Step::Wait(until) => {
                if self.random.below(4) == 0 {
                    self.now = self.now.max(until);
                }
            }
            Step::Idle => {}
        }
        assert!(self.under_way.len() <= MAX_UNDER_WAY);
    }

    /// Offers an item to the follower; a cursor that is taken back is made durable at once.
    fn hold(&mut self, item: ShipItem) {
        let before = self.follower.cursor().cloned();
        self.follower.hold(item);
        if self.follower.cursor() != before.as_ref() {
            self.saved = None;
        }
    }

    fn end_comparison(&mut self) {
        let Some((items, through)) = self.comparing.take() else { return };
        if self.others_silent {
            self.follower.not_compared(false, self.now);
        } else if self.up {
            self.proofs.insert(through.clone(), self.seen.clone());
            self.follower.compared(lacking(items, through), self.now);
        } else {
            self.follower.not_compared(true, self.now);
        }
    }

    fn end_shipping(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let nth = self.random.below(self.under_way.len());
        let item = self.under_way.swap_remove(nth);
        // A put may be done although its answer is lost.
        let (done, answered) = if self.up { (true, true) } else { (self.random.below(2) == 0, false) };
        if done {
            if let Some(number) = item.key.as_str().strip_prefix("main/backup/") {
                let pack = backup(number.parse().unwrap())[0].clone();
                assert!(self.target.contains(&pack), "a manifest without its pack: {item:?}");
            }
            self.target.insert(item.clone());
        }
        if answered { self.follower.shipped(&item, self.now) } else { self.follower.failed(&item, self.now) }
    }

    fn event(&mut self) {
        match self.random.below(100) {
            // A new segment is sealed; sometimes another process stores it in the source alone.
            0..20 => {
                self.next += 1;
                let item = segment(self.next);
                if self.random.below(5) == 0 {
                    self.source.insert(item);
                } else {
                    self.held.insert(item.clone());
                    self.hold(item);
                }
            }
            20..40 => {
                // In any order, as uploads end.
                let nth = self.random.below(self.held.len().max(1));
                if let Some(item) = self.held.iter().nth(nth).cloned() {
                    self.held.remove(&item);
                    self.source.insert(item.clone());
                    self.follower.release(&item);
                }
            }
            40..43 => {
                self.next += 1;
                self.source.extend(backup(self.next));
            }
            // A hole far back is filled from the server.
            43 => {
                let item = segment(1 + self.random.below(usize::try_from(self.next).unwrap() + 1) as u64);
                if !self.source.contains(&item) {
                    self.held.insert(item.clone());
                    self.hold(item);
                }
            }
            44..70 => self.follow(),
            70..80 => self.end_comparison(),
            80..95 => self.end_shipping(),
            95 => self.up = !self.up,
            96 => self.others_silent = !self.others_silent,
            97 => self.now += Duration::from_secs(self.random.below(700) as u64),
            98 => self.saved = self.follower.cursor().cloned(),
            // A crash: what only this process had is on the server still, and sealed again.
            _ => {
                self.follower = Follower::new(self.saved.clone(), false, self.next);
                self.comparing = None;
                self.under_way.clear();
                self.held.clone().into_iter().for_each(|item| self.hold(item));
            }
        }
        self.check_cursor();
    }

    /// Everything before the cursor that the source had when it was compared is in the target.
    fn check_cursor(&self) {
        let Some(cursor) = self.follower.cursor() else { return };
        let Some(seen) = self.proofs.get(&Some(cursor.clone())) else { return };
        let below = |item: &&ShipItem| item.stage == ShipStage::Log && item.key <= *cursor;
        assert!(seen.iter().filter(below).all(|item| self.target.contains(item)), "the cursor {cursor} is not true");
    }

    /// With the repository up and nothing else happening the target gets everything.
    fn settle(&mut self) {
        self.up = true;
        self.others_silent = false;
        while let Some(item) = self.held.pop_first() {
            self.source.insert(item.clone());
            self.follower.release(&item);
        }
        for _ in 0..20_000 {
            self.follow();
            self.end_comparison();
            self.end_shipping();
            self.check_cursor();
            if self.source.is_subset(&self.target) && !self.follower.is_behind() {
                return;
            }
        }
        let missing: Vec<_> = self.source.difference(&self.target).take(3).collect();
        panic!("the repository is never filled: {missing:?}, {:?}", self.follower);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "more seeds are asked for by hand")]
fn whatever_happens_a_repository_gets_everything_in_the_end() {
    let seeds = std::env::var("WALKEEP_MODEL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2_000);
    for seed in 1..=seeds {
        let mut model = Model::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..400 {
                model.event();
            }
            model.settle();
        }));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

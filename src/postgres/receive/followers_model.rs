//! Followers against stores that fail by chance, with processes that are cut off at any await: seeded, on a clock that
//! jumps.
//!
//! A server sends segments from the first that it does not know to be safe. A process stores them as the receiver does,
//! three at a time, while `archive-push` brings some of them too. Stores fail, hang, lose answers, and are down for a
//! while. The process is dropped after a random number of turns, and another one begins. What must hold:
//!
//! - When a segment counts as archived, the repositories that the policy names have it, with its content.
//! - When all stores answer again, each repository gets everything, without anything else that happens.
//!
//! `WALKEEP_MODEL_SEEDS` says how many seeds are tried.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::followers::Followers;
use crate::base::clock::{Clock, ManualClock, SharedClock, real_timeout};
use crate::postgres::archive::Archive;
use crate::postgres::archive::ingest::prepare_segment;
use crate::postgres::archive::tests::segment;
use crate::vault::repository::fault_store::FaultStore;
use crate::vault::repository::{Repository, RepositoryOptions};
use crate::vault::seal::CompressionLevel;
use crate::vault::{RepositoryLocation, RequiredCopies, Vault, VaultSettings};

/// Enough for each kind of trouble to meet each other one in most runs of the test.
const DEFAULT_SEEDS: u64 = 10;

/// A run takes about a second. One that takes so long waits for something that never happens.
const LONGEST_RUN: Duration = Duration::from_secs(120);

/// Segments of one run.
const SEGMENTS: u64 = 12;

/// Segments that are stored at once, as the receiver does it.
const AT_ONCE: usize = 3;

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }
}

/// What outlives a process.
struct World {
    seed: u64,
    random: Random,
    clock: Arc<ManualClock>,
    stores: Vec<(String, FaultStore)>,
    policy: RequiredCopies,
    state: TempDir,
    /// What the server was told is safe, or `archive_command` has ended well for.
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
}

impl World {
    async fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let names: Vec<String> = ["a", "b", "c"].into_iter().take(2 + random.index(2)).map(String::from).collect();
        let of = |repositories: &[&str], count| RequiredCopies::Of {
            repositories: repositories.iter().map(|name| (*name).to_owned()).collect(),
            count,
        };
        let policy = match random.below(4) {
            0 => RequiredCopies::Any,
            1 => RequiredCopies::All,
            2 => of(&["a"], 1),
            _ => of(&["a", "b"], 1),
        };
        let clock = Arc::new(ManualClock::jumping_from(Timestamp::UNIX_EPOCH));
        let stores = names.into_iter().map(|name| (name, FaultStore::wrap(Arc::new(InMemory::new())))).collect();
        let (state, acknowledged) = (TempDir::new().unwrap(), Arc::default());
        let world = World { seed, random, clock, stores, policy, state, acknowledged };
        for (name, _) in &world.stores {
            let location = world.location(name);
            Repository::create(&location.url, &location.options).await.unwrap();
        }
        world
    }

    fn location(&self, name: &str) -> RepositoryLocation {
        let (_, store) = self.stores.iter().find(|(other, _)| other == name).unwrap();
        let options = RepositoryOptions {
            clock: Arc::<ManualClock>::clone(&self.clock),
            store: Some(Arc::new(store.clone())),
            ..RepositoryOptions::new()
        };
        RepositoryLocation { name: name.to_owned(), url: format!("test://{name}"), options }
    }

    /// The archive of a new process; `None` if no store can be opened.
    async fn open(&self) -> Option<Arc<Archive>> {
        let clock: SharedClock = Arc::<ManualClock>::clone(&self.clock);
        let settings = VaultSettings {
            places: self.stores.iter().map(|(name, _)| self.location(name)).collect(),
            key: None,
            level: CompressionLevel::Fixed(1),
            threads: 1,
            clock,
        };
        let vault = Vault::open(settings).await.ok()?;
        let archive = Archive::new(Arc::new(vault), "main".parse().unwrap());
        Some(Arc::new(archive.with_required(self.policy.clone())))
    }

    /// What changes between one process and the next.
    fn change_weather(&mut self) {
        for (_, store) in &self.stores {
            store.set_down(self.random.below(4) == 0);
            let one_in = [0, 0, 5, 20][self.random.index(4)];
            store.fail_one_in(one_in, self.seed.wrapping_add(self.random.below(1 << 32)));
        }
    }

    /// The first segment that the server does not know to be safe: a slot's position.
    fn slot(&self) -> u64 {
        let acknowledged = self.acknowledged.lock().unwrap();
        (1..=SEGMENTS).find(|number| !acknowledged.contains(number)).unwrap_or(SEGMENTS + 1)
    }

    /// One process until it is cut off, or has stored everything.
    async fn run_process(&mut self) {
        let (turns, pushed) = (200 + self.random.below(20_000), 1 + self.random.below(SEGMENTS));
        let (from, acknowledged, state) = (self.slot(), Arc::clone(&self.acknowledged), self.state.path().to_owned());
        let work = async {
            let Some(archive) = self.open().await else { return };
            let followers = Followers::start(&archive, &state);
            let push = async {
                let (name, bytes) = wal(pushed);
                if archive.put_segment(name, bytes).await.is_ok() {
                    self.note_archived(&acknowledged, pushed).await;
                }
            };
            let receive = async {
                let mut waiting = from..=SEGMENTS;
                let mut under_way = FuturesUnordered::new();
                loop {
                    while under_way.len() < AT_ONCE
                        && let Some(number) = waiting.next()
                    {
                        under_way.push(store(&archive, &followers, number));
                    }
                    let Some(stored) = under_way.next().await else { return };
                    if let Some(number) = stored {
                        self.note_archived(&acknowledged, number).await;
                    }
                }
            };
            tokio::join!(push, receive);
        };
        Box::pin(cut_off_after(turns, work)).await;
    }

    /// A segment counts as archived from now on: the required repositories must have it.
    async fn note_archived(&self, acknowledged: &Mutex<BTreeSet<u64>>, number: u64) {
        let mut has = BTreeSet::new();
        for (name, _) in &self.stores {
            if self.stored_segment(name, number).await {
                has.insert(name.as_str());
            }
        }
        let names = self.stores.iter().map(|(name, _)| name.as_str());
        assert!(
            self.policy.are_met(names, |name| has.contains(name)),
            "seed {}: segment {number} counts as archived, and only {has:?} have it ({:?})",
            self.seed,
            self.policy
        );
        acknowledged.lock().unwrap().insert(number);
    }

    /// Whether a store has a segment, whole: asked past its faults.
    async fn stored_segment(&self, name: &str, number: u64) -> bool {
        let (_, store) = self.stores.iter().find(|(other, _)| other == name).unwrap();
        let clock: SharedClock = Arc::<ManualClock>::clone(&self.clock);
        let (store, clock_of_store) = (Some(store.without_faults()), Arc::clone(&clock));
        let options = RepositoryOptions { store, clock: clock_of_store, ..RepositoryOptions::new() };
        let location = RepositoryLocation { name: name.to_owned(), url: format!("test://{name}"), options };
        let settings =
            VaultSettings { places: vec![location], key: None, level: CompressionLevel::Fixed(1), threads: 1, clock };
        let vault = Arc::new(Vault::open(settings).await.unwrap());
        let (segment, bytes) = wal(number);
        Archive::new(vault, "main".parse().unwrap()).segment(segment).await.unwrap() == Some(bytes)
    }

    /// All stores answer; a process runs until each has everything.
    async fn settle(&mut self) {
        for (_, store) in &self.stores {
            store.set_down(false);
            store.fail_one_in(0, 1);
        }
        let archive = self.open().await.unwrap();
        let followers = Followers::start(&archive, self.state.path());
        for number in self.slot()..=SEGMENTS {
            assert_eq!(store(&archive, &followers, number).await, Some(number), "seed {}", self.seed);
        }
        let deadline = self.clock.elapsed() + Duration::from_secs(24 * 3600);
        for number in 1..=SEGMENTS {
            for (name, _) in &self.stores {
                while !self.stored_segment(name, number).await {
                    assert!(self.clock.elapsed() < deadline, "seed {}: {name} never gets {number}", self.seed);
                    self.clock.sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

fn wal(number: u64) -> (crate::postgres::format::segment::SegmentName, Bytes) {
    segment(7, number, format!("segment {number}").as_bytes(), 9)
}

/// A segment on its way as the receiver sends it; its number once it is archived.
async fn store(archive: &Arc<Archive>, followers: &Followers, number: u64) -> Option<u64> {
    let (name, bytes) = wal(number);
    let prepared = prepare_segment(archive, name, &bytes, CompressionLevel::Fixed(1), 1).unwrap();
    loop {
        match followers.store(prepared.clone()).await {
            Ok(_) => return Some(number),
            Err(error) if error.may_pass() => {
                archive.vault().clock().sleep(Duration::from_secs(1)).await;
            }
            Err(error) => panic!("segment {number} is refused: {error}"),
        }
    }
}

/// Drops a future after so many turns of the scheduler, whether it does anything or waits.
async fn cut_off_after(turns: u64, work: impl Future<Output = ()>) {
    let over = async {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = over => {}
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "more seeds are asked for by hand")]
fn nothing_archived_is_ever_lacking_and_every_repository_gets_everything() {
    let seeds = std::env::var("WALKEEP_MODEL_SEEDS").ok().map_or(DEFAULT_SEEDS, |text| text.parse().unwrap());
    let mut archived = 0;
    for seed in 1..=seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let run = async {
            let mut world = World::new(seed).await;
            for _ in 0..6 {
                world.change_weather();
                Box::pin(world.run_process()).await;
            }
            archived += world.acknowledged.lock().unwrap().len() as u64;
            world.settle().await;
        };
        let ended = runtime.block_on(async { real_timeout(LONGEST_RUN, Box::pin(run)).await });
        assert!(ended.is_some(), "seed {seed}: a segment is never stored, and its sender waits");
    }
    assert!(archived > seeds, "the processes are cut off before they archive anything: {archived}");
}

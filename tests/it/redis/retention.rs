//! `walkeep cleanup` of Redis instances: what goes, what stays restorable, and that it can be stopped anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use walkeep::redis::archive::stream::PreviousHistory;
use walkeep::redis::retention::{RetentionInput, RetentionSnapshot, decide_instance_retention};
use walkeep::redis::wire::ReplicationId;

use crate::support::process::{self, Finished, Orphan, Running, until};
use crate::support::redis::{QUICK_REDIS, RedisServer, debug, program, second_repository, site_for};
use crate::support::{Scratch, Site};

const PATIENCE: Duration = Duration::from_secs(60);

fn hour(hour: u32) -> Timestamp {
    Timestamp::from_second(i64::from(hour) * 3600).unwrap()
}

fn id(number: u8) -> ReplicationId {
    format!("{number:02x}").repeat(20).parse().unwrap()
}

/// A stretch of the model.
#[derive(Clone, Copy, Debug)]
struct Part {
    history: u8,
    first: u64,
    last: u64,
    /// The history before, if this begins one that goes on from it.
    follows: Option<u8>,
    ended: u32,
}

/// What a receiver and a schedule leave behind in some hundred hours.
#[derive(Clone, Debug, Default)]
struct Story {
    parts: Vec<Part>,
    snapshots: Vec<RetentionSnapshot>,
    now: u32,
}

#[derive(Clone, Debug)]
enum Step {
    /// Bytes come.
    Stream(u64),
    /// Another receiver has some of it already and goes on, and one that has less stores that late.
    Twice(u64),
    /// Nothing comes for so many hours.
    Wait(u32),
    Failover,
    /// The stream is lost: the same history goes on further, or another one begins.
    Gap(bool),
    /// Over replication, whole or not.
    Snapshot(bool),
    /// From a file that does not say what it is.
    Import,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1_u64..50).prop_map(Step::Stream),
        2 => (1_u64..50).prop_map(Step::Twice),
        4 => (1_u32..12).prop_map(Step::Wait),
        1 => Just(Step::Failover),
        1 => any::<bool>().prop_map(Step::Gap),
        4 => prop::bool::weighted(0.9).prop_map(Step::Snapshot),
        1 => Just(Step::Import),
    ];
    prop::collection::vec(step, 1..80)
}

impl Story {
    fn of(steps: &[Step]) -> Story {
        let mut story = Story::default();
        let (mut history, mut offset, mut follows) = (0, 0, None);
        for step in steps {
            story.now += 1;
            match step {
                Step::Stream(bytes) => {
                    let part = Part { history, first: offset, last: offset + bytes, follows, ended: story.now };
                    story.parts.push(part);
                    (offset, follows) = (part.last, None);
                }
                Step::Twice(bytes) => {
                    let last =
                        story.parts.last().copied().filter(|part| part.history == history && part.last == offset);
                    let part = |first, last| Part { history, first, last, follows: None, ended: story.now };
                    if let Some(Part { first, .. }) = last.filter(|part| part.first + 4 < part.last) {
                        story.parts.extend([part(first + 1, offset + bytes), part(first + 2, offset - 1)]);
                        offset += bytes;
                    }
                }
                Step::Wait(hours) => story.now += hours,
                Step::Failover if follows.is_none() => (history, follows) = (history + 1, Some(history)),
                Step::Failover => {}
                Step::Gap(true) => (offset, follows) = (offset + 100, None),
                Step::Gap(false) => (history, offset, follows) = (history + 1, 0, None),
                Step::Snapshot(whole) => story.snapshot(Some((id(history), offset)), (*whole, true)),
                Step::Import => story.snapshot(None, (true, false)),
            }
        }
        story
    }

    fn snapshot(&mut self, place: Option<(ReplicationId, u64)>, (whole, own): (bool, bool)) {
        let label = format!("{:05}", self.now);
        self.snapshots.push(RetentionSnapshot { label, at: hour(self.now), place, whole, own });
    }

    /// Which state of which history a restore to this hour gives: byte after byte from the newest snapshot that leads
    /// there.
    fn reach(&self, at: u32) -> Option<(ReplicationId, u64)> {
        self.snapshots.iter().rev().filter(|base| base.whole && base.at <= hour(at)).find_map(|base| {
            let (mut history, mut offset) = base.place?;
            let mut covered = base.at == hour(at);
            loop {
                let next = self.parts.iter().find(|part| {
                    let same = id(part.history) == history && part.first <= offset && part.last > offset;
                    let after = part.follows.is_some_and(|before| id(before) == history) && part.first == offset;
                    same || after
                });
                let Some(part) = next.filter(|part| part.ended <= at) else { break };
                (history, offset) = (id(part.history), part.last);
                covered |= part.ended == at;
            }
            covered.then_some((history, offset))
        })
    }

    fn without(&self, since: u32) -> Story {
        let mut stretches: BTreeMap<ReplicationId, BTreeMap<u64, Timestamp>> = BTreeMap::new();
        let mut follows = BTreeMap::new();
        for part in &self.parts {
            stretches.entry(id(part.history)).or_default().insert(part.first, hour(part.ended));
            if let Some(before) = part.follows {
                follows.insert(id(part.history), PreviousHistory { replid: id(before), offset: part.first });
            }
        }
        let (snapshots, unknown) = (self.snapshots.as_slice(), BTreeSet::new());
        let world = RetentionInput {
            snapshots,
            stretches: &stretches,
            follows: &follows,
            unknown: &unknown,
            since: hour(since),
        };
        let verdict = decide_instance_retention(world);
        let mut less = self.clone();
        less.snapshots.retain(|base| verdict.keep.contains_key(&base.label));
        less.parts.retain(|part| {
            // The program asks each for its end that would go if it ended where the next one begins.
            let next = stretches[&id(part.history)].range(part.first + 1..).next().map(|(first, _)| *first);
            let goes = |end| verdict.may_remove(id(part.history), end, hour(part.ended));
            !(goes(next) && goes(Some(part.last)))
        });
        less
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_moment_of_the_window_stays_as_restorable_as_it_was(steps in steps(), days in 0_u32..5) {
        let story = Story::of(&steps);
        let since = story.now.saturating_sub(days * 24);
        let less = story.without(since);
        for at in since..=story.now {
            prop_assert_eq!(less.reach(at), story.reach(at), "hour {} of {}", at, story.now);
        }
        // Cleaned again, nothing more goes.
        let again = less.without(since);
        prop_assert_eq!((again.parts.len(), again.snapshots.len()), (less.parts.len(), less.snapshots.len()));
        // And what is left is not everything: of two that lead to the same, the older one goes.
        let old = less.snapshots.iter().filter(|base| base.whole && base.at < hour(since.saturating_sub(1)));
        let mut places = old.map(|base| base.place.map(|(history, _)| history)).collect::<Vec<_>>();
        places.sort_unstable();
        let all = places.len();
        places.dedup();
        prop_assert_eq!(places.len(), all, "{:?}", less.snapshots);
        // What was read from a file takes the place of none that the instance sent.
        let own = |story: &Story| story.snapshots.iter().rfind(|base| base.whole && base.own).map(|base| base.at);
        prop_assert_eq!(own(&less), own(&story));
    }
}

/// A server that is followed now and then, in a past that the program's clock and the files' dates tell of.
struct Rig {
    server: RedisServer,
    site: Site,
    second: PathBuf,
}

fn days(days: i32) -> SignedDuration {
    SignedDuration::from_hours(i64::from(days) * 24)
}

impl Rig {
    /// With a second repository that keeps for longer.
    fn start() -> Self {
        let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
        let site = site_for(&server);
        let second = second_repository(&site, "retention = \"37d\"");
        Self { server, site, second }
    }

    /// The program with its clock set back.
    fn ago(&self, days: i32, arguments: &[&str]) -> Command {
        let mut command = process::command("env", Orphan::Kill);
        command.args(["LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME_DISABLE_SHM=1"]);
        command.arg(format!("FAKETIME=-{days}d")).arg(env!("CARGO_BIN_EXE_walkeep")).args(arguments);
        command.env("WALKEEP_CONFIG", self.site.config());
        command
    }

    /// Follows the server, writes, and takes a snapshot, all of it so many days ago; then the moment and the server's
    /// digest.
    fn day(&self, ago: i32) -> (Timestamp, String) {
        let before = self.all();
        let log = self.site.path().join(format!("receive{ago}.log"));
        let mut receiver = Running::start(self.ago(ago, &["receive", "cache", "-v"]), &log);
        let following = until(PATIENCE, || receiver.output().contains("following the stream").then_some(()));
        assert!(following.is_some(), "{}", receiver.output());
        self.write(ago);
        process::run(self.ago(ago, &["backup", "redis"])).expect_ok();
        self.write(ago + 1000);
        // A moment after the last byte had come, and before the receiver ended.
        self.acknowledged(&receiver);
        let moment = (Timestamp::now() - days(ago), self.server.digest());
        std::thread::sleep(Duration::from_millis(50));
        self.write(ago + 2000);
        self.acknowledged(&receiver);
        let based = until(PATIENCE, || self.has_base().then_some(()));
        assert!(based.is_some(), "{}", receiver.output());
        assert!(receiver.terminate().success(), "{}", receiver.output());
        for path in self.all().difference(&before) {
            let file = fs::File::options().append(true).open(path).unwrap();
            file.set_modified(SystemTime::from(Timestamp::now() - days(ago))).unwrap();
        }
        moment
    }

    fn has_base(&self) -> bool {
        !self.objects("snapshot").is_empty()
    }

    fn write(&self, round: i32) {
        self.server.feed(&format!("SET round {round}\nRPUSH list {round}\nSELECT 3\nHSET h f{round} x\nSELECT 0\n"));
    }

    fn acknowledged(&self, receiver: &Running) {
        let done = until(PATIENCE, || {
            let replicas = self.server.ask(&["INFO", "replication"]);
            let online = replicas.lines().filter(|line| line.starts_with("slave") && line.contains("state=online"));
            let acked = online.filter_map(|line| line.split("offset=").nth(1)?.split(',').next()?.parse::<u64>().ok());
            (acked.max() >= Some(self.server.offset())).then_some(())
        });
        assert!(done.is_some(), "not acknowledged\n{}", receiver.output());
    }

    fn objects(&self, folder: &str) -> BTreeSet<PathBuf> {
        files(&self.site.repository().join("cache").join(folder))
    }

    fn all(&self) -> BTreeSet<PathBuf> {
        files(&self.site.repository()).into_iter().chain(files(&self.second)).collect()
    }

    fn cleanup(&self, more: &[&str]) -> Finished {
        self.site.walkeep(&[&["cleanup"], more].concat())
    }

    /// The digest of a server that starts from the state at this moment.
    fn restored(&self, time: Timestamp) -> String {
        let scratch = Scratch::new();
        let dir = scratch.directory("redis").display().to_string();
        let (time, program) = (time.to_string(), program(QUICK_REDIS, "redis-server").display().to_string());
        // Days on which nobody received are not known to have been quiet, though here they were.
        let words = [
            &["restore", "redis", "--dir", &dir, "--target-time", &time, "--nearest"][..],
            &["--redis-server", &program, "--json"],
        ];
        let words = words.concat();
        let report = self.site.walkeep(&words).json();
        let start = report["start"].as_array().expect("options").iter().map(|word| word.as_str().expect("a word"));
        let options: Vec<&str> = start.chain(debug(QUICK_REDIS)).collect();
        RedisServer::start(QUICK_REDIS, &options).digest()
    }

    fn verify(&self, when: &str) {
        let verified = self.site.walkeep(&["verify"]);
        assert_eq!(verified.code, Some(0), "{when}: {}{}", verified.stdout, verified.stderr);
    }
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { [path].into() }).collect()
}

#[test]
fn what_no_moment_needs_goes_and_every_moment_comes_back() {
    let rig = Rig::start();
    let mut moments: Vec<(Timestamp, String)> = [40, 35, 32, 20, 10].iter().map(|ago| rig.day(*ago)).collect();
    // Between two days on which the server was followed, the state is that of the end of the first.
    let (between, _) = (Timestamp::now() - days(25), ());
    moments.push((between, rig.restored(between)));
    let (before, labels) = (rig.all(), rig.objects("snapshot"));
    let labels: Vec<String> =
        labels.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    // The receiver's own first one, and one each day.
    assert_eq!(labels.len(), 6, "{labels:?}");
    rig.verify("before");

    let said = rig.cleanup(&["30", "--dry-run"]).expect_ok();
    for words in ["would go", "serves the window's beginning", "made within the window", labels[0].as_str()] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(rig.all(), before, "it was only said");

    // By its own retention, the second one alone; then both.
    let said = rig.cleanup(&[]).expect_ok();
    assert!(said.contains("cache in repository local: no retention is configured"), "{said}");
    assert_eq!(
        files(&rig.second.join("cache/snapshot")).len(),
        5,
        "of the two of the day before its window the older one"
    );
    assert_eq!(rig.objects("snapshot").len(), 6, "{said}");
    let report = rig.cleanup(&["30", "--json"]).json();
    let local = &report["instances"][0]["repositories"][0];
    let kept: Vec<&str> = local["snapshots"].as_array().unwrap().iter().filter_map(|s| s["kept"].as_str()).collect();
    assert_eq!(kept, ["anchor", "young", "young"], "{report}");
    assert!(local["stream"]["objects"].as_u64().unwrap() >= 2, "{report}");
    let left: Vec<String> = labels.iter().skip(3).cloned().collect();
    for folder in [rig.objects("snapshot"), files(&rig.second.join("cache/snapshot"))] {
        let names: Vec<String> =
            folder.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, left);
    }
    let parts: BTreeSet<String> = rig
        .objects("rdb")
        .iter()
        .map(|path| path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(parts, left.iter().cloned().collect(), "parts of what went are older than the grace");
    rig.verify("after");
    for (time, digest) in &moments[3..] {
        assert_eq!(rig.restored(*time), *digest, "{time}");
    }
    // What lies before the window may be gone, and the plan says so.
    let gone = rig.site.walkeep(&["plan", "redis", "--target-time", &moments[0].0.to_string()]).expect_code(3);
    assert!(gone.stdout.contains("before the first snapshot"), "{}", gone.stdout);
    let again = rig.all();
    rig.cleanup(&["30"]).expect_ok();
    assert_eq!(rig.all(), again, "nothing more to do");
    // A repository that has lost everything is missed, whatever the other one has.
    let (second, away) = (rig.second.join("cache"), rig.second.join("away"));
    fs::rename(&second, &away).unwrap();
    let empty = rig.site.walkeep(&["verify", "cache"]).expect_code(6);
    assert!(empty.stdout.contains("missing  in second: all of cache"), "{}", empty.stdout);
    fs::rename(&away, &second).unwrap();
    // The receiver goes on where it was.
    let (time, digest) = rig.day(0);
    assert_eq!(rig.restored(time), digest);
    assert!(!fs::read_to_string(rig.site.path().join("receive0.log")).unwrap().contains("gap"));
}

/// Killed at any moment and run again, it ends where one run would have; and what it leaves meanwhile is whole.
#[test]
fn it_can_be_killed_anywhere() {
    let rig = Rig::start();
    let moments: Vec<(Timestamp, String)> =
        [60, 57, 54, 51, 48, 45, 42, 39, 36, 33, 10].iter().map(|ago| rig.day(*ago)).collect();
    let mut killed = 0;
    let mut counts = BTreeSet::new();
    for n in 0..25_u64 {
        let mut command = rig.site.command();
        command.args(["cleanup", "30"]);
        let mut run = Running::start(command, &rig.site.path().join(format!("run{n}.log")));
        std::thread::sleep(Duration::from_millis(3 * n));
        if run.ended().is_none() {
            run.kill9();
            killed += 1;
        }
        counts.insert(rig.all().len());
        rig.verify(&format!("after {n}"));
    }
    println!("{killed} of 25 killed, {counts:?} objects");
    rig.cleanup(&["30"]).expect_ok();
    assert_eq!(rig.objects("snapshot").len(), 2);
    let left = rig.all();
    rig.cleanup(&["30"]).expect_ok();
    assert_eq!(rig.all(), left, "nothing more to do");
    rig.verify("at the end");
    let (time, digest) = moments.last().unwrap();
    assert_eq!(rig.restored(*time), *digest);
}

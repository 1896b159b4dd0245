//! A Redis that is busy without a pause, restored to random moments: what a stock server has that starts from what was
//! written is what the clients' own record says, replayed into an empty server of the same version.
//!
//! Nobody knows at what time exactly a server did something; but its client knows when it had not asked yet, and when
//! the change had reached the receiver: another client asks the server with `WAIT` whether all that was done before is
//! acknowledged, and the receiver reads its clock before it acknowledges. So for a time T everything is in the restored
//! state whose acknowledgement was seen 10 ms before T, which walkeep takes at most to note what has come, and nothing
//! that was asked for after T. All clocks are the one of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::Value;

use super::workload::{Client, Record, Reply, Worker};
use crate::support::process::until;
use crate::support::redis::{RedisServer, debug, program, site_for};
use crate::support::scratch::give;
use crate::support::{Running, Scratch, Site};

const PATIENCE: Duration = Duration::from_secs(60);
/// What `restore all` and docs/operations.md say: the receiver takes so long at the most to note the time of what it
/// has read.
const NOTED: i64 = 10_000;
const MOMENTS: usize = 20;
/// The first databases of the two clients.
const BASES: [u32; 2] = [0, 4];
/// Where whoever asks for acknowledgements writes.
const ASIDE: &str = "15";

/// How many units of each client had been acknowledged at a time.
struct Acknowledged {
    at: i64,
    lens: [u64; 2],
}

/// What came of the busy time.
struct Busy {
    records: Vec<Record>,
    acknowledged: Vec<Acknowledged>,
    /// Between them all moments can be restored,
    from: i64,
    to: i64,
    /// but for those when nobody received.
    away: (i64, i64),
}

/// Tells the others to stop even when a test fails.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

fn words(text: &str) -> Vec<Vec<u8>> {
    text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

/// Asks again and again how far all has been acknowledged.
fn ask_how_far(server: &RedisServer, done: &[AtomicU64; 2], stop: &AtomicBool) -> Vec<Acknowledged> {
    let mut client = Client::connect(&server.socket());
    client.ask(&words(&format!("SELECT {ASIDE}")));
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let lens = [0, 1].map(|nth: usize| done[nth].load(Ordering::SeqCst));
        client.ask(&words("SET aside x"));
        if client.ask(&words("WAIT 1 500")) == Reply::Number(1) {
            acknowledged.push(Acknowledged { at: now(), lens });
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    acknowledged
}

fn receiving(site: &Site, name: &str, says: &str) -> Running {
    let receiver = site.spawn(name, &["receive", "cache", "-v"]);
    let begun = until(PATIENCE, || receiver.output().contains(says).then_some(()));
    assert!(begun.is_some(), "{}", receiver.output());
    receiver
}

/// What was done so long before a moment is there. Less if the machine has time, but that is not to be tested on one
/// that is busy.
const SECOND: i64 = 1_000_000;

/// Two clients at work all the time. Meanwhile the receiver begins, another snapshot is taken, and the receiver ends
/// and begins again.
fn busy(server: &RedisServer, site: &Site) -> (Busy, Running) {
    let (stop, done) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    std::thread::scope(|scope| {
        let guard = Stop(&stop);
        let (stop, done) = (&stop, &done);
        let workers = [0, 1].map(|nth: usize| {
            let worker = Worker::new(&server.socket(), BASES[nth], &server.version);
            scope.spawn(move || worker.run(stop, &done[nth]))
        });
        let asking = scope.spawn(move || ask_how_far(server, done, stop));
        std::thread::sleep(Duration::from_millis(200));
        let mut receiver = receiving(site, "receive", "a snapshot to begin with is stored");
        let from = now();
        std::thread::sleep(Duration::from_millis(700));
        site.walkeep(&["backup", "redis"]).expect_ok();
        std::thread::sleep(Duration::from_millis(300));
        // What came meanwhile would live that much longer from Redis 6, which says no times, as it would on any
        // replica.
        let left = now();
        if server.version != "6.2" {
            assert!(receiver.terminate().success(), "{}", receiver.output());
            receiver = receiving(site, "again", "following the stream");
        }
        let away = (left, now());
        std::thread::sleep(Duration::from_millis(700));
        let to = now();
        std::thread::sleep(Duration::from_millis(50));
        drop(guard);
        let records = workers.map(|worker| worker.join().expect("a record")).into();
        (Busy { records, acknowledged: asking.join().expect("acknowledgements"), from, to, away }, receiver)
    })
}

/// A server on these files that lets nothing expire while it is looked at: it takes itself for a replica, of a master
/// that is not there.
fn at_rest(version: &str, options: &[String]) -> RedisServer {
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    all.extend(debug(version));
    all.extend(["--replicaof", "127.0.0.1", "1"]);
    let server = RedisServer::start(version, &all);
    server.await_loaded();
    // Not before: what a writable replica was told to expire, it does (`rememberSlaveKeyWithExpire`).
    server.ask(&["CONFIG", "SET", "replica-read-only", "no"]);
    server
}

/// What the record says: so many units of each client, in a server that began empty.
fn recorded(version: &str, records: &[Record], lens: [usize; 2]) -> (RedisServer, Scratch) {
    let scratch = Scratch::new();
    let dir = scratch.directory("recorded");
    let mut file = Vec::new();
    records.iter().zip(lens).for_each(|(record, len)| record.replay(len, &mut file));
    let path: PathBuf = dir.join("appendonly.aof");
    std::fs::write(&path, file).expect("a file");
    give(&path);
    let options = ["--dir", &dir.display().to_string(), "--appendonly", "yes"].map(str::to_owned);
    (at_rest(version, &options), scratch)
}

/// What the digest leaves out: when keys expire, who has read what of streams. How much of a stream a group has read in
/// all (`entries-read`) is an estimate that a replica does not get.
const LEFT_OUT: &str = "local out = {} \
    for _, key in ipairs(redis.call('KEYS', '*')) do \
      local left = redis.call('PTTL', key) \
      if left >= 0 and not string.find(key, ':') then \
        local t = redis.call('TIME') \
        table.insert(out, string.format('expires %s %.0f', key, t[1] * 1000 + math.floor(t[2] / 1000) + left)) \
      end \
      if redis.call('TYPE', key).ok == 'stream' then \
        for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do \
          local said = {'group', key} \
          for n = 1, #group, 2 do \
            local name = group[n] \
            if name == 'name' or name == 'pending' or name == 'last-delivered-id' then table.insert(said, group[n + \
            1]) end \
          end \
          table.insert(out, table.concat(said, ' ')) \
          for _, p in ipairs(redis.call('XPENDING', key, group[2], '-', '+', 100000)) do \
            table.insert(out, table.concat({'pending', key, group[2], p[1], p[2], tostring(p[4])}, ' ')) \
          end \
        end \
      end \
    end \
    table.sort(out) return out";

fn left_out(server: &RedisServer) -> Vec<String> {
    let dbs = BASES.iter().flat_map(|base| *base..base + 4);
    let lines = |db: u32| {
        let said = server.ask(&["-n", &db.to_string(), "EVAL", LEFT_OUT, "0"]);
        said.lines().map(|line| format!("{db} {line}")).collect::<Vec<_>>()
    };
    dbs.flat_map(lines).collect()
}

/// Both say the same; times of expiry may differ by what a client did not know of them.
fn alike(restored: &[String], recorded: &[String], tolerance: i64) -> Result<(), String> {
    let expires = |line: &String| {
        let (key, at) = line.rsplit_once(' ').filter(|(key, _)| key.contains(" expires "))?;
        Some((key.to_owned(), at.parse::<i64>().expect("a time")))
    };
    let others = |lines: &[String]| -> BTreeSet<String> {
        lines.iter().filter(|line| expires(line).is_none()).cloned().collect()
    };
    let (one, other) = (others(restored), others(recorded));
    if one != other {
        return Err(format!("{:?}", one.symmetric_difference(&other).collect::<Vec<_>>()));
    }
    let expire = |lines: &[String]| -> BTreeMap<String, i64> { lines.iter().filter_map(expires).collect() };
    let (one, other) = (expire(restored), expire(recorded));
    let near = |key: &String, at: i64| other.get(key).is_some_and(|other| (at - other).abs() <= tolerance);
    match one.len() == other.len() && one.iter().all(|(key, at)| near(key, *at)) {
        true => Ok(()),
        false => Err(format!("{one:?} instead of {other:?}")),
    }
}

/// One version's restores.
struct Restores<'r> {
    version: &'r str,
    site: &'r Site,
    busy: &'r Busy,
    tolerance: i64,
}

impl Restores<'_> {
    /// Any moment but those when there was no receiver, of which nobody can say what was there: they are refused.
    fn random(&self, random: &Mutex<SmallRng>) -> i64 {
        let first = self.busy.acknowledged[0].at.max(self.busy.from) + NOTED;
        loop {
            let micros = random.lock().expect("random").random_range(first..self.busy.to);
            let text = Timestamp::from_microsecond(micros).expect("a time").to_string();
            let plan = self.site.walkeep(&["plan", "redis", "--target-time", &text, "--json"]);
            if plan.code == Some(0) {
                return micros;
            }
            let plan: Value = serde_json::from_str(&plan.expect_code(3).stdout).expect("JSON");
            let told = |name: &str| plan[name].as_str().map(|text| text.parse::<Timestamp>().expect("a time"));
            let around = told("nearest_before").zip(told("nearest_after")).expect("what can be reached");
            let around = (around.0.as_microsecond(), around.1.as_microsecond());
            let away = self.busy.away;
            assert!(around.0 <= micros && micros < around.1, "{text}: {plan}");
            // A machine that is busy may hold the receiver up, too, and for so long that it says so.
            let was_away = self.version != "6.2" && around.0 < away.1 && away.0 < around.1;
            assert!(was_away || around.1 - around.0 >= SECOND, "{text}: {plan}, away {away:?}");
        }
    }

    fn check(&self, micros: i64) {
        let (version, records) = (self.version, &self.busy.records);
        let time = Timestamp::from_microsecond(micros).expect("a time");
        let scratch = Scratch::new();
        let restored = self.restored(&scratch, time);
        let lens: Vec<Vec<usize>> = records
            .iter()
            .map(|record| {
                let number = restored.ask(&["-n", &record.base.to_string(), "GET", "seq"]);
                record.lengths(if number.is_empty() { 0 } else { number.parse().expect("a number") })
            })
            .collect();
        restored.ask(&["-n", ASIDE, "DEL", "aside"]);
        assert!(until(PATIENCE, || (now() > micros + self.tolerance * 1000).then_some(())).is_some());
        // What may have expired by then is left out of the comparison; the server says that it is not there, whether
        // its end came with the stream or not.
        let expired = |nth: usize| lens[nth].iter().map(move |len| records[nth].expired(*len, micros / 1000));
        let surely = |nth: usize| expired(nth).reduce(|all, these| &all & &these).expect("a length");
        let seen: Vec<String> = (0..2).flat_map(surely).filter(|key| !key.starts_with("fields:")).collect();
        assert_eq!(all_dbs(&restored, "EXISTS", &seen), 0, "{version} at {time}");
        let expired: BTreeSet<String> = (0..2).flat_map(expired).flatten().collect();
        let expired: Vec<String> = expired.into_iter().collect();
        all_dbs(&restored, "DEL", &expired);
        let (digest, others) = (restored.digest(), self.left_out(&restored));
        let mut why = Vec::new();
        // A unit that wrote no number may be there or not, and not each of them changes what is seen: one number of
        // units must fit in all.
        for lens in lens[0].iter().flat_map(|one| lens[1].iter().map(|other| [*one, *other])) {
            let found = self.in_time(lens, micros).and_then(|()| {
                let (reference, _files) = recorded(version, records, lens);
                all_dbs(&reference, "DEL", &expired);
                match reference.digest() == digest {
                    true => alike(&others, &self.left_out(&reference), self.tolerance),
                    false => Err("another digest".to_owned()),
                }
            });
            match found {
                Ok(()) => return,
                Err(other) => why.push((lens, other)),
            }
        }
        let (reference, _files) = recorded(version, records, why[0].0);
        let keys = different(&restored, &reference);
        panic!("{version} at {time}: what was restored is not what the record says: {why:?}, first {keys:?}")
    }

    /// What the digest does not see.
    fn left_out(&self, server: &RedisServer) -> Vec<String> {
        let mut lines = left_out(server);
        if self.version != "6.2" {
            lines.push(format!("functions: {}", server.ask(&["FUNCTION", "LIST", "WITHCODE"])));
        }
        lines
    }

    /// Nothing later, and nothing missing.
    fn in_time(&self, lens: [usize; 2], micros: i64) -> Result<(), String> {
        let before = self.busy.acknowledged.iter().rev().find(|acknowledged| acknowledged.at <= micros - NOTED);
        let before = before.expect("something was acknowledged").lens;
        for ((record, len), before) in self.busy.records.iter().zip(lens).zip(before) {
            if (len as u64) < before {
                return Err(format!("{before} units were acknowledged"));
            }
            // Whatever the receiver says: to the second is what is promised.
            if let Some(missing) = record.units.get(len).filter(|next| next.answered < micros - SECOND) {
                return Err(format!("done {} µs before", micros - missing.answered));
            }
            if let Some(late) = record.units[..len].last().filter(|last| last.asked > micros) {
                return Err(format!("asked for {} µs later", late.asked - micros));
            }
        }
        Ok(())
    }

    fn restored(&self, scratch: &Scratch, time: Timestamp) -> RedisServer {
        let (dir, server) = (scratch.directory("redis"), program(self.version, "redis-server"));
        let (dir, server, text) = (dir.display().to_string(), server.display().to_string(), time.to_string());
        let words = ["restore", "redis", "--dir", &dir, "--target-time", &text, "--redis-server", &server, "--json"];
        let report: Value = self.site.walkeep(&words).json();
        let told = |name: &str| report["plan"][name].as_str().map(|text| text.parse::<Timestamp>().expect("a time"));
        let (at, next) = (told("at").expect("a time"), told("before").expect("a time"));
        assert!(at <= time && time < next, "{at} <= {time} < {next}");
        let options = report["start"].as_array().expect("options").iter();
        let options: Vec<String> = options.map(|word| word.as_str().expect("a word").to_owned()).collect();
        at_rest(self.version, &options)
    }
}

/// Keys of which two servers have different things, to be looked into.
fn different(one: &RedisServer, other: &RedisServer) -> Vec<String> {
    let keys = |server: &RedisServer, db: u32| {
        let all = server.ask(&["-n", &db.to_string(), "KEYS", "*"]);
        let digest = |key: &str| server.ask(&["-n", &db.to_string(), "DEBUG", "DIGEST-VALUE", key]);
        all.lines()
            .filter(|key| !key.contains(':'))
            .map(|key| format!("{db} {key} {}", digest(key)))
            .collect::<BTreeSet<String>>()
    };
    (0..16).flat_map(|db| keys(one, db).symmetric_difference(&keys(other, db)).cloned().collect::<Vec<_>>()).collect()
}

/// The sum of what a command answers in the databases where things are brief.
fn all_dbs(server: &RedisServer, verb: &str, keys: &[String]) -> u64 {
    let mut client = Client::connect(&server.socket());
    let mut sum = 0;
    for db in BASES.iter().flat_map(|base| [*base, base + 1]) {
        client.ask(&words(&format!("SELECT {db}")));
        for some in keys.chunks(500) {
            let mut command = words(verb);
            command.extend(some.iter().map(|key| key.as_bytes().to_vec()));
            let Reply::Number(number) = client.ask(&command) else { panic!("no number") };
            sum += u64::try_from(number).expect("a count");
        }
    }
    sum
}

fn random_moments(version: &str) {
    // What comes while there is no receiver must not be too much for the backlog, or there is a gap, and rightly.
    let server = RedisServer::start(version, &[debug(version), vec!["--repl-backlog-size", "256mb"]].concat());
    let site = site_for(&server);
    let (busy, receiver) = busy(&server, &site);
    let last = Timestamp::from_microsecond(busy.to).expect("a time").to_string();
    let covered = || {
        let plan = site.walkeep(&["plan", "redis", "--target-time", &last]);
        (plan.code == Some(0) && plan.stdout.contains("the next commands came at")).then_some(())
    };
    assert!(until(PATIENCE, covered).is_some(), "{}", receiver.output());
    let units = busy.records.iter().map(|record| record.units.len()).sum::<usize>();
    println!("{version}: {units} units, {} acknowledgements", busy.acknowledged.len());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    // What a client does not know of when something was done, and the receiver of when it had been.
    let unknown = busy.records.iter().flat_map(|record| &record.units).map(|unit| unit.answered - unit.asked).max();
    let delayed = busy.acknowledged.windows(2).map(|pair| pair[1].at - pair[0].at).max().filter(|_| version == "6.2");
    let tolerance = (unknown.expect("units") + 2 * delayed.unwrap_or(0)) / 1000 + 100;
    let restores = Restores { version, site: &site, busy: &busy, tolerance };
    let random = Mutex::new(SmallRng::seed_from_u64(now().unsigned_abs()));
    let left = AtomicU64::new(MOMENTS as u64);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                    restores.check(restores.random(&random));
                }
            });
        }
    });
}

#[test]
fn a_busy_redis_6_comes_back_to_random_moments() {
    random_moments("6.2");
}

#[test]
fn a_busy_redis_7_comes_back_to_random_moments() {
    random_moments("7.0");
}

#[test]
fn a_busy_redis_8_comes_back_to_random_moments() {
    random_moments("8.2");
}

#[test]
fn a_busy_valkey_comes_back_to_random_moments() {
    random_moments("valkey9");
}

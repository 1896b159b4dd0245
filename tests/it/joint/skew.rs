//! Servers whose clocks are off by what libfaketime sets: how far they are is found, kept with what was archived, in
//! the bound of a joint restore, and warned of. The client that writes notes the times by this machine's clock, which
//! is the receiver's.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use walkeep::base::clock::{Clock as _, ClockOffset, SystemClock};
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::wire::{
    Conninfo, LibpqEnvironment, ReplicationConnection, StandbyStatus, StartedReplication, WalStreamEvent,
};

use crate::postgres::end_to_end::started;
use crate::support::process::until;
use crate::support::redis::RedisServer;
use crate::support::{Cluster, Options, QUICK, Running, Scratch, Site, majors};

const PATIENCE: Duration = Duration::from_secs(60);
/// Debian's build asks the time before libfaketime can answer (jemalloc), and does not start with it.
const REDIS: &str = "8.2";
/// What Redis is off by, in seconds.
const OF_REDIS: i64 = 3;

/// When a number was written into both, by this machine's clock.
struct Written {
    began: Timestamp,
    over: Timestamp,
}

struct Joint {
    cluster: Cluster,
    redis: RedisServer,
    site: Site,
    receivers: Vec<Running>,
    _scratch: Scratch,
}

impl Joint {
    /// PostgreSQL off by so many seconds.
    fn start(seconds: i64, settings: &[(&str, &str)], streams: bool) -> Joint {
        let scratch = Scratch::new();
        let clock = scratch.file("clock", &format!("{seconds:+}s\n"));
        let mut options = Options::default().segment_size_mb(1).clock(clock);
        for (name, value) in settings {
            options = options.set(name, value);
        }
        let cluster = Cluster::start(QUICK, options);
        let redis = RedisServer::start_with_clock(REDIS, Some(&format!("{OF_REDIS:+}s")), &[]);
        let site = Site::for_cluster(&cluster);
        let text = std::fs::read_to_string(site.config()).expect("the configuration");
        site.scratch().file("walkeep.toml", &format!("{text}\n[redis.cache]\nurl = \"{}\"\n", redis.url()));
        let mut receivers = vec![site.spawn("cache", &["receive", "cache", "-v"])];
        let based = || receivers[0].output().contains("a snapshot to begin with is stored").then_some(());
        assert!(until(PATIENCE, based).is_some(), "no snapshot\n{}", receivers[0].output());
        if streams {
            receivers.push(site.spawn("main", &["receive", "main"]));
            cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        } else {
            cluster.set("archive_command", &site.archive_command());
        }
        cluster.sql("create table ledger (n int)");
        site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        Joint { cluster, redis, site, receivers, _scratch: scratch }
    }

    /// A number every 20 ms for so long.
    fn work(&self, span: Duration) -> Vec<Written> {
        let conninfo = self.cluster.socket_conninfo();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.expect("connect");
            tokio::spawn(connection);
            let start = std::time::Instant::now();
            let mut written = Vec::new();
            while start.elapsed() < span {
                let began = Timestamp::now();
                let n = written.len() + 1;
                client.batch_execute(&format!("insert into ledger values ({n})")).await.expect("inserted");
                self.redis.ask(&["SET", "seq", &n.to_string()]);
                written.push(Written { began, over: Timestamp::now() });
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            written
        })
    }

    /// Until both can be restored to this moment.
    fn covered(&self, time: Timestamp) -> Value {
        let time = time.to_string();
        let plan = || self.site.walkeep(&["plan", "all", "--target-time", &time, "--json"]);
        let reachable = until(PATIENCE, || (plan().code == Some(0)).then_some(()));
        assert!(reachable.is_some(), "{}", plan().stdout);
        plan().json()
    }
}

fn seconds(skew: &Value, name: &str) -> SignedDuration {
    SignedDuration::try_from_secs_f64(skew[name].as_f64().expect(name)).expect("a span")
}

/// With an offset that it reads from a file, as for PostgreSQL, libfaketime is wrong by up to some milliseconds,
/// differently in each process; with none, and with one from the environment, it is exact. In microseconds.
const OF_FILE: i64 = 100_000;

/// What was set is in the interval, but for what libfaketime adds, and the interval is worth something.
fn holds(measured: &Value, set: i64, error: i64) {
    let (low, high) = (measured["low"].as_i64().expect("low"), measured["high"].as_i64().expect("high"));
    println!("off by {set} s, measured {low} to {high} µs");
    assert!(low - error <= set * 1_000_000 && set * 1_000_000 <= high + error, "{set}: {measured}");
    assert!(high - low < 500_000, "{measured}");
}

fn check(off: i64) {
    let mut it = Joint::start(off, &[], true);
    let written = it.work(Duration::from_secs(14));
    it.cluster.sql("drop table ledger");
    it.redis.ask(&["FLUSHALL"]);
    // In the middle by this machine's clock PostgreSQL, or in the middle by PostgreSQL's clock this machine.
    let middle = written[written.len() / 2].over;
    let time = middle + SignedDuration::from_secs(off / 2);
    it.covered(time);
    // Another machine restores: what the receivers' machine had is gone.
    for receiver in &mut it.receivers {
        receiver.terminate();
    }
    std::fs::remove_dir_all(it.site.state_dir()).expect("removed");
    let (pgdata, redis_dir) = (it.site.path().join("pg"), it.site.path().join("redis"));
    let words = ["restore", "all", "--pgdata", &pgdata.display().to_string(), "--redis-dir"].map(str::to_owned);
    let mut words = words.to_vec();
    words.extend([redis_dir.display().to_string(), "--target-time".into(), time.to_string(), "--json".into()]);
    let server = crate::support::redis::program(REDIS, "redis-server").display().to_string();
    words.extend(["--redis-server".into(), server]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let report = it.site.walkeep(&words).json();
    let skew = &report["skew"];
    assert_eq!(skew["clocks_known"], true, "{report:#}");
    holds(&skew["postgres_clock"], off, OF_FILE);
    holds(&skew["redis_clock"], OF_REDIS, 0);

    let of_postgres: usize =
        started(QUICK, pgdata).sql("select coalesce(max(n), 0) from ledger").parse().expect("a number");
    let options = report["redis"]["start"].as_array().expect("options");
    let options: Vec<&str> = options.iter().map(|word| word.as_str().expect("a word")).collect();
    let of_redis = RedisServer::start(REDIS, &options);
    of_redis.await_loaded();
    let of_redis: usize = of_redis.ask(&["GET", "seq"]).parse().unwrap_or(0);

    let over = |moment: Timestamp| written.iter().take_while(|written| written.over <= moment).count();
    let began = |moment: Timestamp| written.iter().take_while(|written| written.began <= moment).count();
    // Where PostgreSQL comes to, by this machine's clock: the oracle is what was set.
    let (state, error) = (time - SignedDuration::from_secs(off), SignedDuration::from_micros(OF_FILE));
    let allowed = over(state - error)..=began(state + error);
    assert!(allowed.contains(&of_postgres), "{of_postgres} at {time}: {report:#}");
    // Where Redis comes to beside that: after the last number that PostgreSQL has had begun, and before the next was
    // over.
    let (behind, ahead) = (seconds(skew, "redis_behind_at_most_seconds"), seconds(skew, "redis_ahead_at_most_seconds"));
    let allowed = over(written[of_postgres - 1].began - behind)..=began(written[of_postgres].over + ahead);
    println!("{of_postgres} and {of_redis} of {}, behind {behind:#} or ahead {ahead:#}: {allowed:?}", written.len());
    assert!(allowed.contains(&of_redis), "{of_redis} beside {of_postgres}: {report:#}");
    // They are indeed that far apart, so a bound without the clocks would be wrong.
    let near = SignedDuration::from_secs(off.abs() - 1);
    assert!(!(over(state - near)..=began(state + near)).contains(&of_redis), "{of_redis} beside {of_postgres}");
}

#[test]
fn the_bound_has_in_it_how_far_postgresql_is_behind() {
    check(-5);
}

#[test]
fn the_bound_has_in_it_how_far_postgresql_is_ahead() {
    check(5);
}

#[test]
fn a_clock_that_is_off_is_warned_of() {
    let it = Joint::start(-5, &[], true);
    let warned = |nth: usize, what: &[&str]| {
        let said = || what.iter().any(|what| it.receivers[nth].output().contains(what)).then_some(());
        assert!(until(PATIENCE, said).is_some(), "{what:?}\n{}", it.receivers[nth].output());
    };
    // What was set, but for what is measured and for `OF_FILE`.
    warned(1, &["the server's clock is 4.9", "the server's clock is 5.0"]);
    warned(1, &["behind this machine's; times of commits are by the server's clock"]);
    warned(0, &["the server's clock is 2.9", "the server's clock is 3.0"]);
    warned(0, &["ahead of this machine's; keys expire by the server's clock"]);
    for (name, offs, direction) in [("main", ["4.9", "5.0"], "behind"), ("cache", ["2.9", "3.0"], "ahead of")] {
        let said = it.site.walkeep(&["check", name]).expect_ok();
        let line = said.lines().find(|line| line.contains(" clock ")).expect("a line on the clock");
        assert!(line.contains("note") && line.contains(direction), "{said}");
        assert!(offs.iter().any(|off| line.contains(off)), "{said}");
    }
    // When PostgreSQL's clock shows it, it is five seconds later.
    let time = it.work(Duration::from_secs(8))[20].over;
    it.covered(time);
    let said = it.site.walkeep(&["plan", "all", "--target-time", &time.to_string()]).expect_ok();
    println!("{said}");
    let words = said.split_whitespace().collect::<Vec<&str>>().join(" ");
    for part in ["behind the receiver's, asked every 10 s", "see to NTP on both machines"] {
        assert!(words.contains(part), "{part}: {said}");
    }
    assert!(words.contains("skew at most 5.") || words.contains("skew at most 4.9"), "{said}");
}

#[test]
fn nothing_is_known_of_wal_that_came_otherwise() {
    let it = Joint::start(0, &[("archive_mode", "on")], false);
    let time = it.work(Duration::from_secs(1))[10].over;
    it.cluster.switch_wal();
    let skew = &it.covered(time)["skew"];
    assert_eq!((&skew["clocks_known"], &skew["postgres_clock"]), (&false.into(), &Value::Null), "{skew:#}");
    let said = it.site.walkeep(&["plan", "all", "--target-time", &time.to_string()]).expect_ok();
    println!("{said}");
    let words = said.split_whitespace().collect::<Vec<&str>>().join(" ");
    for part in ["skew NOT KNOWN in full", "not known, so to be added: by how much the clock of main's server"] {
        assert!(words.contains(part), "{part}: {said}");
    }
    let said = it.site.walkeep(&["check", "main"]).expect_ok();
    assert!(said.lines().any(|line| line.contains("ok ") && line.contains(" clock ")), "{said}");
}

/// Of so many questions, the answers by which the server's clock is not this machine's.
async fn wrong(cluster: &Cluster, questions: usize) -> Vec<ClockOffset> {
    let info = Conninfo::parse(&cluster.socket_conninfo(), &LibpqEnvironment::new()).expect("a connection string");
    let mut connection = ReplicationConnection::connect(&info).await.expect("connect");
    let identity = connection.identify_system().await.expect("asked");
    let started = connection.start_physical(None, identity.flushed, identity.timeline).await.expect("started");
    let StartedReplication::Streaming(mut stream) = started else { panic!("the timeline has ended") };
    let clock = SystemClock::new();
    let mut wrong = Vec::new();
    for _ in 0..questions {
        let sent = clock.elapsed();
        let status = StandbyStatus { written: identity.flushed, flushed: identity.flushed, reply_wanted: true };
        stream.send_status(status, PgTime::from_timestamp(clock.now())).await.expect("sent");
        let keepalive = loop {
            match stream.next().await.expect("an event") {
                WalStreamEvent::Keepalive(keepalive) if !keepalive.reply_requested => break keepalive,
                WalStreamEvent::Keepalive(_) | WalStreamEvent::Wal(_) => {}
                WalStreamEvent::EndOfTimeline => panic!("the timeline has ended"),
            }
        };
        let came = clock.now();
        let shown = keepalive.sent_at.to_timestamp().expect("a time");
        let offset = ClockOffset::from_answer(shown, came, clock.elapsed() - sent);
        if !(offset.low..=offset.high).contains(&0) {
            wrong.push(offset);
        }
    }
    wrong
}

/// The server's clock is this machine's: every answer must say that it may be.
#[tokio::test]
async fn every_answer_of_every_major_holds_the_truth() {
    for major in majors() {
        let cluster = Cluster::start(major, Options::default());
        assert_eq!(wrong(&cluster, 200).await, [], "PostgreSQL {major}");
    }
}

/// What a connection for replication tells of the server, before and after it is promoted.
#[tokio::test]
async fn a_standby_of_every_major_says_that_it_is_one() {
    for major in majors() {
        let primary = Cluster::start(major, Options::default());
        let standby = primary.standby(Options::default());
        standby.wait_for("select pg_is_in_recovery()");
        let mut connections = Vec::new();
        for cluster in [&primary, &standby] {
            let info =
                Conninfo::parse(&cluster.socket_conninfo(), &LibpqEnvironment::new()).expect("a connection string");
            connections.push(ReplicationConnection::connect(&info).await.expect("connect"));
        }
        for (connection, expected) in connections.iter_mut().zip([false, true]) {
            assert_eq!(connection.is_in_recovery().await.expect("asked"), expected, "PostgreSQL {major}");
        }
        standby.promote();
        assert!(!connections[1].is_in_recovery().await.expect("asked"), "PostgreSQL {major}");
    }
}

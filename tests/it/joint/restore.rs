//! PostgreSQL and Redis to one moment: a shared sequence number, written into both by one client that notes by its own
//! clock when each write began and was over, is back in both within the bound that was printed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use crate::postgres::end_to_end::started;
use crate::support::disk::Disk;
use crate::support::installed::bin;
use crate::support::process::{self, Orphan, until};
use crate::support::redis::{QUICK_REDIS, RedisServer, free_port, program};
use crate::support::{Cluster, Options, QUICK, Running, Site};

const PATIENCE: Duration = Duration::from_secs(60);
const TARGETS: usize = 4;
const LAST: usize = 700;

/// Both servers, each with its receiver and a base.
struct Joint {
    cluster: Cluster,
    redis: RedisServer,
    site: Site,
    _receivers: [Running; 2],
}

impl Joint {
    fn start() -> Joint {
        let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let redis = RedisServer::start(QUICK_REDIS, &[]);
        let site = Site::for_cluster(&cluster);
        let text = std::fs::read_to_string(site.config()).expect("the configuration");
        site.scratch().file("walkeep.toml", &format!("{text}\n[redis.cache]\nurl = \"{}\"\n", redis.url()));
        let receivers = [site.spawn("main", &["receive", "main"]), site.spawn("cache", &["receive", "cache", "-v"])];
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        let based = || receivers[1].output().contains("a snapshot to begin with is stored").then_some(());
        assert!(until(PATIENCE, based).is_some(), "no snapshot\n{}", receivers[1].output());
        cluster.sql("create table ledger (n int)");
        site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        Joint { cluster, redis, site, _receivers: receivers }
    }

    fn work(&self) -> Vec<Written> {
        let socket = self.redis.socket();
        let conninfo = self.cluster.socket_conninfo();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.expect("connect");
            tokio::spawn(connection);
            let mut redis = UnixStream::connect(socket).expect("connect");
            let random = &mut SmallRng::seed_from_u64(4);
            let mut written = Vec::new();
            for n in 1..=LAST {
                let began = Timestamp::now();
                client.batch_execute(&format!("insert into ledger values ({n})")).await.expect("inserted");
                ask(&mut redis, &format!("SET seq {n}"), "+OK");
                // A second answer comes only after the first command has gone to the replicas
                // (`handleClientsWithPendingWrites`).
                ask(&mut redis, "ECHO x", "$1\r\nx");
                written.push(Written { began, over: Timestamp::now() });
                tokio::time::sleep(Duration::from_micros(random.random_range(0..8000))).await;
            }
            written
        })
    }

    /// Until both can be restored to this moment.
    fn covered(&self, time: Timestamp) {
        let time = time.to_string();
        let plan = || self.site.walkeep(&["plan", "all", "--target-time", &time]);
        let reachable = until(PATIENCE, || (plan().code == Some(0)).then_some(()));
        assert!(reachable.is_some(), "{}", plan().stdout);
    }
}

/// When a number was written into both, by the client's clock.
struct Written {
    began: Timestamp,
    over: Timestamp,
}

fn ask(redis: &mut UnixStream, command: &str, expected: &str) {
    redis.write_all(format!("{command}\r\n").as_bytes()).expect("asked");
    let mut answer = vec![0; expected.len() + 2];
    redis.read_exact(&mut answer).expect("answered");
    assert_eq!(String::from_utf8_lossy(&answer).trim_end(), expected);
}

fn is_empty(dir: &Path) -> bool {
    !dir.exists() || std::fs::read_dir(dir).expect("a folder").next().is_none()
}

#[test]
fn both_come_back_to_one_moment_within_the_bound() {
    let it = Joint::start();
    let written = it.work();
    it.cluster.sql("drop table ledger");
    it.redis.ask(&["FLUSHALL"]);
    it.cluster.sql("create table later (n int)");
    it.redis.ask(&["SET", "later", "1"]);
    it.cluster.switch_wal();
    let (first, last) = (written[0].over, written[LAST - 1].over);
    it.covered(last);
    let server = program(QUICK_REDIS, "redis-server").display().to_string();
    let random = &mut SmallRng::seed_from_u64(40);
    for nth in 0..TARGETS {
        let span = last.duration_since(first).as_micros();
        let micros = i64::try_from(random.random_range(0..span)).expect("a span");
        let time = first + SignedDuration::from_micros(micros);
        let dir = it.site.path();
        let (pgdata, redis_dir) = (dir.join(format!("pg{nth}")), dir.join(format!("redis{nth}")));
        let (pg_dir, cache_dir) = (pgdata.display().to_string(), redis_dir.display().to_string());
        let text = time.to_string();
        let mut words = vec!["restore", "all", "--pgdata", &pg_dir, "--redis-dir", &cache_dir, "--json"];
        words.extend(["--target-time", &text, "--redis-server", &server]);
        // Once with both servers started by the restore itself.
        let bin = bin(QUICK);
        let (bindir, options) = (bin.display().to_string(), format!("-p {} -k {}", free_port(), dir.display()));
        if nth == 0 {
            words.extend(["--start", "--pg-bindir", &bindir, "--server-options", &options]);
        }
        let report = it.site.walkeep(&words).json();
        if nth == 0 {
            let mut stop = process::command(bin.join("pg_ctl"), Orphan::Kill);
            stop.args(["stop", "-w", "-m", "fast", "-D", &pg_dir]);
            process::run(stop).expect_ok();
            let keys = report["redis"]["loaded"]["keys"]["0"].as_u64();
            assert!(report["postgres"]["reached"].is_object() && keys >= Some(1), "{report:#}");
        }
        assert_eq!(report["postgres"]["restored"]["role"], "copy", "{report:#}");
        let bound = report["skew"]["at_most_seconds"].as_f64().expect("a bound");
        // Usually some milliseconds; a bound that is not one would hold as well.
        assert!(bound < 5.0, "{report:#}");
        let restored = started(QUICK, pgdata);
        let of_postgres: usize = restored.sql("select coalesce(max(n), 0) from ledger").parse().expect("a number");
        assert_eq!(restored.sql("select count(*) from ledger"), of_postgres.to_string(), "none is missing");
        let options = report["redis"]["start"].as_array().expect("options");
        let options: Vec<&str> = options.iter().map(|word| word.as_str().expect("a word")).collect();
        let of_redis = RedisServer::start(QUICK_REDIS, &options);
        of_redis.await_loaded();
        let of_redis = of_redis.ask(&["GET", "seq"]);
        let of_redis: usize = of_redis.parse().unwrap_or(0);
        let earliest = time - SignedDuration::try_from_secs_f64(bound).expect("a span");
        let over = |moment: Timestamp| written.iter().take_while(|written| written.over <= moment).count();
        let ahead = report["skew"]["redis_ahead_at_most_seconds"].as_f64().expect("a bound");
        let began = |moment: Timestamp| written.iter().take_while(|written| written.began <= moment).count();
        let latest = began(time);
        let latest_of_redis = began(time + SignedDuration::try_from_secs_f64(ahead).expect("a span"));
        println!("{time}: {of_postgres} and {of_redis}, bound {bound} s: {}..={latest}", over(earliest));
        assert!((over(time)..=latest).contains(&of_postgres), "{of_postgres} at {time}: {report:#}");
        assert_eq!(report["skew"]["clocks_known"], true, "{report:#}");
        assert!((over(earliest)..=latest_of_redis).contains(&of_redis), "{of_redis} at {time}: {report:#}");
        assert_eq!(report["redis"]["last_command"]["name"], "SET");
    }
}

#[test]
fn nothing_is_written_unless_both_can_reach_it() {
    let it = Joint::start();
    it.cluster.sql("insert into ledger values (1)");
    it.redis.ask(&["SET", "seq", "1"]);
    std::thread::sleep(Duration::from_millis(20));
    let time = Timestamp::now();
    std::thread::sleep(Duration::from_millis(20));
    it.cluster.sql("insert into ledger values (2)");
    it.redis.ask(&["SET", "seq", "2"]);
    it.cluster.switch_wal();
    it.covered(time);
    let dir = it.site.path();
    let (pgdata, redis_dir) = (dir.join("pg"), dir.join("redis"));
    let (pg_dir, cache_dir) = (pgdata.display().to_string(), redis_dir.display().to_string());
    let server = program(QUICK_REDIS, "redis-server").display().to_string();
    let restore = |time: &str, more: &[&str]| {
        let mut words =
            vec!["restore", "all", "--pgdata", &pg_dir, "--redis-dir", &cache_dir, "--redis-server", &server];
        words.extend(["--target-time", time]);
        words.extend(more);
        it.site.walkeep(&words)
    };
    // A folder that is in use, of either.
    for occupied in [&pgdata, &redis_dir] {
        std::fs::create_dir_all(occupied).expect("a folder");
        std::fs::write(occupied.join("mine"), "x").expect("a file");
        let refused = restore(&time.to_string(), &[]).expect_code(2);
        assert!(refused.stderr.contains("is not empty, it has mine"), "{}", refused.stderr);
        let other = if occupied == &pgdata { &redis_dir } else { &pgdata };
        assert!(is_empty(other), "{} was touched", other.display());
        std::fs::remove_dir_all(occupied).expect("removed");
    }
    // Redis alone cannot reach it: its only snapshot is gone.
    let rdb = it.site.repository().join("cache/snapshot");
    let aside = it.site.path().join("aside");
    std::fs::rename(&rdb, &aside).expect("aside");
    let refused = restore(&time.to_string(), &[]).expect_code(3);
    assert!(refused.stdout.contains("main can be restored there, cache cannot"), "{}", refused.stdout);
    assert!(is_empty(&pgdata) && is_empty(&redis_dir));
    std::fs::rename(&aside, &rdb).expect("back");
    // PostgreSQL alone cannot reach it: no commit is archived after it.
    let end = Timestamp::now();
    it.redis.ask(&["SET", "seq", "3"]);
    let has = || it.site.walkeep(&["plan", "redis", "--target-time", &end.to_string()]).code == Some(0);
    assert!(until(PATIENCE, || has().then_some(())).is_some());
    let refused = restore(&end.to_string(), &[]).expect_code(3);
    assert!(refused.stdout.contains("cache can be restored there, main cannot"), "{}", refused.stdout);
    assert!(refused.stdout.contains("--nearest goes there"), "{}", refused.stdout);
    let json: serde_json::Value = serde_json::from_str(&restore(&end.to_string(), &["--json"]).stdout).expect("JSON");
    assert_eq!((&json["reachable"], json["nearest"].is_string()), (&false.into(), true), "{json:#}");
    assert!(is_empty(&pgdata) && is_empty(&redis_dir));
    // Both to the newest moment that both reach, and Redis is started on what was written.
    let said = restore(&end.to_string(), &["--nearest"]).expect_ok();
    assert!(said.contains("the newest moment that both can reach before"), "{said}");
    assert!(said.contains("start it with: pg_ctl") && said.contains("start it with: redis-server"), "{said}");
    assert_eq!(started(QUICK, pgdata).sql("select max(n) from ledger"), "2");
}

/// Each would fit where both do not.
#[test]
fn on_one_file_system_both_must_fit() {
    let it = Joint::start();
    it.cluster.sql("insert into ledger values (1)");
    // WAIT is about what the same client has written.
    it.redis.feed(
        "EVAL \"for i=1,20 do redis.call('SET', KEYS[1]..i, string.rep('x', 1000000)) end\" 1 big\nWAIT 1 60000\n",
    );
    std::thread::sleep(Duration::from_millis(20));
    let time = Timestamp::now();
    std::thread::sleep(Duration::from_millis(20));
    it.cluster.sql("insert into ledger values (2)");
    it.redis.ask(&["SET", "seq", "2"]);
    it.cluster.switch_wal();
    it.covered(time);
    let time = time.to_string();
    let plan = it.site.walkeep(&["plan", "all", "--target-time", &time, "--json"]).json();
    let of_postgres = plan["postgres"]["plan"]["file_bytes"].as_u64().expect("bytes");
    // Four segments of WAL besides, and half of what Redis takes.
    let disk = Disk::mount(&it.site.path().join("disk"), u32::try_from(of_postgres >> 20).expect("a size") + 16);
    let (pgdata, here, elsewhere) =
        (disk.path().join("pg"), disk.path().join("redis"), it.site.scratch().directory("elsewhere"));
    let server = program(QUICK_REDIS, "redis-server").display().to_string();
    let restore = |redis_dir: &Path| {
        let (pg_dir, cache_dir) = (pgdata.display().to_string(), redis_dir.display().to_string());
        let words = [
            "restore",
            "all",
            "--pgdata",
            &pg_dir,
            "--redis-dir",
            &cache_dir,
            "--redis-server",
            &server,
            "--target-time",
        ];
        it.site.walkeep(&[&words[..], &[&time]].concat())
    };
    let refused = restore(&here).expect_code(1);
    assert!(refused.stderr.contains("main and cache go to one file system"), "{}", refused.stderr);
    assert!(refused.stderr.contains("make room, or name another folder; nothing was touched"), "{}", refused.stderr);
    assert!(is_empty(&pgdata) && is_empty(&here));
    restore(&elsewhere).expect_ok();
    assert_eq!(started(QUICK, pgdata).sql("select max(n) from ledger"), "1");
}
